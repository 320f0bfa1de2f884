"""The process that labels: a part at a time through the one teacher in memory, and a pulse that can be felt from outside."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

import manifests
from manifests.location import Location, Url
from pipeline.label.pool import Pulse, threads_for
from pipeline.label.queue import RunNotSharedError, Task, TeacherUnusableError, what_machines_need
from stages.labelling.teacher import TeacherSpec
from stages.labelling.unit import Unit, UnitResult
from stages.labelling.units import label_images_part, label_teacher_part, try_image
from stages.models import DepthModel, load_model
from stages.models.batches import Predictor
from stages.models.family import marks_invalid_pixels
from stages.threads import keep_freed_memory

_FIRST_PICTURE_PX = 64
_SEEN: set[tuple[Url, str, str]] = set()
"""Records of runs in buckets that this process has seen, with their digests: a URL is the same place the next time."""


class WallClock:
    """The volatile fields of a manifest, counted from the clock's creation; remembers its last beat, and the images done.

    tell: called at each beat with the images done so far.
    """

    def __init__(self, device: str = "cpu", tell: Callable[[float], None] | None = None) -> None:
        self._device, self._tell, self.images = device, tell, 0.0
        self._started = self._last_beat = time.monotonic()
        self._waits = False

    def beat(self, images: float = 0.0) -> None:
        """The unit has made progress: so many images, or shares of them."""
        self._last_beat = time.monotonic()
        self.images += images
        if self._tell:
            self._tell(self.images)

    def silence_s(self) -> float:
        """Seconds since the last beat; 0 for who waits for its turn."""
        return 0.0 if self._waits else time.monotonic() - self._last_beat

    @contextmanager
    def turn(self, device: threading.Lock) -> Iterator[None]:
        """Waits for the device, and holds it."""
        self._waits = True
        with device:
            self._waits = False
            self.beat()
            yield

    def volatile(self, attempt: str, batch_size: int | None) -> manifests.Volatile:
        """The attempt, the batch, this host, the seconds taken, and the time in UTC."""
        return manifests.Volatile(
            attempt=attempt,
            batch_size=batch_size,
            device=self._device,
            host=os.uname().nodename,
            seconds=round(time.monotonic() - self._started, 3),
            created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )


class LabelWorker:
    """Does tasks, each in the thread that calls: one by one, or a second part of a column while the first comes to its end.

    The teacher is at work for one of them at a time; the other one reads its first photographs meanwhile, or writes its last
    labels. As an actor it has a third thread for `pulse`. device: where teachers work; by itself a worker takes a GPU where
    there is one. threads: for photographs, and as many more for labels; by itself those that
    the machine has for each GPU. tell: called with a unit and the images done of it, from the thread that does it.
    """

    def __init__(
        self,
        batch_size: int,
        threads: int | None = None,
        device: str | None = None,
        tell: Callable[[Unit, float], None] | None = None,
    ) -> None:
        self._tell = tell
        keep_freed_memory()
        self._batch_sizes: dict[str, int] = {}
        self._batch_size = batch_size
        self._threads = threads or threads_for(len(os.sched_getaffinity(0)), torch.cuda.device_count())
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._teacher: DepthModel | None = None
        self._loading, self._at_work = threading.Lock(), threading.Lock()
        self._clocks: dict[str, WallClock] = {}

    def pulse(self) -> dict[str, Pulse]:
        """The sign of life of each task at work, by its attempt; none while a teacher is loaded."""
        return {attempt: Pulse(clock.silence_s(), clock.images) for attempt, clock in list(self._clocks.items())}

    def do(self, task: Task) -> UnitResult | None:
        """Bring a unit to its commit, or see whether an image or a teacher can be tried; whatever goes wrong is raised.

        Raises RunNotSharedError before anything else where this machine does not see the unit's run.
        """
        torch.set_num_threads(1)  # for what is not predicted in the flow's own thread
        require_run(task.unit)  # before the lock, which would be made on a disk that has nothing to do with the run
        with _held(task.unit.run_dir):
            require_run(task.unit)  # what is held now is not changed any more
            with self._loading:
                teacher = self._load(task.teacher, task.unit) if task.teacher else None
            tell = partial(self._tell, task.unit) if self._tell and task.index is None else None
            clock = self._clocks[task.unit.attempt] = WallClock(self._device, tell)
            try:
                if task.only_teacher:
                    return _show_a_picture(teacher, task.unit) if teacher else None
                if task.index is None:
                    return self._label(task.unit, teacher, clock)
                return try_image(task.unit, task.index, teacher, clock)
            finally:
                del self._clocks[task.unit.attempt]

    def _label(self, unit: Unit, teacher: DepthModel | None, clock: WallClock) -> UnitResult:
        if teacher is None:
            return label_images_part(unit, clock, threads=self._threads)
        batch_size = self._batch_sizes.get(unit.column, self._batch_size)
        turn = clock.turn(self._at_work)
        result = label_teacher_part(unit, teacher, clock, batch_size=batch_size, threads=self._threads, turn=turn)
        if result.batch_size:  # what did not fit into memory once is not tried again for every part
            self._batch_sizes[unit.column] = result.batch_size
        return result

    def _load(self, spec: TeacherSpec, unit: Unit) -> DepthModel:
        if self._teacher is None or self._teacher.spec.name != spec.name:
            self._teacher = None  # frees the former one's memory before the next is loaded
            try:
                expected = str(unit.fingerprint["weights_sha256"])
                self._teacher = load_model(spec, device=self._device, sha256=expected)
            except Exception as error:  # whatever three libraries raise for a checkpoint that is not what they expect
                self._teacher = None
                raise TeacherUnusableError(f"teacher {spec.name} cannot be loaded: {type(error).__name__}: {error}") from error
        return self._teacher


def _held(run_dir: Location) -> AbstractContextManager[None]:
    """A worker may outlive its driver by a unit: nobody must clean up under its hands. In a bucket nobody can: what nothing
    was written to for a day is cleaned up there, and the driver's sign of life stands for its workers."""
    return manifests.hold_run(run_dir, exclusive=False) if isinstance(run_dir, Path) else nullcontext()


