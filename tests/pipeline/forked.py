"""A command in a process of its own, forked from one that has imported everything, and ended by a real signal."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# Not forked from the tests' own process: that has threads, whose locks a fork may inherit for ever.
_IMPORTED = ["pipeline.train.command", "pipeline.evaluate.command", "pipeline.predict.command", "tests.pipeline.forked"]
_DEADLINE_S = 300


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    owner, name = after
    place = (owner.__name__, "") if isinstance(owner, ModuleType) else (owner.__module__, owner.__qualname__)
    process = context.Process(target=_run, args=(number, (*place, name), command, list(arguments), output, nth))
    process.start()
    process.join(_DEADLINE_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still running after {_DEADLINE_S} s: {output.read_text() if output.exists() else ''}")
    return process.exitcode


def _run(
    number: signal.Signals,
    after: tuple[str, str, str],
    command: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    output: Path,
    nth: int,
) -> None:
    """Never returns."""
    module_name, class_name, name = after
    module = importlib.import_module(module_name)
    owner = getattr(module, class_name) if class_name else module
    status, function, calls = 99, getattr(owner, name), list[None]()

    def signalling(*some: Any, **named: Any) -> Any:
        result = function(*some, **named)
        calls.append(None)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return result

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout = sys.stderr = output.open("w")
        setattr(owner, name, signalling)
        status = command(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
