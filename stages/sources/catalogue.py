"""The catalogue: what images a source holds, found before any work starts, and every problem of the source itself."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import braceexpand

from manifests import Problem
from manifests.errors import RefusedError
from manifests.location import Location, Url, absolute, is_url, parents
from stages.sources import buckets, lists, parquet
from stages.sources.buckets import BucketImages, find_urls
from stages.sources.kinds import KINDS, kind_of
from stages.sources.photographs import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from stages.sources.source import CatalogueRow, Source, SourceContent, problem_of, suffix_of

COLUMN_SIGN = "?column="
"""At the end of a pattern: the column of Parquet files that has the images."""
_READERS = 8
_MAX_NAME = 96
"""Of a source. Names of files are made from it, some 50 characters longer, and some file systems end at 143."""


class SourceNotFoundError(RefusedError):
    """Patterns that name no sources: nothing, something that is of no kind, or a folder within another."""


class _Asked(NamedTuple):
    """What a pattern, or a line of a list, asks for: a path or URL, the column of Parquet files, and where it was said."""

    text: str
    column: str | None = None
    said: str = ""
    literal: bool = False
    """A path as it stands, no glob."""


class _Place(NamedTuple):
    """Where a source is, before it has its name."""

    location: Location
    kind: str
    e_tag: str | None = None
    column: str | None = None


def expand_sources(patterns: Sequence[str]) -> list[Source]:
    """Brace patterns, globs, tars, Parquet files, folders and @lists, in the order given; each once, whatever leads to it.

    A pattern that ends in `?column=NAME` says which column of Parquet files has the images. Raises SourceNotFoundError that
    lists every pattern without a match, every Parquet file of which it is not plain which column to take, and every folder
    inside another one, whose images would be labelled twice.
    """
    refused: list[str] = []
    asked, of_photographs = _asked(patterns, refused)
    found = [
        *_at_urls(asked, refused),
        *((item, place) for item in asked if not is_url(item.text) for place in _on_disk(item, refused)),
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        chosen = list(pool.map(_with_column, *zip(*found, strict=True))) if found else []
    refused += [each for each in chosen if isinstance(each, str)]
    places: dict[object, _Place] = {}
    for place in (each for each in chosen if not isinstance(each, str)):
        places.setdefault((_identity(place.location), place.column), place)
    refused += _nested(list(places.values()), of_photographs)
    if refused:
        raise SourceNotFoundError("; ".join(refused))
    return list(_named([*places.values(), *(_Place(path, "list") for path in of_photographs)]))


def split_column(pattern: str) -> tuple[str, str | None]:
    """A pattern without its `?column=NAME`, and that name."""
    text, sign, column = pattern.rpartition(COLUMN_SIGN)
    return (text, column) if sign and column else (pattern, None)


def _asked(patterns: Sequence[str], refused: list[str]) -> tuple[list[_Asked], list[Path]]:
    """What the patterns ask for, and the lists among them that name photographs. Raises ListError for one that is none."""
    asked, lists_of_photographs = [], {}
    for pattern in patterns:
        if not pattern.startswith(lists.SIGN):
            text, column = split_column(pattern)
            asked += [_Asked(each, column) for each in _expanded(text)]
            continue
        location = Path(pattern.removeprefix(lists.SIGN)).absolute()
        named = list(lists.lines_of(location))
        if not named:
            refused.append(f"{pattern}: the list names nothing; expected paths, one a line")
        if any(map(lists.is_photograph, named)):
            lists_of_photographs[location] = None
        for line in named:
            said = f"{location.name}:{line.number}: "
            if line.text.startswith(lists.SIGN):
                refused.append(f"{said}{line.text}: a list in a list is not read")
            elif not lists.is_photograph(line):
                text, column = split_column(line.text)
                asked.append(_Asked(text if is_url(text) else str(location.parent / text), column, said, literal=True))
    return asked, list(lists_of_photographs)


def _at_urls(asked: Sequence[_Asked], refused: list[str]) -> Iterator[tuple[_Asked, _Place]]:
    """Those of one column are looked for together, for each is a request."""
    alike: dict[tuple[str | None, str], list[str]] = {}
    for item in asked:
        if is_url(item.text):
            alike.setdefault((item.column, item.said), []).append(item.text)
    for (column, said), texts in alike.items():
        for url in find_urls(texts, why := []):
            yield _Asked(str(url.url), column, said), _Place(*url)
        refused += [said + each for each in why]


def _on_disk(item: _Asked, refused: list[str]) -> Iterator[_Place]:
    paths = [Path(item.text)] if os.path.exists(item.text) else []
    if not paths and not item.literal:
        paths = list(map(Path, sorted(glob.glob(item.text, recursive=True))))
    if not paths:
        refused.append(f"{item.said}{item.text}: nothing there")
    for path in paths:
        kind = kind_of(path)
        if kind == "folder" and (files := parquet.files_of(path)):
            yield from (_Place(file.absolute(), "parquet") for file in files)
        elif kind:
            yield _Place(path.absolute(), kind)
        else:
            words = " nor ".join(kind.words for kind in KINDS.values())
            refused.append(f"{item.said}{path}: neither {words}{_hint(path)}")


def _hint(path: Path) -> str:
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if {".tgz", ".tar"} & suffixes:
        return " (decompress it first)"
    if ".txt" in suffixes:
        return f" (as a list of paths: {lists.SIGN}{path})"
    return " (save it as Parquet: `Dataset.to_parquet`)" if ".arrow" in suffixes else ""


def _identity(location: Location) -> object:
    if isinstance(location, Url):
        return location
    status = location.stat()
    return status.st_dev, status.st_ino


def _with_column(item: _Asked, place: _Place) -> _Place | str:
    """A place with the column of its images, if it is a Parquet file; in words why it cannot be told."""
    try:
        if place.kind == "parquet":
            return place._replace(column=parquet.chosen_column(place.location, item.column, place.e_tag))
    except parquet.ColumnError as error:
        return f"{item.said}{place.location}: {error}"
    if item.column is not None:
        return f"{item.said}{place.location}: no Parquet file, so it has no column {item.column!r}"
    return place


def _nested(places: Sequence[_Place], of_photographs: Sequence[Path]) -> Iterator[str]:
    """In words: what would be labelled twice, for it is inside a folder that is a source too."""
    folders = {absolute(place.location): place.location for place in places if place.kind == "folder"}
    for real, place in folders.items():
        yield from (
            f"{place}: inside {folders[parent]}, which is a source too" for parent in parents(real) if parent in folders
        )
    for location in of_photographs if folders else ():
        for line in filter(lists.is_photograph, lists.lines_of(location)):
            path = absolute(location.parent / line.text)
            if folder := next((folders[parent] for parent in parents(path) if parent in folders), None):
                yield f"{location.name}:{line.number}: {line.text}: inside {folder}, which is a source too"


def _expanded(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError:  # a brace without its partner stands for itself
        return [pattern]


def _named(places: Iterable[_Place]) -> Iterator[Source]:
    taken: set[str] = set()
    for place, kind, e_tag, column in places:
        stem = place.name if kind == "folder" else PurePosixPath(place.name).stem
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "source"
        if len(base) > _MAX_NAME:
            base = f"{base[: _MAX_NAME - 9]}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
        yield Source(name=take_name(base, taken), kind=kind, location=place, e_tag=e_tag, column=column)


def take_name(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is taken then."""
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}-{count}"
    taken.add(free)
    return free


