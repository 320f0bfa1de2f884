"""Ctrl-C and SIGTERM as a question that long work asks between its steps."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType


@contextmanager
def stop_requested(message: str) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came, which is answered with the message. A second one raises KeyboardInterrupt at once.

    Outside of the main thread, which alone gets signals, the answer is always no.
    """
    requested = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        print(f"\n{message}", file=sys.stderr, flush=True)

    if current_thread() is not main_thread():
        yield lambda: False
        return
    former = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
