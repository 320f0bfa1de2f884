"""What the manifests of a column say, for whoever opens a run of many parts: remembered, so that it is not read again.

`index/<column>` in the run remembers it. It is never needed, and nothing is taken from it for a file that may have changed: an
entry counts only where the place has the same state of the manifest (see `Place.states`) as when that was read. What
is missing, cut, of another format or of another run is as if it were not there. Whether the files of a part are still there is
not remembered; `verify`, `repair`, `clean` and who reads a part's arrays take nothing from here.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

from manifests.checker import Scalar
from manifests.location import Location
from manifests.place import place_of
from manifests.run import ColumnListing, load_part
from manifests.schema import PartManifest

INDEX = "index"
WORTH_AN_INDEX = 200
"""Fewer manifests are read again each time: nothing is written into a small run, and seldom into one that grows."""
_FORMAT = f"distill-any-depth index 1, {sys.byteorder} endian"
_LIMIT_BYTES = 1 << 14  # for each manifest; most take some 400
_THREADS = 8  # a network disk wants several requests at once


class PartFacts(NamedTuple):
    """A valid manifest without its long lists: all that opening a run asks for. Not to be changed.

    `rejected` has the place in the part and the kind of problem of each rejected image, None for none. `layout` are the paths
    of the files in the group, `sizes` their sizes in bytes, `bytes` all of them together; `rows` and `sizes` are numbers with
    commas between: few ask for them. `inputs` is a digest of the images' content_sha256, `digest` that of `part_digest`.
    """

    zarr: str
    images: int
    not_drawn: int
    rejected: list[list[Any]] | None
    rows: str | None
    inputs: str
    digest: str
    sizes: str
    bytes: int
    views: int
    pixels: int
    min: float | None
    max: float | None
    mean: float | None
    max_quantisation_error: float | None
    layout: list[str]
    fingerprint: Mapping[str, Scalar]
    depth_space: str | None
    licence: str | None

    @property
    def files(self) -> dict[str, int]:
        """The size of each file in bytes, by its path relative to the column's folder."""
        return {f"{self.zarr}/{path}": size for path, size in zip(self.layout, _numbers(self.sizes), strict=True)}

    @property
    def drawn(self) -> list[int] | None:
        """The rows that were to be labelled; None for all."""
        return None if self.rows is None else _numbers(self.rows)


_OWN = PartFacts._fields[:15]
"""What an index has for each part; what follows is alike for many, and stands there once."""
_COUNTS = ("images", "not_drawn", "bytes", "views", "pixels")
_VALUES = ("min", "max", "mean", "max_quantisation_error")
_NUMBERS = dict.fromkeys(("kinds", *_COUNTS), "q") | dict.fromkeys(_VALUES, "d")
"""Lists that are written as 8 bytes for each number, since reading them as JSON takes most of the time; NaN is None."""
_TEXTS = ("parts", "states", "zarr", "rejected", "rows", "inputs", "digest", "sizes")
_TYPES: Mapping[str, set[type]] = {"rejected": {list, type(None)}, "rows": {str, type(None)}}
_LISTS = (*_NUMBERS, *_TEXTS)


