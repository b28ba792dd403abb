"""Train a classifier: ``python -m brainq_torch.fit --config configs/mobilenetv2.yaml --data.root DIR --out RUN``.

Exit codes: 0 trained, 1 the loss became no number, 2 wrong input, 130 or 143 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch import nn

from brainq_torch.abstention.outlier import fit_typicality
from brainq_torch.abstention.policy import Abstention, fit_abstention, measure
from brainq_torch.console import escape_unprintable, silence_training
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.manifest import read_manifest
from brainq_torch.data.decoded import PixelDataset
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.evaluation.metrics import compute_metrics, plot_confusion
from brainq_torch.evaluation.unseen import find_unseen, measure_belief, summarise
from brainq_torch.models import build_model
from brainq_torch.models.pretrained import load_pretrained
from brainq_torch.openmp import MOST_THREADS
from brainq_torch.quant.prepare import finalize
from brainq_torch.resume import claim, is_first_process
from brainq_torch.run import RunError, load_run, read_yaml, save_checkpoint
from brainq_torch.run_files import CHECKPOINT, CONFIG, LOG, MANIFEST, METRICS, write_json
from brainq_torch.training.checkpoints import BEST, StageCheckpoints, find_last, read_best
from brainq_torch.training.classifier import Classifier, CrossEntropy, TrainingDivergedError
from brainq_torch.training.distill import Distillation
from brainq_torch.training.log import EpochLog, plot_curves, read_log
from brainq_torch.training.qat import Qat, QatSchedule, choose, load_ptq, start_ptq
from brainq_torch.training.stages import FreezeBackbone, Stage

DEFAULT_CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
DEFAULT_OUT = "runs/quickstart"
USER_ERRORS = (MisconfigurationException, OSError, ValueError)
"""What a user can cause: reported in a line, without a traceback."""

DIVERGED, WRONG_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
"""Exit codes; the last two as a shell has them for SIGINT and SIGTERM."""

IMPORTS = ("brainq_torch", "lightning")
"""Packages whose classes a configuration may name; nothing else is imported for it."""

TYPICAL_IMAGES, UNSEEN_IMAGES = 500, 100
"""About so many training images show what images look like; so many unseen validation images, where a split is not
grouped, are enough to learn from them alone when not to answer."""

_FULL_DISK_BYTES = 16 << 20
"""Less than this and a failed write is put down to the disk."""


@dataclass(frozen=True)
class ModelOptions:
    """Which network, and what it starts from.

    name: see brainq_torch.models.MODELS. arguments: its constructor's, such as width_mult.
    pretrained: ``none``, ``imagenet`` (download), or the path of a torchvision-named .safetensors or .pth file.
    """

    name: str = "mobilenetv2"
    pretrained: str = "none"
    arguments: dict[str, Any] = field(default_factory=dict)


def make_parser() -> ArgumentParser:
    """Build the command line: every key of a YAML is a flag; unknown keys are errors."""
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=list(IMPORTS), instantiate_subclass_spec_in_any=False
    )
    parser = ArgumentParser(prog="python -m brainq_torch.fit", description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML from configs/")
    parser.add_argument("--out", type=str, default=DEFAULT_OUT, help="run folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue a killed run in --out")
    parser.add_argument("--init", type=str, default="", help="run folder whose weights to start from")
    parser.add_class_arguments(ImageDataModule, "data")
    parser.link_arguments("out", "data.out")
    parser.link_arguments("seed", "data.seed")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(CrossEntropy, "loss")
    parser.add_argument("--distillation", type=Distillation | None, default=None, help="learn from a teacher, too")
    parser.add_argument("--stages", type=list[Stage], help="what is trained, one after the other")
    parser.add_argument("--qat", type=Qat | None, default=None, help="fine-tune fake-quantized, from --init's weights")
    parser.add_argument("--ema_decay", type=float, default=0.0, help="exponential average of the weights; 0 is off")
    parser.add_argument("--compile", type=bool, default=False, help="torch.compile the network")
    parser.add_argument("--channels_last", type=bool, default=True, help="NHWC memory layout in training")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    managed = {"callbacks", "logger", "max_epochs", "min_epochs", "default_root_dir", "use_distributed_sampler",
               "num_sanity_val_steps", "enable_checkpointing", "plugins", "barebones", "model_registry"}  # fmt: skip
    parser.add_class_arguments(L.Trainer, "trainer", skip=managed, instantiate=False)
    parser.set_defaults({"trainer.devices": 1, "trainer.log_every_n_steps": 1})
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    escape_unprintable()
    silence_training()
    parser = make_parser()
    try:
        config = parser.parse_args(_with_config(list(sys.argv[1:] if arguments is None else arguments)))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    out = Path(config.out)
    try:
        with _sigterm_raises():
            fit(parser, config)
    except (*USER_ERRORS, TrainingDivergedError) as error:
        print(f"error: {_explain(error, out)}", file=sys.stderr)
        return DIVERGED if isinstance(error, TrainingDivergedError) else WRONG_INPUT
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the first into the second
        if is_first_process():
            begun = f"; continue with: {_resume_command(out)}" if (out / CONFIG).is_file() else ""
            print(f"stopped{begun}", file=sys.stderr)
        return TERMINATED if isinstance(stop, SIGTERMException) else INTERRUPTED
    return 0


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the block as Lightning lets it end a training, with a SIGTERMException."""

    def handle(signum: int, _: Any) -> None:
        if signal.getsignal(signum) is handle:  # else Lightning's own is in charge: it ends the step first, or requeues
            raise SIGTERMException

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _resume_command(out: Path) -> str:
    return shlex.join(["python", "-m", "brainq_torch.fit", "--resume", "--out", str(out)])


