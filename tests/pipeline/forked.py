"""A command in a process of its own, forked from the tests' so that nothing is imported again, and ended by a real signal."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def ended_by(
    number: signal.Signals,
    after: tuple[Any, str],
    command: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    output: Path,
    *,
    nth: int = 3,
) -> int:
    """Runs command(arguments), which gets the signal once the nth call of a function has returned; waits for its end.

    after: the function's module or class, and its name there. output: file for what the command prints. Returns its exit
    status, or minus the signal that ended it.
    """
    if (pid := os.fork()) == 0:
        _run(number, after, command, arguments, output, nth)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(
    number: signal.Signals,
    after: tuple[Any, str],
    command: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    output: Path,
    nth: int,
) -> None:
    """Never returns."""
    status, function, calls = 99, getattr(*after), list[None]()

    def signalling(*some: Any, **named: Any) -> Any:
        result = function(*some, **named)
        calls.append(None)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return result

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout = sys.stderr = output.open("w")
        setattr(*after, signalling)
        status = command(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
