import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from tests.support.study_stand_in import HERE, IMAGES, run_here, stand_in
from tools.report.stored_study import read_study
from tools.study import runner as study_runner
from tools.study import runs as study_runs
from tools.study import table as study_table
from tools.study.__main__ import main
from tools.study.process import run_logged
from tools.study.table import _find_omissions

MODELS = {
    "mobile": {"config": "configs/quickstart.yaml"},
    "qat": {"config": "configs/mobilenetv2_qat.yaml", "init": "mobile"},
    "teacher": {"config": "configs/densenet101_teacher.yaml"},
    "student": {"config": "configs/densenet32_kd.yaml", "teacher": "teacher"},
}
ROWS = [
    ("mobile", "MobileNetV2", "Float32", "mobile", "fp32"),
    ("mobile_fp16", "MobileNetV2", "Float16", "mobile", "fp16"),
    ("mobile_ptq", "MobileNetV2", "PTQ INT8", "mobile", "int8"),
    ("mobile_qat", "MobileNetV2", "QAT INT8", "qat", "int8"),
    ("student", "DenseNet-32", "Float32", "student", "fp32"),
    ("student_w4a8", "DenseNet-32", "W4A8", "student", "w4a8"),
]
KEYS = ("id", "family", "recipe", "model", "export")
DONE_AGAIN = ["brainq_torch.fit", "export", "tools.predictions", "tools.bench", "tools.gradcam", "tools.report"]


