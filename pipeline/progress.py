"""Progress that a person can trust: per column, images done of total, rate, expected end, rejected, failed.

A bar per column on a terminal; elsewhere a plain line now and then, and one at the end.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from tqdm import tqdm

import manifests
from stages.labelling.units import Unit, UnitResult

_LINE_EVERY_S = 15.0


class ColumnProgress:
    """Bars or lines for the columns of a run; starts from what had been done before."""

    def __init__(self, run: manifests.RunRecord, units: list[Unit]) -> None:
        total = sum(source.images for source in run.sources)
        left = Counter[str]()
        for unit in units:
            left[unit.column] += len(unit.rows)
        self._on_terminal = sys.stderr.isatty()
        self._rejected, self._failed = Counter[str](), Counter[str]()
        self._bars = {
            column.name: tqdm(
                total=total,
                initial=total - left[column.name],
                desc=f"label {column.name}",
                unit="img",
                position=position,
                disable=not self._on_terminal,
                dynamic_ncols=True,
            )
            for position, column in enumerate(run.columns)
        }
        self._done = {column.name: total - left[column.name] for column in run.columns}
        self._at_start, self._total = dict(self._done), total
        self._started = self._last_line = time.monotonic()

    def done(self, unit: Unit, result: UnitResult) -> None:
        """A unit is committed."""
        self._rejected[unit.column] += result.rejected
        self._advance(unit)

    def failed(self, unit: Unit) -> None:
        """A unit has had its last attempt."""
        self._failed[unit.column] += len(unit.rows)
        self._advance(unit)

    def tick(self) -> None:
        """Called often; prints the plain lines when they are due."""
        if not self._on_terminal and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._print_lines()

    def _advance(self, unit: Unit) -> None:
        self._done[unit.column] += len(unit.rows)
        bar = self._bars[unit.column]
        bar.set_postfix(rejected=self._rejected[unit.column], failed=self._failed[unit.column], refresh=False)
        bar.update(len(unit.rows))
        self.tick()

    def _print_lines(self) -> None:
        self._last_line = time.monotonic()
        seconds = max(self._last_line - self._started, 1e-9)
        for column, done in self._done.items():
            rate = (done - self._at_start[column]) / seconds
            end = f", {(self._total - done) / rate:.0f} s left" if rate and done < self._total else ""
            tally = f"{self._rejected[column]} rejected, {self._failed[column]} failed"
            print(
                f"label {column}: {done}/{self._total} images, {rate:.1f} images/s{end}; {tally}", file=sys.stderr, flush=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for bar in self._bars.values():
            bar.close()
        if not self._on_terminal and error is None:
            self._print_lines()