def _explain(error: Exception, out: Path) -> str:
    """Return the error's message; a full disk comes in many wordings, so it is recognised by the space left."""
    if isinstance(error, OSError) and out.is_dir() and shutil.disk_usage(out).free < _FULL_DISK_BYTES:
        return f"the disk is full ({error}); free some space, then: {_resume_command(out)}"
    return " ".join(str(error).split())


def _with_config(words: list[str]) -> list[str]:
    """Put the configuration first, so that flags beat it, and add the one that the words leave out.

    That is the configuration of the run being resumed, else the quickstart.
    """
    if {"-h", "--help"} & set(words):
        return words
    early = argparse.ArgumentParser(prog="python -m brainq_torch.fit", add_help=False, allow_abbrev=False)
    early.add_argument("--config", action="append")
    early.add_argument("--out")
    early.add_argument("--resume", action="store_true")
    known, others = early.parse_known_args(words)
    own = Path(known.out or DEFAULT_OUT) / CONFIG
    configs = known.config or [own if known.resume and own.is_file() else DEFAULT_CONFIG]
    for path in configs:
        read_yaml(Path(path))  # names the file, which the parser does not
    out = [] if known.out is None else [f"--out={known.out}"]
    return [*(f"--config={path}" for path in configs), *others, *out, *["--resume"] * known.resume]


def fit(parser: ArgumentParser, config: Namespace) -> None:
    """Train one run folder from start, or from where it was killed, to end."""
    out = Path(config.out)
    if not 0 <= config.threads <= MOST_THREADS:
        raise RunError(f"threads is {config.threads}; allowed are 0 (torch's choice) to {MOST_THREADS}")
    if config.threads:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, verbose=False)
    with claim(out, _resolved(parser, config), config.resume) as unfinished:
        if unfinished:
            _fit_claimed(out, parser.instantiate(config))
        else:
            print(f"{out} is complete; nothing to resume")


def _resolved(parser: ArgumentParser, config: Namespace) -> str:
    """Return the whole configuration as YAML; how the run is resumed is no part of it."""
    kept = config.clone()
    for name in ("config", "resume"):
        kept.pop(name, None)
    return str(parser.dump(kept, skip_validation=True))


def _fit_claimed(out: Path, config: Namespace) -> None:
    if not config.stages:
        raise ValueError("no stages to train; give --config with a list of stages")
    _check_trainer(config.trainer)
    if config.qat and config.ema_decay:
        raise ValueError("qat needs ema_decay 0: an average of quantization scales is the scale of no weights")
    data: ImageDataModule = config.data
    model = _start_model(config)
    if config.qat:
        model = start_ptq(config.qat, model, data)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.compile:
        model.compile()
    for index in range(len(config.stages)):
        _train_stage(out, config, index, model, data)
    if is_first_process():
        _finish(out, config, model, data)


