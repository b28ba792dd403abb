"""The command that measures accuracy against bits: what it writes, and that a second call measures nothing again."""

import csv
import json
import shutil

import numpy as np
import pytest

from brainq_torch.lock import hold_lock
from brainq_torch.quant.sensitivity import Sensitivity, choose_bits
from tools.low_bits import __main__ as low_bits
from tools.low_bits import measure

COMMAND = [
    "--bits", "4", "8", "--rounding", "descent", "--calibration-images", "4",
    "--sensitivity-images", "2", "--threads", "1",
]  # fmt: skip
BUDGET = "250000"


@pytest.fixture(scope="module")
def measured(tiny_run, phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("low_bits")
    run, out = folder / "run", folder / "out"
    shutil.copytree(tiny_run, run)
    arguments = [str(run), "--data", str(phantoms), "--out", str(out), "--budget", BUDGET, *COMMAND]
    assert low_bits.main(arguments) == 0
    return out, arguments


def test_it_writes_the_curve_and_the_table(measured):
    out, _ = measured
    report = json.loads((out / low_bits.REPORT).read_text())
    points = [(point["method"], point["bits"]) for point in report["curve"]]
    assert points == [("float", 32), ("nearest", 4), ("descent", 4), ("nearest", 8)]
    assert report["images"] == 12
    assert set(report["calibration"]["splits"]) == {"Training"}
    with (out / low_bits.SENSITIVITY).open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 53
    assert {row["bits"] for row in table} == {"4", "8"}
    (mixed,) = report["mixed"]
    assert mixed["layers"] == choose_bits([Sensitivity(**entry) for entry in report["sensitivity"]], int(BUDGET))
    assert mixed["weight_bytes"] <= mixed["budget_bytes"] == int(BUDGET)
    assert json.loads((out / low_bits.BITS.format(BUDGET)).read_text()) == mixed["layers"]
    four, eight = report["curve"][2]["weight_bytes"], report["curve"][3]["weight_bytes"]
    assert four < int(BUDGET) < eight
    assert 4 <= mixed["bits"] < 8
    assert (out / low_bits.CURVE).read_bytes()[:4] == b"\x89PNG"


def test_a_second_call_measures_nothing_again(measured, monkeypatch):
    out, arguments = measured
    before = (out / low_bits.REPORT).read_bytes()

    def refuse(*_, **__):
        raise AssertionError("measured again")

    for name in ("export_qdq_onnx", "measure_sensitivity"):
        monkeypatch.setattr(measure, name, refuse)
    assert low_bits.main(arguments) == 0
    assert (out / low_bits.REPORT).read_bytes() == before
    (kept,) = (out / "state").glob("*/descent-4.npz")
    assert np.load(kept)["logits"].shape == (12, 4)


def test_two_commands_do_not_share_a_folder(measured, ended):
    out, arguments = measured
    with hold_lock(out / low_bits.LOCK, "it is used"):
        assert f"{out} is being worked in by process" in ended(low_bits.main(arguments), 2).err


def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_measured(measured, ended, monkeypatch):
    _, arguments = measured
    arguments = [word if word != BUDGET else "10" for word in arguments]
    monkeypatch.setattr(low_bits, "choose_images", None)
    assert "the budget is 10 bytes" in ended(low_bits.main(arguments), 2).err
