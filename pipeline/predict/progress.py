"""Progress of a prediction: photographs done of total, images per second, expected end, failures.

A bar on a terminal; elsewhere a plain line now and then, and one at the end. What was finished before counts as done and
never as speed.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

import manifests
from pipeline.progress import duration

_LINE_EVERY_S = 15.0
_REPLACE = "replace it with an intact copy, or take it away"
_MODEL = (
    "the model's prediction cannot be used: look at other photographs' maps and, if they are alike, at the model's training"
)
_ADVICE = {
    "empty_file": _REPLACE,
    "not_an_image": _REPLACE,
    "damaged": _REPLACE,
    "unreadable": "make it readable for you",
    "out_of_memory": "give --network-px, a smaller one, or a smaller --tile",
    "cannot_predict": "the network may not take this size: give --network-px",
    "non_finite_map": _MODEL,
    "constant_map": _MODEL,
    "name_too_long": "give it a shorter name",
    "in_the_way": "take it away, or give --overwrite",
}


class PredictProgress:
    """The tally. total: photographs asked for. done: those that have their results, of which `made` were made now."""

    def __init__(self, *, total: int, done: int) -> None:
        self.total, self.done, self.made, self.failed = total, done, 0, 0
        self._on_terminal = sys.stderr.isatty()
        self._bar: tqdm[NoReturn] = tqdm(
            total=total, initial=done, desc="predict", unit="img", disable=not self._on_terminal, dynamic_ncols=True
        )
        self._begun = self._last_line = time.monotonic()

    def advance(self) -> None:
        """A photograph has its results."""
        self.done += 1
        self.made += 1
        self._bar.update()
        if not self._on_terminal and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._print_line()

    def fail(self, problem: manifests.Problem) -> None:
        """A photograph has none, or something could not be looked at: said at once, with what to do where that is known."""
        self.failed += 1
        self._bar.set_postfix(failed=self.failed)
        what_to_do = f"; {_ADVICE[problem.kind]}" if problem.kind in _ADVICE else ""
        tqdm.write(f"failed: {problem.where}: {problem.kind}: {problem.message}{what_to_do}", file=sys.stderr)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        rate = self.made / max(self._last_line - self._begun, 1e-3)
        left = self.total - self.done - self.failed
        speed = f", {rate:.2f} images/s" if self.made else ""
        end = f", {duration(left / rate)} left" if self.made and left > 0 else ""
        print(f"predict: {self.done}/{self.total} images{speed}{end}; {self.failed} failed", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if not self._on_terminal and error is None:
            self._print_line()
