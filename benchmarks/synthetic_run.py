"""A run of as many parts as one likes: one part's real arrays and manifests, under the names and keys of all the others."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

import manifests
from manifests.schema import CHECKSUM_KEY
from stages.label_store import ContextPicture, ImageLabels, Label, LabelWriter, PatchLabel, encode_picture, write_pictures
from stages.views import Box, SourceBox

SPACES: dict[str, manifests.DepthSpace | None] = {
    "images": None,
    "primary": "disparity_affine_invariant",
    "assistant": "disparity_affine_invariant",
}
_PART_SIZE, _CONTEXT_PX = 64, 28
_PATCHES = tuple(Box(top, left, 16, 16) for top in (0, 12) for left in (0, 12))
_MOST_LINKS = 50_000  # to one file, of the 65,000 that ext4 allows


def write_synthetic_run(run_dir: Path, parts: int, *, with_arrays: bool = True) -> Path:
    """A run of so many parts in three columns, of 64 images each. `with_arrays`: with the files that the manifests list, which
    are the same files for all parts of a column; without them the folders of the parts are empty."""
    run = _write_records(run_dir, parts * _PART_SIZE)
    for column in run.columns:
        folder = manifests.column_dir(run_dir, column.name)
        first, *others = manifests.parts(run)
        manifest = _write_first(run_dir, column, first)
        template, own = manifests.to_json(manifest), folder / manifest.zarr
        files = [(path.relative_to(own), path) for path in own.rglob("*") if path.is_file()]
        folders = sorted(path.relative_to(own) for path in own.rglob("*") if path.is_dir())
        for part in others:
            (folder / f"{part.name}.json").write_bytes(_renamed(template, first.name, part))
            group = folder / manifest.zarr.replace(first.name, part.name)
            group.mkdir()
            for inner in folders if with_arrays else ():
                (group / inner).mkdir()
            for name, path in files if with_arrays else ():
                (group / name).write_bytes(path.read_bytes()) if part.number % _MOST_LINKS == 0 else os.link(path, group / name)
            if with_arrays and part.number % _MOST_LINKS == 0:
                files = [(name, group / name) for name, _ in files]
        manifests.load_part(run_dir, column.name, (others or [first])[-1].name)  # it is what the schema says
    return run_dir


def _renamed(template: bytes, name: str, part: manifests.PartId) -> bytes:
    """The manifest of another part, with a checksum of its own."""

    def key(found: re.Match[bytes]) -> bytes:
        return b'"key": "%08d"' % (int(found[1]) + part.number * _PART_SIZE)

    raw = re.sub(rb'"key": "(\d{8})"', key, template.replace(name.encode(), part.name.encode()))
    blank = re.sub(rb'("%s": ")[0-9a-f]{64}' % CHECKSUM_KEY.encode(), rb"\g<1>" + b"0" * 64, raw)
    start = blank.index(b'"%s": "' % CHECKSUM_KEY.encode()) + len(CHECKSUM_KEY) + 5
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[start + 64 :]


def _write_records(run_dir: Path, images: int) -> manifests.Run:
    write = partial(_write, run_dir)
    plan = {"context": "whole", "context_px": _CONTEXT_PX, "contexts_per_image": 1}
    write("run.json", manifests.to_json(manifests.RunRecord(seed=0, part_size=_PART_SIZE, plan=plan, configuration={})))
    keys = [f"{i:08d}" for i in range(images)]
    table = pa.table({"key": keys, "member": keys, "offset": range(images), "size_bytes": [1] * images})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    catalogue = manifests.Catalogue(
        source="wide",
        location="/data/wide.tar",
        source_kind="tar",
        size_bytes=images,
        images=images,
        rows_sha256="0" * 64,
        table_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        problems=(),
    )
    write(manifests.table_path(Path(), catalogue).as_posix(), buffer.getvalue())
    write(manifests.catalogue_path(Path(), "wide").as_posix(), manifests.to_json(catalogue))
    for name, space in SPACES.items():
        fingerprint = {"seed": 0, "part_size": _PART_SIZE} | {f"plan.{key}": value for key, value in plan.items()}
        column = manifests.ColumnRecord(name=name, depth_space=space, fingerprint=fingerprint, configuration={})
        write(manifests.column_record_path(Path(), name).as_posix(), manifests.to_json(column))
    return manifests.load_run(run_dir)


def _write(run_dir: Path, name: str, content: bytes) -> None:
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (run_dir / name).write_bytes(content)


def _write_first(run_dir: Path, column: manifests.ColumnRecord, part: manifests.PartId) -> manifests.PartManifest:
    """The arrays of the first part, and its manifest."""
    name = f"{part.name}.0123456789ab.zarr"
    folder = manifests.place_of(manifests.column_dir(run_dir, column.name)).new_folder(name)
    rng = np.random.default_rng(0)
    if column.depth_space is None:
        jpeg = encode_picture(rng.integers(0, 256, (_CONTEXT_PX, _CONTEXT_PX, 3), np.uint8))
        size, source = (2 * _CONTEXT_PX, 2 * _CONTEXT_PX), SourceBox(0.0, 0.0, 2.0 * _CONTEXT_PX, 2.0 * _CONTEXT_PX)
        picture = ContextPicture(jpeg=jpeg, extent=(_CONTEXT_PX, _CONTEXT_PX), source_size=size, source=source)
        write_pictures(folder, [picture] * part.images)
        pixels = part.images * _CONTEXT_PX**2
        statistics = manifests.PartStatistics(views=part.images, pixels=pixels, label_bytes=2 * pixels)
    else:
        boxes = _PATCHES * part.images
        with LabelWriter(
            folder, rows=part.images, boxes=boxes, context_px=_CONTEXT_PX, depth_space=column.depth_space
        ) as writer:
            for _ in range(part.images):
                patches = tuple(PatchLabel(**vars(_label(rng, box.height)), box=box) for box in _PATCHES)
                writer.append(ImageLabels(context=_label(rng, _CONTEXT_PX), patches=patches))
        statistics = writer.statistics()
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(part.images)]
    manifest = manifests.PartManifest(
        column=column.name,
        part=part.name,
        fingerprint=manifests.part_fingerprint(column, part.rows_sha256),
        zarr=name,
        images=tuple(
            manifests.ImageOutcome(key=f"{i:08d}", status="labelled", content_sha256=digest) for i, digest in enumerate(digests)
        ),
        files=folder.publish(),
        statistics=statistics,
        depth_space=column.depth_space,
        licence=column.depth_space and "Apache-2.0",
        versions={"torch": "2.13.0"},
        volatile=manifests.Volatile(attempt="0123456789ab", host="node", seconds=2.0, created_at="2026-01-01T00:00:00Z"),
    )
    _write(run_dir, manifests.manifest_path(Path(), column.name, part.name).as_posix(), manifests.to_json(manifest))
    return manifest


def _label(rng: np.random.Generator, side: int) -> Label:
    return Label(values=rng.random((side, side), np.float32), valid=np.ones((side, side), bool))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic_run", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("parts", type=int, metavar="PARTS")
    parser.add_argument("--without-arrays", action="store_true", help="leave the folders of the parts empty")
    arguments = parser.parse_args(argv)
    write_synthetic_run(arguments.run, arguments.parts, with_arrays=not arguments.without_arrays)


if __name__ == "__main__":
    main()
