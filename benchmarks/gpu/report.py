"""What was measured, and what was not, as Markdown for docs/benchmarks.md and as JSON."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.timing import ratios


@dataclass(frozen=True, kw_only=True)
class Number:
    """The median of the turns, and the least and largest of them."""

    value: float
    least: float
    largest: float

    def text(self, unit: str) -> str:
        """As it is in the table, with the range where there is one."""
        shown = f"{_rounded(self.value)} {unit}".strip()
        return shown if self.least == self.largest else f"{shown} ({_rounded(self.least)} to {_rounded(self.largest)})"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was measured, and how it compares with another figure of the same section, turn by turn."""

    what: str
    unit: str
    number: Number
    compared_with: str = ""
    ratio: Number | None = None
    """This figure over the other one."""

    @property
    def text(self) -> str:
        """As it is in the table."""
        own = self.number.text(self.unit)
        return f"{own}; {self.ratio.text('')} of {self.compared_with}" if self.ratio else own


@dataclass(kw_only=True)
class Outcome:
    """What became of a section; figures that were taken before it failed are kept."""

    section: str
    status: Literal["measured", "skipped", "failed"]
    reason: str = ""
    """Why it was skipped, or how it failed."""
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the figures are of."""

    card: str
    cards: int
    memory_gb: float
    driver: str
    torch: str
    cuda: str
    cudnn: str
    processor: str
    cores: int


def figure(what: str, unit: str, turns: Sequence[float], *, of: str = "", base: Sequence[float] = ()) -> Figure:
    """The turns' median. of: another figure with as many turns, `base`, that it is compared with."""
    ratio = _number(ratios(turns, base)) if of else None
    return Figure(what=what, unit=unit, number=_number(turns), compared_with=of, ratio=ratio)


def _number(values: Sequence[float]) -> Number:
    return Number(value=statistics.median(values), least=min(values), largest=max(values))


def machine_of(device: str) -> Machine:
    """The card, where the device is one, and the processor that feeds it."""
    on_card = device.startswith("cuda")
    properties: Any = torch.cuda.get_device_properties(device) if on_card else None
    return Machine(
        card=properties.name if on_card else "none",
        cards=torch.cuda.device_count() if on_card else 0,
        memory_gb=round(properties.total_memory / 1e9, 1) if on_card else 0.0,
        driver=_driver() if on_card else "none",
        torch=torch.__version__,
        cuda=torch.version.cuda or "none",
        cudnn=str(torch.backends.cudnn.version() or "none"),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
    )


def markdown(machine: Machine, outcomes: Sequence[Outcome], *, minutes: float) -> str:
    """A paragraph about the machine, and a table with every figure and every section that has none."""
    card = f"{machine.cards} x {machine.card}, {machine.memory_gb:g} GB, driver {machine.driver}, CUDA {machine.cuda}, "
    taken_s = sum(outcome.seconds for outcome in outcomes)
    lines = [
        f"{card + f'cuDNN {machine.cudnn}' if machine.cards else 'No card'}; torch {machine.torch}; {machine.processor}, "
        f"{machine.cores} cores. Took {taken_s / 60:.1f} of {minutes:g} minutes. Medians; in brackets least and largest.",
        "",
        "| what | figure |",
        "|---|---|",
    ]
    for outcome in outcomes:
        lines += [_row(f"{outcome.section}: {taken.what}", taken.text) for taken in outcome.figures]
        if outcome.status != "measured":
            lines.append(_row(outcome.section, f"{outcome.status}: {outcome.reason}"))
    return "\n".join(lines) + "\n"


def as_json(machine: Machine, outcomes: Sequence[Outcome], *, minutes: float, miniature: bool) -> dict[str, Any]:
    """Everything, with all digits."""
    sections = [asdict(outcome) for outcome in outcomes]
    return {"machine": asdict(machine), "minutes": minutes, "miniature": miniature, "sections": sections}


def _row(what: str, text: str) -> str:
    return f"| {what} | {text} |"


def in_a_line(error: BaseException) -> str:
    """An error's kind and the beginning of its message, fit for a cell of a table."""
    text = re.sub(r"\s+", " ", str(error)).replace("|", "/").strip()
    return f"{type(error).__name__}: {text[:200]}".removesuffix(": ")


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.split("\n")[0].strip() or "unknown"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", path.read_text(), re.M) if path.exists() else None
    return found[1].strip() if found else platform.machine()
