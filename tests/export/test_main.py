import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial, partialmethod
from pathlib import Path

import pytest

import export.pipeline
from brainq_torch.run import load_run
from brainq_torch.run_files import hash_file
from brainq_torch.series.rule import SeriesRule, find_rule
from brainq_torch.stopping import Terminated
from export.__main__ import main
from export.bundle.card import write_card
from export.catalogue import PARITY_IMAGES
from export.recipes import RECIPES
from export.run.metadata import read_metadata, write_metadata
from export.run.runners import OnnxRunner, TFLiteRunner
from export.run.torch_runner import TorchRunner
from export.verify.parity import LogitTable
from tests.support.handmade_models import write_float_tflite

ROOT = Path(__file__).parents[2]
FLOAT = ["--recipes", "fp32", "fp16"]
FILES = ["model_fp16.tflite", "model_fp32.onnx", "model_fp32.tflite", "parity.json"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def hashes(folder):
    return {path.name: hash_file(path) for path in folder.iterdir() if path.name != "parity.json"}


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run that a test may change."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def quick(monkeypatch, tiny_export):
    """Recipes that copy the tiny export's files instead of converting again."""

    def make(context, files):
        for file in files:
            shutil.copy(tiny_export / file, context.path(file))

    for name in ("fp32", "fp16"):
        files = RECIPES[name].files
        replaced = dataclasses.replace(RECIPES[name], make=lambda context, files=files: make(context, files))
        monkeypatch.setitem(RECIPES, name, replaced)


def break_recipe(monkeypatch, name, make):
    monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], make=make))


def test_an_export_holds_exactly_its_files_and_their_report(tiny_export):
    assert names(tiny_export) == FILES
    report = json.loads((tiny_export / "parity.json").read_text())
    assert report["passed"] is True
    assert list(report["artefacts"]) == ["model_fp32.onnx", "model_fp32.tflite", "model_fp16.tflite"]
    for name, artefact in report["artefacts"].items():
        assert artefact["bytes"] == (tiny_export / name).stat().st_size
        assert artefact["sha256"] == hash_file(tiny_export / name)
        assert artefact["passed"] is True
        assert artefact["own_images"] == 44
        assert artefact["top1_agreement"] == 1.0
        assert artefact["max_lsb"] is artefact["mean_lsb"] is None
        assert artefact["max_abs_diff"] <= artefact["limits"].get("max_abs_diff", 1)
    assert report["images"]["count"] == PARITY_IMAGES >= 200
    assert sum(report["images"]["splits"].values()) == len(report["images"]["names"]) == PARITY_IMAGES
    assert report["images"]["problems"] == []
    assert {"images", "fp32", "fp16", "parity", "total"} == report["seconds"].keys()
    assert report["versions"]["onnxruntime"]


def test_the_same_run_gives_the_same_files(run, tiny_export, tmp_path):
    assert main([str(run), "--out", str(tmp_path / "again"), "--recipes", "fp16"]) == 0
    for name in FILES[:3]:
        # The checkout may have moved on between the two; nothing else may differ.
        first, second = read_metadata(tiny_export / name), read_metadata(tmp_path / "again" / name)
        commit = {"commit": first.provenance["commit"]}
        assert first == dataclasses.replace(second, provenance=second.provenance | commit)
        write_metadata(tmp_path / "again" / name, first)
    assert hashes(tmp_path / "again") == hashes(tiny_export)


def test_goes_into_the_run_by_default_and_prints_a_table(run, quick, capsys):
    assert main([str(run), *FLOAT]) == 0
    assert names(run / "export") == FILES
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if line.startswith("model_") and line.endswith("passed")]
    assert [line.split()[0] for line in lines] == ["model_fp32.onnx", "model_fp32.tflite", "model_fp16.tflite"]
    assert output.out.splitlines()[-1] == f"passed: {run / 'export'}"
    assert output.err == ""


def test_every_network_is_run_once_on_what_it_is_asked_about(run, quick, monkeypatch):
    asked = []

    def note(answer, runner, images):
        asked.append((Path(runner._name).name, len(images)))
        return answer(runner, images)

    for kind in (OnnxRunner, TFLiteRunner, TorchRunner):
        monkeypatch.setattr(kind, "__call__", partialmethod(partial(note, kind.__call__)))
    assert main([str(run), *FLOAT]) == 0
    assert Counter(asked) == {
        ("the network in PyTorch", PARITY_IMAGES): 1,
        ("model_fp32.onnx", PARITY_IMAGES): 2,  # and on shifted copies, in place of PyTorch
        ("model_fp32.tflite", PARITY_IMAGES): 1,
        ("model_fp16.tflite", PARITY_IMAGES): 2,
    }


