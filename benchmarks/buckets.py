"""`python -m benchmarks.buckets`: labelling and training from a bucket beside a disk, as ratios of one run.

The store is an S3 server on this machine, behind a proxy that answers each request so many milliseconds late. Teacher and
student are simulated: they sleep, as the thread of a GPU's driver does; all else is real. The sides run in turns; given are the
median, the least and the largest ratio of the speeds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import manifests
from benchmarks.device import SleepingTeacher, SleepingWorker, task_of
from benchmarks.slow_store import SlowStore, slow_store
from benchmarks.synthetic_run import write_synthetic_run
from benchmarks.timing import ratios, with_range
from benchmarks.worker import write_photographs
from manifests import part_cache
from manifests.bucket_store import put
from manifests.location import Location, Url
from pipeline.label.config import LabelConfig, demo_teacher
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import LabelWorker
from pipeline.train.config import TrainConfig
from pipeline.train.labels import open_dataset
from pipeline.train.prefetch import prefetching
from pipeline.train.ranks import Process
from pipeline.train.setup import make_plan
from stages.views import ViewPlan

_LATENCIES_MS = (0, 20, 100)
_MS_PER_VIEW, _STEP_S = 20.0, 0.1
_BATCH, _THREADS = 8, 2


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of what is labelled: photographs, in a part, and their sides; of what is trained on: parts of 64; and the turns."""

    images: int = 96
    part_size: int = 32
    photograph_px: tuple[int, int] = (2250, 1500)
    parts: int = 20
    rounds: int = 3


_QUICK = Size(images=2, part_size=2, photograph_px=(900, 600), parts=1, rounds=1)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the same in miniature, to see that it runs")
    size = _QUICK if parser.parse_args(given).quick else Size()
    torch.set_num_threads(1)
    before = dict(os.environ)
    try:
        with tempfile.TemporaryDirectory() as folder, slow_store() as store:
            rows = [*_labelling_rows(Path(folder), store, size), *_training_rows(Path(folder), store, size)]
    finally:
        os.environ.clear()
        os.environ |= before
    print("| speed beside a disk | ratio |\n|---|---|")
    print("\n".join(f"| {what} | {figure} |" for what, figure in rows))


# --- labelling ------------------------------------------------------------------------------------------------------


def _labelling_rows(folder: Path, store: SlowStore, size: Size) -> list[tuple[str, str]]:
    """A teacher's parts, two at a time through a worker; photographs from a tar, pictures and labels in the run."""
    width, height = size.photograph_px
    tar = write_photographs(folder / "photographs.tar", size.images, width=width, height=height)
    put(store.bucket / tar.name, tar.read_bytes())
    disk = _Labelling(folder / "label", str(tar), size)
    bucket = _Labelling(store.bucket / "label", f"{store.bucket}/{tar.name}", size)
    sides: dict[str, Callable[[], object]] = {"disk": disk.label}
    sides |= {f"{ms} ms": partial(_at, store, ms, bucket.label) for ms in _LATENCIES_MS}
    taken = _in_turns(sides, size.rounds)
    what = f"labelling from and into a bucket, {_MS_PER_VIEW:g} ms per view, latency"
    return [(f"{what} {side}", with_range(ratios(taken["disk"], taken[side]))) for side in list(sides)[1:]]


