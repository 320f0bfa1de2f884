"""Errors and signals *inside* a unit, after each system call that it makes, in the process of the tests.

The system calls of the thread that commits are counted by the interpreter's hook for profilers, which is told of every function
in C that returns; what is raised there comes out of that call, as the exception of a signal would. Files are written in
threads of Zarr, of which audit hooks hear. The signals are real ones.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import manifests
from manifests.location import on_disk
from pipeline.label.command import label
from pipeline.label.config import LabelConfig
from tests.faults.steps import hear

_UNITS = {"label_images_part", "label_teacher_part"}
_NO_SYSTEM_CALLS = {"fspath", "readlink"}  # the second is of this harness
_IN_MEMORY = (io.BytesIO, io.StringIO)
PART = "photos.00000"
"""The only part of a run over one photograph in a folder called `photos`."""


def _raise(error: BaseException) -> None:
    raise error


def _send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


DEEDS: dict[str, Callable[[], None]] = {
    "SIGTERM": lambda: _send(signal.SIGTERM),
    "EIO": lambda: _raise(OSError(errno.EIO, os.strerror(errno.EIO))),
    "Ctrl-C twice": lambda: _send(signal.SIGINT, signal.SIGINT),
    "MemoryError": lambda: _raise(MemoryError()),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "Ctrl-C": lambda: _send(signal.SIGINT),
}
"""In turn those that end a command, and those after which it continues, or ends when the part has come to its end."""
GO_ON = frozenset({"EIO", "MemoryError", "Ctrl-C"})
IN_THREADS = ("SIGTERM", "EIO", "Ctrl-C twice", "MemoryError")
"""What can come about in any thread: Python raises a signal's exception in the main one."""


class Strike:
    """One deed, while a unit is at work; `done` says at what, and stays None where the unit came to its end before."""

    def __init__(self) -> None:
        self._left, self._deed = 0, DEEDS["EIO"]
        self._lock = threading.Lock()
        self._in_threads = False
        self.done: str | None = None
        hear(self._hear)  # never goes away again

    @contextmanager
    def after_call(self, nth: int, deed: str) -> Iterator[None]:
        """After the n-th system call that the thread of the unit makes, from the folder of its arrays on."""
        with self._armed(nth, deed, in_threads=False):
            try:
                yield
            finally:
                sys.setprofile(None)

    @contextmanager
    def before_file_event(self, nth: int, deed: str) -> Iterator[None]:
        """Before the n-th thing that any thread does to the files of the arrays."""
        with self._armed(nth, deed, in_threads=True):
            yield

    @contextmanager
    def _armed(self, nth: int, deed: str, *, in_threads: bool) -> Iterator[None]:
        self._left, self._deed, self._in_threads, self.done = nth, DEEDS[deed], in_threads, None
        try:
            yield
        finally:
            self._left = 0

    def _hear(self, event: str, path: str) -> None:
        if self._left and f"/{PART}." in path and ".zarr" in path:
            if self._in_threads:
                self._count(f"{event} of {path}")
            elif event == "os.mkdir" and path.endswith(".zarr"):
                sys.setprofile(self._see)

    def _see(self, frame: FrameType, event: str, function: Any) -> None:
        if event == "c_return" and self._left and _is_system_call(function):
            if _is_in_a_unit(frame):
                self._count(f"{function.__name__} in {frame.f_code.co_name}")
            else:
                sys.setprofile(None)  # the unit has ended

    def _count(self, what: str) -> None:
        with self._lock:
            self._left -= 1
            due = not self._left
        if due:
            self.done = what
            self._deed()


def _is_system_call(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    if isinstance(owner, io.IOBase):
        return not isinstance(owner, _IN_MEMORY)
    return function is io.open or (function.__module__ == "posix" and function.__name__ not in _NO_SYSTEM_CALLS)


def _is_in_a_unit(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_name not in _UNITS:
        frame = frame.f_back
    return frame is not None


When = Callable[[int, str], AbstractContextManager[None]]


def sweep(
    config: LabelConfig, column: str, strike: Strike, when: When, deeds: Sequence[str] = tuple(DEEDS), *, every: int = 1
) -> Counter[str]:
    """The command without Ray, struck at 1, 1 + `every`, ..., until it comes to its end before; the deeds take turns, all of
    them where `every` has no divisor in common with their number. Each command meets what the one before it has left. Counts
    what was done.

    Raises AssertionError where a part is neither absent nor whole, and where a command that went on has not completed it.
    """
    whole, counted = committed(on_disk(config.run), column), Counter[str]()
    assert whole
    for nth in itertools.count(1, every):
        deed = deeds[nth % len(deeds)]
        if committed(on_disk(config.run), column):
            _drop(on_disk(config.run), column)
        with suppress(KeyboardInterrupt), when(nth, deed):
            assert not label(config).failures
        found = committed(on_disk(config.run), column)
        what = f"{deed} at {nth}, {strike.done}: found {found}"
        assert found == whole or (found is None and strike.done and deed not in GO_ON), what
        if strike.done is None:
            return counted
        counted[deed] += 1
    raise AssertionError


def committed(run: Path, column: str) -> object:
    """What the part's manifest says, less what may differ. None where there is none; AssertionError where not all its files are
    there, or others, or they are not as it says."""
    folder = manifests.column_dir(run, column)
    try:
        manifest = manifests.load_part(run, column, PART)
    except FileNotFoundError:
        return None
    found = {path.relative_to(folder).as_posix() for path in (folder / manifest.zarr).rglob("*") if path.is_file()}
    assert found == {file.path for file in manifest.files}
    for file in manifest.files:
        assert manifests.sha256_file(folder / file.path) == file.sha256
    files = tuple(replace(file, path=file.path.removeprefix(manifest.zarr)) for file in manifest.files)
    return (
        manifest.images,
        manifest.statistics,
        manifest.fingerprint,
        [(file.path, file.size_bytes, file.sha256) for file in files],
    )


def _drop(run: Path, column: str) -> None:
    """Everything in a column's folder: the part, and what interrupted attempts have left."""
    for path in manifests.column_dir(run, column).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
