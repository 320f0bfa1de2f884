"""How many things are done, for people: a bar on a terminal, elsewhere a plain line a minute, and one at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from pipeline.progress import LINE_EVERY_S
from pipeline.whole import duration, note


class Tally:
    """Of `total` things of one kind, each of which is `done` once. initial: those that were done before, which are no speed."""

    def __init__(self, what: str, total: int, unit: str, *, initial: int = 0, show: bool = True) -> None:
        self._what, self._total, self._unit, self._done, self._initial = what, total, unit, initial, initial
        self._lines = show and not sys.stderr.isatty()
        self._bar: tqdm[NoReturn] = tqdm(
            total=total,
            initial=initial,
            desc=what,
            unit=f" {unit}",
            disable=self._lines or not show,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self._about: Mapping[str, str] = {}
        self._said: int | None = None
        self._begun = self._last_line = time.monotonic()

    def done(self, count: int = 1, **about: str) -> None:
        """So many more are done; `about` are words for the end of the bar or line, by name."""
        self._done, self._about = self._done + count, about or self._about
        all_of_it = note(self._done / max(self._total, 1))
        self._bar.set_postfix_str(
            ", ".join([*(f"{name}={word}" for name, word in self._about.items()), all_of_it]).strip(", "), refresh=False
        )
        self._bar.update(count)
        if self._lines and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._print_line()

    def write(self, line: str) -> None:
        """A line of its own, above the bar."""
        self._bar.write(line, file=sys.stderr)

    def close(self, *, last_line: bool = True) -> None:
        """Leaves the last bar as it is, or the last line."""
        self._bar.close()
        if self._lines and last_line and self._said != self._done:
            self._print_line()
        self._lines = False

    def _print_line(self) -> None:
        self._last_line, self._said = time.monotonic(), self._done
        rate = (self._done - self._initial) / max(self._last_line - self._begun, 1e-3)
        parts = [f"{self._what}: {self._done}/{self._total} {self._unit}"]
        if rate > 0 and self._done < self._total:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        about = " ".join(f"{name}={word}" for name, word in self._about.items())
        all_of_it = note(self._done / max(self._total, 1))
        print("; ".join(filter(None, [", ".join(parts), about, all_of_it])), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(last_line=error is None)