class Bench:
    """A study's configuration and folder, and the commands that it started."""

    def __init__(self, folder):
        self.folder, self.out, self.calls_file = folder, folder / "study", folder / "calls"
        rows = [dict(zip(KEYS, row, strict=True)) for row in ROWS]
        self.config = {"title": "A test", "models": MODELS, "rows": rows, "gradcam": "mobile"}

    def words(self, *more):
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        return ["--config", str(path), "--out", str(self.out), *map(str, more)]

    def run(self, *more):
        self.calls_file.unlink(missing_ok=True)
        return main(self.words(*more))

    def start(self, **environment):
        """Start a study in a process of its own."""
        words = [sys.executable, str(HERE), "study", *self.words()]
        # as a command of its own from the repository's root, not with the test's sys.path
        return subprocess.Popen(words, env=os.environ | environment, stdout=subprocess.PIPE, text=True)

    def calls(self):
        """Return the commands of the last run, each as words."""
        return [line.split() for line in self.calls_file.read_text().splitlines()] if self.calls_file.exists() else []

    def trained(self):
        """Return the names of the run folders that the last run trained."""
        return [Path(call[call.index("--out") + 1]).name for call in self.calls() if call[0] == "brainq_torch.fit"]

    def give(self, name, folder="runs"):
        """Return a copy of a folder that the study made, as one that lies elsewhere."""
        return shutil.copytree(self.out / folder / name, self.folder / "given" / folder)

    def study(self):
        return json.loads((self.out / "study.json").read_text())

    def rows(self):
        return {row["id"]: row for row in self.study()["rows"]}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What every stood-in model answers."""
    one = {
        "logits": np.eye(4, dtype=np.float32)[[0] * IMAGES], "labels": np.zeros(IMAGES, np.int64),
        "paths": np.array([f"Testing/glioma/Testing{i}.png" for i in range(IMAGES)]), "unseen": np.arange(IMAGES) < 4,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("answers") / "answers.npz"
    both = one | {f"val_{name}": values for name, values in one.items()}
    np.savez(path, **both, abstention=np.array([1.5, 0.6]))
    return path


def prepare(patch, folder, answers):
    """Return a bench whose study has its commands stood in for, in this process, while the patch holds."""
    stand_in(patch.setattr)
    patch.setattr(study_runner, "run_logged", run_here)
    made = Bench(folder)
    patch.setenv("STAND_IN_CALLS", str(made.calls_file))
    patch.setenv("STAND_IN_ANSWERS", str(answers))
    return made


@pytest.fixture
def bench(tmp_path, monkeypatch, answers):
    yield prepare(monkeypatch, tmp_path, answers)
    study_runs.hash_images.cache_clear()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, answers):
    """The folder of a bench whose study was run once, and beside it a copy named kept."""
    folder = tmp_path_factory.mktemp("finished") / "bench"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, folder, answers).run() == 0
    study_runs.hash_images.cache_clear()
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def made(finished, monkeypatch, answers):
    """A bench whose study was run once, as it was then."""
    shutil.rmtree(finished)
    shutil.copytree(finished.with_name("kept"), finished)
    yield prepare(monkeypatch, finished, answers)
    study_runs.hash_images.cache_clear()


def names(calls):
    return [call[0] for call in calls]


def modules(calls):
    return sorted(set(names(calls)), key=DONE_AGAIN.index)


def test_every_step_is_done_once_and_recorded(bench, monkeypatch, capsys):
    monkeypatch.setattr(study_runner, "run_logged", run_logged)  # each in a process of its own, as a user's are
    assert bench.run() == 0
    calls = bench.calls()
    counted = {module: names(calls).count(module) for module in DONE_AGAIN}
    assert counted == {
        "brainq_torch.fit": 4, "export": 5, "tools.predictions": 6, "tools.bench": 2, "tools.gradcam": 1,
        "tools.report": 1,
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "[1/19] 0:00:00 train mobile" in printed
    assert "[19/19]" in printed
    assert printed.rstrip().endswith(f"report: {bench.out / 'report.html'}")
    record = json.loads((bench.out / "steps" / "export_mobile_float.json").read_text())
    assert record["command"].startswith("python -m export ")
    assert set(record["inputs"]) == {
        "run's model.ckpt", "run's config.yaml", "run's manifest.csv", "arguments", "code", "packages"
    }  # fmt: skip
    assert set(record["outputs"]) == {
        f"exports/mobile/float/{name}"
        for name in ("parity.json", "model_fp32.tflite", "model_fp32.onnx", "model_fp16.tflite")
    }


def test_what_is_there_is_not_done_again(made, capsys):
    before = (made.out / "study.json").read_bytes()
    assert made.run() == 0
    assert made.calls() == []
    assert (made.out / "study.json").read_bytes() == before
    assert capsys.readouterr().out.count("done before, nothing has changed") == 19


def test_all_models_train_on_the_first_ones_images_and_parts(made):
    first, *others = [call for call in made.calls() if call[0] == "brainq_torch.fit"]
    run = made.out / "runs" / "mobile"
    assert first[first.index("--data.root") + 1] == "phantom"
    assert "--data.manifest" not in first
    for call in others:
        assert call[call.index("--data.root") + 1] == str(run / "phantoms")
        assert call[call.index("--data.manifest") + 1] == str(run / "manifest.csv")
    qat, _, student = others
    assert qat[qat.index("--init") + 1] == str(run)
    assert f"--distillation.teacher.init_args.runs=[{made.out / 'runs' / 'teacher'}]" in student


def test_a_student_may_have_several_teachers(bench, ended):
    bench.config["models"] = MODELS | {"student": MODELS["student"] | {"teacher": "teacher mobile"}}
    assert bench.run() == 0
    runs = ",".join(str(bench.out / "runs" / name) for name in ("teacher", "mobile"))
    students = [call for call in bench.calls() if "configs/densenet32_kd.yaml" in call]
    assert [f"--distillation.teacher.init_args.runs=[{runs}]" in call for call in students] == [True]
    bench.config["models"]["student"]["teacher"] = "teacher nobody"
    assert "model student: teacher is nobody; allowed are the models above it" in ended(bench.run(), 2).err


def test_a_changed_configuration_trains_anew_under_a_new_name(bench, tmp_path, capsys):
    """The model's own steps and those that come from it are done again; the others, and the old run, are left alone."""
    own = Path(shutil.copy("configs/densenet32_kd.yaml", tmp_path / "own.yaml"))
    bench.config["models"] = MODELS | {"student": {"config": str(own), "teacher": "teacher"}}
    bench.run()
    old = (bench.out / "runs" / "student" / "model.ckpt").read_bytes()
    own.write_text(own.read_text() + "\n# another\n")
    capsys.readouterr()
    assert bench.run("--fit_arguments=[]") == 0
    calls = bench.calls()
    assert bench.trained() == ["student-2"]
    assert (bench.out / "runs" / "student" / "model.ckpt").read_bytes() == old
    assert "configuration has changed" in capsys.readouterr().out
    assert not [call for call in calls if "mobile" in " ".join(call) and call[0] in ("export", "tools.predictions")]
    assert bench.rows()["student"]["run"] == "runs/student-2"
    bench.run()
    assert bench.calls() == []


