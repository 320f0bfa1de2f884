"""One expected end over all steps of a command, beside what each step says of itself.

A step that shows its progress tells the share that is done, `note(share)`, and puts what it is answered at the end of its own
bar or line: nothing, unless a command of several steps is at work, and then how much of all is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_TRUSTED_SHARE = 0.1
"""Of a step: from here on its own pace says more than what was expected."""
_PRIOR_S = 15.0
"""Seconds as expected that the pace of what is done is averaged with, so that the first ones do not decide."""
_at_work: list[Whole] = []


class Whole:
    """The steps of a command, by name, with the seconds that each is expected to take; 0 where nothing is left to do."""

    def __init__(self, name: str, expected_s: Mapping[str, float], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._expected_s, self._clock = name, dict(expected_s), clock
        self._taken_s: dict[str, float] = {}
        self._step: str | None = None
        self._begun, self._share = 0.0, 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """While its block runs, the step is at work."""
        self._step, self._begun, self._share = name, self._clock(), 0.0
        _at_work.append(self)
        try:
            yield
        finally:
            _at_work.remove(self)
            self._taken_s[name] = self._clock() - self._begun
            self._step = None

    def left_s(self) -> float:
        """Seconds until the end of all steps, at the pace of what is done."""
        elapsed_s = self._clock() - self._begun if self._step else 0.0
        expected_s = self._expected_s.get(self._step or "", 0.0)
        done_s = sum(self._expected_s[name] for name in self._taken_s) + self._share * expected_s
        pace = (sum(self._taken_s.values()) + self._share_elapsed(elapsed_s) + _PRIOR_S) / (done_s + _PRIOR_S)
        later_s = sum(s for name, s in self._expected_s.items() if name not in self._taken_s and name != self._step)
        if self._share > _TRUSTED_SHARE:
            return elapsed_s * (1 - self._share) / self._share + later_s * pace
        return max(expected_s * pace - elapsed_s, 0.0) + later_s * pace

    def _share_elapsed(self, elapsed_s: float) -> float:
        return elapsed_s if self._share > 0 else 0.0

    def note(self, share: float) -> str:
        """The share of the step that is done; returns how much of all is left, in words."""
        self._share = min(max(share, 0.0), 1.0)
        return f"{self._name} {duration(self.left_s())} left"


def note(share: float) -> str:
    """What a step may add to its progress, with its share done; empty where its command has no other step."""
    return _at_work[-1].note(share) if _at_work else ""


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
