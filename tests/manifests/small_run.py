"""A small run written by hand: two sources, two columns, and arrays that are small but real."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

import manifests
from stages.label_store import (
    ContextPicture,
    ImageLabels,
    Label,
    LabelWriter,
    PatchLabel,
    encode_picture,
    write_pictures,
)
from stages.views import Box, SourceBox

FINGERPRINTS = {"images": {"seed": 7, "part_size": 3}, "dav2": {"seed": 7, "part_size": 3, "weights_sha256": "a" * 64}}
SPACES: dict[str, manifests.DepthSpace | None] = {"images": None, "dav2": "disparity_affine_invariant"}
SOURCES = {"shard": 7, "photos.v1": 2}
CONTEXT_PX, EXTENT_PX, PATCH = 12, 10, Box(2, 3, 4, 4)
PARTS = {"shard.00000": 3, "shard.00001": 3, "shard.00002": 1, "photos.v1.00000": 2}


def write_run(
    run_dir: Path,
    *,
    images: Mapping[str, int] = SOURCES,
    problems: Sequence[manifests.Problem] = (),
    commit: Sequence[str] = tuple(PARTS),
    rejected: int = 4,
    configuration: Mapping[str, object] = {"sources": ["shard.tar"]},
) -> Path:
    """Nine images in four parts. `images`: how many each source has; `problems`: of the source `shard`; `commit`: parts
    to commit in each column; `rejected`: the image of `shard` that could not be decoded."""
    told = json.dumps(configuration)
    template = _written(tuple(images.items()), tuple(problems), tuple(commit), rejected, told)
    return shutil.copytree(template.name, run_dir, dirs_exist_ok=True)


@functools.cache
def _written(
    images: tuple[tuple[str, int], ...],
    problems: tuple[manifests.Problem, ...],
    commit: tuple[str, ...],
    rejected: int,
    configuration: str,
) -> tempfile.TemporaryDirectory[str]:
    """A folder with such a run: copying it takes a quarter of the time. It is there as long as this process."""
    folder = tempfile.TemporaryDirectory()
    run_dir = Path(folder.name)
    record = manifests.RunRecord(seed=7, part_size=3, plan={"context_px": CONTEXT_PX}, configuration=json.loads(configuration))
    manifests.write_exclusively(run_dir / "run.json", manifests.to_json(record))
    for name, count in images:
        _write_source(run_dir, name, count, problems)
    for name, space in SPACES.items():
        column = manifests.ColumnRecord(
            name=name, depth_space=space, fingerprint=FINGERPRINTS[name], configuration={"checkpoint": f"/models/{name}"}
        )
        manifests.write_exclusively(manifests.column_record_path(run_dir, name), manifests.to_json(column))
    for part in manifests.parts(manifests.load_run(run_dir)):
        for column in SPACES:
            if part.name in commit:
                commit_part(run_dir, column, part, rejected)
    return folder


def _write_source(run_dir: Path, name: str, images: int, problems: Sequence[manifests.Problem]) -> None:
    keys = [image_key(name, i) for i in range(images)]
    table = pa.table({"key": keys, "member": keys, "offset": range(images), "size_bytes": [10] * images})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    catalogue = manifests.Catalogue(
        source=name,
        location=f"/data/{name}.tar",
        source_kind="tar",
        size_bytes=10240,
        images=images,
        rows_sha256=hashlib.sha256(name.encode()).hexdigest(),
        table_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        problems=tuple(problems) if name == "shard" else (),
    )
    manifests.write_exclusively(manifests.table_path(run_dir, catalogue), buffer.getvalue())
    manifests.write_exclusively(manifests.catalogue_path(run_dir, name), manifests.to_json(catalogue))


def image_key(source: str, index: int) -> str:
    """The key of a source's image; not ASCII, as in the wild."""
    return f"{source}/Straße {index:03d}"


def commit_part(run_dir: Path, column: str, part: manifests.PartId, rejected: int = 4) -> manifests.PartManifest:
    """Writes the part's arrays and its manifest."""
    folder = manifests.column_dir(run_dir, column)
    name = f"{part.name}.a1.zarr"
    unreadable = manifests.Reason(kind="undecodable", message="image file is truncated")
    indices = range(part.number * 3, part.number * 3 + part.images)
    bad = [part.source == "shard" and i == rejected for i in indices]
    arrays, statistics = _arrays(column, part, tuple(bad))
    for path, content in arrays.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_bytes(content)
    manifest = manifests.PartManifest(
        column=column,
        part=part.name,
        fingerprint={**FINGERPRINTS[column], "rows_sha256": part.rows_sha256},
        zarr=name,
        images=tuple(
            manifests.ImageOutcome(
                key=image_key(part.source, i),
                status="rejected" if is_bad else "labelled",
                problem=unreadable if is_bad else None,
                content_sha256=hashlib.sha256(image_key(part.source, i).encode()).hexdigest(),
            )
            for i, is_bad in zip(indices, bad, strict=True)
        ),
        files=file_records(folder / name),
        statistics=statistics,
        depth_space=SPACES[column],
        licence=None if column == "images" else "Apache-2.0",
        versions={"torch": "2.13.0", "numcodecs": version("numcodecs")},
        volatile=manifests.Volatile(attempt="a1", host="node17", seconds=2, created_at="2025-01-01T00:00:00Z"),
    )
    assert manifests.write_exclusively(manifests.manifest_path(run_dir, column, part.name), manifests.to_json(manifest))
    return manifest


