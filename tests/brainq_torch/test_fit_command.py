"""What ``python -m brainq_torch.fit`` makes of its words and of signals."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brainq_torch import fit
from brainq_torch.fit import main, make_parser
from brainq_torch.training.classifier import Classifier
from brainq_torch.training.distill import Distillation, Term
from brainq_torch.training.qat import Qat
from brainq_torch.training.stages import Stage
from brainq_torch.training.teacher import Teacher
from tests.brainq_torch.test_fit import same_weights
from tests.conftest import TINY
from tests.support.windows import refuse_as_windows


def words_for(phantoms, out):
    return [*TINY, f"--data.root={phantoms}", f"--out={out}", "--stages=[{name: all, epochs: 2}]"]


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """A run of two epochs that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(words_for(phantoms, out)) == 0
    return out


@pytest.mark.parametrize("form", [["--config", "configs/quickstart.yaml"], ["--config=configs/quickstart.yaml"]])
def test_a_flag_beats_the_file_wherever_it_stands(form):
    flags = ["--out", "MINE", "--data.batch_size", "4"]
    for words in ([*form, *flags], [*flags, *form], [*flags[:2], *form, *flags[2:]]):
        config = make_parser().parse_args(fit._with_config(words))
        assert (config.out, config.data.batch_size, config.data.size) == ("MINE", 4, 96)


FIRST = "{data: {sources: [{name: a, root: a, class_map: {HGG: glioma}}]}, stages: [{name: x, epochs: 1, rate: 0.5}]}"
SECOND = "{data: {sources: [{name: b, root: b}]}, stages: [{name: y, epochs: 2}]}"


@pytest.mark.parametrize("form", ["file", "joined", "apart"])
def test_a_list_given_again_inherits_nothing(form, tmp_path):
    for name, text in (("one", FIRST), ("two", SECOND)):
        (tmp_path / f"{name}.yaml").write_text(text)
    parts = {"--data.sources": "[{name: b, root: b}]", "--stages": "[{name: y, epochs: 2}]"}
    words = {
        "file": [f"--config={tmp_path / 'two.yaml'}"],
        "joined": [f"{flag}={value}" for flag, value in parts.items()],
        "apart": [word for pair in parts.items() for word in pair],
    }[form]
    words = [f"--config={tmp_path / 'one.yaml'}", *words, "--stages.epochs=3"]
    config = make_parser().parse_args(fit._with_config(words))
    (source,), (stage,) = config.data.sources, config.stages
    assert (source.root, source.class_map) == ("b", {})
    assert (stage.name, stage.epochs, stage.rate) == ("y", 3, Stage(name="y", epochs=1).rate)


