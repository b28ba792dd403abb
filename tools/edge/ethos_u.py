"""An INT8 TFLite file compiled for Arm's Ethos-U accelerators by Arm's compiler, vela, with vela's own estimates.

Nothing here ran on an accelerator: cycles are vela's model of one, for the clock and memories of a named
configuration of ``Arm/vela.ini`` (it ships with vela). Memory is what vela's allocation uses.
"""

import csv
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.graph.flatbuffer import operator_name, read_model
from tools.edge.not_done import NotDone
from tools.shared.command import CommandError

CONFIG = "Arm/vela.ini"
SECONDS = 600
INSTALL = "pip install -e '.[edge]' in the checkout, or name the program with --vela"
STRATEGIES = ("Performance", "Size")
"""Vela's two: as fast as the memory allows, or in as little fast memory as it can."""


MIB = 1024 * 1024


@dataclass(frozen=True)
class Accelerator:
    """What to compile for: vela's words for the unit, its surroundings, and where weights and activations lie.

    sram_bytes: fast memory that the fast strategy may fill.
    """

    unit: str
    system: str
    memory: str
    sram_bytes: int


ACCELERATORS = {
    "Ethos-U55-128": Accelerator("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram", 2 * MIB),
    "Ethos-U55-256": Accelerator("ethos-u55-256", "Ethos_U55_High_End_Embedded", "Shared_Sram", 2 * MIB),
    "Ethos-U65-256": Accelerator("ethos-u65-256", "Ethos_U65_High_End", "Dedicated_Sram_384KB", 384 * 1024),
    "Ethos-U65-512": Accelerator("ethos-u65-512", "Ethos_U65_High_End", "Dedicated_Sram_384KB", 384 * 1024),
}
"""U55: 500 MHz, SRAM 4 GB/s, flash 0.5 GB/s, weights in flash. U65: 1 GHz, SRAM 16 GB/s, DRAM 3.75 GB/s, weights and
activations in DRAM, the SRAM a cache (the comments of ``Arm/vela.ini``)."""


@dataclass(frozen=True)
class Estimate:
    """Vela's estimate for one image.

    cycles: of the whole pass. milliseconds: at clock_hz. sram_bytes, dram_bytes: activations and buffers. flash_bytes:
    weights and commands that lie outside the SRAM (in DRAM where dram_bytes holds them). macs: vela's own count,
    poolings included. compiled_bytes: the file for the device. cpu_operators: those that the accelerator does not take.
    """

    accelerator: str
    strategy: str
    clock_hz: float
    cycles: int
    milliseconds: float
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    macs: int
    compiled_bytes: int
    cpu_operators: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"status": "estimate", **vars(self), "cpu_operators": list(self.cpu_operators)}


def find_vela(named: str | None) -> str | None:
    """Return the program: the one that is named, else the one beside this Python, else on the PATH, else None."""
    if named is not None:
        found = shutil.which(named)
        if found is None:
            raise CommandError(f"--vela {named} is no program; give vela's path, or leave it out: {INSTALL}")
        return found
    return shutil.which(str(Path(sys.executable).with_name("vela"))) or shutil.which("vela")


def estimate(path: Path, kind: str, accelerator: str, strategy: str, vela: str | None) -> Estimate | NotDone:
    """Compile one file that computes in ``kind``. vela: its program, None where there is none."""
    if kind != "int8":
        return NotDone(f"Ethos-U takes int8 files, this one computes in {kind}: give the int8 recipe's", refused=True)
    if vela is None:
        return NotDone(f"vela is not installed: {INSTALL}")
    wanted = ACCELERATORS[accelerator]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            vela, str(path), "--accelerator-config", wanted.unit, "--config", CONFIG, "--system-config", wanted.system,
            "--memory-mode", wanted.memory, "--arena-cache-size", str(wanted.sram_bytes), "--optimise", strategy,
            "--output-dir", str(folder),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except OSError as error:
            raise CommandError(f"{vela} cannot be started: {error.strerror}; give vela's path with --vela") from error
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{vela} took more than {SECONDS} s for {path}") from error
        summaries = list(folder.glob("*_summary_*.csv"))
        if done.returncode or len(summaries) != 1:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            return NotDone(f"vela does not compile it (code {done.returncode}): {last}", refused=True)
        (compiled,) = folder.glob("*_vela.tflite")
        return read_summary(summaries[0], compiled, accelerator, strategy)


def read_summary(summary: Path, compiled: Path, accelerator: str, strategy: str) -> Estimate:
    """Read vela's summary, whose memory is in KiB and whose time is in seconds."""
    with summary.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != 1:
        raise CommandError(f"{summary.name} has {len(rows)} rows where vela 5 writes one; use ethos-u-vela 5")
    row, model = rows[0], read_model(compiled)
    operators = [operator_name(model, operator) for graph in model.subgraphs for operator in graph.operators]
    try:
        memory = {
            area: round(1024 * float(row[f"{area}_memory_used"]))
            for area in ("sram", "dram", "on_chip_flash", "off_chip_flash")
        }
        return Estimate(
            accelerator=accelerator,
            strategy=strategy,
            clock_hz=float(row["core_clock"]),
            cycles=int(float(row["cycles_total"])),
            milliseconds=1e3 * float(row["inference_time"]),
            sram_bytes=memory["sram"],
            dram_bytes=memory["dram"],
            flash_bytes=memory["on_chip_flash"] + memory["off_chip_flash"],
            macs=int(float(row["nn_macs"])),
            compiled_bytes=compiled.stat().st_size,
            # One CUSTOM operator per piece is the accelerator's.
            cpu_operators=tuple(name for name in operators if name != "CUSTOM"),
        )
    except KeyError as error:
        raise CommandError(f"{summary.name} has no column {error}; use ethos-u-vela 5") from error