def _check_trainer(options: Namespace) -> None:
    """Refuse what Lightning can do and a run cannot. Raises RunError."""
    if options.fast_dev_run:
        raise RunError(
            "trainer.fast_dev_run keeps no checkpoint, which a run needs; leave it out, and for a short try give "
            "--trainer.limit_train_batches 1 and stages of one epoch"
        )
    if options.limit_train_batches == 0:
        raise RunError("trainer.limit_train_batches is 0: nothing would be trained; give at least 1, or leave it out")
    if str(options.precision) in ("64", "64-true", "16-true", "bf16-true"):
        raise RunError(
            f"trainer.precision is {options.precision}; weights and images are float32: allowed are 32-true, "
            "16-mixed and bf16-mixed"
        )
    if options.accumulate_grad_batches < 1:
        raise RunError(f"trainer.accumulate_grad_batches is {options.accumulate_grad_batches}; at least 1 is needed")
    if options.check_val_every_n_epoch != 1 or options.limit_val_batches == 0:
        raise RunError(
            f"trainer.check_val_every_n_epoch is {options.check_val_every_n_epoch}, trainer.limit_val_batches "
            f"{options.limit_val_batches}; a run finds its best weights by validating after every epoch: leave out "
            "the first, and give the second no 0"
        )


def _start_model(config: Namespace) -> nn.Module:
    """Build the network with the weights the run starts from."""
    options: ModelOptions = config.model
    model = build_model(options.name, **options.arguments)
    if config.init:
        start = load_run(config.init)
        if (start.model_name, start.model_arguments) != (options.name, options.arguments):
            raise RunError(
                f"{config.init} holds {start.model_name} {start.model_arguments}, this run trains {options.name} "
                f"{options.arguments}; name the run's own model in the configuration"
            )
        model.load_state_dict(start.model.state_dict())
    else:
        load_pretrained(model, options.pretrained)
    return model


def _train_stage(out: Path, config: Namespace, index: int, model: nn.Module, data: ImageDataModule) -> None:
    """Train one stage, or what is left of it, and leave its best weights in ``model``."""
    stage: Stage = config.stages[index]
    folder = out / "checkpoints" / f"{index + 1}-{stage.name}"
    done = folder / "done"
    data.stage_index = index
    if not done.exists():
        module = Classifier(model, stage, index, config.loss, config.seed, config.distillation)
        trainer = _make_trainer(out, config, index, folder)
        with warnings.catch_warnings():
            # Batches come from memory: loader processes would only copy them (measured in results/). A frozen backbone
            # is in eval mode on purpose, a resumed stage's folder is not empty. The rest is Lightning's own.
            warnings.filterwarnings("ignore", ".*(not have many workers|in eval mode|is not empty|LeafSpec).*")
            trainer.fit(module, datamodule=data, ckpt_path=find_last(folder), weights_only=True)
        if not (folder / BEST).exists():
            raise RunError(
                f"stage {stage.name!r} ended before its first epoch was validated; "
                "give trainer.max_steps, max_time and limit_train_batches more, or leave them out"
            )
        if trainer.is_global_zero:
            done.touch()
        trainer.strategy.barrier()
    model.load_state_dict(read_best(folder))


