import dataclasses
import re
import shutil
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.data.synthesis.phantom import phantom_images
from brainq_torch.quant.encoding import Encoding
from brainq_torch.run import load_run
from export.graph.flatbuffer import constant, read_model, write_model
from export.recipes import RECIPES
from export.run.metadata import FileMetadata, read_metadata, write_metadata
from export.run.runners import load_runner
from export.run.sample import ImageSample
from export.run.sessions import NotFiniteError, RunnerError
from export.run.torch_runner import TorchRunner
from export.verify.parity import FLOAT_MODEL, Logits, LogitTable, Rung, climb, judge, list_float_faults, logit_noise
from export.verify.report import ArtefactReport, Limits, ParityReport
from export.verify.shifted import add_shifted, measure_shift

REFERENCE = np.array([[4.0, 1, 0, 0], [0, 2, 1.5, 0], [0, 0, 3, 0]], np.float32)


def test_equal_logits_pass_every_limit():
    scale = Encoding(0.5, 0)
    limits = Limits(max_abs_diff=0.0, top1_agreement=1.0, max_lsb=0.0, mean_lsb=0.0)
    assert judge(Logits(REFERENCE, scale), Logits(REFERENCE, scale), limits) == {
        "top1_agreement": 1.0, "max_abs_diff": 0.0, "max_lsb": 0.0, "mean_lsb": 0.0, "bit_equal": 1.0, "passed": True,
        "error": None,
    }  # fmt: skip


def test_measures_are_those_worked_out_by_hand():
    other = REFERENCE.copy()
    other[1, 2] = 2.5  # the second image flips from class 1 to class 2
    verdict = judge(Logits(REFERENCE, Encoding(0.5, 0)), Logits(other, Encoding(0.5, 0)), Limits())
    assert verdict["top1_agreement"] == 2 / 3
    assert verdict["max_abs_diff"] == 1.0
    assert verdict["max_lsb"] == 2.0
    assert verdict["mean_lsb"] == 2 / 12
    assert verdict["passed"]


def test_against_a_float_reference_the_lsb_is_not_rounded():
    verdict = judge(Logits(REFERENCE + np.float32(0.125)), Logits(REFERENCE, Encoding(0.5, 0)), Limits())
    assert verdict["max_lsb"] == 0.25
    assert verdict["mean_lsb"] == 0.25


def test_scales_that_float32_cannot_hold_give_whole_lsb():
    scale = Encoding(float(np.float32(0.1)), 3)
    steps = np.random.default_rng(0).integers(-100, 100, (50, 4)).astype(np.float32)
    reference = Logits(steps * np.float32(0.1), scale)
    moved = Logits((steps + 4) * np.float32(0.1), scale)
    assert judge(reference, moved, Limits(max_lsb=4))["max_lsb"] == 4.0
    assert judge(reference, moved, Limits(max_lsb=4))["passed"]


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (Limits(max_abs_diff=1e-4), "max_abs_diff 0.5 is above 0.0001"),
        (Limits(top1_agreement=0.999), "top1_agreement 0.6667 is below 0.999"),
        (Limits(max_lsb=0.5), "max_lsb 1 is above 0.5"),
        (Limits(mean_lsb=0.05), "mean_lsb 0.0833 is above 0.05"),
    ],
)
def test_each_limit_can_fail(limits, error):
    other = REFERENCE.copy()
    other[1, 1] = np.nextafter(np.float32(1.5), np.float32(0))  # just below class 2
    verdict = judge(Logits(REFERENCE, Encoding(0.5, 0)), Logits(other, Encoding(0.5, 0)), limits)
    assert not verdict["passed"]
    assert verdict["error"] == error


