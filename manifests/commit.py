"""Files of other folders than a run's, written as carefully: reports, states, results. A run's go through `manifests.place`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from manifests.durable import fsync_path, make_folder
from manifests.place import place_of

__all__ = ["fsync_path", "make_folder", "sha256_file", "write_exclusively", "write_replacing"]


def write_exclusively(path: Path, content: bytes) -> bool:
    """Creates `path` with `content` unless it exists; says whether it was us: `Place.create` in any folder."""
    return place_of(path.parent).create(path.name, content)


def write_replacing(path: Path, content: bytes) -> None:
    """Gives `path` this content, whatever stood there: `Place.replace` in any folder."""
    place_of(path.parent).replace(path.name, content)


def sha256_file(path: Path) -> str:
    """The file's sha256 in hexadecimal; reads it piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
