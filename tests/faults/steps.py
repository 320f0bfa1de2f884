"""The named steps of a labelling run, and what can be made to happen at them in a real process, without a hook in our code.

Python tells its audit hooks of every file that is opened, linked, renamed or removed, before it happens: a step is the first
such event on a path of a certain form. fsync has no event; what is done just before and just after it has. Of a file that is
opened by its name in an open folder, Python does not tell the folder: `os.open` is wrapped for those. Imports nothing but the
standard library, since every process of Ray runs it at its start.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_EVENTS = frozenset({"open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.scandir"})
_FOLDERS = {"os.mkdir": 2, "os.link": 2, "os.rename": 2, "os.remove": 1}
"""Which argument of an event is the open folder that its path is in."""
_ASIDE = r"\.\d+\.[0-9a-f]{16}$"


class Step(NamedTuple):
    """An event (`*` for any of them) on a path (a regular expression); only once those of `after` were seen, in turn."""

    event: str
    path: str
    after: tuple[tuple[str, str], ...] = ()


class Fault(NamedTuple):
    """What is to happen at the n-th occurrence of a step, counted in each process: one of DEEDS; once, or every time."""

    step: Step
    deed: str
    once: bool = True
    nth: int = 1
    spares_driver: bool = False


def _record_steps(record: str, path: str) -> dict[str, Step]:
    """How any of our records comes into being: written aside, given its name, its other name removed, its folder synced."""
    aside, folder = path + _ASIDE, path.rpartition(r"/\.")[0] + "$"
    return {
        f"{record} is opened aside": Step("open", aside),
        f"{record} is written and gets its name": Step("os.link", aside),
        f"{record} has its name and loses the other": Step("os.remove", aside),
        f"{record} has its name alone and the folder is synced": Step("open", folder, (("os.remove", aside),)),
    }


def _unit_steps(column: str, first: str, last: str) -> dict[str, Step]:
    """`last` is the file that is written last; `first`, which is the first by name, is synced first."""
    folder = rf"columns/{column}/[^/]+\.zarr"
    listed, settled = ("os.scandir", folder + "$"), ("open", rf"columns/{column}$")
    return {
        f"{column}: the attempt's folder is made": Step("os.mkdir", folder + "$"),
        f"{column}: its first file is opened": Step("open", folder + "/[^/]+$"),
        f"{column}: its first file is written": Step("os.mkdir", folder + "/[^/]+$"),
        f"{column}: its last file is opened": Step("open", f"{folder}/{last}$"),
        f"{column}: its last file is written": Step(*listed),
        f"{column}: its first file is synced": Step("open", f"{folder}/{first}$", (listed,)),
        f"{column}: its last file is synced and its name is": Step(*settled, (listed,)),
        f"{column}: its files are hashed": Step("open", folder + "/.+", (listed, settled)),
        **_record_steps(f"{column}: the manifest", rf"columns/{column}/\.(?!column\.json)[^/]+\.json"),
    }


RUN_STEPS = {
    "the sources are catalogued": Step("open", r"\.tar$"),
    **_record_steps("run.json", r"/run/\.run\.json"),
    **_record_steps("the catalogue's table", r"catalog/\.[^/]+\.parquet"),
    **_record_steps("the catalogue's record", r"catalog/\.[^/]+\.json"),
    "the first column's folder is made": Step("os.mkdir", "columns/images$"),
    **_record_steps("the first column's record", r"columns/images/\.column\.json"),
    **_record_steps("the last column's record", r"columns/assistant/\.column\.json"),
}
"""Steps before the first unit, of a run whose folder is called `run`."""

UNIT_STEPS = {
    "images: a photograph is read": Step("open", r"\.tar$", (("open", r"/\.driver\.lock$"),)),
    **_unit_steps("images", "context_box/c/0/0", "context_box/c/0/0"),
    "primary: a photograph is read": Step("open", r"\.tar$", (("os.mkdir", r"columns/primary/[^/]+\.zarr$"),)),
    **_unit_steps("primary", "context/c/0/0", "patch_start/c/0"),
}
"""Steps of a unit of the column `images`, and of a teacher's."""


def _sleep_with_the_gil() -> None:
    ctypes.PyDLL(None).sleep(100_000)


def _fail(error: BaseException) -> None:
    raise error  # out of the audit hook, and so out of the call that is about to be made


DEEDS: dict[str, Callable[[], object]] = {
    "EIO": lambda: _fail(OSError(errno.EIO, os.strerror(errno.EIO))),
    "MemoryError": lambda: _fail(MemoryError()),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill the driver": lambda: os.kill(int(os.environ["LABEL_DRIVER"]), signal.SIGKILL),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "segfault": lambda: ctypes.string_at(0),
    "sleep": lambda: time.sleep(100_000),
    "sleep with the GIL": _sleep_with_the_gil,
}


def install(faults: Sequence[Fault], marks: Path) -> None:
    """Let faults happen in this process. Those that happen once leave a file in the folder `marks`, for all processes."""
    is_driver = os.environ.get("LABEL_DRIVER") == str(os.getpid())
    watched = [
        _Watch(fault, str(marks / str(number)))
        for number, fault in enumerate(faults)
        if not (is_driver and fault.spares_driver)
    ]

    def tell(event: str, path: str) -> None:
        for watch in watched:
            watch.see(event, path)

    hear(tell)


def hear(tell: Callable[[str, str], None]) -> None:
    """Calls `tell` with each event and its full path, before it happens; for as long as the process lives."""
    real_open = os.open

    def opening(path: str | bytes | os.PathLike[str], flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and not flags & os.O_PATH:  # which opens nothing, but looks where it is
            tell("open", _full(path, dir_fd))
        return real_open(path, flags, mode, dir_fd=dir_fd)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and arguments and isinstance(arguments[0], str | bytes | os.PathLike | int):
            if event == "open" and isinstance(arguments[0], int):
                return
            path = _full(arguments[0], arguments[_FOLDERS[event]] if event in _FOLDERS else -1)
            if os.path.isabs(path) or event != "open":  # else it is told of above
                tell(event, path)

    os.open = opening
    sys.addaudithook(hook)


def _full(path: str | bytes | os.PathLike[str] | int, folder: int) -> str:
    """The path of what is named in an open folder, or is one; as it is where there is none (-1)."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    name = os.fsdecode(path)
    return name if folder < 0 else os.path.normpath(os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name))


def to_environment(faults: Sequence[Fault], marks: Path) -> str:
    """The value of LABEL_FAULTS."""
    return json.dumps([str(marks), faults])


def install_from_environment(text: str) -> None:
    """The inverse of `to_environment`, and `install`."""
    marks, faults = json.loads(text)
    install([Fault(Step(*step), *rest) for step, *rest in faults], Path(marks))


class _Watch:
    """One fault in one process: what has been seen of it."""

    def __init__(self, fault: Fault, mark: str) -> None:
        (event, path, after), self._deed, self._once, self._left, _ = fault
        self._event, self._path, self._mark = event, re.compile(path), mark
        self._after = [(seen, re.compile(where)) for seen, where in after]

    def see(self, event: str, path: str) -> None:
        if self._after:
            seen, where = self._after[0]
            if event == seen and where.search(path):
                del self._after[0]
        elif self._event in ("*", event) and self._path.search(path):
            self._left -= 1
            if self._left <= 0 and (not self._once or self._is_first()):
                DEEDS[self._deed]()

    def _is_first(self) -> bool:
        try:
            os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True
