"""Costs on a device: counted by hand, by PyTorch and by vela; engines run, or said to be absent; limits at the edge."""

import csv
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brainq_torch.models import build_model
from export.graph.encodings import weighted_operators
from export.graph.flatbuffer import read_model, write_model
from export.graph.int4 import pack_weights
from tests.support.handmade_models import (
    CHANNELS,
    SIDE,
    TFLiteBuilder,
    write_float_onnx,
    write_float_tflite,
    write_int8_tflite,
)
from tests.support.small_network import SIDE as SMALL_SIDE
from tests.support.small_network import small_images
from tools.edge import __main__ as edge
from tools.edge import devices
from tools.edge.devices import CORTEX_M7, DEVICES, KIB, judge
from tools.edge.ethos_u import ACCELERATORS, MIB, STRATEGIES, Estimate, estimate, find_vela, read_summary
from tools.edge.layer_cost import measure_cost
from tools.edge.not_done import NotDone
from tools.edge.tflm import Agreement, TflmRun, compare_logits, run_tflm
from tools.edge.tflm_worker import smallest_arena
from tools.shared.command import CommandError

HALF = SIDE // 2
CONV_MACS, DENSE_MACS = HALF * HALF * CHANNELS * 9, 4 * CHANNELS
EVIDENCE = {
    "int8": Path("results/mobilenetv2_int8/model_int8.tflite"),
    "fp16": Path("results/mobilenetv2/model_fp16.tflite"),
}
RUN = TflmRun("0", 1, 300 * KIB, 290 * KIB, 10 * KIB, (Agreement("LiteRT", 1.0, 1.0, "LSB", 0.0, 0.0),))


def parts(cost):
    """All bytes of a file but its structure's."""
    return (
        cost.weight_bytes + cost.bias_bytes + cost.other_constant_bytes + cost.quantization_bytes + cost.metadata_bytes
    )


# Counted by hand


def test_an_int8_file_counted_by_hand(tmp_path):
    cost = measure_cost(write_int8_tflite(tmp_path / "int8.tflite"))
    assert [(layer.operator, layer.macs) for layer in cost.layers] == [
        ("CONV_2D", CONV_MACS), ("MEAN", 0), ("FULLY_CONNECTED", DENSE_MACS),
    ]  # fmt: skip
    assert cost.macs == 18464
    assert (cost.weights, cost.weight_bytes) == (9 * CHANNELS + 4 * CHANNELS, 104)
    assert cost.bias_bytes == 4 * (CHANNELS + 4)
    assert cost.other_constant_bytes == 8  # the axes of the mean
    # One scale and zero point for image, features, pooled and logits, one per channel for two weights and two biases.
    assert cost.quantization_bytes == 12 * (4 + 2 * CHANNELS + 2 * 4)
    assert cost.metadata_bytes == 0
    assert parts(cost) + cost.structure_bytes == cost.size_bytes == (tmp_path / "int8.tflite").stat().st_size
    assert cost.structure_bytes > 0
    image, features = SIDE * SIDE, HALF * HALF * CHANNELS
    assert [layer.live_bytes for layer in cost.layers] == [image + features, features + CHANNELS, CHANNELS + 4]
    assert (cost.peak.operator, cost.peak.live_bytes) == ("CONV_2D", 3072)


def test_a_float_file_takes_four_times_the_memory_for_the_same_multiplications(tmp_path):
    cost = measure_cost(write_float_tflite(tmp_path / "fp32.tflite"))
    assert (cost.macs, cost.weights, cost.weight_bytes) == (18464, 104, 416)
    assert cost.peak.live_bytes == 4 * 3072
    assert cost.quantization_bytes == cost.unpacked_weight_bytes == 0


def test_two_int4_weights_share_a_byte(tmp_path):
    cost = measure_cost(write_int8_tflite(tmp_path / "w4a8.tflite", int4=True))
    assert [layer.weight_bytes for layer in cost.layers] == [9 * CHANNELS, 0, 4 * CHANNELS / 2]
    assert [layer.weight_kind for layer in cost.layers] == ["int8", "", "int4"]
    assert (cost.macs, cost.weights) == (18464, 104)


