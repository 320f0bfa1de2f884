"""What the demo will do, and how long that takes on this machine, from the time that it takes to render a scene.

The work of each step is stated in scenes rendered; how long a scene takes is measured each time. What is already done is not
counted. While the demo runs, what it has taken so far corrects the expectation (`pipeline.whole`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import manifests
from manifests.errors import DistillError
from manifests.run import IMAGES
from pipeline.demo.config import DemoConfig
from pipeline.train.setup import WEIGHTS
from pipeline.whole import duration
from stages.evaluation.rendered import SCENE_SIDE_PX
from stages.scenes import render_scene

RENDER, LABEL, TRAIN = "Rendering scenes", "Labelling with both teachers", "Training the student"
SCORE, REPORT = "Scoring on held-out scenes", "Writing the report"
_CORES = 2
"""More of them are of little use to a network of this size."""
_SCENES_PER_LABEL = 3.4
"""What the labels of one image by one teacher cost, in scenes rendered; and so the others: all of it is some 12 CPU minutes
where a scene takes 0.29 s."""
_SCENES_PER_STEP = 2.6
_SCENES_PER_SCORE = 1.7
_SCENES_PER_REPORT = 30.0
_START_SCENES = 10.0
"""To start Ray and its workers."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """The seconds that each step is expected to take, 0 where it is done, and what it will do, in words."""

    seconds: Mapping[str, float]
    words: Mapping[str, str]
    cores: int

    def describe(self) -> str:
        """A line for each step, and one for all."""
        left = sum(self.seconds.values())
        lines = [f"The demo takes about {duration(left)} on this machine ({self.cores} cores). Interrupted, it resumes."]
        width = max(map(len, self.words.values()))
        for number, (step, words) in enumerate(self.words.items(), start=1):
            seconds = self.seconds[step]
            lines.append(f"  {number}. {words:<{width}}  {f'about {duration(seconds)}' if seconds else 'done'}")
        return "\n".join(lines)


def seconds_of_a_scene() -> float:
    """How long this machine takes for one now: a second or so."""
    render_scene(0, height_px=SCENE_SIDE_PX // 8, width_px=SCENE_SIDE_PX // 8)  # what is loaded at the first one
    begun = time.perf_counter()
    render_scene(1, height_px=SCENE_SIDE_PX, width_px=SCENE_SIDE_PX)
    return time.perf_counter() - begun


def expected_steps(config: DemoConfig, scene_s: float) -> DemoPlan:
    """What is left of the demo. scene_s: seconds that rendering a scene takes, in one process."""
    cores = len(os.sched_getaffinity(0))
    each_s = scene_s / min(cores, _CORES)
    labels = 2 * config.scenes - _labelled(config)
    trained = (config.output / "student" / WEIGHTS).exists()
    scored = trained and (config.output / "scores.json").exists()
    scenes = max(config.scenes - _rendered(config), 0)
    seconds = {
        RENDER: scenes * each_s,
        LABEL: (labels * _SCENES_PER_LABEL + _START_SCENES) * each_s if labels > 0 else 0.0,
        TRAIN: 0.0 if trained else config.steps * _SCENES_PER_STEP * each_s,
        SCORE: 0.0 if scored else config.held_out * _SCENES_PER_SCORE * each_s,
        REPORT: _SCENES_PER_REPORT * each_s,
    }
    words = {
        RENDER: f"render {config.scenes} scenes, the photographs",
        LABEL: "label each with two teachers, whole and in close-ups",
        TRAIN: f"train the student for {config.steps} steps",
        SCORE: f"score teachers and student on {config.held_out} other scenes",
        REPORT: f"write {config.output / 'report.html'}",
    }
    return DemoPlan(seconds=seconds, words=words, cores=cores)


def _rendered(config: DemoConfig) -> int:
    """Scenes in the tars that are there, which have their number in their names."""
    return sum(int(path.stem.rpartition("-")[2]) for path in (config.output / "photos").glob("scenes-*.tar"))


def _labelled(config: DemoConfig) -> int:
    """Images that the teachers have labelled or rejected, each by each; none where there is no run that can be read."""
    try:
        columns = [column for column in manifests.summarize(config.output / "run").columns if column.name != IMAGES]
    except (DistillError, OSError):
        return 0  # labelling says what is wrong, if anything is
    return sum(column.labelled + sum(column.rejected.values()) for column in columns)