def test_a_limit_on_lsb_fails_a_file_whose_logits_are_float():
    # "int8" in a file name proves nothing.
    verdict = judge(Logits(REFERENCE), Logits(REFERENCE), Limits(max_lsb=4))
    assert (verdict["passed"], verdict["max_lsb"], verdict["mean_lsb"]) == (False, None, None)
    assert "not integers" in verdict["error"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_not_finite_fail_without_any_limit(value, side):
    pair = [REFERENCE.copy(), REFERENCE.copy()]
    pair[side][2, 3] = value
    verdict = judge(Logits(pair[0]), Logits(pair[1]), Limits())
    assert not verdict["passed"]
    assert verdict["max_abs_diff"] is None
    assert "not finite" in verdict["error"]


def test_other_shapes_and_no_images_fail():
    assert not judge(Logits(REFERENCE), Logits(REFERENCE[:, :3]), Limits())["passed"]
    assert not judge(Logits(REFERENCE[:0]), Logits(REFERENCE[:0]), Limits())["passed"]


@pytest.mark.parametrize(("difference", "noise", "faults"), [(-0.06, 0.2, 1), (0.06, 0.2, 0), (0.0, 0.3, 1)])
def test_a_file_may_neither_lose_accuracy_nor_be_noisier_than_its_limits(difference, noise, faults):
    limits = Limits(accuracy_fall=0.05, float_noise=0.25)
    assert len(list_float_faults({"accuracy_difference": difference, "logit_noise": noise}, limits)) == faults


def test_logit_noise_is_the_share_of_the_signal_and_does_not_see_a_common_shift():
    assert logit_noise(REFERENCE, REFERENCE + np.float32(3)) == pytest.approx(0, abs=1e-6)
    assert logit_noise(REFERENCE, REFERENCE * np.float32(1.25)) == pytest.approx(0.25)
    assert logit_noise(np.zeros((2, 4), np.float32), np.eye(2, 4, dtype=np.float32)) > 1e30


def report(passed):
    return ArtefactReport(10, "ab", "model", 1.0, 0.0, None, None, None, Limits(max_abs_diff=1e-4), passed, 44)


def test_a_report_passes_only_with_artefacts_that_all_pass():
    assert ParityReport({"a": report(True)}).passed
    assert not ParityReport({"a": report(True), "b": report(False)}).passed
    assert not ParityReport({}).passed


# On real files: the tiny export, whole and with one fault each.

RUNGS = (*RECIPES["fp32"].rungs, *RECIPES["fp16"].rungs)


@pytest.fixture(scope="module")
def sample():
    pixels, labels = phantom_images(24, 32, seed=5)
    return ImageSample(pixels, labels, tuple(f"image {i}" for i in range(24)), ("phantom",) * 24)


@pytest.fixture(scope="module")
def trained(tiny_run):
    run = load_run(tiny_run)
    return TorchRunner(run.model, run.pixels, run.classes)


@pytest.fixture
def check(tmp_path, tiny_export, trained, sample):
    """Copies the export, lets a test damage one file, and climbs the ladder."""

    def damage_and_climb(name=None, damage=None, rungs=RUNGS):
        folder = tmp_path / "export"
        shutil.copytree(tiny_export, folder)
        if damage is not None:
            damage(folder / name)
        table = LogitTable(folder, sample, {FLOAT_MODEL: trained}, threads=1)
        return climb(rungs, table)

    return damage_and_climb


def scale_last_bias_in_tflite(path):
    model = read_model(path)
    graph = model.subgraphs[0]
    kind = "<f2" if "fp16" in path.name else "<f4"
    index = graph.operators[-1].inputs[2]
    if "fp16" in path.name:
        index = next(op.inputs[0] for op in graph.operators if op.outputs[0] == index)
    values = constant(model, graph.tensors[index], kind).copy()
    values[:] = [9, -9, 9, -9]
    model.buffers[graph.tensors[index].buffer].data = values.view(np.uint8)
    write_model(model, path)


def nudge_a_weight_in_tflite(path):
    model = read_model(path)
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[-1].inputs[1]]
    values = constant(model, tensor, "<f4").copy()
    values[::7] += 0.01
    model.buffers[tensor.buffer].data = values.view(np.uint8)
    write_model(model, path)


def nudge_a_weight_in_onnx(path):
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if w.name == model.graph.node[-1].input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(0.01), weight.name))
    onnx.save(model, path)


def reorder_classes(path):
    metadata = read_metadata(path)
    write_metadata(path, FileMetadata(metadata.classes[::-1], metadata.pixels, metadata.provenance))


def claim_other_pixels(path):
    metadata = read_metadata(path)
    write_metadata(path, FileMetadata(metadata.classes, PixelSpec(64), metadata.provenance))


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_undamaged_export_passes(check):
    reports = check()
    assert list(reports) == ["model_fp32.onnx", "model_fp32.tflite", "model_fp16.tflite"]
    for name, one in reports.items():
        assert one.passed, name
        assert one.error is None
        assert one.flips == one.ties == ()
        assert one.against_float["mcnemar_p"] == 1.0
        assert one.against_float["flips"] == []


