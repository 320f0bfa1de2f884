"""The catalogue: what images a source holds, found before any work starts, and every problem of the source itself."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import braceexpand

from manifests import Problem
from manifests.errors import RefusedError
from manifests.location import Location, Url, absolute, is_url, parents
from stages.sources import buckets
from stages.sources.buckets import BucketImages, find_urls
from stages.sources.kinds import KINDS, kind_of
from stages.sources.photographs import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from stages.sources.source import CatalogueRow, Source, SourceContent, problem_of, suffix_of

_MAX_NAME = 96
"""Of a source. Names of files are made from it, some 50 characters longer, and some file systems end at 143."""


class SourceNotFoundError(RefusedError):
    """Patterns that name no sources: nothing, something that is neither a tar nor a folder, or a folder within another."""


def expand_sources(patterns: Sequence[str]) -> list[Source]:
    """Brace patterns, globs, tars and folders, in the order given; each once, whatever links and patterns lead to it.

    Raises SourceNotFoundError that lists every pattern without a match, and every folder inside another one, whose images
    would be labelled twice.
    """
    locations: dict[object, tuple[Location, str, str | None]] = {}
    refused: list[str] = []
    expanded = [item for pattern in patterns for item in _expanded(pattern)]
    urls = find_urls([item for item in expanded if is_url(item)], refused)
    for url, kind, e_tag in urls:
        locations.setdefault(url, (url, kind, e_tag))
    for path in (path for item in expanded if not is_url(item) for path in _matches(item, refused)):
        if kind := kind_of(path):
            status = path.stat()
            locations.setdefault((status.st_dev, status.st_ino), (path.absolute(), kind, None))
        else:
            hint = " (decompress it first)" if {".tgz", ".tar"} & {suffix.lower() for suffix in path.suffixes} else ""
            refused.append(f"{path}: neither {' nor '.join(kind.words for kind in KINDS.values())}{hint}")
    folders = {absolute(place): place for place, kind, _ in locations.values() if kind == "folder"}
    refused += [
        f"{place}: inside {folders[parent]}, which is a source too"
        for real, place in folders.items()
        for parent in parents(real)
        if parent in folders
    ]
    if refused:
        raise SourceNotFoundError("; ".join(refused))
    return list(_named(locations.values()))


def _expanded(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError:  # a brace without its partner stands for itself
        return [pattern]


def _matches(item: str, refused: list[str]) -> list[Path]:
    found = [item] if os.path.exists(item) else sorted(glob.glob(item, recursive=True))
    if not found:
        refused.append(f"{item}: nothing there")
    return list(map(Path, found))


def _named(locations: Iterable[tuple[Location, str, str | None]]) -> Iterator[Source]:
    taken: set[str] = set()
    for place, kind, e_tag in locations:
        stem = place.name if kind == "folder" else PurePosixPath(place.name).stem
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "source"
        if len(base) > _MAX_NAME:
            base = f"{base[: _MAX_NAME - 9]}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
        yield Source(name=take_name(base, taken), kind=kind, location=place, e_tag=e_tag)


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
        self._in_bucket = BucketImages(source, rows) if isinstance(source.location, Url) else None

    def read(self, index: int) -> bytes:
        """The bytes of a row's file.

        Raises OSError where they cannot be read in full, where others are in their place, and on a machine that does not read
        their format, unlike the one that catalogued them.
        """
        source, row = self._source, self._rows[index]
        if (suffix := suffix_of(PurePosixPath(row.member).name)) not in IMAGE_SUFFIXES:
            unread = f"was catalogued, but here {suffix} is not read; {UNREAD_SUFFIXES.get(suffix)}"
            raise OSError(f"{source.location}: {row.member} {unread}")
        if self._in_bucket:
            return self._in_bucket.read(index)
        assert isinstance(source.location, Path)
        return KINDS[source.kind].read(source.location, row)


def read_images(source: Source, rows: Sequence[CatalogueRow]) -> Iterator[bytes]:
    """The bytes of each row's file, in order. Raises as `SourceImages.read`."""
    images = SourceImages(source, rows)
    yield from map(images.read, range(len(rows)))
