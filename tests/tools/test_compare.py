import json
import re
import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest

from export.run.metadata import read_metadata, write_metadata
from tests.support.sabotage import saturate
from tools.compare import Candidate, main


@pytest.fixture
def compare(ended):
    """Return what is printed of words that end with a code."""
    return lambda *words, code=0: ended(main([*map(str, words), "--threads", "1"]), code)


@pytest.fixture(scope="module")
def report(tiny_export, tiny_int8_export, tiny_run, phantoms, tmp_path_factory):
    """One comparison of everything, with one pair that is equal and one that is not."""
    folder = tmp_path_factory.mktemp("compare")
    fp32, onnx, tflite = (tiny_export / "model_fp32.tflite", *_int8(tiny_int8_export))
    damaged = Path(shutil.copy(tflite, folder / "damaged.tflite"))
    saturate(damaged, "classifier.1")
    write_metadata(damaged, read_metadata(damaged))  # a fault of its making: its checksum holds
    words = [fp32, tiny_run, onnx, tflite, damaged, "--data", phantoms, "--json", folder / "compare.json"]
    shutil.copy(next((phantoms / "Testing/glioma").iterdir()), folder / "scan.png")
    (folder / "scans.csv").write_text("path,class\nscan.png,glioma\n")
    words += ["--shifted", phantoms, "--shifted", folder / "scans.csv", "--threads", "1", "--without-xnnpack"]
    words += ["--pair", onnx, tflite, "--pair", onnx, damaged]
    with redirect_stderr(StringIO()) as said:
        assert main(list(map(str, words))) == 0
    return json.loads((folder / "compare.json").read_text()) | {"said": said.getvalue().splitlines()}


def _int8(folder):
    return folder / "model_int8.onnx", folder / "model_int8.tflite"


def test_every_model_is_measured_against_the_first(report, tiny_export, tiny_run, phantoms):
    assert (report["n"], report["split"], report["data"]) == (12, "Testing", str(phantoms))
    sizes = [row["size_bytes"] for row in report["models"]]
    assert sizes[:2] == [(tiny_export / "model_fp32.tflite").stat().st_size, (tiny_run / "model.ckpt").stat().st_size]
    assert [row["size_ratio"] for row in report["models"]] == [size / sizes[0] for size in sizes]
    first, *others = report["models"]
    assert first["against_reference"] is None
    for row in others:
        assert row["against_reference"]["n"] == row["metrics"]["n"] == 12
        assert row["against_reference"]["accuracy_a"] == first["metrics"]["accuracy"]
    assert others[0]["against_reference"]["agreement"] == 1.0  # the checkpoint the file was made from


def test_every_model_is_also_measured_on_shifted_copies_and_on_other_sources(report, phantoms):
    first, same, *others = report["models"]
    assert (first["shifted"], first["verdict"]) == ({}, None)
    table = next(name for name in same["shifted"] if name.endswith("scans.csv"))
    assert same["shifted"].keys() == {"shifted copies", str(phantoms), table}
    assert same["shifted"][table]["n"] == 1
    assert [same["shifted"][name]["n"] for name in ("shifted copies", str(phantoms))] == [12, 44]
    assert all(found["flips"] == found["lost"] == 0 for found in same["shifted"].values())
    assert same["verdict"] == "inconclusive"  # 12 images prove nothing
    damaged = next(row for row in others if row["model"].endswith("damaged.tflite"))
    assert damaged["shifted"][str(phantoms)]["flips"] > 0


def test_what_runs_is_said_once(report):
    said = [line for line in report["said"] if "running" in line]
    each = ("images", "shifted copies", "the phantoms", "the table")
    assert len(set(said)) == len(said) == len(each) * len(report["models"]) + len(["the ONNX file as written"])
    assert f"{report['models'][0]['model']}: running 12 shifted copies" in said


def test_pairs_are_measured_integer_by_integer(report):
    equal, damaged, *_ = report["pairs"]
    assert (equal["bit_equal"], equal["max_lsb"], equal["top1_agreement"]) == (1.0, 0.0, 1.0)
    assert damaged["bit_equal"] < 1  # 48 logits at one limit, where the healthy file has few or none
    assert 0 < damaged["mean_lsb"] <= damaged["max_lsb"]


def test_each_tflite_file_is_also_run_without_xnnpack(report, tiny_export, tiny_int8_export):
    files = [str(tiny_export / "model_fp32.tflite"), str(_int8(tiny_int8_export)[1])]
    pairs = {pair["reference"]: pair for pair in report["pairs"] if pair["artefact"].endswith(" without XNNPACK")}
    assert len(pairs) == 3
    rows = {row["model"]: row for row in report["models"]}
    for name in files:
        assert pairs[name]["artefact"] == f"{name} without XNNPACK"
        assert rows[f"{name} without XNNPACK"]["size_bytes"] == rows[name]["size_bytes"]
    assert pairs[files[1]]["max_lsb"] <= 24  # the built-in kernels round twice: 10 on the real network


@pytest.mark.parametrize("xnnpack", [True, False])
def test_only_the_row_of_that_name_runs_without_xnnpack(tiny_int8_export, xnnpack):
    runner = Candidate(str(_int8(tiny_int8_export)[1]), xnnpack).load(1, as_written=True)
    operators = {details["op_name"] for details in runner._interpreters[0]._get_ops_details()}
    assert ("DELEGATE" in operators) == xnnpack


def test_the_table_is_markdown(compare, tiny_export, tiny_int8_export, phantoms):
    onnx, tflite = _int8(tiny_int8_export)
    words = [tiny_export / "model_fp16.tflite", tflite, "--data", phantoms, "--pair", onnx, tflite]
    printed = compare(*words).out
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [9] * 4 + [8] * 3
    assert "100.00 %|0|0|0|" in re.sub(r" *\| *", "|", rows[-1])
    assert re.search(r"^\S+model_int8\.tflite: \d+ flips: glioma \d+ \(lost", printed, re.MULTILINE)


def test_a_model_that_is_named_twice_is_refused(compare, tiny_export, phantoms):
    assert "named twice" in compare(*[tiny_export / "model_fp32.tflite"] * 2, "--data", phantoms, code=2).err
