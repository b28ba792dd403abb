"""Which of three classes of device a file fits: what it needs of flash and RAM against what the device has.

Limits are the makers' figures, each with its source. Needs are measured or estimated, and say which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.edge.ethos_u import MIB, Estimate
from tools.edge.layer_cost import ModelCost
from tools.edge.not_done import NotDone
from tools.edge.tflm import TflmRun

KIB = 1024


@dataclass(frozen=True)
class Device:
    """A device.

    flash_bytes: for model and program, None where it is a card or a chip of the board's choice. ram_bytes: all of it.
    block_bytes: the largest piece in one address range: an arena must lie in one. flash_reserve_bytes,
    ram_reserve_bytes: estimates of what program, engine, stack and system take.
    """

    name: str
    engine: str
    flash_bytes: int | None
    ram_bytes: int
    block_bytes: int
    flash_reserve_bytes: int
    ram_reserve_bytes: int
    source: str


RASPBERRY = Device(
    "Raspberry Pi Zero 2 W", "LiteRT", None, 512 * MIB, 512 * MIB, 0, 192 * MIB,
    "Raspberry Pi Zero 2 W product brief: 512 MB LPDDR2, the least of the 64-bit ones; storage is an SD card. Reserve "
    "(estimate): 128 MiB for the system, 64 MiB for Python, numpy and LiteRT (45 MB in results/mobilenetv2/bench.json)",
)  # fmt: skip
CORTEX_M7 = Device(
    "STM32H743 (Cortex-M7)", "TFLite-Micro", 2 * MIB, 1 * MIB, 512 * KIB, 128 * KIB, 32 * KIB,
    "ST datasheet DS12110: 2 MB flash, 1 MB RAM; reference manual RM0433: of that, the largest block is 512 KB of AXI "
    "SRAM. Reserve (estimate): 128 KiB flash for engine and program, 32 KiB RAM for stack and drivers",
)  # fmt: skip
ETHOS_U55 = Device(
    "Corstone-300 (Cortex-M55, Ethos-U55-128)", "TFLite-Micro + Ethos-U", None, 2 * MIB, 2 * MIB, 0, 64 * KIB,
    "Arm ml-embedded-evaluation-kit, memory_considerations.md: ISRAM0 and ISRAM1 of 1 MiB each, one behind the other; "
    "the model lies in flash or DDR of the board's choice. Reserve (estimate): 64 KiB RAM for engine, stack, drivers",
)  # fmt: skip
DEVICES = (RASPBERRY, CORTEX_M7, ETHOS_U55)
NPU = "Ethos-U55-128"
"""The accelerator of ``ETHOS_U55``, a key of ``ethos_u.ACCELERATORS``."""


@dataclass(frozen=True)
class Fit:
    """One file on one device.

    fits: None where that is not known. flash_bytes, ram_bytes: needed, reserves included, None where not known. basis:
    where the RAM figure comes from. reason: why not, or what is missing.
    """

    device: str
    fits: bool | None
    flash_bytes: int | None
    ram_bytes: int | None
    basis: str
    reason: str


def fit_devices(
    cost: ModelCost, estimates: Sequence[Estimate] | NotDone, tflm: TflmRun | NotDone
) -> tuple[Fit, Fit, Fit]:
    """Return how a file fits each of ``DEVICES``."""
    return _fit_raspberry(cost), _fit_cortex_m7(cost, tflm), _fit_ethos_u55(estimates)


def judge(device: Device, flash_bytes: int, arena_bytes: int, basis: str) -> Fit:
    """Compare a need with the limits."""
    flash, ram = flash_bytes + device.flash_reserve_bytes, arena_bytes + device.ram_reserve_bytes
    reasons = []
    if device.flash_bytes is not None and flash > device.flash_bytes:
        reasons.append(f"flash {_mib(flash)} of {_mib(device.flash_bytes)} MiB")
    if ram > device.ram_bytes:
        reasons.append(f"RAM {_mib(ram)} of {_mib(device.ram_bytes)} MiB")
    elif arena_bytes > device.block_bytes:
        reasons.append(f"arena of {_mib(arena_bytes)} MiB, the largest block has {_mib(device.block_bytes)} MiB")
    return Fit(device.name, not reasons, flash, ram, basis, "; ".join(reasons))


def _fit_raspberry(cost: ModelCost) -> Fit:
    weights = max(cost.unpacked_weight_bytes, cost.weight_bytes)  # XNNPACK keeps a copy of its own, in its order
    basis = "estimate: file, its weights once more, activations"
    return judge(RASPBERRY, cost.size_bytes, cost.size_bytes + weights + cost.peak.live_bytes, basis)


def _fit_cortex_m7(cost: ModelCost, tflm: TflmRun | NotDone) -> Fit:
    if isinstance(tflm, TflmRun):
        return judge(
            CORTEX_M7, cost.size_bytes, tflm.arena_bytes, "measured: TFLite-Micro's arena, on a 64-bit computer"
        )
    if tflm.refused:
        return Fit(CORTEX_M7.name, False, None, None, "", _say(tflm))
    fit = judge(
        CORTEX_M7, cost.size_bytes, cost.peak.live_bytes, "lower bound: activations without the engine's tables"
    )
    if fit.fits:  # a lower bound that is within the limit shows nothing
        return Fit(CORTEX_M7.name, None, fit.flash_bytes, fit.ram_bytes, fit.basis, _say(tflm))
    return fit


def _fit_ethos_u55(estimates: Sequence[Estimate] | NotDone) -> Fit:
    if isinstance(estimates, NotDone):
        return Fit(ETHOS_U55.name, False if estimates.refused else None, None, None, "", _say(estimates))
    # Fast first; where that does not fit, the one that saves memory.
    fits = [
        judge(ETHOS_U55, found.compiled_bytes, found.sram_bytes, f"estimate: vela, {found.strategy}")
        for found in estimates
        if found.accelerator == NPU
    ]
    return next((fit for fit in fits if fit.fits), fits[-1])


def _say(outcome: NotDone) -> str:
    return outcome.reason if outcome.refused else f"{outcome.status}: {outcome.reason}"


def _mib(size: int) -> str:
    return f"{size / MIB:.2f}".rstrip("0").rstrip(".")
