"""A folder that is written on this machine, and made durable with the digests of exactly what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING

from manifests import durable
from manifests.place import NewFolder, UnexpectedFilesError, split
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
        records: list[FileRecord] = []
        names, (folders, last) = sorted(self._sizes), split(self.name)
        with self._place.folder(folders) as parent:
            with self._place.folder([*folders, last]) as folder:
                self._visit(folder, names, lambda _, file: os.fsync(file), durable.sync_folder)
                durable.sync_folder(parent)
                self._visit(folder, names, lambda name, file: records.append(self._record(name, file)))
        return tuple(records)

    def _visit(
        self,
        folder: int,
        names: Sequence[str],
        do: Callable[[str, int], None],
        leave: Callable[[int], None] = lambda _: None,
        prefix: str = "",
    ) -> None:
        """Opens the files of a folder, each folder in it once, and leaves a folder after what is inside of it."""
        for head, group in groupby(names, key=lambda name: name.partition("/")[0]):
            below = [rest for name in group if (rest := name.partition("/")[2])]
            shown = f"{self.name}/{prefix}{head}"
            with self._place.opened(folder, head, shown, "folder" if below else "file") as found:
                if below:
                    self._visit(found, below, do, leave, f"{prefix}{head}/")
                else:
                    do(prefix + head, found)
        leave(folder)

    def _refuse_other_files(self) -> None:
        found = {entry.name for entry in self._place.tree(self.name) if entry.kind != "folder"}
        wrong = [f"{name} was written and is gone" for name in sorted(self._sizes.keys() - found)]
        wrong += [f"{name} is there and was not written" for name in sorted(found - self._sizes.keys())]
        if wrong or not found:
            listed = "; ".join(wrong[:5]) + f"; and {len(wrong) - 5} more" * (len(wrong) > 5) or "nothing was written into it"
            advice = "someone else changes this folder, or the disk has lost it: try again"
            raise UnexpectedFilesError(f"{self._place.shown(self.name)}: {listed}; {advice}")

    def _record(self, name: str, file: int) -> FileRecord:
        found, size_bytes = os.fstat(file).st_size, self._sizes[name]
        if found != size_bytes:
            shown = self._place.shown(f"{self.name}/{name}")
            raise UnexpectedFilesError(f"{shown}: found {found} bytes, but {size_bytes} were written; try again")
        with os.fdopen(file, "rb", closefd=False) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(path=f"{self.name.rpartition('/')[2]}/{name}", size_bytes=size_bytes, sha256=digest)
