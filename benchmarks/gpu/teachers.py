"""What a view costs a teacher: in each precision, through a worker, in other memory formats, and compiled."""

from __future__ import annotations

import copy
import multiprocessing as mp
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench, TeacherName
from benchmarks.gpu.report import Figure, figure
from benchmarks.gpu.sizes import Sizes
from benchmarks.timing import in_turns
from benchmarks.worker import labelling, predict_all, ready_batches, ready_unit
from pipeline.label.config import LabelConfig
from stages.labelling.unit import Unit
from stages.labelling.units import KnownImages
from stages.models import DepthModel, load_model
from stages.models.batches import Predictor
from stages.models.spec import Precision
from stages.threads import keep_freed_memory

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16", "bfloat16")
FAST: Precision = "bfloat16"
"""The precision of all but the first comparison: the faster a teacher, the more all else counts."""
_FORMATS = {
    "plain": (False, False),
    "cudnn.benchmark": (True, False),
    "channels_last": (False, True),
    "both": (True, True),
}
"""Whether cuDNN tries its algorithms out, and whether channels come last in memory."""


def precisions(bench: Bench, name: TeacherName) -> Iterator[Figure]:
    """Milliseconds per view of bare `predict`, and what they are of float32's."""
    predictors = {precision: Predictor(_loaded(bench, name, precision), bench.sizes.batch_size) for precision in PRECISIONS}
    taken = _ms_per_view(bench, {precision: _call(bench, predictor) for precision, predictor in predictors.items()})
    named = {precision: f"{precision}, batches of {predictor.batch_size}" for precision, predictor in predictors.items()}
    yield from _compared({named[precision]: ms for precision, ms in taken.items()}, "ms per view", of="float32")


def _loaded(bench: Bench, name: TeacherName, precision: Precision) -> DepthModel:
    """tf32 is float32's networks under another name, which `Predictor` goes by: they need not be loaded twice."""
    if precision != "tf32":
        return bench.teacher(name, precision)
    teacher: Any = copy.copy(bench.teacher(name, "float32"))
    teacher.spec = replace(teacher.spec, dtype="tf32")
    return teacher


def through_worker(bench: Bench, name: TeacherName) -> Iterator[Figure]:
    """The views of a tar of photographs: ready and in memory, and through all that a worker does with them."""
    sizes = bench.sizes
    bench.release(keep=FAST)
    unit, teacher = _unit(bench, name, bench.folder / f"worker {name}"), bench.teacher(name, FAST)
    batches = ready_batches(unit, sizes.batch_size)
    whole = partial(labelling, unit, teacher, batch_size=sizes.batch_size, device=bench.device)
    sides: dict[str, Callable[[], object]] = {"bare": partial(predict_all, teacher, batches, sizes.batch_size)}
    sides |= {f"worker, {threads} decoding threads": whole(threads=threads) for threads in sizes.decode_threads}
    taken = in_turns(sides, rounds=sizes.rounds, device=bench.device, until=bench.until, warm_up=sizes.warm_up)
    views = sum(map(len, batches))
    per_second = {f"{FAST}, {side}": [views / s for s in seconds] for side, seconds in taken.items()}
    yield from _compared(per_second, "views/s", of="bare")


def _unit(bench: Bench, name: TeacherName, run: Path) -> Unit:
    """The teacher's unit of a new run: all photographs in one part."""
    images = bench.unit_images(name)
    config = LabelConfig(
        run=run,
        sources=(str(bench.photographs(images)),),
        plan=bench.plan,
        teachers={"teacher": bench.teacher_spec(name, FAST)},
        part_size=images,
    )
    return ready_unit(config, "teacher")


def several_workers(bench: Bench, name: TeacherName) -> Iterator[Figure]:
    """Views of several workers that share the card, each a process of its own, as `--NAME.num-gpus` 0.5 or 0.33 has them."""
    bench.release()
    bench.photographs(bench.unit_images(name))
    bench.teacher_spec(name, FAST)  # made before the processes ask for it
    context = mp.get_context("spawn")
    for count in bench.sizes.worker_processes:
        begin, ended = context.Barrier(count), context.Queue()
        given = bench.device, bench.sizes, bench.folder, name
        workers = [context.Process(target=_label_beside, args=(*given, number, begin, ended)) for number in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"{count} workers: exit statuses {[worker.exitcode for worker in workers]}, expected 0 of each")
        views, starts, ends = zip(*(ended.get() for _ in workers), strict=True)
        yield figure(f"{FAST}, {count} workers on the card", "views/s", [sum(views) / (max(ends) - min(starts))])


