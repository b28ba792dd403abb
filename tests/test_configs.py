import json
from pathlib import Path

import pytest
import yaml

from brainq_torch.fit import main, make_parser
from brainq_torch.run_files import find_config
from tests.conftest import TINY
from tools.study import config as study_config
from tools.study.__main__ import main as study_main

STUDIES = sorted(Path("configs").rglob("study*.yaml"))
CONFIGS = [path for path in sorted(Path("configs").rglob("*.yaml")) if path not in STUDIES]


def test_every_configuration_is_known():
    assert {path.stem for path in CONFIGS} == {
        "quickstart", "adapt", "mobilenetv2", "mobilenetv2_qat", "mobilenetv2_w4_qat", "mobilenetv2_kd",
        "robust_1_128px", "robust_2_224px", "robust_3_long", "robust_4_settled", "robust_5_hospitals",
        "robust_6_average", "robust_7_whole", "robust_8_together", "robust_9_last_layer",
        "robust_10_made",
        "densenet101_teacher", "densenet32_alone", "densenet32_kd", "densenet32_kd_ensemble",
    }  # fmt: skip


def test_a_configuration_is_found_by_its_name_and_from_elsewhere(tmp_path, monkeypatch):
    ours = Path("configs/mobilenetv2.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert find_config("mobilenetv2") == find_config("configs/mobilenetv2.yaml") == ours
    assert find_config("quickstart") == ours.with_name("quickstart.yaml")
    assert find_config("lost") == Path("lost")
    (tmp_path / "mobilenetv2").write_text("seed: 1")
    assert find_config("mobilenetv2") == Path("mobilenetv2")


def test_every_study_is_known_and_found_by_its_name(ended):
    assert [path.name for path in STUDIES] == ["study.yaml", "study_160px.yaml", "study_quick.yaml"]
    for form in ("--config {}", "--config={}"):
        assert study_config.read_plan(form.format("study_quick").split()).config == str(STUDIES[2].resolve())
        said = ended(study_main(form.format("lost").split()), 2).err
        assert said.endswith("no configuration lost; give a YAML file, or a name: study, study_160px, study_quick\n")


@pytest.mark.parametrize("path", CONFIGS + STUDIES, ids=lambda path: path.stem)
def test_header_and_length(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= (80 if path in STUDIES else 60)
    header = [line for line in lines if line.startswith("#")]
    command = "tools.study" if path in STUDIES else "brainq_torch.fit"
    assert any(f"python -m {command}" in line for line in header)
    assert any("minute" in line for line in header)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_gives_its_trainings_words_that_they_know(path, tiny_run):
    plan = study_config.read_plan(["--config", str(path)])
    assert plan.out.parent == Path("runs")
    sizes = set()
    # The same network on fewer pixels, and a recipe that is about how images are handled.
    others = {row.model for row in plan.rows if row.family.endswith(" px") or row.family.startswith("robust")}
    for name, model in plan.models.items():
        words = [f"--init={tiny_run}"] if model.init else []
        words += [f"--distillation.teacher.init_args.runs=[{tiny_run}]"] if model.teacher else []
        config = make_parser().parse_args(["--config", model.config, *plan.fit_arguments, *model.arguments, *words])
        assert config.stages
        if name not in others:
            sizes.add((config.data.size, config.data.fit, config.data.val_fraction))
    assert len(sizes) == 1  # identical data handling
    recipes = {(row.family, row.export) for row in plan.rows}
    assert {("MobileNetV2", recipe) for recipe in ("fp32", "fp16", "int8", "w4a8")} < recipes
    assert {("DenseNet-32 distilled", recipe) for recipe in ("fp32", "int8", "w4a8")} < recipes


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_against_the_signatures(path):
    config = make_parser().parse_args(["--config", str(path)])
    assert config.stages or config.average
    assert Path(config.out).parent == Path("runs")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_a_step(path, phantoms, tmp_path, tiny_run):
    """Its own stages, losses and precision, on a tiny network and data, one batch an epoch and one epoch a stage."""
    words = [word for word in TINY if word not in ("--config", "configs/quickstart.yaml")]
    start = [f"--init={tiny_run}", "--qat.calibration_images=8"] if "qat" in path.stem else ["--model.pretrained=none"]
    if "densenet" in path.stem:
        words = [word for word in words if "width_mult" not in word]
        start.append("--model.arguments={block_config: [1, 1], growth_rate: 4, stem_channels: 8}")
    if "robust" in path.stem:  # phantoms of 32 pixels have no one-sided lesions to be found
        start.append("--data.counterfactual={share: 0.2, painted: 1, transplanted: 0, mirrored: 0, edited: 1}")
        start += ["--init=", "--data.manifest="]  # the step before is another configuration's
    if yaml.safe_load(path.read_text())["data"].get("sources"):
        start.append(f"--data.sources=[{{name: here, root: {phantoms}}}]")
    if "average" in yaml.safe_load(path.read_text()):
        start += [f"--average=[{tiny_run}, {tiny_run}]", "--data.counterfactual.share=0"]
    if "kd" in path.stem:
        start.append(f"--distillation.teacher.init_args.runs=[{tiny_run}]")
    if "ensemble" in path.stem:
        start += ["--init=", "--data.manifest=", f"--distillation.teacher.init_args.file={tmp_path / 'logits.jsonl'}"]
    short = [{**stage, "epochs": 1} for stage in yaml.safe_load(path.read_text())["stages"]]
    more = [f"--data.root={phantoms}", f"--out={tmp_path / 'run'}", "--trainer.limit_train_batches=1"]
    assert main(["--config", str(path), *words, *start, *more, f"--stages={json.dumps(short)}"]) == 0
    assert (tmp_path / "run" / "metrics.json").exists()