@pytest.mark.parametrize(
    ("joined", "outputs", "expected"),
    [
        (["a", "b"], ["d"], [200, 200, 400, 400]),  # the image is gone once a is made
        (["image", "a", "b"], ["d"], [200, 300, 600, 600]),  # a shortcut keeps it
        (["a", "b"], ["d", "a"], [200, 200, 400, 500]),  # an output stays to the end
    ],
)
def test_a_tensor_lives_from_its_maker_to_its_last_reader(tmp_path, joined, outputs, expected):
    build = TFLiteBuilder()
    names = {"image": build.tensor("image", (1, 100), "INT8", 1.0)}
    made = {"a": ("RELU", ["image"]), "b": ("RELU", ["a"]), "c": ("CONCATENATION", joined), "d": ("RELU", ["c"])}
    for name, (kind, inputs) in made.items():
        size = 100 if name in "ab" else 100 * len(joined)
        names[name] = build.made(kind, [names[one] for one in inputs], name, (1, size), "INT8", 1.0)
    path = build.write(tmp_path / "m.tflite", [names["image"]], [names[name] for name in outputs])
    assert [layer.live_bytes for layer in measure_cost(path).layers] == expected


def test_weights_that_two_layers_share_are_stored_once(tmp_path):
    path = write_int8_tflite(tmp_path / "m.tflite")
    before = measure_cost(path)
    model = read_model(path)
    graph = model.subgraphs[0]
    kernel, dense = (graph.tensors[graph.operators[index].inputs[1]] for index in (0, 2))
    dense.buffer = kernel.buffer
    kernel.shape, dense.shape = [CHANNELS, 3, 3, 1], [CHANNELS, 9]
    write_model(model, path)
    after = measure_cost(path)
    assert [layer.weight_bytes for layer in after.layers] == [72, 0, 0]
    assert after.weight_bytes == before.weight_bytes - 32
    assert parts(after) + after.structure_bytes == after.size_bytes


# Counted by PyTorch


def torch_layers(network, image):
    """MACs and weights of every layer of a network, in the order in which they run, from its hooks."""
    found = []

    def note(module, _, output):
        taps = module.in_features if isinstance(module, nn.Linear) else module.weight[0].numel()
        found.append((output.numel() * taps, module.weight.numel()))

    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [module.register_forward_hook(note) for module in layers]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("recipe", EVIDENCE)
