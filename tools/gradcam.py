"""Show where a float network looks: ``python -m tools.gradcam RUN --data DIR --out F.png``.

Grad-CAM, Selvaraju et al. 2017 (https://arxiv.org/abs/1610.02391), on the last convolutional features.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from brainq_torch.data.dataset.balanced import take_in_turn
from brainq_torch.data.limits import MOST, whole_number
from brainq_torch.data.pixels import scale_pixels
from brainq_torch.evaluation.figure import save_figure
from brainq_torch.run import Run, load_run
from brainq_torch.series.kept_file import require_places
from export.run.runners import load_runner, run_named
from tools.shared.command import CommandError, add_data, add_threads, as_main, seed_number
from tools.shared.images import choose_known, class_order, decode_images, labels_of

IMAGES = 8
_COLOURS = matplotlib.colormaps["inferno"]
_OPACITY = 0.75  # of the map where it is strongest


@dataclass(frozen=True)
class Case:
    """One image that is shown.

    image: (s, s) uint8, as the model saw it. activation: (s, s), 0 to 1, for the answer.
    """

    path: str
    label: str
    answer: str
    probability: float
    image: NDArray[np.uint8]
    activation: NDArray[np.float32]

    @property
    def right(self) -> bool:
        """Whether the answer is the label."""
        return self.label == self.answer


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder of a float network")
    add_data(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the picture (PNG), replacing FILE")
    words = "show K, half of them wrong ones (default: %(default)s)"
    parser.add_argument("--images", type=whole_number(2, MOST), default=IMAGES, metavar="K", help=words)
    parser.add_argument("--seed", type=seed_number, default=0, help="of the draw (default: %(default)s)")
    add_threads(parser)


def _gradcam(options: argparse.Namespace) -> int:
    require_places(options, options.out)
    run = load_run(options.run)
    if run.quantization is not None:
        raise CommandError(f"{options.run} is a quantized run; give the float run that it was made from")
    runner = load_runner(options.run, options.threads)
    _, folder = choose_known(options.run, runner, Path(options.data), options.split, options.manifest)
    order = class_order(options.run, runner, folder.classes)
    readable, pixels = decode_images(folder, runner.pixels)
    labels = labels_of(readable)
    print(f"{options.run}: running {len(pixels)} images", file=sys.stderr, flush=True)
    paths = [record.path for record in readable.records]
    logits = run_named(runner, pixels, paths)[:, order]
    chosen = choose_cases(labels, logits.argmax(axis=1), options.images, options.seed)
    images = [(paths[image], folder.classes[labels[image]]) for image in chosen]
    cases = _explain(run, [run.classes[place] for place in order], images, logits[chosen], pixels[chosen])
    plot_cases(cases, options.out)
    for case in cases:
        print(f"{case.path}: label {case.label}, answer {case.answer} ({case.probability:.3f})")
    return 0


def choose_cases(labels: NDArray[np.int64], answers: NDArray[np.int64], count: int, seed: int) -> list[int]:
    """Draw up to half of ``count`` images with a right answer, then as many with a wrong one, classes in turn.

    Where there are fewer wrong ones, all of them are taken.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for right in (True, False):
        fitting = [int(image) for image in shuffled if (labels[image] == answers[image]) == right]
        queues = [[image for image in fitting if labels[image] == label] for label in np.unique(labels)]
        chosen += take_in_turn(queues, count // 2)
    return chosen


def class_activation_map(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return what speaks for each image's target: (N, H, W) float32, 0 to 1.

    The network needs ``features``, whose output is weighted by the mean gradient of the target's logit, summed over
    channels, and cut at 0 (equations 1 and 2). A map that is positive nowhere is 0 everywhere; others are scaled to a
    largest value of 1.

    images: (N, 1, H, W) float32. targets: (N,) indices of logits.
    """
    kept: list[Tensor] = []
    hook = model.get_submodule("features").register_forward_hook(lambda *call: kept.append(call[2]))
    with hook, torch.enable_grad():
        logits = model(images.clone().requires_grad_())
        wanted = logits.gather(1, targets[:, None]).sum()
        (gradient,) = torch.autograd.grad(wanted, kept)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    activation = torch.relu((weights * kept[0].detach()).sum(dim=1, keepdim=True))
    large = nn.functional.interpolate(activation, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    strongest = large.amax(dim=(1, 2), keepdim=True)
    return large / torch.where(strongest > 0, strongest, torch.ones_like(strongest))


def plot_cases(cases: Sequence[Case], path: str | Path) -> None:
    """Draw each image beside its map: right answers on the left, wrong ones on the right. Replaces ``path`` (PNG)."""
    sides = {"right answers": [case for case in cases if case.right]}
    sides["wrong answers"] = [case for case in cases if not case.right]
    rows = max(map(len, sides.values()))
    figure = Figure(figsize=(8.0, 0.5 + 2.35 * rows), dpi=110, layout="constrained")
    parts: Any = figure.subfigures(1, 2)
    for part, (title, side) in zip(parts, sides.items(), strict=True):
        part.suptitle(title if side else f"no {title}", fontsize=12)
        panels = part.subplots(rows, 2, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for (left, right), case in zip(panels, side, strict=False):
            _draw_case(left, right, case)
    save_figure(figure, path)


def _draw_case(left: Axes, right: Axes, case: Case) -> None:
    left.imshow(case.image, cmap="gray", vmin=0, vmax=255)
    left.set_title(f"label {case.label}", fontsize=10)
    coloured = _COLOURS(case.activation)
    coloured[..., 3] = _OPACITY * case.activation
    right.imshow(case.image, cmap="gray", vmin=0, vmax=255)
    right.imshow(coloured)
    right.set_title(f"{case.answer} {case.probability:.2f}", fontsize=10, color="black" if case.right else "#a1121b")


def _explain(
    run: Run,
    names: Sequence[str],
    images: Sequence[tuple[str, str]],
    logits: NDArray[np.float32],
    pixels: NDArray[np.uint8],
) -> list[Case]:
    """Return the chosen images with their maps.

    images: path and label of each. logits: (N, C) in the order of ``names``. pixels: (N, s, s).
    """
    answers = [names[answer] for answer in logits.argmax(axis=1)]
    probabilities = torch.softmax(torch.from_numpy(logits), 1).amax(1).tolist()
    targets = torch.tensor([run.classes.index(answer) for answer in answers])
    maps = class_activation_map(run.model, torch.from_numpy(scale_pixels(pixels)), targets).numpy()
    return [
        Case(path, label, answer, *rest)
        for (path, label), answer, *rest in zip(images, answers, probabilities, pixels, maps, strict=True)
    ]


main = as_main(_add_words, _gradcam)

if __name__ == "__main__":
    sys.exit(main())
