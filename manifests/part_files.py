"""The files of a committed part, held against its manifest before anything is read from them.

Two comparisons, both cheap: of the names and sizes of all files, for whoever opens a run, and of the digests of the small ones
(all that describe the arrays, and all tables), for whoever opens a part. The large files of views and pictures carry a checksum
for each chunk, which is looked at when the chunk is read. Nothing is followed through a link; nothing is changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from manifests.place import PlaceError, place_of
from manifests.schema import FileRecord, PartManifest

LARGE_ARRAYS = ("context", "patch", "jpeg")
"""Arrays whose chunks are too much to hash before reading; every other file of a part is small."""
_SHOWN = 3


class FileProblem(NamedTuple):
    """A file of a part that is not as the manifest has it. `path` is relative to the column's folder; `kind` is missing_file,
    not_a_file (a link, or whatever else is no plain file), wrong_size, wrong_sha256, or unreadable: it cannot be told, here and
    now."""

    path: str
    kind: str
    message: str


def differing_sizes(column_dir: Path, manifest: PartManifest) -> Iterator[FileProblem]:
    """The files that the manifest lists and that are not there, not plain files, or of another size."""
    kinds: dict[str, FileProblem | None] = {"": _problem_of_folder(column_dir, "")}
    for file in manifest.files:
        problem = _problem_on_the_way(column_dir, file.path, kinds)
        yield from filter(None, [problem or _problem_of_file(column_dir, file)])


def differing_digests(column_dir: Path, manifest: PartManifest) -> Iterator[FileProblem]:
    """The small files whose bytes are not those that the manifest lists."""
    for file in manifest.files:
        if is_small(manifest, file.path):
            try:
                with place_of(column_dir).open(file.path) as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except PlaceError as error:  # since the sizes were looked at
                yield FileProblem(file.path, "not_a_file", error.strerror or str(error))
            except OSError as error:
                yield _unreadable(file.path, error)
            else:
                if found != file.sha256:
                    yield FileProblem(file.path, "wrong_sha256", f"found sha256 {found}, expected {file.sha256}")


def is_small(manifest: PartManifest, path: str) -> bool:
    """Whether a file of the part, named relative to the column's folder, is anything but a chunk of a large array."""
    return not path.startswith(tuple(f"{manifest.zarr}/{name}/c/" for name in LARGE_ARRAYS))


def refuse_problems(column_dir: Path, problems: Iterable[FileProblem]) -> None:
    """Raises ValueError, naming a few, where there are any; OSError where all that is known is that they cannot be read."""
    found = list(problems)
    if not found:
        return
    listed = "".join(f"\n  - {column_dir / problem.path}: {problem.message}" for problem in found[:_SHOWN])
    listed += f"\n  - and {len(found) - _SHOWN} more" * (len(found) > _SHOWN)
    if all(problem.kind == "unreadable" for problem in found):
        raise OSError(f"{column_dir}: files of committed parts cannot be read here and now, which proves no damage:{listed}")
    raise ValueError(
        f"{column_dir}: files of committed parts are not as their manifests list them:{listed}\n"
        "Run `python -m manifests repair` on the run, then label again"
    )


def _problem_on_the_way(column_dir: Path, path: str, known: dict[str, FileProblem | None]) -> FileProblem | None:
    """What is wrong with the folders between the column's and a file; each is looked at once."""
    folder, _, _ = path.rpartition("/")
    if folder not in known:
        known[folder] = _problem_on_the_way(column_dir, folder, known) or _problem_of_folder(column_dir, folder)
    problem = known[folder]
    return problem and problem._replace(path=path)


def _problem_of_folder(column_dir: Path, folder: str) -> FileProblem | None:
    try:
        mode = os.lstat(f"{column_dir}/{folder}" if folder else column_dir).st_mode
    except OSError as error:
        return _unreadable(folder, error)
    if stat.S_ISDIR(mode):
        return None
    return FileProblem(folder, "not_a_file", f"its folder {folder or column_dir} is {_named(mode)}, expected a folder")


def _problem_of_file(column_dir: Path, file: FileRecord) -> FileProblem | None:
    try:
        found = os.lstat(f"{column_dir}/{file.path}")
    except OSError as error:
        return _unreadable(file.path, error)
    if not stat.S_ISREG(found.st_mode):
        return FileProblem(file.path, "not_a_file", f"found {_named(found.st_mode)}, expected a plain file")
    if found.st_size != file.size_bytes:
        return FileProblem(file.path, "wrong_size", f"found {found.st_size} bytes, expected {file.size_bytes}")
    return None


def _named(mode: int) -> str:
    return "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no plain file"


def _unreadable(path: str, error: OSError) -> FileProblem:
    missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return FileProblem(path, "missing_file" if missing else "unreadable", error.strerror or str(error))
