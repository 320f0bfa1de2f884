"""How a file comes into being: complete or not at all, and exactly once where that matters.

Everything goes through a file aside in the same folder, whose name begins with a dot, is synced to disk, and only then
gets its real name. A process killed at any moment leaves at most such a dot file behind, never half a record.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from manifests.schema import FileRecord


def write_exclusively(path: Path, content: bytes) -> bool:
    """Creates `path` with `content` unless it exists; says whether it was us. Another's file is left untouched.

    Of any number of processes, on any number of machines that share the folder, exactly one gets True. When True is
    returned the file and its name are on disk. Makes the folder where there is none; its file system must have hard links.
    """
    aside = _write_aside(path, content)
    try:
        try:
            os.link(aside, path)
        except FileExistsError:
            # NFS may carry out a link, lose the answer, and find the file there when it asks again: count the names.
            if os.stat(aside).st_nlink == 1:
                return False
    finally:
        os.unlink(aside)
    _fsync(path.parent)
    return True


def write_replacing(path: Path, content: bytes) -> None:
    """Gives `path` this content, whatever stood there; a reader sees the old or the new file, never a mixture."""
    aside = _write_aside(path, content)
    try:
        os.replace(aside, path)
    except OSError:
        os.unlink(aside)
        raise
    _fsync(path.parent)


def fsync_tree(folder: Path) -> None:
    """Returns when every file and folder under `folder`, and its name in its parent, is on disk."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            _fsync(Path(place, name))
        _fsync(Path(place))
    _fsync(folder.absolute().parent)


def hash_tree(folder: Path, relative_to: Path) -> tuple[FileRecord, ...]:
    """Every file under `folder`, with paths relative to `relative_to`, sorted by path."""
    files = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    records = [
        FileRecord(path=file.relative_to(relative_to).as_posix(), size_bytes=file.stat().st_size, sha256=sha256_file(file))
        for file in files
    ]
    return tuple(sorted(records, key=lambda record: record.path))


def sha256_file(path: Path) -> str:
    """The file's sha256 in hexadecimal; reads it piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_aside(path: Path, content: bytes) -> Path:
    _make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:  # a full disk, say: what was written of it is of no use
        aside.unlink(missing_ok=True)
        raise
    return aside


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
