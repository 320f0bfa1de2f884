"""Progress that a person can trust: per column, images done of total, rate, expected end, rejected, failed.

A bar per column on a terminal; elsewhere a plain line a minute for each column in which something has changed. What earlier
runs of the command did counts as done, and never as speed.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from stages.labelling.unit import Unit, UnitResult

_LINE_EVERY_S = 60.0
_RATE_OVER = 32  # parts


@dataclass
class _Column:
    """One column's tally; `ends` holds (time, images) of the latest parts, from which the rate is taken."""

    bar: tqdm[NoReturn]
    total: int
    done: int
    rejected: int
    failed: int = 0
    said: int | None = None
    """How many were done when its last line was printed."""
    ends: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RATE_OVER))

    def rate(self) -> float:
        """Images per second over the latest parts; 0 before the first one has ended."""
        (since, _), (until, _) = self.ends[0], self.ends[-1]
        return sum(images for _, images in list(self.ends)[1:]) / (until - since) if until > since else 0.0


class ColumnProgress:
    """Bars or lines for the columns of a run. total: images of each. rejected: those that earlier runs of the command rejected,
    by column. shard: which share of a run these images are; None for all of it."""

    def __init__(
        self, columns: Sequence[str], total: int, units: list[Unit], rejected: Mapping[str, int], shard: object = None
    ) -> None:
        self._label = f"label shard {shard}," if shard else "label"
        left = Counter[str]()
        for unit in units:
            left[unit.column] += len(unit.rows)
        self._on_terminal = sys.stderr.isatty()
        self._columns: dict[str, _Column] = {}
        for position, name in enumerate(columns):
            done = total - left[name]
            bar = tqdm(
                total=total,
                initial=done,
                desc=f"{self._label} {name}",
                unit="img",
                position=position,
                disable=not self._on_terminal,
                dynamic_ncols=True,
            )
            self._columns[name] = _Column(bar=bar, total=total, done=done, rejected=rejected.get(name, 0))
        self._last_line = 0.0
        for column in self._columns.values():
            column.ends.append((time.monotonic(), 0))
        if any(column.done for column in self._columns.values()):
            self.tick()  # a resumed run shows at once where it stands

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(self._columns)

    def done(self, unit: Unit, result: UnitResult) -> None:
        """A unit is committed."""
        self._columns[unit.column].rejected += result.rejected
        self._advance(unit)

    def elsewhere(self, unit: Unit) -> None:
        """Another driver has committed a unit; that is no speed of ours."""
        column = self._columns[unit.column]
        column.done += len(unit.rows)
        column.bar.update(len(unit.rows))

    def failed(self, unit: Unit) -> None:
        """A unit has had its last attempt."""
        self._columns[unit.column].failed += len(unit.rows)
        self._advance(unit)

    def tick(self) -> None:
        """Called often; prints the plain lines when they are due."""
        if not self._on_terminal and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._print_lines()

    def _advance(self, unit: Unit) -> None:
        column = self._columns[unit.column]
        column.done += len(unit.rows)
        column.ends.append((time.monotonic(), len(unit.rows)))
        column.bar.set_postfix(rejected=column.rejected, failed=column.failed, refresh=False)
        column.bar.update(len(unit.rows))
        self.tick()

    def _print_lines(self) -> None:
        self._last_line = time.monotonic()
        for name, column in self._columns.items():
            if column.said == column.done:
                continue
            column.said = column.done
            rate = column.rate()
            left = f", {duration((column.total - column.done) / rate)} left" if rate and column.done < column.total else ""
            speed = f", {rate:.2f} images/s" if rate else ""
            tally = f"{column.rejected} rejected, {column.failed} failed"
            print(
                f"{self._label} {name}: {column.done}/{column.total} images{speed}{left}; {tally}", file=sys.stderr, flush=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for column in self._columns.values():
            column.bar.close()
        if not self._on_terminal and error is None:
            self._print_lines()


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
