"""The catalogue: what images a source holds, found before any work starts, and every problem of the source itself.

A source is a tar (in the manner of WebDataset) or a folder. An image that is there but cannot be taken, and damage after
which there may have been more, is a problem of a kind in ProblemKind; nothing is left out without a word except what no
suffix says to be an image, hidden files, and another format or a field of a photograph that is taken. Names from a source
are only text here: no path is ever made from a tar's.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import braceexpand

from manifests import Problem
from manifests.errors import RefusedError
from stages.sources.photographs import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from stages.sources.tar_members import TarMember, member_before, read_members

ProblemKind = Literal[
    "compressed_tar",
    "cut_payload",
    "damaged_header",
    "data_after_end",
    "duplicate_key",
    "duplicate_key_across_sources",
    "empty_tar",
    "extra_image_in_sample",
    "linked_folder",
    "long_zero_tail",
    "missing_end",
    "no_image_in_sample",
    "no_images",
    "not_a_file",
    "not_utf8",
    "unread_suffix",
    "unreadable",
]
"""All kinds of problems of a source; docs/format.md says what each means."""
_MAX_NAME = 96
"""Of a source. Names of files are made from it, some 50 characters longer, and some file systems end at 143."""
_FIELD = re.compile(r"(?!v\d+\Z)[^\W\d][\w-]*", re.IGNORECASE)
"""What a field of a sample is called: `seg`, `depth`, `mask_0`; not `05`, nor `v2`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A tar file or a folder, and the name that its parts carry."""

    name: str
    kind: Literal["tar", "folder"]
    location: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueRow:
    """One image: its key, the tar member or relative path, and where its bytes are. All text is UTF-8; a tar's names have
    control characters, and bytes that are no UTF-8, as escapes."""

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


class SourceNotFoundError(RefusedError):
    """Patterns that name no sources: nothing, something that is neither a tar nor a folder, or a folder within another."""


def expand_sources(patterns: Sequence[str]) -> list[Source]:
    """Brace patterns, globs, tars and folders, in the order given; each once, whatever links and patterns lead to it.

    Raises SourceNotFoundError that lists every pattern without a match, and every folder inside another one, whose images
    would be labelled twice.
    """
    locations: dict[tuple[int, int], Path] = {}
    refused: list[str] = []
    for path in (path for pattern in patterns for path in _matches(pattern, refused)):
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".tar"):
            status = path.stat()
            locations.setdefault((status.st_dev, status.st_ino), path.absolute())
        else:
            hint = " (decompress it first)" if {".tgz", ".tar"} & {suffix.lower() for suffix in path.suffixes} else ""
            refused.append(f"{path}: neither a folder nor a .tar file{hint}")
    folders = {path.resolve(): path for path in locations.values() if path.is_dir()}
    refused += [
        f"{path}: inside {folders[parent]}, which is a source too"
        for real, path in folders.items()
        for parent in real.parents
        if parent in folders
    ]
    if refused:
        raise SourceNotFoundError("; ".join(refused))
    return list(_named(locations.values()))


def _matches(pattern: str, refused: list[str]) -> Iterator[Path]:
    try:
        expanded = list(braceexpand.braceexpand(pattern))
    except ValueError:  # a brace without its partner stands for itself
        expanded = [pattern]
    for item in expanded:
        found = [item] if os.path.exists(item) else sorted(glob.glob(item, recursive=True))
        if not found:
            refused.append(f"{item}: nothing there")
        yield from map(Path, found)


def _named(locations: Iterable[Path]) -> Iterator[Source]:
    taken: set[str] = set()
    for path in locations:
        stem = path.name if path.is_dir() else path.stem
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "source"
        if len(base) > _MAX_NAME:
            base = f"{base[: _MAX_NAME - 9]}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        yield Source(name=name, kind="folder" if path.is_dir() else "tar", location=path)


def read_source(source: Source) -> SourceContent:
    """Catalogue one source. Damage is reported as problems beside what could be read, never raised.

    Of images with one key the first is kept.
    """
    rows, size_bytes, problems = _read_folder(source) if source.kind == "folder" else _read_tar(source)
    unique: dict[str, CatalogueRow] = {}
    for row in rows:
        if row.key in unique:
            message = f"the key {row.key!r} is already taken by {unique[row.key].member!r}; this one is left out"
            problems.append(_problem("duplicate_key", row.member, message))
        else:
            unique[row.key] = row
    if not unique:
        problems.append(_problem("no_images", source.name, "no image was found in this source"))
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
                problems.append(_problem("duplicate_key_across_sources", f"{source.name}:{row.key}", message))
    return tuple(problems)


def _problem(kind: ProblemKind, where: str, message: str) -> Problem:
    return Problem(kind=kind, where=_as_text(where), message=message)


def _as_text(name: str) -> str:
    """The name with control characters and lone surrogates, which are bytes that were no UTF-8, as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: match[0].encode("unicode_escape").decode(), name)


