"""``import brainq_torch as bq``: the README's lines run, and say what the commands say."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import brainq_torch as bq
from brainq_torch.data.reading.slices import SliceChoiceError
from brainq_torch.run import RunError
from brainq_torch.run_files import BrainqError
from brainq_torch.series.find import Unread
from brainq_torch.training.classifier import Classifier
from export.run.runners import load_runner
from tools import predict
from tools.evaluate import __main__ as evaluate

TINY = {
    "stages": [{"name": "head", "train": "head", "epochs": 1, "rate": 0.01}],
    "model": {"arguments": {"width_mult": 0.35}},
    "trainer": {"enable_progress_bar": False, "accelerator": "cpu"},
}
PAGES = ("README.md", "configs/README.md")


def lines_of(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", Path(page).read_text(), re.DOTALL))


@pytest.fixture(scope="module")
def png(phantoms):
    return next(phantoms.glob("Testing/*/*.png"))


@pytest.fixture(params=["run folder", "model_int8.onnx", "model_int8.tflite"])
def path(request, tiny_run, tiny_int8_export):
    return tiny_run if request.param == "run folder" else tiny_int8_export / request.param


def test_the_lines_of_the_readmes_run(phantoms, png, tmp_path, monkeypatch, capsys):
    code, fit = "\n".join(map(lines_of, PAGES)), bq.fit
    data = {"root": str(phantoms), "size": 32, "batch_size": 8}
    monkeypatch.setattr(bq, "fit", lambda config, **more: fit(config, data=data, **TINY, **more))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").symlink_to(phantoms)
    shutil.copy(png, "scan.png")
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["report"].passed
    assert namespace["run"].config["model"]["arguments"] == {"width_mult": 0.35}
    assert namespace["run"].classes == namespace["model"].classes
    answered = r"^scan.png (glioma|meningioma|notumor|pituitary|uncertain)"
    assert re.search(answered, capsys.readouterr().out, re.MULTILINE)


def test_a_model_gives_its_runner_s_logits(path, phantoms):
    model, runner = bq.load(path, threads=2), load_runner(path, threads=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    np.testing.assert_array_equal(model.logits(images), runner(images))
    assert (model.classes, model.pixels, model.abstention) == (runner.classes, runner.pixels, runner.abstention)
    assert repr(model).startswith(f"Model({str(path)!r}, classes=('glioma', ")
    if path.suffix == ".tflite":
        assert len(model.runner._interpreters) == 2  # every thread is used, whoever asks


def test_a_prediction_is_the_command_s(path, png, ended):
    row = json.loads(ended(predict.main([str(path), str(png), "--json", "--threads", "1"])).out)
    (answer,) = bq.load(path).predict(png)
    assert isinstance(answer, bq.Prediction)
    assert {name: row[name] for name in ("path", "label", "best", "probability", "probabilities", "reason")} == {
        name: getattr(answer, name) for name in ("path", "label", "best", "probability", "probabilities", "reason")
    }
    assert answer.uncertain == (answer.label == "uncertain") == bool(answer.reason)


def test_an_array_is_answered_as_its_file(path, png):
    model, grey = bq.load(path), np.asarray(Image.open(png))
    (of_file,) = model.predict([png])
    for array in (grey, grey[None], Image.open(png), [grey]):
        (answer,) = model.predict(array)
        assert (answer.path, answer.probabilities) == ("image 0", of_file.probabilities)
    several = model.predict([grey, np.stack([grey, grey]), Image.fromarray(grey)])
    assert [answer.path for answer in several] == [f"image {number}" for number in range(4)]
    assert {answer.probability for answer in several} == {of_file.probability}
    assert model.predict(path for path in [png]) == [of_file]


def test_what_cannot_be_read_is_an_answer_too(path, png, tmp_path):
    (tmp_path / "broken.png").write_bytes(png.read_bytes()[:200])
    blank, missing = np.zeros((40, 40), np.uint8), tmp_path / "missing.png"
    model = bq.load(path)
    answers = [*model.predict([missing, tmp_path]), *model.predict(blank)]
    assert [type(answer) for answer in answers] == [Unread] * 3
    assert type(model.predict(blank, slices=3)[0]) is Unread
    assert [(answer.label, answer.reason) for answer in answers] == [("unread", answer.error) for answer in answers]
    with pytest.raises(SliceChoiceError, match="--slices is 'some'"):
        model.predict([missing], slices="some")
    coloured = (np.zeros((40, 40, 3), np.uint8), Image.new("RGB", (40, 40)))
    for wrong in (blank.astype(float), *coloured, [blank[0]], blank[:0]):
        with pytest.raises(ValueError, match=r"images are .*; give \(h, w\) or \(N, h, w\) uint8 grey ones"):
            model.predict(wrong)
    for wrong, kinds in (([png, blank], "ndarray"), (None, "NoneType"), ([3, blank], "int, ndarray")):
        with pytest.raises(ValueError, match=f"images hold {kinds}; give names of files alone, or pictures alone"):
            model.predict(wrong)


def test_an_evaluation_is_the_command_s(tiny_int8_export, phantoms, tmp_path, capsys):
    model, report = tiny_int8_export / "model_int8.tflite", tmp_path / "report.json"
    tumours = ("glioma", "meningioma", "pituitary")
    meaning = {"notumor": "notumor", **dict.fromkeys(tumours, "+".join(tumours))}
    words = ["--split", "Testing", "--label-map", *(f"{folder}={name}" for folder, name in meaning.items())]
    assert evaluate.main([str(model), "--data", str(phantoms), *words, "--json", str(report)]) == 0
    found = bq.evaluate(bq.load(model), phantoms, "Testing", meaning)
    expected = json.loads(report.read_text())
    del expected["threads"]
    assert json.loads(json.dumps(found.to_json())) == expected


def test_an_export_returns_what_parity_json_holds(tiny_run, tmp_path):
    report = bq.export(tiny_run, ["fp32"], tmp_path / "export")
    assert json.loads(json.dumps(report.to_json())) == json.loads((tmp_path / "export" / "parity.json").read_text())
    with pytest.raises(BrainqError, match="exists"):
        bq.export(tiny_run, ["fp32"], tmp_path / "export")
    with pytest.raises(BrainqError, match="unknown recipe fp23;"):
        bq.export(tiny_run, "fp23", tmp_path / "other")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": {"rot": "x"}}, "rot"),
        ({"seed": "many"}, "seed"),
        ({"config": "no such"}, "no such"),
        ({"threads": -1}, "-1"),
    ],
)
def test_a_wrong_override_is_refused(overrides, message, tmp_path):
    with pytest.raises((RunError, OSError), match=message):
        bq.fit(**{"config": "quickstart", "out": str(tmp_path / "run"), **overrides})
    assert not (tmp_path / "run" / "model.ckpt").exists()


def test_public_names_are_there_and_described():
    assert all(getattr(bq, name).__doc__ for name in bq.__all__)
    assert set(bq.__all__) <= set(dir(bq))
    stub = ast.parse(Path(bq.__file__).with_suffix(".pyi").read_text())
    homes = {
        f"{node.module}.{one.name}" for node in stub.body if isinstance(node, ast.ImportFrom) for one in node.names
    }
    assert homes == {f"{home}.{name}" for name, home in {**bq._HOMES, "fit": "brainq_torch.fit"}.items()}
    with pytest.raises(AttributeError, match=r"'lod'; public are .*load"):
        bq.lod  # noqa: B018


def test_importing_it_loads_none_of_it():
    heavy = "torch", "numpy", "export", "tools"
    code = f"import brainq_torch, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE).stdout == "[]\n"


@pytest.mark.parametrize(("hiding", "name"), [("export.py", "load"), ("tools.py", "evaluate")])
def test_a_file_of_one_s_own_that_hides_a_package_is_named(tmp_path, hiding, name):
    path = tmp_path / hiding
    path.touch()
    code = f"import brainq_torch; brainq_torch.{name}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, stderr=subprocess.PIPE)
    assert f"ImportError: {path} hides the package '{path.stem}' of brainq_torch; rename" in ended.stderr


def test_every_package_of_a_public_name_is_typed():
    for name in bq.__all__:
        home = getattr(getattr(bq, name), "__module__", "brainq_torch").partition(".")[0]
        assert home == "builtins" or Path(home, "py.typed").is_file(), name


def test_a_program_that_imports_us_keeps_its_own_answer_to_ctrl_c(tmp_path):
    (tmp_path / "predict.py").write_text(
        "import signal, sys, brainq_torch\n"
        "assert sys.excepthook is sys.__excepthook__\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)\n"
    )
    for words in (["predict.py"], ["-m", "predict"]):
        subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)


def test_a_training_that_is_interrupted_can_be_gone_on_with(phantoms, tmp_path, monkeypatch):
    """Lightning ends the whole process at Ctrl-C: in a notebook the exception is the answer."""

    def stop(*_):
        raise KeyboardInterrupt

    wanted = TINY | {"out": tmp_path / "run", "data": {"root": str(phantoms), "size": 32}}
    monkeypatch.setattr(Classifier, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        bq.fit("quickstart", **wanted)
    monkeypatch.undo()
    assert bq.fit("quickstart", resume=True, **wanted).folder == tmp_path / "run"
