"""The files of a committed part, held against its manifest before anything is read from them.

Two comparisons, both cheap: of the names and sizes of all files, for whoever opens a run, and of the digests of the small ones
(all that describe the arrays, and all tables), for whoever opens a part. The large files of views and pictures carry a checksum
for each chunk, which is looked at when the chunk is read. Nothing is followed through a link; nothing is changed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from manifests.place import Entry, Kind, Place, PlaceError
from manifests.run import column_dir
from manifests.schema import PartManifest

LARGE_ARRAYS = ("context", "patch", "jpeg")
"""Arrays whose chunks are too much to hash before reading; every other file of a part is small."""
_SHOWN = 3
_NAMED: dict[Kind, str] = {"file": "a file", "folder": "a folder", "link": "a symbolic link", "other": "no plain file"}


class FileProblem(NamedTuple):
    """A file of a part that is not as the manifest has it. `path` is relative to the column's folder; `kind` is missing_file,
    not_a_file (a link, or whatever else is no plain file), wrong_size, wrong_sha256, or unreadable: it cannot be told, here and
    now."""

    path: str
    kind: str
    message: str


def differing_sizes(place: Place, manifest: PartManifest) -> Iterator[FileProblem]:
    """The files that the manifest lists and that are not there, not plain files, or of another size."""
    return differing_files(place, manifest.column, manifest.zarr, {file.path: file.size_bytes for file in manifest.files})


def differing_files(place: Place, column: str, zarr: str, sizes: Mapping[str, int]) -> Iterator[FileProblem]:
    """The same of any files, by their paths relative to the column's folder, of the group `zarr` in it."""
    folder = f"{column_dir(Path(), column).as_posix()}/{zarr}"
    try:
        found = {f"{zarr}/{entry.name}": entry for entry in place.tree(folder)}
    except OSError as error:  # a list is whole, or there is none
        yield from (_unread(path, error) for path in sizes)
        return
    for path, size_bytes in sizes.items():
        entry = found.get(path)
        if entry is not None and entry.kind == "file" and entry.size_bytes == size_bytes:
            continue
        yield _on_the_way(path, found) or _compared(path, size_bytes, entry)


def differing_digests(place: Place, manifest: PartManifest) -> Iterator[FileProblem]:
    """The small files whose bytes are not those that the manifest lists."""
    column = column_dir(Path(), manifest.column).as_posix()
    for file in manifest.files:
        if is_small(manifest, file.path):
            try:
                with place.open(f"{column}/{file.path}") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                yield _unread(file.path, error)
            else:
                if found != file.sha256:
                    yield FileProblem(file.path, "wrong_sha256", f"found sha256 {found}, expected {file.sha256}")


def is_small(manifest: PartManifest, path: str) -> bool:
    """Whether a file of the part, named relative to the column's folder, is anything but a chunk of a large array."""
    return not path.startswith(tuple(f"{manifest.zarr}/{name}/c/" for name in LARGE_ARRAYS))


def refuse_problems(place: Place, column: str, problems: Iterable[FileProblem]) -> None:
    """Raises ValueError, naming a few, where there are any; OSError where all that is known is that they cannot be read."""
    found = list(problems)
    if not found:
        return
    folder = place.shown(column_dir(Path(), column).as_posix())
    listed = "".join(f"\n  - {folder}/{problem.path}: {problem.message}" for problem in found[:_SHOWN])
    listed += f"\n  - and {len(found) - _SHOWN} more" * (len(found) > _SHOWN)
    if all(problem.kind == "unreadable" for problem in found):
        raise OSError(f"{folder}: files of committed parts cannot be read here and now, which proves no damage:{listed}")
    raise ValueError(
        f"{folder}: files of committed parts are not as their manifests list them:{listed}\n"
        "Run `python -m manifests repair` on the run, then label again"
    )


def _on_the_way(path: str, found: Mapping[str, Entry]) -> FileProblem | None:
    """What stands where a folder should be, between the part's and a file."""
    for end in (i for i, character in enumerate(path) if character == "/"):
        entry = found.get(path[:end])
        if entry and entry.kind != "folder":
            return FileProblem(path, "not_a_file", f"its folder {path[:end]} is {_NAMED[entry.kind]}, expected a folder")
    return None


def _compared(path: str, size_bytes: int, found: Entry | None) -> FileProblem:
    if found is None:
        return FileProblem(path, "missing_file", os.strerror(errno.ENOENT))
    if found.kind != "file":
        return FileProblem(path, "not_a_file", f"found {_NAMED[found.kind]}, expected a plain file")
    return FileProblem(path, "wrong_size", f"found {found.size_bytes} bytes, expected {size_bytes}")


def _unread(path: str, error: OSError) -> FileProblem:
    kind = "not_a_file" if isinstance(error, PlaceError) else "missing_file" if error.errno == errno.ENOENT else "unreadable"
    return FileProblem(path, kind, error.strerror or str(error))
