"""Teachers with known errors, as ordinary columns of a run: `--NAME.loader pipeline.study.teachers:load`, and a file.

The photographs are rendered scenes, and the file says which, how the run cuts them into views, and how wrong the teacher is:
whole views by `whole`, close-ups by `close_up`. The photographs themselves stay as they are. A teacher sees pixels, from which
exact depth cannot be had; but each picture comes with the seed of its noise, which in a run is a function of the run's seed,
the photograph's key and the number of the view alone. So the teacher knows which view of which scene it is shown, renders
the scene's depth again, cuts it as the photograph was cut, and spoils it.
Any other picture, of another run or of an evaluation, is refused: it knows these scenes and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

import manifests
from manifests.errors import RefusedError
from stages.depth_space import DepthSpace
from stages.labelling.units import view_seed
from stages.scenes import scene_depth
from stages.scenes.errors import Errors, with_errors
from stages.views import SourceBox, ViewPlan, plan_views

LOADER = "pipeline.study.teachers:load"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class KnownScenes:
    """The photographs of a run: scenes `first` to `first + count - 1`, rendered as squares of `photo_px`, cut by this plan."""

    first: int
    count: int
    photo_px: int
    plan: ViewPlan
    run_seed: int = 0

    def key(self, scene: int) -> str:
        """The photograph's key in the run."""
        return str(scene)


@dataclass(frozen=True, kw_only=True)
class KnownTeacher:
    """A teacher's errors, in whole views and in close-ups. seed: of the distortions that all views of a kind share."""

    whole: Errors = field(default_factory=Errors)
    close_up: Errors = field(default_factory=Errors)
    seed: int = 0


class _View(NamedTuple):
    scene: int
    box: SourceBox
    close_up: bool


class LoadedTeacher:
    """What `load` returns (see `stages.models.custom.CustomModel`)."""

    depth_space: DepthSpace = "disparity_affine_invariant"
    takes_seeds = True

    def __init__(self, scenes: KnownScenes, teacher: KnownTeacher) -> None:
        self._scenes, self._teacher = scenes, teacher
        self.weights_sha256 = hashlib.sha256(_content(scenes, teacher)).hexdigest()

    def predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int]) -> Float32[np.ndarray, "b h w"]:
        """Raises ValueError for a picture that is no view of these scenes."""
        height, width = images.shape[1:3]
        if not any(seeds):  # the small picture that a run shows every teacher once, to see whether it works
            return np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (len(images), height, width)).copy()
        return np.stack([self._label(seed, height, width) for seed in seeds])

    def _label(self, seed: int, height: int, width: int) -> Float32[np.ndarray, "h w"]:
        view = self._views.get(seed)
        if view is None:
            raise RefusedError(
                f"{LOADER}: found a picture with the seed {seed}, expected a view of the scenes {self._scenes.first} to"
                f" {self._scenes.first + self._scenes.count - 1} under the plan and seed of its run; write its file again"
            )
        exact = _cut(_disparity(view.scene, self._scenes.photo_px), view.box, height, width)
        errors = self._teacher.close_up if view.close_up else self._teacher.whole
        return with_errors(exact, errors, bias_seed=2 * self._teacher.seed + view.close_up, view_seed=seed)

    @cached_property
    def _views(self) -> dict[int, _View]:
        """Every view of the run by the seed of its noise."""
        run, side, found = self._scenes, self._scenes.photo_px, {}
        for scene in range(run.first, run.first + run.count):
            key, number = run.key(scene), 0
            for views in plan_views(run.plan, seed=run.run_seed, key=key, height_px=side, width_px=side):
                for place, box in enumerate([views.source, *map(views.source_box, views.patches)]):
                    found[view_seed(run.run_seed, key, number)] = _View(scene, box, place > 0)
                    number += 1
        return found


def write_teacher(path: Path, scenes: KnownScenes, teacher: KnownTeacher) -> None:
    """Write the file that `load` takes; one that is there with this content is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    manifests.write_replacing(path, _content(scenes, teacher))


def load(checkpoint: str, device: str) -> LoadedTeacher:
    """The teacher of a file; it computes on the CPU whatever the device. Raises RefusedError for a file that is none."""
    try:
        said = json.loads(Path(checkpoint).read_text(encoding="utf-8"))
        if said["format"] != _FORMAT:
            raise ValueError(f"format {said['format']}, expected {_FORMAT}")
        scenes = KnownScenes(**(said["scenes"] | {"plan": ViewPlan(**said["scenes"]["plan"])}))
        whole, close_up = (Errors(**said["teacher"][kind]) for kind in ("whole", "close_up"))
        if problems := [*whole.problems(), *close_up.problems()]:
            raise ValueError("; ".join(problems))
        return LoadedTeacher(scenes, KnownTeacher(whole=whole, close_up=close_up, seed=said["teacher"]["seed"]))
    except (ValueError, TypeError, KeyError) as error:
        raise RefusedError(f"{checkpoint}: not a file of write_teacher: {error}") from error


def _content(scenes: KnownScenes, teacher: KnownTeacher) -> bytes:
    said = {"format": _FORMAT, "scenes": asdict(scenes), "teacher": asdict(teacher)}
    return (json.dumps(said, indent=1, sort_keys=True) + "\n").encode()


@lru_cache(64)
def _disparity(scene: int, photo_px: int) -> Float32[np.ndarray, "s s"]:
    """1/m, the sky 0."""
    return np.float32(1) / scene_depth(scene, height_px=photo_px, width_px=photo_px)


def _cut(disparity: Float32[np.ndarray, "s s"], box: SourceBox, height: int, width: int) -> Float32[np.ndarray, "h w"]:
    """A region at the size of a view: the mean over what each pixel covers."""
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    resized = Image.fromarray(disparity).resize((width, height), Image.Resampling.BOX, box=edges)
    return np.asarray(resized, np.float32)
