"""Compare training speed with plain loops, in one run: ``python -m tools.bench_training --data DIR``."""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from brainq_torch.models import build_model
from brainq_torch.provenance import describe_environment
from brainq_torch.training.log import read_log
from tools.shared.command import CommandError, add_json, as_main, positive, write_found

BATCH = 32
SIZE = 224
PER_CLASS = 100
ROOT = Path(__file__).parents[1]
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class PlainLoop:
    """A training loop of twenty lines: files decoded each epoch, no Lightning.

    make: makes the network. is_grey: whether it takes one channel. is_fast: channels last and bfloat16 instead of
    float32, NCHW. workers: loader processes.
    """

    make: Callable[[], nn.Module]
    is_grey: bool = False
    is_fast: bool = False
    workers: int = 0


LOOPS = {
    "plain": PlainLoop(lambda: models.mobilenet_v2(num_classes=4)),
    "fair": PlainLoop(lambda: build_model("mobilenetv2", 4), is_grey=True, is_fast=True),
}
"""Of torchvision's tutorials; the same as fast as the network that ``fit`` trains lets it be."""

if find_spec("timm"):
    LOOPS["timm"] = PlainLoop(
        lambda: import_module("timm").create_model("mobilenetv2_100", num_classes=4), is_fast=True, workers=2
    )


def copy_subset(data: Path, target: Path) -> None:
    """Copy the first ``PER_CLASS`` training images of each class, so that both sides start quickly."""
    for folder in sorted(path for path in (data / "Training").iterdir() if path.is_dir()):
        (target / "Training" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:PER_CLASS]:
            shutil.copy(image, target / "Training" / folder.name)


def time_plain(training: Path, steps: int, loop: PlainLoop) -> float:
    """Return a loop's images/s, its first step left out."""
    prepare = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(15, translate=(0.05, 0.05), scale=(0.9, 1.1)),
            transforms.ColorJitter(brightness=0.1, contrast=0.2),
            *([transforms.Grayscale()] if loop.is_grey else []),
            transforms.ToTensor(),
        ]
    )
    loader = DataLoader(ImageFolder(str(training), prepare), BATCH, shuffle=True, num_workers=loop.workers)
    layout = torch.channels_last if loop.is_fast else torch.contiguous_format
    model = loop.make().train().to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss_function = nn.CrossEntropyLoss()
    start = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == 1:  # the first step allocates
            start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=loop.is_fast):
            loss = loss_function(model(images.to(memory_format=layout)), labels)
        loss.backward()
        optimizer.step()
        if step == steps:
            break
    return steps * BATCH / (time.perf_counter() - start)


def time_ours(data: Path, steps: int, precision: str) -> dict[str, float]:
    """Return images/s and the share of time spent on data of the second epoch of the command ``fit``."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", "configs/mobilenetv2.yaml", "--data.root", str(data.absolute()), "--out", f"{folder}/run"]
        words += ["--data.classes=auto", "--model.pretrained=none", "--stages=[{name: all, epochs: 2, rate: 1e-4}]"]
        words += [f"--trainer.precision={precision}", "--trainer.enable_progress_bar=false"]
        words += [f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=1"]
        # A process of its own, as a user starts it: it keeps its memory (brainq_torch.allocator).
        if subprocess.run([sys.executable, "-m", "brainq_torch.fit", *words], cwd=ROOT).returncode:
            raise CommandError("the training to be timed failed; see above")
        row = read_log(Path(folder) / "run" / "log.csv")[1]
    return {"images_per_second": row["images_per_second"], "data_share": row["data_seconds"] / row["seconds"]}


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over the rounds; a ratio is the median of the rounds' ratios."""
    result: dict[str, Any] = {}
    for precision in PRECISIONS:
        speeds, shares = (
            [one["ours"][precision][key] for one in rounds] for key in ("images_per_second", "data_share")
        )
        ratios = {
            name: statistics.median(
                speed / one[f"{name}_images_per_second"] for speed, one in zip(speeds, rounds, strict=True)
            )
            for name in LOOPS
        }
        result[precision] = {
            "median_images_per_second": statistics.median(speeds),
            "median_ratio": ratios["plain"],
            "median_ratios": ratios,
            "median_data_share": statistics.median(shares),
        }
    for name in LOOPS:
        speed = statistics.median(one[f"{name}_images_per_second"] for one in rounds)
        result[name] = {"median_images_per_second": speed}
    return result


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with Training/{class}")
    parser.add_argument("--steps", type=int, default=9, choices=range(1, 10), help="timed steps a round, 1 to 9")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds, all variants taking turns")
    add_json(parser)


def _bench(options: argparse.Namespace) -> int:
    if not (options.data / "Training").is_dir():
        raise CommandError(f"{options.data} has no folder Training; give the folder above it")
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        copy_subset(options.data, data)
        for _ in range(options.rounds):
            times: dict[str, Any] = {
                f"{name}_images_per_second": time_plain(data / "Training", options.steps, loop)
                for name, loop in LOOPS.items()
            }
            ours = {precision: time_ours(data, options.steps, precision) for precision in PRECISIONS}
            rounds.append(times | {"ours": ours})
    result: dict[str, Any] = {"batch": BATCH, "size": SIZE, "steps": options.steps, "rounds": rounds}
    result |= summarise(rounds)
    result["environment"] = describe_environment()
    print(json.dumps(result, indent=2))
    write_found(options, result)
    return 0


main = as_main(_add_words, _bench)

if __name__ == "__main__":
    sys.exit(main())
