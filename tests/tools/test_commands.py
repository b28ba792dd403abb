"""Every command ends alike: 2 and one line that says what was wrong, whatever it was given."""

import importlib
import os
import re
import shutil
import sys
import tempfile
from argparse import Namespace
from itertools import product
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from brainq_torch.console import escape_unprintable, without_chatter
from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.evaluation.figure import save_figure
from brainq_torch.run_files import CHECKPOINT
from brainq_torch.series.kept_file import KeptFileError, require_places
from brainq_torch.texts import fill_text
from export.run.metadata import FileMetadata, write_metadata
from tests.support.handmade_models import write_int8_tflite
from tests.support.narrow_run import Intruder, write_run
from tools.networks import Row

ROOT = Path(__file__).parents[2]

COMMANDS = {
    "export": "{given} --out {new}",
    "tools.abstention": "{given} --data {data}",
    "tools.adapt": "{given} --data {data} --config configs/quickstart.yaml --out {new}",
    "tools.audit": "{given}",
    "tools.bench": "{given}",
    "tools.bench_training": "--data {given}",
    "tools.compare": "{model} --data {data} --pair {model} {given}",
    "tools.doctor": "{given}",
    "tools.edge": "{given} --static",
    "tools.evaluate": "{given} --data {data}",
    "tools.gradcam": "{given} --data {data} --out {new}",
    "tools.low_bits": "{given} --data {data} --out {new}",
    "tools.networks": "tests.support.networks:Branching --data {given} --images 4",
    "tools.pairs": "{given} --data {data} --manifest {manifest}",
    "tools.predict": "{given} {data}",
    "tools.predictions": "{given} --data {data} --run {data} --out {new}.npz",
    "tools.pseudo_sources": "--manifest {given} --data {data} --out {new}",
    "tools.report": "{given}",
    "tools.restore": "{given} --config configs/quickstart.yaml --data.root {data} --out {new}",
    "tools.series_rule": "{given} --data {data}",
    "tools.shift": "{given} --data {data}",
    "tools.sources": "--config configs/quickstart.yaml --data.root {given} --out {new}",
    "tools.study": "--config {given}",
    "tools.teacher_logits": "{given} --data {data} --out {new}",
}
"""Module -> words; ``given`` is what is wrong."""

UNWRITABLE = [Path("/proc/report.json")] * Path("/proc").is_dir()

WORKERS = {"tools.bench.worker", "tools.doctor.probe", "tools.edge.tflm_worker"}
"""Started by commands, never by a user."""


