import ast
import builtins
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.reading.image import read_grey
from brainq_torch.data.synthesis.phantom import render_phantom
from brainq_torch.run import load_run
from brainq_torch.run_files import PARITY
from brainq_torch.series.answer import answer_series
from brainq_torch.series.find import find_series
from export.__main__ import main as export_main
from export.bundle import build as bundling
from export.bundle.answers import GOLDEN, BundleError
from export.bundle.build import choose_best, find_sources, make_bundle
from export.bundle.predict import OLDEST_PYTHON, SUMS, check_files, main
from export.folder import ExportFolderError
from export.run.model import Model
from export.run.runners import TFLiteRunner, load_runner
from tests.support.windows import refuse_as_windows


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_run, tiny_export):
    """The tiny run's bundle. Read only: copy it before changing it."""
    target = tmp_path_factory.mktemp("bundles") / "clinic"
    make_bundle(load_run(tiny_run), tiny_export, target)
    return target


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predict(folder, *words, **environment):
    """Run the bundle's own predict.py as a clinic does."""
    command = [sys.executable, str(folder / "predict.py"), *map(str, words)]
    environment = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)


def test_a_bundle_holds_what_it_says(bundle, tiny_export):
    names = set(files(bundle))
    golden = {f"golden/{name}_{frame}.png" for name in CLASSES for frame in ("wide", "tall")}
    assert names == {
        "LICENSE", "MODEL_CARD.md", "SHA256SUMS", "bundle.json", "golden.json", "labels.txt", "model_fp16.tflite",
        "pixels.json", "predict.py", "requirements.txt", *golden, *find_sources(),
    }  # fmt: skip
    assert (bundle / "model_fp16.tflite").read_bytes() == (tiny_export / "model_fp16.tflite").read_bytes()
    assert (bundle / "labels.txt").read_text() == "glioma\nmeningioma\nnotumor\npituitary\n"
    for name in find_sources():
        assert (bundle / name).read_bytes() == Path(name).read_bytes()


def test_it_answers_alone_without_pytorch_and_as_the_runner_does(bundle, tmp_path, tiny_export):
    (tmp_path / "scans").mkdir()
    for label in range(4):
        Image.fromarray(render_phantom(label, 7, size=100)).save(tmp_path / "scans" / f"{label}.png")
    (tmp_path / "scans" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    before = files(bundle)
    run = predict(bundle, tmp_path / "scans", "--json")
    assert run.returncode == 1, run.stderr  # one of five is unreadable, the others are answered
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [answer["path"].split("/")[-1] for answer in answers] == ["0.png", "1.png", "2.png", "3.png", "broken.png"]
    assert "error" in answers[-1]
    runner = load_runner(tiny_export / "model_fp16.tflite")
    pixels = np.stack([runner.pixels.apply(read_grey(answer["path"]).pixels) for answer in answers[:4]])
    assert np.array_equal(np.float32([answer["logits"] for answer in answers[:4]]), runner(pixels))
    paths = [answer["path"] for answer in answers[:4]]
    again = answer_series(Model(tiny_export, runner).answerer, find_series(paths))
    for answer, expected in zip(answers, again, strict=False):
        wanted = expected.row
        assert {key: answer[key] for key in ("class", "best", "abstained", "notes")} == {
            key: wanted[key] for key in ("class", "best", "abstained", "notes")
        }
        assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-9)
        assert answer["outlier"] == pytest.approx(wanted["outlier"], rel=1e-9)
    assert files(bundle) == before  # no __pycache__, nothing written


def test_every_module_of_ours_that_it_loads_lies_in_the_bundle(bundle):
    for reader in ("pydicom", "h5py", "nibabel"):
        pytest.importorskip(reader)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import predict; predict.main(['--verify'])\n"
        "print([m for m in ('torch', 'scipy', 'lightning', 'sklearn') if m in sys.modules])\n"
        "from brainq_torch.data.reading import dicom_slices, dicomdir, figshare, nifti\n"
        "print([m.__file__ for name, m in sys.modules.items() if name.split('.')[0] in ('brainq_torch', 'export')])"
    )
    clean = subprocess.run(
        [sys.executable, "-BPc", code, str(bundle)], capture_output=True, text=True, cwd="/", check=True
    )
    said, heavy, loaded = clean.stdout.splitlines()
    assert (said, heavy) == (verified("model_fp16.tflite"), "[]")
    paths = {Path(path) for path in ast.literal_eval(loaded)}
    assert paths == {bundle / name for name in find_sources()}


