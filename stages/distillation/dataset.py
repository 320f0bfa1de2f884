"""Committed labels as training samples, in an order that is a pure function of (seed, epoch).

A sample is one context of an image. `LabelDataset` turns a request (sample, teacher, flip) into pixels and labels;
`BatchPlan` turns a step's number into requests. Nothing else decides what a step sees: neither worker processes nor what ran
before, so a resumed training goes on exactly.
Refused: columns that do not belong together, and a run in which there is nothing to train on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from manifests.run import column_dir, committed_parts, fingerprint_differences, load_part, load_run, parts
from manifests.schema import ColumnRecord, PartManifest, RunRecord
from stages.label_store import Label, LabelReader, PatchLabel, PictureReader
from stages.views import Box

IMAGES = "images"
PARTS_IN_WINDOW = 4
_ORDER, _FLIP, _TEACHER = 1, 2, 3  # one random stream for each decision


class SampleRequest(NamedTuple):
    """The sample's index in the dataset, whose labels (index into its teachers), and whether it is mirrored."""

    sample: int
    teacher: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one teacher on the context grid of C x C, top-left aligned; what lies beyond a sample is 0 and invalid."""

    image: UInt8[Tensor, "b 3 c c"]
    extent: Int[Tensor, "b 2"]
    label: Float[Tensor, "b c c"]
    valid: Bool[Tensor, "b c c"]
    patch_label: Float[Tensor, "b p k k"]
    patch_valid: Bool[Tensor, "b p k k"]
    patch_box: Int[Tensor, "b p 4"]
    """Top, left, height, width on the context grid; all 0 where a sample has fewer than p patches."""
    keys: tuple[str, ...]
    """part/key of each sample, for messages; followed by #context where images have several."""
    teacher: str

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; copies from pinned memory do not wait."""
        return self._with({name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()})

    def pin_memory(self) -> Batch:
        """Called by the DataLoader."""
        return self._with({name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _with(self, tensors: dict[str, Tensor]) -> Batch:
        return dataclasses.replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One context of an image with one teacher's labels, at its own extent, mirrored where that was asked for."""

    image: UInt8[np.ndarray, "h w 3"]
    context: Label
    patches: tuple[PatchLabel, ...]
    key: str
    teacher: str


@dataclass(frozen=True, kw_only=True)
class _TrainPart:
    """A part that is committed in every column, and which of its rows in the store can be trained on."""

    name: str
    pictures: Path
    labels: tuple[Path, ...]
    rows: tuple[int, ...]
    keys: tuple[str, ...]


