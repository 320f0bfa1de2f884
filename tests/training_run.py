"""A small labelled run, written with the real store and the real records, whose depth can be seen in its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from manifests.place import place_of
from manifests.run import catalogue_path, column_dir, column_record_path, part_fingerprint
from manifests.schema import (
    Catalogue,
    ColumnRecord,
    ImageOutcome,
    PartManifest,
    PartStatistics,
    Reason,
    RunRecord,
    Volatile,
    to_json,
)
from stages.demo_networks import build_depth_anything, save_depth_anything
from stages.distillation.student import WEIGHTS, load_student
from stages.label_store import ContextPicture, ImageLabels, Label, PatchLabel, encode_picture, write_labels, write_pictures
from stages.views import Box, SourceBox

CONTEXT_PX = 48
ROWS_SHA256 = "0" * 64
SPACES = {"primary": "disparity_affine_invariant", "assistant": "disparity_affine_invariant"}
AFFINE = {"primary": (2.0, 1.0), "assistant": (0.5, -3.0), "third": (1.5, 2.0)}
"""Each teacher's scale and shift of the scene's disparity; its patches have others."""


def scene_disparity(index: int, height: int, width: int) -> np.ndarray:
    """A slanted plane with a box in front; float32 in [0, 1]."""
    rng = np.random.default_rng([7, index])
    y, x = np.mgrid[0:height, 0:width] / CONTEXT_PX
    disparity = 0.5 * (rng.random() * y + rng.random() * x)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    disparity[top : top + height // 3, left : left + width // 3] += 0.4
    return disparity.clip(0, 1).astype(np.float32)


def write_run(
    run_dir: Path,
    *,
    images: int = 12,
    part_size: int = 5,
    extents: Sequence[tuple[int, int]] = ((CONTEXT_PX, CONTEXT_PX),),
    spaces: Mapping[str, str] = SPACES,
    rejected: Mapping[str, Sequence[int]] | None = None,
    fingerprints: Mapping[str, Mapping[str, object]] | None = None,
    without: Sequence[tuple[str, int]] = (),
    contexts_per_image: int = 1,
    attempt: str = "first",
    context: str | None = None,
    preset: str | None = None,
    names: Mapping[int, str] | None = None,
) -> Path:
    """A run of one source. `rejected`: images by column; `without`: (column, part number) left uncommitted;
    `fingerprints`: what a column has beside the common `plan_context_px`. Each context is a scene of its own: number
    image * contexts_per_image + context. `names`: keys of images that are not called scene-N."""
    rejected, fingerprints = rejected or {}, fingerprints or {}
    keys = [(names or {}).get(i, f"scene-{i}") for i in range(images)]
    columns = [
        ColumnRecord(
            name=name,
            depth_space=space,  # type: ignore[arg-type]
            fingerprint={"plan_context_px": CONTEXT_PX, **fingerprints.get(name, {})},  # type: ignore[dict-item]
            configuration={},
        )
        for name, space in (("images", None), *spaces.items())
    ]
    source = Catalogue(
        source="scenes",
        location="scenes",
        source_kind="folder",
        size_bytes=0,
        images=images,
        rows_sha256=ROWS_SHA256,
        table_sha256="0" * 64,
        problems=(),
    )
    run = RunRecord(
        seed=0,
        part_size=part_size,
        plan={"context_px": CONTEXT_PX, "contexts_per_image": contexts_per_image} | ({"context": context} if context else {}),
        configuration={"preset": preset} if preset else {},
    )
    (run_dir / "catalog").mkdir(parents=True)
    (run_dir / "run.json").write_bytes(to_json(run))
    catalogue_path(run_dir, "scenes").write_bytes(to_json(source))
    for column in columns:
        column_dir(run_dir, column.name).mkdir(parents=True)
        column_record_path(run_dir, column.name).write_bytes(to_json(column))
        for number, start in enumerate(range(0, images, part_size)):
            if (column.name, number) not in without:
                part = range(start, min(start + part_size, images))
                lost = set(rejected.get(column.name, ()))
                name = f"scenes.{number:05d}"
                _write_part(run_dir, column, name, part, extents, lost, contexts_per_image, attempt, keys)
    return run_dir


def _write_part(
    run_dir: Path,
    column: ColumnRecord,
    part: str,
    images: range,
    extents: Sequence[tuple[int, int]],
    rejected: set[int],
    contexts: int,
    attempt: str,
    keys: Sequence[str],
) -> None:
    zarr = f"{part}.{attempt}.zarr"
    folder = place_of(run_dir).new_folder((column_dir(Path(), column.name) / zarr).as_posix())
    scenes = [
        None if i in rejected else scene_disparity(row, *extents[row % len(extents)])
        for i in images
        for row in range(i * contexts, (i + 1) * contexts)
    ]
    if column.depth_space is None:
        pictures = [None if scene is None else _picture(scene) for scene in scenes]
        write_pictures(folder, pictures, contexts_per_image=contexts)
    else:
        labels = [None if scene is None else _labels(scene, *AFFINE[column.name]) for scene in scenes]
        space = column.depth_space
        write_labels(folder, labels, context_px=CONTEXT_PX, depth_space=space, contexts_per_image=contexts)
    outcomes = (
        ImageOutcome(key=keys[i], status="labelled")
        if i not in rejected
        else ImageOutcome(key=keys[i], status="rejected", problem=Reason(kind="damaged", message="for the test"))
        for i in images
    )
    manifest = PartManifest(
        column=column.name,
        part=part,
        fingerprint=part_fingerprint(column, ROWS_SHA256),
        zarr=zarr,
        images=tuple(outcomes),
        files=folder.publish(),
        statistics=PartStatistics(views=len(scenes), pixels=0, label_bytes=0),
        depth_space=column.depth_space,
        licence=None,
        versions={},
        volatile=Volatile(attempt=attempt, host="test", seconds=0.0, created_at="2025-01-01T00:00:00Z"),
    )
    place_of(run_dir).create((column_dir(Path(), column.name) / f"{part}.json").as_posix(), to_json(manifest))


def _picture(disparity: np.ndarray) -> ContextPicture:
    levels = (disparity * 255).astype(np.uint8)
    pixels = np.stack([levels, 255 - levels, np.full_like(levels, 90)], 2)
    height, width = disparity.shape
    box = SourceBox(0.0, 0.0, float(height), float(width))
    return ContextPicture(jpeg=encode_picture(pixels), extent=(height, width), source_size=(height, width), source=box)


def _labels(disparity: np.ndarray, scale: float, shift: float) -> ImageLabels:
    height, width = disparity.shape
    side = min(height, width) * 2 // 3
    valid = np.ones((height, width), bool)
    valid[0, 0] = False
    context = Label(values=disparity * scale + shift, valid=valid)
    patches = []
    for top in (0, height - side):
        for left in (0, width - side):
            values = disparity[top : top + side, left : left + side] * (3 * scale) + shift + 1
            patches.append(PatchLabel(values=values, valid=np.ones((side, side), bool), box=Box(top, left, side, side)))
    return ImageLabels(context=context, patches=tuple(patches))


def write_student(folder: Path) -> Path:
    """A checkpoint of a Depth Anything network small enough for a test.

    Its head is drawn as a fresh one is. With the library's own start the map is constant up to rounding, so every normalised
    loss of it, and its gradient, would be those of one processor's rounding.
    """
    torch.manual_seed(0)
    model = build_depth_anything(hidden=32, layers=4, heads=2, patch_px=12, fusion=16, image_px=CONTEXT_PX)
    save_depth_anything(model, folder, torch.float32, CONTEXT_PX)
    weights = load_student(str(folder), CONTEXT_PX, start="fresh-head").network.state_dict()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
