"""Which samples a step sees, whose labels, mirrored and coloured how: a pure function of (seed, step).

Neither the number of processes nor what ran before has a say: a step's batch is drawn as a whole, and each process takes its
share. The step's number is the whole state, so a training resumes exactly, on another number of devices too.

With several streams each slot of a batch belongs to one, and each part too, for all epochs: so that a process, whose share is
slots that follow each other, reads the parts of few streams. Their number is a setting of the order like the seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from manifests.errors import RefusedError

Strategy = Literal["select", "average"]
Color = tuple[float, float, float, float]
"""Factors of brightness, contrast and saturation, and a shift of the hue in turns."""

AVERAGE = -1
UNCHANGED: Color = (1.0, 1.0, 1.0, 0.0)
PARTS_IN_WINDOW = 4
_ORDER, _FLIP, _TEACHER, _COLOR, _STAND_IN, _DEAL = 1, 2, 3, 4, 5, 6  # random numbers of its own for each decision
_NEAR = 32
"""With several streams a stand-in is one of that many draws before or after: its part is being read there anyway."""


class SampleRequest(NamedTuple):
    """The sample's index in the dataset, whose labels (index into its teachers, AVERAGE for all of them fused), whether it is
    mirrored, and how the student's input is coloured."""

    sample: int
    teacher: int
    flip: bool
    color: Color = UNCHANGED


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which samples each step sees; batches run on across epochs, so that all have `batch_size` samples.

    Drawn are places: the contexts of all catalogued images of the parts, so that what a step sees is known before anything is
    labelled, and no rejected image changes what the others are seen for. A step's batch is cut as evenly as can be into
    `accumulation * world_size` consecutive chunks; chunk micro * world_size + rank is this process's share of the micro-batch
    `micro`; with several streams rank * accumulation + micro, so that all its shares follow each other. Iterating yields the
    shares of the steps from `first_step` to `steps`, `accumulation` of them for each. `ratios` are those of the dataset's
    teachers (see `teacher_for_step`).
    Raises ValueError where a chunk or a stream's slots would be empty, and for a rank or a strength of colour out of range.
    """

    part_sizes: tuple[int, ...]
    """Places of each part."""
    batch_size: int
    steps: int
    seed: int
    strategy: Strategy = "select"
    ratios: tuple[float, ...]
    flip: bool
    color_jitter: float = 0.0
    first_step: int = 0
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1
    streams: int = 1
    samples: Int[np.ndarray, "n"] | None = None
    """The dataset's sample in each place, negative where there is none; without it each place is a sample."""
    stand_ins: Mapping[int, int] = field(default_factory=dict)
    """The place that is taken instead, by the number of the draw (see `with_stand_ins`)."""

    def __post_init__(self) -> None:
        if self.batch_size < self.world_size * self.accumulation:
            raise ValueError(
                f"batch_size: found {self.batch_size}, expected at least one sample for each of {self.world_size} processes "
                f"x {self.accumulation} accumulated micro-batches"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: found {self.rank}, expected 0 to {self.world_size - 1}")
        if not 1 <= self.streams <= self.batch_size:
            raise ValueError(f"streams: found {self.streams}, expected 1 to batch_size, which is {self.batch_size}")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter: found {self.color_jitter}, expected a strength between 0 and 1")

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        steps = range(self.first_step, self.steps)
        return (self.chunk(step, micro) for step in steps for micro in range(self.accumulation))

    def teacher(self, step: int) -> int:
        """Index of the teacher of a step's batch, the same on every rank; AVERAGE for all of them."""
        return AVERAGE if self.strategy == "average" else teacher_for_step(self.seed, step, self.ratios)

    def order(self, epoch: int) -> Int[np.ndarray, "n"]:
        """The places of an epoch in the order in which they are drawn."""
        if self.streams == 1:
            return sample_order(self.seed, epoch, self.part_sizes)
        return sample_order(self.seed, epoch, self.part_sizes, streams=self.streams, batch_size=self.batch_size)

    @property
    def streams_read(self) -> int:
        """How many streams this process reads."""
        start, end = (self.batch_size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return len(np.unique(stream_of_slot(self.batch_size, self.streams)[start:end]))

    def requests(self, step: int) -> list[SampleRequest]:
        """All samples of one step, of every process."""
        return self._drawn(step, 0, self.batch_size)

    def chunk(self, step: int, micro: int) -> list[SampleRequest]:
        """This process's share of one of a step's micro-batches."""
        chunks = self.world_size * self.accumulation
        number = micro * self.world_size + self.rank if self.streams == 1 else self.rank * self.accumulation + micro
        return self._drawn(step, *(self.batch_size * n // chunks for n in (number, number + 1)))

    def _drawn(self, step: int, start: int, end: int) -> list[SampleRequest]:
        teacher, places, first = self.teacher(step), sum(self.part_sizes), step * self.batch_size
        drawn = {number: divmod(number, places) for number in range(first + start, first + end)}
        orders = {epoch: self.order(epoch) for epoch in {epoch for epoch, _ in drawn.values()}}
        requests = []
        for number, (epoch, within) in drawn.items():
            place = self.stand_ins.get(number, int(orders[epoch][within]))
            sample = place if self.samples is None else int(self.samples[place])
            flip = self.flip and is_flipped(self.seed, epoch, place)
            requests.append(SampleRequest(sample, teacher, flip, color_of(self.seed, epoch, place, self.color_jitter)))
        return requests


class Draws(NamedTuple):
    """Every draw of a training, in order: which place, and whose labels of it (AVERAGE for all teachers')."""

    places: Int[np.ndarray, "n"]
    teachers: Int[np.ndarray, "n"]


def all_draws(plan: BatchPlan) -> Draws:
    """What the steps from 0 to the last draw, stand-ins left aside; 16 bytes for each draw."""
    count, places = plan.steps * plan.batch_size, sum(plan.part_sizes)
    epochs = range(-(-count // places))
    drawn = np.concatenate([plan.order(epoch) for epoch in epochs])[:count]
    return Draws(drawn, np.repeat([plan.teacher(step) for step in range(plan.steps)], plan.batch_size))


def with_stand_ins(plan: BatchPlan) -> BatchPlan:
    """The plan with another place for each draw of one without a sample: that of a random draw of the same teacher's, and with
    several streams of one of the nearest in the same stream.

    So nothing is read that no step draws. Raises RefusedError where nothing that is drawn for a teacher has a sample.
    """
    if plan.samples is None or (plan.samples >= 0).all():
        return plan
    places, teachers = all_draws(plan)
    has_sample = plan.samples[places] >= 0
    streams = np.resize(stream_of_slot(plan.batch_size, plan.streams), len(places))
    stand_ins: dict[int, int] = {}
    for teacher in np.unique(teachers):
        of_teacher = teachers == teacher
        if not (of_teacher & has_sample).any():
            raise RefusedError(
                f"none of the {of_teacher.sum()} samples that are drawn for one of the teachers has labels: too many images "
                "are rejected; take more steps, or another seed"
            )
        for stream in range(plan.streams):
            numbers = np.flatnonzero(of_teacher & (streams == stream))
            sound = numbers[has_sample[numbers]] if has_sample[numbers].any() else np.flatnonzero(of_teacher & has_sample)
            choices = places[sound]
            for number in numbers[~has_sample[numbers]].tolist():
                at = int(np.searchsorted(sound, number))
                near = choices if plan.streams == 1 else choices[max(at - _NEAR, 0) : at + _NEAR]
                stand_ins[number] = int(np.random.default_rng([plan.seed, _STAND_IN, number]).choice(near))
    return dataclasses.replace(plan, stand_ins=stand_ins)


def image_rank(part: str, image: int) -> bytes:
    """Where an image, by its place in its part, stands among all when some of them are chosen: the lowest are."""
    return hashlib.sha256(f"{part}\0{image}".encode()).digest()


def teacher_for_step(seed: int, step: int, ratios: tuple[float, ...]) -> int:
    """Whose labels a step sees: the paper's "Select", one draw for each iteration, generalised from 7:3 to any ratios, which
    are 0 or more and not all 0."""
    drawn = float(np.random.default_rng([seed, _TEACHER, step]).random()) * sum(ratios)
    shares = itertools.accumulate(ratios)
    drawable = [teacher for teacher, ratio in enumerate(ratios) if ratio > 0]
    return next((teacher for teacher, share in enumerate(shares) if drawn < share), drawable[-1])


def is_flipped(seed: int, epoch: int, sample: int) -> bool:
    """Whether a sample is mirrored in an epoch; half of all are."""
    return bool(np.random.default_rng([seed, _FLIP, epoch, sample]).random() < 0.5)


def color_of(seed: int, epoch: int, sample: int, strength: float) -> Color:
    """How a sample is coloured in an epoch: factors evenly from 1 - strength to 1 + strength, the hue's shift from
    -strength / 2 to strength / 2 turns. 0.5 is Depth Anything's ColorJitter(0.5, 0.5, 0.5, 0.25); with 0 nothing changes."""
    if strength == 0:
        return UNCHANGED
    brightness, contrast, saturation, hue = np.random.default_rng([seed, _COLOR, epoch, sample]).uniform(-strength, strength, 4)
    return float(1 + brightness), float(1 + contrast), float(1 + saturation), float(hue / 2)


def stream_of_slot(batch_size: int, streams: int) -> Int[np.ndarray, "b"]:
    """The stream of each sample of a batch, cut as a batch is cut for that many processes."""
    return np.repeat(np.arange(streams), np.diff(batch_size * np.arange(streams + 1) // streams))


@lru_cache(maxsize=2)
def sample_order(
    seed: int,
    epoch: int,
    part_sizes: tuple[int, ...],
    window: int = PARTS_IN_WINDOW,
    streams: int = 1,
    batch_size: int = 1,
) -> Int[np.ndarray, "n"]:
    """Each sample's index once: parts shuffled, then samples shuffled within every `window` parts; in each stream by itself.

    A window keeps the number of arrays in use small however large the run is. Epochs follow each other without a gap, so that
    the first draw of one may be in any slot. Not to be written to.
    """
    rng, count = np.random.default_rng([seed, _ORDER, epoch]), sum(part_sizes)
    slots = (epoch * count + np.arange(count)) % batch_size
    stream_of_draw = stream_of_slot(batch_size, streams)[slots]
    parts = np.split(np.arange(count), np.cumsum(part_sizes)[:-1])
    order = np.empty(count, np.int64)
    for stream, pieces in enumerate(_dealt(seed, parts, np.bincount(stream_of_draw, minlength=streams))):
        shuffled = [pieces[piece] for piece in rng.permutation(len(pieces))]
        windows = (np.concatenate(shuffled[i : i + window]) for i in range(0, len(shuffled), window))
        order[stream_of_draw == stream] = np.concatenate([parts[0][:0], *(rng.permutation(samples) for samples in windows)])
    return order


def _dealt(seed: int, parts: list[np.ndarray], lengths: Int[np.ndarray, "s"]) -> list[list[np.ndarray]]:
    """The samples of each stream, as many as it has slots in the epoch, in pieces: whole parts, but for those at its ends.

    The parts stand in a row, the same in all epochs, that is cut where a stream has its number: all streams end together, each
    sample is in one of them, and two that are neighbours share one part at most.
    """
    if len(lengths) == 1:
        return [parts]
    rng = np.random.default_rng([seed, _DEAL])
    row = [rng.permutation(parts[part]) for part in rng.permutation(len(parts))]  # so that any half of a part is a fair one
    ends = np.cumsum(lengths)
    marks = np.unique(np.concatenate([[0], np.cumsum([len(samples) for samples in row]), ends]))
    pieces = np.split(np.concatenate(row), marks[1:-1])
    streams = np.searchsorted(ends, marks[:-1], side="right")
    return [[piece for piece, of in zip(pieces, streams, strict=True) if of == stream] for stream in range(len(lengths))]