@pytest.mark.parametrize(
    ("name", "damage", "error"),
    [
        ("model_fp32.onnx", nudge_a_weight_in_onnx, "max_abs_diff .* is above 0.0001"),
        ("model_fp32.tflite", nudge_a_weight_in_tflite, "max_abs_diff .* is above 0.0001"),
        ("model_fp16.tflite", scale_last_bias_in_tflite, "top1_agreement .* is below 0.999"),
        ("model_fp32.onnx", reorder_classes, r"names the classes \('pituitary', 'notumor'"),
        ("model_fp16.tflite", reorder_classes, r"names the classes \('pituitary', 'notumor'"),
        ("model_fp32.tflite", claim_other_pixels, r"takes images of shape"),
        ("model_fp32.onnx", cut_short, "cut short"),
        ("model_fp16.tflite", cut_short, "damaged"),
    ],
)
def test_a_corrupted_artefact_fails(check, name, damage, error):
    reports = check(name, damage)
    assert not reports[name].passed
    assert re.search(error, reports[name].error)
    # What does not depend on the damaged file is unharmed.
    assert reports["model_fp32.onnx" if name != "model_fp32.onnx" else "model_fp16.tflite"].passed


def test_flips_are_listed_with_their_image(check, sample):
    one = check("model_fp16.tflite", scale_last_bias_in_tflite)["model_fp16.tflite"]
    flipped = [flip["image"] for flip in one.flips]
    assert len(flipped) == round((1 - one.top1_agreement) * 24) > 0
    for flip in one.flips:
        index = sample.names.index(flip["image"])
        assert flip["label"] == CLASSES[sample.labels[index]]
        assert flip["before"] != flip["after"]
        assert flip["margin"] >= 0
    assert [flip["image"] for flip in one.against_float["flips"]] == flipped


class Fixed:
    """A model that always says the same."""

    def __init__(self, logits, scale=None):
        self.pixels, self.classes, self.logit_scale, self.logits, self.calls = PixelSpec(32), CLASSES, scale, logits, 0

    def __call__(self, images):
        self.calls += 1
        return self.logits[: len(images)]


def test_ties_are_reported_on_either_side(tiny_export, sample):
    logits = np.tile(np.array([1.0, 0, 0, 0], np.float32), (24, 1))
    logits[3] = [2, 0, 0, 2]
    fixed = Fixed(logits)
    table = LogitTable(tiny_export, sample, {FLOAT_MODEL: fixed}, threads=1)
    one = climb((Rung("model_fp32.onnx", FLOAT_MODEL, Limits()),), table)["model_fp32.onnx"]
    assert [(tie["image"], tie["reference"]) for tie in one.ties] == [("image 3", ["glioma", "pituitary"])]
    assert len(one.ties[0]["artefact"]) == 1
    assert "image 3: glioma and pituitary tie in the reference" in ParityReport({"model_fp32.onnx": one}).table()


@pytest.mark.parametrize(
    ("count", "margins", "passed"),
    [(100, [0.04], True), (100, [0.06], False), (100, [0.04, 0.01, 0.01], False), (1000, [0.04, 0.01], False)],
)
def test_near_ties_of_few_images_are_listed_and_no_fault(tiny_export, count, margins, passed):
    pixels, labels = phantom_images(count, 32)
    sample = ImageSample(pixels, labels, tuple(f"image {i}" for i in range(count)), ("Testing",) * count)
    logits = load_runner(tiny_export / "model_fp16.tflite")(pixels).copy()
    for image, margin in enumerate(margins):
        first, second = np.argsort(-logits[image])[:2]
        logits[image, second] = logits[image, first] + margin
    table = LogitTable(tiny_export, sample, {FLOAT_MODEL: Fixed(logits)}, threads=1)
    rung = Rung("model_fp16.tflite", FLOAT_MODEL, Limits(top1_agreement=0.999))
    (one,) = climb([rung], table).values()
    assert (one.passed, len(one.flips), one.limits) == (passed, len(margins), rung.limits)
    assert one.top1_agreement == pytest.approx(1 - len(margins) / count)
    assert ("are near-ties" in ParityReport({"model_fp16.tflite": one}).table()) is passed


def test_models_that_answered_at_once_run_no_more_and_one_that_cannot_says_so_when_asked(tiny_export, sample):
    def refuse(images):
        raise RunnerError("no answer")

    fixed, broken = Fixed(np.zeros((24, 4), np.float32)), Mock(side_effect=refuse)
    table, alone = (LogitTable(tiny_export, sample, {FLOAT_MODEL: fixed, "broken": broken}, 1) for _ in range(2))
    table.begin([FLOAT_MODEL, FLOAT_MODEL, "broken", "model_fp32.onnx"])
    assert table.of_float().values is table.of(FLOAT_MODEL, False).values
    np.testing.assert_array_equal(*(each.of("model_fp32.onnx", False).values for each in (table, alone)))
    assert fixed.calls == 1
    for _ in range(2):
        with pytest.raises(RunnerError, match="no answer"):
            table.of("broken")
    assert broken.call_count == 1