def test_the_runs_limits_of_a_series_go_where_the_files_go(run, quick, tmp_path, stopped):
    (run / "series_rule.json").write_text('{"tumour_from": 0.5}')
    assert main([str(run), *FLOAT]) == 0
    assert names(run / "export") == FILES  # those of the run are theirs
    for force in ([], ["--force"]):
        assert main([str(run), *FLOAT, "--out", str(tmp_path / "out"), *force]) == 0
        assert find_rule(tmp_path / "out" / "model_fp16.tflite").tumour_from == 0.5
    assert "name its folder with --bundle" in stopped(main, [str(run), *FLOAT, "--limits", "0.1", "0.3"]).err


def test_a_failed_parity_exits_1_and_marks_the_files(run, quick, monkeypatch, capsys):
    def make(context):
        write_float_tflite(context.path("model_fp16.tflite"))  # runs, but is another network

    break_recipe(monkeypatch, "fp16", make)
    assert main([str(run), *FLOAT]) == 1
    assert names(run / "export") == FILES
    report = json.loads((run / "export/parity.json").read_text())
    assert report["passed"] is False
    assert {name: artefact["passed"] for name, artefact in report["artefacts"].items()} == {
        "model_fp32.onnx": True, "model_fp32.tflite": True, "model_fp16.tflite": False,
    }  # fmt: skip
    assert report["artefacts"]["model_fp16.tflite"]["flips"]
    *_, verdict, advice = capsys.readouterr().out.splitlines()
    assert "FAILED: model_fp16.tflite" in verdict
    assert advice == f"model_fp32.tflite passed; a bundle of it: python -m export {run} --bundle DIR"


def in_a_librarys_words(number, words):
    error = RuntimeError("a library's own words")
    error.__cause__ = OSError(number, words)
    return error


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (in_a_librarys_words(errno.ENOSPC, "No space left on device"), 2, "error: the disk is full "),
        (in_a_librarys_words(errno.EDQUOT, "Disk quota exceeded"), 2, "error: the disk is full "),
        (KeyboardInterrupt(), 130, "stopped; nothing half-made was kept"),
        (Terminated(), 143, "stopped; nothing half-made was kept"),
        (ZeroDivisionError(), None, ""),  # a bug is not hidden
    ],
)
def test_what_ends_an_export_is_said_and_leaves_nothing(run, quick, monkeypatch, ended, stop, code, said):
    def make(context):
        context.path("model_fp16.tflite").write_bytes(b"half")
        raise stop

    break_recipe(monkeypatch, "fp16", make)
    if code is None:
        with pytest.raises(ZeroDivisionError):
            main([str(run), *FLOAT])
    else:
        assert ended(main([str(run), *FLOAT]), code).err.splitlines()[-1].startswith(said)
    assert not {"export", "export.partial"} & set(names(run))


@pytest.mark.parametrize("module", ["importlib.metadata", "export.catalogue"])
@pytest.mark.parametrize(
    ("stop", "code"), [("raise KeyboardInterrupt", 130), ("import os; os.kill(os.getpid(), 15)", 143)]
)
def test_a_stop_while_it_loads_is_a_line(tmp_path, stop, code, module):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nclass Stop:\n    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: {stop}\nsys.meta_path.insert(0, Stop())\n"
    )
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "export", "--list"],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (code, "stopped\n")


def test_a_bundle_of_named_recipes_takes_their_files_where_they_are_made(run, quick, tmp_path, capsys):
    """As without --recipes, and as the first time: only what they would make is in question."""
    assert main([str(run), *FLOAT]) == 0
    before = hashes(run / "export")
    for recipes, file in (["fp32", "fp16"], "model_fp16.tflite"), (["fp32"], "model_fp32.tflite"):
        words = [str(run), "--recipes", *recipes, "--bundle", str(tmp_path / recipes[-1])]
        assert main([*words, "--parity-images", "300"]) == 2  # which it would pass over
        assert "words on how files are made or compared" in capsys.readouterr().err
        assert main(words) == 0
        assert [path.name for path in (tmp_path / recipes[-1]).glob("*.tflite")] == [file]
    assert hashes(run / "export") == before
    assert main([str(run), "--recipes", "int8", "--bundle", str(tmp_path / "no")]) == 2
    assert f"{run / 'export'} exists; name another folder with --out, or replace it" in capsys.readouterr().err
    assert main([str(run), "--recipes", "int9", "--bundle", str(tmp_path / "no")]) == 2
    assert "unknown recipe int9" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    (tmp_path / "no").write_text("theirs")
    assert (
        main([str(run), "--recipes", "int8", "--out", str(tmp_path / "files"), "--bundle", str(tmp_path / "no")]) == 2
    )
    assert not (tmp_path / "files").exists()  # refused before minutes of work


