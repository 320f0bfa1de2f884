"""Tars and folders of photographs in a bucket, and tars at a web server: found, catalogued and read as those on a disk are.

A tar's ETag is that of the moment it was found. Every later request names it, so that a tar that was replaced is refused.
"""

from __future__ import annotations

import fnmatch
import io
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import NamedTuple

from manifests.bucket_store import ObjectTooLargeError, get, head, in_words, open_store, package
from manifests.errors import RefusedError
from manifests.location import BUCKET_SCHEMES, Url
from stages.sources import tars
from stages.sources.source import (
    CatalogueRow,
    Found,
    Source,
    UnreadImages,
    as_text,
    has_changed,
    is_hidden,
    is_image,
    is_unread,
    problem_of,
)

_SPAN_BYTES = 1 << 25
"""The most that one request brings of a tar, unless a single photograph is larger."""
_GAP_BYTES = 1 << 20
"""What is read and thrown away rather than asking twice."""
_REQUESTS = 16
_WEB = ("http", "https")
_GLOB = re.compile(r"[*?\[]")


class FoundUrl(NamedTuple):
    """A source in a bucket: its kind as catalogues record it, and the ETag of a file."""

    url: Url
    kind: str
    e_tag: str | None


def find_urls(texts: Sequence[str], refused: list[str]) -> list[FoundUrl]:
    """The sources of these URLs and globs, in order; why one is none is added to `refused`, in words."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        found = list(pool.map(_found, texts))
    refused += [each for each in found if isinstance(each, str)]
    return [url for each in found if not isinstance(each, str) for url in each]


def _found(text: str) -> list[FoundUrl] | str:
    try:
        url = Url(text)
        if url.scheme not in (*BUCKET_SCHEMES, *_WEB, "memory"):
            return f"{text}: expected a path, or a URL that begins with one of {', '.join((*BUCKET_SCHEMES, *_WEB))}"
        if url.scheme in _WEB and ("?" in text or not _kind_of_file(url)):
            return f"{text}: of web servers only plain URLs of .tar and .parquet files are read"
        urls = [url] if url.scheme in _WEB or not _GLOB.search(url.key) else list(_matching(url))
        return [_described(each) for each in urls] or f"{text}: nothing there"
    except FileNotFoundError as error:
        return f"{text}: {error.strerror or 'nothing there'}"
    except (OSError, RefusedError, ValueError) as error:
        return f"{text}: {error}"


def _described(url: Url) -> FoundUrl:
    if kind := _kind_of_file(url):
        return FoundUrl(url, kind, head(url)["e_tag"])
    if next(_listed(url), None) is None:
        raise FileNotFoundError("nothing there; expected a .tar or .parquet file, or photographs below it")
    return FoundUrl(url, "folder", None)


def _kind_of_file(url: Url) -> str | None:
    """The kind of a source that is a single file, by its name; None for a folder."""
    suffix = PurePosixPath(url.name).suffix.lower()
    return suffix[1:] if suffix in (".tar", ".parquet") else None


def _matching(pattern: Url) -> Iterator[Url]:
    """The objects, and what stands for folders, that a glob names; `*` does not match `/`."""
    steps = pattern.key.split("/")
    first = next(i for i, step in enumerate(steps) if _GLOB.search(step))
    start = pattern.bucket / "/".join(steps[:first])
    seen = set[str]()
    for key, _ in _listed(start):
        there = f"{start.key}/{key}".lstrip("/").split("/")[: len(steps)]
        name = "/".join(there)
        matches = len(there) == len(steps) and all(map(fnmatch.fnmatchcase, there, steps))
        if matches and name not in seen:
            seen.add(name)
            yield pattern.bucket / name


def _listed(folder: Url) -> Iterator[tuple[str, int]]:
    """Name, relative to the folder, and size of everything below it, in the order of the names."""
    with in_words(str(folder)):
        for items in package().list(open_store(folder.bucket), folder.key or None):
            yield from ((item["path"][len(folder.key) :].lstrip("/"), item["size"]) for item in items)


def catalogue(source: Source) -> Found:
    """What is in a source in a bucket. Damage is a problem, never raised."""
    assert isinstance(source.location, Url)
    if source.kind == "tar":
        return tars.catalogue(source.location, source.e_tag)
    try:
        return _catalogue_folder(source.location)
    except OSError as error:
        return Found([], 0, [problem_of("unreadable", source.location.name, f"cannot be listed: {error}")])


def _catalogue_folder(folder: Url) -> Found:
    """In the order in which a folder on a disk is walked: the files of each, then the folders in it."""
    sizes = {name: size for name, size in _listed(folder) if not any(map(is_hidden, name.split("/")))}
    names = sorted(sizes, key=_as_walked)
    rows = [
        CatalogueRow(key=as_text(name), member=name, offset=0, size_bytes=sizes[name])
        for name in names
        if is_image(name.rpartition("/")[2])
    ]
    photographs, unread = {PurePosixPath(row.member).with_suffix("") for row in rows}, UnreadImages()
    for name in names:
        if is_unread(name.rpartition("/")[2]) and PurePosixPath(name).with_suffix("") not in photographs:
            unread.add(name.rpartition("/")[2], name)
    return Found(rows, sum(row.size_bytes for row in rows), unread.problems())


def _as_walked(name: str) -> list[tuple[bool, str]]:
    *folders, last = name.split("/")
    return [*((True, folder) for folder in folders), (False, last)]


class BucketImages:
    """The photographs of a part, read in any order by several threads; those of a tar in spans of neighbours, one request each,
    which are held until all of them have been read once."""

    def __init__(self, source: Source, rows: Sequence[CatalogueRow]) -> None:
        self._source, self._rows = source, rows
        self._span_of = _spans(rows) if source.kind == "tar" else {}
        self._left = {span: set(span) for span in self._span_of.values()}
        self._locks = {span: threading.Lock() for span in self._left}
        self._held: dict[range, bytes] = {}

    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises OSError where they cannot be had, or are not those that were catalogued."""
        assert isinstance(self._source.location, Url)
        row = self._rows[index]
        if self._source.kind != "tar":
            url = self._source.location / row.member
            try:
                content = get(url, limit_bytes=row.size_bytes)[1]
            except ObjectTooLargeError:
                raise has_changed(url, row) from None
            if len(content) != row.size_bytes:
                raise has_changed(url, row)
            return content
        span, start = self._span_of[index], self._begin(self._span_of[index])
        with self._locks[span]:
            if span not in self._held:
                self._held[span] = self._fetch(span)
            held = self._held[span]
            self._left[span].discard(index)
            if not self._left[span]:
                del self._held[span]
                self._left[span] = {index}  # read once more, it is fetched once more
        return tars.read_from(io.BytesIO(held), row, start, self._source.location)

    def _begin(self, span: range) -> int:
        first = self._rows[span.start]
        return first.offset - first.header_bytes

    def _fetch(self, span: range) -> bytes:
        assert isinstance(self._source.location, Url)
        start, last = self._begin(span), self._rows[span[-1]]
        options = {"range": (start, last.offset + last.size_bytes), "if_match": self._source.e_tag}
        return get(self._source.location, {name: value for name, value in options.items() if value is not None})[1]


def _spans(rows: Sequence[CatalogueRow]) -> dict[int, range]:
    """The rows that are read together with each: neighbours in a tar, up to _SPAN_BYTES."""
    spans: dict[int, range] = {}
    start = 0
    for i, row in enumerate(rows):
        first, before = rows[start], rows[i - 1]
        gap = row.offset - row.header_bytes - (before.offset + before.size_bytes)
        size = row.offset + row.size_bytes - (first.offset - first.header_bytes)
        if i > start and (not 0 <= gap <= _GAP_BYTES or size > _SPAN_BYTES):
            spans |= dict.fromkeys(range(start, i), range(start, i))
            start = i
    return spans | dict.fromkeys(range(start, len(rows)), range(start, len(rows)))
