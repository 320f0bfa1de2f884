"""`python -m pipeline.agreement RUN`: how far each two teachers of a run agree, on every photograph and close-up.

Computed from the labels that the run has, part by part, and kept in it: `python -m manifests summary` shows the distribution
and names the photographs in which the teachers are farthest apart, `list` shows them all. Run it again after any interruption,
and whenever the run has grown: only what is new is compared.
"""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

import manifests
from manifests.agreement import (
    MEASURES,
    MOST_NAMED,
    QUANTILES,
    FarApart,
    digest_of_parts,
    overview,
    overview_name,
    pairs_of,
    part_digests,
    read_overview,
)
from manifests.checker import printable
from manifests.errors import DistillError, RefusedError
from manifests.location import Location
from pipeline.config import answer_version, at_least, url_problems
from pipeline.exits import DONE, PROBLEMS, REFUSED, say
from pipeline.tally import Tally
from stages.agreement_tables import PartAgreement, compare_part
from stages.label_store import OpenRun, open_run

_PROGRAM = "pipeline.agreement"
_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class AgreementConfig:
    """How far the teachers of a run agree."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    columns: tuple[str, ...] = ()
    """Teachers to compare, each two of them; all that the run has where none is named."""
    workers: int | None = None
    """Ray workers; one for each core by itself. 0 works in this process, without Ray."""
    address: str | None = None
    """A Ray cluster to join, whose machines all see the run."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        return url_problems(self) + at_least(self, {"workers": 0})


class _Task(NamedTuple):
    """A part of two columns; `number` is the part's in the run."""

    first: str
    second: str
    number: int
    name: str


_Outcome = PartAgreement | Exception


@dataclass(kw_only=True)
class _Found:
    """What is known of a pair of columns so far."""

    values: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    images: int = 0
    far_apart: list[FarApart] = field(default_factory=list)
    views: int = 0
    parts: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, found: PartAgreement) -> None:
        self.parts, self.images, self.views = self.parts + 1, self.images + len(found.images), self.views + found.views_compared
        for name, values in self.values.items():
            values.append(np.array([v for image in found.images if (v := getattr(image, name)) is not None], np.float32))
        farthest = heapq.nlargest(MOST_NAMED, [*self.far_apart, *found.far_apart], key=lambda image: image.abs_rel)
        self.far_apart = farthest

    def quantiles(self) -> dict[str, list[float]]:
        joined = {name: np.concatenate([np.zeros(0, np.float32), *values]) for name, values in self.values.items()}
        return {name: np.quantile(of, QUANTILES).tolist() for name, of in joined.items() if of.size}


