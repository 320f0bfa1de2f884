"""A run in a folder of this machine, or of one whose disk it shares: `manifests.place` on a file system."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Literal

from manifests import durable
from manifests.local_new_folder import LocalNewFolder
from manifests.lock import LOCK_NAME, hold_file
from manifests.place import MAX_DEPTH, Entry, Kind, LinkError, Place, PlaceError, TooLargeError, WrongKindError, parts_of, split

_TRAVERSE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe without a writer would wait for one
_SPECIAL = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR)  # how opening what is not there as expected may end
_RECENT_NS = 2_000_000_000  # the coarsest ticks: those of vfat
_SHOWN: dict[Kind, str] = {"file": "a file", "folder": "a folder", "link": "a link", "other": "a pipe, socket or device"}


class LocalFolder(Place):
    """Folders are opened from the run downwards, each by its descriptor, so that no link is on the way."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def shown(self, name: str) -> str:
        return str(self.root / name)

    def open(self, name: str) -> BufferedReader:
        folders, last = split(name)
        with self.folder(folders) as folder:
            return os.fdopen(self._open_in(folder, last, name, "file"), "rb")

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        with self.open(name) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            if size_bytes > limit_bytes:
                message = f"found {size_bytes} bytes, expected at most {limit_bytes}"
                raise TooLargeError(errno.EFBIG, message, self.shown(name))
            return stream.read()

    def exists(self, name: str) -> bool:
        folders, last = split(name)
        try:
            with self.folder(folders) as folder:
                os.stat(last, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def entries(self, folder: str) -> list[Entry]:
        try:
            with self.folder(parts_of(folder)) as descriptor:
                return sorted(_listed(descriptor), key=_name)
        except FileNotFoundError:
            return []

    def states(self, folder: str) -> dict[str, str | None]:
        """Size, times and number of a file: nobody can set the time of its last change (ctime); but clocks tick coarsely."""
        found: dict[str, str | None] = {}
        settled_ns = time.time_ns() - _RECENT_NS
        with suppress(FileNotFoundError), self.folder(parts_of(folder)) as descriptor, _listing(descriptor) as entries:
            for entry in entries:
                found[entry.name] = None
                if entry.is_file(follow_symlinks=False):
                    try:
                        told = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # removed since it was listed
                        continue
                    if told.st_ctime_ns < settled_ns > told.st_mtime_ns:
                        found[entry.name] = f"{told.st_size}-{told.st_mtime_ns}-{told.st_ctime_ns}-{told.st_ino}"
        return found

    def tree(self, folder: str) -> list[Entry]:
        try:
            with self.folder(parts_of(folder)) as descriptor:
                listed = os.open(".", durable.LIST, dir_fd=descriptor)
                try:
                    return sorted(self._walk(listed, "", f"{folder}/"), key=_name)
                finally:
                    os.close(listed)
        except FileNotFoundError:
            return []

    def create(self, name: str, content: bytes) -> bool:
        folders, last = split(name)
        with self.folder(folders, make=True) as folder, self._naming(name):
            return durable.create_file(folder, last, content, self.shown(name))

    def replace(self, name: str, content: bytes) -> None:
        folders, last = split(name)
        with self.folder(folders, make=True) as folder, self._naming(name):
            durable.replace_file(folder, last, content, self.shown(name))

    def new_folder(self, name: str) -> LocalNewFolder:
        folders, last = split(name)
        with self.folder(folders, make=True) as folder, self._naming(name):
            durable.sync_folder(folder, "..")  # its name's maker may have died before it could
            os.mkdir(last, dir_fd=folder)
        return LocalNewFolder(self, name)

    def remove(self, name: str) -> None:
        folders, last = split(name)
        with suppress(FileNotFoundError), self.folder(folders) as folder, self._naming(name):
            self._remove(folder, last, name)
            durable.sync_folder(folder)

    def leftovers(self, folder: str) -> list[str]:
        return [entry.name for entry in self.entries(folder) if durable.ASIDE_NAME.fullmatch(entry.name)]

    @contextmanager
    def hold(self, *, exclusive: bool) -> Iterator[None]:
        """Leaves an empty file, of which an flock is held. Where that holds nothing is said in `manifests.lock`."""
        with self.folder([], make=True):
            pass
        other = "a labelling, `repair` or `clean`" if exclusive else "`python -m manifests repair` or `clean`"
        with hold_file(self.root / LOCK_NAME, exclusive=exclusive, in_use=f"{self.root}: in use by {other}"):
            yield

    @contextmanager
    def folder(self, parts: list[str], *, make: bool = False, sync: bool = True) -> Iterator[int]:
        """A descriptor of the folder. `make`: with all folders that are not there yet; `sync`: their names are on disk then."""
        descriptor, is_new = self._open_root(make), False
        try:
            for i, part in enumerate(parts):
                name = "/".join(parts[: i + 1])
                try:
                    inner = os.open(part, _TRAVERSE, dir_fd=descriptor)
                except FileNotFoundError as error:
                    if not make:
                        raise self._in_words(error, descriptor, part, name, "folder") from error
                    inner = self._make(descriptor, part, name, sync, is_new)
                    is_new = True
                except OSError as error:
                    raise self._in_words(error, descriptor, part, name, "folder") from error
                descriptor, outer = inner, descriptor
                os.close(outer)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def opened(self, folder: int, last: str, name: str, expected: Literal["file", "folder"]) -> Iterator[int]:
        """A descriptor of something in an open folder; `name` is its name in the run, for messages."""
        descriptor = self._open_in(folder, last, name, expected)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_in(self, folder: int, last: str, name: str, expected: Literal["file", "folder"]) -> int:
        try:
            descriptor = os.open(last, _READ if expected == "file" else _TRAVERSE, dir_fd=folder)
        except OSError as error:
            raise self._in_words(error, folder, last, name, expected) from error
        if expected == "file" and (kind := _kind(os.fstat(descriptor).st_mode)) != "file":
            os.close(descriptor)
            raise self._wrong_kind(name, kind, "file")
        return descriptor

    def _open_root(self, make: bool) -> int:
        try:
            return os.open(self.root, _TRAVERSE & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            if not make:
                raise
        durable.make_folder(self.root)
        return os.open(self.root, _TRAVERSE & ~os.O_NOFOLLOW)

    def _make(self, folder: int, part: str, name: str, sync: bool, is_new: bool) -> int:
        """Makes a folder in an open one, unless another was faster, and opens it."""
        try:
            if sync and not is_new:
                durable.sync_folder(folder, "..")  # its maker may have died before it could
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
            if sync:
                durable.sync_folder(folder)
            return os.open(part, _TRAVERSE, dir_fd=folder)
        except OSError as error:
            raise self._in_words(error, folder, part, name, "folder") from error

    def _in_words(self, error: OSError, folder: int, last: str, name: str, expected: Kind) -> OSError:
        """The same error by its full path; or what was found there, where something else than a file or folder was."""
        if error.errno in _SPECIAL:
            with suppress(FileNotFoundError):
                kind = _kind(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode)
                if kind != expected:
                    return self._wrong_kind(name, kind, expected)
        return OSError(error.errno, error.strerror, self.shown(name))

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Names the file by its full path in an error that knows its name only."""
        try:
            yield
        except OSError as error:
            if isinstance(error.filename, str) and "/" not in error.filename:
                error.filename, error.filename2 = self.shown(name), None
            raise

    def _walk(self, descriptor: int, prefix: str, shown: str) -> Iterator[Entry]:
        if prefix.count("/") > MAX_DEPTH:
            raise self._too_deep(shown)
        for entry in _scan(descriptor, with_sizes=True):
            yield entry._replace(name=prefix + entry.name)
            if entry.kind == "folder":
                with suppress(FileNotFoundError):  # an attempt that is discarded meanwhile
                    inner = os.open(entry.name, durable.LIST, dir_fd=descriptor)
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
            for entry in _listed(inner):
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
            return LinkError(errno.ELOOP, message, self.shown(name))
        return WrongKindError(errno.EINVAL, f"found {_SHOWN[found]}, expected {_SHOWN[expected]}", self.shown(name))

    def _too_deep(self, name: str) -> TooLargeError:
        return TooLargeError(errno.ENAMETOOLONG, f"found more than {MAX_DEPTH} folders in each other", self.shown(name))


def _listed(descriptor: int) -> list[Entry]:
    """What lies in a folder that is open to look through it only; read at once, since it may change while its entries are
    removed."""
    with _listing(descriptor) as entries:
        return [found for entry in entries if (found := _described(entry, with_size=False))]


@contextmanager
def _listing(descriptor: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    listed = os.open(".", durable.LIST, dir_fd=descriptor)
    try:
        with os.scandir(listed) as entries:
            yield entries
    finally:
        os.close(listed)


def _scan(listed: int, *, with_sizes: bool) -> list[Entry]:
    """What lies in an open folder; read at once, so that it does not change while its entries are removed."""
    with os.scandir(listed) as entries:
        return [found for entry in entries if (found := _described(entry, with_sizes))]


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
