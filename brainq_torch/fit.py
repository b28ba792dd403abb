"""Train a classifier: ``python -m brainq_torch.fit --config configs/mobilenetv2.yaml --data.root DIR --out RUN``."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch import nn

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.datamodule import ImageDataModule, PixelDataset
from brainq_torch.data.folder import DataFolderError
from brainq_torch.data.images import UnreadableImageError
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.data.split import ManifestError, read_manifest
from brainq_torch.data.typicality import fit_typicality
from brainq_torch.models import build_model
from brainq_torch.models.pretrained import PretrainedError, load_pretrained
from brainq_torch.quant.prepare import finalize
from brainq_torch.run import (
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    LOG,
    MANIFEST,
    METRICS,
    RunError,
    describe_environment,
    load_run,
    save_checkpoint,
    write_json,
)
from brainq_torch.training.abstention import Abstention, fit_abstention, measure
from brainq_torch.training.belief import find_unseen, measure_belief, summarise
from brainq_torch.training.classifier import Classifier, CrossEntropy, TrainingDivergedError
from brainq_torch.training.distill import Distillation
from brainq_torch.training.log import EpochLog, plot_curves, read_log
from brainq_torch.training.metrics import compute_metrics, plot_confusion
from brainq_torch.training.qat import Qat, QatSchedule, choose, load_ptq, start_ptq
from brainq_torch.training.stages import FreezeBackbone, Stage

DEFAULT_CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
USER_ERRORS = (
    DataFolderError, ManifestError, PretrainedError, RunError, TrainingDivergedError, UnreadableImageError, OSError,
)  # fmt: skip
"""What a user can cause: reported in a line, without a traceback."""

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
    parser = ArgumentParser(prog="python -m brainq_torch.fit", description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML from configs/")
    parser.add_argument("--out", type=str, default="runs/quickstart", help="run folder to make")
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
    parser = make_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    config = parser.parse_args(_with_config(words))
    try:
        fit(parser, config)
    except (*USER_ERRORS, ValueError) as error:
        print(f"error: {_explain(error, Path(config.out))}", file=sys.stderr)
        return 1
    return 0


def _explain(error: Exception, out: Path) -> str:
    """Return the error's message; a full disk comes in many wordings, so it is recognised by the space left."""
    if isinstance(error, OSError) and out.is_dir() and shutil.disk_usage(out).free < _FULL_DISK_BYTES:
        return f"the disk is full ({error}); free some space, then: python -m brainq_torch.fit --resume --out {out}"
    return str(error)


def _with_config(words: list[str]) -> list[str]:
    """Add the configuration that the words leave out: that of the run being resumed, else the quickstart."""
    if any(word == "--config" or word.startswith("--config=") for word in words) or {"-h", "--help"} & set(words):
        return words
    if "--resume" in words and "--out" in words[:-1]:
        own = Path(words[words.index("--out") + 1]) / CONFIG
        if own.is_file():
            return ["--config", str(own), *words]
    return ["--config", str(DEFAULT_CONFIG), *words]


def fit(parser: ArgumentParser, config: Namespace) -> None:
    """Train one run folder from start, or from where it was killed, to end."""
    out = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, verbose=False)
    if not _claim(out, parser, config):
        print(f"{out} is complete; nothing to resume")
        return
    try:
        _fit_claimed(out, parser.instantiate(config))
    except Exception:
        # Nothing but the configuration is there yet: the corrected command must not find a folder in its way.
        if _is_first_process() and not (out / MANIFEST).exists():
            shutil.rmtree(out)
        raise


def _fit_claimed(out: Path, config: Namespace) -> None:
    if not config.stages:
        raise ValueError("no stages to train; give --config with a list of stages")
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
    if _is_first_process():
        _finish(out, config, model, data)


def _is_first_process() -> bool:
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # set when Lightning is imported


def _claim(out: Path, parser: ArgumentParser, config: Namespace) -> bool:
    """Make the run folder, or check that the one there is this run. Returns False when it is complete."""
    text = _resolved(parser, config)
    if not _is_first_process():
        return not (out / METRICS).exists()
    if out.exists() and any(out.iterdir()):
        if not config.resume:
            raise RunError(f"{out} exists. Continue it with --resume, or name another folder with --out")
        if (out / CONFIG).is_file():
            _check_same(out, text)
            _write_config(out, text)
            return not (out / METRICS).exists()
        strangers = [path.name for path in out.iterdir() if path.name != CONFIG + ".partial"]
        if strangers:
            raise RunError(f"{out} is no run folder (no {CONFIG}, but {strangers[:3]}); name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    _write_config(out, text)
    write_json(out / ENVIRONMENT, describe_environment())
    return True


def _write_config(out: Path, text: str) -> None:
    partial = out / (CONFIG + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(out / CONFIG)


def _resolved(parser: ArgumentParser, config: Namespace) -> str:
    """Return the whole configuration as YAML; how the run is resumed is no part of it."""
    kept = config.clone()
    for name in ("config", "resume"):
        kept.pop(name, None)
    return str(parser.dump(kept, skip_validation=True))


def _check_same(out: Path, text: str) -> None:
    """Refuse to resume with another configuration than the run began with; run and images may have moved."""
    before, now = (_flatten(yaml.safe_load(source)) for source in ((out / CONFIG).read_text(encoding="utf-8"), text))
    # An option that is off ("") may be newer than the run.
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name, "") != now.get(name, "")]
    names = [name for name in names if name not in ("out", "data.root")]
    if names:
        changes = "; ".join(f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in names[:5])
        raise RunError(
            f"{out} was begun with another configuration ({changes}). Resume it without --config or other flags, "
            "or train into another --out"
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {name: leaf for key, value in tree.items() for name, leaf in _flatten(value, f"{prefix}.{key}").items()}
    return {prefix.lstrip("."): tree}


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
        last = folder / "last.ckpt"
        module = Classifier(model, stage, index, config.loss, config.seed, config.distillation)
        earlier = [row for row in _log_rows(out) if row["stage"] in {s.name for s in config.stages[:index]}]
        trainer = L.Trainer(
            **vars(config.trainer),
            max_epochs=stage.epochs,
            callbacks=_callbacks(config, index, folder, EpochLog(out / LOG, stage.name, earlier)),
            logger=TensorBoardLogger(out, name="tensorboard", version=folder.name),
            use_distributed_sampler=False,  # the data module's sampler is reproducible already
            num_sanity_val_steps=0,
            default_root_dir=out,
        )
        with warnings.catch_warnings():
            # The batches come from memory: loader processes would only copy them (measured in results/).
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
        if trainer.interrupted:
            raise RunError(f"stopped; continue with: python -m brainq_torch.fit --resume --out {out}")
        if trainer.is_global_zero:
            done.touch()
        trainer.strategy.barrier()
    best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in best.items()})


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
