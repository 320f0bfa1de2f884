"""A folder as a source: every image in it and below, in the order of their paths."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from manifests import Problem
from stages.sources.source import (
    CatalogueRow,
    Found,
    ProblemKind,
    SourceKind,
    UnreadImages,
    as_text,
    has_changed,
    is_hidden,
    is_image,
    is_unread,
    problem_of,
)


def _catalogue(location: Path) -> Found:
    rows: list[CatalogueRow] = []
    problems: list[Problem] = []

    def problem(kind: ProblemKind, path: str | Path, message: str) -> None:
        problems.append(problem_of(kind, os.path.relpath(path, location), message))

    def unreadable(error: OSError) -> None:
        problem("unreadable", error.filename, f"cannot be read: {error.strerror}")

    unread = UnreadImages()
    for folder, subfolders, files in os.walk(location, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        for path in (Path(folder, name) for name in subfolders):
            if os.path.islink(path):
                problem("linked_folder", path, "a link to a folder is not followed; give the folder as a source of its own")
        taken = [name for name in sorted(files) if is_image(name)]
        for path in (Path(folder, name) for name in taken):
            member = path.relative_to(location).as_posix()
            row = row_of(location, member, member)
            if isinstance(row, Problem):
                problems.append(row)
            else:
                rows.append(row)
        photographs = {PurePosixPath(name).stem for name in taken}
        for name in sorted(files):
            if is_unread(name) and PurePosixPath(name).stem not in photographs:
                unread.add(name, os.path.relpath(Path(folder, name), location))
    return Found(rows, sum(row.size_bytes for row in rows), problems + unread.problems())


def row_of(folder: Path, member: str, where: str) -> CatalogueRow | Problem:
    """The photograph at a path that starts at a folder, or why there is none, `where` being what to look at."""
    path = folder / member
    if not _is_utf8(member):
        return problem_of("not_utf8", where, "the path is not UTF-8; rename it")
    if os.path.exists(path) and not os.path.isfile(path):  # unlike Path's, these raise nothing
        return problem_of("not_a_file", where, "named like an image, but a folder, a pipe or a device")
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        return problem_of("unreadable", where, f"cannot be read: {error.strerror}")
    except ValueError as error:  # a zero byte, in a list
        return problem_of("unreadable", where, f"no path: {error}")
    return CatalogueRow(key=as_text(member).lstrip("/"), member=member, offset=0, size_bytes=size_bytes)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_member(folder: Path, row: CatalogueRow) -> bytes:
    """The bytes of a photograph at a path that starts at a folder. Raises OSError unless they are as many as catalogued."""
    path = folder / row.member
    with path.open("rb") as file:
        content = file.read(row.size_bytes)
        if len(content) != row.size_bytes or os.fstat(file.fileno()).st_size != row.size_bytes:
            raise has_changed(path, row)
    return content


FOLDER = SourceKind(words="a folder", recognises=Path.is_dir, catalogue=_catalogue, read=read_member, can_grow=True)
