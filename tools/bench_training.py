"""Compare training speed with a plain torchvision loop, in one run: ``python -m tools.bench_training --data DIR``."""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from brainq_torch.fit import main as fit
from brainq_torch.provenance import describe_environment
from brainq_torch.run_files import write_json
from brainq_torch.training.log import read_log
from tools.command import CommandError, add_json, as_main, check_targets, positive

BATCH = 32
SIZE = 224
PER_CLASS = 100


def copy_subset(data: Path, target: Path) -> None:
    """Copy the first ``PER_CLASS`` training images of each class, so that both sides start quickly."""
    for folder in sorted(path for path in (data / "Training").iterdir() if path.is_dir()):
        (target / "Training" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:PER_CLASS]:
            shutil.copy(image, target / "Training" / folder.name)


def time_plain(training: Path, steps: int) -> float:
    """Return images/s of the loop of torchvision's tutorials: files decoded each epoch, float32, eager, NCHW."""
    prepare = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(15, translate=(0.05, 0.05), scale=(0.9, 1.1)),
            transforms.ColorJitter(brightness=0.1, contrast=0.2),
            transforms.ToTensor(),
        ]
    )
    loader = DataLoader(ImageFolder(str(training), prepare), BATCH, shuffle=True)
    model = models.mobilenet_v2(num_classes=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss_function = nn.CrossEntropyLoss()
    start = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == 1:  # the first step allocates
            start = time.perf_counter()
        optimizer.zero_grad()
        loss_function(model(images), labels).backward()
        optimizer.step()
        if step == steps:
            break
    return steps * BATCH / (time.perf_counter() - start)


def time_ours(data: Path, steps: int, precision: str) -> dict[str, float]:
    """Return images/s and the share of time spent on data of the second epoch of a real run of ``fit``."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", "configs/mobilenetv2.yaml", "--data.root", str(data), "--out", f"{folder}/run"]
        words += ["--model.pretrained=none", "--stages=[{name: all, epochs: 2, rate: 1e-4}]"]
        words += [f"--trainer.precision={precision}", "--trainer.enable_progress_bar=false"]
        words += [f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=1"]
        if fit(words) != 0:
            raise RuntimeError("the training to be timed failed; see above")
        row = read_log(Path(folder) / "run" / "log.csv")[1]
    return {"images_per_second": row["images_per_second"], "data_share": row["data_seconds"] / row["seconds"]}


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_training", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with Training/{class}")
    parser.add_argument("--steps", type=int, default=9, choices=range(1, 10), help="timed steps a round, 1 to 9")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds, all variants taking turns")
    add_json(parser)
    return parser


def _bench(options: argparse.Namespace) -> int:
    check_targets(options.json)
    if not (options.data / "Training").is_dir():
        raise CommandError(f"{options.data} has no folder Training; give the folder above it")
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        copy_subset(options.data, data)
        for _ in range(options.rounds):
            plain = time_plain(data / "Training", options.steps)
            ours = {precision: time_ours(data, options.steps, precision) for precision in ("32-true", "bf16-mixed")}
            rounds.append({"plain_images_per_second": plain, "ours": ours})
    result: dict[str, Any] = {"batch": BATCH, "size": SIZE, "steps": options.steps, "rounds": rounds}
    for precision in ("32-true", "bf16-mixed"):
        ratios = [one["ours"][precision]["images_per_second"] / one["plain_images_per_second"] for one in rounds]
        shares = [one["ours"][precision]["data_share"] for one in rounds]
        result[precision] = {"median_ratio": statistics.median(ratios), "median_data_share": statistics.median(shares)}
    result["environment"] = describe_environment()
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)
    return 0


main = as_main(make_parser, _bench)

if __name__ == "__main__":
    sys.exit(main())