class ColumnFacts:
    """What a column's valid manifests say, in a list for each field: with an object for each, 100,000 parts would take seconds.

    `parts` has their names, in order. `unread`: by part, the OSError or ValueError of the manifests that cannot be read or
    trusted. Not to be changed.
    """

    def __init__(
        self, lists: Mapping[str, Sequence[Any]], alike: Sequence[Sequence[Any]], unread: Mapping[str, Exception]
    ) -> None:
        self.parts, self.unread, self._lists, self._alike = lists["parts"], unread, lists, alike

    def all(self, field: str) -> Sequence[Any]:
        """A field of PartFacts, one of its first 15, of every part; NaN where a statistic is None."""
        return self._lists[field]

    def licences(self) -> set[str | None]:
        """Those of any part."""
        return {self._alike[kind][-1] for kind in set(self._lists["kinds"])}

    def of(self, part: str) -> PartFacts:
        """What one manifest says. Raises why it cannot be read or trusted."""
        if part in self.unread:
            raise self.unread[part]
        i = self._places[part]
        own = [None if (value := self._lists[field][i]) != value else value for field in _OWN]
        return PartFacts._make([*own, *self._alike[self._lists["kinds"][i]]])

    def picked(self, places: Iterable[int]) -> ColumnFacts:
        """Those of the parts in these places of the lists, in this order."""
        of = list(places)
        return ColumnFacts({name: [values[i] for i in of] for name, values in self._lists.items()}, self._alike, self.unread)

    def joined(self, states: Mapping[str, str], read: Mapping[str, PartFacts], unread: Mapping[str, Exception]) -> ColumnFacts:
        """With those of further manifests, by part; `states` may lack some of them."""
        alike = {json.dumps(shared): kind for kind, shared in enumerate(self._alike)}
        kinds = [alike.setdefault(json.dumps(found[len(_OWN) :]), len(alike)) for found in read.values()]
        further = {name: [found[i] for found in read.values()] for i, name in enumerate(_OWN)}
        further |= {name: [math.nan if value is None else value for value in further[name]] for name in _VALUES}
        further |= {"parts": list(read), "states": [states.get(part, "") for part in read], "kinds": kinds}
        lists = {name: [*self._lists[name], *further[name]] for name in _LISTS}
        both = ColumnFacts(lists, [json.loads(text) for text in alike], unread)
        return both.picked(sorted(range(len(both.parts)), key=both.parts.__getitem__))

    def written(self, column: str) -> bytes:
        """An index of them: the sha256 of what follows, in hexadecimal; a line of JSON; the numbers."""
        lists = self.picked(i for i, state in enumerate(self._lists["states"]) if state)._lists
        document = {"format": _FORMAT, "column": column, "alike": self._alike} | {name: lists[name] for name in _TEXTS}
        numbers = b"".join(array(code, lists[name]).tobytes() for name, code in _NUMBERS.items())
        content = json.dumps(document, separators=(",", ":")).encode() + b"\n" + numbers
        return hashlib.sha256(content).hexdigest().encode() + b"\n" + content

    def still_as(self, states: Mapping[str, str]) -> ColumnFacts:
        """Those of the parts that have the same state."""
        known = map(operator.eq, map(states.get, self.parts), self._lists["states"])
        same = [i for i, is_same in enumerate(known) if is_same]
        return self if len(same) == len(self.parts) else self.picked(same)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {part: i for i, part in enumerate(self.parts)}


def column_facts(run_dir: Location, column: str, listing: ColumnListing) -> ColumnFacts:
    """What the column's manifests say.

    listing: of the column, with states. Reads the manifests that the index does not have as they are, and writes it anew where
    they are many and it can be written.
    """
    limit_bytes, states = _LIMIT_BYTES * len(listing.manifests), listing.states
    known = _remembered(run_dir, column, limit_bytes).still_as(states)
    if not (missing := sorted(listing.manifests.difference(known.parts))):
        return known
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(missing, pool.map(partial(_read, run_dir, column), missing), strict=True))
    read = {part: facts for part, facts in found.items() if isinstance(facts, PartFacts)}
    facts = known.joined(states, read, {part: error for part, error in found.items() if isinstance(error, Exception)})
    if sum(part in states for part in read) >= WORTH_AN_INDEX:
        with suppress(OSError, OverflowError):  # a run that is only read, a full disk; a number that no run comes to
            if len(content := facts.written(column)) <= limit_bytes:
                place_of(run_dir).replace(f"{INDEX}/{column}", content)
    return facts


def part_digest(record: PartManifest) -> str:
    """What decides a part's content; alike for two attempts with the same outcome."""
    files = [(file.path.removeprefix(record.zarr), file.sha256) for file in record.files]
    images = [(image.key, image.status, image.content_sha256) for image in record.images]
    return _digest([sorted(record.fingerprint.items()), record.depth_space, images, files])


