"""A file is written whole or not at all, and what is no file is not replaced."""

import os
from pathlib import Path

import pytest

from brainq_torch.console import WRONG_INPUT, run_command
from brainq_torch.run_files import format_command, write_json, write_text
from tests.support.windows import refuse_as_windows


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "new \udcff")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_link_stays_one(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").symlink_to("a")
    write_text(tmp_path / "b", "new")
    assert (tmp_path / "b").is_symlink()
    assert (tmp_path / "a").read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    reader, writer = os.pipe2(os.O_NONBLOCK)
    (tmp_path / "out").symlink_to(f"/dev/fd/{writer}")  # as /dev/stdout is one
    write_json(tmp_path / "out", [1])
    assert os.read(reader, 100) == b"[\n  1\n]\n"
    assert (tmp_path / "out").is_symlink()
    assert len(list(tmp_path.iterdir())) == 1
    os.close(reader)
    os.close(writer)


def test_windows_gets_the_same_bytes_and_commands_as_its_shells_take_them(tmp_path, monkeypatch):
    refuse_as_windows(monkeypatch)
    write_text(tmp_path / "a", "one\ntwo\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"
    words = ("export", "runs\\mine", "my runs")
    assert format_command(*words) == r"python -m export 'runs\mine' 'my runs'"
    monkeypatch.setattr(os, "name", "nt")
    assert format_command(*words) == r'python -m export runs\mine "my runs"'


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full, which is a disk without space")
def test_a_full_disk_is_told_with_a_remedy(capsys):
    def write():
        write_json(Path("/dev/full"), [1])
        return 0

    assert run_command(write) == WRONG_INPUT
    assert capsys.readouterr().err.endswith("free some space, and give the same command again\n")
    assert Path("/dev/full").is_char_device()
