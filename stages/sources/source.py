"""What a source is, what is found in one, and what each kind of source gives.

An image that is there but cannot be taken, and damage after which there may have been more, is a problem of a kind in
ProblemKind; nothing is left out without a word except what no suffix says to be an image, hidden files, and another format or a
field of a photograph that is taken. Names from a source are only text here: no path is ever made from a tar's.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from manifests import Problem
from manifests.bucket_store import open_object
from manifests.location import Location, Url
from stages.sources.photographs import IMAGE_SUFFIXES, UNREAD_SUFFIXES

ProblemKind = Literal[
    "compressed_tar",
    "cut_payload",
    "damaged_header",
    "damaged_parquet",
    "data_after_end",
    "duplicate_key",
    "duplicate_key_across_sources",
    "empty_tar",
    "extra_image_in_sample",
    "linked_folder",
    "long_zero_tail",
    "missing_end",
    "no_image_column",
    "no_image_in_sample",
    "no_images",
    "not_a_file",
    "not_utf8",
    "unread_suffix",
    "unreadable",
]
"""All kinds of problems of a source; docs/format.md says what each means."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of a kind in `kinds.KINDS`, and the name that its parts carry."""

    name: str
    kind: str
    location: Location
    e_tag: str | None = None
    """Of a tar or a Parquet file in a bucket, as it was found."""
    column: str | None = None
    """Of a Parquet file: that of its images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueRow:
    """One image: its key, the tar member, path, or column and row, and where its bytes are. All text is UTF-8; a tar's names
    have control characters, and bytes that are no UTF-8, as escapes."""

    key: str
    member: str
    offset: int
    size_bytes: int
    header_bytes: int = 0
    """In a tar: how many bytes of the member's headers stand before `offset`. Not part of the stored table."""


@dataclass(frozen=True, kw_only=True)
class SourceContent:
    """All images of a source in order, its size (of the tar, or of all images), and its problems."""

    rows: tuple[CatalogueRow, ...]
    size_bytes: int
    problems: tuple[Problem, ...]


class Found(NamedTuple):
    """What a kind of source finds in one: images in order, of which several may have one key, bytes in all, and problems."""

    rows: list[CatalogueRow]
    size_bytes: int
    problems: list[Problem]


class ImageReader(Protocol):
    """Reads some images of one source, in any order, for any number of threads."""

    def read(self, index: int) -> bytes:
        """The bytes of one. Raises OSError as the `read` of a kind does."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """The functions of a kind of source.

    words: one, for messages. recognises: whether a path is one. catalogue: what is in it; damage is a problem, never raised.
    read: the bytes of one image; raises OSError where they cannot be read in full or are not those that were catalogued.
    can_grow: whether images can come to it later without touching those that are there.
    images: reads some rows of one source, on a disk or in a bucket, where that takes less than one by one.
    """

    words: str
    recognises: Callable[[Path], bool]
    catalogue: Callable[..., Found]
    read: Callable[[Path, CatalogueRow], bytes]
    can_grow: bool
    images: Callable[[Source, Sequence[CatalogueRow]], ImageReader] | None = None


def open_binary(location: Location, e_tag: str | None = None) -> io.BufferedIOBase:
    """A file, or an object with this ETag, to be read from any position. Raises OSError."""
    return open_object(location, e_tag=e_tag) if isinstance(location, Url) else location.open("rb")


def problem_of(kind: ProblemKind, where: str, message: str) -> Problem:
    return Problem(kind=kind, where=as_text(where), message=message)


def as_text(name: str) -> str:
    """The name with control characters and lone surrogates, which are bytes that were no UTF-8, as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: match[0].encode("unicode_escape").decode(), name)


def has_changed(path: Location, row: CatalogueRow) -> OSError:
    """The error of an image whose bytes are not those that were catalogued."""
    return OSError(f"{path}: {row.member} no longer has the {row.size_bytes} bytes it had when it was catalogued")


class UnreadImages:
    """Images in formats that are not read, by their suffix: each suffix is one problem of a source, however many there are."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._count = Counter[str]()

    def add(self, name: str, where: str) -> None:
        suffix = suffix_of(name)
        self._first.setdefault(suffix, where)
        self._count[suffix] += 1

    def problems(self) -> list[Problem]:
        return [
            problem_of(
                "unread_suffix",
                self._first[suffix],
                f"{count} {'image' if count == 1 else 'images, of which this is the first,'} with the suffix {suffix},"
                f" which is not read; {UNREAD_SUFFIXES[suffix]}",
            )
            for suffix, count in self._count.items()
        ]


def suffix_of(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    return suffix_of(name) in IMAGE_SUFFIXES and not is_hidden(name)


def is_unread(name: str) -> bool:
    return suffix_of(name) in UNREAD_SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Such as `._7.jpg`, which some systems put beside 7.jpg; never a photograph."""
    return not name or name.startswith(".")
