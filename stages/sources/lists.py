"""A list of paths as a source, `@list.txt`: one a line, of photographs, and of tars, folders and Parquet files.

A path is as it stands, no pattern; a relative one starts at the list's own folder. Empty lines, and lines that begin with `#`,
say nothing. The photographs of a list are one source, which may grow as a folder may. Whatever else it names is a source of its
own, as if the command had named it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from manifests import Problem
from manifests.errors import RefusedError
from manifests.location import is_url
from stages.sources.folders import read_member, row_of
from stages.sources.source import (
    CatalogueRow,
    Found,
    SourceKind,
    UnreadImages,
    is_image,
    is_unread,
    problem_of,
)

SIGN = "@"
_CHECKED_BYTES = 4096


class ListError(RefusedError):
    """A list that cannot be read, or is none."""


class Line(NamedTuple):
    """A line that names something: its number from 1, and its text without the white space around it."""

    number: int
    text: str


def lines_of(location: Path) -> Iterator[Line]:
    """The lines that name something. Raises ListError for a list that cannot be read, or is no text."""
    try:
        with location.open("rb") as file:
            if b"\0" in file.read(_CHECKED_BYTES):
                raise ListError(f"{SIGN}{location}: not a text file; expected a list of paths, one a line")
            file.seek(0)
            for number, line in enumerate(file, start=1):
                text = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
                if text and not text.startswith("#"):
                    yield Line(number, text)
    except OSError as error:
        raise ListError(f"{SIGN}{location}: cannot be read: {error.strerror}") from error


def is_photograph(line: Line) -> bool:
    """Whether a line names a photograph, by its suffix, in whatever format."""
    name = os.path.basename(line.text)
    return not is_url(line.text) and (is_image(name) or is_unread(name))


def member_of(location: Path, line: Line) -> str:
    """A photograph's path: below the list's folder relative to it, elsewhere from the root."""
    path = os.path.normpath(location.parent / line.text)
    below = os.path.relpath(path, location.parent)
    return path if below.startswith("..") else below


def _catalogue(location: Path) -> Found:
    rows: dict[str, CatalogueRow] = {}
    problems: list[Problem] = []
    unread = UnreadImages()
    try:
        for line in filter(is_photograph, lines_of(location)):
            member, where = member_of(location, line), f"{location.name}:{line.number}"
            if is_unread(os.path.basename(member)):
                unread.add(member, where)
            elif member not in rows:
                row = row_of(location.parent, member, where)
                if isinstance(row, Problem):
                    problems.append(row)
                else:
                    rows[member] = row
    except ListError as error:
        problems.append(problem_of("unreadable", location.name, str(error)))
    return Found(list(rows.values()), sum(row.size_bytes for row in rows.values()), problems + unread.problems())


def _read(location: Path, row: CatalogueRow) -> bytes:
    return read_member(location.parent, row)


def _recognises(path: Path) -> bool:
    return False  # by its @ alone


LIST = SourceKind(words="a list after @", recognises=_recognises, catalogue=_catalogue, read=_read, can_grow=True)
