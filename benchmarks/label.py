"""`python -m benchmarks.label`: what labelling costs beside the teachers, as ratios taken in one run on one machine.

Prints a Markdown table for docs/benchmarks.md. Both sides of a ratio run in turns, several times; medians are reported.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import torch
from PIL import Image

import manifests
from benchmarks.timing import in_turns, peak_memory_mb, ratios, seconds
from benchmarks.worker import labelling, predict_all, ready_batches, ready_unit, write_photographs
from manifests.location import on_disk
from pipeline.label import ray_pool
from pipeline.label.config import PRESETS, LabelConfig, demo_teacher
from pipeline.label.drive import DriveOptions, drive
from pipeline.label.pool import Resources
from pipeline.label.queue import Task
from pipeline.label.run import OpenRun, open_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import LabelWorker
from stages.label_store import Label, LabelReader, QuantisedLabel, decode_label, quantise
from stages.labelling.unit import UnitResult
from stages.models import load_model
from stages.sources.source import CatalogueRow, Source, SourceContent
from stages.views import ViewPlan

_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48, help="photographs in the unit whose path is timed")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side of a ratio gets")
    parser.add_argument("--units", type=int, default=10_000, help="no-op units that are driven over Ray")
    parser.add_argument("--committed", type=int, default=100_000, help="committed parts of the run that is reopened")
    parser.add_argument("--peak-memory-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_memory_of:
        _label_all(arguments.peak_memory_of)
        print(peak_memory_mb())
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = [*_worker_rows(place, arguments.images, arguments.rounds), *_store_rows(place), *_memory_rows(place)]
        rows += _driver_rows(place, arguments.units, arguments.committed)
    print("| what | figure |\n|---|---|")
    print("\n".join(f"| {what} | {figure} |" for what, figure in rows))


# --- a worker against its bare teacher ------------------------------------------------------------------------------


def _worker_rows(place: Path, images: int, rounds: int) -> list[tuple[str, str]]:
    tar = write_photographs(place / "photographs.tar", images, width=1200, height=800)
    rows = []
    for name in ("primary", "assistant"):
        unit = ready_unit(_small_views(place / f"worker-{name}", tar, images), name)
        teacher, batches = load_model(demo_teacher(name)), ready_batches(unit, _BATCH)
        sides = {
            "bare": partial(predict_all, teacher, batches, _BATCH),
            "worker": labelling(unit, teacher, batch_size=_BATCH, threads=2),
        }
        taken = in_turns(sides, rounds=rounds)
        ratio = statistics.median(ratios(taken["bare"], taken["worker"]))
        per_view_ms = 1000 * statistics.median(taken["bare"]) / sum(map(len, batches))
        rows.append((f"worker against bare `predict`, demo {name}, {per_view_ms:.0f} ms per view", f"{ratio:.3f}"))
    return rows


def _small_views(run_dir: Path, tar: Path, part_size: int) -> LabelConfig:
    plan = ViewPlan(context="square", context_px=192, patch_px=192, min_square_px=400, patches_per_side=2)
    return _config(run_dir, str(tar), plan=plan, part_size=part_size)


def _config(run_dir: Path, source: str, **changes: Any) -> LabelConfig:
    settings: dict[str, Any] = PRESETS["demo"] | changes
    return LabelConfig(run=run_dir, sources=(source,), **settings)


# --- the store beside other formats ---------------------------------------------------------------------------------


def _store_rows(place: Path) -> list[tuple[str, str]]:
    """Contexts of 560 px that the demo's primary has labelled, in our store and as others keep them; decoded on one core."""
    tar = write_photographs(place / "store.tar", 4, width=1600, height=1200)
    config = _config(place / "store", str(tar), plan=ViewPlan(context="whole", context_px=560, patches_per_side=2))
    run = open_run(config, read_sources(config.sources))
    worker = LabelWorker(_BATCH, 2)
    for unit in units_left(run):
        manifests.column_dir(on_disk(run.run_dir), unit.column).mkdir(parents=True, exist_ok=True)
        if unit.column != "assistant":
            teacher = next((spec for spec in run.teachers if spec.name == unit.column), None)
            worker.do(Task(unit=replace(unit, attempt="a"), teacher=teacher))
    part = manifests.load_part(run.run_dir, "primary", "store.00000")
    folder = manifests.column_dir(on_disk(run.run_dir), "primary") / part.zarr
    reader = LabelReader(manifests.place_of(folder.parent), folder.name)
    labels = [label for index in range(len(reader)) if (label := reader.context(index))]
    pixels = sum(label.values.size for label in labels)
    blosc = numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE)
    numcodecs.blosc.set_nthreads(1)
    coded = [quantise(Label(values=label.values, valid=label.valid)) for label in labels]
    stored_bytes = sum(file.size_bytes for file in part.files if "/context/" in file.path)
    formats: dict[str, tuple[float, list[Callable[[], object]]]] = {
        "ours (PCodec, crc32c; through Zarr)": (
            stored_bytes,
            [partial(reader.context, index) for index in range(len(labels))],
        )
    }
    png = [_png16(label.codes) for label in coded]
    formats["PNG, 16 bit"] = sum(map(len, png)), [partial(_decode_png, data) for data in png]
    half = [label.values.astype(np.float16).tobytes() for label in labels]
    formats["float16 .npy"] = sum(map(len, half)), [partial(_decode_half, data) for data in half]
    zstd = [blosc.encode(label.codes) for label in coded]
    formats["blosc-zstd, bitshuffle, 16 bit"] = (
        sum(map(len, zstd)),
        [partial(_decode_zstd, blosc, data, label) for data, label in zip(zstd, coded, strict=True)],
    )
    rows = []
    for name, (size_bytes, reads) in formats.items():
        fastest_s = min(seconds(partial(_call_all, reads)) for _ in range(5))
        rows.append((f"store: {name}", f"{8 * size_bytes / pixels:.2f} bits/px, {pixels / fastest_s / 1e6:.0f} Mpx/s"))
    return rows


