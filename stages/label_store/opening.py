"""A run's labels and pictures by column and key: `open_run("runs/mine")["primary"]["cat.jpg"]`, for any program.

Opening reads the records of the run, its sources and columns; a key, once the tables of the sources, and the manifest of one
part; the labels of a photograph, that part's arrays. A part is held against its manifest, and its manifest against the column's
record, before anything of it is used: what is lost, damaged or made with other settings is refused by name. What is
committed after a column was counted is seen by opening the run again.

This is here and not in `manifests`, which answers without Zarr: labels are arrays.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

from manifests import (
    ColumnRecord,
    DepthSpace,
    PartId,
    PartManifest,
    column_dir,
    committed_parts,
    load_failure,
    load_part,
    load_run,
    manifest_path,
    refuse_foreign_part,
)
from manifests.checker import printable
from manifests.errors import DistillError, RefusedError
from manifests.facts import part_digest
from manifests.location import Location, location_of
from manifests.part_cache import part_place
from manifests.run import IMAGES
from stages.label_store.format import CodedLabel, CodedPatch, ImageLabels, Label, PatchLabel
from stages.label_store.keys import ImageId, NoLabelsError, RunImages
from stages.label_store.reader import REPAIR, LabelReader, PictureReader
from stages.views import SourceBox

_OPEN_PARTS = 8  # of each column; a part's tables are some 100 kB
_THREADS = 8  # a network disk wants several requests at once


class DamagedPartError(DistillError, ValueError):
    """A part whose files are not as they were written; the message names the file and what to do."""


class Status(NamedTuple):
    """How an image ended in a column, and in words why it has no labels there; docs/format.md says what each means."""

    status: Literal["labelled", "rejected", "not_drawn", "failed", "pending"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PhotographLabels:
    """What one teacher says of one photograph, in its own depth space.

    contexts: one for each that the plan draws of a photograph, which is one in most plans; None for a context of which no
    label was wanted, in a column that was labelled for one training alone.
    """

    image: ImageId
    teacher: str
    depth_space: DepthSpace
    contexts: tuple[ImageLabels | None, ...]

    @property
    def first(self) -> ImageLabels:
        """The labels of the first context that has any."""
        return next(labels for labels in self.contexts if labels is not None)

    @property
    def context(self) -> Label:
        """The whole view's label, of the first context that has one: values float32 [h, w], valid bool [h, w]."""
        return self.first.context

    @property
    def patches(self) -> tuple[PatchLabel, ...]:
        """The close-ups' labels of that context, each with its box on the whole view's grid."""
        return self.first.patches


class CodedImage(NamedTuple):
    """What one teacher says of one context of an image, in the codes that are stored."""

    context: CodedLabel
    patches: tuple[CodedPatch, ...]


@dataclass(frozen=True, kw_only=True)
class PhotographPictures:
    """What teachers and student see of one photograph, context by context.

    boxes: where each context is in the upright photograph, whose height and width are source_size, in its pixels.
    """

    image: ImageId
    source_size: tuple[int, int]
    pictures: tuple[UInt8[np.ndarray, "_ _ 3"], ...]
    boxes: tuple[SourceBox, ...]

    @property
    def picture(self) -> UInt8[np.ndarray, "_ _ 3"]:
        """The first context."""
        return self.pictures[0]


ReaderT = TypeVar("ReaderT", LabelReader, PictureReader)
RecordT = TypeVar("RecordT", PhotographLabels, PhotographPictures)
if TYPE_CHECKING:
    _Images = Mapping
else:  # without its types: whoever checks those while a program runs looks at an item, and would read a photograph

    class _Images(Mapping):
        def __class_getitem__(cls, _types: object) -> type:
            return cls


