"""A small run written by hand: two sources, two columns, and arrays that are real but say nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import zarr

import manifests

FINGERPRINTS = {"images": {"seed": 7, "part_size": 3}, "dav2": {"seed": 7, "part_size": 3, "weights_sha256": "a" * 64}}
SPACES: dict[str, manifests.DepthSpace | None] = {"images": None, "dav2": "disparity_affine_invariant"}
SOURCES = {"shard": 7, "photos.v1": 2}
PARTS = {"shard.00000": 3, "shard.00001": 3, "shard.00002": 1, "photos.v1.00000": 2}


def write_run(
    run_dir: Path,
    *,
    images: Mapping[str, int] = SOURCES,
    problems: Sequence[manifests.Problem] = (),
    commit: Sequence[str] = tuple(PARTS),
    rejected: int = 4,
) -> Path:
    """Nine images in four parts. `images`: how many each source has; `problems`: of the source `shard`; `commit`: parts
    to commit in each column; `rejected`: the image of `shard` that could not be decoded."""
    sources = tuple(_write_source(run_dir, name, count, problems) for name, count in images.items())
    columns = tuple(
        manifests.ColumnRecord(name=name, depth_space=SPACES[name], fingerprint=FINGERPRINTS[name]) for name in SPACES
    )
    run = manifests.RunRecord(
        seed=7, part_size=3, plan={"context_px": 48}, sources=sources, columns=columns, configuration={"sources": ["shard.tar"]}
    )
    manifests.write_exclusively(run_dir / "run.json", manifests.to_json(run))
    for part in manifests.parts(run):
        for column in SPACES:
            if part.name in commit:
                commit_part(run_dir, column, part, rejected)
    return run_dir


def _write_source(run_dir: Path, name: str, images: int, problems: Sequence[manifests.Problem]) -> manifests.SourceRecord:
    keys = [image_key(name, i) for i in range(images)]
    table = pa.table({"key": keys, "member": keys, "offset": range(images), "size_bytes": [10] * images})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    manifests.write_exclusively(manifests.table_path(run_dir, name), buffer.getvalue())
    catalogue = manifests.Catalogue(
        source=name,
        location=f"/data/{name}.tar",
        source_kind="tar",
        size_bytes=10240,
        images=images,
        table_sha256=manifests.sha256_file(manifests.table_path(run_dir, name)),
        problems=tuple(problems) if name == "shard" else (),
    )
    path = manifests.catalogue_path(run_dir, name)
    manifests.write_exclusively(path, manifests.to_json(catalogue))
    return manifests.SourceRecord(
        name=name, kind="tar", location=f"/data/{name}.tar", images=images, catalogue_sha256=manifests.sha256_file(path)
    )


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
    _write_arrays(folder / name, f"{column} {part.name}", bad)
    manifest = manifests.PartManifest(
        column=column,
        part=part.name,
        fingerprint=FINGERPRINTS[column],
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
        statistics=statistics(column, part),
        depth_space=SPACES[column],
        licence=None if column == "images" else "Apache-2.0",
        versions={"torch": "2.13.0"},
        volatile=manifests.Volatile(attempt="a1", host="node17", seconds=2, created_at="2025-01-01T00:00:00Z"),
    )
    assert manifests.write_exclusively(manifests.manifest_path(run_dir, column, part.name), manifests.to_json(manifest))
    return manifest


def _write_arrays(folder: Path, name: str, rejected: Sequence[bool]) -> None:
    """Two arrays in five files: `context`, different for every name, and `context_extent`."""
    group = zarr.create_group(folder, zarr_format=3, attributes={"made_for": name})
    codes = np.random.default_rng(zlib.crc32(name.encode())).integers(1, 2**16, 12, np.uint16)
    extents = np.array([(0, 0) if is_bad else (2, 3) for is_bad in rejected], np.int32)
    for array, values, chunk in (("context", codes, 4), ("context_extent", extents, len(extents))):
        shape = (chunk, *values.shape[1:])
        group.create_array(array, data=values, chunks=shape, shards=values.shape, compressors=None, fill_value=0)


def file_records(folder: Path) -> tuple[manifests.FileRecord, ...]:
    """What a manifest says of the files of a folder, all that there are."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return manifests.settle_files(folder, files)


def statistics(column: str, part: manifests.PartId) -> manifests.PartStatistics:
    """Made up, and different for every part."""
    counts = manifests.PartStatistics(views=part.images, pixels=100 * part.images, label_bytes=200 * part.images)
    if column == "images":
        return counts
    low = -1.0 - part.number
    return dataclasses.replace(
        counts, min=low, max=2.0 + part.images, mean=1.0 + part.number, max_quantisation_error=0.5**part.images
    )


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