def require_run(unit: Unit) -> None:
    """Raises RunNotSharedError unless the records that this machine sees are those of the run that the unit belongs to."""
    place = manifests.place_of(unit.run_dir)
    for name, expected in unit.records.items():
        if (unit.run_dir, name, expected) in _SEEN:
            continue
        try:
            if isinstance(unit.run_dir, Path):
                place.entries(name.rpartition("/")[0])  # a network file system looks again, and forgets that there was nothing
            found = hashlib.sha256(place.read(name, limit_bytes=manifests.MAX_RECORD_BYTES)).hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found != expected:
            seen = f"has sha256 {found}" if found else "is not there"
            raise RunNotSharedError(
                f"{place.shown(name)} on {os.uname().nodename} is not the driver's: it {seen}, expected {expected}; "
                f"{what_machines_need(unit.run_dir)}"
            )
        if isinstance(unit.run_dir, Url):
            _SEEN.add((unit.run_dir, name, expected))


def _show_a_picture(teacher: DepthModel, unit: Unit) -> None:
    """Raises TeacherUnusableError where a first prediction fails, or has another shape or numbers that are not finite.

    NaN of a teacher that marks what it does not know is none of these, though it were everywhere: this is no photograph.
    A teacher that is to be compiled is only loaded: it would be compiled for a shape that never comes again.
    """
    if teacher.spec.compile:
        return
    side = min(unit.plan.patch_px, _FIRST_PICTURE_PX)
    picture = np.tile(np.linspace(0, 255, side).astype(np.uint8)[:, None, None], (1, side, 3))
    try:
        depth = Predictor(teacher, batch_size=1).predict([picture])
        said = depth[~np.isnan(depth)] if marks_invalid_pixels(teacher) else depth
        if wrong := int(np.count_nonzero(~np.isfinite(said))):
            raise ValueError(f"{wrong} of {depth.size} values are not finite")
    except Exception as error:  # whatever three libraries raise; none of it is a picture's fault
        name, kind = teacher.spec.name, type(error).__name__
        raise TeacherUnusableError(f"teacher {name} fails at a first picture of {side} x {side} px: {kind}: {error}") from error