class _Column(_Images[ImageId, RecordT], Generic[ReaderT, RecordT]):
    """The images that are labelled in a column, in the run's order, by source and key; `column[key]` is enough where one source
    alone has that key. Can be sent to other processes.

    `column[key]` raises NoLabelsError, a KeyError, for an image that is not there, rejected, failed or pending, with the
    reason; AmbiguousKeyError; DamagedPartError, RefusedError or OSError for a part that cannot be trusted or read.
    """

    _reader: type[ReaderT]

    def __init__(self, images: RunImages, record: ColumnRecord) -> None:
        self.images, self.record, self.name = images, record, record.name

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_part"}

    def __getitem__(self, key: ImageId | tuple[str, str] | str) -> RecordT:
        return self.numbered(self.images.number(key))

    def __contains__(self, key: object) -> bool:
        try:
            return self.status(key).status == "labelled"
        except NoLabelsError:
            return False

    def __iter__(self) -> Iterator[ImageId]:
        """Reads the manifest of each part when it comes to it."""
        for _, part in self._committed():
            images = self._part(part)[0].images
            yield from (ImageId(part.source, image.key) for image in images if image.status == "labelled")

    def __len__(self) -> int:
        """Reads the manifests of all the column's parts, once."""
        return len(self.numbers())

    def status(self, key: object) -> Status:
        """How the image of a key, or of (source, key), ended here, labelled or not; reads its part's manifest alone.

        Raises as `column[key]` does, but for an image without labels.
        """
        return self._status(*self.images.place(self.images.number(key)))

    def status_of_number(self, number: int) -> Status:
        """The same, for the image of this number: reads no table of keys."""
        return self._status(*self.images.place(number))

    def licence(self, number: int) -> str | None:
        """Of the weights that the part of the image of this number was made with; None where none is stated."""
        return self._part(self.images.place(number)[0])[0].licence

    def numbers(self, context: int | None = None) -> Int64[np.ndarray, "_"]:
        """The labelled images by their number in the run, rising; those alone of which this context has a label, if given."""
        images, contexts = np.divmod(self._rows, self.images.contexts)
        return np.unique(images if context is None else images[contexts == context])

    def numbered(self, number: int) -> RecordT:
        """What `column[key]` gives, for the image of this number."""
        with self._labelled(number) as (image, reader, rows):
            return self._record_of(image, reader, rows)

    def content_sha256(self, number: int) -> str | None:
        """The digest of the file that the image of this number was read from; None where the run does not say."""
        part, index = self.images.place(number)
        return self._part(part)[0].images[index].content_sha256

    @abstractmethod
    def _record_of(self, image: ImageId, reader: ReaderT, rows: range) -> RecordT: ...

    @contextmanager
    def _labelled(self, number: int) -> Iterator[tuple[ImageId, ReaderT, range]]:
        """An image, the arrays of its part, and its rows in them, one for each context; names what is wrong with them."""
        part, index = self.images.place(number)
        status, contexts = self._status(part, index), self.images.contexts
        if status.status != "labelled":
            where = f"{self.images.run_dir}: {self.images.key(number)!r} of the source {part.source!r}"
            raise NoLabelsError(f"{where} has nothing in {self.name!r}: {status.status}: {status.reason}")
        manifest, reader = self._part(part)
        image = ImageId(part.source, manifest.images[index].key)
        try:
            yield image, reader, range(index * contexts, (index + 1) * contexts)
        except DistillError:
            raise
        except ValueError as error:
            text = str(error)
            raise DamagedPartError(text if "manifests repair" in text else f"{text}; {REPAIR}") from error

    def _status(self, part: PartId, index: int) -> Status:
        try:
            outcome = self._part(part)[0].images[index]
        except FileNotFoundError:
            return self._unfinished(part)
        if outcome.problem:
            return Status(outcome.status, f"{outcome.problem.kind}: {printable(outcome.problem.message)}")
        drawn = outcome.status != "not_drawn"
        return Status(outcome.status, "" if drawn else "the training that this column was made for does not look at it")

    def _unfinished(self, part: PartId) -> Status:
        again = "give the command that made the run again"
        try:
            problem = load_failure(self.images.run_dir, self.name, part.name).problem
        except FileNotFoundError:
            return Status("pending", f"its part {part.name} is not labelled yet; {again}")
        return Status("failed", f"its part {part.name}: {problem.kind}: {printable(problem.message)}; {again}")

    def _committed(self) -> list[tuple[int, PartId]]:
        """The column's parts in the run's order, each with the number of its first image."""
        there = committed_parts(self.images.run_dir, self.name)
        return [(int(n), part) for n, part in zip(self.images.start, self.images.parts, strict=False) if part.name in there]

    @cached_property
    def _rows(self) -> Int64[np.ndarray, "_"]:
        """number * contexts + context of all that has labels, rising."""
        with ThreadPoolExecutor(_THREADS) as pool:
            rows = list(pool.map(self._rows_of, self._committed()))
        return np.concatenate([np.zeros(0, np.int64), *rows])

    def _rows_of(self, committed: tuple[int, PartId]) -> Int64[np.ndarray, "_"]:
        first, part = committed
        manifest, contexts = self._manifest(part), self.images.contexts
        labelled = [i for i, image in enumerate(manifest.images) if image.status == "labelled"]
        rows = np.array([i * contexts + context for i in labelled for context in range(contexts)], np.int64)
        return first * contexts + (rows if manifest.rows is None else rows[np.isin(rows, manifest.rows)])

    @cached_property
    def _part(self) -> Callable[[PartId], tuple[PartManifest, ReaderT]]:
        """A part's manifest and its arrays, of the parts that were used last; arrays are opened when they are read."""
        return lru_cache(_OPEN_PARTS)(self._opened)

    def _opened(self, part: PartId) -> tuple[PartManifest, ReaderT]:
        manifest = self._manifest(part)
        folder = (column_dir(Path(), self.name) / manifest.zarr).as_posix()
        place = part_place(self.images.run_dir, self.name, part.name, part_digest(manifest))
        return manifest, self._reader(place, folder, manifest)

    def _manifest(self, part: PartId) -> PartManifest:
        manifest = load_part(self.images.run_dir, self.name, part.name)
        refuse_foreign_part(self.images.run_dir, self.record, part, manifest)
        if len(manifest.images) != part.images:
            where = manifest_path(self.images.run_dir, self.name, part.name)
            raise DamagedPartError(f"{where}: found {len(manifest.images)} images, expected {part.images}; {REPAIR}")
        return manifest


