"""Which image a key means: every catalogued image of a run by its number, and the number by its key.

The keys come from the tables of the sources' catalogues, each held against its digest, so that one lookup opens a few files and
not the manifests of all parts. They are read when a key is first asked for, once for all columns: 20 bytes and a key each.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from manifests import PartId, Run, parts
from manifests.errors import RefusedError
from manifests.location import Location
from manifests.verify import keys_of


class ImageId(NamedTuple):
    """What identifies an image of a run: two sources may have images of one key."""

    source: str
    key: str


class NoLabelsError(RefusedError, KeyError):
    """There is nothing under a key: no such image or column, or an image without labels; the message says why."""

    __str__ = Exception.__str__  # a KeyError's is a repr


class AmbiguousKeyError(RefusedError):
    """A key that several sources have. No KeyError: the images are there."""


class RunImages:
    """The catalogued images of a run. Numbers go through its sources in their order, and in each through its catalogue."""

    def __init__(self, run_dir: Location, run: Run) -> None:
        self.run_dir, self.run, self.parts = run_dir, run, parts(run)
        self.contexts = int(run.plan.get("contexts_per_image", 1))
        self.start = np.concatenate([[0], np.cumsum([part.images for part in self.parts], dtype=np.int64)])
        """The number of each part's first image, and last how many images there are."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_index"}  # a text's hash differs by process

    def place(self, number: int) -> tuple[PartId, int]:
        """The part of an image, and which of the part's images it is."""
        part = int(np.searchsorted(self.start, number, side="right")) - 1
        return self.parts[part], number - int(self.start[part])

    def key(self, number: int) -> str:
        """Of the image of this number."""
        return str(self._index[2][number].as_py())

    def number(self, key: object) -> int:
        """Of the image of a key, or of (source, key).

        Raises NoLabelsError and AmbiguousKeyError, and RefusedError for a table that is damaged or cannot be read.
        """
        source, name = key if isinstance(key, tuple) and len(key) == 2 else (None, key)
        hashes, numbers, keys = self._index
        first, end = (int(np.searchsorted(hashes, hash(name), side)) for side in ("left", "right"))
        found = {self.place(int(n))[0].source: int(n) for n in np.sort(numbers[first:end]) if keys[int(n)].as_py() == name}
        if len(found) > 1 and source is None:
            ways = " or ".join(str((where, name)) for where in found)
            raise AmbiguousKeyError(f"{self.run_dir}: {len(found)} sources have the key {name!r}; say which one: {ways}")
        if not found or source not in (None, *found):
            raise NoLabelsError(f"{self.run_dir}: {self._unknown(source, name, list(found))}")
        return next(iter(found.values())) if source is None else found[source]

    def _unknown(self, source: object, name: object, found: list[str]) -> str:
        if found:
            return f"the source {source!r} has no image of the key {name!r}; {found[0]!r} has"
        keys = self._index[2]
        example = f", expected one of its catalogue such as {keys[0].as_py()!r}" if len(keys) else ": none is catalogued yet"
        return f"found no image of the key {name!r}{example}"

    @cached_property
    def _index(self) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"], pa.ChunkedArray]:
        """The hashes of all keys, sorted, the image of each, and the keys by the number of the image."""
        chunks: list[pa.Array] = []
        for source in self.run.sources:
            chunks += keys_of(self.run_dir, source).cast(pa.string()).chunks
        keys = pa.chunked_array(chunks, pa.string())
        hashes = np.fromiter((hash(key) for chunk in chunks for key in chunk.to_pylist()), np.int64, len(keys))
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order, keys
