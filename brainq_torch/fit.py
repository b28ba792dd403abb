"""Train a classifier: ``python -m brainq_torch.fit --config configs/mobilenetv2.yaml --data.root DIR --out RUN``.

Exit codes: 0 trained, 1 the loss became no number, 2 wrong input, 130 or 143 interrupted.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from brainq_torch.console import WRONG_INPUT, escape_unprintable, one_line, silence_training
from brainq_torch.data.datamodule import ImageDataModule
from brainq_torch.data.dataset.sources import data_root
from brainq_torch.data.limits import check_limits
from brainq_torch.data.ranges import Seed, Share, Threads
from brainq_torch.finish import finish
from brainq_torch.models import ModelOptions
from brainq_torch.resume import claim, is_first_process
from brainq_torch.run import Run, RunError, load_run, read_yaml
from brainq_torch.run_files import CONFIG, LOG, as_typed, format_command, named_config, resume_command
from brainq_torch.stopping import TERMINATED, code_of, raise_when_stopped
from brainq_torch.training.across_sources import AcrossSources, LastLayer
from brainq_torch.training.classifier import CrossEntropy, KeepBy, TrainingDivergedError
from brainq_torch.training.distill import Distillation
from brainq_torch.training.log import write_log
from brainq_torch.training.loop import check_options, start_model, train_stage
from brainq_torch.training.mixstyle import MixStyle
from brainq_torch.training.qat import Qat, start_ptq
from brainq_torch.training.stages import Stage

DEFAULT_CONFIG = "quickstart"
DEFAULT_OUT = "runs/quickstart"
DIVERGED = 1  # exit code besides those of all commands
USER_ERRORS = (MisconfigurationException, OSError, ValueError)
"""What a user can cause: reported in a line, without a traceback."""

IMPORTS = ("brainq_torch", "lightning")
"""Packages whose classes a configuration may name; nothing else is imported for it."""

_FULL_DISK_BYTES = 16 << 20
"""Less than this and a failed write is put down to the disk."""

_LISTS = ("stages", "data.sources", "distillation.terms", "trainer.logger", "trainer.callbacks")
"""Keys whose value is a list of parts that have keys of their own."""


class _Parser(ArgumentParser):
    """A list given again is the whole list: jsonargparse alone fills its parts from an earlier one as long."""

    def parse_args(  # type: ignore[override]  # its other parameters are passed on
        self, args: Sequence[str] | None = None, *others: Any, **named: Any
    ) -> Namespace:
        """Return the values of words, by default those of the command line."""
        return super().parse_args(list(_clear_lists(sys.argv[1:] if args is None else args)), *others, **named)

    def parse_path(self, path: str | PathLike[str], **named: Any) -> Namespace:
        """Return the values of a file in UTF-8; jsonargparse takes it for the letters of the system."""
        values: Namespace = self.parse_string(Path(path).read_text(encoding="utf-8"), os.path.basename(path), **named)
        return values

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the message in one line: jsonargparse's has a line for each thing that a value might have been."""
        super().error(" ".join(message.replace("Expected a typing.Literal", "Allowed are ").split()), ex)


def _clear_lists(words: Sequence[str]) -> Iterator[str]:
    """Empty each list before the flag or the configuration that gives it."""
    for word in words:
        flag, _, value = word.partition("=")
        config = read_yaml(Path(value)) if flag == "--config" and value else {}
        for key in _LISTS:
            *group, name = key.split(".")
            part = config.get(group[0]) if group else config
            if flag == f"--{key}" or (isinstance(part, dict) and name in part):
                yield f"--{key}=[]"
        yield word


