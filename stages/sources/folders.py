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
            if not _is_utf8(member):
                problem("not_utf8", path, "the path is not UTF-8; rename it")
            elif os.path.exists(path) and not os.path.isfile(path):  # unlike Path's, these raise nothing
                problem("not_a_file", path, "named like an image, but a pipe or a device")
            else:
                try:
                    with path.open("rb") as file:
                        size_bytes = os.fstat(file.fileno()).st_size
                    rows.append(CatalogueRow(key=as_text(member), member=member, offset=0, size_bytes=size_bytes))
                except OSError as error:
                    unreadable(error)
        photographs = {PurePosixPath(name).stem for name in taken}
        for name in sorted(files):
            if is_unread(name) and PurePosixPath(name).stem not in photographs:
                unread.add(name, os.path.relpath(Path(folder, name), location))
    return Found(rows, sum(row.size_bytes for row in rows), problems + unread.problems())


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _read(location: Path, row: CatalogueRow) -> bytes:
    path = location / row.member
    with path.open("rb") as file:
        content = file.read(row.size_bytes)
        if len(content) != row.size_bytes or os.fstat(file.fileno()).st_size != row.size_bytes:
            raise has_changed(path, row)
    return content


FOLDER = SourceKind(words="a folder", recognises=Path.is_dir, catalogue=_catalogue, read=_read, can_grow=True)
