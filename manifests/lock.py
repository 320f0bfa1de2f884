"""Who is at work in a run: drivers share it, `repair` and `clean` want it to themselves.

The lock is advisory, an flock on RUN/.driver.lock, and ends with its holder, however that ends. It cannot know of processes
on other machines unless the file system carries flock across (NFS does), nor of any on a file system without flock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manifests.errors import DistillError
from manifests.location import Location
from manifests.place import place_of

LOCK_NAME = ".driver.lock"
_NO_LOCKS_HERE = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}


class RunInUseError(DistillError, RuntimeError):
    """Another process holds the folder in a way that does not go with ours."""

    exit_status = 2


@contextmanager
def hold_run(run_dir: Location, *, exclusive: bool) -> Iterator[None]:
    """Holds the run while the block runs: beside others that share it, or alone. Never waits.

    Makes the run's folder where there is none; leaves an empty file RUN/.driver.lock. Raises RunInUseError, or OSError
    where it cannot write.
    """
    with place_of(run_dir).hold(exclusive=exclusive):
        yield


@contextmanager
def hold_file(path: Path, *, exclusive: bool, in_use: str) -> Iterator[None]:
    """As `hold_run`, on a lock file of any folder; `in_use` begins the message of RunInUseError.

    Raises OSError also for a link in the file's place, which might make a file anywhere, and for anything else that is no file.
    """
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunInUseError(f"{in_use}; found {path} locked, try again when that has ended") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_a_lock(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_lock(path)
    return descriptor


def _not_a_lock(path: Path) -> OSError:
    return OSError(errno.EINVAL, "found a link, pipe or device, expected a lock file or nothing: remove it", str(path))
