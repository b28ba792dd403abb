"""A run's training: the network that it starts from, and one Lightning Trainer for each of its stages."""

import copy
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch import nn

from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.models import ModelOptions, build_model
from brainq_torch.models.pretrained import load_pretrained
from brainq_torch.run import RunError, load_run, read_config
from brainq_torch.run_files import LOG
from brainq_torch.training.across_sources import last_linear
from brainq_torch.training.checkpoints import BEST, StageCheckpoints, find_last, read_best
from brainq_torch.training.classifier import Classifier
from brainq_torch.training.log import EpochLog, make_loggers, read_log
from brainq_torch.training.mixstyle import MixStyleSchedule
from brainq_torch.training.qat import QatSchedule
from brainq_torch.training.stages import FreezeBackbone, Stage


def check_options(config: Namespace) -> None:
    """Refuse, by RunError, stages of one name, and what Lightning can do and a run cannot."""
    options, names = config.trainer, [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise RunError(f"the stages are called {', '.join(names)}; give each its own name, {LOG} knows no other")
    if config.last_layer and config.qat:
        raise RunError("last_layer is solved in floats; leave qat out, and quantize the finished run")
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
    if not (options.gradient_clip_val or 0) >= 0:
        raise RunError(f"trainer.gradient_clip_val is {options.gradient_clip_val}; allowed are 0 (none) and more")
    if options.accumulate_grad_batches < 1:
        raise RunError(f"trainer.accumulate_grad_batches is {options.accumulate_grad_batches}; at least 1 is needed")
    if options.check_val_every_n_epoch != 1 or options.limit_val_batches == 0:
        raise RunError(
            f"trainer.check_val_every_n_epoch is {options.check_val_every_n_epoch}, trainer.limit_val_batches "
            f"{options.limit_val_batches}; a run finds its best weights by validating after every epoch: leave out "
            "the first, and give the second no 0"
        )


def start_model(config: Namespace) -> nn.Module:
    """Build the network with the weights the run starts from."""
    options: ModelOptions = config.model
    classes = config.data.classes
    model = build_model(options.name, len(classes), **options.arguments)
    check_size(model, options.name, config.data.pixels.size, len(classes))
    if config.last_layer:
        last_linear(model, len(classes))
    sources = [config.init] if config.init else config.average
    if config.init and config.average:
        raise RunError("init and average both name weights to start from; leave one out")
    if sources:
        load_weights(model, options, classes, sources)
    else:
        load_pretrained(model, options)
    return model


def check_size(model: nn.Module, name: str, size: int, class_count: int) -> None:
    """Run an empty image. Raises RunError where a network takes no such size, or gives no logits of each image."""
    training = model.training
    try:
        with torch.no_grad():
            made = tuple(model.eval()(torch.zeros(1, 1, size, size)).shape)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"{name} does not run on images of {size} pixels ({error}); give another data.size, or the size in "
            "model.arguments where it takes one (timm: img_size)"
        ) from error
    finally:
        model.train(training)
    if made != (1, class_count):
        raise RunError(f"{name} makes {made} of an image, (1, {class_count}) is needed: end its forward with logits")


def load_weights(model: nn.Module, options: ModelOptions, classes: tuple[str, ...], folders: list[str]) -> None:
    """Give a network the mean of the weights of finished runs; a folder named twice counts twice.

    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, "uniform soup"; fine-tunes of one start. Statistics
    of BatchNorm are averaged, too: let the stages freeze them (``frozen_statistics``), then they are the start's.
    """
    states = []
    for folder in folders:
        start = load_run(folder)
        if (start.model_name, start.model_arguments) != (options.name, options.arguments):
            raise RunError(
                f"{folder} holds {start.model_name} {start.model_arguments}, this run trains {options.name} "
                f"{options.arguments}; name the run's own model in the configuration"
            )
        if start.classes != classes:
            raise RunError(
                f"{folder} tells {', '.join(start.classes)} apart, this run {', '.join(classes)}; start from "
                "published weights (model.pretrained), or map the folders to the same classes with data.class_map"
            )
        states.append(start.model.state_dict())
    mean = {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    model.load_state_dict(mean)


def train_stage(out: Path, config: Namespace, index: int, model: nn.Module, data: ImageDataModule) -> None:
    """Train one stage, or what is left of it, and leave its best weights in ``model``."""
    stage: Stage = config.stages[index]
    folder = out / "checkpoints" / f"{index + 1}-{stage.name}"
    done = folder / "done"
    data.stage_index, data.batches_per_epoch = index, stage.batches_per_epoch
    if not done.exists():
        module = Classifier(
            model, stage, index, config.loss, config.seed, config.distillation, len(data.classes),
            config.across_sources, config.keep_by,
        )  # fmt: skip
        trainer = _make_trainer(out, config, index, folder)
        with warnings.catch_warnings():
            # Batches come from memory: loader processes would only copy them (measured in results/). A frozen backbone
            # is in eval mode on purpose, a resumed stage's folder is not empty. The rest is Lightning's own.
            warnings.filterwarnings("ignore", ".*(not have many workers|in eval mode|is not empty|LeafSpec).*")
            try:
                trainer.fit(module, datamodule=data, ckpt_path=find_last(folder), weights_only=True)
            except RuntimeError as error:
                if "conditioned on metric" not in str(error):  # of EarlyStopping, which names those that there are
                    raise
                raise RunError(f"trainer.callbacks: {error}") from error
            except SystemExit as stop:  # Lightning ends the process at Ctrl-C, where a notebook wants to go on
                raise stop.__context__ if isinstance(stop.__context__, KeyboardInterrupt) else stop from None
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
    logged, done = out / LOG, {before.name for before in config.stages[:index]}
    earlier = [row for row in read_log(logged) if row["stage"] in done] if logged.exists() else []
    options = vars(config.trainer).copy()
    loggers = make_loggers(options.pop("logger"), out, folder.name)
    own = copy.deepcopy(options.pop("callbacks") or [])  # each stage begins with them as they were made
    own = [own] if isinstance(own, Callback) else own
    if options["enable_progress_bar"] is None:
        options["enable_progress_bar"] = sys.stdout.isatty()
    options["enable_model_summary"] = bool(options["enable_model_summary"])  # it counts no FLOPs without an example
    try:
        trainer = L.Trainer(
            **options,
            max_epochs=stage.epochs,
            callbacks=[*_callbacks(config, index, folder, EpochLog(logged, stage.name, earlier)), *own],
            plugins=[StageCheckpoints()],
            logger=loggers,
            use_distributed_sampler=False,  # the data module's sampler is reproducible already
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_hyperparams(read_config(out))
    except Exception as error:  # Lightning refuses options by exceptions of every kind
        raise RunError(f"these trainer options cannot be had: {error}") from error
    return trainer


def _callbacks(config: Namespace, index: int, folder: Path, log: EpochLog) -> list[Callback]:
    stage: Stage = config.stages[index]
    callbacks: list[Callback] = [FreezeBackbone(stage), log]
    if config.qat:
        callbacks.append(QatSchedule(config.qat, sum(earlier.epochs for earlier in config.stages[:index])))
    if config.mixstyle:
        callbacks.append(MixStyleSchedule(config.mixstyle))
    if config.ema_decay and stage.train == "all":
        callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
    if stage.stop_after:
        callbacks.append(EarlyStopping(config.keep_by, patience=stage.stop_after, check_on_train_epoch_end=True))
    best = ModelCheckpoint(
        folder, "best", monitor=config.keep_by, save_on_train_epoch_end=True, enable_version_counter=False
    )
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    return [*callbacks, best, last]