class LabelColumn(_Column[LabelReader, PhotographLabels]):
    """A teacher's labels of the photographs, in `depth_space`."""

    _reader = LabelReader

    @property
    def depth_space(self) -> DepthSpace:
        """What the numbers mean (docs/format.md): near is large in a disparity, small in a depth."""
        assert self.record.depth_space is not None  # which a teacher's record must say to be read at all
        return self.record.depth_space

    def whole(self, number: int, context: int = 0) -> Label:
        """The label of one context alone, for the image of this number. Raises NoLabelsError where it has none."""
        with self._labelled(number) as (image, reader, rows):
            if (label := reader.context(rows[context])) is None:
                raise NoLabelsError(f"{reader.where}: context {context} of {image.key!r} has no label: it was not wanted")
            return label.decoded

    def coded(self, number: int) -> tuple[CodedImage | None, ...]:
        """The labels of the image of this number, context by context as `numbered` gives them, in the codes that are stored."""
        with self._labelled(number) as (image, reader, rows):
            return self._coded(image, reader, rows)

    def _record_of(self, image: ImageId, reader: LabelReader, rows: range) -> PhotographLabels:
        contexts = tuple(
            coded and ImageLabels(context=coded.context.decoded, patches=tuple(patch.decoded for patch in coded.patches))
            for coded in self._coded(image, reader, rows)
        )
        return PhotographLabels(image=image, teacher=self.name, depth_space=self.depth_space, contexts=contexts)

    def _coded(self, image: ImageId, reader: LabelReader, rows: range) -> tuple[CodedImage | None, ...]:
        whole = [reader.context(row) for row in rows]
        contexts = tuple(
            None if label is None else CodedImage(label, tuple(reader.patches(row)))
            for row, label in zip(rows, whole, strict=True)
        )
        if any(_is_impossible(labels) for labels in contexts if labels is not None):
            raise ValueError(f"{reader.where}: labels of {image.key!r} are not finite, or have boxes outside of the whole view")
        if not any(contexts):
            raise ValueError(f"{reader.where}: found no label of {image.key!r}, which is labelled by the part's manifest")
        return contexts


