"""The folder of an export: whose it is, which parts are written, and the files of each.

    DIR/export.json          what is in it: settings, depth spaces, licences; written first, so that the folder is ours
    DIR/.export/<part>.json  a part that is written: the digest of what decided its files, and the names of its samples
    DIR/.export/lock         held while a command writes

A part's record is written last, after its files are on disk. So a part without a record, or with one of other labels, is
written anew, whatever an interrupted command has left of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import manifests
from manifests.commit import fsync_path
from manifests.errors import RefusedError
from pipeline.export.config import Format
from pipeline.export.samples import Sample

ABOUT, STATE = "export.json", ".export"


@dataclass(frozen=True, kw_only=True)
class PartWritten:
    """A part's record. recipe: a digest of all that decided its files. samples: the name of each, and its close-ups."""

    recipe: str
    bytes: int
    samples: tuple[tuple[str, int], ...]


@contextmanager
def claimed(folder: Path, settings: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[None]:
    """Holds the folder, made where there is none, while the block runs.

    settings: what an earlier export into it must have had too. sources: of the run, by name, with the digest of their images.
    Raises RefusedError for a folder that holds anything else, other settings or another run's images, and RunInUseError.
    """
    refuse_another(folder, settings, sources)
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with manifests.hold_file(folder / STATE / "lock", exclusive=True, in_use=f"{folder}: in use by another export"):
        refuse_another(folder, settings, sources)
        yield


def refuse_another(folder: Path, settings: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Raises RefusedError as `claimed` does."""
    path = folder / ABOUT
    if not path.exists():
        if folder.exists() and {entry.name for entry in folder.iterdir()} - {STATE}:
            found = f"{folder}: found files and no {ABOUT}"
            raise RefusedError(f"{found}, expected an empty folder, a new name or an earlier export")
        return
    try:
        found = json.loads(path.read_bytes())
        differing = [
            f"{key} {json.dumps(found['settings'].get(key))}, now {json.dumps(value)}"
            for key, value in settings.items()
            if found["settings"].get(key) != value
        ]
        others = [name for name, digest in found["sources"].items() if sources.get(name) != digest]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{path}: cannot be read: {error}; expected what an export writes: name a new folder") from error
    if differing:
        raise RefusedError(
            f"{folder}: an export with {'; '.join(differing)}: name a new folder, or export with the same options"
        )
    if others:
        raise RefusedError(f"{folder}: an export of another run, with the sources {', '.join(others)}: name a new folder")


def write_about(folder: Path, document: Mapping[str, Any]) -> None:
    """What the folder holds."""
    manifests.write_replacing(folder / ABOUT, json.dumps(document, indent=2).encode() + b"\n")


def part_written(folder: Path, part: str) -> PartWritten | None:
    """The record of a part; None where there is none that can be read."""
    try:
        found = json.loads((folder / STATE / f"{part}.json").read_bytes())
        samples = tuple((str(name), int(patches)) for name, patches in found["samples"])
        return PartWritten(recipe=str(found["recipe"]), bytes=int(found["bytes"]), samples=samples)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_there(folder: Path, layout: Format, part: str, written: PartWritten) -> bool:
    """Whether the tar of a written part has its size; of a folder, whether each sample has the file that is written last."""
    try:
        if layout == "folder":
            return all((folder / "json" / f"{name}.json").exists() for name, _ in written.samples)
        return not written.samples or (folder / shard_name(part)).stat().st_size == written.bytes
    except OSError:
        return False


def shard_name(part: str) -> str:
    """Of the tar of a part."""
    return f"{part}.tar"


def write_part(folder: Path, layout: Format, part: str, samples: Iterable[Sample], recipe: str) -> PartWritten:
    """Writes a part's files, and then its record; a part without samples has no files. Raises OSError."""
    write = _write_shard if layout == "webdataset" else _write_files
    size_bytes, names = write(folder, part, samples)
    written = PartWritten(recipe=recipe, bytes=size_bytes, samples=tuple(names))
    document = {"recipe": recipe, "bytes": size_bytes, "samples": names}
    manifests.write_replacing(folder / STATE / f"{part}.json", json.dumps(document).encode())
    return written


def _write_shard(folder: Path, part: str, samples: Iterable[Sample]) -> tuple[int, list[tuple[str, int]]]:
    from webdataset import ShardWriter  # type: ignore[attr-defined]  # an extra; the command has looked for it

    aside, names = folder / STATE / shard_name(part), []
    with aside.open("wb") as file:
        one_shard = {"maxcount": sys.maxsize, "maxsize": sys.maxsize, "opener": lambda _: file}
        with ShardWriter("%d", verbose=0, encoder=False, mtime=0, format="GNU_FORMAT", **one_shard) as writer:
            for sample in samples:
                fields = {place.removeprefix(f"{sample.name}."): content for place, content in sample.files.items()}
                writer.write({"__key__": sample.name, **fields})
                names.append((sample.name, sample.num_patches))
    size_bytes = aside.stat().st_size
    if not names:
        aside.unlink()
        (folder / shard_name(part)).unlink(missing_ok=True)
        return 0, []
    fsync_path(aside)
    os.replace(aside, folder / shard_name(part))
    fsync_path(folder)
    return size_bytes, names


def _write_files(folder: Path, part: str, samples: Iterable[Sample]) -> tuple[int, list[tuple[str, int]]]:
    size_bytes, names, made = 0, [], set[Path]()
    for sample in samples:
        for place, content in sample.files.items():
            path = folder / place
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            path.write_bytes(content)
            fsync_path(path)
            size_bytes += len(content)
        names.append((sample.name, sample.num_patches))
    for parent in made:
        fsync_path(parent)
    return size_bytes, names


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A text file of these lines, in place of what was there; none where there is no line."""
    aside, count = path.with_name(f".{path.name}.new"), 0
    with aside.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(f"{line}\n")
            count += 1
    if count:
        fsync_path(aside)
        os.replace(aside, path)
    else:
        aside.unlink()
        path.unlink(missing_ok=True)


def other_parts(folder: Path, parts: set[str]) -> list[str]:
    """Parts that are written and are none of these: the run has lost their labels since."""
    with suppress(FileNotFoundError):
        names = {path.stem for path in (folder / STATE).iterdir() if path.suffix == ".json"}
        return sorted(names - parts)
    return []


def recipe_of(settings: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """A digest of all that decides a part's files: the settings, and the digest of the part in each column."""
    return hashlib.sha256(json.dumps([settings, digests], sort_keys=True).encode()).hexdigest()
