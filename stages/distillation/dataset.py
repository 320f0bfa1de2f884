"""Committed labels as training samples.

A sample is one context of an image. `LabelDataset` turns a request (sample, teacher, flip, colour) into pixels and labels, and
does so alike in any process; which requests make a step is `order.BatchPlan`'s to say.
Refused: columns that do not belong together, and a run in which there is nothing to train on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset

from manifests import PartManifest, Place, column_dir, load_run
from manifests.errors import RefusedError
from manifests.facts import part_digest
from manifests.location import Location
from manifests.part_cache import PartCache, part_place
from manifests.run import list_column, load_part_at
from stages.depth_space import DepthConversion, DepthSpace, convert_to_disparity, is_disparity
from stages.distillation.batch import PackedBatch, Sample, mirrored, packed
from stages.distillation.columns import (
    IMAGES,
    common_space,
    depth_spaces,
    matching_columns,
    trainable_parts,
)
from stages.distillation.coverage import Coverage, coverage_of
from stages.distillation.disagreement import patches_without_disagreement, without_disagreement
from stages.distillation.draw import is_of_a_draw
from stages.distillation.fusion import agreement_weighted_average, fused_patches
from stages.distillation.order import AVERAGE, PARTS_IN_WINDOW, SampleRequest
from stages.distillation.parts import TrainPart, TrainParts
from stages.distillation.patch_filter import agreeing_patches
from stages.label_store import AnyLabel, AnyPatch, Label, LabelReader, PatchLabel, PictureReader


class LabelDataset(Dataset[Sample]):
    """The contexts of all images that are labelled in `images` and in every teacher's column. Safe to send to worker processes.

    Raises ValueError, naming the field, for unknown columns, for depth spaces or view plans that differ, for parts that were
    made with other settings than run.json says or whose folder is lost, and where no image is labelled by all
    teachers. A sample is read only from files that are as the part's manifest has them.
    """

    def __init__(
        self,
        run_dir: Location,
        teachers: tuple[str, ...],
        *,
        read_patches: bool = True,
        conversion: DepthConversion = "refuse",
        only_parts: Collection[str] | None = None,
        patch_agreement: float = -1,
        mask_disagreement: float | None = None,
        cache: PartCache | None = None,
    ) -> None:
        """`teachers`: columns. `read_patches` off leaves the patches out of the samples: a training without
        L_lg need not decode them. `conversion`: how teachers' labels that are not disparities are used. `only_parts`: names;
        None takes all that are committed. `patch_agreement`: patches that correlate less with the whole view's label are left
        out (see `agreeing_patches`); -1 takes all. `mask_disagreement`: pixels in which two teachers differ by more are not
        valid (see `agreeing_pixels`), for which every sample is read from all columns; None compares nothing.
        `cache`: where parts of a run in a bucket are kept while they are read."""
        self.cache = cache
        run = load_run(run_dir)
        columns = matching_columns(run, run_dir, teachers, conversion)
        self.teachers, self.read_patches, self.patch_agreement = teachers, read_patches, patch_agreement
        self.conversion: DepthConversion = conversion
        self.mask_disagreement = mask_disagreement
        self.plan, self.columns = run.plan, columns
        self.context_px = int(run.plan["context_px"])
        self.context_kind: str | None = run.plan.get("context")
        """`whole` or `square`; None where the run does not say."""
        self._spaces = depth_spaces(columns)
        self.depth_space: DepthSpace = common_space(self._spaces, conversion)
        """Of the labels as they come out; fused ones are affine-invariant even where this is metric."""
        listings = {column.name: list_column(run_dir, column.name, with_states=True) for column in columns}
        opened = trainable_parts(run, run_dir, columns, list(listings.values()), only=only_parts)
        self.parts = opened.parts
        self.contexts_per_image = int(run.plan.get("contexts_per_image", 1))
        self.run_dir = run_dir
        self.coverage: Coverage = coverage_of(run, listings, opened)
        """How many of the run's images are in use, and why the others are not."""
        if not len(self):
            advice = ". Finish labelling first, or train on the columns that are complete" * self.coverage.unfinished
            raise RefusedError(f"{run_dir}: no image is labelled in all columns: {self.coverage}{advice}")

    def keep(self, images: Sequence[Collection[int]]) -> None:
        """Use only these images of each part, by their index among all of the part's."""
        contexts, parts = self.contexts_per_image, []
        for part, kept in zip(self.parts, images, strict=True):
            places, rows = (of[np.isin(of // contexts, list(kept))] for of in (part.places, part.rows))
            parts.append(dataclasses.replace(part, places=places, rows=rows))
        self.parts = TrainParts(parts)
        used = sum(self.parts.images_in_use(contexts))
        self.coverage = dataclasses.replace(self.coverage, used=used, not_chosen=self.coverage.used - used)

    def __len__(self) -> int:
        return int(self.parts.starts[-1])

    def samples_of_places(self) -> Int[np.ndarray, "n"]:
        """The sample in each place that is drawn from (see `BatchPlan`), part by part; -1 where there is none."""
        places = [np.isin(part.places, part.rows) for part in self.parts]
        there = np.concatenate(places)
        return np.where(there, np.cumsum(there) - 1, -1)

    def lock(self) -> dict[str, str]:
        """The digest of each part in use by column/part. A part labelled again with the same outcome has the same digest."""
        return {
            f"{column.name}/{part.name}": digest
            for part in self.parts
            for column, digest in zip(self.columns, part.digests, strict=True)
        }

    def digest(self) -> str:
        """What a training on this dataset depends on: the content of every part, which of its rows are used, and as what."""
        rows = [(tuple(part.rows.tolist()), tuple(part.places.tolist())) for part in self.parts]
        content = (sorted(self.lock().items()), self.teachers, rows, self.conversion)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def key_of(self, sample: int) -> str:
        """part/key of a sample, followed by #context where images have several; reads the manifest of the part's images."""
        part, within = self._place(sample)
        image, context = divmod(int(part.rows[within]), self.contexts_per_image)
        key = _pictures(self.run_dir, part.name, part.digests[0], self.cache).keys[image].replace("\0", "")
        return f"{part.name}/{key}" + f"#{context}" * (self.contexts_per_image > 1)

    def __getitem__(self, index: SampleRequest) -> Sample:
        part, within = self._place(index.sample)
        row, fuse, most = int(part.rows[within]), index.teacher == AVERAGE, self.mask_disagreement
        asked = (index.teacher,) if most is None and not fuse else range(len(self.teachers))
        where = f"{self.run_dir}: part {part.name}, row {row}"
        picture = _pictures(self.run_dir, part.name, part.digests[0], self.cache).picture(row)
        contexts, patches = zip(*(self._read(part, row, teacher) for teacher in asked), strict=True)
        sizes = [None if picture is None else picture.shape[:2], *(context.valid.shape for context in contexts)]
        if picture is None or len(set(sizes)) > 1:
            raise RefusedError(f"{where}: picture and label are {sizes}, expected one size; verify the run")
        own = 0 if fuse else asked.index(index.teacher)
        whole = agreement_weighted_average(contexts) if fuse else contexts[own]
        close = fused_patches(patches, where) if fuse else patches[own]
        if most is not None:
            whole = without_disagreement(whole, contexts, most)
            close = patches_without_disagreement(close, patches, most, where)
        sample = Sample(
            image=picture,
            context=whole,
            patches=close if self.patch_agreement <= -1 else agreeing_patches(whole, close, self.patch_agreement),
            key=self.key_of(index.sample),
            teacher="average" if fuse else self.teachers[index.teacher],
            color=index.color,
        )
        return mirrored(sample) if index.flip else sample

    def _place(self, sample: int) -> tuple[TrainPart, int]:
        """The sample's part, and which of the part's rows in use it is."""
        starts = self.parts.starts
        number = int(np.searchsorted(starts, sample, side="right")) - 1
        return self.parts[number], sample - int(starts[number])

    def _read(self, part: TrainPart, row: int, teacher: int) -> tuple[AnyLabel, tuple[AnyPatch, ...]]:
        """What one teacher says of a context and of its patches, converted if need be."""
        reader = _labels(self.run_dir, self.teachers[teacher], part.name, part.digests[1 + teacher], self.cache)
        context = reader.context(row)
        if context is None:
            why = "its training does not draw it" if is_of_a_draw(self.columns[1 + teacher].fingerprint) else "verify the run"
            raise RefusedError(f"{reader.where} row {row}: has no label: {why}")
        patches = reader.patches(row) if self.read_patches else ()
        if is_disparity(space := self._spaces[teacher]) or self.conversion == "refuse":
            return context, tuple(patches)
        values = (convert_to_disparity(label.values, label.valid, space, self.conversion) for label in (context, *patches))
        whole = Label(values=next(values), valid=context.valid)
        return whole, tuple(PatchLabel(values=v, valid=p.valid, box=p.box) for v, p in zip(values, patches, strict=True))

    def needs(self, index: SampleRequest) -> tuple[tuple[str, str, str], ...]:
        """The parts from which a sample is read: column, name, digest."""
        part, _ = self._place(index.sample)
        one = index.teacher != AVERAGE and self.mask_disagreement is None
        teachers = (index.teacher,) if one else range(len(self.teachers))
        columns = [0, *(1 + teacher for teacher in teachers)]
        return tuple((self.columns[column].name, part.name, part.digests[column]) for column in columns)

    def collate(self, samples: Sequence[Sample]) -> PackedBatch:
        """See `packed`."""
        return packed(samples, self.context_px)


@lru_cache(maxsize=8 * PARTS_IN_WINDOW)
def _labels(run_dir: Location, column: str, part: str, digest: str, cache: PartCache | None) -> LabelReader:
    return LabelReader(*_committed(run_dir, column, part, digest, cache))


@lru_cache(maxsize=4 * PARTS_IN_WINDOW)
def _pictures(run_dir: Location, part: str, digest: str, cache: PartCache | None) -> PictureReader:
    return PictureReader(*_committed(run_dir, IMAGES, part, digest, cache))


def _committed(
    run_dir: Location, column: str, part: str, digest: str, cache: PartCache | None
) -> tuple[Place, str, PartManifest]:
    """A part's arrays and manifest, as they are now: read again, because the manifests of all parts are too much to hold.

    Raises ValueError where the part has another content than the digest's: it was repaired and labelled meanwhile.
    """
    place = part_place(run_dir, column, part, digest, cache)
    manifest = load_part_at(place, column, part)
    if part_digest(manifest) != digest:
        raise RefusedError(f"{run_dir}: part {part} of {column!r} is not what it was when the run was opened; begin anew")
    return place, (column_dir(Path(), column) / manifest.zarr).as_posix(), manifest