class LabelDataset(Dataset[Sample]):
    """The contexts of all images that are labelled in `images` and in every teacher's column. Safe to send to worker processes.

    Raises ValueError, naming the field, for unknown columns, for depth spaces or view plans that differ, for parts that were
    made with other settings than run.json says, and where no image is labelled by all teachers.
    """

    def __init__(self, run_dir: Path, teachers: tuple[str, ...], *, read_patches: bool = True) -> None:
        """`read_patches` off leaves the patches out of the samples: a training without L_lg need not decode them."""
        run = load_run(run_dir)
        columns = _matching_columns(run, run_dir, teachers)
        self.teachers, self.read_patches = teachers, read_patches
        self.context_px = int(run.plan["context_px"])
        self.parts = _trainable_parts(run, run_dir, columns)
        self.part_sizes = tuple(len(part.rows) for part in self.parts)
        self._start = np.concatenate([[0], np.cumsum(self.part_sizes, dtype=np.int64)])
        if not len(self):
            counts = ", ".join(f"{c.name}: {len(committed_parts(run_dir, c.name))}" for c in columns)
            raise ValueError(
                f"{run_dir}: no image is labelled in all columns; committed parts, of {len(parts(run))}: {counts}. "
                "Finish labelling first, or train on the columns that are complete."
            )

    def __len__(self) -> int:
        return int(self._start[-1])

    def digest(self) -> str:
        """What a training on this dataset depends on: every committed array folder and which of its rows are used."""
        content = [(p.name, p.pictures.name, [x.name for x in p.labels], p.rows) for p in self.parts]
        return hashlib.sha256(repr((self.teachers, content)).encode()).hexdigest()

    def __getitem__(self, index: SampleRequest) -> Sample:
        request = index
        place = int(np.searchsorted(self._start, request.sample, side="right")) - 1
        part, within = self.parts[place], request.sample - int(self._start[place])
        row, folder = part.rows[within], part.labels[request.teacher]
        picture, reader = _pictures(part.pictures).picture(row), _labels(folder)
        context = reader.context(row)
        if picture is None or context is None or picture.shape[:2] != context.values.shape:
            sizes = f"{None if picture is None else picture.shape[:2]} and {None if context is None else context.values.shape}"
            raise ValueError(f"{folder} row {row}: picture and label are {sizes}, expected one size; verify the run")
        sample = Sample(
            image=picture,
            context=context,
            patches=tuple(reader.patches(row)) if self.read_patches else (),
            key=f"{part.name}/{part.keys[within]}",
            teacher=self.teachers[request.teacher],
        )
        return mirrored(sample) if request.flip else sample

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pads to the context grid, to the most patches and to the largest patch of the batch."""
        count = max(len(sample.patches) for sample in samples)
        side = max((max(patch.values.shape) for sample in samples for patch in sample.patches), default=1)
        grid = (len(samples), self.context_px, self.context_px)
        image, label, valid = np.zeros((*grid, 3), np.uint8), np.zeros(grid, np.float32), np.zeros(grid, bool)
        patch_label = np.zeros((len(samples), count, side, side), np.float32)
        patch_valid, patch_box = np.zeros(patch_label.shape, bool), np.zeros((len(samples), count, 4), np.int64)
        for i, sample in enumerate(samples):
            height, width = sample.context.values.shape
            image[i, :height, :width] = sample.image
            label[i, :height, :width], valid[i, :height, :width] = sample.context.values, sample.context.valid
            for j, patch in enumerate(sample.patches):
                height, width = patch.values.shape
                patch_label[i, j, :height, :width], patch_valid[i, j, :height, :width] = patch.values, patch.valid
                patch_box[i, j] = patch.box
        return Batch(
            image=torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(),
            extent=torch.tensor([sample.context.values.shape for sample in samples]),
            label=torch.from_numpy(label),
            valid=torch.from_numpy(valid),
            patch_label=torch.from_numpy(patch_label),
            patch_valid=torch.from_numpy(patch_valid),
            patch_box=torch.from_numpy(patch_box),
            keys=tuple(sample.key for sample in samples),
            teacher=samples[0].teacher,
        )


def mirrored(sample: Sample) -> Sample:
    """Left and right exchanged within the sample's extent, for the image, its label, and its patches and their places."""
    width = sample.image.shape[1]
    patches = (
        PatchLabel(
            values=p.values[:, ::-1],
            valid=p.valid[:, ::-1],
            box=Box(p.box.top, width - p.box.left - p.box.width, p.box.height, p.box.width),
        )
        for p in sample.patches
    )
    context = Label(values=sample.context.values[:, ::-1], valid=sample.context.valid[:, ::-1])
    return dataclasses.replace(sample, image=sample.image[:, ::-1], context=context, patches=tuple(patches))


# --- order ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which samples each step sees. Iterating yields the batches of the steps from `first_step` to `steps`.

    Batches run on across epochs, so that all have `batch_size` samples.
    """

    part_sizes: tuple[int, ...]
    batch_size: int
    steps: int
    seed: int
    primary_ratio: float
    num_teachers: int
    flip: bool
    first_step: int = 0

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        return (self.requests(step) for step in range(self.first_step, self.steps))

    def teacher(self, step: int) -> int:
        """Index of the teacher of a step's batch."""
        return teacher_for_step(self.seed, step, self.primary_ratio) if self.num_teachers > 1 else 0

    def requests(self, step: int) -> list[SampleRequest]:
        """The samples of one step."""
        teacher, samples = self.teacher(step), sum(self.part_sizes)
        requests = []
        for drawn in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, place = divmod(drawn, samples)
            sample = int(sample_order(self.seed, epoch, self.part_sizes)[place])
            requests.append(SampleRequest(sample, teacher, self.flip and is_flipped(self.seed, epoch, sample)))
        return requests


def teacher_for_step(seed: int, step: int, primary_ratio: float = 0.7) -> int:
    """0 for the primary teacher, 1 for the assistant: the paper's "Select", one draw for each iteration."""
    return int(np.random.default_rng([seed, _TEACHER, step]).random() >= primary_ratio)


def is_flipped(seed: int, epoch: int, sample: int) -> bool:
    """Whether a sample is mirrored in an epoch; half of all are."""
    return bool(np.random.default_rng([seed, _FLIP, epoch, sample]).random() < 0.5)


