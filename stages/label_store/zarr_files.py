"""What Zarr sees of a part's files: those that the door opens, and those that are written into a new folder through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from io import BufferedReader

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from manifests.place import NewFolder


class PartFiles(Store):
    """The files of one group, to be read. It lists nothing: who reads a part knows the names of its arrays."""

    supports_writes: bool = False
    supports_deletes: bool = False
    supports_listing: bool = False

    def __init__(self, open_file: Callable[[str], BufferedReader], *, read_only: bool = True) -> None:
        """`open_file`: by a path in the group; raises FileNotFoundError where there is none."""
        super().__init__(read_only=read_only)
        self._open_file = open_file

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            return prototype.buffer.from_bytes(await asyncio.to_thread(self._read, key, byte_range))
        except FileNotFoundError:
            return None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        try:
            self._open_file(key).close()
        except FileNotFoundError:
            return False
        return True

    def _read(self, key: str, wanted: ByteRequest | None) -> bytes:
        with self._open_file(key) as file:
            if isinstance(wanted, RangeByteRequest):
                file.seek(wanted.start)
                return file.read(wanted.end - wanted.start)
            if isinstance(wanted, OffsetByteRequest):
                file.seek(wanted.offset)
            elif isinstance(wanted, SuffixByteRequest):
                file.seek(max(0, file.seek(0, 2) - wanted.suffix))
            return file.read()

    async def set(self, key: str, value: Buffer) -> None:
        raise PermissionError(f"{key}: a part that is committed is not written to")

    async def delete(self, key: str) -> None:
        raise PermissionError(f"{key}: nothing is removed from a part that is committed")

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError


class NewPartFiles(PartFiles):
    """A group that is yet to be written. What was not written through here is not there."""

    supports_writes: bool = True
    supports_deletes: bool = True

    def __init__(self, folder: NewFolder) -> None:
        super().__init__(folder.open, read_only=False)
        self._folder = folder

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await super().get(key, prototype, byte_range) if key in self._folder.sizes else None

    async def exists(self, key: str) -> bool:
        return key in self._folder.sizes

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self._folder.write, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        if key in self._folder.sizes:
            self._folder.remove(key)
