"""How many things are done, for people: a bar on a terminal, elsewhere plain lines now and then, and one at the end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from pipeline.progress import duration

_LINE_EVERY_S = 15.0


class Tally:
    """Of `total` things of one kind, each of which is `done` once."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._on_terminal = sys.stderr.isatty()
        self._bar: tqdm[NoReturn] = tqdm(
            total=total, desc=what, unit=f" {unit}", disable=not self._on_terminal, dynamic_ncols=True
        )
        self._begun = self._last_line = time.monotonic()

    def done(self) -> None:
        """One more is done."""
        self._done += 1
        self._bar.update()
        if not self._on_terminal and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        rate = self._done / max(self._last_line - self._begun, 1e-3)
        left = f", {duration((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        print(f"{self._what}: {self._done}/{self._total} {self._unit}{left}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if not self._on_terminal and error is None:
            self._print_line()