def test_its_sources_keep_to_its_oldest_python(bundle):
    sources = sorted(bundle.rglob("*.py"))
    assert len(sources) == len(find_sources()) + 1
    for path in sources:
        ast.parse(path.read_text(), str(path), feature_version=OLDEST_PYTHON)
    with pytest.raises(SyntaxError):
        ast.parse("type Path = str", feature_version=OLDEST_PYTHON)


@pytest.mark.parametrize("gone", ["brainq_torch/openmp.py", "brainq_torch/data/reading/raster.py"])
def test_a_bundle_that_needs_more_than_it_holds_is_not_made(tiny_run, tiny_export, tmp_path, monkeypatch, ended, gone):
    monkeypatch.setattr(bundling, "find_sources", lambda: [name for name in find_sources() if name != gone])
    words = [str(tiny_run), "--out", str(tiny_export), "--bundle", str(tmp_path / "clinic")]
    said = ended(export_main(words), 1).err
    module = gone.removesuffix(".py").replace("/", ".")
    assert "error: the bundle does not work by itself:" in said
    assert f"error: {module} is not installed" in said
    assert list(tmp_path.iterdir()) == []


def verified(file):
    return f"verified: {file}, 8 golden images, 8 of them equal to the last bit"


def test_an_integer_bundle_is_integers_in_and_out(tiny_run, tiny_int8_export, tmp_path, ended):
    folder = tmp_path / "clinic"
    make_bundle(load_run(tiny_run), tiny_int8_export, folder)
    assert json.loads((folder / "bundle.json").read_text())["models"][0]["file"] == "model_int8.tflite"
    assert ended(main(["--verify"], folder)).out == verified("model_int8.tflite") + "\n"
    runner = load_runner(tiny_int8_export / "model_int8.tflite")
    for name, entry in json.loads((folder / GOLDEN).read_text()).items():
        logits = entry["answers"]["model_int8.tflite"]["logits"]
        assert all(isinstance(value, int) for value in logits)
        (found,) = runner(runner.pixels.apply(read_grey(folder / name).pixels)[None])
        assert (found / runner.logit_scale.scale + runner.logit_scale.zero_point).tolist() == logits
    with changed(folder, GOLDEN) as golden:
        golden["golden/glioma_tall.png"]["answers"]["model_int8.tflite"]["logits"][0] += 1
    assert "logits differ by 1" in ended(main(["--verify"], folder), 1).err


def test_several_files_and_the_first_one_answers(tiny_run, tiny_export, tmp_path, ended):
    folder, files = tmp_path / "clinic", ["model_fp32.tflite", "model_fp16.tflite"]
    make_bundle(load_run(tiny_run), tiny_export, folder, files)
    assert ended(main(["--verify"], folder)).out.splitlines() == [verified(file) for file in files]
    scan = str(folder / "golden" / "glioma_wide.png")
    for words, file in (([], files[0]), (["--model", files[1]], files[1])):
        answer = json.loads(ended(main([scan, "--json", *words], folder)).out)
        runner = load_runner(tiny_export / file)
        assert answer["model"] == file
        assert np.array_equal(
            np.float32(answer["logits"]), runner(runner.pixels.apply(read_grey(scan).pixels)[None])[0]
        )
    error = ended(main([scan, "--model", "model_int8.tflite"], folder), 2).err
    assert "allowed are model_fp32.tflite, model_fp16.tflite" in error
    assert (folder / "MODEL_CARD.md").read_text().count("- Paired with the float network on ") == 2


def test_other_files_that_passed_are_named_where_no_preferred_one_is_asked_for(tiny_export):
    assert choose_best(tiny_export) == "model_fp16.tflite"
    with pytest.raises(BundleError, match=r"; name another with --bundle-file: model_fp32.tflite, model_fp16.tflite$"):
        choose_best(tiny_export, {"model_w4a8.tflite"})


