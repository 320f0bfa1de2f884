"""One unit of labelling: one part of one column, from bytes to a committed manifest.

    unit -> decode -> views -> teacher -> arrays of this attempt -> manifest, created exclusively

A unit that ends without an exception has a committed manifest, its own or that of whoever was first. One that ends with an
exception, a signal's too, has removed its arrays or left them to `clean`; but where a manifest names them, or may do so, they
stay: the exception may have come when all was done. One bad image is rejected in its row and never costs its neighbours.
Nothing here knows of Ray, or of other units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

import manifests
from manifests.facts import part_digest
from manifests.part_cache import part_place
from manifests.place import NewFolder
from manifests.run import IMAGES
from stages.label_store import (
    ContextPicture,
    ImageLabels,
    Label,
    LabelWriter,
    PackedLabel,
    PatchLabel,
    PictureReader,
    decode_label,
    encode_picture,
    write_pictures,
)
from stages.labelling.collecting import Collector, LabelledView
from stages.labelling.flow import PlannedContext, Predicted, View, predict_in_turn, views_in_batches
from stages.labelling.quantising import label_of
from stages.labelling.unit import InputChangedError, Unit, UnitResult
from stages.models import DepthModel
from stages.models.batches import Predictor
from stages.models.family import marks_invalid_pixels
from stages.sources.catalogue import SourceImages
from stages.sources.photographs import PictureRejectedError, decode_upright, resize_region
from stages.sources.source import CatalogueRow
from stages.threads import Behind, ahead
from stages.views import Box, ImageViews, Resampler, UnfitImageError, plan_views

_OPEN_IMAGES = 16  # whose views may wait for others of their shape
_BATCHES_BEHIND = 8  # which are predicted and not packed yet
_ALWAYS = nullcontext()
_VERSIONED = ("diffusers", "numcodecs", "numpy", "pillow", "scipy", "torch", "transformers", "zarr")


@runtime_checkable
class Clock(Protocol):
    """All that a unit learns of the world, and the world of it."""

    def beat(self, images: float = 0.0) -> None:
        """Told after each picture decoded and each batch predicted; a unit that stays long without a beat hangs. images: what
        was done since, in shares of images."""
        ...

    def volatile(self, attempt: str, batch_size: int | None) -> manifests.Volatile:
        """The attempt, the batch, the host, the seconds since the unit began, and the time."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One photograph: its contexts, or why it has none; and the digest of the file's bytes, if they were seen."""

    contexts: tuple[ContextPicture, ...] = ()
    problem: manifests.Reason | None = None
    content_sha256: str | None = None


def label_images_part(unit: Unit, clock: Clock, *, threads: int = 1) -> UnitResult:
    """Make one part of the column `images`: each photograph's contexts as JPEG.

    Memory: 2 * threads decoded photographs and the part's JPEGs.
    """
    pictures: list[_Picture] = []
    images = SourceImages(unit.source, unit.rows)
    with _attempt(unit):
        with closing(ahead(partial(_picture, unit, images), range(len(unit.rows)), threads=threads, depth=threads)) as decoded:
            for picture in decoded:
                pictures.append(picture)
                clock.beat(1)
        missing = (None,) * unit.plan.contexts_per_image
        folder = manifests.place_of(unit.run_dir).new_folder(unit.arrays)
        write_pictures(
            folder,
            [context for picture in pictures for context in picture.contexts or missing],
            contexts_per_image=unit.plan.contexts_per_image,
        )
        kept = [context for picture in pictures for context in picture.contexts]
        statistics = manifests.PartStatistics(
            views=len(kept),
            pixels=sum(context.extent[0] * context.extent[1] for context in kept),
            label_bytes=sum(len(context.jpeg) for context in kept),
        )
        rows = zip(unit.rows, pictures, strict=True)
        outcomes = [_outcome(row, picture.problem, picture.content_sha256) for row, picture in rows]
        return _commit(unit, folder, outcomes, statistics, clock)


