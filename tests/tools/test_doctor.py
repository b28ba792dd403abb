from argparse import ArgumentParser
from dataclasses import replace

import numpy as np
import onnx
import pytest

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.load import scan_folder
from brainq_torch.data.pixels import PixelSpec
from export.graph.read_graph import read_graph
from export.run.metadata import FileMetadata, write_metadata
from tests.support.handmade_models import (
    CHANNELS,
    SIDE,
    set_onnx_metadata,
    weights,
    write_float_onnx,
    write_float_tflite,
    write_int8_tflite,
    write_qdq_onnx,
)
from tools import compare
from tools.doctor import __main__ as doctor
from tools.doctor import probe as doctor_probe
from tools.doctor.checks import check_graph
from tools.doctor.probe import ProbeRun, Range, probe
from tools.doctor.ranges import check_ranges
from tools.shared.images import take_evenly


def sign(path, size=SIDE, classes=CLASSES, recipe="handmade"):
    """Give a handmade file the metadata that an exported one has."""
    write_metadata(path, FileMetadata(classes, PixelSpec(size), {"recipe": recipe}))
    return path


def codes(diagnosis, *severities):
    return {finding.code for finding in diagnosis.findings if finding.severity in (severities or ("fault", "warning"))}


DYNAMIC = {"dynamic_range": True}
SOUND = {
    "fp32.tflite": (write_float_tflite, {}, "float32"),
    "int8.tflite": (write_int8_tflite, {}, "int8"),
    "int8_float_io.tflite": (write_int8_tflite, {"float_io": True}, "int8"),
    "uint8.tflite": (write_int8_tflite, {"input_kind": "UINT8"}, "int8"),
    "w4a8.tflite": (write_int8_tflite, {"int4": True}, "int8 and int8 with int4 weights"),
    "dynamic_int8.tflite": (write_float_tflite, DYNAMIC, "float32 and float32 with int8 weights"),
    "fp32.onnx": (write_float_onnx, {}, "float32"),
    "int8.onnx": (write_qdq_onnx, {}, "int8"),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_has_no_finding_and_is_named_rightly(tmp_path, name):
    make, arguments, kind = SOUND[name]
    diagnosis = doctor.diagnose(sign(make(tmp_path / name, **arguments)), run=False)
    assert diagnosis.kind == kind
    assert codes(diagnosis) == set()
    assert diagnosis.healthy


STATIC_FAULTS = [
    # A dynamic-range file called int8, and the other way round.
    ("not_as_claimed", "fault", "int8.tflite", write_float_tflite, DYNAMIC),
    ("not_as_claimed", "fault", "int8.tflite", write_float_tflite, {}),
    ("not_as_claimed", "fault", "fp16.tflite", write_float_tflite, {}),
    ("not_as_claimed", "fault", "fp32.tflite", write_int8_tflite, {}),
    ("not_as_claimed", "fault", "int8.onnx", write_float_onnx, {}),
    ("nchw_input", "fault", "m.tflite", write_float_tflite, {"nchw": True}),
    ("nhwc_input", "fault", "m.onnx", write_float_onnx, {"nhwc": True}),
    ("double_normalisation", "fault", "m.tflite", write_float_tflite, {"normalise": True}),
    ("double_normalisation", "fault", "m.onnx", write_float_onnx, {"normalise": True}),
    ("input_scale", "fault", "m.tflite", write_int8_tflite, {"input_scale": 1 / 255}),
    ("input_scale", "fault", "m.tflite", write_int8_tflite, {"input_scale": 1 / 64, "float_io": True}),
    ("input_scale", "fault", "m.onnx", write_qdq_onnx, {"input_scale": 1 / 100}),
    ("float_island", "fault", "m.tflite", write_int8_tflite, {"island": True}),
    ("float_island", "fault", "m.onnx", write_qdq_onnx, {"island": True}),
    ("transposes", "warning", "m.tflite", write_int8_tflite, {"transpose": True}),
    ("transposes", "warning", "m.onnx", write_float_onnx, {"nhwc": True}),
    ("requantize", "warning", "m.tflite", write_int8_tflite, {"requantize": True}),
    ("per_tensor", "warning", "m.tflite", write_int8_tflite, {"per_channel": False}),
    ("per_tensor", "warning", "m.onnx", write_qdq_onnx, {"per_channel": False}),
    ("dead_channels", "warning", "m.tflite", write_int8_tflite, {"dead_channel": True}),
    ("coarse_weights", "warning", "m.tflite", write_int8_tflite, {"weight_factor": 0.1}),
    ("asymmetric_weights", "warning", "m.tflite", write_int8_tflite, {"weight_zero": 3}),
    ("bias_type", "fault", "m.tflite", write_int8_tflite, {"bias_kind": "FLOAT32"}),
    ("bias_scale", "fault", "m.tflite", write_int8_tflite, {"bias_factor": 1.01}),
    ("broken_scale", "fault", "m.tflite", write_int8_tflite, {"feature_scale": 0.0}),
    ("broken_scale", "fault", "m.onnx", write_qdq_onnx, {"feature_scale": -0.1}),
    ("stored_as_float", "fault", "m.onnx", write_qdq_onnx, {"stored_as_float": True}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "severity", "name", "make", "arguments"), STATIC_FAULTS)
def test_each_fault_is_named(tmp_path, code, severity, name, make, arguments):
    diagnosis = doctor.diagnose(sign(make(tmp_path / name, **arguments)), run=False)
    assert code in codes(diagnosis, severity)
    assert diagnosis.healthy == (not codes(diagnosis, "fault"))
    finding = next(finding for finding in diagnosis.findings if finding.code == code)
    assert finding.remedy


def test_a_dynamic_range_file_called_int8_is_called_what_it_is(tmp_path):
    diagnosis = doctor.diagnose(sign(write_float_tflite(tmp_path / "model_int8.tflite", **DYNAMIC)), run=False)
    (finding,) = [finding for finding in diagnosis.findings if finding.code == "not_as_claimed"]
    assert "dynamic-range file: int8 weights, float activations" in finding.what
    assert set(diagnosis.not_int8) == {"features", "pooled", "logits"}


def test_the_recipe_in_the_file_counts_as_well_as_its_name(tmp_path):
    path = sign(write_float_tflite(tmp_path / "renamed.tflite"), recipe="int8")
    (finding,) = [finding for finding in doctor.diagnose(path, run=False).findings if finding.severity == "fault"]
    assert "its recipe says int8, but the file computes in float32" in finding.what
    # What the user says outranks both.
    assert codes(doctor.diagnose(path, expect="fp32", run=False)) == set()


def test_saturated_weights_are_counted_by_channel(tmp_path):
    # Twenty times too large and clipped: most of 72 weights a channel lie at the limit. Nine would be too few to judge.
    graph = read_graph(write_int8_tflite(tmp_path / "m.tflite", weight_factor=20.0))
    assert "saturated_weights" not in {finding.code for finding in check_graph(graph, "int8", ours=True)}
    wide = np.repeat(graph.tensors["kernel"].values, 8, axis=3)
    tensors = graph.tensors | {"kernel": replace(graph.tensors["kernel"], values=wide)}
    findings = {finding.code: finding for finding in check_graph(replace(graph, tensors=tensors), "int8", ours=True)}
    assert findings["saturated_weights"].what.endswith(f"at the limit: {CHANNELS}")
    assert findings["saturated_weights"].where == (f"kernel ({CHANNELS})",)


def test_reading_a_shape_is_no_island(tmp_path):
    model = onnx.load(write_qdq_onnx(tmp_path / "m.onnx"))
    model.graph.node.insert(0, onnx.helper.make_node("Shape", ["image"], ["sides"]))
    onnx.save(model, tmp_path / "m.onnx")
    assert codes(doctor.diagnose(sign(tmp_path / "m.onnx"), run=False)) == set()


def test_islands_and_inner_conversions_are_located(tmp_path):
    diagnosis = doctor.diagnose(sign(write_int8_tflite(tmp_path / "m.tflite", island=True)), run=False)
    (finding,) = [finding for finding in diagnosis.findings if finding.code == "float_island"]
    assert finding.where == ("LOGISTIC smooth",)
    assert "conversions in the middle of the file: 2" in finding.what
    assert "smooth" in diagnosis.not_int8


def test_the_checksum_is_compared_with_the_bytes(tmp_path):
    path = sign(write_int8_tflite(tmp_path / "m.tflite"))
    path.write_bytes(path.read_bytes() + b"\0")
    assert codes(doctor.diagnose(path, run=False), "fault") == {"damaged"}


def test_metadata_is_asked_for_and_compared_with_the_tensors(tmp_path):
    path = write_int8_tflite(tmp_path / "m.tflite")
    assert "no_metadata" in codes(doctor.diagnose(path, run=False), "fault")
    for other in ({"size": 64}, {"classes": ("a", "b")}):
        assert "metadata_differs" in codes(doctor.diagnose(sign(path, **other), run=False), "fault")
    assert codes(doctor.diagnose(sign(path), run=False), "fault") == set()
    path = write_float_onnx(tmp_path / "m.onnx")
    model = onnx.load(path)
    set_onnx_metadata(model, {"format": 99})
    onnx.save(model, path)
    assert "no_metadata" in codes(doctor.diagnose(path, run=False), "fault")


def test_other_makers_files_are_warned_of(tmp_path):
    diagnosis = doctor.diagnose(write_float_tflite(tmp_path / "m.tflite", normalise=True), run=False)
    assert "double_normalisation" in codes(diagnosis, "warning")
    model = onnx.load(write_float_onnx(tmp_path / "whole.onnx"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    diagnosis = doctor.diagnose(tmp_path / "m.onnx", run=False)
    assert any("weights are in another file" in finding.what for finding in diagnosis.findings)


def test_a_healthy_file_runs_both_ways(tmp_path, reported):
    path = sign(write_int8_tflite(tmp_path / "int8.tflite", logit_scale=0.1))
    report, out = reported(doctor.main, path)
    for line in (
        "TFLite, 0.0", "computes in int8", "runs with XNNPACK on 16 synthetic phantoms", "runs without XNNPACK",
        "all 2 quantized weights have a scale per channel", "scale 0.0078125, zero point 0: -1 to 0.9922",
        "faults: 0, warnings: 0",
    ):  # fmt: skip
        assert line in out
    assert (report["healthy"], report["kind"], report["file_format"]) == (True, "int8", "TFLite")


def test_a_file_with_a_fault_exits_with_1_and_what_cannot_be_fed_is_examined_all_the_same(tmp_path, ended):
    path = sign(write_float_tflite(tmp_path / "int8.tflite", side=16))
    assert "--static" in ended(doctor.main([str(path)]), 2).err
    out = ended(doctor.main([str(path), "--static"]), 1).out
    assert "FAULT   its name says int8, but the file computes in float32" in out
    assert "-> rename it, or make what it says: python -m export RUN --recipes int8" in out


def test_float16_activations_do_not_run(tmp_path):
    diagnosis = doctor.diagnose(sign(write_float_tflite(tmp_path / "m.tflite", half=True)))
    assert "does_not_run" in codes(diagnosis, "fault")
    assert "float16" in diagnosis.kind


@pytest.mark.parametrize(
    ("code", "make", "name", "arguments", "tensor"),
    [
        ("dead_range", write_int8_tflite, "m.tflite", {"dead_features": True}, "features"),
        ("saturated_range", write_int8_tflite, "m.tflite", {"feature_scale": 0.01}, "features"),
        ("saturated_range", write_int8_tflite, "m.tflite", {"logit_scale": 0.005}, "logits"),
        ("saturated_range", write_qdq_onnx, "m.onnx", {"feature_scale": 0.005}, "features"),
        ("wide_range", write_int8_tflite, "m.tflite", {"feature_scale": 2.0}, "features"),
        ("wide_range", write_qdq_onnx, "m.onnx", {"feature_scale": 2.0}, "features"),
    ],
)
def test_ranges_are_judged_by_running(tmp_path, code, make, name, arguments, tensor):
    diagnosis = doctor.diagnose(sign(make(tmp_path / name, **arguments)))
    (finding,) = [finding for finding in diagnosis.findings if finding.code == code]
    assert any(where.startswith(tensor) for where in finding.where)


def test_a_relus_zeros_are_not_clipping(tmp_path):
    graph = read_graph(write_int8_tflite(tmp_path / "m.tflite"))

    def clipped(name="features", **seen):
        ranges = {name: Range(-128, 127, count=1000, **seen)}
        return [finding.code for finding in check_ranges(graph, ranges, "test") if finding.severity != "ok"]

    assert clipped(at_low=900) == []
    assert clipped(at_high=11) == ["saturated_range"]
    assert clipped(at_high=10) == []
    assert clipped("logits", at_low=900) == ["saturated_range"]
    assert clipped(finite=False) == ["not_finite"]


def test_real_images_are_taken_when_named(tmp_path, phantoms, ended):
    path = sign(write_int8_tflite(tmp_path / "m.tflite", logit_scale=0.1))
    assert f"on 16 images of {phantoms}" in ended(doctor.main([str(path), "--data", str(phantoms)])).out
    folder = scan_folder(phantoms)
    assert take_evenly(folder, 10**6) == folder  # no image twice where there are fewer


def test_engines_that_disagree_are_named():
    names = ("with XNNPACK", "without XNNPACK")
    one, other = ProbeRun(np.array([[1, 2], [5, 3]]), "", {}), ProbeRun(np.array([[1, 2], [3, 5]]), "", {})
    (finding,) = doctor._compare_runs(names, one, other, 1.9)
    assert (finding.code, finding.severity) == ("engines_differ", "warning")
    assert "at most 2, 1 images change class (tolerated: 1.9)" in finding.what
    command = finding.remedy.rpartition("python -m tools.compare ")[2].replace("--data DIR", "--data=DIR")
    compare._add_words(parser := ArgumentParser())
    assert parser.parse_args(command.split()).without_xnnpack
    (near_tie,) = doctor._compare_runs(names, one, other, 2.0)
    assert (near_tie.code, near_tie.severity) == ("engines_agree", "ok")
    assert "1 images change class" in near_tie.what
    (finding,) = doctor._compare_runs(names, ProbeRun(np.array([[np.nan, 2]]), "", {}), one, 1.0)
    assert finding.code == "not_finite"


def test_tolerance_is_in_the_logits_own_unit(tmp_path):
    assert doctor._tolerance(read_graph(write_int8_tflite(tmp_path / "a.tflite"))) == 4.0
    for path in (
        write_int8_tflite(tmp_path / "b.tflite", float_io=True, logit_scale=0.1),
        write_qdq_onnx(tmp_path / "c.onnx"),
    ):
        assert doctor._tolerance(read_graph(path)) == pytest.approx(0.4, rel=1e-4)
    assert doctor._tolerance(read_graph(write_float_tflite(tmp_path / "d.tflite"))) == 1e-3


def test_an_engine_that_crashes_does_not_take_the_doctor_with_it(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho Check failed >&2\nkill -SEGV $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor_probe.sys, "executable", str(program))
    outcome = probe(write_int8_tflite(tmp_path / "m.tflite"), np.zeros((1, SIDE, SIDE), np.uint8), "plain")
    assert outcome.logits is None
    assert "the engine crashed (exit code -11): Check failed" in outcome.error


def test_the_same_graph_is_read_from_both_formats(tmp_path):
    tflite, onnx_graph = (
        read_graph(path) for path in (write_int8_tflite(tmp_path / "m.tflite"), write_qdq_onnx(tmp_path / "m.onnx"))
    )
    for graph in (tflite, onnx_graph):
        heavy = [node for node in graph.nodes if node.operator in ("CONV_2D", "FULLY_CONNECTED")]
        assert [node.operator for node in heavy] == ["CONV_2D", "FULLY_CONNECTED"]
        for node, (shape, seed) in zip(heavy, [((CHANNELS, 3, 3, 1), 0), ((4, CHANNELS), 1)], strict=True):
            image, weight = (graph.tensors[name] for name in node.inputs[:2])
            assert (image.kind, weight.kind) == ("int8", "int8")
            _, integers, scale = weights(shape, seed)
            assert weight.values.size == integers.size
            np.testing.assert_array_equal(weight.scales, scale)
        assert graph.tensors[heavy[0].outputs[0]].zero_points == [-128]