def make_parser() -> ArgumentParser:
    """Build the command line: every key of a YAML is a flag; unknown keys are errors."""
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=list(IMPORTS), instantiate_subclass_spec_in_any=False
    )
    usage = "%(prog)s [--config C] [--out RUN] [--KEY VALUE ...]"  # all of them fill a screen before an error
    parser = _Parser(prog=format_command("brainq_torch.fit"), description=as_typed(__doc__ or ""), usage=usage)
    parser.add_argument("--config", action="config", help="a YAML file, or the name of one of configs/")
    parser.add_argument("--out", type=str, default=DEFAULT_OUT, help="run folder to make")
    parser.add_argument("--seed", type=Seed, default=0, help="of everything random")
    parser.add_argument("--resume", action="store_true", help="continue a killed run in --out")
    parser.add_argument("--init", type=str, default="", help="run folder whose weights to start from")
    words = "run folders: start from the mean of their weights (fine-tunes of one start; one named twice counts twice)"
    parser.add_argument("--average", type=list[str], default=[], help=words)
    parser.add_class_arguments(ImageDataModule, "data")
    parser.link_arguments("out", "data.out")
    parser.link_arguments("seed", "data.seed")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_class_arguments(CrossEntropy, "loss")
    parser.add_argument("--distillation", type=Distillation | None, default=None, help="learn from a teacher, too")
    parser.add_argument("--across_sources", type=AcrossSources | None, default=None, help="ask the same of each source")
    parser.add_argument("--mixstyle", type=MixStyle | None, default=None, help="features in other sources' looks")
    parser.add_argument("--last_layer", type=LastLayer | None, default=None, help="solve the last layer in the end")
    parser.add_argument("--stages", type=list[Stage], help="what is trained, one after the other; [] with --average")
    words = "validation loss by which a stage keeps its best epoch, waits and stops (``CalibratedLoss``, or plain)"
    parser.add_argument("--keep_by", type=KeepBy, default="val_calibrated_loss", help=words)
    parser.add_argument("--qat", type=Qat | None, default=None, help="fine-tune fake-quantized, from --init's weights")
    parser.add_argument("--ema_decay", type=Share, default=0.0, help="exponential average of the weights; 0 is off")
    parser.add_argument("--compile", type=bool, default=False, help="torch.compile the network")
    parser.add_argument("--channels_last", type=bool, default=True, help="NHWC memory layout in training")
    parser.add_argument("--threads", type=Threads, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--fast_malloc", type=bool, default=True, help="keep freed memory: starts anew once (glibc)")
    managed = {"max_epochs", "min_epochs", "default_root_dir", "use_distributed_sampler",
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
        print(f"error: {one_line(error)}", file=sys.stderr)
        return WRONG_INPUT
    out = Path(config.out)
    try:
        raise_when_stopped()
        with _sigterm_raises():
            train(parser, config)
    except (*USER_ERRORS, TrainingDivergedError) as error:
        print(f"error: {_explain(error, out)}", file=sys.stderr)
        return DIVERGED if isinstance(error, TrainingDivergedError) else WRONG_INPUT
    except (KeyboardInterrupt, SystemExit) as stop:
        if is_first_process():
            begun = f"; continue with: {resume_command(out)}" if (out / CONFIG).is_file() else ""
            print(f"stopped{begun}", file=sys.stderr)
        return TERMINATED if isinstance(stop, SIGTERMException) else code_of(stop)
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


def _explain(error: Exception, out: Path) -> str:
    """Return the error's message; a full disk comes in many wordings, so it is recognised by the space left."""
    if isinstance(error, OSError) and out.is_dir() and shutil.disk_usage(out).free < _FULL_DISK_BYTES:
        return f"the disk is full ({error}); free some space, then: {resume_command(out)}"
    return one_line(error)


def _with_config(words: list[str]) -> list[str]:
    """Put the configuration first, so that flags beat it: the one given, of the resumed run, or the quickstart."""
    if {"-h", "--help"} & set(words):
        return words
    early = argparse.ArgumentParser(prog=format_command("brainq_torch.fit"), add_help=False, allow_abbrev=False)
    early.add_argument("--config", action="append")
    early.add_argument("--out")
    early.add_argument("--resume", action="store_true")
    known, others = early.parse_known_args(words)
    own = Path(known.out or DEFAULT_OUT) / CONFIG
    given = known.config or [own if known.resume and own.is_file() else DEFAULT_CONFIG]
    out = [] if known.out is None else [f"--out={known.out}"]
    return [*(f"--config={named_config(word)}" for word in given), *others, *out, *["--resume"] * known.resume]


def fit(config: str | PathLike[str] = DEFAULT_CONFIG, **overrides: Any) -> Run:
    """Train, as ``python -m brainq_torch.fit`` does; what it prints is printed.

    Args:
        config: A YAML file, or the name of one of ours such as ``mobilenetv2``.
        overrides: Its keys with other values: ``out="runs/mine", data={"root": "DIR", "batch_size": 16}``; a group's
            keys that are not named stay. ``resume=True`` continues a killed run in ``out``.

    Returns:
        The finished run: its folder, network in eval mode, classes, pixels and resolved configuration.

    Raises:
        ValueError, OSError: A key, a value or the data cannot be used, and what to do. TrainingDivergedError: The loss
            became no number. KeyboardInterrupt: It was stopped; ``resume=True`` goes on.
    """
    words = [f"--config={os.fspath(config)}", *(["--resume"] if overrides.pop("resume", False) else [])]
    for name, value in overrides.items():
        group = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        words += [f"--{key}={_as_word(each)}" for key, each in group.items()]
    parser = make_parser()
    parser.exit_on_error = False
    silence_training()
    try:
        chosen = parser.parse_args(_with_config(words))
    except ArgumentError as error:
        raise RunError(str(error)) from error
    with _sigterm_raises():
        train(parser, chosen)
    return load_run(chosen.out)


def _as_word(value: Any) -> str:
    """Return a value as the command line has it: text as it is, anything else as YAML in a line."""
    if isinstance(value, str | PathLike):
        return os.fspath(value)
    try:
        return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n").removesuffix("\n...")
    except yaml.YAMLError as error:  # an object, such as a callback
        raise RunError(f"{error.args[-1]!r} is no text, number, list or dict; give class_path and init_args") from error


class _Callable(ModuleType):
    """This module is ``brainq_torch.fit`` as soon as it is imported, which must not hide the function of that name."""

    def __call__(self, config: str | PathLike[str] = DEFAULT_CONFIG, **overrides: Any) -> Run:
        return fit(config, **overrides)


_Callable.__call__.__doc__ = fit.__doc__
sys.modules[__name__].__class__ = _Callable


def train(parser: ArgumentParser, config: Namespace) -> None:
    """Train one run folder from start, or from where it was killed, to end."""
    out = Path(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, verbose=False)
    with claim(out, resolve(parser, config), config.resume) as unfinished:
        if unfinished:
            _fit_claimed(out, parser.instantiate(config))
        else:
            print(f"{out} is complete; nothing to resume")


def resolve(parser: ArgumentParser, config: Namespace) -> str:
    """Return the whole configuration as YAML, its numbers in their limits; how the run is resumed is no part of it."""
    config.data.root = data_root(config.data.root, config.data.sources)
    kept = config.clone()
    for name in ("config", "resume"):
        kept.pop(name, None)
    text = str(parser.dump(kept, skip_validation=True))
    check_limits(yaml.safe_load(text))
    return text


def _fit_claimed(out: Path, config: Namespace) -> None:
    if not config.stages and not config.average:
        raise ValueError("no stages to train; give --config with a list of stages")
    check_options(config)
    if config.qat and config.ema_decay:
        raise ValueError("qat needs ema_decay 0: an average of quantization scales is the scale of no weights")
    data: ImageDataModule = config.data
    model = start_model(config)
    if config.qat:
        model = start_ptq(config.qat, model, data)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.compile:
        model.compile()
    for index in range(len(config.stages)):
        train_stage(out, config, index, model, data)
    if not config.stages:
        data.prepare_data()
        write_log(out / LOG, [])
    if is_first_process():
        finish(out, config, model, data)


if __name__ == "__main__":
    sys.exit(main())
