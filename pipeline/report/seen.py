"""A sample of a run's photographs as its teachers and its student see them, and how far they agree."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from manifests.checker import printable
from manifests.errors import DistillError
from pipeline.browse.entries import opinions_of
from pipeline.browse.sample import draw_sample
from pipeline.report.examples import Example, ShownMap, label_of, make_example
from pipeline.report.page import ExampleGroup, Measure, Scenes, Score, ScoreTable, shown
from pipeline.report.training import AFTER, BEFORE
from pipeline.show.picture import Opinion
from stages.agreement import Agreement, agreement
from stages.label_store import ImageLabels, OpenRun
from stages.models import DepthModel
from stages.stitching import stitch_patches

MEASURES = {
    "abs_rel": Measure(name="AbsRel", direction="lower"),
    "edge_f1": Measure(name="Edge F1", direction="higher"),
    "correlation": Measure(name="Correlation", direction="higher"),
}
_WORDS = {"better": "nearer to", "worse": "farther from", "": "as far from"}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A photograph of a run. opinions: the teachers', the reference first. students: the student's, before and after, by name.
    agreements: of the other teachers and of the student with the reference, by name."""

    key: str
    source: str
    rgb: UInt8[np.ndarray, "h w 3"]
    opinions: Sequence[Opinion]
    students: Mapping[str, Opinion]
    agreements: Mapping[str, Agreement]

    @property
    def abs_rel(self) -> float | None:
        """Of the teacher that is farthest from the reference; of the student, where there is no other teacher."""
        names = [opinion.teacher for opinion in self.opinions[1:]] or list(self.students)
        return max((v for name in names if (v := self.agreements[name].abs_rel) is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Photographs of a run, from those in which the teachers agree best. words: how they were drawn. trouble: what cannot be
    shown. seconds: that the finished student took for each. caption: what one of them is."""

    photographs: Sequence[Seen]
    words: str
    trouble: Sequence[str]
    seconds: float | None
    caption: str = "Photograph"


def look(
    run: OpenRun,
    run_dir: Path,
    students: Mapping[str, DepthModel],
    *,
    images: int,
    seed: int,
    reference: str | None,
    caption: str = "Photograph",
) -> Sample:
    """Draws photographs of the run, reads their labels, and shows them to the student. Raises as `draw_sample` does."""
    drawn = draw_sample(run_dir, images=images, worst=1, rejected=0, seed=seed)
    seen, trouble, clock = [], [], _Clock()
    for number in drawn.numbers:
        try:
            found = _seen(run, number, students, reference, trouble, clock)
        except (DistillError, OSError, ValueError) as error:
            trouble.append(f"{run.images.key(number)}: {error}")
        else:
            seen += [found] if found else []
    seen.sort(key=lambda one: (one.abs_rel is None, one.abs_rel or 0))
    worst = " and the one in which the teachers are known to be farthest apart" * bool(drawn.far_apart)
    words = f"{len(seen)} labelled {caption.lower()}s of the run"
    words = f"all {words}" if drawn.drawn == drawn.total else f"{words}, drawn at random (seed {seed}){worst}"
    return Sample(photographs=seen, words=words, trouble=trouble, seconds=clock.mean, caption=caption)


class _Clock:
    """What the finished student takes for a photograph; the first, for which much is loaded, does not count."""

    def __init__(self) -> None:
        self._taken: list[float] = []

    def predict(self, name: str, model: DepthModel, rgb: UInt8[np.ndarray, "h w 3"]) -> Opinion:
        begun = time.perf_counter()
        label = label_of(model.predict(rgb[None])[0])
        if name == AFTER:
            self._taken.append(time.perf_counter() - begun)
        space = model.spec.depth_space
        assert space is not None  # which a model that could be loaded has
        return Opinion(name, space, ImageLabels(context=label, patches=()))

    @property
    def mean(self) -> float | None:
        return float(np.mean(self._taken[1:])) if len(self._taken) > 1 else None


def _seen(
    run: OpenRun,
    number: int,
    students: Mapping[str, DepthModel],
    reference: str | None,
    trouble: list[str],
    clock: _Clock,
) -> Seen | None:
    """None for a photograph that no teacher has labelled."""
    columns = {name for name, column in run.items() if column.status_of_number(number).status == "labelled"}
    if not columns:
        return None
    pictures = run.pictures.numbered(number)
    context, opinions = opinions_of(run, number, columns, pictures, trouble)
    if not opinions:
        return None
    opinions.sort(key=lambda opinion: opinion.teacher != (reference or "primary"))
    rgb = pictures.pictures[context]
    maps = {name: clock.predict(name, model, rgb) for name, model in students.items()}
    first = opinions[0]
    others = {opinion.teacher: opinion for opinion in opinions[1:]} | maps
    agreements = {
        name: agreement(first.labels.context, opinion.labels.context, first.space, opinion.space)
        for name, opinion in others.items()
    }
    key, source = map(printable, (pictures.image.key, pictures.image.source))
    return Seen(key=key, source=source, rgb=rgb, opinions=opinions, students=maps, agreements=agreements)


# --- what is said of them -------------------------------------------------------------------------------------------


def score_table(sample: Sample, reference: str) -> ScoreTable | None:
    """How near teachers and student are to the reference's labels; None where there is nothing to compare."""
    photographs = [seen for seen in sample.photographs if seen.opinions[0].teacher == reference]
    names = list(dict.fromkeys(name for seen in photographs for name in seen.agreements))
    if not names:
        return None
    known = {
        measure: [seen for seen in photographs if all(_value(seen, name, measure) is not None for name in names)]
        for measure in MEASURES
    }
    measures = [measure for measure, seen in known.items() if seen]
    rows = [
        Score(
            name=name,
            values=[_mean(known[measure], name, measure) for measure in measures],
            note={BEFORE: "where the training starts", AFTER: "trained on the labels"}.get(name, "another teacher"),
        )
        for name in names
    ]
    both = {BEFORE, AFTER} <= set(names)
    return ScoreTable(
        heading=f"Agreement with the labels of {reference}",
        note=(
            f"Means over {sample.words}, after least-squares alignment in scale and shift, as in pipeline.agreement. "
            "This is no accuracy: labels are a teacher's, there is no ground truth here, and the student may have learned from "
            "these very ones."
        ),
        measures=[MEASURES[measure] for measure in measures],
        rows=rows if measures else [],
        before=BEFORE if both and measures else None,
        after=AFTER if both and measures else None,
    )


def _mean(photographs: Sequence[Seen], name: str, measure: str) -> float:
    return float(np.mean([value for seen in photographs if (value := _value(seen, name, measure)) is not None]))


def _value(seen: Seen, name: str, measure: str) -> float | None:
    found = seen.agreements.get(name)
    return None if found is None else getattr(found, measure)


def change_sentence(table: ScoreTable, reference: str) -> str:
    """What became of the student, by what the table says."""
    rows = {row.name: row.values for row in table.rows}
    told = []
    for i, measure in enumerate(table.measures):
        before, after = rows[BEFORE][i], rows[AFTER][i]
        told.append(f"{measure.name} {shown(before)} → {shown(after)} ({measure.verdict(before, after) or 'unchanged'})")
    verdict = table.measures[0].verdict(rows[BEFORE][0], rows[AFTER][0])
    than = "than" if verdict else "as"
    how = f"By {table.measures[0].name} the trained student is {_WORDS[verdict]} the labels of {reference} {than} at its start"
    return f"{how}: {'; '.join(told)}."


def one_by_one(sample: Sample) -> Scenes:
    """The student's AbsRel to the reference on each photograph, where it is known before and after."""
    pairs = [(_value(seen, BEFORE, "abs_rel"), _value(seen, AFTER, "abs_rel")) for seen in sample.photographs]
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    return Scenes(measure="AbsRel to the labels", before=[b for b, _ in known], after=[a for _, a in known])


def example_group(sample: Sample, count: int) -> ExampleGroup:
    """Photographs from the best agreed to the worst, evenly."""
    total = len(sample.photographs)
    places = sorted(set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())) if total else []
    return ExampleGroup(
        heading="Labels, from the best agreed to the worst",
        note=(
            f"From {sample.words}: where the teachers agree best, worst, and some between. In a row every map is aligned in "
            "scale and shift to the first one and has its colours. The number is the AbsRel to that map, which is a label "
            "and not the truth. A click enlarges: two pictures under a slider, values, a point cloud."
        ),
        examples=[_example(sample, place) for place in places],
        difference="How far from the first map: red is nearer, blue farther; the full colour is a quarter of its range.",
    )


def _example(sample: Sample, place: int) -> Example:
    seen, total, maps = sample.photographs[place], len(sample.photographs), []
    for opinion in seen.opinions:
        score = _score(seen, opinion.teacher)
        maps.append(ShownMap(name=f"{opinion.teacher}, whole", space=opinion.space, label=opinion.labels.context, score=score))
        if opinion.labels.patches:
            close = stitch_patches(opinion.labels)
            name = f"{opinion.teacher}, {len(opinion.labels.patches)} close-ups"
            maps.append(ShownMap(name=name, space=opinion.space, label=close))
    scores = {name: value for name in seen.students if (value := seen.agreements[name].abs_rel) is not None}
    best = min(scores.values(), default=None)
    maps += [
        ShownMap(
            name=name,
            space=opinion.space,
            label=opinion.labels.context,
            score=_score(seen, name),
            best=len(scores) > 1 and scores.get(name) == best,
        )
        for name, opinion in seen.students.items()
    ]
    rank = {0: "best", total - 1: "worst"}.get(place, f"number {place + 1}")
    told = {"source": seen.source, "agreement": f"{rank} of {total}"}
    return make_example(seen.key, seen.rgb, maps, caption=sample.caption, told=told, compared=(BEFORE, AFTER))


def _score(seen: Seen, name: str) -> str:
    value = seen.agreements[name].abs_rel if name in seen.agreements else None
    return "" if value is None else f"{value:.3f}"