def test_no_command_is_left_out():
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for folder in ("export", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert found - WORKERS - {"export.bundle.predict", "tools"} == COMMANDS.keys()  # the bundle's; the others' caller


@pytest.fixture(scope="module")
def places(tmp_path_factory, phantoms):
    """A good model, and one wrong thing of every kind."""
    folder = tmp_path_factory.mktemp("wrong")
    model = write_int8_tflite(folder / "good.tflite")
    write_metadata(model, FileMetadata(CLASSES, PixelSpec(32), {}))
    content = bytearray(model.read_bytes())
    (folder / "cut.tflite").write_bytes(content[: len(content) // 2])
    content[-1] ^= 1
    (folder / "flipped.tflite").write_bytes(content)
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "noise.tflite").write_bytes(b"\0\0\0\0TFL3" + bytes(range(256)))
    (folder / "folder.tflite").mkdir()
    (folder / "model.txt").write_text("x")
    cut = write_run(folder / "cut") / CHECKPOINT
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    torch.save({"format": 1, "state_dict": Intruder(folder / "ran")}, write_run(folder / "evil") / CHECKPOINT)
    (folder / "manifest.csv").write_text("path\n")
    return {"folder": folder, "model": model, "data": phantoms, "manifest": folder / "manifest.csv"}


def load(name):
    return importlib.import_module(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)


@pytest.fixture
def refused(places, tmp_path, stopped, monkeypatch):
    """Runs a command with what it is given and more words, which it refuses; returns what was said."""
    monkeypatch.chdir(ROOT)

    def run(name, given, *more):
        words = COMMANDS[name].format(given=given, new=tmp_path / "new", **places).split()
        return stopped(load(name).main, [*words, *more]).err

    return run


WRONG = ("missing.tflite", "cut.tflite", "flipped.tflite", "empty.onnx", "noise.tflite", "folder.tflite", "model.txt",
         "cut", "evil")  # fmt: skip
CASES = [case for case in product(COMMANDS, WRONG) if case != ("tools.doctor", "flipped.tflite")]  # what doctor is for


@pytest.mark.parametrize(("name", "wrong"), CASES)
def test_a_wrong_input_is_2_and_one_line(name, wrong, places, tmp_path, refused):
    said = refused(name, places["folder"] / wrong)
    assert sum("error:" in line for line in said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert not (places["folder"] / "ran").exists()


FOUND = (
    ("tools.doctor", "{folder}/flipped.tflite --static", 1),
    ("tools.audit", "{data}", 0),
    ("tools.predict", "{model} {data}", 0),
    ("tools.predict", "{model} {data} {folder}/missing.png", 1),
    ("tools.evaluate", "{model} --data {data}", 0),
)


@pytest.mark.parametrize(("name", "words", "expected"), FOUND)
def test_what_is_found_wrong_is_1_and_nothing_is_0(name, words, expected, places, stopped):
    stopped(load(name).main, words.format(**places).split(), expected)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_2(name, places, refused):
    configured = {"tools.study": "configs/study_quick.yaml", "tools.sources": "configs/quickstart.yaml"}
    assert "--no-such-flag" in refused(name, configured.get(name, places["model"]), "--no-such-flag")


@pytest.mark.parametrize(
    "name", sorted(COMMANDS.keys() - {"tools.restore"})
)  # that one shows fit's 437 lines, Lightning's own
def test_every_flag_has_help(name, capsys):
    with pytest.raises(SystemExit):
        load(name).main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    bare = [
        line
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("  -") and not re.search(r"\S  +\S", line) and not after.startswith(" " * 10)
    ]
    assert lines
    assert bare == []


THREADED = ("abstention", "bench", "compare", "evaluate", "gradcam", "low_bits", "predict", "predictions")
NUMBERS = (
    ("--threads", "0", THREADED),
    ("--threads", "100000", THREADED),
    ("--seed", "-1", ("gradcam", "pseudo_sources", "shift")),
    ("--images", "0", ("edge", "low_bits")),
    ("--images", "1", ("gradcam",)),
    ("--images", "3", ("shift",)),
    ("--budget", "0", ("low_bits",)),
    ("--count", "0", ("pairs",)),
    ("--rounds", "0", ("bench", "bench_training")),
    ("--rounds", "1000000000", ("bench", "bench_training")),
    ("--calls", "1000000000", ("bench",)),
    ("--images", "1000000000", ("edge", "gradcam", "low_bits", "networks", "shift")),
    ("--count", "1000000000", ("pairs",)),
    ("--seed", "4294967296", ("gradcam", "pseudo_sources", "shift")),
    ("--size", "100000", ("networks",)),
    ("--sources", "1000000000", ("pseudo_sources",)),
    ("--resamples", "9", ("report",)),
    ("--resamples", "1000000000", ("report",)),
    ("--calibration-images", "1000000000", ("low_bits",)),
)


NUMBERED = [(flag, number, f"tools.{name}") for flag, number, names in NUMBERS for name in names]


@pytest.mark.parametrize(("flag", "number", "name"), NUMBERED)
def test_a_number_that_makes_no_sense_is_2(flag, number, name, places, refused):
    said = refused(name, places["model"], flag, number)
    assert said.count("error:") == 1
    assert re.search(rf"{flag}: {number} is too (small|large); allowed are \d+ to \d", said)


REPORTING = ("abstention", "audit", "bench", "bench_training", "compare", "doctor", "edge", "evaluate", "shift")


@pytest.mark.parametrize("name", REPORTING)
def test_a_report_that_cannot_be_written_is_2_before_any_work(name, places, tmp_path, refused):
    given = places["data"] if name in ("audit", "bench_training") else places["model"]
    said = refused(f"tools.{name}", given, "--json", str(tmp_path / "none" / "report.json"))
    assert "report.json cannot be written" in said


@pytest.mark.parametrize("name", ["tools.pseudo_sources", "tools.restore", "tools.study"])
def test_a_file_that_is_no_utf8_is_2(name, places, tmp_path, stopped, monkeypatch):
    monkeypatch.chdir(ROOT)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: Tumör\n".encode("latin-1"))
    words = COMMANDS[name].replace("configs/quickstart.yaml", str(latin))
    given = places["model"] if str(latin) in words else latin
    said = stopped(load(name).main, words.format(given=given, new=tmp_path / "new", **places).split()).err
    assert "UTF-8" in said or "utf-8" in said


@pytest.mark.parametrize("form", [("--bundle-file", "a", "b"), ("--bundle-file", "a", "--bundle-file", "b")])
def test_bundle_files_may_be_named_together_or_one_by_one(form):
    from export.__main__ import _parse

    assert _parse(["run", *form]).bundle_file == ["a", "b"]


def test_only_chatter_of_libraries_is_dropped(capfd):
    with without_chatter():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: something\n")
    assert capfd.readouterr().err == "ERROR: something\n"


def test_a_table_has_aligned_columns_whatever_is_in_its_cells():
    """A bar in a name does not part a cell, a sentence does not widen its column, what is not known is a dash."""
    rows = [Row("a|b", 1234567), Row("package.module:Class", note="a long sentence " * 8)]
    lines = fill_text("networks", rows=rows).splitlines()
    assert lines[0].startswith("| network              | parameters | fp32 |")
    assert lines[2].startswith("| a/b                  | 1,234,567  | -    |")
    assert lines[0].endswith("| s | note |")
    assert lines[3].endswith("sentence  |")


@pytest.mark.parametrize("missing", [(sys, "stderr"), (tempfile, "tempdir")])
def test_a_closed_standard_error_or_no_place_to_write_is_no_obstacle(missing, monkeypatch):
    monkeypatch.setattr(*missing, "/no/such/folder" if missing[0] is tempfile else None)
    escape_unprintable()
    with without_chatter():
        pass


MALFORMED = ("[]", '{"artefacts": 3}', '{"artefacts": {"model_fp16.tflite": 7}}', "\xff",
             '{"artefacts": {"model_fp16.tflite": {"passed": "yes", "sha256": 3}}}')  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
@pytest.mark.parametrize("words", [("--bundle", "{bundle}"), ("--force", "--recipes", "fp32")])
def test_a_malformed_parity_json_is_2(text, words, tiny_run, tmp_path, stopped):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "parity.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "export" / "theirs").write_text("")
    more = [word.format(bundle=tmp_path / "bundle") for word in words]
    said = stopped(load("export").main, [str(tiny_run), "--out", str(tmp_path / "export"), *more]).err
    assert said.startswith("error: ")
    assert not (tmp_path / "bundle").exists()


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    def check(place):
        require_places(Namespace(json=place), place, None)

    for target in (tmp_path, tmp_path / "lost" / "a.json", tmp_path / ("a" * 256), *UNWRITABLE):
        with pytest.raises(KeptFileError, match="cannot be written; name a file in a folder that is there"):
            check(target)
    check(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "loop").symlink_to(tmp_path / "loop")  # a link to itself among the inputs is no fault of the place
    require_places(Namespace(images=[tmp_path / "loop"], json="a"), tmp_path / "a.json")
    (tmp_path / "a.json").write_text("é")
    check(tmp_path / "a.json")
    for content in (b"\x1c\0\0\0TFL3", b"\x08\x0a\x12\x07pytorch", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n\0"):
        (tmp_path / "lost.png").write_bytes(content)  # evaluate --plot scan.png
        with pytest.raises(KeptFileError, match="which would be lost; name another file for the answers"):
            check(tmp_path / "lost.png")
    for draw in (save_figure, Figure.savefig):  # what we drew may be drawn again, before we signed it, too
        draw(Figure(), tmp_path / "lost.png")
        check(tmp_path / "lost.png")
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests may be allowed everything
    with pytest.raises(KeptFileError, match="cannot be written"):
        check(tmp_path / "a.json")


def test_no_command_replaces_what_it_is_given(places, tmp_path, stopped):
    text, link = tmp_path / "list.csv", tmp_path / "link.json"
    text.write_text("path\n")
    link.symlink_to(text)
    measured = f"{places['model']} --data {places['data']}"
    for name, words in (
        ("tools.evaluate", f"{measured} --manifest {text} --json {link}"),
        ("tools.evaluate", f"{measured} --json {tmp_path / 'new'} --plot {tmp_path / 'new'}"),
        ("tools.compare", f"{measured} --pair {places['model']} {text} --json {text}"),
        ("tools.predict", f"{places['model']} {places['folder']} {text} --csv {text}"),
        ("tools.audit", f"{places['data']} --table {text} --groups {text}"),
    ):
        assert "is named twice, and one would be lost" in stopped(load(name).main, words.split()).err
    assert text.read_text() == "path\n"


@pytest.mark.parametrize("name", ["tools.abstention", "tools.compare", "tools.doctor", "tools.gradcam", "tools.shift"])
def test_an_image_that_cannot_be_read_is_named_in_one_line(name, tiny_run, tiny_export, phantoms, tmp_path, stopped):
    data = shutil.copytree(phantoms, tmp_path / "data")
    (data / "Testing" / "glioma" / "0\n\x1b[31m.png").write_bytes(b"")
    more = {"tools.abstention": f"--outliers {data / 'Testing'}", "tools.gradcam": f"--out {tmp_path / 'g.png'}"}
    given = tiny_export / "model_fp32.tflite" if name == "tools.doctor" else tiny_run
    said = stopped(load(name).main, f"{given} --data {data} {more.get(name, '')}".split(), 0).err
    named = [line for line in re.split(r"[\r\n]", said) if line.startswith("not read: ")]
    assert len(named) == 1 + (name == "tools.abstention")
    assert all(r"glioma/0\n\x1b[31m.png: has zero bytes; copy or download it again" in line for line in named)