def label_teacher_part(
    unit: Unit,
    teacher: DepthModel,
    clock: Clock,
    *,
    batch_size: int = 8,
    threads: int = 1,
    turn: AbstractContextManager[object] = _ALWAYS,
) -> UnitResult:
    """Make one part of a teacher's column. The part must be committed in the column `images`.

    Pictures are cut ahead in `threads` threads, and labels packed behind in as many more, so that the teacher need not wait.
    turn: held while it predicts, for who begins one part before the last one is committed. Memory: the views of 2 * threads
    images, 8 batches of predictions, and the packed labels of a shard and of the 16 images or so that are not complete.
    Raises InputChangedError for an image whose bytes are not those that the column `images` was made from.
    """
    known = KnownImages(unit)
    predictor = Predictor(teacher, batch_size)
    assert teacher.spec.depth_space  # a loaded teacher's spec is resolved
    with _attempt(unit):
        folder = manifests.place_of(unit.run_dir).new_folder(unit.arrays)
        with LabelWriter(
            folder,
            rows=len(unit.rows) * unit.plan.contexts_per_image,
            boxes=known.boxes(),
            context_px=unit.plan.context_px,
            contexts_per_image=unit.plan.contexts_per_image,
            depth_space=teacher.spec.depth_space,
            label_bits=unit.label_bits,
        ) as writer:
            collector = Collector(writer.append_packed, known.planned, known.problems, unit.plan.contexts_per_image)
            cuts = ahead(known.cut, known.usable, threads=threads, depth=threads)
            behind = Behind(partial(_packed, writer), collector.take, threads=threads, depth=_BATCHES_BEHIND * batch_size)
            batches = views_in_batches((view for cut in cuts for view in cut), batch_size, max_waiting=_OPEN_IMAGES)
            predicted = predict_in_turn(batches, predictor, turn, bits=unit.label_bits)
            with closing(cuts), closing(predicted) as predictions, behind:
                for batch in predictions:
                    for view in batch:
                        behind.submit(view)
                    clock.beat(sum(1 / known.num_views(view.image) for view in batch))
            collector.finish()
        rows = zip(unit.rows, collector.problems, known.digests, known.planned, strict=True)
        outcomes = [
            _outcome(row, problem, digest, drawn=planned is None or any(planned)) for row, problem, digest, planned in rows
        ]
        return _commit(unit, folder, outcomes, writer.statistics(), clock, teacher=teacher, batch_size=predictor.batch_size)


def _packed(writer: LabelWriter, view: Predicted) -> LabelledView[PackedLabel]:
    label = view.label()
    packed = label if isinstance(label, manifests.Reason) else writer.pack(label, view.box)
    return LabelledView(image=view.image, number=view.number, label=packed)


def try_image(unit: Unit, index: int, teacher: DepthModel | None, clock: Clock) -> None:
    """Do with one image all that its unit would, but for the writing: to find the one that takes a worker down."""
    if teacher is None:
        _picture(unit, SourceImages(unit.source, unit.rows), index)
        return
    known = KnownImages(unit)
    if index in known.usable:
        for batch in predict_in_turn(([view] for view in known.cut(index)), Predictor(teacher, batch_size=1), _ALWAYS):
            for view in batch:
                view.label()
            clock.beat()


def label_views(
    teacher: DepthModel, image: Image.Image, context: UInt8[np.ndarray, "h w 3"], views: ImageViews, patch_px: int
) -> ImageLabels:
    """What a teacher says of one photograph, as its column would hold it; for looking at.

    Raises ValueError where the column would reject the image.
    """
    pictures, boxes = [context, *_patches(image, views, patch_px)], [None, *views.patches]
    labels: list[Label] = []
    for number, (picture, box) in enumerate(zip(pictures, boxes, strict=True)):
        label = label_of(teacher.predict(picture[None])[0], box, number, marks_invalid=marks_invalid_pixels(teacher))
        if isinstance(label, manifests.Reason):
            raise ValueError(str(label))
        labels.append(decode_label(label.codes, label.scale, label.offset))
    patches = (PatchLabel(box=box, **vars(label)) for box, label in zip(views.patches, labels[1:], strict=True))
    return ImageLabels(context=labels[0], patches=tuple(patches))


# --- pictures and views ---------------------------------------------------------------------------------------------