def facts_of(record: PartManifest) -> PartFacts:
    """The facts of a manifest that has been read."""
    told = record.statistics
    return PartFacts(
        zarr=record.zarr,
        images=len(record.images),
        not_drawn=sum(image.status == "not_drawn" for image in record.images),
        rejected=[[i, image.problem.kind] for i, image in enumerate(record.images) if image.problem] or None,
        rows=None if record.rows is None else ",".join(map(str, record.rows)),
        inputs=_digest([image.content_sha256 for image in record.images]),
        digest=part_digest(record),
        sizes=",".join(str(file.size_bytes) for file in record.files),
        bytes=sum(file.size_bytes for file in record.files),
        views=told.views,
        pixels=told.pixels,
        min=told.min,
        max=told.max,
        mean=told.mean,
        max_quantisation_error=told.max_quantisation_error,
        layout=[file.path.removeprefix(f"{record.zarr}/") for file in record.files],
        fingerprint=record.fingerprint,
        depth_space=record.depth_space,
        licence=record.licence,
    )


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _numbers(text: str) -> list[int]:
    return list(map(int, text.split(","))) if text else []


def _read(run_dir: Location, column: str, part: str) -> PartFacts | Exception:
    try:
        return facts_of(load_part(run_dir, column, part))
    except (OSError, ValueError) as error:
        return error


# --- the file -------------------------------------------------------------------------------------------------------


def _remembered(run_dir: Location, column: str, limit_bytes: int) -> ColumnFacts:
    """What the index says; nothing where it is not as it was written, or larger than we write it."""
    try:
        raw = place_of(run_dir).read(f"{INDEX}/{column}", limit_bytes=limit_bytes)
        checksum, _, content = raw.partition(b"\n")
        if checksum == hashlib.sha256(content).hexdigest().encode():
            return _parsed(content, column)
    except (OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError):
        pass
    return ColumnFacts({name: [] for name in _LISTS}, [], {})


def _parsed(content: bytes, column: str) -> ColumnFacts:
    """Raises ValueError, TypeError or LookupError for what `written` does not write."""
    text, _, numbers = content.partition(b"\n")
    document = json.loads(text)
    if (document["format"], document["column"]) != (_FORMAT, column):
        raise ValueError("of another format, or another column")
    parts = document["parts"]
    lists = {name: document[name] for name in _TEXTS}
    for i, (name, code) in enumerate(_NUMBERS.items()):
        lists[name] = array(code, numbers[8 * i * len(parts) : 8 * (i + 1) * len(parts)])
    for name in _TEXTS:
        if not set(map(type, lists[name])) <= _TYPES.get(name, {str}):
            raise ValueError(f"{name}: values of another type")
    if (
        set(map(len, lists.values())) != {len(parts)}
        or not all(map(operator.lt, parts, parts[1:]))
        or min(lists["kinds"], default=0) < 0
    ):
        raise ValueError("lists of different lengths, or parts in another order")
    _refuse_other_numbers(",".join(filter(None, chain(document["sizes"], document["rows"]))))
    for layout, fingerprint, depth_space, licence in document["alike"]:
        if not set(map(type, (*layout, *fingerprint, depth_space or "", licence or ""))) <= {str}:
            raise ValueError("values of another type")
    files = [len(layout) for layout, *_ in document["alike"]]
    for kind, sizes in zip(lists["kinds"], document["sizes"], strict=True):
        if sizes.count(",") + bool(sizes) != files[kind]:
            raise ValueError("files without sizes, or sizes without files")
    for images, rejected in zip(lists["images"], document["rejected"], strict=True):
        for image, kind in () if rejected is None else rejected:
            if not (type(image) is int and 0 <= image < images and type(kind) is str):
                raise ValueError("an image that the part does not have")
    return ColumnFacts(lists, document["alike"], {})


def _refuse_other_numbers(listed: str) -> None:
    if listed and (",," in f",{listed}," or not listed.replace(",", "").isdecimal()):
        raise ValueError("no numbers with commas between")
