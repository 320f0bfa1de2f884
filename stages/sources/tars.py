"""A tar as a source, in the manner of WebDataset: files whose names are equal up to the first dot are one sample."""

from __future__ import annotations

import io
import re
from pathlib import Path, PurePosixPath

from manifests import Problem
from manifests.location import Location
from stages.sources.source import (
    CatalogueRow,
    Found,
    SourceKind,
    UnreadImages,
    as_text,
    has_changed,
    is_hidden,
    is_image,
    is_unread,
    problem_of,
)
from stages.sources.tar_members import TarMember, member_before, read_members

_FIELD = re.compile(r"(?!v\d+\Z)[^\W\d][\w-]*", re.IGNORECASE)
"""What a field of a sample is called: `seg`, `depth`, `mask_0`; not `05`, nor `v2`."""


def _recognises(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and path.is_file()


def catalogue(location: Location, e_tag: str | None = None) -> Found:
    """What is in a tar; damage is a problem, never raised. `e_tag`: of the object that it must be, in a bucket."""
    members, size_bytes, problems = read_members(location, e_tag)
    return Found(_group_samples(members, location.name, problems), size_bytes, problems)


def _group_samples(members: list[TarMember], tar_name: str, problems: list[Problem]) -> list[CatalogueRow]:
    """One row per photograph. A WebDataset key ends at the first dot of the file's name.

    `7.jpg` beside `7.seg.png` and `7.json` is one sample with one photograph and two fields. `2021.05.jpg` beside `2021.jpg`
    is no field, for what stands between the dots is no word: it is left out and named. Where no member of a sample has a plain
    image suffix (`shot.v1.jpg`, `shot.v2.jpg`), the names are merely dotted: each is a photograph with its own key.
    """
    samples: dict[str, list[_Entry]] = {}
    unread = UnreadImages()
    for member in members:
        path = PurePosixPath(as_text(member.name))
        if member.kind == "file" and not is_hidden(path.name):
            samples.setdefault(str(path.with_name(path.name.split(".")[0])), []).append((path, member))
        elif member.kind not in ("file", "folder") and (is_image(path.name) or is_unread(path.name)):
            message = f"a {member.kind}, of which the tar has no bytes; pack it with --dereference --hard-dereference"
            problems.append(problem_of("not_a_file", f"{tar_name}:{path}", message))
    rows = []
    for key, group in samples.items():
        photographs = _photographs(key, group, tar_name, problems)
        for own_key, files in photographs.items():
            taken = [(path, member) for path, member in files if is_image(path.name)]
            for path, _ in () if taken else files:
                unread.add(path.name, f"{tar_name}:{path}")
            rows += [
                CatalogueRow(
                    key=own_key,
                    member=as_text(member.name),
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
    images = [(path, member) for path, member in group if is_image(path.name) or is_unread(path.name)]
    if not images:
        names = ", ".join(str(path) for path, _ in group[:4])
        message = f"the sample {key!r} has no image among {names}{', ...' if len(group) > 4 else ''}"
        problems.append(problem_of("no_image_in_sample", f"{tar_name}:{key}", message))
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
            problems.append(problem_of("extra_image_in_sample", f"{tar_name}:{path}", message))
    return {key: plain}


def _read(location: Path, row: CatalogueRow) -> bytes:
    with location.open("rb") as file:
        return read_from(file, row, 0, location)


def read_from(file: io.BufferedIOBase, row: CatalogueRow, start: int, location: Location) -> bytes:
    """The bytes of a member, from a file that begins at the byte `start` of the tar.

    Raises OSError unless the tar still has the member where it was, by name and size, with all of its bytes.
    """
    member = member_before(file, row.offset - start, row.header_bytes)
    content = file.read(row.size_bytes)
    is_there = member is not None and (as_text(member.name), member.size_bytes) == (row.member, row.size_bytes)
    if len(content) != row.size_bytes or not is_there:
        raise has_changed(location, row)
    return content


TAR = SourceKind(words="a .tar file", recognises=_recognises, catalogue=catalogue, read=_read, can_grow=False)
