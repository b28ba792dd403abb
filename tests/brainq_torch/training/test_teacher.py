"""The frozen teacher: frozen, owned by nobody, averaged, refused when it does not fit; its logits from disk."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.dataset.manifest import ManifestRow, read_manifest, write_manifest
from brainq_torch.data.decoded import Batch
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.fit import main
from brainq_torch.models import build_model
from brainq_torch.models.pretrained import PretrainedError
from brainq_torch.run import RunError
from brainq_torch.run_files import CHECKPOINT, MANIFEST
from brainq_torch.training.classifier import Classifier, CrossEntropy
from brainq_torch.training.distill import Distillation, SoftTargets
from brainq_torch.training.stages import Stage
from brainq_torch.training.teacher import CachedTeacher, RunTeacher, TimmTeacher, ViewTeacher
from brainq_torch.training.teacher_logits import TeacherLogits, TeacherLogitsError
from brainq_torch.training.teacher_outputs import FeatureTaps
from tests.support import narrow_run
from tests.support.narrow_run import NARROW

SIZE = 32
TEACHERS, TERMS = "brainq_torch.training.teacher.", "brainq_torch.training.distill."
SOFT = f"--distillation.terms=[{{class_path: {TERMS}SoftTargets}}]"


def write_run(folder, seed):
    torch.manual_seed(seed)
    model = build_model("mobilenetv2", **NARROW)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(16, 1, SIZE, SIZE))  # statistics that keep the logits from fading away
    for norm in norms:
        norm.momentum = 0.1
    narrow_run.write_run(folder, model)
    return model.eval().to(memory_format=torch.channels_last)  # as the teacher, so that sums come in one order


def train(out, epochs, *words, code=0):
    """Train a tiny student on phantoms, as the command does."""
    about = [f"--data.size={SIZE}", "--data.phantoms_per_class=10", "--data.batch_size=8", f"--out={out}"]
    about += ["--model.arguments={width_mult: 0.1, dropout: 0.0}", f"--stages=[{{name: all, epochs: {epochs}}}]"]
    assert main([*about, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *words]) == code


def make_batch(count=4):
    images = torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return Batch(images, torch.arange(count) % 4, torch.arange(count))


@pytest.fixture
def data(tmp_path):
    return SimpleNamespace(pixels=PixelSpec(SIZE), out=tmp_path, classes=CLASSES)


@torch.no_grad()
def test_ensemble_of_runs_averages_logits(tmp_path, data):
    models = [write_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    batch = make_batch()
    outputs = RunTeacher([str(tmp_path / "a"), str(tmp_path / "b")]).load(data, [])(batch)
    expected = (models[0](batch.images) + models[1](batch.images)) / 2
    torch.testing.assert_close(outputs.logits, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(models[0](batch.images), models[1](batch.images), atol=0.01)
    assert outputs.features == {}


def test_teacher_reaches_no_optimizer_checkpoint_or_train_mode(tmp_path, data):
    write_run(tmp_path / "teacher", 0)
    student = build_model("mobilenetv2", **NARROW)
    hard = CrossEntropy().bind(torch.ones(4))
    classifier = Classifier(student, Stage("all", 1))
    distillation = Distillation(RunTeacher([str(tmp_path / "teacher")]), [SoftTargets()], 0.5)
    classifier.loss = distillation.bind(hard, student, data)
    (teacher,) = classifier.loss.teacher.models
    before = copy.deepcopy(teacher.state_dict())

    classifier.train()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    batch = make_batch(8)
    classifier.loss(classifier(batch.images), batch).backward()
    optimizer.step()

    of_student = {id(parameter) for parameter in student.parameters()}
    assert {id(parameter) for parameter in classifier.parameters()} == of_student
    assert not any("teacher" in name or "loss" in name.split(".")[0] for name in classifier.state_dict())
    assert len(classifier.state_dict()) == len(student.state_dict())
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert copy.deepcopy(classifier).loss.teacher is classifier.loss.teacher


def test_a_run_distils_and_keeps_the_student_alone(tmp_path):
    write_run(tmp_path / "teacher", 0)
    layers = {"student_layers": ["features.3"], "teacher_layers": ["features.3"]}
    teacher = {"class_path": TEACHERS + "RunTeacher", "init_args": {"runs": [str(tmp_path / "teacher")]}}
    attention = {"class_path": TERMS + "AttentionTransfer", "init_args": layers}
    distillation = {"teacher": teacher, "terms": [{"class_path": TERMS + "SoftTargets"}, attention], "alpha": 0.5}
    train(tmp_path / "student", 2, f"--distillation={distillation}")
    written = yaml.safe_load((tmp_path / "student" / "config.yaml").read_text())["distillation"]
    assert written["teacher"]["init_args"] == {"runs": [str(tmp_path / "teacher")]}
    assert [term["init_args"] for term in written["terms"]] == [
        {"temperature": 4.0, "weight": 1.0}, layers | {"weight": 1.0},
    ]  # fmt: skip
    size = sum(value.numel() for value in build_model("mobilenetv2", **NARROW).state_dict().values())
    saved = torch.load(tmp_path / "student" / CHECKPOINT, weights_only=True)
    assert sum(value.numel() for value in saved["state_dict"].values()) == size
    (last,) = (tmp_path / "student" / "checkpoints").rglob("last.ckpt")
    lightning = torch.load(last, weights_only=True)
    model_entries = [name for name in lightning["state_dict"] if name.startswith("model.")]
    assert sum(lightning["state_dict"][name].numel() for name in model_entries) == size
    owners = {name.split(".")[0] for name in lightning["state_dict"]}
    assert owners <= {"model", "val_loss", "val_accuracy", "val_macro_f1"}
    trained = len(list(build_model("mobilenetv2", **NARROW).parameters()))
    assert len(lightning["optimizer_states"][0]["state"]) == trained


def test_alpha_zero_run_equals_the_run_without_a_teacher(tmp_path, capsys):
    words = [f"--distillation.teacher={TEACHERS}RunTeacher", "--distillation.teacher.runs=[absent]", SOFT]
    weights = []
    for name, more in (("plain", []), ("zero", [*words, "--distillation.alpha=0.0"])):
        train(tmp_path / name, 1, *more)
        weights.append(torch.load(tmp_path / name / CHECKPOINT, weights_only=True)["state_dict"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # A share of it, and the missing teacher is one line.
    train(tmp_path / "more", 1, *words, "--distillation.alpha=0.1", code=2)
    assert "error: absent is no folder" in capsys.readouterr().err


@torch.no_grad()
def test_a_run_at_another_size_sees_the_students_images_resized(tmp_path, data):
    models = [write_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    images = make_batch(16).images.view(4, 1, 2 * SIZE, 2 * SIZE)
    student = SimpleNamespace(pixels=PixelSpec(2 * SIZE), out=tmp_path, classes=CLASSES)
    outputs = RunTeacher([str(tmp_path / "a"), str(tmp_path / "b")]).load(student, [])(
        make_batch()._replace(images=images)
    )
    resized = torch.nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    expected = (models[0](resized) + models[1](resized)) / 2
    torch.testing.assert_close(outputs.logits, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(outputs.logits, (models[0](images) + models[1](images)) / 2, atol=0.01)


def test_run_on_images_cut_out_otherwise_is_refused(tmp_path):
    write_run(tmp_path / "teacher", 0)
    other = SimpleNamespace(pixels=PixelSpec(SIZE, "head"), out=tmp_path, classes=CLASSES)
    with pytest.raises(ValueError, match=r"data.fit stretch.*student sees head.*cached logits"):
        RunTeacher([str(tmp_path / "teacher")]).load(other, [])
    with pytest.raises(RunError, match="no folder"):
        RunTeacher([str(tmp_path / "absent")]).load(other, [])
    with pytest.raises(ValueError, match="one network or more"):
        RunTeacher([]).load(other, [])


@torch.no_grad()
def test_timm_network_as_teacher(tmp_path, data):
    timm = pytest.importorskip("timm", reason="timm is the optional extra `timm`")
    name = "test_resnet"
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=1, num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    teacher = TimmTeacher(name, str(tmp_path / "weights.pt")).load(data, ["layer1"])
    batch = make_batch()
    outputs = teacher(batch)
    torch.testing.assert_close(outputs.logits, model(batch.images), atol=1e-5, rtol=1e-5)
    assert set(outputs.features) == {"layer1"}

    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again = TimmTeacher(name, str(tmp_path / "weights.safetensors")).load(data, [])
    assert torch.equal(again(batch).logits, outputs.logits)

    rgb = timm.create_model(name, num_classes=4)
    torch.save(rgb.state_dict(), tmp_path / "rgb.pt")
    with pytest.raises(RunError, match="another architecture"):
        TimmTeacher(name, str(tmp_path / "rgb.pt")).load(data, [])
    with pytest.raises(PretrainedError, match="is no file"):
        TimmTeacher(name, str(tmp_path / "absent.pt")).load(data, [])


def test_taps_go_with_their_owner():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    taps = FeatureTaps(model, ["0", "0"])
    output = model(torch.ones(1, 2))
    assert torch.equal(taps.take()["0"].relu(), output)
    with pytest.raises(RuntimeError, match="gave no output"):
        taps.take()
    del taps
    assert len(model[0]._forward_hooks) == 0


ROWS = [
    ManifestRow("Training/a.png", "glioma", "Training", "", "1" * 64),
    ManifestRow("Training/b.png", "notumor", "val", "", "2" * 64),
    ManifestRow("Training/c.png", "pituitary", "Training", "", "3" * 64),
]


def test_cached_logits_come_by_manifest_row_and_none_may_be_lacking(tmp_path, data):
    write_manifest(tmp_path / MANIFEST, ROWS)
    logits = TeacherLogits(tmp_path / "logits.jsonl")
    logits.add(ROWS[2:], "t", torch.tensor([[3.0, 0, 0, 0]]))
    with pytest.raises(TeacherLogitsError, match=r"lacks 1 of 2 images, first Training/a\.png"):
        CachedTeacher(str(tmp_path / "logits.jsonl")).load(data, [])
    logits.add(ROWS[:1], "t", torch.tensor([[1.0, 0, 0, 0]]))
    teacher = CachedTeacher(str(tmp_path / "logits.jsonl")).load(data, [])
    batch = Batch(torch.zeros(3, 1, 8, 8), torch.zeros(3), torch.tensor([2, 0, 2]))
    assert teacher(batch).logits[:, 0].tolist() == [3.0, 1.0, 3.0]
    # A validation image has no logits here, and must not silently get some.
    assert teacher(batch._replace(rows=torch.tensor([1]))).logits.isnan().all()
    with pytest.raises(ValueError, match="RunTeacher"):
        CachedTeacher(str(tmp_path / "logits.jsonl")).load(data, ["features"])


@pytest.fixture
def viewed(data):
    """Two views of four images, of which the second is not trained on."""
    data.views, rows = 2, np.array([0, 2, 3])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, SIZE, SIZE), dtype=np.uint8)
    data.kept_views, data.datasets = pixels, {"Training": SimpleNamespace(rows=rows)}
    return data


@torch.no_grad()
def test_a_teacher_of_views_says_what_it_would_say_now_and_is_asked_once(tmp_path, viewed, monkeypatch):
    write_run(tmp_path / "run", 0)
    teacher = ViewTeacher([str(tmp_path / "run")], str(tmp_path / "logits.jsonl"))
    kept = teacher.load(viewed, [])
    now = RunTeacher([str(tmp_path / "run")]).load(viewed, [])
    for view in (0, 1):
        rows = torch.tensor([3, 0])
        images = (torch.from_numpy(viewed.kept_views[view, rows.numpy()]).float().unsqueeze(1) - 128) / 128
        batch = Batch(images, torch.zeros(2), rows, view)
        # 1e-6: batches of another size sum in another order
        torch.testing.assert_close(kept(batch).logits, now(batch).logits, atol=1e-6, rtol=1e-5)
    assert kept(batch._replace(rows=torch.tensor([1]))).logits.isnan().all()

    lines = (tmp_path / "logits.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3
    (tmp_path / "logits.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])  # killed in its fourth answer
    again = teacher.load(viewed, [])
    torch.testing.assert_close(again.table, kept.table, atol=1e-6, rtol=1e-5, equal_nan=True)
    monkeypatch.setattr("brainq_torch.training.teacher_outputs.FrozenTeacher.__call__", None)
    assert torch.equal(teacher.load(viewed, []).table.nan_to_num(), again.table.nan_to_num())


def test_answers_to_other_views_or_of_another_teacher_are_refused(tmp_path, viewed):
    for seed, name in enumerate("ab"):
        write_run(tmp_path / name, seed)
    file = str(tmp_path / "logits.jsonl")
    ViewTeacher([str(tmp_path / "a")], file).load(viewed, [])
    with pytest.raises(TeacherLogitsError, match="of teacher"):
        ViewTeacher([str(tmp_path / "b")], file).load(viewed, [])
    viewed.kept_views[1, 2, 0, 0] ^= 1
    with pytest.raises(TeacherLogitsError, match="another image"):
        ViewTeacher([str(tmp_path / "a")], file).load(viewed, [])
    with pytest.raises(ValueError, match="RunTeacher"):
        ViewTeacher([str(tmp_path / "a")], file).load(viewed, ["features"])
    viewed.views = 0
    with pytest.raises(ValueError, match=r"give data\.views"):
        ViewTeacher([str(tmp_path / "a")], file).load(viewed, [])


def test_a_run_with_kept_views_distils_and_leaves_none_behind(tmp_path):
    write_run(tmp_path / "teacher", 0)
    train(
        tmp_path / "student", 3, "--data.views=2", SOFT, f"--distillation.teacher={TEACHERS}ViewTeacher",
        f"--distillation.teacher.runs=[{tmp_path / 'teacher'}]",
        f"--distillation.teacher.file={tmp_path / 'answers.jsonl'}",
    )  # fmt: skip
    training = sum(row.split == "Training" for row in read_manifest(tmp_path / "student" / MANIFEST))
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1 + 2 * training
    assert not (tmp_path / "student" / "views.npy").exists()