def _call_all(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _png16(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(codes).save(buffer, "PNG")
    return buffer.getvalue()


def _decode_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).astype(np.float32)


def _decode_zstd(blosc: numcodecs.Blosc, data: bytes, label: QuantisedLabel) -> Label:
    codes = np.frombuffer(blosc.decode(data), np.uint16).reshape(label.codes.shape)
    return decode_label(codes, label.scale, label.offset)


def _decode_half(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.float16).astype(np.float32)


# --- memory ---------------------------------------------------------------------------------------------------------


def _memory_rows(place: Path) -> list[tuple[str, str]]:
    """The peak of a process that labels a small tar and one that is eight times as large, in parts of 8."""
    rows = []
    for images in (24, 192):
        tar = write_photographs(place / f"memory-{images}.tar", images, width=1200, height=800)
        command = [sys.executable, "-m", "benchmarks.label", "--peak-memory-of", str(tar)]
        peak_mb = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        rows.append((f"peak memory of a worker, tar of {images} photographs", f"{peak_mb:.0f} MB"))
    return rows


def _label_all(tar: Path) -> None:
    run_dir = tar.with_suffix(".run")
    config = _small_views(run_dir, tar, 8)
    run = open_run(config, read_sources(config.sources))
    units = [unit for unit in units_left(run) if unit.column != "assistant"]
    drive(run, units, DriveOptions(workers=0, resources={}))
    shutil.rmtree(run_dir)


# --- the driver -----------------------------------------------------------------------------------------------------


class _NoOpWorker(LabelWorker):
    """Takes tasks and makes nothing but an empty manifest, for which the driver looks."""

    def do(self, task: Task) -> UnitResult:
        manifests.manifest_path(on_disk(task.unit.run_dir), task.unit.column, task.unit.part).touch()
        return UnitResult(committed=True, labelled=0, rejected=0)


def _driver_rows(place: Path, units: int, committed: int) -> list[tuple[str, str]]:
    run = _wide_run(place / "driver", units)
    todo = [unit for unit in units_left(run) if unit.column == "images"]
    ray_pool.LabelWorker = _NoOpWorker  # type: ignore[misc]
    resources = {column.name: Resources(num_cpus=1, num_gpus=0) for column in run.columns}
    options = DriveOptions(workers=2, resources=resources)
    started_s = seconds(lambda: drive(run, todo[:2], options))
    driven_s = seconds(lambda: drive(run, todo, options))
    ray_pool.LabelWorker = LabelWorker  # type: ignore[misc]
    wide = _wide_run(place / "wide", committed)
    for column in wide.columns:
        folder = manifests.column_dir(on_disk(wide.run_dir), column.name)
        for part in manifests.parts(wide.run):
            (folder / f"{part.name}.json").touch()
    decided_s = seconds(lambda: units_left(wide))
    return [
        (f"driver, {units} no-op units on 2 Ray workers", f"{1000 * (driven_s - started_s) / units:.2f} ms per unit"),
        (f"deciding what is left of {committed} committed parts x 3 columns", f"{decided_s:.2f} s"),
    ]


def _wide_run(run_dir: Path, parts: int) -> OpenRun:
    """A run of so many parts of one image each; the images themselves do not exist."""
    source = Source(name="wide", kind="folder", location=run_dir)
    rows = tuple(CatalogueRow(key=f"{i}", member=f"{i}.jpg", offset=0, size_bytes=1) for i in range(parts))
    config = _config(run_dir, "wide", part_size=1)
    return open_run(config, ((source, SourceContent(rows=rows, size_bytes=parts, problems=())),))


if __name__ == "__main__":
    main()