@pytest.mark.parametrize("out", [["--out", "RUN"], ["--out=RUN"]])
def test_a_resume_finds_the_runs_own_configuration(out, tiny_run):
    words = [word.replace("RUN", str(tiny_run)) for word in out]
    for order in (["--resume", *words], [*words, "--resume"]):
        config = make_parser().parse_args(fit._with_config(order))
        assert (config.resume, config.out, config.data.size) == (True, str(tiny_run), 32)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--trainer.check_val_every_n_epoch=2"], "validating after every epoch"),
        (["--trainer.limit_val_batches=0"], "validating after every epoch"),
        (["--trainer.fast_dev_run=1"], "keeps no checkpoint"),
        (["--trainer.limit_train_batches=0"], "nothing would be trained"),
        (["--trainer.max_steps=1"], "ended before its first epoch was validated"),
        (["--keep_by=loss"], "Allowed are ['val_calibrated_loss', 'val_loss']. Got value: loss"),
        (["--trainer.precision=64"], "allowed are 32-true, 16-mixed and bf16-mixed"),
        (["--trainer.precision=64-true"], "allowed are 32-true, 16-mixed and bf16-mixed"),
        (["--trainer.precision=16-true"], "allowed are 32-true, 16-mixed and bf16-mixed"),
        (["--trainer.precision=bf16-true"], "allowed are 32-true, 16-mixed and bf16-mixed"),
        (["--threads=-1"], '"threads": Not of type Threads: -1 does not conform'),
        (["--threads=100000"], '"threads": Not of type Threads: 100000 does not conform'),
        (["--data.batch_size=0"], '"data.batch_size": Not of type PositiveInt: 0 does not conform to restriction v>0'),
        (["--data.val_fraction=1"], '"data.val_fraction": Not of type OpenUnitInterval: 1 does not'),
        (["--data.style.tone=1.5"], "ClosedUnitInterval: 1.5 does not conform to restriction v>=0 and v<=1"),
        (["--data.style={tone: .nan}"], '"data.style.tone": Not of type ClosedUnitInterval: nan does not'),
        (["--data.augmentation.flip=-1"], '"data.augmentation.flip": Not of type ClosedUnitInterval: -1 does not'),
        (["--data.counterfactual.share=1"], '"data.counterfactual.share": Not of type Share: 1 does not'),
        (["--mixstyle={layers: [a], probability: 2}"], '"probability": Not of type ClosedUnitInterval: 2 does not'),
        (["--across_sources={method: coral, strength: 0}"], '"strength": Not of type PositiveAmount: 0 does not'),
        (["--qat.observer_epochs=-1"], '"observer_epochs": Not of type NonNegativeInt: -1 does not'),
        (["--data.workers=-1"], '"data.workers": Not of type Threads: -1 does not'),
        (["--trainer.gradient_clip_val=-1.5"], "trainer.gradient_clip_val is -1.5; allowed are 0 (none) and more"),
        (["--model.arguments.width_mult=-1"], "width_mult is -1; allowed are more than 0"),
        (["--stages=[{name: all, epochs: 1000000000}]"], "stages.0.epochs is 1000000000; allowed are at most 100000"),
        (["--stages.batches_per_epoch=1000000000"], "stages.0.batches_per_epoch is 1000000000; allowed are at most"),
        (["--data.batch_size=1000000000"], "data.batch_size is 1000000000; allowed are at most 4096"),
        (["--data.root=phantom", "--data.phantoms_per_class=1000000000"], "allowed are at most 20000"),
        (["--data.views=100000"], "data.views is 100000; allowed are at most 1000"),
        (["--model.arguments.width_mult=1000000000"], "model.arguments.width_mult is 1000000000; allowed are at most"),
        (["--seed=4294967296"], '"seed": Not of type Seed: 4294967296 does not'),
        (["--data.views=-1"], '"data.views": '),
        (["--ema_decay=1"], '"ema_decay": Not of type Share: 1 does not conform to restriction v>=0 and v<1'),
        (["--loss.label_smoothing=1.5"], '"loss.label_smoothing": Not of type Share: 1.5 does not'),
        (["--stages=[{name: all, epochs: 1, rate: .inf}]"], "stage 'all' has rate inf; it must be"),
        (["--stages=[{name: all, epochs: 1, stop_after: -1}]"], "stage 'all' has stop_after -1; allowed are 0 and"),
        (["--stages=[{name: a, epochs: 1}, {name: a, epochs: 1}]"], "the stages are called a, a; give each its own"),
        (["--config=lost"], "there is no configuration lost; give a YAML file, or a name: adapt, densenet101_teacher"),
        (["--out=README.md"], "README.md is a file, and a run is a folder; name another with --out"),
        (["--data.no_such=1"], "unrecognized arguments: --data.no_such=1"),
        (["--stages=[{name: all, epochs: 1, momentum: 0.9}]"], "momentum"),
        (["--stages=[{name: all, epochs: 0}]"], "0 epochs"),
        (["--data.size=5"], "32 to 1024"),
        (["--model.name=alexnet"], "mobilenetv2"),
        (["--model.pretrained=nowhere.pth"], "is no file"),
        (["--data.root=nowhere"], "nowhere"),
        (["--init=nowhere"], "is no folder"),
        (["--trainer.precision=7"], "precision"),
        (["--trainer.strategy=no_such"], "no_such"),
        (["--trainer.accelerator=tpu"], "trainer options"),
        (["--trainer.devices=none"], "devices"),
        (["--trainer.profiler=no_such"], "profiler"),
        (["--trainer.gradient_clip_algorithm=no_such"], "no_such"),
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches"),
        (["--trainer.val_check_interval=1000"], "val_check_interval"),
    ],
)
def test_wrong_flags_are_a_line(flags, match, phantoms, tmp_path, stopped):
    error = stopped(main, [*words_for(phantoms, tmp_path / "run"), *flags]).err
    assert match in error
    assert "--trainer.max_time" not in error  # the list of all flags, two screens long