def test_a_series_is_answered_by_the_limits_that_the_bundle_was_given(tiny_run, tiny_export, tmp_path, ended):
    nibabel = pytest.importorskip("nibabel", reason="the optional extra 'medical' is not installed")
    volume = np.stack([render_phantom(0, seed, size=48) for seed in range(4)], -1)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 3.0, 1.0])), tmp_path / "a.nii")
    exported, folder = shutil.copytree(tiny_export, tmp_path / "export"), tmp_path / "clinic"
    (exported / "series_rule.json").write_text('{"neighbours": 2, "fewest": 4}')
    words = [str(tiny_run), "--out", str(exported), "--bundle", str(folder)]
    refused = ended(export_main([*words, "--limits", "0.9", "0.1"]), 2).err
    assert "--limits is 0.9 0.1; allowed are two probabilities" in refused
    kept = f"from 0.02 a tumour ({exported / 'series_rule.json'})"
    assert kept in ended(export_main([*words, "--limits", "0.01", "0.02"])).out
    rule = json.loads((folder / "bundle.json").read_text())["series_rule"]
    assert rule == {"neighbours": 2, "healthy_up_to": 0.01, "tumour_from": 0.02, "fewest": 4}
    assert "from 0.02 on it is the tumour" in (folder / "MODEL_CARD.md").read_text()
    for more, limits, source in (([], [0.01, 0.02], "bundle.json"), (["--limits", "0", "1"], [0, 1], "--limits")):
        row = json.loads(ended(main([str(tmp_path / "a.nii"), "--json", *more], folder)).out.splitlines()[-1])
        assert (row["limits"], row["limits_from"]) == (limits, source)


@pytest.mark.parametrize("threads", [-1, 0, 100_000])
def test_threads_that_no_machine_has_are_a_line(threads, bundle, ended):
    error = ended(main(["--verify", "--threads", str(threads)], bundle), 2).err
    assert error.startswith(f"error: --threads is {threads}; allowed are 1 to ")


LACKING = {
    r".* is not installed: python -m pip install -r requirements\.txt, .*": ModuleNotFoundError("gone", name="numpy"),
    r"DLL load failed .*\. On Windows, install .*vc_redist\.x64\.exe": ImportError("DLL load failed for it"),
}