def read_source(source: Source) -> SourceContent:
    """Catalogue one source. Damage is reported as problems beside what could be read, never raised.

    Of images with one key the first is kept.
    """
    location = source.location
    if source.kind == "parquet":
        rows, size_bytes, problems = parquet.catalogue(location, source.column, source.e_tag)
    else:
        found = KINDS[source.kind].catalogue(location) if isinstance(location, Path) else buckets.catalogue(source)
        rows, size_bytes, problems = found
    unique: dict[str, CatalogueRow] = {}
    for row in rows:
        if row.key in unique:
            message = f"the key {row.key!r} is already taken by {unique[row.key].member!r}; this one is left out"
            problems.append(problem_of("duplicate_key", row.member, message))
        else:
            unique[row.key] = row
    if not unique:
        problems.append(problem_of("no_images", source.name, "no image was found in this source"))
    return SourceContent(rows=tuple(unique.values()), size_bytes=size_bytes, problems=tuple(problems))


def cross_source_problems(contents: Sequence[tuple[Source, SourceContent]]) -> tuple[Problem, ...]:
    """A problem `duplicate_key_across_sources` for each image whose key an earlier source has too.

    All of them stay: source and key together identify an image. But they may be one photograph, labelled twice.
    """
    first_in: dict[str, str] = {}
    problems = []
    for source, content in contents:
        for row in content.rows:
            first = first_in.setdefault(row.key, source.name)
            if first != source.name:
                message = f"the key {row.key!r} is also in the source {first!r}; both images are labelled"
                problems.append(problem_of("duplicate_key_across_sources", f"{source.name}:{row.key}", message))
    return tuple(problems)


class SourceImages:
    """The photographs of some rows of a source, read in any order by any number of threads."""

    def __init__(self, source: Source, rows: Sequence[CatalogueRow]) -> None:
        self._source, self._rows = source, rows
        reader = KINDS[source.kind].images or (BucketImages if isinstance(source.location, Url) else None)
        self._reader = reader and reader(source, rows)

    def read(self, index: int) -> bytes:
        """The bytes of a row's file.

        Raises OSError where they cannot be read in full, where others are in their place, and on a machine that does not read
        their format, unlike the one that catalogued them.
        """
        source, row = self._source, self._rows[index]
        suffix = suffix_of(PurePosixPath(row.member).name)
        if suffix not in IMAGE_SUFFIXES and source.kind != "parquet":
            unread = f"was catalogued, but here {suffix} is not read; {UNREAD_SUFFIXES.get(suffix)}"
            raise OSError(f"{source.location}: {row.member} {unread}")
        if self._reader:
            return self._reader.read(index)
        assert isinstance(source.location, Path)
        return KINDS[source.kind].read(source.location, row)


def read_images(source: Source, rows: Sequence[CatalogueRow]) -> Iterator[bytes]:
    """The bytes of each row's file, in order. Raises as `SourceImages.read`."""
    images = SourceImages(source, rows)
    yield from map(images.read, range(len(rows)))