@pytest.mark.parametrize(
    "flag",
    [
        "--distillation.teacher=intruder.Teacher",
        "--distillation.teacher.class_path=intruder.Teacher",
        "--distillation={teacher: {class_path: intruder.Teacher}, terms: []}",
        "--distillation.terms=[{class_path: intruder.Term}]",
        "--distillation.terms=[{class_path: brainq_torch.training.distill.StandardizedLogits, "
        "init_args: {term: {class_path: intruder.Term}}}]",
        "--trainer.profiler=intruder.Profiler",
        "--trainer.strategy.class_path=intruder.Strategy",
        "--loss={class_path: intruder.Loss}",
        "--data={class_path: intruder.Data}",
        "--model.arguments={width_mult: {class_path: intruder.Number}}",
        "--stages=[{class_path: intruder.Stage}]",
        "--distillation.teacher=brainq_torch.fit.os.system",
    ],
)
def test_classes_from_elsewhere_are_not_even_imported(flag, phantoms, tmp_path, monkeypatch, stopped):
    (tmp_path / "intruder.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    words = [word.replace("quickstart", "mobilenetv2_kd") for word in words_for(phantoms, tmp_path / "run")]
    stopped(main, [*words, "--model.pretrained=none", flag])
    assert "intruder" not in sys.modules


def test_a_training_says_on_stderr_only_what_it_runs_on_and_why_it_ends(phantoms, tmp_path):
    words = [*words_for(phantoms, tmp_path / "run"), "--stages=[{name: all, epochs: 1}]"]
    command = [sys.executable, "-m", "brainq_torch.fit", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all((tmp_path / "run" / name).stat().st_size for name in ("learning_curves.png", "confusion.png"))  # drawn
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["GPU", "`Trainer.fit`"]
    assert "all: epoch 1 of 1: train_loss " in result.stdout  # where no bar is shown
    assert "FLOPs" not in result.stdout


@pytest.mark.parametrize("moment", ["before", "in training"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_code_and_the_advice(
    number, code, moment, phantoms, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    owner, name = (fit, "start_model") if moment == "before" else (Classifier, "validation_step")
    original = getattr(owner, name)

    def interrupt(*arguments):
        os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(owner, name, interrupt)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert main(words_for(phantoms, out)) == code
    assert f"stopped; continue with: python -m brainq_torch.fit --resume --out {out}" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    monkeypatch.undo()
    assert main(["--resume", "--out", str(out)]) == 0
    assert same_weights(whole, out)


def test_slurm_requeues_the_job_and_it_ends_with_the_same_weights(phantoms, whole, tmp_path, monkeypatch):
    out, asked = tmp_path / "run", tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"NTASKS": 1, "JOB_NAME": "train", "JOB_ID": 77, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    step, count = Classifier.training_step, []

    def requeue(*arguments):
        count.append(1)
        if len(count) == 5:  # in the second epoch of four steps
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(Classifier, "training_step", requeue)
    assert main([*words_for(phantoms, out), "--resume"]) == 143
    assert asked.read_text() == "requeue 77\n"
    assert main([*words_for(phantoms, out), "--resume"]) == 0
    assert same_weights(whole, out)


def test_a_damaged_checkpoint_costs_an_epoch_and_no_more(whole, tmp_path, ended):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    stage = out / "checkpoints" / "1-all"
    for path in (stage / "done", out / "model.ckpt", out / "metrics.json"):
        path.unlink()
    content = bytearray((stage / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (stage / "last.ckpt").write_bytes(content)
    assert "last.previous.ckpt is trained again" in ended(main(["--resume", "--out", str(out)])).err
    assert same_weights(whole, out)


def test_every_own_flag_has_a_text():
    parser = make_parser()
    for part in (Stage, Qat, Distillation, *Term.__subclasses__(), *Teacher.__subclasses__()):
        parser.add_class_arguments(part, part.__name__)
    own = [action for action in parser._actions if not action.dest.startswith(("trainer.", "data."))]
    assert len(own) > 80
    assert not [action.dest for action in own if not action.help]


def test_a_configuration_is_utf8_on_every_system(tmp_path, monkeypatch):
    refuse_as_windows(monkeypatch)
    (tmp_path / "a.yaml").write_text("data:\n  root: K\u00f6pfe \u0141\nstages: []\n", encoding="utf-8")
    config = make_parser().parse_args(fit._with_config(["--config", str(tmp_path / "a.yaml")]))
    assert config.data.root == "K\u00f6pfe \u0141"
