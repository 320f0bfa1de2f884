"""Several runs as one dataset, or a part of their images: the samples of one run after those of the other."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset

from manifests import fingerprint_differences
from manifests.errors import RefusedError
from manifests.part_cache import part_place
from stages.distillation.batch import PackedBatch, Sample, packed
from stages.distillation.dataset import LabelDataset
from stages.distillation.order import SampleRequest, image_rank

_OF_ONE_RUN = ("seed", "part_size")


class PartNeed(NamedTuple):
    """A part of a column of one of the runs, by its number."""

    run: int
    column: str
    part: str
    digest: str


class JoinedLabels(Dataset[Sample]):
    """The labels of one run or more, which have the same plan and the same teachers; only seeds and sizes of parts may differ.

    Raises ValueError, naming the runs, the column and the field, for runs that cannot be trained on together, and for more
    images than they have.
    """

    def __init__(self, runs: Sequence[LabelDataset], images: int | None = None) -> None:
        """runs: in their order, which decides that of the samples. images: how many to draw from, of all that are catalogued in
        these parts; None takes all. Which they are is decided by their parts' names and their places there alone: the same for
        every training, and fewer are a part of more."""
        self.runs, first = tuple(runs), runs[0]
        for other in self.runs[1:]:
            _refuse_unlike(first, other)
        if images is not None:
            _keep(self.runs, images)
        self.teachers, self.context_px, self.context_kind = first.teachers, first.context_px, first.context_kind
        self.depth_space, self.plan, self.columns = first.depth_space, first.plan, first.columns
        self._start = np.concatenate([[0], np.cumsum([len(run) for run in self.runs])])

    def __len__(self) -> int:
        return int(self._start[-1])

    @property
    def places(self) -> tuple[int, ...]:
        """How many contexts of each part are drawn from, labelled or not (see `BatchPlan`)."""
        return tuple(places for run in self.runs for places in run.parts.places)

    def samples_of_places(self) -> Int[np.ndarray, "n"]:
        """The sample in each place that is drawn from, negative where there is none."""
        of_runs = zip(self.runs, self._start, strict=False)
        return np.concatenate([np.where((of := run.samples_of_places()) < 0, -1, of + start) for run, start in of_runs])

    def lock(self) -> dict[str, str]:
        """The digest of each part in use by column/part; where there are several runs, by number of the run/column/part."""
        if len(self.runs) == 1:
            return self.runs[0].lock()
        return {f"{i}/{name}": digest for i, run in enumerate(self.runs) for name, digest in run.lock().items()}

    def digest(self) -> str:
        """What a training depends on: the digest of the only run, or of all of theirs."""
        digests = [run.digest() for run in self.runs]
        return digests[0] if len(digests) == 1 else hashlib.sha256(repr(digests).encode()).hexdigest()

    def key_of(self, sample: int) -> str:
        """part/key of a sample, after the run's folder where there are several."""
        run, within = self._place(sample)
        return self._named(run, run.key_of(within))

    def __getitem__(self, index: SampleRequest) -> Sample:
        run, within = self._place(index.sample)
        sample = run[index._replace(sample=within)]
        return sample if len(self.runs) == 1 else sample.renamed(self._named(run, sample.key))

    def needs(self, index: SampleRequest) -> tuple[PartNeed, ...]:
        """The parts from which a sample is read."""
        run, within = self._place(index.sample)
        number = self.runs.index(run)
        return tuple(PartNeed(number, *need) for need in run.needs(index._replace(sample=within)))

    def fetch(self, need: PartNeed) -> None:
        """Returns when the part is on this machine. Raises as `PartCache.hold`."""
        run = self.runs[need.run]
        part_place(run.run_dir, need.column, need.part, need.digest, run.cache)

    def collate(self, samples: Sequence[Sample]) -> PackedBatch:
        """See `packed`."""
        return packed(samples, self.context_px)

    def _place(self, sample: int) -> tuple[LabelDataset, int]:
        number = int(np.searchsorted(self._start, sample, side="right")) - 1
        return self.runs[number], sample - int(self._start[number])

    def _named(self, run: LabelDataset, key: str) -> str:
        return key if len(self.runs) == 1 else f"{run.run_dir.name}/{key}"


def _keep(runs: Sequence[LabelDataset], images: int) -> None:
    """Leaves the runs that many of their images: those with the smallest digests."""
    there = sum(len(part.places) // run.contexts_per_image for run in runs for part in run.parts)
    if images > there:
        raise RefusedError(
            f"images is {images:,}, but the parts that all columns of the runs have hold {there:,}; label more, or use fewer"
        )
    kept = [[set[int]() for _ in run.parts] for run in runs]
    for _, run, part, image in heapq.nsmallest(images, _ranked(runs)):
        kept[run][part].add(image)
    for run, chosen in zip(runs, kept, strict=True):
        run.keep(chosen)


def _ranked(runs: Sequence[LabelDataset]) -> Iterator[tuple[bytes, int, int, int]]:
    """Each image's digest, with the numbers of its run, its part and itself in the part."""
    for run, labels in enumerate(runs):
        for number, part in enumerate(labels.parts):
            for image in range(len(part.places) // labels.contexts_per_image):
                yield image_rank(part.name, image), run, number, image


def _refuse_unlike(one: LabelDataset, other: LabelDataset) -> None:
    runs = f"{one.run_dir} and {other.run_dir} cannot be trained on together"
    if differences := fingerprint_differences(found=other.plan, expected=one.plan):
        raise RefusedError(f"{runs}: their plans differ: {'; '.join(differences)}")
    for ours, theirs in zip(one.columns, other.columns, strict=True):
        expected, found = (
            {name: value for name, value in column.fingerprint.items() if name not in _OF_ONE_RUN}
            | {"depth_space": column.depth_space}
            for column in (ours, theirs)
        )
        if differences := fingerprint_differences(found=found, expected=expected):
            raise RefusedError(f"{runs}: column {ours.name!r} is not of the same teacher: {'; '.join(differences)}")
