import json
import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.support.handmade_models import write_float_onnx, write_float_tflite, write_int8_tflite
from tests.support.narrow_run import write_run
from tools.bench import __main__ as bench
from tools.bench import worker as bench_worker


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A large and a small float TFLite, an int8 one and an ONNX file, with int8 input and output or float."""
    folder = tmp_path_factory.mktemp("models")
    return [
        write_float_tflite(folder / "large.tflite", side=384),
        write_float_tflite(folder / "small.tflite"),
        write_int8_tflite(folder / "int8.tflite"),
        write_float_onnx(folder / "float.onnx"),
    ]


@pytest.fixture(scope="module")
def report(files, tmp_path_factory):
    """One bench of all files from the command line."""
    target = tmp_path_factory.mktemp("out") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "find_spec", lambda name: None)  # OpenVINO has a test of its own
        assert bench.main([*map(str, files), "--rounds", "3", "--calls", "4", "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_every_model_has_size_latency_and_memory(files, report):
    assert (report["threads"], report["rounds"], report["calls_per_round"]) == (1, 3, 4)
    assert [model["model"] for model in report["models"]] == list(map(str, files))
    for path, model in zip(files, report["models"], strict=True):
        assert model["size_bytes"] == path.stat().st_size
        assert 0 < model["latency_median_ms"] <= model["latency_p90_ms"]
        assert 0 < model["memory_before_model_bytes"] < model["peak_memory_bytes"]
        assert ("ONNX Runtime" if path.suffix == ".onnx" else "LiteRT") in model["engine"]
        assert 0 < model["start_up_s"] < 60
        assert model["peak_memory_bytes"] < 150e6  # PyTorch alone is 200 MB and more: no process has any of it


def test_equal_logits_are_the_first_models(report):
    assert report["models"][0]["equal_logits"] == 1.0
    assert bench._share_equal(np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]])) == 0.5
    assert bench._share_equal(np.zeros((2, 4)), np.zeros((2, 3))) is None


def test_an_onnx_file_has_a_row_of_openvino_s(tmp_path, reported):
    pytest.importorskip("openvino", reason="the optional extra 'openvino' is not installed")
    path = write_float_onnx(tmp_path / "float.onnx")
    report, printed = reported(bench.main, path, "--rounds", 1, "--calls", 1)
    here, there = report["models"]
    assert ("ONNX Runtime" in here["engine"], "OpenVINO" in there["engine"]) == (True, True)
    assert here["size_bytes"] == there["size_bytes"]
    assert there["equal_logits"] is not None
    assert "not installed" not in printed


def test_without_openvino_nothing_changes_but_a_line(files, report, tmp_path, ended, monkeypatch):
    assert len(report["models"]) == len(files)
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert "OpenVINO is not installed; with it an .onnx file has a second row: pip install -e '.[openvino]'" in (
        ended(bench.main([str(files[3]), "--rounds", "1", "--calls", "1"])).out
    )
    (tmp_path / "openvino.py").write_text("raise ModuleNotFoundError('gone', name='openvino')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(bench, "find_spec", lambda name: True)
    assert "openvino is not installed; it is of the extra 'openvino'" in ended(bench.main([str(files[3])]), 2).err


def test_ratios_are_to_the_first_model(report):
    first, small = report["models"][:2]
    assert (first["size_ratio"], first["latency_ratio"], first["peak_memory_ratio"]) == (1.0, 1.0, 1.0)
    assert small["size_ratio"] == small["size_bytes"] / first["size_bytes"]
    assert small["peak_memory_ratio"] == small["peak_memory_bytes"] / first["peak_memory_bytes"]
    # 144 times the pixels: no noise of the machine turns that round.
    assert small["latency_ratio"] < 0.5


def test_latency_ratio_survives_a_machine_that_slows_down(monkeypatch, files):
    """Every round is slower than the one before, for both models alike: the ratio does not move."""
    speeds = {str(files[0]): 10.0, str(files[1]): 5.0}

    class Worker(ExitStack):
        def __init__(self, model, threads, engine):
            super().__init__()
            self.model, self.engine, self.turn = model, "fake", 0
            self.start_up_s, self.logits = 0.1, np.zeros((1, 4))

        def measure(self, calls):
            self.turn += 1
            return [speeds[self.model] * self.turn] * calls

        def finish(self):
            return {"peak_memory_bytes": 100, "memory_before_model_bytes": 50}

    monkeypatch.setattr(bench, "_Worker", Worker)
    first, second = bench.bench_models([str(path) for path in files[:2]], rounds=4, calls=5).models
    assert second.latency_ratio == 0.5
    # 10, 20, 30, 40 ms, five of each.
    assert (first.latency_median_ms, first.latency_p90_ms) == (25.0, 40.0)


def test_table_states_the_threads_and_every_figure(monkeypatch):
    model = bench.Measurement(
        "a.tflite", "LiteRT 2", 2_500_000, 4.25, 5.5, 70_000_000, 40_000_000, 1.0, 1.0, 1.0, 0.21, 0.5
    )
    text = bench.format_bench(bench.Bench(2, 3, 4, "a CPU", 8, 0.5, (model,)))
    assert "threads: 2; 3 rounds of 4 single images" in text
    for figure in ("2.500 MB", "4.25 ms", "5.50 ms", "70.0 MB", "40.0 MB", "0.21 s", "50.0%"):
        assert figure in text
    assert "busy" not in text
    assert "busy" in bench.format_bench(bench.Bench(2, 3, 4, "a CPU", 8, 7.9, (model,)))


def test_a_run_folder_runs_in_pytorch(tmp_path):
    run = write_run(tmp_path / "run")
    engine = bench_worker.torch_engine(run, 1)
    call, images = engine.load()
    assert call(images[:1]).shape == (1, 4)
    assert engine.name.startswith("PyTorch")
    assert bench.size_bytes(run) == (run / "model.ckpt").stat().st_size


def test_images_cover_the_range_of_greys():
    images = bench_worker.grey_squares((64, 64, 1))
    assert (images.shape, images.dtype) == ((bench_worker.COMPARED_IMAGES, 64, 64, 1), np.float32)
    assert (images.min(), images.max()) == (-1, 127 / 128)


def test_wrong_models_are_named(tmp_path, ended):
    (tmp_path / "noise.tflite").write_bytes(b"\x00" * 64)
    assert "no finished run folder" in ended(bench.main([str(tmp_path)]), 2).err
    error = ended(bench.main([str(tmp_path / "noise.tflite")]), 2).err
    assert "; python -m tools.doctor tells more of an exported file" in error


def test_a_process_that_dies_is_told_with_its_last_words(tmp_path, files, ended, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of memory >&2\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(program))
    assert "its process ended with code 9: out of memory" in ended(bench.main([str(files[1])]), 2).err


def test_without_an_engine_the_command_that_installs_it_is_named(tmp_path, files, capsys, monkeypatch):
    for package in ("ai_edge_litert", "onnxruntime"):
        (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('gone', name={package!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for model in (files[1], files[3]):
        assert bench.main([str(model)]) == 2
        assert re.search(r"error: \S+ cannot be run: .* is not installed; .*pip install", capsys.readouterr().err)


def test_memory_is_this_processs(monkeypatch):
    now = bench_worker.memory_bytes("VmRSS")
    assert 10e6 < now <= bench_worker.memory_bytes("VmHWM")
    monkeypatch.setattr(bench_worker, "Path", lambda *_: Path("/nowhere"))
    assert bench_worker.memory_bytes("VmRSS") >= 10e6
