"""One unit of labelling: one part of one column, from bytes to a committed manifest.

    unit -> decode -> views -> teacher -> arrays of this attempt -> manifest, created exclusively

A unit that ends without an exception has a committed manifest, its own or that of whoever was first. One bad image is
rejected in its row and never costs its neighbours. Nothing here knows of Ray, or of other units.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from PIL import Image

import manifests
from stages.depth_space import DepthSpace
from stages.label_store import (
    ContextPicture,
    ImageLabels,
    Label,
    PatchLabel,
    PictureReader,
    decode_label,
    encode_label,
    encode_picture,
    write_labels,
    write_pictures,
)
from stages.labelling.catalogue import CatalogueRow, Source, read_images
from stages.labelling.pictures import PictureRejectedError, decode_upright, resize_region
from stages.labelling.teachers import Teacher
from stages.views import ImageTooSmallError, ImageViews, ViewPlan, plan_views

IMAGES = "images"
_View = tuple[int, int, UInt8[np.ndarray, "_ _ 3"]]
"""(image, view, picture); view 0 is the context, view i + 1 patch i."""
_VERSIONED = ("diffusers", "numcodecs", "numpy", "pillow", "torch", "transformers", "zarr")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One part x column, with everything that its labels depend on."""

    run_dir: Path
    column: str
    part: str
    attempt: str
    source: Source
    rows: tuple[CatalogueRow, ...]
    plan: ViewPlan
    seed: int
    fingerprint: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The Zarr group of this attempt."""
        return self.run_dir / "columns" / self.column / f"{self.part}.{self.attempt}.zarr"


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What became of a unit: `committed` is False when another attempt had been first."""

    column: str
    part: str
    committed: bool
    labelled: int
    rejected: int


@runtime_checkable
class Clock(Protocol):
    """Tells host, time and seconds for the manifest's volatile fields: the only thing a unit learns of the world."""

    def volatile(self, attempt: str) -> manifests.Volatile:
        """The attempt, the host, the seconds since the unit began, and the time."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """One image: either what it became, or why it was rejected."""

    content: Any = None
    problem: manifests.Reason | None = None


def label_images_part(unit: Unit, clock: Clock) -> UnitResult:
    """Make one part of the column `images`: each photograph's context as JPEG."""
    outcomes = [_picture(unit, row, content) for row, content in zip(unit.rows, _contents(unit), strict=True)]
    pictures = [outcome.content for outcome in outcomes]
    write_pictures(unit.folder, pictures)
    kept = [picture for picture in pictures if picture is not None]
    statistics = manifests.PartStatistics(
        views=len(kept),
        pixels=sum(picture.extent[0] * picture.extent[1] for picture in kept),
        label_bytes=sum(len(picture.jpeg) for picture in kept),
        min=None,
        max=None,
        mean=None,
        max_quantisation_error=None,
    )
    return _commit(unit, outcomes, statistics, depth_space=None, licence=None, clock=clock)


def label_teacher_part(unit: Unit, teacher: Teacher, clock: Clock, *, batch_size: int = 8) -> UnitResult:
    """Make one part of a teacher's column. The part must be committed in the column `images`."""
    images = manifests.load_part(unit.run_dir, IMAGES, unit.part)
    reader = PictureReader(unit.run_dir / "columns" / IMAGES / images.zarr)
    outcomes: list[_Outcome] = []
    views: list[_View] = []
    planned: list[ImageViews | None] = []
    for index, (row, content, known) in enumerate(zip(unit.rows, _contents(unit), images.images, strict=True)):
        outcomes.append(_Outcome(problem=known.problem))
        context = reader.picture(index)
        planned.append(None)
        if known.problem is None and context is not None:
            cut = _cut_views(unit, row, content, context)
            planned[-1], pictures = cut
            views += [(index, view, picture) for view, picture in enumerate(pictures)]
    depths = _predict_views(teacher, views, batch_size)
    for index, plan in enumerate(planned):
        if plan is not None:
            outcomes[index] = _assemble(plan, [depths[index, view] for view in range(len(plan.patches) + 1)])
    labels = [outcome.content for outcome in outcomes]
    write_labels(unit.folder, labels, context_px=unit.plan.context_px, depth_space=teacher.spec.depth_space)
    statistics = _label_statistics([item for item in labels if item is not None])
    return _commit(unit, outcomes, statistics, depth_space=teacher.spec.depth_space, licence=teacher.spec.licence, clock=clock)


def label_views(
    teacher: Teacher, image: Image.Image, context: UInt8[np.ndarray, "h w 3"], views: ImageViews, patch_px: int
) -> ImageLabels:
    """What a teacher says of one photograph, as its column would hold it; for looking at.

    Raises ValueError where the column would reject the image.
    """
    pictures = [context, *_patches(image, views, patch_px)]
    depths = _predict_views(teacher, [(0, view, picture) for view, picture in enumerate(pictures)], len(pictures))
    outcome = _assemble(views, [depths[0, view] for view in range(len(pictures))])
    if outcome.problem is not None:
        raise ValueError(f"{outcome.problem.kind}: {outcome.problem.message}")
    return outcome.content


# --- pictures and views ---------------------------------------------------------------------------------------------


def _contents(unit: Unit) -> Iterator[bytes]:
    return read_images(unit.source, unit.rows)


def _picture(unit: Unit, row: CatalogueRow, content: bytes) -> _Outcome:
    try:
        image = decode_upright(content)
        views = plan_views(unit.plan, seed=unit.seed, key=row.key, height_px=image.height, width_px=image.width)
    except PictureRejectedError as error:
        return _Outcome(problem=manifests.Reason(kind=error.kind, message=str(error)))
    except ImageTooSmallError as error:
        return _Outcome(problem=manifests.Reason(kind="too_small", message=str(error)))
    pixels = resize_region(image, views.source, *views.extent)
    picture = ContextPicture(
        jpeg=encode_picture(pixels), extent=views.extent, source_size=(image.height, image.width), source=views.source
    )
    return _Outcome(content=picture)