def _label_beside(device: str, sizes: Sizes, folder: Path, name: TeacherName, number: int, begin: Any, ended: Any) -> None:
    """One of the processes: its own unit twice, the second time beside the others."""
    torch.set_num_threads(1)
    keep_freed_memory()
    bench = Bench(device=device, sizes=sizes, folder=folder)
    unit, teacher = _unit(bench, name, folder / f"{name} {os.getpid()} {number}"), bench.teacher(name, FAST)
    label_once = labelling(unit, teacher, batch_size=sizes.batch_size, device=device, threads=min(sizes.decode_threads))
    label_once()
    begin.wait(timeout=60)
    started = time.time()
    label_once()
    known = KnownImages(unit)
    ended.put((sum(len(list(known.cut(index))) for index in known.usable), started, time.time()))


def memory_formats(bench: Bench, name: TeacherName) -> Iterator[Figure]:
    """Milliseconds per view with cuDNN's search for the fastest algorithm, with channels last, with both and with neither."""
    teacher = bench.teacher(name, FAST)
    call = _call(bench, Predictor(teacher, bench.sizes.batch_size))
    taken: dict[str, list[float]] = {side: [] for side in _FORMATS}
    for turn in range(max(bench.sizes.rounds // 2, 1)):
        if turn and time.monotonic() > bench.until:
            break
        for side, (searches, channels_last) in _FORMATS.items():
            with _format(teacher, searches=searches, channels_last=channels_last):
                taken[side] += _ms_per_view(bench, {side: call}, rounds=1)[side]
    yield from _compared({f"{FAST}, {side}": ms for side, ms in taken.items()}, "ms per view", of="plain")


@contextmanager
def _format(teacher: DepthModel, *, searches: bool, channels_last: bool) -> Iterator[None]:
    """cuDNN's search and the networks' memory format, and afterwards what was before."""
    networks = [part for part in vars(teacher).values() if isinstance(part, torch.nn.Module)]
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = searches
    try:
        for network in networks if channels_last else ():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield
    finally:
        torch.backends.cudnn.benchmark = before
        for network in networks:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def compiled(bench: Bench, name: TeacherName) -> Iterator[Figure]:
    """Milliseconds per view without and with `torch.compile`, and the seconds of the first batch."""
    plain = bench.teacher(name, FAST)
    network = load_model(bench.teacher_spec(name, FAST, compile=True), device=bench.device)
    calls = {
        side: _call(bench, Predictor(it, bench.sizes.batch_size)) for side, it in (("plain", plain), ("compiled", network))
    }
    first_s = in_turns({"first": calls["compiled"]}, rounds=1, device=bench.device)["first"]
    taken = _ms_per_view(bench, calls)
    yield figure(f"{FAST}, first batch, which compiles", "s", first_s)
    yield from _compared({f"{FAST}, {side}": ms for side, ms in taken.items()}, "ms per view", of="plain")


def _compared(taken: Mapping[str, Sequence[float]], unit: str, *, of: str) -> Iterator[Figure]:
    """A figure for each side; all but the first also as what they are of it, which is called `of`."""
    first, *others = taken
    yield figure(first, unit, taken[first])
    for side in others:
        yield figure(side, unit, taken[side], of=of, base=taken[first])


def _call(bench: Bench, predictor: Predictor) -> Callable[[], object]:
    """A prediction of one batch of ready pictures."""
    side = bench.sizes.view_px
    rng = np.random.default_rng(0)
    pictures = [rng.integers(256, size=(side, side, 3), dtype=np.uint8) for _ in range(bench.sizes.batch_size)]
    return partial(predictor.predict, pictures)


def _ms_per_view(bench: Bench, calls: dict[str, Callable[[], object]], rounds: int | None = None) -> dict[str, list[float]]:
    """Milliseconds per view of predictions of one batch each."""
    taken = in_turns(
        calls,
        rounds=rounds or bench.sizes.rounds,
        device=bench.device,
        turn_s=bench.sizes.turn_s,
        until=bench.until,
        warm_up=bench.sizes.warm_up,
    )
    return {side: [1000 * s / bench.sizes.batch_size for s in seconds] for side, seconds in taken.items()}
