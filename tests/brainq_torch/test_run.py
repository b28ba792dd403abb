import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.models import ModelOptions, build_model
from brainq_torch.provenance import describe_environment
from brainq_torch.run import RunError, load_run, read_checkpoint, save_checkpoint
from brainq_torch.run_files import CHECKPOINT
from tests.support.narrow_run import Intruder


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def check_refused(folder, words):
    with pytest.raises(RunError, match=words):
        load_run(folder)


def test_a_run_comes_back_whole(tiny_run, phantoms):
    run = load_run(tiny_run)
    assert run.pixels == PixelSpec(32)
    assert run.classes == CLASSES
    assert run.model_arguments == {"width_mult": 0.35}
    assert run.data_root == phantoms
    assert {row.split for row in run.manifest()} == {"Training", "val", "Testing"}
    assert not run.model.training
    assert run.quantization is None


def test_weights_are_saved_to_the_bit(tmp_path):
    model = build_model("mobilenetv2", width_mult=0.35)
    options = ModelOptions("mobilenetv2", arguments={"width_mult": 0.35})
    save_checkpoint(tmp_path / CHECKPOINT, model, options, PixelSpec(64), CLASSES)
    state = read_checkpoint(tmp_path / CHECKPOINT)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_truncated_checkpoint_is_refused(run):
    whole = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    check_refused(run, r"model\.ckpt is truncated")


def test_code_in_a_checkpoint_is_not_run(run, tmp_path):
    torch.save({"format": 1, "model": Intruder(tmp_path / "ran")}, run / CHECKPOINT)
    check_refused(run, r"was not loaded: it holds code.*state_dict")
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused(run):
    check_refused(run / CHECKPOINT, r"is no folder; .* python -m tools\.restore makes one of a float")
    (run / CHECKPOINT).unlink()
    run = run.rename(run.with_name("a run"))
    check_refused(run, r"not finished.*--resume --out '.*a run'")
    (run / "config.yaml").unlink()
    check_refused(run, "no config")
    check_refused(run / "nowhere", "is no folder")


def test_environment_is_described_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    described = describe_environment()
    assert described["commit"] is None
    assert described["packages"]["torch"] == version("torch")


MALFORMED = [
    ("model", None), ("model", {"name": "mobilenetv2"}), ("model", {"name": 5, "arguments": {}}),
    ("model", {"name": "mobilenetv2", "arguments": {"width_mult": "wide"}}), ("pixels", {"size": "large"}),
    ("pixels", []), ("classes", 4), ("state_dict", {"classifier.1.bias": 1}), ("state_dict", 7),
    ("quantization", {"unknown": 1}), ("abstention", {"temperature": None}),
]  # fmt: skip


def _set(name, value):
    return lambda checkpoint: checkpoint | {name: value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: {"weights": torch.zeros(1)}, r"model\.ckpt is not a brainq_torch checkpoint"),
        (_set("format", 99), r"model\.ckpt has format 99"),
        (
            _set("model", {"name": "mobilenetv2", "arguments": {"width_mult": 1.0}}),
            "another architecture .* instead of",
        ),
        *((_set(*entry), r"model\.ckpt") for entry in MALFORMED),
    ],
)
def test_other_entries_are_refused_by_name(change, words, run):
    torch.save(change(read_checkpoint(run / CHECKPOINT)), run / CHECKPOINT)
    check_refused(run, words)


def test_a_flipped_bit_in_the_weights_is_refused(run):
    whole = (run / CHECKPOINT).read_bytes()
    for place in range(len(whole) // 3, len(whole), len(whole) // 5):
        damaged = bytearray(whole)
        damaged[place] ^= 8
        (run / CHECKPOINT).write_bytes(damaged)
        check_refused(run, "checksum")