def test_changed_arguments_reach_everything_that_depends_on_them(made):
    made.config["models"] = MODELS | {"mobile": MODELS["mobile"] | {"arguments": ["--seed=7"]}}
    assert made.run() == 0
    # the teacher needs nothing but the first one's manifest, which is as it was
    assert made.trained() == ["mobile-2", "qat-2"]


def test_another_commit_makes_everything_again_and_keeps_the_runs(bench, monkeypatch):
    bench.run("--only", "mobile")
    monkeypatch.setattr(study_runner, "describe_code", lambda: "another commit")
    assert bench.run("--only", "mobile") == 0
    assert modules(bench.calls()) == DONE_AGAIN
    assert {path.name for path in (bench.out / "runs").iterdir()} == {"mobile", "mobile-2"}


@pytest.mark.parametrize(
    ("damage", "said"), [(Path.unlink, "is gone"), (lambda file: file.write_text("another"), "is not what it made")]
)
def test_an_output_that_is_gone_or_changed_is_made_again(made, damage, said, capsys):
    damage(made.out / "exports" / "mobile" / "int8" / "model_int8.tflite")
    assert made.run() == 0
    assert names(made.calls()) == ["export"]  # to the same bytes: what comes after is still right
    assert said in capsys.readouterr().out


def test_every_file_is_measured_on_other_sources_too_and_again_when_they_change(bench, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/images.csv").write_text("path,class\n")
    given = ["--data.elsewhere", f"[{tmp_path / 'scans/images.csv'}]"]
    assert bench.run(*given) == 0
    measured = [call for call in bench.calls() if call[0] == "tools.predictions"]
    assert {tuple(call[-2:]) for call in measured} == {("--elsewhere", str(tmp_path / "scans/images.csv"))}
    (tmp_path / "scans/new.png").write_bytes(b"another image")
    study_runs.hash_images.cache_clear()
    assert bench.run(*given) == 0
    assert bench.calls() == measured


def test_changed_images_are_noticed(made):
    study_runs.hash_images.cache_clear()
    (made.out / "runs" / "mobile" / "phantoms" / "one.png").write_bytes(b"two")
    made.run()
    assert "tools.predictions" in names(made.calls())


def test_study_json_is_what_the_report_reads(made):
    assert [row.id for row in read_study(made.out).done] == [row[0] for row in ROWS]
    found = made.study()
    assert set(found) == {"format", "title", "created_from", "data", "classes", "rows", "order", "gradcam"}
    assert found["data"] == {
        "root": str(made.out / "runs" / "mobile" / "phantoms"), "split": "Testing", "images": IMAGES, "unseen": 4,
        "nearest_neighbour": {"all": 0.5, "unseen": 0.5}, "majority": 0.25, "differences": [],
    }  # fmt: skip
    assert found["order"] == [row[0] for row in ROWS]
    assert found["gradcam"] == {"row": "mobile", "file": "gradcam.png"}
    row = made.rows()["mobile_ptq"]
    assert (row["status"], row["float"], row["run"]) == ("done", "mobile", "runs/mobile")
    assert (row["file"], row["onnx_twin"]) == (
        "exports/mobile/int8/model_int8.tflite", "exports/mobile/int8/model_int8.onnx"
    )  # fmt: skip
    assert row["bytes"] == (made.out / row["file"]).stat().st_size
    assert row["checkpoint_bytes"] == 300
    assert row["parity"] == {"passed": True, "file": "sources/mobile/parity_int8.json", "entry": "model_int8.tflite"}
    assert row["abstention"] == {"temperature": 1.5, "threshold": 0.6}
    for path in (row["predictions"], row["latency"], *row["sources"].values()):
        assert (made.out / path).is_file()
    assert [command.split()[2] for command in row["commands"]] == [
        "brainq_torch.fit", "export", "tools.predictions", "tools.bench"
    ]  # fmt: skip
    latency = json.loads((made.out / row["latency"]).read_text())
    assert (latency["litert"]["median_ms"], latency["litert"]["p90_ms"], latency["litert"]["runs"]) == (1.5, 2.5, 6)
    fp16 = json.loads((made.out / made.rows()["mobile_fp16"]["latency"]).read_text())
    assert fp16["onnxruntime"] is None


def test_a_failing_step_leaves_the_rest_alone(bench, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN_FAIL", "densenet101_teacher")
    assert bench.run() == 1
    rows = bench.rows()
    assert {name for name, row in rows.items() if row["status"] == "not done"} == {"student", "student_w4a8"}
    reason = rows["student"]["reason"]
    assert "teacher, which it needs, is not there" in reason
    assert "made to fail" in reason
    assert rows["student"]["commands"][-1].startswith("python -m tools.study --config ")
    assert "report: " in capsys.readouterr().out
    monkeypatch.delenv("STAND_IN_FAIL")
    assert bench.run() == 0
    assert {row["status"] for row in bench.rows().values()} == {"done"}
    assert "mobile" not in bench.trained()


def test_a_failing_export_costs_its_own_rows_only(bench, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAIL", "--recipes int8 --out " + str(bench.out / "exports" / "mobile"))
    assert bench.run() == 1
    assert [name for name, row in bench.rows().items() if row["status"] == "not done"] == ["mobile_ptq"]
    assert "export_mobile_int8 ended with exit code 2: error: made to fail" in bench.rows()["mobile_ptq"]["reason"]


def test_a_file_that_fails_parity_is_reported_and_ends_in_1(bench, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN_PARITY", "model_w4a8.tflite")
    assert bench.run() == 1
    row = bench.rows()["student_w4a8"]
    assert (row["status"], row["parity"]["passed"]) == ("done", False)
    assert "FAILED parity" in capsys.readouterr().out


def test_rows_that_are_left_out_say_so(bench):
    assert bench.run("--only", "mobile", "mobile_fp16") == 0
    assert modules(bench.calls()) == ["brainq_torch.fit", *DONE_AGAIN[1:]]
    rows = bench.rows()
    assert [name for name, row in rows.items() if row["status"] == "done"] == ["mobile", "mobile_fp16"]
    assert rows["student"]["reason"] == "left out by --only"


def wait_until(found, seconds=60):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("hang", ["densenet101_teacher", "--recipes w4a8"])
def test_a_killed_study_goes_on_where_it_was(bench, hang):
    """In the middle of a training, and of an export: what was done is not done again, what was begun is resumed."""
    process = bench.start(STAND_IN_HANG=hang)
    wait_until(lambda: bench.calls_file.exists() and hang in bench.calls_file.read_text())
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = bench.calls()
    assert bench.run() == 0
    after = bench.calls()
    done_twice = [call for call in after if call in before]
    assert [hang in " ".join(call) for call in done_twice] == [True]
    if "teacher" in hang:
        assert "--resume" in done_twice[0]
        assert not (bench.out / "runs" / "teacher-2").exists()
    assert {row["status"] for row in bench.rows().values()} == {"done"}


def test_two_studies_do_not_share_a_folder(bench, monkeypatch, ended):
    monkeypatch.setattr(study_runner, "_LOCK_SECONDS", 0.2)
    process = bench.start(STAND_IN_HANG="quickstart")
    wait_until(bench.calls_file.exists)
    assert f"is being worked in by process {process.pid} on" in ended(bench.run(), 2).err
    process.kill()
    process.communicate()


def test_a_validation_part_that_may_have_been_trained_on_is_an_omission(tmp_path):
    (tmp_path / "metrics.json").write_text('{"validation_doubt": "val is drawn anew"}')
    state = SimpleNamespace(latency=tmp_path, model=SimpleNamespace(run=tmp_path))
    (found,) = _find_omissions(state, tmp_path)
    assert (found.reason, "--data.manifest" in found.command) == ("val is drawn anew", True)


def test_a_finished_run_serves_and_is_not_touched(made):
    given = made.give("mobile")
    files = {path: path.stat().st_mtime_ns for path in given.rglob("*")}
    shutil.rmtree(made.out)
    assert made.run("--models.mobile.run", given) == 0
    assert "mobile" not in made.trained()
    assert {path: path.stat().st_mtime_ns for path in given.rglob("*")} == files
    assert made.rows()["mobile"]["checkpoint_bytes"] == 300
    shutil.rmtree(given / "checkpoints")
    assert made.run("--models.mobile.run", given) == 0
    lacking = next(gap for gap in made.rows()["mobile"]["omitted"] if gap["what"] == "checkpoint")
    assert lacking["command"] == f"python -m brainq_torch.fit --config {given / 'config.yaml'} --out NEW_RUN"


def test_a_given_export_serves_as_long_as_it_is_of_the_run(made, capsys, ended):
    run, export = made.give("mobile"), made.give("mobile/float", "exports")
    shutil.rmtree(made.out)
    words = ["--models.mobile.run", run, "--models.mobile.export", export, "--only", "mobile", "mobile_ptq"]
    assert made.run(*words) == 0
    exported = [call for call in made.calls() if call[0] == "export"]
    assert [call[call.index("--recipes") + 1] for call in exported] == ["int8"]
    row = made.rows()["mobile"]
    assert row["file"].endswith("given/exports/model_fp32.tflite")
    assert [command.split()[2] for command in row["commands"]] == ["tools.predictions", "tools.bench"]
    assert "has no model_int8.onnx" in capsys.readouterr().out
    (run / "model.ckpt").write_text("trained on")
    assert "was made of another model.ckpt" in ended(made.run(*words)).out
    assert made.rows()["mobile"]["file"] == "exports/mobile/float/model_fp32.tflite"


def test_an_unfinished_run_is_not_gone_on_with(made):
    """Somebody may be training it now."""
    given = made.give("teacher")
    (given / "metrics.json").unlink()
    assert made.run("--models.teacher.run", given) == 1
    assert f"python -m brainq_torch.fit --resume --out {given}" in made.rows()["student"]["reason"]
    assert not (given / "metrics.json").exists()


@pytest.mark.parametrize(
    ("model", "old", "new", "said"),
    [
        ("student", "Testing0.png", "Testing9.png", "other Testing images than mobile"),
        ("student", ",glioma,", ",HGG,", "student tells HGG, meningioma, notumor, pituitary apart, mobile glioma, m"),
        ("mobile", ",Testing,", ",val,", "mobile has no Testing images, and a study measures every file on them"),
    ],
)
def test_runs_that_cannot_be_measured_alike_say_why(made, model, old, new, said, ended):
    given = made.give(model)
    manifest = given / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(old, new))
    assert said in "".join(ended(made.run(f"--models.{model}.run", given), 2 if model == "mobile" else 1))
    assert model == "mobile" or said in made.rows()["student"]["reason"]


def test_images_without_a_testing_part_are_refused_before_a_training(bench, tmp_path, ended):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").touch()
    assert "images has no Testing images" in ended(bench.run("--data.root", tmp_path / "images"), 2).err
    error = ended(bench.run("--out", tmp_path / "images" / "a" / "1.png"), 2).err
    assert "1.png/steps: Not a directory; name a place in a folder that you may read and write" in error
    assert bench.calls() == []


def test_a_study_is_of_the_classes_of_its_first_model(bench):
    assert bench.run("--only", "mobile") == 0
    given = bench.give("mobile")
    for word, other in (("glioma", "HGG"), ("meningioma", "LGG"), ("notumor", "Healthy"), ("pituitary", "Tumör 3")):
        text = (given / "manifest.csv").read_text(encoding="utf-8").replace(f",{word},", f",{other},")
        (given / "manifest.csv").write_text(text, encoding="utf-8")
    assert bench.run("--models.mobile.run", given) == 0
    assert bench.study()["classes"] == ["HGG", "Healthy", "LGG", "Tumör 3"]
    assert read_study(bench.out).about.classes == ("HGG", "Healthy", "LGG", "Tumör 3")


def test_runs_handled_otherwise_are_told_apart(made):
    given = made.give("student")
    (given / "config.yaml").write_text("data: {size: 48, fit: stretch, augmentation: {flip: 0.5, noise: 0.0}}\n")
    lines = (given / "manifest.csv").read_text().splitlines()
    swapped = [line.replace(",Training,", ",val,") if "Training0" in line else line for line in lines]
    swapped = [line.replace(",val,", ",Training,") if "val0" in line else line for line in swapped]
    (given / "manifest.csv").write_text("\n".join(swapped) + "\n")
    assert made.run("--models.student.run", given) == 0
    parts, handling = made.study()["data"]["differences"]
    assert parts.startswith("student: 2 images train or validate otherwise than for mobile")
    assert handling == (
        "student: other data handling than mobile: augmentation.flip 0.5 instead of off, size 48 instead of 32"
    )


BAD = [
    ({"rows": []}, "has no rows"),
    ({"models": MODELS | {"none": {}}}, "neither config"),
    ({"models": {"Mobile-1": {"config": "configs/quickstart.yaml"}}}, "no folder name"),
    ({"models": MODELS | {"mobile": {"config": "configs/absent.yaml"}}}, "configs/absent.yaml is no file"),
    ({"models": {"qat": MODELS["qat"], "mobile": MODELS["mobile"]}}, "allowed are the models above it: none"),
    ({"models": MODELS | {"mobile": MODELS["mobile"] | {"export": "x"}}}, "export without run"),
    ({"rows": [{"id": "a", "family": "A", "recipe": "r", "model": "absent", "export": "fp32"}]}, "absent is no model"),
    ({"rows": [{"id": "a", "family": "A", "recipe": "r", "model": "mobile", "export": "int7"}]}, "int7 is no recipe"),
    ({"rows": [{"id": "a", "family": "A", "recipe": "r", "model": "mobile", "export": "int8"}]}, "has 0 rows with"),
    ({"rows": [dict(zip(KEYS, ROWS[0], strict=True))] * 2}, "each id once"),
    ({"gradcam": "absent"}, "gradcam names absent"),
    ({"latency": {"rounds": -1}}, "rounds from 0"),
    ({"latency": {"calls": 10**9}}, "latency.calls is 1000000000; allowed are at most 100000"),
    ({"data": {"class_path": "this.ImageSource"}}, "Importing 'this.ImageSource' is not allowed"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_a_wrong_configuration_is_refused(bench, ended, change, message):
    bench.config |= change
    assert message in ended(bench.run(), 2).err
    assert bench.calls() == []


@pytest.mark.parametrize("change", [{"colour": 1}, {"models": {"mobile": {"confg": "x"}}}, {"data": {"rot": "x"}}])
def test_unknown_keys_are_refused(bench, stopped, change):
    bench.config |= change
    error = stopped(main, bench.words()).err
    assert "not accepted" in error or "colour" in error or "rot" in error


def test_a_missing_folder_of_images_is_named(bench, ended):
    for words, flag in (("absent", "root"), ("[absent]", "elsewhere")):
        error = ended(bench.run(f"--data.{flag}", words), 2).err
        assert f"absent, images of the study, is not there; name another with --data.{flag}" in error
    assert bench.calls() == []


@pytest.mark.slow
def test_real_commands_on_a_real_run(bench, tiny_run, tiny_export, phantoms, monkeypatch):
    """All but the report and the Grad-CAM, which have tests of their own."""
    monkeypatch.setattr(study_runner, "run_logged", run_logged)
    monkeypatch.setenv("STAND_IN_ONLY", "tools.report tools.gradcam")
    bench.config["latency"] = {"rounds": 1, "calls": 2}
    given = ["--models.mobile.run", tiny_run, "--models.mobile.export", tiny_export, "--data.root", phantoms]
    assert bench.run(*given, "--only", "mobile", "mobile_fp16") == 0
    row = bench.rows()["mobile_fp16"]
    assert row["parity"]["passed"] is True
    with np.load(bench.out / row["predictions"]) as arrays:
        assert arrays["logits"].shape == (12, 4)
        assert len(arrays["val_logits"]) > 0
    latency = json.loads((bench.out / row["latency"]).read_text())
    assert 0 < latency["litert"]["median_ms"] <= latency["litert"]["p90_ms"]


@pytest.mark.parametrize(
    "junk", ["", "[]", "5", '{"artefacts": 5}', '{"run": {"checkpoint_sha256": 1}, "artefacts": [1]}']
)
def test_a_parity_report_that_holds_something_else_is_no_export(tmp_path, junk):
    (tmp_path / "parity.json").write_text(junk)
    assert f"{tmp_path} is no export" in study_runs.find_lacking(tmp_path, tmp_path, ["fp32"])
    with pytest.raises(study_runner.StepFailed, match=r"parity\.json cannot be read as far as 'passed' of 'a\.tflite'"):
        study_runs.read_entry(tmp_path / "parity.json", "artefacts", "a.tflite", "passed")


@pytest.mark.parametrize("junk", ["", "[]", '{"leakage": [1]}', '{"leakage": {"Testing": {"majority": 1}}}'])
def test_metrics_that_hold_something_else_are_named(tmp_path, junk):
    (tmp_path / "metrics.json").write_text(junk)
    with pytest.raises(study_runner.StepFailed, match=r"metrics\.json"):
        study_table.read_baselines(tmp_path)
