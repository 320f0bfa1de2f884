"""Progress that a person can trust: per column, images done of total, rate, expected end, rejected, failed.

A bar per column on a terminal; elsewhere a plain line a minute for each column in which something has changed. Images count as
they are done, before their part is committed; those of a part that fails are taken off again. What earlier runs of the command
did counts as done, and never as speed.
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

from manifests.run import IMAGES
from pipeline.whole import duration, note
from stages.labelling.unit import Unit, UnitResult

LINE_EVERY_S = 60.0
_RATE_OVER = 64
"""Moments in which something had been done since the last one."""


@dataclass
class _Column:
    """One column's tally. done: images whose part has ended. partly: those of parts at work. own: of both, what this command
    did; `moments` holds it with its time, from which the rate is taken."""

    bar: tqdm[NoReturn]
    total: int
    done: int
    rejected: int
    failed: int = 0
    partly: float = 0.0
    own: int = 0
    said: int | None = None
    """How many were done when its last line was printed."""
    moments: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RATE_OVER))

    def shown(self) -> int:
        """Images done, whole ones, those of parts at work among them."""
        return min(self.done + int(self.partly), self.total)

    def look(self) -> None:
        """Notes the time, where something has been done since."""
        own = self.own + self.partly
        if not self.moments or own >= self.moments[-1][1] + 1:
            self.moments.append((time.monotonic(), own))

    def rate(self) -> float:
        """Images per second of late; 0 before the first one."""
        (since, before), (until, own) = self.moments[0], self.moments[-1]
        return max(own - before, 0.0) / (until - since) if until > since else 0.0


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
            column.look()
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
        self._show(column)

    def failed(self, unit: Unit) -> None:
        """A unit has had its last attempt."""
        self._columns[unit.column].failed += len(unit.rows)
        self._advance(unit)

    def partly(self, images: Mapping[str, float]) -> None:
        """Images done of the parts that are at work now, by column; called often."""
        for name, column in self._columns.items():
            column.partly = images.get(name, 0.0)
            column.look()
            if column.shown() != column.bar.n:
                self._show(column)

    def tick(self) -> None:
        """Called often; prints the plain lines when they are due."""
        if not self._on_terminal and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._print_lines()

    def _advance(self, unit: Unit) -> None:
        column = self._columns[unit.column]
        column.done += len(unit.rows)
        column.own += len(unit.rows)
        column.partly = max(column.partly - len(unit.rows), 0.0)  # it was among those at work
        self._show(column)
        self.tick()

    def _show(self, column: _Column) -> None:
        """Its bar, which may go back."""
        whole = self._note()
        column.bar.n = column.shown()
        tally = f"rejected={column.rejected}, failed={column.failed}"
        column.bar.set_postfix_str(f"{tally}, {whole}" if whole else tally, refresh=False)
        column.bar.refresh()

    def _note(self) -> str:
        """What is left of all, where this is one step of several. Teachers count; pictures alone take little."""
        teachers = [column for name, column in self._columns.items() if name != IMAGES] or list(self._columns.values())
        return note(sum(column.shown() / max(column.total, 1) for column in teachers) / max(len(teachers), 1))

    def _print_lines(self) -> None:
        self._last_line = time.monotonic()
        changed = {name: column for name, column in self._columns.items() if column.said != column.shown()}
        for name, column in changed.items():
            column.said = done = column.shown()
            rate = column.rate()
            left = f", {duration((column.total - done) / rate)} left" if rate and done < column.total else ""
            speed = f", {rate:.2f} images/s" if rate else ""
            tally = f"{column.rejected} rejected, {column.failed} failed"
            print(f"{self._label} {name}: {done}/{column.total} images{speed}{left}; {tally}", file=sys.stderr, flush=True)
        if changed and (whole := self._note()):
            print(whole, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for column in self._columns.values():
            column.bar.close()
        if not self._on_terminal and error is None:
            self._print_lines()