def _cut_views(
    unit: Unit, row: CatalogueRow, content: bytes, context: UInt8[np.ndarray, "h w 3"]
) -> tuple[ImageViews, list[UInt8[np.ndarray, "_ _ 3"]]]:
    """The stored context and the patches cut from the original, each patch at the teachers' input size."""
    image = decode_upright(content)
    views = plan_views(unit.plan, seed=unit.seed, key=row.key, height_px=image.height, width_px=image.width)
    return views, [context, *_patches(image, views, unit.plan.patch_px)]


def _patches(image: Image.Image, views: ImageViews, side_px: int) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    return (resize_region(image, views.source_box(box), side_px, side_px) for box in views.patches)


# --- predictions ----------------------------------------------------------------------------------------------------


def _predict_views(
    teacher: Teacher, views: Sequence[_View], batch_size: int
) -> dict[tuple[int, int], Float32[np.ndarray, "_ _"]]:
    """Predictions by (image, view). Views of equal shape share batches, whichever image they belong to."""
    by_shape: dict[tuple[int, ...], list[_View]] = {}
    for view in views:
        by_shape.setdefault(view[2].shape, []).append(view)
    depths = {}
    for same in by_shape.values():
        for start in range(0, len(same), batch_size):
            batch = same[start : start + batch_size]
            predictions = teacher.predict(np.stack([picture for _, _, picture in batch]))
            depths |= {(image, view): depth for (image, view, _), depth in zip(batch, predictions, strict=True)}
    return depths


def _assemble(views: ImageViews, depths: list[Float32[np.ndarray, "_ _"]]) -> _Outcome:
    """An image's labels from its views' predictions, or its rejection when one of them says nothing."""
    for view, depth in enumerate(depths):
        where = "the context" if view == 0 else f"patch {view - 1}"
        if not np.isfinite(depth).all():
            count = int(np.count_nonzero(~np.isfinite(depth)))
            return _Outcome(
                problem=manifests.Reason(kind="non_finite_label", message=f"{where}: {count} values are not finite")
            )
        if view == 0 and depth.max() == depth.min():
            message = f"{where}: the prediction is {depth.flat[0]} everywhere"
            return _Outcome(problem=manifests.Reason(kind="constant_label", message=message))
    patches = (
        PatchLabel(box=box, **vars(_whole_label(_area_average(depth, box.height, box.width))))
        for box, depth in zip(views.patches, depths[1:], strict=True)
    )
    return _Outcome(content=ImageLabels(context=_whole_label(depths[0]), patches=tuple(patches)))


def _whole_label(values: Float32[np.ndarray, "h w"]) -> Label:
    return Label(values=values, valid=np.ones(values.shape, bool))


def _area_average(depth: Float32[np.ndarray, "h w"], height: int, width: int) -> Float32[np.ndarray, "h2 w2"]:
    """Each target pixel is the mean of the source area under it. Shrinks; a patch is never enlarged onto the grid."""
    return F.adaptive_avg_pool2d(torch.from_numpy(np.array(depth))[None], (height, width))[0].numpy()


# --- commit ---------------------------------------------------------------------------------------------------------


def _label_statistics(labels: Sequence[ImageLabels]) -> manifests.PartStatistics:
    """Value statistics over all valid pixels, and the largest error that quantisation made, measured."""
    views = [view for item in labels for view in (item.context, *item.patches)]
    used = [view.values[view.valid].astype(np.float64) for view in views]
    errors = [np.abs(decode_label(*encode_label(view)).values[view.valid] - view.values[view.valid]).max() for view in views]
    pixels = sum(values.size for values in used)
    return manifests.PartStatistics(
        views=len(views),
        pixels=pixels,
        label_bytes=2 * pixels,
        min=min((float(values.min()) for values in used), default=None),
        max=max((float(values.max()) for values in used), default=None),
        mean=float(sum(values.sum() for values in used) / pixels) if pixels else None,
        max_quantisation_error=max(map(float, errors), default=None),
    )


def _commit(
    unit: Unit,
    outcomes: Sequence[_Outcome],
    statistics: manifests.PartStatistics,
    *,
    depth_space: DepthSpace | None,
    licence: str | None,
    clock: Clock,
) -> UnitResult:
    """Make the arrays durable, then create the manifest; whoever creates it first wins, a loser removes its arrays."""
    manifests.fsync_tree(unit.folder)
    column_dir = unit.folder.parent
    images = tuple(
        manifests.ImageOutcome(
            key=row.key, status="labelled" if outcome.problem is None else "rejected", problem=outcome.problem
        )
        for row, outcome in zip(unit.rows, outcomes, strict=True)
    )
    manifest = manifests.PartManifest(
        column=unit.column,
        part=unit.part,
        fingerprint=dict(unit.fingerprint),
        zarr=unit.folder.name,
        images=images,
        files=manifests.hash_tree(unit.folder, column_dir),
        statistics=statistics,
        depth_space=depth_space,
        licence=licence,
        versions={name: version(name) for name in _VERSIONED},
        volatile=clock.volatile(unit.attempt),
    )
    committed = manifests.write_exclusively(column_dir / f"{unit.part}.json", manifests.to_json(manifest))
    if not committed:
        shutil.rmtree(unit.folder)
    labelled = sum(image.status == "labelled" for image in images)
    return UnitResult(
        column=unit.column, part=unit.part, committed=committed, labelled=labelled, rejected=len(images) - labelled
    )
