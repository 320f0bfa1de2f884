"""The door to a run's files: everything that reads, lists or removes them goes through here.

A run may come from a stranger, so nothing in it is taken on trust. Promises: only regular files are opened, and opening never
waits, whatever stands in a file's place; a symbolic link below the run is never followed, not as a file and not as a folder on
the way to one; nothing outside the run is read, listed or removed; every error is raised, so that a list is whole or there is
none. The run's own folder may be reached through links.

Names are relative to the run, with `/`. There is no renaming, no appending and no lock here, and a folder that is not there is
an empty one: what an object store could not give, no caller can come to need.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple

MAX_DEPTH = 32
"""Folders in each other, the run's own aside. Arrays need 7."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TRAVERSE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe without a writer would wait for one
_SPECIAL = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR)  # how opening what is not there as expected may end

Kind = Literal["file", "folder", "link", "other"]
_SHOWN: dict[Kind, str] = {"file": "a file", "folder": "a folder", "link": "a link", "other": "a pipe, socket or device"}


class PlaceError(OSError):
    """What stands at a name is nothing that belongs in a run."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class LinkError(PlaceError):
    """A symbolic link, there or on the way there."""


class WrongKindError(PlaceError):
    """A folder, pipe, socket or device in a file's place, or a file in a folder's."""


class TooLargeError(PlaceError):
    """A file of more bytes than the caller takes, or folders nested too deep."""


class Entry(NamedTuple):
    """Something in a run. `size_bytes` is told of the files of a tree."""

    name: str
    kind: Kind
    size_bytes: int | None = None


def is_url(text: str) -> bool:
    """Whether this names something by a scheme, as in `s3://bucket/run`, which no path of ours may be taken for."""
    return bool(_URL.match(text))


def place_of(run_dir: Path) -> RunFolder:
    """Where the run's files are."""
    return RunFolder(run_dir)


