"""Parts of a run in a bucket, kept in a folder of this machine while they are read: fetched whole, once, and checked.

A part that is here is read as one on a disk is. Each file is held against its digest in the manifest before the part gets its
name, so that what was damaged on the way is fetched again, and named where it stays damaged. All processes of a machine share
the folder: one of them fetches, the others wait for it. What was not read for longest makes room for the next.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from manifests.bucket_store import ObjectTooLargeError, get
from manifests.errors import DistillError, RefusedError
from manifests.facts import part_digest
from manifests.local_folder import LocalFolder
from manifests.location import Location, Url
from manifests.place import Place, place_of
from manifests.run import column_dir, load_part, manifest_path
from manifests.schema import FileRecord, PartManifest, to_json

_LOCKS = 64
_AT_ONCE = 8
_PART = re.compile(r"[0-9a-f]{32}")
_OWN_BYTES = 1 << 29
_FETCHING = ".fetching-"
_SMALL_BYTES = 1 << 12


class FetchedDamagedError(DistillError, ValueError):
    """A file of a part that is not what its manifest says, each time that it was fetched."""


@dataclass(frozen=True)
class PartCache:
    """`limit_bytes`: what the parts in the folder may take in all; the part that is being read may always be there."""

    folder: Path
    limit_bytes: int

    def hold(self, run: Url, column: str, part: str, digest: str, manifest: PartManifest | None = None) -> Path:
        """Where the part is here, with its manifest, once all of it is: under the names that it has in the run.

        digest: of the part (see `part_digest`). manifest: for who has read it just now. Raises FetchedDamagedError,
        RefusedError where the run has another part of this name by now, InvalidRecordError, OSError.
        """
        name = hashlib.sha256(f"{run}\0{column}\0{part}\0{digest}".encode()).hexdigest()[:32]
        here = self.folder / name
        if _used(here):
            return here
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / f".lock-{int(name[:4], 16) % _LOCKS}"):
            if not _used(here):
                manifest = manifest or load_part(run, column, part)
                if part_digest(manifest) != digest:
                    raise RefusedError(
                        f"{run}: part {part} of {column!r} is not what it was when the run was opened; begin anew"
                    )
                self._make_room(sum(file.size_bytes for file in manifest.files))
                _fetch(run, manifest, here)
        return here

    def _make_room(self, size_bytes: int) -> None:
        """Removes the parts that were not read for longest, as many as it takes."""
        found = []
        for path in self.folder.iterdir():
            if _PART.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    files = (file.stat().st_size for file in path.rglob("*") if file.is_file())
                    found.append((path.stat().st_mtime_ns, sum(files), path))
        total = size_bytes + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit_bytes:
                return
            aside = self.folder / f"{_FETCHING}{secrets.token_hex(8)}"
            with suppress(FileNotFoundError):  # another process removes it
                os.rename(path, aside)
                shutil.rmtree(aside, ignore_errors=True)
            total -= size


class CachedPart(LocalFolder):
    """A part in the cache. Where it has made room for others meanwhile, it is fetched again."""

    def __init__(
        self, cache: PartCache, run: Url, column: str, part: str, digest: str, manifest: PartManifest | None = None
    ) -> None:
        self._cache, self._of = cache, (run, column, part, digest)
        super().__init__(cache.hold(*self._of, manifest))

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedPart, (self._cache, *self._of)

    def shown(self, name: str) -> str:
        return str(self._of[0] / name)

    def open(self, name: str) -> BufferedReader:
        try:
            return super().open(name)
        except FileNotFoundError:
            self._cache.hold(*self._of)
            return super().open(name)


def part_place(
    run_dir: Location,
    column: str,
    part: str,
    digest: str,
    cache: PartCache | None = None,
    manifest: PartManifest | None = None,
) -> Place:
    """Where the files of a part are read: the run itself, or for one in a bucket the cache, by itself one of this process."""
    if isinstance(run_dir, Url):
        return CachedPart(cache or _own_cache(), run_dir, column, part, digest, manifest)
    return place_of(run_dir)


@lru_cache(maxsize=1)
def _own_cache() -> PartCache:
    folder = tempfile.TemporaryDirectory(prefix="parts-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return PartCache(Path(folder.name), _OWN_BYTES)


def _used(here: Path) -> bool:
    """Whether the part is here; notes that it was read now."""
    try:
        os.utime(here)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(run: Url, manifest: PartManifest, here: Path) -> None:
    aside = here.with_name(f"{_FETCHING}{secrets.token_hex(8)}")
    column = column_dir(Path(), manifest.column).as_posix()

    def fetch(file: FileRecord) -> None:
        path = aside / column / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_checked(run / column / file.path, file))

    try:
        (aside / column).mkdir(parents=True)
        manifest_path(aside, manifest.column, manifest.part).write_bytes(to_json(manifest))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(fetch, manifest.files))
        os.rename(aside, here)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class SmallFiles:
    """The small files that were fetched last, by their digests: what arrays say of themselves is the same in most parts, as is
    half of a part's files."""

    def __init__(self, most: int = 1 << 10) -> None:
        """most: files."""
        self._most = most
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def content(self, file: FileRecord) -> bytes | None:
        with self._lock:
            if (content := self._contents.get(file.sha256)) is not None:
                self._contents.move_to_end(file.sha256)
            return content

    def keep(self, file: FileRecord, content: bytes) -> None:
        if len(content) <= _SMALL_BYTES:
            with self._lock:
                self._contents[file.sha256] = content
                while len(self._contents) > self._most:
                    self._contents.popitem(last=False)


small_files = SmallFiles()
"""Those of this process."""


def _checked(url: Url, file: FileRecord) -> bytes:
    """The file's bytes. Raises FetchedDamagedError where they are other ones twice, so that it is not the way's fault."""
    if (known := small_files.content(file)) is not None:
        return known
    found = ""
    for _ in range(2):
        try:
            content = get(url, limit_bytes=file.size_bytes)[1]
        except ObjectTooLargeError as error:
            found = f"{error.size_bytes} bytes"
            continue
        if (sha256 := hashlib.sha256(content).hexdigest()) == file.sha256:
            small_files.keep(file, content)
            return content
        found = f"{len(content)} bytes of sha256 {sha256}"
    raise FetchedDamagedError(
        f"{url}: found {found}, twice, expected {file.size_bytes} bytes of sha256 {file.sha256}; run `python -m manifests "
        "repair` on the run, then label again"
    )
