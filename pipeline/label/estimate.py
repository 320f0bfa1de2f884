"""What labelling would take, from a small sample that goes through the real units into a folder that is thrown away."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import manifests
from manifests.location import Location
from pipeline.label.config import LabelConfig
from pipeline.label.queue import Task
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import FoundSource, read_sources, recorded_sources
from pipeline.label.worker import LabelWorker
from pipeline.progress import duration

_SAMPLE_IMAGES = 16
_Sources = tuple[FoundSource, ...]


@dataclass(frozen=True, kw_only=True)
class ColumnEstimate:
    """One column's cost, measured on the sample and scaled to all images; `hours` is for all workers together."""

    column: str
    views: int
    seconds_per_image: float
    hours: float
    gigabytes: float
    rejected_in_sample: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What labelling all sources, or a shard of them, would take. Memory is the process's peak, and the GPU's where there is
    one."""

    images: int
    sampled: int
    workers: int
    shard: str | None
    columns: tuple[ColumnEstimate, ...]
    peak_memory_gb: float
    peak_gpu_memory_gb: float | None

    def __str__(self) -> str:
        shard = f"shard {self.shard}: " if self.shard else ""
        lines = [
            f"{shard}{self.images} images; measured on {self.sampled} of them, for {self.workers} workers",
            "",
            f"{'column':<12}{'views':>12}{'s/image':>10}{'time':>14}{'GB':>10}{'rejected in sample':>20}",
        ]
        lines += [
            f"{column.column:<12}{column.views:>12}{column.seconds_per_image:>10.3f}{duration(column.hours * 3600):>14}"
            f"{column.gigabytes:>10.3f}{column.rejected_in_sample:>20}"
            for column in self.columns
        ]
        hours, gigabytes = (sum(getattr(column, name) for column in self.columns) for name in ("hours", "gigabytes"))
        lines.append(f"{'all':<12}{'':>12}{'':>10}{duration(hours * 3600):>14}{gigabytes:>10.3f}")
        memory = f"largest memory of a worker: {self.peak_memory_gb:.2f} GB"
        if self.peak_gpu_memory_gb is not None:
            memory += f", and {self.peak_gpu_memory_gb:.2f} GB on the GPU"
        return "\n".join([*lines, "", memory])


def estimate(config: LabelConfig, workers: int) -> Estimate:
    """Label an evenly spread sample with every teacher, in this process, and scale what it took to all images of the shard.

    Raises what labelling would raise for bad sources, checkpoints or settings; writes nothing into the run.
    """
    sources = read_sources(config.sources or recorded_sources(config.run))
    images = sum(len(content.rows) for _, content in sources)
    share = _images_of_shard(config, sources)
    sampled = _sample(sources, images)
    with tempfile.TemporaryDirectory(prefix="label-estimate-") as folder:
        run = open_run(replace(config, run=Path(folder), part_size=_SAMPLE_IMAGES, for_training=(), shard=None), sampled)
        run = replace(run, with_patches=config.draw is None or config.draw.patches)
        worker = LabelWorker(config.batch_size, config.threads)
        teachers = {teacher.name: teacher for teacher in run.teachers}
        for unit in units_left(run):
            print(f"dry run: {unit.column}: {len(unit.rows)} of {images} images ...", file=sys.stderr, flush=True)
            worker.do(Task(unit=replace(unit, attempt="sample"), teacher=teachers.get(unit.column)))
        drawn = _images_drawn(config, sources)
        wanted = {column.name: drawn.get(column.name, images) * share / max(images, 1) for column in run.columns}
        columns = tuple(_column(run.run_dir, name, count, workers) for name, count in wanted.items())
    return Estimate(
        images=share,
        shard=config.shard,
        sampled=sum(len(content.rows) for _, content in sampled),
        workers=max(workers, 1),
        columns=columns,
        peak_memory_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        peak_gpu_memory_gb=torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    )


def _sample(sources: _Sources, images: int) -> _Sources:
    """The sources with every n-th image, counted through all of them; sources without any are left out."""
    step, first = max(images // _SAMPLE_IMAGES, 1), 0
    sampled = []
    for source, content in sources:
        rows = content.rows[-first % step :: step]
        first += len(content.rows)
        if rows:
            sampled.append((source, replace(content, rows=rows)))
    return tuple(sampled)


def _images_of_shard(config: LabelConfig, sources: _Sources) -> int:
    """How many images there are; in the shard, if there is one."""
    shard, size = config.share, config.part_size
    return sum(
        min(size, len(content.rows) - first)
        for source, content in sources
        for number, first in enumerate(range(0, len(content.rows), size))
        if shard is None or shard.has_number(source.name, number)
    )


def _images_drawn(config: LabelConfig, sources: _Sources) -> dict[str, float]:
    """How many images' worth of contexts the training draws of each column that the labels are for; none where for any."""
    if config.draw is None:
        return {}
    contexts = config.plan.contexts_per_image
    rows = config.draw.rows({source.name: len(content.rows) for source, content in sources}, contexts)
    return {column: sum(map(len, of_parts.values())) / contexts for column, of_parts in rows.items()}


def _column(run_dir: Location, column: str, images: float, workers: int) -> ColumnEstimate:
    parts: Sequence[manifests.PartManifest] = [
        manifests.load_part(run_dir, column, part) for part in sorted(manifests.committed_parts(run_dir, column))
    ]
    seen = sum(len(part.images) for part in parts)
    scale = images / max(seen, 1)
    seconds = sum(part.volatile.seconds for part in parts)
    return ColumnEstimate(
        column=column,
        views=round(sum(part.statistics.views for part in parts) * scale),
        seconds_per_image=seconds / max(seen, 1),
        hours=seconds * scale / max(workers, 1) / 3600,
        gigabytes=sum(file.size_bytes for part in parts for file in part.files) * scale / 1e9,
        rejected_in_sample=sum(image.status == "rejected" for part in parts for image in part.images),
    )