def main(argv: Sequence[str] | None = None) -> int:
    answer_version(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(AgreementConfig, prog=f"python -m {_PROGRAM}", description=__doc__, args=argv)
    if problems := config.problems():
        print(*(printable(f"{_PROGRAM}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
        return REFUSED
    try:
        with manifests.hold_run(config.run, exclusive=False):
            return compare_teachers(config)
    except (Exception, KeyboardInterrupt) as error:
        return say(_PROGRAM, error, "What is compared stays; the same command goes on." * isinstance(error, KeyboardInterrupt))


def compare_teachers(config: AgreementConfig) -> int:
    """Compares all that two teachers have both labelled, and returns the exit status.

    Raises RefusedError for a run with fewer than two of these columns, and as `load_run` does.
    """
    run = manifests.load_run(config.run)
    pairs = _wanted(run, config)
    digests = {name: part_digests(config.run, run, name) for name in sorted({name for pair in pairs for name in pair})}
    tasks = [
        _Task(*pair, number, part.name)
        for pair in pairs
        for number, part in enumerate(manifests.parts(run))
        if all(part.name in digests[name] for name in pair)
    ]
    found = {pair: _Found() for pair in pairs}
    work = _here if config.workers == 0 else _on_ray
    with Tally("compare", len(tasks), "parts") as tally:
        for task, outcome in work(config, tasks):
            of = found[task.first, task.second]
            if isinstance(outcome, Exception):
                of.problems.append(f"{task.name}: {outcome}")
            else:
                of.add(outcome)
            tally.done()
    for (first, second), of in found.items():
        if not of.problems:
            known = digest_of_parts(digests[first].items()), digest_of_parts(digests[second].items())
            if not read_overview(config.run, first, second, known).up_to_date:
                content = overview(first, second, known, of.images, of.quantiles(), of.far_apart)
                manifests.place_of(config.run).replace(overview_name(first, second), content)
        _report(first, second, of)
    if any(of.problems for of in found.values()):
        return PROBLEMS
    print(printable(f"Look: python -m manifests summary {config.run}"))
    return DONE


def _wanted(run: manifests.Run, config: AgreementConfig) -> list[tuple[str, str]]:
    names = {name for pair in pairs_of(run) for name in pair}
    if unknown := [name for name in config.columns if name not in names]:
        there = ", ".join(sorted(names)) or "fewer than two teachers"
        raise RefusedError(f"{config.run}: has no teacher {', '.join(map(repr, unknown))} to compare; it has {there}")
    pairs = [pair for pair in pairs_of(run) if not config.columns or set(pair) <= set(config.columns)]
    if not pairs:
        raise RefusedError(f"{config.run}: found fewer than two teachers, expected two to compare; label with another one")
    return pairs


def _compare(run: OpenRun, task: _Task) -> _Outcome:
    try:
        return compare_part(run, task.first, task.second, task.number)
    except (DistillError, OSError, MemoryError) as error:  # of this part; the others can be compared
        return error


def _here(config: AgreementConfig, tasks: Sequence[_Task]) -> Iterator[tuple[_Task, _Outcome]]:
    run = open_run(config.run)
    return ((task, _compare(run, task)) for task in tasks)


@lru_cache(1)
def _opened(run_dir: Location) -> OpenRun:
    """By a process that Ray has started for this command alone."""
    return open_run(run_dir)


def _compare_there(run_dir: Location, task: _Task) -> _Outcome:
    return _compare(_opened(run_dir), task)


def _on_ray(config: AgreementConfig, tasks: Sequence[_Task]) -> Iterator[tuple[_Task, _Outcome]]:
    """The outcomes as they come. A task whose worker dies is tried again by Ray."""
    import ray.exceptions  # here, as without workers nobody waits for it

    from pipeline.ray_start import start_ray

    start_ray(config.address, num_cpus=config.workers or 1)
    try:
        workers = config.workers or int(ray.cluster_resources().get("CPU", os.cpu_count() or 1))
        compare, waiting, left = ray.remote(num_cpus=1)(_compare_there), {}, iter(tasks)
        while True:
            while len(waiting) < 2 * workers and (task := next(left, None)):
                waiting[compare.remote(config.run, task)] = task
            if not waiting:
                return
            for reference in ray.wait(list(waiting))[0]:
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayTaskError:  # a bug, which shows where it was
                    raise
                except ray.exceptions.RayError as error:
                    outcome = RuntimeError(f"the worker died: {type(error).__name__}")
                yield waiting.pop(reference), outcome
    finally:
        ray.shutdown()


def _report(first: str, second: str, found: _Found) -> None:
    what = f"{first} and {second}: {found.images} images in {found.parts} parts, {found.views} views compared by this command"
    medians = [f"{name} {values[len(QUANTILES) // 2]:.3f}" for name, values in found.quantiles().items()]
    print(printable("; ".join([what, *([f"medians: {', '.join(medians)}"] if medians else [])])))
    for problem in found.problems[:_PROBLEMS_SHOWN]:
        print(printable(f"not compared: {first} and {second}: {problem}"), file=sys.stderr)
    if (more := len(found.problems) - _PROBLEMS_SHOWN) > 0:
        print(f"and {more} more", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
