"""A folder that is written on this machine, and made durable with the digests of exactly what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from io import BufferedReader
from types import MappingProxyType
from typing import TYPE_CHECKING

from manifests import durable
from manifests.place import NewFolder, UnexpectedFilesError
from manifests.schema import FileRecord

if TYPE_CHECKING:
    from manifests.local_folder import LocalFolder


class LocalNewFolder(NewFolder):
    """The files stand under their own names from the first byte; who is killed leaves a folder that no record names."""

    def __init__(self, place: LocalFolder, name: str) -> None:
        self._place, self.name = place, name
        self._sizes: dict[str, int] = {}

    @property
    def sizes(self) -> Mapping[str, int]:
        return MappingProxyType(self._sizes)

    def write(self, name: str, content: bytes | memoryview) -> None:
        *folders, last = f"{self.name}/{name}".split("/")
        with self._place.folder(folders, make=True, sync=False) as folder:
            durable.write_file(folder, last, content, again=name in self._sizes)
        self._sizes[name] = memoryview(content).nbytes

    def open(self, name: str) -> BufferedReader:
        return self._place.open(f"{self.name}/{name}")

    def remove(self, name: str) -> None:
        del self._sizes[name]
        self._place.remove(f"{self.name}/{name}")

    def publish(self) -> tuple[FileRecord, ...]:
        self._refuse_other_files()
        folders = {self.name}
        for name in self._sizes:
            with self.open(name) as stream:
                os.fsync(stream.fileno())
            parents = name.split("/")[:-1]
            folders.update("/".join([self.name, *parents[: i + 1]]) for i in range(len(parents)))
        for inner in sorted(folders, reverse=True):  # what is inside of a folder comes before it
            with self._place.folder(inner.split("/")) as folder:
                durable.sync_folder(folder)
        with self._place.folder(self.name.split("/")[:-1]) as folder:
            durable.sync_folder(folder)
        return tuple(self._record(name) for name in sorted(self._sizes))

    def _refuse_other_files(self) -> None:
        found = {entry.name for entry in self._place.tree(self.name) if entry.kind != "folder"}
        wrong = [f"{name} was written and is gone" for name in sorted(self._sizes.keys() - found)]
        wrong += [f"{name} is there and was not written" for name in sorted(found - self._sizes.keys())]
        if wrong or not found:
            listed = "; ".join(wrong[:5]) + f"; and {len(wrong) - 5} more" * (len(wrong) > 5) or "nothing was written into it"
            advice = "someone else changes this folder, or the disk has lost it: try again"
            raise UnexpectedFilesError(f"{self._place.shown(self.name)}: {listed}; {advice}")

    def _record(self, name: str) -> FileRecord:
        with self.open(name) as stream:
            found, size_bytes = os.fstat(stream.fileno()).st_size, self._sizes[name]
            if found != size_bytes:
                shown = self._place.shown(f"{self.name}/{name}")
                raise UnexpectedFilesError(f"{shown}: found {found} bytes, but {size_bytes} were written; try again")
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(path=f"{self.name.rpartition('/')[2]}/{name}", size_bytes=size_bytes, sha256=digest)
