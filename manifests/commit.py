"""How a file comes into being: complete or not at all, and exactly once where that matters.

Everything goes through a file aside in the same folder, whose name begins with a dot, is synced to disk, and only then
gets its real name. A process killed at any moment leaves at most such a dot file behind, never half a record; `clean` removes
those. What fails leaves nothing where it can help it, and raises what went wrong first.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from manifests.schema import FileRecord

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_EXCLUSIVE_RENAME = _NO_HARD_LINKS | {errno.EINVAL}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # <fcntl.h>, <linux/fs.h>
ASIDE_NAME = re.compile(r"\..+\.(\d+\.[0-9a-f]{16}|claim)")
"""Names of files aside; and of claims, which older versions could leave."""


class UnexpectedFilesError(OSError):
    """A folder does not hold the files that were written into it."""


def write_exclusively(path: Path, content: bytes) -> bool:
    """Creates `path` with `content` unless it exists; says whether it was us. Another's file is left untouched.

    Of any number of processes, on any number of machines that share the folder, exactly one gets True. When True is
    returned the file and its name are on disk. Makes the folder where there is none. Raises OSError where it cannot write,
    also on a file system that has neither hard links nor exclusive renames. Whoever meets an exception must look whether the
    file is there: it may have come after the file had its name, as where the folder could not be synced.
    """
    aside = _write_aside(path, content)
    try:
        created = _name_exclusively(aside, path)
    except BaseException as error:
        _remove_after(error, aside)
        raise
    aside.unlink(missing_ok=True)
    if created:
        fsync_path(path.parent)
    return created


def _name_exclusively(aside: Path, path: Path) -> bool:
    """Gives the file `aside` the name `path` unless that exists; says whether it did."""
    try:
        os.link(aside, path)
    except FileExistsError:
        # NFS may carry out a link, lose the answer, and find the file there when it asks again.
        return os.path.samestat(os.lstat(aside), os.lstat(path))
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_exclusively(aside, path, no_links=error)
    return True


def _rename_exclusively(aside: Path, path: Path, no_links: OSError) -> bool:
    """Renames `aside` to `path` unless that exists, in one step of the kernel; says whether it did.

    For a file system without hard links, of which vfat and cifs can do this. Raises OSError where this one cannot: whatever
    else could be done there would let two writers win, or leave a torn file when the writer dies.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(_AT_FDCWD, os.fsencode(aside), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno() if renameat2 else errno.ENOSYS
    if number == errno.EEXIST:
        return False
    if number not in _NO_EXCLUSIVE_RENAME:
        raise OSError(number, os.strerror(number), str(path))
    raise OSError(
        errno.EOPNOTSUPP,
        f"this file system has neither hard links ({no_links.strerror}) nor renames that replace nothing "
        f"({os.strerror(number)}), without which two writers could both believe that they had made a file; use another disk",
        str(path),
    ) from no_links


def write_replacing(path: Path, content: bytes) -> None:
    """Gives `path` this content, whatever stood there; a reader sees the old or the new file, never a mixture."""
    aside = _write_aside(path, content)
    try:
        os.replace(aside, path)
    except BaseException as error:
        _remove_after(error, aside)
        raise
    fsync_path(path.parent)


def settle_files(folder: Path, sizes: Mapping[str, int]) -> tuple[FileRecord, ...]:
    """Returns when these files of `folder`, and their names up to that of `folder`, are on disk; says what is in them.

    sizes: bytes that were written, by path relative to `folder`. The records' paths are relative to the folder's parent,
    and sorted. Raises UnexpectedFilesError where the folder holds other files than these, or these with other sizes, and
    where there are none; OSError for whatever cannot be listed, read or synced.
    """
    _refuse_other_files(folder, sizes)
    folders = {folder}
    for name in sizes:
        fsync_path(folder / name)
        folders.update(folder / parent for parent in Path(name).parents)
    for place in sorted(folders, reverse=True):  # what is inside of a folder comes before it
        fsync_path(place)
    fsync_path(folder.absolute().parent)
    records = (_record(folder, name, size) for name, size in sizes.items())
    return tuple(sorted(records, key=lambda record: record.path))


def _refuse_other_files(folder: Path, sizes: Mapping[str, int]) -> None:
    found = set(_names_under(folder))
    wrong = [f"{name} was written and is gone" for name in sorted(sizes.keys() - found)]
    wrong += [f"{name} is there and was not written" for name in sorted(found - sizes.keys())]
    if wrong or not sizes:
        listed = "; ".join(wrong[:5]) + f"; and {len(wrong) - 5} more" * (len(wrong) > 5) or "nothing was written into it"
        raise UnexpectedFilesError(f"{folder}: {listed}; someone else changes this folder, or the disk has lost it: try again")


def _names_under(folder: Path, prefix: str = "") -> Iterator[str]:
    """Whatever is in a folder and is no folder itself, links too; raises OSError for what cannot be listed."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if is_folder:
            yield from _names_under(folder / name, f"{prefix}{name}/")
        else:
            yield prefix + name


def _record(folder: Path, name: str, size_bytes: int) -> FileRecord:
    with (folder / name).open("rb") as stream:
        found = os.fstat(stream.fileno()).st_size
        if found != size_bytes:
            raise UnexpectedFilesError(f"{folder / name}: found {found} bytes, but {size_bytes} were written; try again")
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(path=f"{folder.name}/{name}", size_bytes=size_bytes, sha256=digest)


def sha256_file(path: Path) -> str:
    """The file's sha256 in hexadecimal; reads it piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_aside(path: Path, content: bytes) -> Path:
    if not path.parent.is_dir():
        make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException as error:  # a full disk, say: what was written of it is of no use
        _remove_after(error, aside)
        if isinstance(error, OSError):
            message = f"{error.strerror}; could not write this file, and left nothing of it"
            raise OSError(error.errno, message, str(path)) from error
        raise
    return aside


def _remove_after(error: BaseException, aside: Path) -> None:
    """Removes a file aside, of which nothing came; where that fails too, the first error is the one to hear of."""
    try:
        aside.unlink(missing_ok=True)
    except OSError as second:
        error.add_note(f"and {aside} could not be removed ({second}); `python -m manifests clean` does so")


def make_folder(folder: Path) -> None:
    """Returns when there is this folder and its name is on disk, with those of the folders above it that it had to make."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    # Synced also where it was there: its maker may have died before it could.
    try:
        fsync_path(folder.absolute().parent)
    except PermissionError:  # a folder that may be entered and changed, but not read, cannot be opened for syncing
        os.sync()


def fsync_path(path: Path) -> None:
    """Returns when the file's content, or the folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
