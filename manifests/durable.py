"""How a file comes into being in a folder of this machine: complete or not at all, and exactly once where that matters.

Everything goes through a file aside in the same folder, whose name begins with a dot, is synced to disk, and only then
gets its real name. A process killed at any moment leaves at most such a dot file behind, never half a record. What fails leaves
nothing where it can help it, and raises what went wrong first. Folders are descriptors, so that no link is followed to a file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ASIDE_NAME = re.compile(r"\..+\.(\d+\.[0-9a-f]{16}|claim)")
"""Names of files aside; and of claims, which older versions could leave."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_EXCLUSIVE_RENAME = _NO_HARD_LINKS | {errno.EINVAL}
_RENAME_NOREPLACE = 1  # <linux/fs.h>


def create_file(folder: int, last: str, content: bytes, shown: str) -> bool:
    """Creates the file unless its name is taken; says whether it was us. When True is returned, file and name are on disk.

    shown: the file's path for messages. Raises OSError, also on a file system that has neither hard links nor exclusive
    renames.
    """
    aside = _write_aside(folder, last, content, shown)
    try:
        created = _name_exclusively(folder, aside, last, shown)
    except BaseException as error:
        _remove_after(error, folder, aside, shown)
        raise
    with suppress(FileNotFoundError):  # as where it was renamed
        os.unlink(aside, dir_fd=folder)
    if created:
        sync_folder(folder)
    return created


def replace_file(folder: int, last: str, content: bytes, shown: str) -> None:
    """Gives the file this content, whatever stood there; a reader sees the old or the new file, never a mixture."""
    aside = _write_aside(folder, last, content, shown)
    try:
        os.replace(aside, last, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException as error:
        _remove_after(error, folder, aside, shown)
        raise
    sync_folder(folder)


def _write_aside(folder: int, last: str, content: bytes, shown: str) -> str:
    aside = f".{last}.{os.getpid()}.{secrets.token_hex(8)}"
    try:
        with os.fdopen(os.open(aside, _CREATE, 0o666, dir_fd=folder), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException as error:  # a full disk, say: what was written of it is of no use
        _remove_after(error, folder, aside, shown)
        if isinstance(error, OSError):
            message = f"{error.strerror}; could not write this file, and left nothing of it"
            raise OSError(error.errno, message, shown) from error
        raise
    return aside


def _remove_after(error: BaseException, folder: int, aside: str, shown: str) -> None:
    """Removes a file aside, of which nothing came; where that fails too, the first error is the one to hear of."""
    try:
        os.unlink(aside, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError as second:
        beside = os.path.join(os.path.dirname(shown), aside)
        error.add_note(f"and {beside} could not be removed ({second}); `python -m manifests clean` does so")


def _name_exclusively(folder: int, aside: str, last: str, shown: str) -> bool:
    """Gives the file `aside` the name `last` unless that exists; says whether it did."""
    try:
        os.link(aside, last, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # NFS may carry out a link, lose the answer, and find the file there when it asks again.
        found = (os.stat(name, dir_fd=folder, follow_symlinks=False) for name in (aside, last))
        return os.path.samestat(*found)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_exclusively(folder, aside, last, shown, no_links=error)
    return True


def _rename_exclusively(folder: int, aside: str, last: str, shown: str, no_links: OSError) -> bool:
    """Renames `aside` to `last` unless that exists, in one step of the kernel; says whether it did.

    For a file system without hard links, of which vfat and cifs can do this. Raises OSError where this one cannot: whatever
    else could be done there would let two writers win, or leave a torn file when the writer dies.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(folder, os.fsencode(aside), folder, os.fsencode(last), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno() if renameat2 else errno.ENOSYS
    if number == errno.EEXIST:
        return False
    if number not in _NO_EXCLUSIVE_RENAME:
        raise OSError(number, os.strerror(number), shown)
    raise OSError(
        errno.EOPNOTSUPP,
        f"this file system has neither hard links ({no_links.strerror}) nor renames that replace nothing "
        f"({os.strerror(number)}), without which two writers could both believe that they had made a file; use another disk",
        shown,
    ) from no_links


def write_file(folder: int, last: str, content: bytes | memoryview, *, again: bool) -> None:
    """Writes a file under its own name, which must be new unless `again`. It is whole, and on disk, only once it is synced."""
    flags = _CREATE & ~os.O_EXCL | os.O_TRUNC if again else _CREATE
    with os.fdopen(os.open(last, flags, 0o666, dir_fd=folder), "wb") as stream:
        stream.write(content)


def sync_folder(folder: int, name: str = ".") -> None:
    """Returns when the names in a folder are on disk: the open one, its parent (`..`), or one in it."""
    try:
        descriptor = os.open(name, LIST, dir_fd=folder)
    except PermissionError:  # a folder that may be entered and changed, but not read, cannot be opened for syncing
        os.sync()
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Returns when there is this folder and its name is on disk, with those of the folders above it that it had to make."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    # Synced also where it was there: its maker may have died before it could.
    try:
        fsync_path(folder.absolute().parent)
    except PermissionError:  # as above
        os.sync()


def fsync_path(path: Path) -> None:
    """Returns when the file's content, or the folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
