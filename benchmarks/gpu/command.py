"""`python -m benchmarks.gpu`: what one CUDA machine does, at full size, with random weights and no download, in 8 minutes.

Prints Markdown for docs/benchmarks.md. Both sides of a comparison run in turns; medians are reported. The sections run one
after the other; one for which too little time is left is skipped, one that fails does not keep the others from running, and
both are named in the table. Exit status 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import losses, teachers, training
from benchmarks.gpu.bench import Bench, TeacherName
from benchmarks.gpu.report import Figure, Outcome, as_json, in_a_line, machine_of, markdown
from benchmarks.gpu.sizes import FULL, MINIATURE
from stages.models.find import resolve_device
from stages.threads import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Section:
    """Some figures that are taken together."""

    name: str
    seconds: float
    """What it may take: it begins only where so much is left, and begins no further turn afterwards."""
    measure: Callable[[Bench], Iterator[Figure]]


def sections() -> list[Section]:
    """In the order in which they run: where time is short, the last ones are skipped."""
    small, large = "Depth Anything v2 Small", "Depth Anything v2 Large"
    return [
        Section(name="L_Dis, forward and backward", seconds=10, measure=losses.loss_times),
        *_teacher_sections(small, seconds=15),
        *_teacher_sections(large, seconds=25),
        *_teacher_sections("GenPercept", seconds=50),
        _student("S", seconds=45),  # with the labels that all students learn from
        _student("B", seconds=20),
        _student("L", seconds=30),
        Section(name="Student ViT-L on all cards", seconds=30, measure=partial(training.over_ranks, size="L")),
        *_teacher_sections("Lotus-D", seconds=50),
        _compiled(large, seconds=40),
        _compiled("GenPercept", seconds=60),
        _student("L", seconds=90, compile=True),
    ]


def _teacher_sections(name: TeacherName, *, seconds: float) -> list[Section]:
    found = [
        Section(name=f"{name}, precision", seconds=seconds, measure=partial(teachers.precisions, name=name)),
        Section(name=f"{name}, worker", seconds=seconds, measure=partial(teachers.through_worker, name=name)),
    ]
    if name not in ("GenPercept", "Lotus-D"):
        beside = partial(teachers.several_workers, name=name)
        found.append(Section(name=f"{name}, several workers", seconds=2 * seconds, measure=beside))
    else:
        formats = partial(teachers.memory_formats, name=name)
        found.append(Section(name=f"{name}, memory format", seconds=seconds / 2, measure=formats))
    return found


def _compiled(name: TeacherName, *, seconds: float) -> Section:
    return Section(name=f"{name}, torch.compile", seconds=seconds, measure=partial(teachers.compiled, name=name))


def _student(size: str, *, seconds: float, compile: bool = False) -> Section:
    name = f"Student ViT-{size}" + ", torch.compile" * compile
    return Section(name=name, seconds=seconds, measure=partial(training.steps, size=size, compile=compile))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, or cpu (--miniature only)")
    parser.add_argument("--minutes", type=float, default=8, help="what all of it may take")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="sections whose names contain one of these")
    parser.add_argument("--miniature", action="store_true", help="the same with tiny networks and pictures, for trying it out")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the Markdown here too")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
    arguments = parser.parse_args(argv)
    device, sizes = resolve_device(arguments.device), MINIATURE if arguments.miniature else FULL
    if device == "cpu" and not arguments.miniature:
        parser.error("no CUDA device was found or asked for; on a CPU, only --miniature can be measured")
    torch.set_num_threads(1)  # this and the next as in a worker
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, torch.compiler.set_stance("default" if sizes.compiles else "force_eager"):
        bench = Bench(device=device, sizes=sizes, folder=Path(folder))
        outcomes = measure_all(bench, sections(), 60 * arguments.minutes, only=arguments.only)
        bench.release()
    machine = machine_of(device)
    text = markdown(machine, outcomes, minutes=arguments.minutes)
    print(text, end="")
    if arguments.markdown:
        arguments.markdown.write_text(text, "utf-8")
    if arguments.json:
        found = as_json(machine, outcomes, minutes=arguments.minutes, miniature=arguments.miniature)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return int(any(outcome.status == "failed" for outcome in outcomes))


def measure_all(bench: Bench, chosen: Sequence[Section], seconds: float, *, only: Sequence[str] = ()) -> list[Outcome]:
    """The outcome of each section, in their order."""
    ends, outcomes = time.monotonic() + seconds, []
    for section in chosen:
        left, needed = ends - time.monotonic(), section.seconds * bench.sizes.time_share
        if only and not any(text in section.name for text in only):
            outcome = Outcome(section=section.name, status="skipped", reason="not asked for")
        elif left < needed:
            outcome = Outcome(
                section=section.name, status="skipped", reason=f"{max(left, 0):.0f} s were left, it may take {needed:.3g} s"
            )
        else:
            bench.until = time.monotonic() + needed
            outcome = _measured(bench, section)
        outcomes.append(outcome)
        shown = f"{outcome.seconds:.1f} s" if outcome.status == "measured" else outcome.reason
        print(f"{section.name}: {outcome.status}: {shown}", file=sys.stderr, flush=True)
    return outcomes


def _measured(bench: Bench, section: Section) -> Outcome:
    """The section's figures, or those that it had before it failed."""
    outcome = Outcome(section=section.name, status="measured")
    started = time.monotonic()
    try:
        for taken in section.measure(bench):
            outcome.figures.append(taken)
    except Exception as error:  # whatever it is: the other sections can be measured
        outcome.status, outcome.reason = "failed", in_a_line(error)
    if outcome.status == "failed":  # outside of the handler: the error would keep the section's tensors alive
        bench.release()
    outcome.seconds = time.monotonic() - started
    return outcome
