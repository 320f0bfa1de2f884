"""Ctrl-C and SIGTERM as a question that long work asks between its steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import current_thread, main_thread
from types import FrameType

Handler = Callable[[int, FrameType | None], None] | signal.Handlers


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to a handler while the block runs. Nothing outside of the main thread, which alone gets them."""
    if current_thread() is not main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


@contextmanager
def stop_requested(message: str) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came, which is answered with the message. A second one raises KeyboardInterrupt at once."""
    requested = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        os.write(2, f"\n{message}\n".encode())  # not print: stderr may be in the midst of a line

    with handled_by(interrupt):
        yield lambda: requested


def ignored_by_children() -> AbstractContextManager[None]:
    """Processes that are started within ignore Ctrl-C and SIGTERM, which a terminal or a scheduler sends to a whole group.

    Their parent decides when they end. Python processes started by spawn need `ignore_signals` as well, once they are up.
    """
    return handled_by(signal.SIG_IGN)


def ignore_signals(_: int = 0) -> None:
    """For `DataLoader(worker_init_fn=...)`: torch has set a handler of its own in the meantime."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