@pytest.mark.parametrize("optimised", [True, False])
def test_integer_kernels_that_differ_are_left_for_the_graph_as_written_where_a_rung_says_so(
    tiny_export, sample, monkeypatch, optimised
):
    written = np.tile(np.array([2, 1, 0, 0], np.float32), (24, 1))
    answers = {True: Fixed(written - 1, Encoding(1.0, 0)), False: Fixed(written, Encoding(1.0, 0))}
    monkeypatch.setattr("export.verify.parity.OnnxRunner", lambda path, about, threads, fused: answers[fused])
    table = LogitTable(tiny_export, sample, {"integers": Fixed(written, Encoding(1.0, 0))}, threads=1)
    rung = Rung("model_fp32.onnx", "integers", Limits(max_lsb=0), optimised)
    assert climb((rung,), table)["model_fp32.onnx"].passed is not optimised
    assert answers[False].calls == (not optimised)


def test_integer_kernels_that_agree_are_enough(tiny_export, sample, monkeypatch):
    same, refused = Fixed(np.eye(4, dtype=np.float32)[[0] * 24], Encoding(1.0, 0)), Mock(side_effect=RunnerError("no"))
    monkeypatch.setattr(
        "export.verify.parity.OnnxRunner", lambda path, about, threads, fused: same if fused else refused
    )
    table = LogitTable(tiny_export, sample, {"integers": same}, threads=1)
    rung = Rung("model_fp32.onnx", "integers", Limits(max_lsb=0), optimised=False)
    assert climb((rung,), table)["model_fp32.onnx"].bit_equal == 1
    assert not refused.called


def test_the_table_is_readable(check):
    lines = ParityReport(check("model_fp32.onnx", nudge_a_weight_in_onnx)).table().splitlines()
    assert lines[0].split() == ["artefact", "bytes", "compared", "with", "top-1", "max", "diff", "LSB", "max", "LSB",
                                "mean", "like", "float", "noise", "limits"]  # fmt: skip
    assert lines[1].endswith("FAILED")
    assert lines[3].endswith("passed")
    assert "max_abs_diff" in lines[4]


def test_what_a_shift_changes_is_counted_by_hand():
    labels, logits = np.array([0, 1, 3]), np.eye(4)[[0, 2, 3]]
    found = measure_shift(REFERENCE, logits, labels)
    assert [found[name] for name in ("n", "flips", "lost", "gained", "mcnemar_p")] == [3, 2, 1, 1, 1.0]
    assert found["logit_noise"] == logit_noise(REFERENCE, logits)


class Broken(Fixed):
    def __call__(self, images):
        raise NotFiniteError("model_fp16.tflite", 3)


@pytest.mark.parametrize("float_model", [True, False])
def test_rounded_files_are_also_held_against_the_float_model_on_shifted_images(check, tiny_export, sample, float_model):
    reports, logits = check(), np.tile(REFERENCE, (8, 1))
    models = {FLOAT_MODEL: Fixed(logits), "model_fp16.tflite": Fixed(np.roll(logits, 1, axis=1))}
    if not float_model:
        reports = {name: dataclasses.replace(report, against_float=None) for name, report in reports.items()}
        del models[FLOAT_MODEL]
    found = add_shifted(reports, LogitTable(tiny_export, sample, models, 1))
    assert found["model_fp32.onnx"] == reports["model_fp32.onnx"]  # the ladder holds it to 1e-4
    fp16 = found["model_fp16.tflite"]
    assert fp16.passed
    if float_model:
        assert (fp16.shifted["n"], fp16.shifted["flips"]) == (24, 24)
        assert "shifted copies: 24 flips of 24" in ParityReport(found).table()
        twice = add_shifted(found, LogitTable(tiny_export, sample, models, 1), source="clinic")
        assert twice["model_fp16.tflite"].shifted == fp16.shifted | {"sources": {"clinic": fp16.shifted}}
        assert "clinic: 24 flips of 24" in ParityReport(twice).table()
    else:
        assert fp16.shifted is None


def test_a_file_that_breaks_on_shifted_images_fails(check, tiny_export, sample):
    models = {FLOAT_MODEL: Fixed(np.tile(REFERENCE, (8, 1))), "model_fp16.tflite": Broken(REFERENCE)}
    fp16 = add_shifted(check(), LogitTable(tiny_export, sample, models, 1))["model_fp16.tflite"]
    assert not fp16.passed
    assert "on shifted copies" in fp16.error
    broken = {"model_fp16.tflite": fp16}
    assert add_shifted(broken, LogitTable(tiny_export, sample, models, 1), source="clinic") == broken
