"""Time and memory, as all benchmarks take them: the sides of a comparison in turns, a device waited for at both ends."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """The time that work takes, to the end of what it has begun on the device."""
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def in_turns(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: str = "cpu",
    turn_s: float = 0.0,
    until: float = math.inf,
    warm_up: int = 0,
) -> dict[str, list[float]]:
    """Seconds per call of each side, once for each turn, so that what slows the machine for a while slows all sides alike.

    A turn of a side is as many calls as take `turn_s`, and one at least. warm_up: calls of each side before the first turn.
    until: on the clock of `time.monotonic`; no further turn begins after it, but the first always does.
    """
    calls = {}
    for name, call in sides.items():
        for _ in range(warm_up):
            call()
        calls[name] = math.ceil(turn_s / max(seconds(call, device), 1e-9)) if turn_s else 1
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        if turn and time.monotonic() > until:
            break
        for name, call in sides.items():
            taken[name].append(_repeated(call, max(calls[name], 1), device))
    return taken


def _repeated(call: Callable[[], object], times: int, device: str) -> float:
    return seconds(lambda: [call() for _ in range(times)], device) / times


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of two sides in each turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def with_range(values: Sequence[float]) -> str:
    """Median, least and largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def peak_memory_mb() -> float:
    """Of this process; not getrusage, whose figure of a child process includes its parent's peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