def test_without_its_images_a_run_is_checked_on_phantoms(run, quick, tmp_path, ended):
    output = ended(main([str(run), *FLOAT, "--data", str(tmp_path / "nowhere")]))
    assert "is not there" in output.err
    report = json.loads((run / "export/parity.json").read_text())
    assert report["images"]["splits"] == {"phantom": PARITY_IMAGES}
    assert {artefact["own_images"] for artefact in report["artefacts"].values()} == {0}
    assert "no image of the run was compared" in output.out
    assert output.out.count("on phantoms alone: passed") == len(report["artefacts"])
    file, card = run / "export/model_fp16.tflite", tmp_path / "card.md"
    models = [(file, read_metadata(file), report["artefacts"][file.name])]
    write_card(card, load_run(run), models, False, SeriesRule())
    assert "Compared on images of the run: **NOT DONE**" in card.read_text()
    assert "best on the validation part" in card.read_text()
    metrics = json.loads((run / "metrics.json").read_text()) | {"validation_doubt": "val may have been trained on"}
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_card(card, load_run(run), models, False, SeriesRule())
    assert "\n- val may have been trained on.\n" in card.read_text()
    assert "best on the validation part" not in card.read_text()


@pytest.mark.parametrize("recipe", ["int8", "w4a8", "int8_tf", "dynamic_int8"])
@pytest.mark.parametrize("left", [0, 12])
def test_integer_files_need_the_images_that_the_run_was_trained_on(run, quick, phantoms, tmp_path, ended, recipe, left):
    data = shutil.copytree(phantoms, tmp_path / "data")
    for path in sorted((data / "Training").rglob("*.png")) + sorted((data / "Testing").rglob("*.png"))[left:]:
        path.unlink()
    error = ended(main([str(run), "--recipes", "fp32", recipe, "--data", str(data)]), 2).err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "with --data" in error
    assert not {"export", "export.partial"} & set(names(run))


def test_files_are_compared_on_as_many_images_as_asked_for(run, quick):
    assert main([str(run), *FLOAT, "--parity-images", "300"]) == 0
    report = json.loads((run / "export/parity.json").read_text())
    assert report["images"]["count"] == 300
    assert report["artefacts"]["model_fp16.tflite"]["against_float"]["n"] == 300


def test_every_table_of_logits_is_closed(run, quick, monkeypatch):
    tables = []

    class Table(LogitTable):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            tables.append(self)

    monkeypatch.setattr(export.pipeline, "LogitTable", Table)
    assert main([str(run), *FLOAT]) == 0
    assert [table._pool._shutdown for table in tables] == [True, True]  # of the images, of their shifted copies


def test_words_that_make_no_sense_are_refused(run, stopped):
    assert "RUN is missing" in stopped(main, []).err
    # Of a billion, phantoms would fill the memory in the images' place.
    for flag, count in (("--parity-images", 199), ("--parity-images", 10**9), ("--calibration-images", 10**9)):
        error = stopped(main, [str(run), flag, str(count)]).err
        assert f"{flag}: {count} is too {'large' if count > 199 else 'small'}; allowed are " in error


@pytest.mark.parametrize(
    ("flips", "margin", "again", "drawn", "counts", "status"),
    [
        (1, 0.01, 0, True, [256, 1000], 0), (1, 0.01, 2, True, [256, 1000], 1), (1, 0.2, 0, True, [256], 1),
        (6, 0.01, 0, True, [256], 1), (1, 0.01, 0, False, [256], 1),
    ],
)  # fmt: skip
def test_a_few_near_ties_among_few_images_are_counted_on_more_where_there_are_more(
    run, quick, monkeypatch, ended, flips, margin, again, drawn, counts, status
):
    compared, look = [], export.pipeline.check_run_images
    found = lambda *where: dataclasses.replace(look(*where), synthetic=drawn)  # noqa: E731
    monkeypatch.setattr(export.pipeline, "check_run_images", found)

    def climb_with_flips(rungs, table):
        reports, count = climb(rungs, table), len(table.sample.names)
        found = ({"image": "x", "margin": margin},) * (again if compared else flips)
        compared.append(count)
        changed = {"passed": len(found) <= 0.001 * count, "flips": found}
        return reports | {"model_fp16.tflite": dataclasses.replace(reports["model_fp16.tflite"], **changed)}

    climb = export.pipeline.climb
    monkeypatch.setattr(export.pipeline, "climb", climb_with_flips)
    monkeypatch.setattr(export.pipeline.ParityReport, "table", lambda report: "")
    ended(main([str(run), *FLOAT]), status)
    report = json.loads((run / "export/parity.json").read_text())
    assert compared == counts
    assert (report["images"]["count"], report["passed"]) == (counts[-1], status == 0)


def test_a_missing_package_names_the_extra(run, monkeypatch, ended):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install -e '.[export]'" in ended(main([str(run), *FLOAT]), 2).err
    assert not {"export", "export.partial"} & set(names(run))


def test_list_names_the_recipes(ended):
    lines = ended(main(["--list"])).out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)


def test_what_is_no_run_is_refused_before_pytorch_loads():
    code = "import sys; from export.__main__ import main; print(main(['nowhere']), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["2", "False"]
    assert result.stderr.startswith("error: nowhere is no folder")
