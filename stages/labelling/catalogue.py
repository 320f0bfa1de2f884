"""The catalogue: what images a source holds, found before any work starts, and every problem of the source itself.

A source is a tar (in the manner of WebDataset) or a folder. tarfile and webdataset end without a word at a damaged header
or at a cut between members; this module looks at what stands after the last member and says so.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import braceexpand

from manifests import Problem
from stages.labelling.pictures import IMAGE_SUFFIXES

_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Source:
    """A tar file or a folder, and the name that its parts carry."""

    name: str
    kind: Literal["tar", "folder"]
    location: Path


@dataclass(frozen=True, kw_only=True)
class CatalogueRow:
    """One image: its key, the tar member or relative path, and where its bytes are."""

    key: str
    member: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class SourceContent:
    """All images of a source in order, its size (of the tar, or of all images), and its problems."""

    rows: tuple[CatalogueRow, ...]
    size_bytes: int
    problems: tuple[Problem, ...]


class SourceNotFoundError(ValueError):
    """A pattern that names nothing, or something that is neither a tar nor a folder."""


def expand_sources(patterns: Sequence[str]) -> list[Source]:
    """Brace patterns, globs, tars and folders, in the order given, each location once.

    Raises SourceNotFoundError that lists every pattern without a match.
    """
    locations: dict[Path, None] = {}
    missing: list[str] = []
    for expanded in (item for pattern in patterns for item in braceexpand.braceexpand(pattern)):
        found = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded, recursive=True))
        if not found:
            missing.append(f"{expanded}: nothing there")
        for path in map(Path, found):
            if path.is_dir() or path.suffix.lower() == ".tar":
                locations[path.resolve()] = None
            else:
                missing.append(f"{path}: neither a folder nor a .tar file")
    if missing:
        raise SourceNotFoundError("; ".join(missing))
    return list(_named(locations))


def _named(locations: Iterable[Path]) -> Iterator[Source]:
    taken: set[str] = set()
    for path in locations:
        stem = path.name if path.is_dir() else path.stem
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "source"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        yield Source(name=name, kind="folder" if path.is_dir() else "tar", location=path)


def read_source(source: Source) -> SourceContent:
    """Catalogue one source. Damage is reported as problems beside what could be read, never raised."""
    rows, size_bytes, problems = _read_folder(source) if source.kind == "folder" else _read_tar(source)
    unique: dict[str, CatalogueRow] = {}
    for row in rows:
        if row.key in unique:
            message = f"the key {row.key!r} is already taken by {unique[row.key].member!r}; this one is left out"
            problems.append(Problem(kind="duplicate_key", where=row.member, message=message))
        else:
            unique[row.key] = row
    if not unique:
        problems.append(Problem(kind="no_images", where=source.name, message="no image was found in this source"))
    return SourceContent(rows=tuple(unique.values()), size_bytes=size_bytes, problems=tuple(problems))


def _read_folder(source: Source) -> tuple[list[CatalogueRow], int, list[Problem]]:
    rows = []
    for folder, subfolders, files in os.walk(source.location):
        subfolders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not _hidden(name):
                member = path.relative_to(source.location).as_posix()
                rows.append(CatalogueRow(key=member, member=member, offset=0, size_bytes=path.stat().st_size))
    return rows, sum(row.size_bytes for row in rows), []


def _read_tar(source: Source) -> tuple[list[CatalogueRow], int, list[Problem]]:
    size_bytes = source.location.stat().st_size
    problems: list[Problem] = []
    members: list[tarfile.TarInfo] = []

    def problem(kind: str, message: str) -> None:
        problems.append(Problem(kind=kind, where=source.location.name, message=message))

    try:
        with tarfile.open(source.location, "r:") as tar:
            try:
                members.extend(tar)  # keeps what was read before an error, unlike getmembers
            except tarfile.ReadError as error:
                problem("damaged_tar", f"after {len(members)} members: {error}")
            end = tar.offset
    except tarfile.ReadError as error:
        problem("empty_tar" if size_bytes == 0 else "damaged_tar", f"cannot be read as an uncompressed tar: {error}")
        return [], size_bytes, problems
    whole = [member for member in members if member.offset_data + member.size <= size_bytes]
    for member in members[len(whole) :]:
        problem(
            "cut_payload", f"the file ends {member.offset_data + member.size - size_bytes} bytes before {member.name!r} does"
        )
    if not problems:
        problems.extend(_end_of_tar(source.location, end))
    rows = _group_samples([member for member in whole if member.isreg()], source.location.name, problems)
    return rows, size_bytes, problems


def _end_of_tar(location: Path, end: int) -> Iterator[Problem]:
    """What stands where tarfile stopped reading; two blocks of zeros end a sound archive."""
    with location.open("rb") as file:
        file.seek(end)
        tail = file.read(2 * _BLOCK)
    if len(tail) == 2 * _BLOCK and not any(tail):
        return
    if any(tail[:_BLOCK]):
        kind, found = "damaged_header", "a member header that is cut or whose checksum is wrong"
    else:
        kind, found = "missing_end", f"{len(tail)} bytes where two blocks of zeros mark the end; the tar may have been cut"
    message = f"at byte {end}: found {found}; members after this point, if there were any, are lost"
    yield Problem(kind=kind, where=location.name, message=message)


def _hidden(name: str) -> bool:
    """Such as `._7.jpg`, which some systems put beside 7.jpg; never a photograph."""
    return not name or name.startswith(".")


def _group_samples(members: list[tarfile.TarInfo], tar_name: str, problems: list[Problem]) -> list[CatalogueRow]:
    """One row per image. A WebDataset key ends at the first dot of the file's name.

    `7.jpg` beside `7.seg.png` and `7.json` is one sample with one photograph. Where no member of a sample has a plain image
    suffix (`shot.v1.jpg`, `shot.v2.jpg`), the names are merely dotted: each is an image with its own key.
    """
    samples: dict[str, list[tarfile.TarInfo]] = {}
    for member in members:
        path = PurePosixPath(member.name)
        if not _hidden(path.name):
            samples.setdefault(str(path.with_name(path.name.split(".")[0])), []).append(member)
    rows = []
    for key, group in samples.items():
        images = [member for member in group if PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES]
        plain = [member for member in images if PurePosixPath(member.name).name.count(".") == 1]
        if not images:
            message = f"the sample {key!r} has no image among {', '.join(member.name for member in group)}"
            problems.append(Problem(kind="no_image_in_sample", where=f"{tar_name}:{key}", message=message))
        for member in plain or images:
            own_key = key if plain else str(PurePosixPath(member.name).with_suffix(""))
            rows.append(CatalogueRow(key=own_key, member=member.name, offset=member.offset_data, size_bytes=member.size))
    return rows


def read_images(source: Source, rows: Sequence[CatalogueRow]) -> Iterator[bytes]:
    """The bytes of each row's file, in order. Raises OSError where they cannot be read in full."""
    for row in rows:
        path = source.location / row.member if source.kind == "folder" else source.location
        with path.open("rb") as file:
            file.seek(row.offset)
            content = file.read(row.size_bytes)
        if len(content) != row.size_bytes or (source.kind == "folder" and path.stat().st_size != row.size_bytes):
            raise OSError(f"{path}: {row.member} no longer has the {row.size_bytes} bytes it had when it was catalogued")
        yield content
