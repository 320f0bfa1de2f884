"""What the manifests of a column say, for whoever opens a run of many parts: remembered, so that it is not read again.

`index/<column>` in the run remembers it. It is never needed, and nothing is taken from it for a file that may have changed: an
entry counts only where the place has the same state of the manifest (see `manifests.place.Entry`) as when that was read. What
is missing, cut, of another format or of another run is as if it were not there. Whether the files of a part are still there is
not remembered; `verify`, `repair`, `clean` and who reads a part's arrays take nothing from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from manifests.checker import Scalar
from manifests.place import place_of
from manifests.run import ColumnListing, load_part
from manifests.schema import PartManifest

INDEX = "index"
WORTH_AN_INDEX = 200
"""Fewer manifests are read again each time: nothing is written into a small run, and seldom into one that grows."""
_FORMAT = "distill-any-depth index 1"
_THREADS = 8  # a network disk wants several requests at once


class PartFacts(NamedTuple):
    """A valid manifest without its long lists: all that opening a run asks for. Not to be changed.

    `rejected` has the place in the part and the kind of problem of each rejected image. `layout` are the paths of the files in
    the group, `sizes` their sizes in bytes, `bytes` all of them together; `rows` and `sizes` are numbers with commas between:
    few ask for them. `inputs` is a digest of the images' content_sha256, `digest` that of `part_digest`.
    """

    zarr: str
    images: int
    not_drawn: int
    rejected: list[list[Any]]
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
    def labelled(self) -> int:
        return self.images - self.not_drawn - len(self.rejected)

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
_COUNTS, _TEXTS = ("images", "not_drawn", "bytes", "views", "pixels"), ("zarr", "inputs", "digest", "sizes")
_VALUES = ("min", "max", "mean", "max_quantisation_error")


def part_facts(run_dir: Path, column: str, listing: ColumnListing) -> dict[str, PartFacts | Exception]:
    """What the column's manifests say, by part; the OSError or ValueError of those that cannot be read or trusted.

    listing: of the column, with states. Reads the manifests that the index does not have as they are, and writes it anew where
    they are many and it can be written.
    """
    known, states = _remembered(run_dir, column, listing.manifest_bytes), listing.states
    facts: dict[str, PartFacts | Exception] = {
        part: known[part][1] for part, state in states.items() if part in known and known[part][0] == state
    }
    unread = sorted(listing.manifests - facts.keys())
    with ThreadPoolExecutor(_THREADS) as pool:
        facts.update(zip(unread, pool.map(partial(_read, run_dir, column), unread), strict=True))
    if len(unread) >= WORTH_AN_INDEX:
        lasting = {part: found for part in states if isinstance(found := facts[part], PartFacts)}
        if sum(part in lasting for part in unread) >= WORTH_AN_INDEX:
            with suppress(OSError):  # a run that is only read, or a full disk
                place_of(run_dir).replace(f"{INDEX}/{column}", _written(column, states, lasting))
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
        rejected=[[i, image.problem.kind] for i, image in enumerate(record.images) if image.problem],
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


def _read(run_dir: Path, column: str, part: str) -> PartFacts | Exception:
    try:
        return facts_of(load_part(run_dir, column, part))
    except (OSError, ValueError) as error:
        return error


# --- the file -------------------------------------------------------------------------------------------------------


def _written(column: str, states: Mapping[str, str], facts: Mapping[str, PartFacts]) -> bytes:
    """The sha256 of what follows, in hexadecimal; a newline; JSON, with a list for each field, an item for each part."""
    alike: dict[str, int] = {}
    kinds = [alike.setdefault(json.dumps(found[len(_OWN) :]), len(alike)) for found in facts.values()]
    document = {
        "format": _FORMAT,
        "column": column,
        "parts": list(facts),
        "states": [states[part] for part in facts],
        "alike": [json.loads(text) for text in alike],
        "kinds": kinds,
        **dict(zip(_OWN, zip(*(found[: len(_OWN)] for found in facts.values()), strict=True), strict=True)),
    }
    content = json.dumps(document, separators=(",", ":")).encode()
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _remembered(run_dir: Path, column: str, limit_bytes: int) -> dict[str, tuple[str, PartFacts]]:
    """State and facts by part; nothing where the file is not as it was written, or larger than the manifests themselves."""
    try:
        raw = place_of(run_dir).read(f"{INDEX}/{column}", limit_bytes=limit_bytes)
        checksum, _, content = raw.partition(b"\n")
        if checksum != hashlib.sha256(content).hexdigest().encode():
            return {}
        return _parsed(json.loads(content, parse_constant=_refuse_constant), column)
    except (OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError):
        return {}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}, expected JSON")


def _parsed(document: Any, column: str) -> dict[str, tuple[str, PartFacts]]:
    """Raises ValueError, TypeError or LookupError for what `_written` does not write."""
    if (document["format"], document["column"]) != (_FORMAT, column):
        raise ValueError("of another format, or another column")
    _refuse_other_types(document, ("parts", "states", *_TEXTS), {str})
    _refuse_other_types(document, _COUNTS, {int})
    _refuse_other_types(document, _VALUES, {int, float, type(None)})
    _refuse_other_types(document, ("rows",), {str, type(None)})
    listed = ",".join(filter(None, chain(document["sizes"], document["rows"])))
    if not set(listed) <= set("0123456789,") or not 0 < min(map(len, listed.split(",") if listed else "0")):
        raise ValueError("no numbers with commas between")
    alike = document["alike"]
    for layout, fingerprint, depth_space, licence in alike:
        if not set(map(type, (*layout, *fingerprint, depth_space or "", licence or ""))) <= {str}:
            raise ValueError("values of another type")
    shared = [list(column) for column in zip(*(alike[kind] for kind in document["kinds"]), strict=True)]
    facts = list(map(PartFacts, *(document[name] for name in _OWN), *shared))
    for found in facts:
        if found.sizes.count(",") + bool(found.sizes) != len(found.layout):
            raise ValueError("files without sizes, or sizes without files")
        for image, kind in found.rejected:
            if not (type(image) is int and 0 <= image < found.images and type(kind) is str):
                raise ValueError("an image that the part does not have")
    return dict(zip(document["parts"], zip(document["states"], facts, strict=True), strict=True))


def _refuse_other_types(document: Any, fields: Iterable[str], types: set[type]) -> None:
    for field in fields:
        if not set(map(type, document[field])) <= types:
            raise ValueError(f"{field}: values of another type")