def file_records(folder: Path) -> tuple[manifests.FileRecord, ...]:
    """What a manifest says of the files of a folder, all that there are."""
    return tuple(
        manifests.FileRecord(
            path=path.relative_to(folder.parent).as_posix(), size_bytes=path.stat().st_size, sha256=manifests.sha256_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def commit_again(run_dir: Path, column: str = "dav2", *, versions: Mapping[str, str] | None = None) -> None:
    """The manifest of the part shard.00001, anew: it lists the files that are there now, whatever became of them."""
    part = manifests.load_part(run_dir, column, "shard.00001")
    folder = manifests.column_dir(run_dir, column)
    changed = dataclasses.replace(part, files=file_records(folder / part.zarr), versions=versions or part.versions)
    manifests.manifest_path(run_dir, column, "shard.00001").write_bytes(manifests.to_json(changed))


@functools.cache
def _arrays(column: str, part: manifests.PartId, bad: tuple[bool, ...]) -> tuple[dict[str, bytes], manifests.PartStatistics]:
    """The files of a part's arrays, different for every part, and what is true of them."""
    seed = zlib.crc32(f"{column} {part.name}".encode())
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "arrays")
        if column == "images":
            picture = _picture(seed)
            write_pictures(
                manifests.place_of(folder.parent).new_folder(folder.name), [None if is_bad else picture for is_bad in bad]
            )
            labelled = bad.count(False)
            pixels = labelled * EXTENT_PX**2
            statistics = manifests.PartStatistics(views=labelled, pixels=pixels, label_bytes=2 * pixels)
        else:
            statistics = _write_labels(folder, part, bad, seed)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files, statistics


def _picture(seed: int) -> ContextPicture:
    pixels = np.random.default_rng(seed).integers(0, 256, (EXTENT_PX, EXTENT_PX, 3), np.uint8)
    source = SourceBox(0.0, 0.0, 2.0 * EXTENT_PX, 2.0 * EXTENT_PX)
    size = (2 * EXTENT_PX, 2 * EXTENT_PX)
    return ContextPicture(jpeg=encode_picture(pixels), extent=(EXTENT_PX, EXTENT_PX), source_size=size, source=source)


def value_range(part: manifests.PartId) -> tuple[float, float]:
    """The lowest and the highest label of a part, different for every part; the mean is halfway between them."""
    return -1.0 - part.number, 2.0 + part.images


def _write_labels(folder: Path, part: manifests.PartId, bad: Sequence[bool], seed: int) -> manifests.PartStatistics:
    boxes = [PATCH] * bad.count(False)
    space = SPACES["dav2"] or ""
    new = manifests.place_of(folder.parent).new_folder(folder.name)
    with LabelWriter(new, rows=len(bad), boxes=boxes, context_px=CONTEXT_PX, depth_space=space) as writer:
        for i, is_bad in enumerate(bad):
            context, patch = (_ramp(side, part, seed + i) for side in (EXTENT_PX, PATCH.height))
            patches = (PatchLabel(values=patch.values, valid=patch.valid, box=PATCH),)
            writer.append(None if is_bad else ImageLabels(context=context, patches=patches))
    return writer.statistics()


def _ramp(side: int, part: manifests.PartId, turn: int) -> Label:
    values = np.linspace(*value_range(part), side * side, dtype=np.float32)
    return Label(values=np.roll(values, turn).reshape(side, side), valid=np.ones((side, side), bool))


def fail_part(run_dir: Path, column: str, part: str, kind: str = "out_of_memory") -> None:
    """Records that the part's attempts failed."""
    failure = manifests.FailureRecord(
        column=column,
        part=part,
        attempts=3,
        problem=manifests.Reason(kind=kind, message="the device has 8 GiB"),
        images=PARTS[part],
    )
    manifests.write_replacing(manifests.failure_path(run_dir, column, part), manifests.to_json(failure))
