"""A folder of objects that is filled: large files go up while the next ones are made, small ones together at the end."""

from __future__ import annotations

import errno
import hashlib
import io
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BufferedReader
from types import MappingProxyType
from typing import NamedTuple

from manifests.bucket_store import LARGEST_PUT_BYTES, create, delete, listed, open_object, put
from manifests.location import Url
from manifests.place import NewFolder, UnexpectedFilesError
from manifests.schema import FileRecord

_SMALL_BYTES = 1 << 20
_AT_ONCE = 8
_LARGE_AT_ONCE = 3
_MOST_UPLOAD_S = 6 * 3600
"""Far below the age at which `clean` takes what is written here for abandoned."""


class _Written(NamedTuple):
    size_bytes: int
    sha256: str
    content: bytes | None
    """Of a small file, until it is published."""


class BucketNewFolder(NewFolder):
    """Memory: the small files, and three large ones that are on their way. Nothing counts until a record names it, so that an
    upload that fails, or comes late, harms nobody. Each object is created: what another has under its name stays as it is."""

    def __init__(self, root: Url, name: str) -> None:
        self._root, self.name = root, name
        self._written: dict[str, _Written] = {}
        self._uploads: dict[str, Future[None]] = {}
        self._ours: set[str] = set()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upload")
        self._room = threading.Semaphore(_LARGE_AT_ONCE)
        self._begun = _clock()

    @property
    def sizes(self) -> Mapping[str, int]:
        return MappingProxyType({name: file.size_bytes for name, file in self._written.items()})

    def write(self, name: str, content: bytes | memoryview) -> None:
        kept = bytes(content)
        is_small = len(kept) <= _SMALL_BYTES
        if name in self._uploads:
            self._uploads.pop(name).result()  # the later content must be the later upload
        self._written[name] = _Written(len(kept), hashlib.sha256(kept).hexdigest(), kept if is_small else None)
        if not is_small:
            self._room.acquire()
            self._uploads[name] = self._pool.submit(self._upload, name, kept)

    def open(self, name: str) -> BufferedReader:
        if name not in self._written:
            raise FileNotFoundError(errno.ENOENT, "was not written", str(self._url(name)))
        content = self._written[name].content
        if content is not None:
            return io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]  # raw enough for reading
        self._uploads[name].result()
        return open_object(self._url(name))

    def remove(self, name: str) -> None:
        del self._written[name]
        if name in self._uploads:
            self._uploads.pop(name).result()
            with suppress(FileNotFoundError):  # at a second try
                delete(self._url(name), self._url(name).key)

    def publish(self) -> tuple[FileRecord, ...]:
        small = {name: file.content for name, file in self._written.items() if file.content is not None}
        with self._pool:
            self._uploads |= {name: self._pool.submit(self._make, name, content) for name, content in small.items()}
            for upload in self._uploads.values():
                upload.result()
        self._refuse_other_files()
        if (took_s := _clock() - self._begun) > _MOST_UPLOAD_S:
            message = f"writing it took {took_s / 3600:.1f} h, so that `clean` may take it for abandoned; try again"
            raise OSError(errno.ETIMEDOUT, message, str(self._root / self.name))
        last = self.name.rpartition("/")[2]
        return tuple(
            FileRecord(path=f"{last}/{name}", size_bytes=file.size_bytes, sha256=file.sha256)
            for name, file in sorted(self._written.items())
        )

    def _upload(self, name: str, content: bytes) -> None:
        try:
            self._make(name, content)
        finally:
            self._room.release()

    def _make(self, name: str, content: bytes) -> None:
        url = self._url(name)
        if name in self._ours or len(content) > LARGEST_PUT_BYTES:  # in pieces, for which stores know no condition
            put(url, content)
        elif not create(url, content):
            raise FileExistsError(errno.EEXIST, "another has made an object of this name", str(url))
        self._ours.add(name)

    def _refuse_other_files(self) -> None:
        url = self._root / self.name
        found = {item["path"][len(url.key) + 1 :]: item["size"] for item in listed(url)}
        if not found or found != self.sizes:
            wrong = sorted(name for name in found.keys() | self.sizes.keys() if found.get(name) != self.sizes.get(name))
            raise UnexpectedFilesError(
                f"{url}: holds other files than were written, or with other sizes: {', '.join(wrong[:5]) or 'none is there'}; "
                "someone else changes this folder, or the store has lost them: try again"
            )

    def _url(self, name: str) -> Url:
        return self._root / self.name / name


def _clock() -> float:
    """Seconds, those in which the machine slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
