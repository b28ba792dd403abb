"""Everything that can be said of one file: counted, estimated by vela, measured in TFLite-Micro, and judged."""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from brainq_torch.data.synthesis.phantom import phantom_images
from tools.edge.devices import Fit, fit_devices
from tools.edge.ethos_u import ACCELERATORS, STRATEGIES, Estimate, estimate
from tools.edge.layer_cost import ModelCost
from tools.edge.not_done import NotDone
from tools.edge.tflm import TflmRun, input_side, run_tflm

NOT_ASKED = NotDone("--static: nothing was run")


@dataclass(frozen=True)
class EdgeReport:
    """One file: counted, estimated, measured, and judged."""

    cost: ModelCost
    ethos_u: tuple[Estimate, ...] | NotDone
    tflm: TflmRun | NotDone
    fits: tuple[Fit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        npu = self.ethos_u.to_json() if isinstance(self.ethos_u, NotDone) else [e.to_json() for e in self.ethos_u]
        fits = [asdict(fit) for fit in self.fits]
        return {"cost": self.cost.to_json(), "ethos_u": npu, "tflite_micro": self.tflm.to_json(), "devices": fits}


def examine(cost: ModelCost, vela: str | None, python: str, images: int, run: bool = True) -> EdgeReport:
    """Estimate, measure and judge one counted file; without ``run``, nothing is run.

    vela: its program, None where there is none. python: one that may have tflite-micro. images: how many phantoms.
    """
    if not run:
        return EdgeReport(cost, NOT_ASKED, NOT_ASKED, fit_devices(cost, NOT_ASKED, NOT_ASKED))
    path = Path(cost.file)
    estimates = _estimate_all(path, cost.kind, vela)
    pixels, _ = phantom_images(images, input_side(path), 0)
    tflm = run_tflm(path, pixels, cost.peak.live_bytes, python)
    return EdgeReport(cost, estimates, tflm, fit_devices(cost, estimates, tflm))


def _estimate_all(path: Path, kind: str, vela: str | None) -> tuple[Estimate, ...] | NotDone:
    """Return the estimates for every accelerator and strategy, or why there is none."""
    found = []
    for accelerator, strategy in product(ACCELERATORS, STRATEGIES):
        one = estimate(path, kind, accelerator, strategy, vela)
        if isinstance(one, NotDone):
            return one
        found.append(one)
    return tuple(found)