class RunFolder:
    """A run in a folder of this machine, or of one whose disk it shares. The folder need not be there yet.

    All methods raise OSError: FileNotFoundError where a file is not there, LinkError, WrongKindError and TooLargeError as
    described there, and whatever the system says.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def open(self, name: str) -> BufferedReader:
        """The file, to be read from any position."""
        folders, last = self._split(name)
        with self._folder(folders) as folder, self._in_words(folder, last, name, "file"):
            descriptor = os.open(last, _READ, dir_fd=folder)
        kind = _kind(os.fstat(descriptor).st_mode)
        if kind != "file":
            os.close(descriptor)
            raise self._wrong_kind(name, kind, "file")
        return os.fdopen(descriptor, "rb")

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole file. Raises TooLargeError for more than `limit_bytes`, of which nothing is read."""
        with self.open(name) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            if size_bytes > limit_bytes:
                message = f"found {size_bytes} bytes, expected at most {limit_bytes}"
                raise TooLargeError(errno.EFBIG, message, self._shown(name))
            return stream.read()

    def entries(self, folder: str) -> list[Entry]:
        """What lies in a folder, by name; hidden names too. Empty where there is no such folder."""
        try:
            with self._folder(_parts(folder)) as descriptor:
                return sorted(_scan(descriptor, with_sizes=False), key=_name)
        except FileNotFoundError:
            return []

    def tree(self, folder: str) -> list[Entry]:
        """All that lies in a folder and the folders in it, with names relative to it; links and pipes are named like files.

        Empty where there is no such folder.
        """
        try:
            with self._folder(_parts(folder)) as descriptor:
                return sorted(self._walk(descriptor, "", f"{folder}/"), key=_name)
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Removes a file, a link (never what it points to), or a folder with all that is in it; what is gone is no error.

        When it returns, the name is gone from the disk too.
        """
        folders, last = self._split(name)
        with suppress(FileNotFoundError), self._folder(folders) as folder:
            self._remove(folder, last, name)
            listed = os.open(".", _LIST, dir_fd=folder)
            try:
                os.fsync(listed)
            finally:
                os.close(listed)

    def _split(self, name: str) -> tuple[list[str], str]:
        *folders, last = _parts(name) or [""]
        if not last:
            raise ValueError(f"{name!r}: expected the name of something in the run")
        return folders, last

    @contextmanager
    def _folder(self, parts: list[str]) -> Iterator[int]:
        """A descriptor of the folder: opened from the run downwards, so that no link is on the way."""
        descriptor = os.open(self.root, _TRAVERSE & ~os.O_NOFOLLOW)
        try:
            for i, part in enumerate(parts):
                with self._in_words(descriptor, part, "/".join(parts[: i + 1]), "folder"):
                    inner = os.open(part, _TRAVERSE, dir_fd=descriptor)
                descriptor, outer = inner, descriptor
                os.close(outer)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _in_words(self, folder: int, last: str, name: str, expected: Kind) -> Iterator[None]:
        """Says of an error that comes from opening something else than a file or folder what was found there."""
        try:
            yield
        except OSError as error:
            if error.errno in _SPECIAL:
                with suppress(FileNotFoundError):
                    kind = _kind(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode)
                    if kind != expected:
                        raise self._wrong_kind(name, kind, expected) from error
            raise OSError(error.errno, error.strerror, self._shown(name)) from error

    def _walk(self, descriptor: int, prefix: str, shown: str) -> Iterator[Entry]:
        if prefix.count("/") > MAX_DEPTH:
            raise self._too_deep(shown)
        for entry in _scan(descriptor, with_sizes=True):
            yield entry._replace(name=prefix + entry.name)
            if entry.kind == "folder":
                with suppress(FileNotFoundError):  # an attempt that is discarded meanwhile
                    inner = os.open(entry.name, _TRAVERSE, dir_fd=descriptor)
                    try:
                        yield from self._walk(inner, f"{prefix}{entry.name}/", f"{shown}{entry.name}/")
                    finally:
                        os.close(inner)

    def _remove(self, folder: int, last: str, name: str) -> None:
        if not stat.S_ISDIR(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(last, dir_fd=folder)
            return
        if name.count("/") > MAX_DEPTH:
            raise self._too_deep(name)
        inner = os.open(last, _TRAVERSE, dir_fd=folder)
        try:
            for entry in _scan(inner, with_sizes=False):
                with suppress(FileNotFoundError):
                    self._remove(inner, entry.name, f"{name}/{entry.name}")
        finally:
            os.close(inner)
        os.rmdir(last, dir_fd=folder)

    def _wrong_kind(self, name: str, found: Kind, expected: Kind) -> PlaceError:
        if found == "link":
            message = (
                f"found a link, expected {_SHOWN[expected]}: links in a run are not followed; put the {expected} itself there"
            )
            return LinkError(errno.ELOOP, message, self._shown(name))
        return WrongKindError(errno.EINVAL, f"found {_SHOWN[found]}, expected {_SHOWN[expected]}", self._shown(name))

    def _too_deep(self, name: str) -> TooLargeError:
        return TooLargeError(errno.ENAMETOOLONG, f"found more than {MAX_DEPTH} folders in each other", self._shown(name))

    def _shown(self, name: str) -> str:
        return str(self.root / name)


def _parts(name: str) -> list[str]:
    parts = name.split("/") if name else []
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError(f"{name!r}: expected a path below the run, without empty parts, '.' and '..'")
    return parts


def _scan(descriptor: int, *, with_sizes: bool) -> list[Entry]:
    """What lies in an open folder; read at once, so that it does not change while its entries are removed."""
    listed = os.open(".", _LIST, dir_fd=descriptor)
    try:
        with os.scandir(listed) as entries:
            return [found for entry in entries if (found := _described(entry, with_sizes))]
    finally:
        os.close(listed)


def _described(entry: os.DirEntry[str], with_size: bool) -> Entry | None:
    if entry.is_symlink():
        return Entry(entry.name, "link")
    if entry.is_dir(follow_symlinks=False):
        return Entry(entry.name, "folder")
    if not entry.is_file(follow_symlinks=False):
        return Entry(entry.name, "other")
    try:
        return Entry(entry.name, "file", entry.stat(follow_symlinks=False).st_size if with_size else None)
    except FileNotFoundError:  # removed since it was listed
        return None


def _name(entry: Entry) -> str:
    return entry.name


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"
