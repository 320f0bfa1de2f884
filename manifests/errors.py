"""The root of all errors that this project foresees: each is said in one line, and ends a command with its exit status.

Anything else that a command meets, but for what the system says of files, is a bug and shows its traceback.
"""

from __future__ import annotations


class DistillError(Exception):
    """Something foreseen went wrong; the message says what was found, what was expected, what to do."""

    exit_status = 1


class RefusedError(DistillError, ValueError):
    """What was asked for cannot be done as it stands; nothing was begun."""

    exit_status = 2