class _Labelling:
    """A run with its pictures, of which the labels of one teacher are made again and again."""

    def __init__(self, run_dir: Location, source: str, size: Size) -> None:
        teachers = {"primary": demo_teacher("primary")}
        config = LabelConfig(run=run_dir, sources=(source,), teachers=teachers, plan=ViewPlan(), part_size=size.part_size)
        run = open_run(config, read_sources(config.sources))
        self._place, self._turn = manifests.place_of(run_dir), 0
        self._spec = next(spec for spec in run.teachers if spec.name == "primary")
        units = units_left(run)
        for unit in units:
            if unit.column == "images":
                LabelWorker(_BATCH, _THREADS, "cpu").do(task_of(unit, None, "0"))
        self._units = [unit for unit in units if unit.column == "primary"]

    def label(self) -> float:
        """Seconds. The pictures are not here yet, and the labels go away again."""
        _forget()
        worker = SleepingWorker(SleepingTeacher(self._spec, _MS_PER_VIEW), _THREADS)
        self._turn += 1
        tasks = [task_of(unit, self._spec, f"{self._turn}x{i}") for i, unit in enumerate(self._units)]
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as both:  # as many as an actor does side by side
            list(both.map(worker.do, tasks))
        taken_s = time.perf_counter() - started
        for task in tasks:
            self._place.remove(manifests.manifest_path(Path(), "primary", task.unit.part).as_posix())
            self._place.remove(task.unit.arrays)
        return taken_s


# --- training -------------------------------------------------------------------------------------------------------


def _training_rows(folder: Path, store: SlowStore, size: Size) -> list[tuple[str, str]]:
    """An epoch of labels of two teachers, between steps that sleep; into a cold cache, its first parts too are waited for."""
    run = write_synthetic_run(folder / "run", size.parts)
    url = store.bucket / "run"
    store.answer_after(0)
    with ThreadPoolExecutor(8) as pool:
        for path in run.rglob("*"):
            if path.is_file():
                pool.submit(put, url / path.relative_to(run), path.read_bytes())
    cold, warm = folder / "cold", folder / "warm"
    _train(url, size, warm)
    sides: dict[str, Callable[[], object]] = {"disk": partial(_train, run, size, None)}
    sides["warm"] = partial(_at, store, _LATENCIES_MS[-1], partial(_train, url, size, warm))
    sides |= {f"{ms} ms": partial(_at, store, ms, partial(_train_anew, url, size, cold)) for ms in _LATENCIES_MS}
    taken = _in_turns(sides, size.rounds)
    warm_ratio = with_range(ratios(taken["disk"], taken["warm"]))
    return [
        (f"training from a warm cache, {1000 * _STEP_S:g} ms per step of 8", warm_ratio),
        *(
            (f"the same from a cold one, all files fetched, latency {side}", with_range(ratios(taken["disk"], taken[side])))
            for side in list(sides)[2:]
        ),
    ]


def _train_anew(run: Url, size: Size, cache: Path) -> float:
    shutil.rmtree(cache, ignore_errors=True)
    return _train(run, size, cache)


def _train(run: Location, size: Size, cache: Path | None) -> float:
    """Seconds of an epoch, from the first batch that is asked for."""
    _forget()
    config = TrainConfig(run=(run,), output=Path("none"), batch_size=_BATCH, steps=64 * size.parts // _BATCH, cache=cache)
    dataset = open_dataset(config)
    plan = make_plan(config, dataset, Process(device="cpu"), 0)
    started = time.perf_counter()
    with prefetching(dataset, plan) as fetcher, ThreadPoolExecutor(1) as loader:  # a loader is one batch ahead

        def read(step: int) -> None:
            dataset.collate([dataset[request] for request in plan.requests(step)])

        ahead = loader.submit(read, 0)
        for step in range(config.steps):
            ahead.result()
            if fetcher is not None:
                fetcher.reached(step)
            if step + 1 < config.steps:
                ahead = loader.submit(read, step + 1)
            time.sleep(_STEP_S)
        return time.perf_counter() - started


# --- both -----------------------------------------------------------------------------------------------------------


def _in_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each side says of itself, turn by turn."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found = side()
            assert isinstance(found, float)
            taken[name].append(found)
    return taken


def _at(store: SlowStore, latency_ms: float, side: Callable[[], float]) -> float:
    store.answer_after(latency_ms)
    try:
        return side()
    finally:
        store.answer_after(0)


def _forget() -> None:
    """What this process has fetched. All parts of a synthetic run have the same small files: no real run is as easy."""
    part_cache.small_files = part_cache.SmallFiles(most=0)
    part_cache._own_cache.cache_clear()


if __name__ == "__main__":
    main()
