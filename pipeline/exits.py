"""How every command ends: done, something foreseen went wrong, refused as it stands, or interrupted (docs/exit-status.md).

A bug shows its traceback, so that it can be reported.
"""

from __future__ import annotations

import sys

from manifests.checker import printable
from manifests.errors import DistillError

DONE, PROBLEMS, REFUSED, INTERRUPTED = 0, 1, 2, 130
_OF_DEVICES = ("OutOfMemoryError", "AcceleratorError")  # torch's, by name: this module imports nothing heavy


def exit_status(error: BaseException) -> int | None:
    """What a command exits with for an error; None for a bug."""
    if isinstance(error, DistillError):
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, FileNotFoundError):
        return REFUSED
    of_a_device = any(kind.__name__ in _OF_DEVICES for kind in type(error).__mro__)
    return PROBLEMS if of_a_device or isinstance(error, OSError | MemoryError | ImportError) else None


def say(program: str, error: BaseException, hint: str = "") -> int:
    """Say in words what ended a command, and return its exit status. Raises the error again where it is a bug."""
    status = exit_status(error)
    if status is None:
        raise error
    what = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error).strip() or type(error).__name__
    lines = [*f"{program}: {what}".split("\n"), *([hint] if hint else [])]
    print(*map(printable, lines), sep="\n", file=sys.stderr)  # what a run says of itself may hold a terminal's commands
    return status