def _make_trainer(out: Path, config: Namespace, index: int, folder: Path) -> L.Trainer:
    """Build a stage's Trainer. folder: of its checkpoints. Raises RunError for options that Lightning refuses."""
    stage: Stage = config.stages[index]
    earlier = [row for row in _log_rows(out) if row["stage"] in {s.name for s in config.stages[:index]}]
    options = vars(config.trainer).copy()
    if options["enable_progress_bar"] is None:
        options["enable_progress_bar"] = sys.stdout.isatty()
    options["enable_model_summary"] = bool(options["enable_model_summary"])  # it counts no FLOPs without an example
    try:
        return L.Trainer(
            **options,
            max_epochs=stage.epochs,
            callbacks=_callbacks(config, index, folder, EpochLog(out / LOG, stage.name, earlier)),
            plugins=[StageCheckpoints()],
            logger=TensorBoardLogger(out, name="tensorboard", version=folder.name),
            use_distributed_sampler=False,  # the data module's sampler is reproducible already
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
    except Exception as error:  # Lightning refuses options by exceptions of every kind
        raise RunError(f"these trainer options cannot be had: {error}") from error


def _callbacks(config: Namespace, index: int, folder: Path, log: EpochLog) -> list[Callback]:
    stage: Stage = config.stages[index]
    callbacks: list[Callback] = [FreezeBackbone(stage), log]
    if config.qat:
        callbacks.append(QatSchedule(config.qat, sum(earlier.epochs for earlier in config.stages[:index])))
    if config.ema_decay and stage.train == "all":
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    if stage.stop_after:
        callbacks.append(EarlyStopping("val_loss", patience=stage.stop_after, check_on_train_epoch_end=True))
    best = ModelCheckpoint(
        folder, "best", monitor="val_loss", save_on_train_epoch_end=True, enable_version_counter=False
    )
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    return [*callbacks, best, last]


def _log_rows(out: Path) -> list[dict[str, Any]]:
    return read_log(out / LOG) if (out / LOG).exists() else []


def _finish(out: Path, config: Namespace, model: nn.Module, data: ImageDataModule) -> None:
    """Measure the network, write what the run folder promises, and drop the decoded images."""
    data.prepare_data()
    data.setup("fit")
    model = model.float().eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    more: dict[str, Any] = {}
    if config.qat:
        model, more["qat"] = _finish_qat(config, model, data)
    predicted = {
        split: predict(model, data.datasets[split], data.batch_size)
        for split in ("val", "Testing")
        if len(data.datasets[split])
    }
    measured = {split: compute_metrics(*found) for split, found in predicted.items()}
    rows = read_manifest(out / MANIFEST)
    abstention = _learn_abstention(data, *predicted["val"], find_unseen(rows, "val"))
    more["abstention"] = {"temperature": abstention.temperature, "threshold": abstention.threshold} | {
        split: measure(abstention.judge(logits, data.datasets[split].images()), labels)
        for split, (logits, labels) in predicted.items()
    }
    belief = measure_belief(rows, predicted, data.leakage)
    first = "Testing" if "Testing" in measured else "val"
    options: ModelOptions = config.model
    scheme = config.qat.scheme.to_json() if config.qat else None
    save_checkpoint(out / CHECKPOINT, model, options.name, options.arguments, data.pixels, CLASSES, scheme, abstention)
    plot_curves(read_log(out / LOG), out / "learning_curves.png")
    plot_confusion(measured[first], out / "confusion.png")
    splits = {split: metrics.to_json() for split, metrics in measured.items()}
    write_json(out / METRICS, measured[first].to_json() | {"split": first, "splits": splits} | belief.to_json() | more)
    data.discard()
    print("\n".join([*summarise(out, measured, belief, data.root == "phantom"), f"  next: python -m export {out}"]))


def _learn_abstention(
    data: ImageDataModule, logits: NDArray[np.float32], labels: NDArray[np.int64], unseen: NDArray[np.bool_]
) -> Abstention:
    """Learn when not to answer, from the unseen validation images where they are enough. logits, labels: of all."""
    used = unseen if unseen.sum() >= UNSEEN_IMAGES else np.ones_like(unseen)
    train = data.datasets["Training"]
    typicality = fit_typicality(train.images(step=max(1, len(train) // TYPICAL_IMAGES)))
    return fit_abstention(logits[used], labels[used], data.datasets["val"].images()[used], typicality)


def _finish_qat(config: Namespace, model: nn.Module, data: ImageDataModule) -> tuple[nn.Module, dict[str, Any]]:
    """Return the better of the trained and the merely calibrated network, and what both and the float one scored."""
    finalize(model)
    start = _start_model(config).eval()
    networks = {"float": start, "ptq": load_ptq(config.qat, start, data), "qat": model}
    predicted = {name: predict(network, data.datasets["val"], data.batch_size) for name, network in networks.items()}
    labels = predicted["qat"][1]
    accuracy = {name: float((logits.argmax(1) == labels).mean()) for name, (logits, _) in predicted.items()}
    kept = choose(labels, predicted["ptq"][0], predicted["qat"][0])
    scores = ", ".join(f"{name} {score:.2%}" for name, score in accuracy.items())
    print(f"validation accuracy: {scores}")
    if kept == "ptq":
        print("training did not help: the calibrated network is kept. Try a lower rate or more epochs")
    elif accuracy["qat"] < accuracy["float"]:
        print("the INT8 network stays below the float one on validation")
    return networks[kept], {"kept": kept, "val_accuracy": accuracy}


@torch.no_grad()
def predict(model: nn.Module, dataset: PixelDataset, batch_size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits (N, classes) float32 and labels (N,) int64 of un-augmented images, in order."""
    starts = range(0, len(dataset), batch_size)
    batches = [dataset.pixels[dataset.rows[start : start + batch_size]] for start in starts]
    logits = [model(torch.from_numpy(scale_pixels(batch))).numpy() for batch in batches]
    return np.concatenate(logits), dataset.labels[dataset.rows]


if __name__ == "__main__":
    sys.exit(main())
