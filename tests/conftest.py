"""Fixtures that several test files share: a tiny data set and one finished tiny run."""

import os

# Before NumPy and PyTorch load, and for every process that a test starts: tiny matrices are fastest on one thread, and
# on cores that tests share, threads that wait for each other spin: a search for copies took 1.7 s in place of 0.05.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from brainq_torch.data.synthesis import phantom
from brainq_torch.data.synthesis.phantom import write_phantoms

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts the tests in the background has it so
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = [
    "--config", "configs/quickstart.yaml", "--data.size=32", "--data.batch_size=8", "--model.arguments.width_mult=0.35",
    "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
]  # fmt: skip
"""The quickstart, small enough to run in a test."""


def pytest_addoption(parser):
    parser.addoption("--most-skips", type=int, metavar="N", help="fail when more tests than N are skipped (CI does)")


def pytest_sessionfinish(session):
    most, reporter = session.config.option.most_skips, session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", [])) if reporter else 0  # the workers of xdist have no reporter
    if most is not None and skipped > most:
        reporter.write_line(f"{skipped} tests were skipped, at most {most} may be; the reasons are below", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _no_pictures():
    """Drawing its two pictures is half of a tiny training: only trainings in a process of their own do it."""
    from brainq_torch import finish  # not above: what hands tests out to workers would wait for PyTorch, too

    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_curves", "plot_confusion"):
            patch.setattr(finish, name, lambda _, path: path.touch())
        yield


@pytest.fixture(scope="session", autouse=True)
def _phantoms_drawn_once():
    """Every export is compared on 256 of them, and they are always the same."""
    draw = cache(phantom.render_phantom)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "render_phantom", lambda *words, **named: draw(*words, **named).copy())
        yield


@pytest.fixture
def ended(capsys):
    """Check a command's exit code and return what it has printed: ``ended(main(words), 2).err``."""

    def check(code: int, expected: int = 0) -> Any:
        printed = capsys.readouterr()
        assert code == expected, printed.err
        return printed

    return check


@pytest.fixture
def stopped(ended):
    """Run a command that its parser may stop; check the exit code and return what was printed."""

    def run(main: Callable[[list[str]], int], words: list[str], expected: int = 2) -> Any:
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        return ended(code, expected)

    return run


@pytest.fixture
def reported(ended, tmp_path):
    """Run a command with --json and return its report and what it has printed."""

    def run(main: Callable[[list[str]], int], *words: Any) -> tuple[Any, str]:
        report = tmp_path / "report.json"
        printed = ended(main([*map(str, words), "--json", str(report)])).out
        return json.loads(report.read_text()), printed

    return run


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder once, in whichever process of the session asks first. Read only: copy it before changing it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def made(name: str, make: Callable[[Path], None]) -> Path:
        target, mark = folder / name, folder / f"{name}.made"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f"{name}.asked"):
            if not mark.exists():
                make(target)
                mark.touch()
        return target

    return made


@pytest.fixture(scope="session")
def phantoms(shared) -> Path:
    """Training/ and Testing/ with 8 and 3 phantoms per class, 32 pixels."""
    return shared("phantoms", lambda root: write_phantoms(root, 8, 3, seed=0, size=32))


@pytest.fixture(scope="session")
def tiny_run(shared, phantoms) -> Path:
    """A finished run of the tiny network: two stages of one epoch. Read only: copy it before changing it."""
    from brainq_torch.fit import main

    def make(out: Path) -> None:
        stages = "[{name: head, epochs: 1, train: head}, {name: all, epochs: 1}]"
        assert main([*TINY, f"--data.root={phantoms}", f"--out={out}", f"--stages={stages}"]) == 0

    return shared("run", make)


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory) -> tuple[Path, list[str]]:
    """A folder with the source north and a table of the hospitals cs and du, and the words that say so. Read only."""
    root = tmp_path_factory.mktemp("data") / "sources"
    write_phantoms(root / "north", 8, 3, seed=0, size=32)
    write_phantoms(root / "hospitals", 12, 1, seed=1, size=32)
    lines = ["path,class,source,group"]
    for number, path in enumerate(sorted((root / "hospitals" / "Training").rglob("*.png"))):
        place = path.relative_to(root / "hospitals").as_posix()
        lines.append(f"{place},{path.parent.name},{('cs', 'du')[number % 2]},p{number}")
    (root / "hospitals" / "images.csv").write_text("\n".join([*lines, ""]))
    sources = "[{name: north, root: north, group_pattern: (.*)}, {name: hospitals, root: hospitals, table: images.csv}]"
    return root, [f"--data.root={root}", f"--data.sources={sources}"]


def export_of(run: Path, *words: str) -> Callable[[Path], None]:
    """Return what exports a run into a folder."""
    from export.__main__ import main as export_main

    def make(out: Path) -> None:
        assert export_main([str(run), "--out", str(out), *words]) == 0

    return make


@pytest.fixture(scope="session")
def tiny_export(shared, tiny_run) -> Path:
    """The tiny run exported with the recipes fp32 and fp16. Read only: copy it before changing it."""
    return shared("export", export_of(tiny_run, "--recipes", "fp32", "fp16"))


@pytest.fixture(scope="session")
def tiny_int8_export(shared, tiny_run) -> Path:
    """The tiny run exported with the recipe int8, calibrated on 16 images. Read only."""
    return shared("int8", export_of(tiny_run, "--recipes", "int8", "--calibration-images", "16"))


@dataclass(frozen=True)
class SmallInt8:
    """``small_network`` calibrated, as QDQ and TFLite file; stripped, plain: the float files on the way between."""

    network: Any
    onnx: Path
    tflite: Path
    stripped: Path
    plain: Path


@pytest.fixture(scope="session")
def small_int8(shared) -> SmallInt8:
    """The integer files of the small network. Read only: copy them before changing them."""
    from brainq_torch.data.pixels import PixelSpec
    from brainq_torch.quant.calibrate import quantize_post_training
    from export import integer_files as int8
    from export.graph.qdq_onnx import export_qdq_onnx
    from tests.support.small_network import SIDE, small_images, small_network

    network = quantize_post_training(small_network(), small_images())
    original = int8.convert_float

    def make(folder: Path) -> None:
        def keep(stripped: Path, plain: Path) -> None:
            original(stripped, plain)
            shutil.copy(stripped, folder / "stripped.onnx")
            shutil.copy(plain, folder / "plain.tflite")

        folder.mkdir()
        export_qdq_onnx(network, PixelSpec(SIDE), folder / "model.onnx")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(int8, "convert_float", keep)
            int8.convert_int8(folder / "model.onnx", folder / "model.tflite", PixelSpec(SIDE))

    folder = shared("small", make)
    return SmallInt8(
        network, *(folder / name for name in ("model.onnx", "model.tflite", "stripped.onnx", "plain.tflite"))
    )