def _picture(unit: Unit, images: SourceImages, index: int) -> _Picture:
    """A photograph's contexts, cut and stored as JPEG, or its rejection."""
    if index in unit.excluded:
        return _Picture(problem=unit.excluded[index])
    content = images.read(index)
    digest = hashlib.sha256(content).hexdigest()
    try:
        image = decode_upright(content)
        planned = plan_views(unit.plan, seed=unit.seed, key=unit.rows[index].key, height_px=image.height, width_px=image.width)
    except (PictureRejectedError, UnfitImageError) as error:
        return _Picture(problem=manifests.Reason(kind=error.kind, message=str(error)), content_sha256=digest)
    contexts = (
        ContextPicture(
            jpeg=encode_picture(resize_region(image, views.source, *views.extent, resampler=unit.resampler)),
            extent=views.extent,
            source_size=(image.height, image.width),
            source=views.source,
        )
        for views in planned
    )
    return _Picture(contexts=tuple(contexts), content_sha256=digest)


def _patches(
    image: Image.Image, views: ImageViews, side_px: int, resampler: Resampler = "pillow"
) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    return (resize_region(image, views.source_box(box), side_px, side_px, resampler=resampler) for box in views.patches)


class KnownImages:
    """A part's images as the column `images` has committed them: what teachers are shown of them, and what not."""

    def __init__(self, unit: Unit) -> None:
        self._unit, self._images = unit, SourceImages(unit.source, unit.rows)
        committed = manifests.load_part(unit.run_dir, IMAGES, unit.part)
        place = part_place(unit.run_dir, IMAGES, unit.part, part_digest(committed), manifest=committed)
        self._reader = PictureReader(place, (manifests.column_dir(Path(), IMAGES) / committed.zarr).as_posix(), committed)
        self.digests = [image.content_sha256 for image in committed.images]
        self.problems = [unit.excluded.get(index, image.problem) for index, image in enumerate(committed.images)]
        sound = [problem is None for problem in self.problems]
        self._drawn = None if unit.drawn is None else frozenset(unit.drawn)
        self.views = [self._views(index) if is_sound else () for index, is_sound in enumerate(sound)]
        self.planned = [self._planned(index) if is_sound else None for index, is_sound in enumerate(sound)]
        """The contexts of each image, None for one that is not drawn; None where the image is rejected."""
        self.usable = [index for index, planned in enumerate(self.planned) if planned and any(planned)]

    def _views(self, index: int) -> tuple[ImageViews, ...]:
        height, width = self._reader.source_size(index * self._unit.plan.contexts_per_image)
        key = self._unit.rows[index].key
        return plan_views(self._unit.plan, seed=self._unit.seed, key=key, height_px=height, width_px=width)

    def _planned(self, index: int) -> tuple[PlannedContext | None, ...]:
        planned: list[PlannedContext | None] = []
        number, first_row = 0, index * self._unit.plan.contexts_per_image
        for row, views in enumerate(self.views[index], start=first_row):
            boxes = views.patches if self._unit.with_patches else ()
            is_drawn = self._drawn is None or row in self._drawn
            planned.append(PlannedContext(number=number, boxes=boxes) if is_drawn else None)
            number += 1 + len(views.patches)  # the same number, and so the same noise, whatever else is drawn
        return tuple(planned)

    def boxes(self) -> list[Box]:
        """Every patch's box, in the order of the store."""
        return [box for contexts in self.planned for context in filter(None, contexts or ()) for box in context.boxes]

    def num_views(self, index: int) -> int:
        """Views of an image that are shown to the teacher."""
        return sum(1 + len(context.boxes) for context in filter(None, self.planned[index] or ()))

    def cut(self, index: int) -> list[View]:
        """Every planned view of an image: the stored contexts, and the patches cut from the photograph itself."""
        content = self._images.read(index)
        self._refuse_other_bytes(index, content)
        planned, views, plan = self.planned[index] or (), self.views[index], self._unit.plan
        image = decode_upright(content) if any(context.boxes for context in filter(None, planned)) else None
        pictures: dict[int, UInt8[np.ndarray, "_ _ 3"]] = {}
        first_row = index * self._unit.plan.contexts_per_image
        for row, (context, of_context) in enumerate(zip(planned, views, strict=True), start=first_row):
            if context is not None:
                patches = _patches(image, of_context, plan.patch_px, self._unit.resampler) if image and context.boxes else ()
                pictures |= dict(enumerate([self._context(row), *patches], start=context.number))
        key = self._unit.rows[index].key
        boxes = {
            number: box
            for context in filter(None, planned)
            for number, box in enumerate([None, *context.boxes], start=context.number)
        }
        return [
            View(image=index, number=number, box=boxes[number], picture=picture, seed=view_seed(self._unit.seed, key, number))
            for number, picture in pictures.items()
        ]

    def _context(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        try:
            context = self._reader.picture(row)
        except ValueError as error:
            raise _damaged_images(self._unit, f"row {row}: {error}") from error
        if context is None:
            raise _damaged_images(self._unit, f"row {row} is labelled in the manifest, but no picture is stored")
        return context

    def _refuse_other_bytes(self, index: int, content: bytes) -> None:
        found, expected = hashlib.sha256(content).hexdigest(), self.digests[index]
        if found != expected:
            raise InputChangedError(
                f"{self._unit.source.location}: {self._unit.rows[index].member}: its sha256 is {found}, "
                f"but it was {expected} when the column 'images' was made; restore the file, or label the new one in a new run"
            )


def _damaged_images(unit: Unit, found: str) -> OSError:
    """Damage of our own disk, for which no photograph must be rejected."""
    return OSError(f"column 'images', part {unit.part}: {found}; run `python -m manifests repair` on the run, then label again")


def view_seed(seed: int, key: str, number: int) -> int:
    """63 bits for the noise of one view: a function of what is shown, never of its place in a batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}\0{number}".encode("utf-8", "surrogatepass")).digest()[:8]) >> 1


# --- commit ---------------------------------------------------------------------------------------------------------


class _UnsettledError(Exception):
    """A manifest that is not there yet may come to be; `error` is what the caller is to hear of."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _attempt(unit: Unit) -> Iterator[None]:
    """Removes what the attempt has written when it does not come to its end, unless it has been committed, or may be yet."""
    try:
        yield
    except _UnsettledError as unsettled:
        raise unsettled.error from None
    except BaseException as error:
        try:
            _discard_unless_named(unit)
        except Exception as second:  # what went wrong first is what is to be mended
            error.add_note(f"and {unit.run_dir}/{unit.arrays} could not be removed ({type(second).__name__}: {second})")
        raise


def _discard_unless_named(unit: Unit) -> bool:
    """Removes the attempt's arrays where it is proven that no manifest names them; says whether one names them.

    A manifest that is there and cannot be read proves nothing: whatever it names stays.
    """
    try:
        named = manifests.load_part(unit.run_dir, unit.column, unit.part).zarr
    except FileNotFoundError:
        named = None
    except (OSError, ValueError):
        return False
    if named == Path(unit.arrays).name:
        return True
    manifests.place_of(unit.run_dir).remove(unit.arrays)
    return False


def _commit(
    unit: Unit,
    folder: NewFolder,
    outcomes: list[manifests.ImageOutcome],
    statistics: manifests.PartStatistics,
    clock: Clock,
    *,
    teacher: DepthModel | None = None,
    batch_size: int | None = None,
) -> UnitResult:
    """Make the arrays durable, then create the manifest; whoever creates it first wins, a loser removes its arrays."""
    records = folder.publish()
    manifest = manifests.PartManifest(
        column=unit.column,
        part=unit.part,
        fingerprint=dict(unit.fingerprint),
        zarr=Path(unit.arrays).name,
        images=tuple(outcomes),
        files=records,
        statistics=statistics,
        depth_space=teacher.spec.depth_space if teacher else None,
        licence=teacher.spec.licence if teacher else None,
        versions=_versions(),
        volatile=clock.volatile(unit.attempt, batch_size),
        rows=unit.drawn,
    )
    name = manifests.manifest_path(Path(), unit.column, unit.part).as_posix()
    place = manifests.place_of(unit.run_dir)
    try:
        created = place.create(name, manifests.to_json(manifest))
    except BaseException as error:
        if place.late_creates:  # the manifest may still come, and name these arrays
            raise _UnsettledError(error) from error
        raise
    committed = created or _discard_unless_named(unit)
    labelled = sum(image.status == "labelled" for image in outcomes)
    rejected = sum(image.status == "rejected" for image in outcomes)
    return UnitResult(committed=committed, labelled=labelled, rejected=rejected, batch_size=batch_size)


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _VERSIONED}


def _outcome(
    row: CatalogueRow, problem: manifests.Reason | None, content_sha256: str | None = None, *, drawn: bool = True
) -> manifests.ImageOutcome:
    status = "rejected" if problem is not None else "labelled" if drawn else "not_drawn"
    return manifests.ImageOutcome(key=row.key, status=status, problem=problem, content_sha256=content_sha256)