def test_mobilenetv2_costs_what_pytorch_counts(recipe):
    model, image = build_model("mobilenetv2").eval(), torch.zeros(1, 1, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    cost = measure_cost(EVIDENCE[recipe])
    assert cost.macs == counter.get_total_flops() / 2 == 292_274_048
    layers = [(layer.macs, layer.weights) for layer in cost.layers if layer.macs]
    assert layers == torch_layers(model, image)
    assert cost.weight_bytes == cost.weights * {"int8": 1, "fp16": 2}[recipe]
    assert parts(cost) + cost.structure_bytes == cost.size_bytes
    # Padding to 114 x 114 before the stride-2 depthwise layer doubles the largest activation.
    assert cost.peak.operator == "PAD"
    assert cost.peak.live_bytes == (112 * 112 + 114 * 114) * 96 * {"int8": 1, "fp16": 4}[recipe]
    assert (cost.unpacked_weight_bytes > 2 * cost.weight_bytes) == (recipe == "fp16")


def test_a_batchnorm_and_a_pooling_that_became_depthwise_layers_are_counted(small_int8):
    cost = measure_cost(small_int8.tflite)
    wanted = torch_layers(small_int8.network, torch.zeros(1, 1, SMALL_SIDE, SMALL_SIDE))
    assert [(layer.macs, layer.weights) for layer in cost.layers if layer.macs] == wanted
    assert sum(layer.operator == "DEPTHWISE_CONV_2D" for layer in cost.layers) == 3


def test_convolutions_written_as_gathered_patches_cost_the_same_multiplications(small_int8, tmp_path):
    path = tmp_path / "model_w4a8.tflite"
    model = read_model(small_int8.tflite)
    for operator, _ in weighted_operators(model):
        buffer = model.buffers[model.subgraphs[0].tensors[operator.inputs[1]].buffer]
        buffer.data = (np.asarray(buffer.data, np.uint8).view(np.int8) // 19).view(np.uint8)  # -7 to 6
    write_model(model, path)
    eight = measure_cost(path)
    pack_weights(path, ["stem.0", "point.0", "classifier"])
    four = measure_cost(path)
    counts = [
        {layer.name: (layer.macs, layer.weights) for layer in cost.layers if layer.macs} for cost in (eight, four)
    ]
    assert counts[0] == counts[1]
    assert {layer.operator for layer in four.layers} > {"GATHER", "FULLY_CONNECTED"}
    packed = {layer.name: layer.weight_bytes for layer in four.layers if layer.weight_kind == "int4"}
    assert len(packed) == 3
    for layer in eight.layers:
        assert packed.get(layer.name, layer.weight_bytes / 2) == layer.weight_bytes / 2
    assert four.weight_bytes == eight.weight_bytes - sum(packed.values())
    # Patches cost memory: nine values for each of 18 x 18 pixels, twice, where the padded image and the output were.
    assert {layer.live_bytes for layer in four.layers if layer.operator == "RESHAPE"} == {2 * 18 * 18 * 9, 8 * 2}
    assert next(layer.live_bytes for layer in eight.layers if layer.name == "stem.0") == 38 * 38 + 18 * 18 * 8


# Arm's compiler


SUMMARY = {
    "core_clock": "500000000.0", "cycles_total": "6470565", "inference_time": "0.01294113",
    "sram_memory_used": "1474.203125", "dram_memory_used": "0.0", "on_chip_flash_memory_used": "1.5",
    "off_chip_flash_memory_used": "2188.0", "nn_macs": "292336768",
}  # fmt: skip


def write_summary(path, columns):
    path.write_text("\n".join([",".join(columns), ",".join(columns.values())]) + "\n")
    return path


def test_velas_summary_is_read_in_its_units(tmp_path):
    compiled = write_int8_tflite(tmp_path / "m_vela.tflite")
    found = read_summary(write_summary(tmp_path / "s.csv", SUMMARY), compiled, "Ethos-U55-128", "Size")
    assert (found.cycles, found.macs, found.clock_hz) == (6470565, 292336768, 5e8)
    assert found.milliseconds == pytest.approx(12.94113)
    assert (found.sram_bytes, found.dram_bytes, found.flash_bytes) == (1509584, 0, 2242048)
    assert found.cpu_operators == ("CONV_2D", "MEAN", "FULLY_CONNECTED")  # this one was not compiled at all


@pytest.mark.parametrize("missing", ["cycles_total", "sram_memory_used"])
def test_a_summary_without_a_figure_is_no_zero(tmp_path, missing):
    columns = {name: value for name, value in SUMMARY.items() if name != missing}
    compiled = write_int8_tflite(tmp_path / "m_vela.tflite")
    with pytest.raises(CommandError, match=f"no column '{missing}'"):
        read_summary(write_summary(tmp_path / "s.csv", columns), compiled, "Ethos-U55-128", "Size")


def test_vela_counts_the_same_multiplications(tmp_path):
    vela = find_vela(None)
    if vela is None:
        pytest.skip("vela is not installed (extra `edge`)")
    path = write_int8_tflite(tmp_path / "int8.tflite")
    fast, small = (estimate(path, "int8", "Ethos-U55-128", strategy, vela) for strategy in STRATEGIES)
    # It makes a depthwise convolution over all pixels of the mean.
    assert fast.macs == small.macs == measure_cost(path).macs + HALF * HALF * CHANNELS
    assert fast.cpu_operators == ()
    assert 0 < small.sram_bytes <= fast.sram_bytes < MIB
    assert fast.cycles == round(fast.milliseconds * 1e-3 * fast.clock_hz) > 0
    garbage = tmp_path / "garbage.tflite"
    garbage.write_text("no model")
    refused = estimate(garbage, "int8", "Ethos-U55-128", "Size", vela)
    assert refused.refused
    assert "vela does not compile it" in refused.reason


def test_vela_gets_int8_files_only(tmp_path):
    assert estimate(tmp_path / "m.tflite", "float32", "Ethos-U55-128", "Size", "vela").refused


# TFLite-Micro


def test_tflite_micro_answers_as_litert_does(small_int8):
    pytest.importorskip("tflite_micro", reason="the optional extra `edge` is not installed")
    cost = measure_cost(small_int8.tflite)
    run = run_tflm(small_int8.tflite, small_images(4), cost.peak.live_bytes)
    reference, xnnpack = run.agreements
    # The pooling's sum rounds a half differently in the two: a step, here and there. Whole networks: results/edge.
    assert reference.equal_logits >= 0.9
    assert reference.max_difference <= 1
    assert reference.unit == "LSB"
    assert xnnpack.max_difference <= 2  # it rounds once where the others round twice
    assert run.head_bytes >= cost.peak.live_bytes
    assert run.head_bytes < run.arena_bytes <= run.head_bytes + run.tail_bytes
    assert run.images == 4


def test_tflite_micro_refuses_float16(tmp_path):
    pytest.importorskip("tflite_micro", reason="the optional extra `edge` is not installed")
    path = EVIDENCE["fp16"]
    refused = run_tflm(path, np.zeros((1, 224, 224), np.uint8), 2**24)
    assert refused.refused
    assert "DEQUANTIZE" in refused.reason


def test_one_wrong_logit_is_seen():
    expected = np.array([[1, 2, 3, 4], [5, 9, 7, 8]], np.int8)
    found = compare_logits("x", [[1, 2, 3, 4], [5, 4, 7, 8]], expected)
    assert found == Agreement("x", 7 / 8, 0.5, "LSB", 5.0, 5 / 8)
    real = compare_logits("x", [[0.0, 1.5]], np.array([[0.0, 1.0]], np.float32))
    assert (real.unit, real.max_difference, real.same_class) == ("logit", 0.5, 1.0)


@pytest.mark.parametrize("guess", [16, 999, 1000, 1008, 5000])
def test_the_smallest_arena_is_found_from_either_side(guess):
    assert smallest_arena(lambda size: size >= 1000, guess) == 1008


def blocked_python(folder):
    """A Python in which tflite_micro cannot be imported, as where it is not installed."""
    package = folder / "tflite_micro"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('blocked')\n")
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


# What fits


def test_limits_are_met_exactly_and_missed_by_one_byte():
    flash, arena = 2 * MIB - CORTEX_M7.flash_reserve_bytes, CORTEX_M7.block_bytes
    assert judge(CORTEX_M7, flash, arena, "").fits
    assert "flash" in judge(CORTEX_M7, flash + 1, arena, "").reason
    assert "largest block" in judge(CORTEX_M7, flash, arena + 1, "").reason
    much = judge(CORTEX_M7, flash, MIB - CORTEX_M7.ram_reserve_bytes + 1, "")
    assert not much.fits
    assert "RAM" in much.reason
    assert "block" not in much.reason
    for device in DEVICES:
        assert device.source
        assert device.block_bytes <= device.ram_bytes


def npu(strategy, sram_bytes):
    return Estimate("Ethos-U55-128", strategy, 5e8, 1, 1.0, sram_bytes, 0, 0, 1, MIB, ())


def test_a_measured_arena_decides_and_a_lower_bound_only_refuses(tmp_path):
    cost = measure_cost(write_int8_tflite(tmp_path / "m.tflite"))
    fits = devices.fit_devices(cost, (npu("Performance", MIB), npu("Size", 1)), RUN)
    assert [fit.fits for fit in fits] == [True, True, True]
    assert fits[1].ram_bytes == RUN.arena_bytes + CORTEX_M7.ram_reserve_bytes
    assert fits[2].basis.endswith("Performance")

    saved = devices.fit_devices(cost, (npu("Performance", 3 * MIB), npu("Size", MIB)), replace(RUN, arena_bytes=MIB))
    assert [fit.fits for fit in saved] == [True, False, True]
    assert saved[2].basis.endswith("Size")
    assert not devices.fit_devices(cost, (npu("Performance", 3 * MIB), npu("Size", 3 * MIB)), RUN)[2].fits

    absent = devices.fit_devices(cost, NotDone("absent"), NotDone("absent"))
    assert [fit.fits for fit in absent] == [True, None, None]
    layers = (replace(cost.layers[0], live_bytes=2 * MIB),)
    assert devices.fit_devices(replace(cost, layers=layers), NotDone("absent"), NotDone("absent"))[1].fits is False
    refused = devices.fit_devices(cost, NotDone("no", refused=True), NotDone("no", refused=True))
    assert [fit.fits for fit in refused] == [True, False, False]


# The command


def test_command_without_engines_says_not_done_and_how(tmp_path, reported, monkeypatch):
    monkeypatch.setattr(edge, "find_vela", lambda named: None)
    model = write_int8_tflite(tmp_path / "small.tflite")
    arguments = ["--markdown", tmp_path / "report.md", "--csv", tmp_path, "--layers"]
    found, printed = reported(edge.main, model, *arguments, "--tflm-python", blocked_python(tmp_path))
    assert printed.count("NOT DONE: ") == 4  # two engines, and the two devices that hang on them
    assert "pip install -e '.[edge]'" in printed
    assert (tmp_path / "report.md").read_text().strip() in printed
    report = found["models"][0]
    assert report["cost"]["macs"] == 18464
    assert {report["ethos_u"]["status"], report["tflite_micro"]["status"]} == {"NOT DONE"}
    with (tmp_path / f"{tmp_path.name}_small.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["macs"]) for row in rows] == [CONV_MACS, 0, DENSE_MACS]
    assert [f"{row['name']}" in printed for row in rows] == [True] * 3


def test_command_with_engines(tmp_path, reported, monkeypatch):
    pytest.importorskip("tflite_micro", reason="the optional extra `edge` is not installed")
    if find_vela(None) is None:
        pytest.skip("vela is not installed (extra `edge`)")
    monkeypatch.setattr(
        "tools.edge.examine.ACCELERATORS", {"Ethos-U55-128": ACCELERATORS["Ethos-U55-128"]}
    )  # a second each
    model = write_int8_tflite(tmp_path / "small.tflite")
    found, printed = reported(edge.main, model, "--images", 2)
    report = found["models"][0]
    assert [one["strategy"] for one in report["ethos_u"]] == list(STRATEGIES)
    assert report["tflite_micro"]["agreements"][0]["max_difference"] == 0
    assert [fit["fits"] for fit in report["devices"]] == [True, True, True]
    assert "NOT DONE" not in printed


def write_custom(path):
    build = TFLiteBuilder()
    image = build.tensor("image", (1, 4))
    return build.write(path, [image], [build.made("CUSTOM", [image], "logits", (1, 4))])


def test_wrong_inputs_are_refused_with_a_remedy(tmp_path, ended):
    good = str(write_int8_tflite(tmp_path / "m.tflite"))
    cases = [
        ([str(write_float_onnx(tmp_path / "m.onnx"))], "give the .tflite file beside it"),
        ([str(write_custom(tmp_path / "custom.tflite"))], "CUSTOM has multiplications that are not counted here"),
        ([good, "--csv", str(tmp_path / "nowhere")], "make it first"),
        ([good, "--vela", str(tmp_path / "no-vela")], "is no program"),
        ([good, "--tflm-python", str(tmp_path / "no-python")], "is no program"),
        ([good, good, "--csv", str(tmp_path), "--static"], "would overwrite each other"),
    ]
    for arguments, message in cases:
        assert message in ended(edge.main(arguments), 2).err


def test_tables_are_named_after_runs(tmp_path):
    models = []
    for folder in ("one", "two/export"):
        (tmp_path / folder).mkdir(parents=True)
        models.append(str(write_int8_tflite(tmp_path / folder / "model_int8.tflite")))
    assert edge.main([*models, "--static", "--csv", str(tmp_path)]) == 0
    assert {"one_model_int8.csv", "two_model_int8.csv"} <= set(os.listdir(tmp_path))
