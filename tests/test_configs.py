import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from brainq_torch.fit import main, make_parser

CONFIGS = sorted(Path("configs").rglob("*.yaml"))


def test_every_configuration_is_known():
    assert {path.name for path in CONFIGS} == {
        "quickstart.yaml",
        "mobilenetv2.yaml",
        "mobilenetv2_qat.yaml",
        "mobilenetv2_w4_qat.yaml",
        "mobilenetv2_kd.yaml",
        "robust_mobilenetv2.yaml",
        "robust_128.yaml",
        "densenet101_teacher.yaml",
        "densenet32_alone.yaml",
        "densenet32_kd.yaml",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_and_length(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    header = [line for line in lines if line.startswith("#")]
    assert any("python -m brainq_torch.fit" in line for line in header)
    assert any("minute" in line for line in header)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_against_the_signatures(path):
    config = make_parser().parse_args(["--config", str(path)])
    assert config.stages
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
    if "kd" in path.stem:
        start.append(f"--distillation.teacher.init_args.runs=[{tiny_run}]")
    short = [{**stage, "epochs": 1} for stage in yaml.safe_load(path.read_text())["stages"]]
    more = [f"--data.root={phantoms}", f"--out={tmp_path / 'run'}", "--trainer.limit_train_batches=1"]
    assert main(["--config", str(path), *words, *start, *more, f"--stages={json.dumps(short)}"]) == 0
    assert (tmp_path / "run" / "metrics.json").exists()