@pytest.mark.parametrize("message", LACKING)
def test_packages_and_libraries_of_windows_that_are_not_there_are_named(bundle, monkeypatch, ended, message):
    def load(name, *words):
        if name == "ai_edge_litert.interpreter":
            raise LACKING[message]
        return load_any(name, *words)

    load_any = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", load)
    monkeypatch.delitem(sys.modules, "export.bundle.answers")
    monkeypatch.delattr("export.bundle.answers")
    assert re.fullmatch(f"error: {message}\n", ended(main(["--verify"], bundle), 2).err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_a_line(bundle, tmp_path, number, code):
    for place in range(400):
        shutil.copy(bundle / "golden" / "glioma_wide.png", tmp_path / f"{place}.png")
    command = [sys.executable, str(bundle / "predict.py"), str(tmp_path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asked:
        assert json.loads(asked.stdout.readline())["best"] in CLASSES
        asked.send_signal(number)
        assert asked.communicate()[1] == "stopped\n"
    assert asked.returncode == code


def both_commands(bundle):
    """Return what answers images, the bundle's own script and the tool."""
    return [str(bundle / "predict.py")], ["-m", "tools.predict", str(bundle / "model_fp16.tflite")]


@pytest.mark.parametrize("package", ["numpy", "ai_edge_litert"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_loads_ends_it_in_a_line(bundle, tmp_path, package, number, code):
    """Code in C takes it for a fault of its own while it loads."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {number:d})\n    any([])\n"
        "except KeyboardInterrupt:\n    raise ImportError('initialization failed')\n"
    )
    for words in both_commands(bundle):
        command = [sys.executable, *words, "scan.png"]
        stopped = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
        )
        assert (stopped.returncode, stopped.stderr) == (code, "stopped\n")


@pytest.mark.skipif(os.name == "nt", reason="no sh")
def test_where_stderr_is_closed_stdout_has_answers_alone(bundle):
    for words in both_commands(bundle):
        command = [sys.executable, *words, str(bundle / "golden" / "glioma_wide.png"), "nowhere", "--json"]
        for closed in ("2>&-", "<&- 2>&-"):
            asked = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], stdout=subprocess.PIPE, text=True)
            assert [sorted(json.loads(line))[0] for line in asked.stdout.splitlines()] == ["abstained", "error"]
            assert asked.returncode == 1


def test_dicom_is_read_where_pydicom_is_and_named_where_it_is_not(bundle, tmp_path, monkeypatch, ended):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    from tests.brainq_torch.data.reading.test_dicom import write_dicom

    scan = str(write_dicom(tmp_path / "scan", np.arange(4096).reshape(64, 64)))
    assert json.loads(ended(main([scan, "--json"], bundle)).out)["best"] in CLASSES
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom" or name.endswith("data.dicom")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "python -m pip install pydicom" in json.loads(ended(main([scan, "--json"], bundle), 1).out)["error"]


def test_the_readers_are_required_where_they_are_known(monkeypatch):
    def version(name):
        if name == "nibabel":
            raise PackageNotFoundError
        return "9"

    monkeypatch.setattr(bundling, "version", version)
    assert bundling._requirements().splitlines()[-2:] == ["pydicom==9", "# nibabel: NIfTI volumes need it."]


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


SWAPPED = "meningioma\nglioma\nnotumor\npituitary\n"
TAMPERINGS = {
    "model_fp16.tflite has changed": lambda folder: change_a_byte(folder / "model_fp16.tflite"),
    "labels.txt has changed": lambda folder: (folder / "labels.txt").write_text(SWAPPED),
    "pixels.json is missing": lambda folder: (folder / "pixels.json").unlink(),
    "brainq_torch/data/pixels.py has changed": lambda folder: change_a_byte(folder / "brainq_torch/data/pixels.py"),
    "numpy.py was added, move it out": lambda folder: (folder / "numpy.py").touch(),
    "brainq_torch/data/pixels.so was added": lambda folder: (folder / "brainq_torch/data/pixels.so").touch(),
    "PIL was added, move it out": lambda folder: (folder / "PIL").symlink_to(folder / "golden"),
    "4.py was added, move it out; and 5 more": lambda folder: [(folder / f"{i}.py").touch() for i in range(10)],
    r"\xff.py was added, move it out": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.py")).touch(),
    "golden/glioma_wide.png is missing": lambda folder: (folder / "golden/glioma_wide.png").unlink(),
    "SHA256SUMS cannot be read": lambda folder: (folder / SUMS).unlink(),
    "bundle.json is not listed": lambda folder: (folder / SUMS).write_text(""),
    "model_fp16.tflite was added": lambda folder: (folder / SUMS).write_text(
        "\n".join(line for line in (folder / SUMS).read_text().splitlines() if "tflite" not in line)
    ),
}


@pytest.mark.parametrize("message", TAMPERINGS)
def test_a_tampered_bundle_is_refused(copy, message, ended):
    check_files(copy)  # control: as it was made, it is not
    TAMPERINGS[message](copy)
    assert message in ended(main(["scan.png"], copy), 2).err


def test_made_again_as_on_windows_it_is_the_same_bytes_and_writes_its_answers(
    bundle, tiny_run, tiny_export, tmp_path, monkeypatch
):
    refuse_as_windows(monkeypatch)
    made = tmp_path / "clinic"
    make_bundle(load_run(tiny_run), tiny_export, made)
    assert files(made) == files(bundle)
    scans, sheet, table = str(made / "golden" / "*_wide.png"), tmp_path / "a.png", tmp_path / "a.csv"
    assert main([scans, "--montage", str(sheet), "--csv", str(table)], made) == 0  # cmd.exe leaves patterns as they are
    assert sheet.is_file()
    assert len(table.read_bytes().split(b"\r\n")) == 1 + len(CLASSES) + 1


def test_what_python_cannot_import_may_be_put_into_the_folder(copy):
    shutil.copy(copy / "golden" / "glioma_wide.png", copy / "scan.png")
    for name in ("Thumbs.db", ".DS_Store", ".directory", "predict.py:Zone.Identifier", "._predict.py", "notes.txt"):
        (copy / name).touch()
    (copy / "brainq_torch/data/._images.py").touch()
    (copy / ".venv").mkdir()
    (copy / ".venv" / "json.py").touch()
    run = predict(copy, copy / "scan.png", "--json")
    assert (run.returncode, run.stderr) == (0, "")  # an answer is all that is said


@pytest.mark.parametrize("name", ["json", "os", "argparse", "hashlib", "__future__", "numpy"])
def test_nothing_that_was_added_runs_before_it_is_refused(copy, name):
    (copy / f"{name}.py").write_text("print('it ran')")
    run = predict(copy, "--verify")
    assert (run.returncode, run.stdout) == (2, "")
    assert f"{name}.py was added, move it out" in run.stderr


def test_a_name_that_the_console_cannot_print_stops_nothing(bundle, tmp_path):
    for name in ("kopf_Köpfe_\u2713", "other"):
        shutil.copy(bundle / "golden" / "glioma_wide.png", tmp_path / f"{name}.png")
    run = predict(bundle, tmp_path, PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0")
    assert run.returncode == 0, run.stderr
    assert [line.split(": ")[0].split("/")[-1] for line in run.stdout.splitlines()] == [
        r"kopf_K\xf6pfe_\u2713.png",
        "other.png",
    ]


def sign_again(folder, name):
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    lines = [line for line in (folder / SUMS).read_text().splitlines() if not line.endswith(f"  {name}")]
    (folder / SUMS).write_text("\n".join([*lines, f"{digest}  {name}"]) + "\n")


@contextmanager
def changed(folder, name):
    """Give what a JSON file of a bundle holds; changes are written back and signed."""
    content = json.loads((folder / name).read_text())
    yield content
    (folder / name).write_text(json.dumps(content))
    sign_again(folder, name)


def test_golden_images_catch_what_checksums_made_anew_do_not(copy, ended):
    assert main(["--verify"], copy) == 0
    (copy / "labels.txt").write_text("meningioma\nglioma\npituitary\nnotumor\n")
    sign_again(copy, "labels.txt")
    assert "must be" in ended(main(["--verify"], copy), 1).err
    shutil.copy(copy / "golden" / "glioma_tall.png", copy / "golden" / "notumor_wide.png")
    sign_again(copy, "golden/notumor_wide.png")
    assert "its pixels differ" in ended(main(["--verify"], copy), 1).err


def test_golden_answers_are_compared(copy, ended):
    with changed(copy, GOLDEN) as golden:
        golden["golden/glioma_wide.png"]["answers"]["model_fp16.tflite"]["logits"][0] += 0.0005
    seven = verified("model_fp16.tflite").replace("8 of", "7 of")
    assert ended(main(["--verify"], copy)).out == f"{seven}, the rest within 0.001, as expected of float\n"
    with changed(copy, GOLDEN) as golden:
        golden["golden/glioma_wide.png"]["answers"]["model_fp16.tflite"]["logits"][0] += 0.01
    assert "logits differ by 0.0105" in ended(main(["--verify"], copy), 1).err
    with changed(copy, GOLDEN) as golden:
        golden["golden/glioma_wide.png"]["answers"]["model_fp16.tflite"] |= {"class": "uncertain", "best": "glioma"}
    assert "must be uncertain (glioma)" in ended(main(["--verify"], copy), 1).err


def test_logits_that_are_not_finite_are_no_answer(copy, monkeypatch, ended):
    run = TFLiteRunner._run
    monkeypatch.setattr(TFLiteRunner, "_run", lambda *words: run(*words) * np.float32("nan"))
    assert ended(main(["--verify"], copy), 1).err.count("gives logits that are not finite") == 8
    scans = [str(copy / "golden" / f"{name}_wide.png") for name in CLASSES]
    answers = [json.loads(line) for line in ended(main([*scans, "--json"], copy), 1).out.splitlines()]
    assert [answer["path"] for answer in answers] == scans
    assert all("not finite" in answer["error"] and "class" not in answer for answer in answers)


def test_a_damaged_file_is_refused_by_its_own_checksum_too(copy, ended):
    change_a_byte(copy / "model_fp16.tflite")
    sign_again(copy, "model_fp16.tflite")
    assert "is damaged or was edited" in ended(main(["scan.png"], copy), 2).err


def test_a_file_that_cannot_abstain_says_so(copy, ended):
    scan = [str(copy / "golden" / "glioma_wide.png")]
    assert "cannot say uncertain" not in ended(main(scan, copy)).err
    with changed(copy, "bundle.json") as about:
        del about["models"][0]["metadata"]["abstention"]
    assert "model_fp16.tflite cannot say uncertain" in ended(main(scan, copy)).err


def test_the_card_says_what_was_measured_and_what_was_not(bundle, tiny_run):
    card = (bundle / "MODEL_CARD.md").read_text()
    accuracy = json.loads((tiny_run / "metrics.json").read_text())["accuracy"]
    assert "**Not a medical device.**" in card
    assert f"accuracy {100 * accuracy:.2f} %" in card
    assert card.count("**NOT DONE**") >= 8
    assert "- Seed 0; started from weights: random" in card
    assert "images are copies of training images or share a group with them" in card
    assert "- Paired with the float network on " in card
    assert "| Software and versions | above |" in card
    assert str(tiny_run.parent) not in card


def test_the_command_bundles_the_export_that_is_there(tiny_run, tiny_export, tmp_path, ended):
    words = [str(tiny_run), "--out", str(tiny_export), "--bundle", str(tmp_path / "clinic")]
    assert export_main([*words, "--bundle-file", "model_fp32.tflite"]) == 0
    assert main(["--verify"], tmp_path / "clinic") == 0
    assert "exists; name another folder" in ended(export_main(words), 2).err
    assert export_main([*words, "--force"]) == 0
    assert (tmp_path / "clinic" / "model_fp16.tflite").is_file()


def spoil_parity(folder, change):
    parity = json.loads((folder / PARITY).read_text())
    change(parity["artefacts"])
    (folder / PARITY).write_text(json.dumps(parity))


def test_what_did_not_pass_is_not_bundled(tiny_run, tiny_export, tmp_path):
    run, exported = load_run(tiny_run), shutil.copytree(tiny_export, tmp_path / "export")
    with pytest.raises(BundleError, match=r"model_w4\.tflite is not there; allowed are model_"):
        make_bundle(run, exported, tmp_path / "b", ["model_w4.tflite"])
    spoil_parity(exported, lambda artefacts: artefacts["model_fp16.tflite"].update(passed=False))
    with pytest.raises(BundleError, match=r"model_fp16\.tflite failed parity"):
        make_bundle(run, exported, tmp_path / "b", ["model_fp16.tflite"])
    change_a_byte(exported / "model_fp32.tflite")
    with pytest.raises(BundleError, match="is not the file"):
        make_bundle(run, exported, tmp_path / "b")
    (exported / PARITY).unlink()
    with pytest.raises(BundleError, match="is no export"):
        make_bundle(run, exported, tmp_path / "b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportFolderError, match="is not a bundle"):
        make_bundle(run, tiny_export, tmp_path / "mine", replace=True)
    assert not (tmp_path / "b").exists()


def test_a_bundle_that_is_replaced_loses_nothing_of_its_users(copy, tiny_run, tiny_export):
    shutil.copy(copy / "golden" / "glioma_wide.png", copy / "golden" / "scan.png")
    with pytest.raises(ExportFolderError, match=r"no part of a bundle \(golden/scan\.png\) and would be lost"):
        make_bundle(load_run(tiny_run), tiny_export, copy, replace=True)
    (copy / "golden" / "scan.png").unlink()
    make_bundle(load_run(tiny_run), tiny_export, copy, replace=True)
    assert main(["--verify"], copy) == 0