def _read_folder(source: Source) -> tuple[list[CatalogueRow], int, list[Problem]]:
    rows: list[CatalogueRow] = []
    problems: list[Problem] = []

    def problem(kind: ProblemKind, path: str | Path, message: str) -> None:
        problems.append(_problem(kind, os.path.relpath(path, source.location), message))

    def unreadable(error: OSError) -> None:
        problem("unreadable", error.filename, f"cannot be read: {error.strerror}")

    unread = _Unread()
    for folder, subfolders, files in os.walk(source.location, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        for path in (Path(folder, name) for name in subfolders):
            if os.path.islink(path):
                problem("linked_folder", path, "a link to a folder is not followed; give the folder as a source of its own")
        taken = [name for name in sorted(files) if _is_image(name)]
        for path in (Path(folder, name) for name in taken):
            member = path.relative_to(source.location).as_posix()
            if not _is_utf8(member):
                problem("not_utf8", path, "the path is not UTF-8; rename it")
            elif os.path.exists(path) and not os.path.isfile(path):  # unlike Path's, these raise nothing
                problem("not_a_file", path, "named like an image, but a pipe or a device")
            else:
                try:
                    with path.open("rb") as file:
                        size_bytes = os.fstat(file.fileno()).st_size
                    rows.append(CatalogueRow(key=_as_text(member), member=member, offset=0, size_bytes=size_bytes))
                except OSError as error:
                    unreadable(error)
        photographs = {PurePosixPath(name).stem for name in taken}
        for name in sorted(files):
            if _is_unread(name) and PurePosixPath(name).stem not in photographs:
                unread.add(name, os.path.relpath(Path(folder, name), source.location))
    return rows, sum(row.size_bytes for row in rows), problems + unread.problems()


class _Unread:
    """Images in formats that are not read, by their suffix: each suffix is one problem of a source, however many there are."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._count = Counter[str]()

    def add(self, name: str, where: str) -> None:
        suffix = _suffix(name)
        self._first.setdefault(suffix, where)
        self._count[suffix] += 1

    def problems(self) -> list[Problem]:
        return [
            _problem(
                "unread_suffix",
                self._first[suffix],
                f"{count} {'image' if count == 1 else 'images, of which this is the first,'} with the suffix {suffix},"
                f" which is not read; {UNREAD_SUFFIXES[suffix]}",
            )
            for suffix, count in self._count.items()
        ]


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read_tar(source: Source) -> tuple[list[CatalogueRow], int, list[Problem]]:
    members, size_bytes, problems = read_members(source.location)
    return _group_samples(members, source.location.name, problems), size_bytes, problems


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _is_image(name: str) -> bool:
    return _suffix(name) in IMAGE_SUFFIXES and not _hidden(name)


def _is_unread(name: str) -> bool:
    return _suffix(name) in UNREAD_SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    """Such as `._7.jpg`, which some systems put beside 7.jpg; never a photograph."""
    return not name or name.startswith(".")


def _group_samples(members: list[TarMember], tar_name: str, problems: list[Problem]) -> list[CatalogueRow]:
    """One row per photograph. A WebDataset key ends at the first dot of the file's name.

    `7.jpg` beside `7.seg.png` and `7.json` is one sample with one photograph and two fields. `2021.05.jpg` beside `2021.jpg`
    is no field, for what stands between the dots is no word: it is left out and named. Where no member of a sample has a plain
    image suffix (`shot.v1.jpg`, `shot.v2.jpg`), the names are merely dotted: each is a photograph with its own key.
    """
    samples: dict[str, list[_Entry]] = {}
    unread = _Unread()
    for member in members:
        path = PurePosixPath(_as_text(member.name))
        if member.kind == "file" and not _hidden(path.name):
            samples.setdefault(str(path.with_name(path.name.split(".")[0])), []).append((path, member))
        elif member.kind not in ("file", "folder") and (_is_image(path.name) or _is_unread(path.name)):
            message = f"a {member.kind}, of which the tar has no bytes; pack it with --dereference --hard-dereference"
            problems.append(_problem("not_a_file", f"{tar_name}:{path}", message))
    rows = []
    for key, group in samples.items():
        photographs = _photographs(key, group, tar_name, problems)
        for own_key, files in photographs.items():
            taken = [(path, member) for path, member in files if _is_image(path.name)]
            for path, _ in () if taken else files:
                unread.add(path.name, f"{tar_name}:{path}")
            rows += [
                CatalogueRow(
                    key=own_key,
                    member=_as_text(member.name),
                    offset=member.offset,
                    size_bytes=member.size_bytes,
                    header_bytes=member.header_bytes,
                )
                for _, member in taken
            ]
    problems += unread.problems()
    return rows


_Entry = tuple[PurePosixPath, TarMember]


def _photographs(key: str, group: list[_Entry], tar_name: str, problems: list[Problem]) -> dict[str, list[_Entry]]:
    """The images of one sample by the key of their photograph, in whatever formats it has; others are left out and named."""
    images = [(path, member) for path, member in group if _is_image(path.name) or _is_unread(path.name)]
    if not images:
        names = ", ".join(str(path) for path, _ in group[:4])
        message = f"the sample {key!r} has no image among {names}{', ...' if len(group) > 4 else ''}"
        problems.append(_problem("no_image_in_sample", f"{tar_name}:{key}", message))
    plain = [(path, member) for path, member in images if path.name.count(".") == 1]
    if not plain:
        dotted: dict[str, list[_Entry]] = {}
        for path, member in images:
            dotted.setdefault(str(path.with_suffix("")), []).append((path, member))
        return dotted
    for path, _ in images:
        between = path.name.split(".")[1:-1]
        if between and not _FIELD.fullmatch(between[0]):
            message = (
                f"left out beside {plain[0][0].name}: a key ends at the first dot, so both are one sample,"
                f" and {between[0]!r} is not the name of a field; pack it under a name with one dot"
            )
            problems.append(_problem("extra_image_in_sample", f"{tar_name}:{path}", message))
    return {key: plain}


def read_images(source: Source, rows: Sequence[CatalogueRow]) -> Iterator[bytes]:
    """The bytes of each row's file, in order.

    Raises OSError where they cannot be read in full, where the tar has another member in their place, and on a machine that
    does not read their format, unlike the one that catalogued them.
    """
    for row in rows:
        path = source.location / row.member if source.kind == "folder" else source.location
        if (suffix := _suffix(PurePosixPath(row.member).name)) not in IMAGE_SUFFIXES:
            raise OSError(f"{path}: {row.member} was catalogued, but here {suffix} is not read; {UNREAD_SUFFIXES.get(suffix)}")
        with path.open("rb") as file:
            same = source.kind == "folder" or _is_in_place(file, row)
            content = file.read(row.size_bytes)
            same = same and (source.kind == "tar" or os.fstat(file.fileno()).st_size == row.size_bytes)
        if len(content) != row.size_bytes or not same:
            raise OSError(f"{path}: {row.member} no longer has the {row.size_bytes} bytes it had when it was catalogued")
        yield content


def _is_in_place(file: io.BufferedIOBase, row: CatalogueRow) -> bool:
    """Whether the tar still has the row's member where it was, by name and size; leaves `file` at its bytes."""
    member = member_before(file, row.offset, row.header_bytes)
    return member is not None and (_as_text(member.name), member.size_bytes) == (row.member, row.size_bytes)
