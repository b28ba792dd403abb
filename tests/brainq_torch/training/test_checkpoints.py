import tempfile
from pathlib import Path

import pytest
import torch

from brainq_torch.files import TensorFileError, load_tensors, save_tensors
from brainq_torch.training.checkpoints import StageCheckpoints, find_last

STATE = {"state_dict": {}, "optimizer_states": [], "loops": {}, "callbacks": {}}


def epoch(number):
    return STATE | {"epoch": number, "state_dict": {"model.weight": torch.full((64,), float(number))}}


@pytest.fixture
def last(tmp_path):
    """The file that epochs 0 and 1 were written to."""
    path = tmp_path / "stage" / "last.ckpt"
    for number in range(2):
        StageCheckpoints().save_checkpoint(epoch(number), path)
    return path


def damage(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((64,), 1.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def test_the_one_before_is_kept(last):
    assert StageCheckpoints().load_checkpoint(last)["epoch"] == 1
    assert load_tensors(last.with_name("last.previous.ckpt"))["epoch"] == 0
    StageCheckpoints().save_checkpoint(epoch(2), last.with_name("best.ckpt"))
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt", "last.previous.ckpt"]


@pytest.mark.parametrize("step", ["write", "flush", "first rename", "second rename"])
def test_a_write_that_dies_leaves_a_whole_checkpoint(step, last, monkeypatch):
    renames = []

    def die(*_):
        raise OSError("full")

    def rename(source, target):
        renames.append(target)
        if len(renames) == (1 if step == "first rename" else 2):
            die()
        Path(source).rename(target)

    def write_half(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        die()

    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", write_half)
    monkeypatch.setattr("brainq_torch.run_files.os.fsync", die if step == "flush" else lambda _: None)
    if "rename" in step:
        monkeypatch.setattr("brainq_torch.run_files.os.replace", rename)
    with pytest.raises(OSError, match="full"):
        StageCheckpoints().save_checkpoint(epoch(2), last)
    assert find_last(last.parent) == last
    assert StageCheckpoints().load_checkpoint(last)["epoch"] == 1


def test_nothing_is_written_to_the_folder_for_temporary_files(last, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    StageCheckpoints().save_checkpoint(epoch(2), last)
    assert load_tensors(last)["epoch"] == 2


def test_a_damaged_checkpoint_gives_way_to_the_one_before(last, capsys):
    damage(last)
    with pytest.raises(TensorFileError, match="checksum"):
        load_tensors(last)
    assert StageCheckpoints().load_checkpoint(last)["epoch"] == 0
    assert "last.previous.ckpt is trained again" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02}q\x00.", None])
def test_two_damaged_ones_are_named_with_the_remedy(content, last):
    last.unlink()
    previous = last.with_name("last.previous.ckpt")
    if content is None:
        save_tensors({"weights": torch.zeros(1)}, previous)
    else:
        previous.write_bytes(content)
    with pytest.raises(TensorFileError, match=f"last.previous.ckpt is .*remove {last.parent}, and --resume"):
        StageCheckpoints().load_checkpoint(last)


def test_a_requeued_job_goes_on_from_the_last_whole_epoch(last):
    StageCheckpoints().save_checkpoint(epoch(2), last.with_name("hpc_ckpt_1.ckpt"))
    assert not last.with_name("hpc_ckpt_1.ckpt").exists()