@lru_cache(maxsize=2)
def sample_order(seed: int, epoch: int, part_sizes: tuple[int, ...], window: int = PARTS_IN_WINDOW) -> Int[np.ndarray, "n"]:
    """Each sample's index once: parts shuffled, then samples shuffled within every `window` parts.

    A window keeps the number of arrays in use small however large the run is. Not to be written to.
    """
    rng = np.random.default_rng([seed, _ORDER, epoch])
    samples_of_part = np.split(np.arange(sum(part_sizes)), np.cumsum(part_sizes)[:-1])
    shuffled = [samples_of_part[part] for part in rng.permutation(len(part_sizes))]
    windows = (np.concatenate(shuffled[i : i + window]) for i in range(0, len(shuffled), window))
    return np.concatenate([rng.permutation(samples) for samples in windows])


# --- what belongs together ------------------------------------------------------------------------------------------


@lru_cache(maxsize=8 * PARTS_IN_WINDOW)
def _labels(folder: Path) -> LabelReader:
    return LabelReader(folder)


@lru_cache(maxsize=4 * PARTS_IN_WINDOW)
def _pictures(folder: Path) -> PictureReader:
    return PictureReader(folder)


def _matching_columns(run: RunRecord, run_dir: Path, teachers: tuple[str, ...]) -> tuple[ColumnRecord, ...]:
    """`images` and the teachers' columns, once all that must agree agrees."""
    known = {column.name: column for column in run.columns}
    if not 1 <= len(set(teachers)) == len(teachers) <= 2 or IMAGES in teachers:
        raise ValueError(f"teachers: found {teachers!r}, expected the names of one or two different teachers' columns")
    if unknown := [name for name in teachers if name not in known]:
        choices = ", ".join(name for name in known if name != IMAGES)
        raise ValueError(f"{run_dir}: teachers: the run has no column {unknown[0]!r} (it has: {choices})")
    columns = tuple(known[name] for name in (IMAGES, *teachers))
    first, *others = columns[1:]
    for other in others:
        if other.depth_space != first.depth_space:
            raise ValueError(
                f"{run_dir}: depth_space: {first.name!r} has {first.depth_space}, {other.name!r} has {other.depth_space}; "
                "a student learns one space. Label with teachers of the same space, or train on one of them."
            )
    plans = [{key: value for key, value in c.fingerprint.items() if key == "seed" or key.startswith("plan")} for c in columns]
    for column, plan in zip(columns, plans, strict=True):
        if differences := fingerprint_differences(plan, plans[0]):
            raise ValueError(f"{run_dir}: the view plans of {column.name!r} and {IMAGES!r} differ: " + "; ".join(differences))
    return columns


def _trainable_parts(run: RunRecord, run_dir: Path, columns: tuple[ColumnRecord, ...]) -> tuple[_TrainPart, ...]:
    committed = set.intersection(*(committed_parts(run_dir, column.name) for column in columns))
    contexts = int(run.plan.get("contexts_per_image", 1))
    found = []
    for part in parts(run):
        if part.name not in committed:
            continue
        records = [load_part(run_dir, column.name, part.name) for column in columns]
        for column, record in zip(columns, records, strict=True):
            _refuse_foreign(run_dir, column, record)
        status = zip(*(record.images for record in records), strict=True)
        labelled = [i for i, outcomes in enumerate(status) if all(o.status == "labelled" for o in outcomes)]
        for image in labelled:
            _refuse_other_input(run_dir, columns, records, image)
        rows = {image * contexts + c: f"#{c}" if contexts > 1 else "" for image in labelled for c in range(contexts)}
        pictures, *labels = (column_dir(run_dir, c.name) / r.zarr for c, r in zip(columns, records, strict=True))
        keys = tuple(records[0].images[row // contexts].key + context for row, context in rows.items())
        found.append(_TrainPart(name=part.name, pictures=pictures, labels=tuple(labels), rows=tuple(rows), keys=keys))
    return tuple(found)


def _refuse_other_input(run_dir: Path, columns: Sequence[ColumnRecord], records: Sequence[PartManifest], image: int) -> None:
    digests = [record.images[image].content_sha256 for record in records]
    if len(set(digests)) > 1:
        found = ", ".join(f"{column.name} {digest}" for column, digest in zip(columns, digests, strict=True))
        raise ValueError(
            f"{run_dir}: part {records[0].part}, image {records[0].images[image].key!r}: its columns were made from different "
            f"files (sha256: {found}); run `python -m manifests repair {run_dir}`, then label again"
        )


def _refuse_foreign(run_dir: Path, column: ColumnRecord, record: PartManifest) -> None:
    differences = fingerprint_differences(record.fingerprint, column.fingerprint)
    if record.depth_space != column.depth_space:
        differences.append(f"depth_space: found {record.depth_space}, expected {column.depth_space}")
    if differences:
        where = f"{column_dir(run_dir, column.name) / record.part}.json"
        raise ValueError(f"{where}: not made with this run's settings: " + "; ".join(differences))