def _is_impossible(labels: CodedImage) -> bool:
    """Of what a run can hold that was not written by this package."""
    (height, width), boxes = labels.context.codes.shape, [patch.box for patch in labels.patches]
    finite = all(np.isfinite(label.values).all() for label in (labels.context, *labels.patches))
    return not finite or any(min(b) < 0 or b.top + b.height > height or b.left + b.width > width for b in boxes)


class PictureColumn(_Column[PictureReader, PhotographPictures]):
    """The pictures that teachers and student see of the photographs, whatever became of the photographs themselves."""

    _reader = PictureReader

    def jpegs(self, number: int) -> tuple[bytes, ...]:
        """The files, as they are stored, that `numbered` decodes into the pictures of the image of this number."""
        with self._labelled(number) as (_, reader, rows):
            return tuple(jpeg for row in rows if (jpeg := reader.jpeg(row)) is not None)

    def _record_of(self, image: ImageId, reader: PictureReader, rows: range) -> PhotographPictures:
        pictures = tuple(picture for row in rows if (picture := reader.picture(row)) is not None)
        if len(pictures) != len(rows):
            raise ValueError(f"{reader.where}: found {len(pictures)} pictures of {image.key!r}, expected {len(rows)}")
        return PhotographPictures(
            image=image,
            source_size=reader.source_size(rows[0]),
            pictures=pictures,
            boxes=tuple(reader.source_box(row) for row in rows),
        )


def refuse_other_files(number: int, columns: Sequence[LabelColumn | PictureColumn]) -> None:
    """Raises RefusedError where these columns have the image of this number from different files: it changed in between."""
    if len({column.content_sha256(number) for column in columns}) > 1:
        found = ", ".join(f"{column.name} {column.content_sha256(number)}" for column in columns)
        images = columns[0].images
        where = f"{images.run_dir}: {images.key(number)!r} of the source {images.place(number)[0].source!r}"
        raise RefusedError(f"{where}: its columns were made from different files (sha256: {found}); {REPAIR}")


class OpenRun(Mapping[str, LabelColumn]):
    """The teachers' columns of a run by name, in that order. `pictures` is the column `images`: what the teachers saw."""

    def __init__(self, run_dir: Location) -> None:
        run = load_run(run_dir)
        self.run_dir, self.images = run_dir, RunImages(run_dir, run)
        columns = {column.name: column for column in run.columns}
        self._pictures = columns.pop(IMAGES, None)
        self._columns = {name: LabelColumn(self.images, record) for name, record in columns.items()}

    def __getitem__(self, name: str) -> LabelColumn:
        if name in self._columns:
            return self._columns[name]
        hint = "its pictures are in `pictures`" if name == IMAGES else f"it has: {', '.join(self._columns) or 'none yet'}"
        raise NoLabelsError(f"{self.run_dir}: the run has no teacher's column {name!r} ({hint})")

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    @cached_property
    def pictures(self) -> PictureColumn:
        """Raises RefusedError where the run has no column `images` yet."""
        if self._pictures is None:
            raise RefusedError(f"{self.run_dir}: found no column 'images', expected one: label photographs into the run first")
        return PictureColumn(self.images, self._pictures)


def open_run(run_dir: str | Location) -> OpenRun:
    """The run in this folder, or at this URL of a bucket.

    Raises NotARunError, or InvalidRecordError or OSError where its records cannot be read.
    """
    return OpenRun(location_of(run_dir))
