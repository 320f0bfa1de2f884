"""`python -m pipeline.evaluate --model DIR [DIR ...]`: score depth checkpoints on rendered scenes with exact depth.

Students and teachers alike; a folder with `unet/` and `vae/` is a one-step diffusion estimator, anything else a `transformers`
checkpoint. The scenes are rendered once for all models. Prints one table and the protocol behind it; exits with 1, naming
the model and the reason, where one cannot be scored.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from safetensors import SafetensorError
from tqdm import tqdm

from pipeline.config import parse_command, resolved
from stages.depth_space import DepthSpace
from stages.evaluation.metrics import DISPARITY_FLOOR, DepthMetrics, mean_metrics
from stages.evaluation.scenes import (
    CONTEXT_PX,
    HELD_OUT_SEED,
    MAX_DEPTH_M,
    MIN_DEPTH_M,
    SCENE_SIDE_PX,
    SceneResult,
    render_batches,
    score_scenes,
)
from stages.labelling.teachers import Teacher, TeacherSpec, load_teacher

PRESETS = {"default": {}}
_ALIGNMENT = {
    "disparity_affine_invariant": f"scale and shift fitted to 1/depth per scene, disparity floored at {DISPARITY_FLOOR:g}",
    "depth_affine_invariant": "scale and shift fitted to depth per scene",
    "depth_metric": "no alignment",
    "disparity_metric": f"no alignment, disparity floored at {DISPARITY_FLOOR:g}",
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score depth checkpoints on rendered scenes with exact depth."""

    model: tuple[Path, ...]
    """Folders of checkpoints."""
    scenes: int = 64
    """Number of scenes."""
    seed_start: int = HELD_OUT_SEED
    """Seed of the first scene; the shipped demo checkpoints were trained on seeds below 1,000,000."""
    input_px: int = CONTEXT_PX
    """Side of the picture that the models see."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Write every scene's metrics to this file."""
    depth_space: DepthSpace = "disparity_affine_invariant"
    """What the models' numbers mean."""
    preset: str = "default"
    """Starting values."""
    config: Path | None = None
    """TOML file with values for any of these."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        least = {"scenes": 1, "seed_start": 0, "input_px": 16}
        found = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least {bound}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if not self.model:
            found.append("--model: no folder given, expected one or more checkpoints")
        found += [f"--model {folder}: no such folder" for folder in self.model if not folder.is_dir()]
        return found


class EvaluationError(Exception):
    """A model could not be loaded or scored; the message names it and says why."""


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_command(EvaluateConfig, PRESETS, program="evaluate", description=__doc__ or "", argv=argv)
    seeds = range(config.seed_start, config.seed_start + config.scenes)
    try:
        results = evaluate_models(
            _named(config.model), seeds, space=config.depth_space, input_px=config.input_px, device=config.device
        )
    except EvaluationError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(format_table({name: mean_metrics([r.metrics for r in scenes]) for name, scenes in results.items()}, len(seeds)))
    print(protocol(seeds, config.depth_space, config.input_px))
    if config.json_file is not None:
        _write_json(config.json_file, config, results)
    return 0


def evaluate_models(
    models: Mapping[str, Path],
    seeds: Sequence[int],
    *,
    space: DepthSpace = "disparity_affine_invariant",
    input_px: int = CONTEXT_PX,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, list[SceneResult]]:
    """Each named checkpoint's results, scene by scene in the order of `seeds`.

    Raises EvaluationError, naming the model, for a checkpoint that cannot be loaded or whose prediction cannot be scored.
    """
    teachers = {name: _load(name, folder, space, device) for name, folder in models.items()}
    results: dict[str, list[SceneResult]] = {name: [] for name in models}
    with tqdm(total=len(seeds), desc="evaluate", unit="scene", disable=not progress) as bar:
        for scenes in render_batches(seeds, input_px=input_px):
            for name, teacher in teachers.items():
                try:
                    results[name] += score_scenes(teacher.predict, scenes, space)
                except (ValueError, RuntimeError) as error:  # RuntimeError: torch's, for an input the network cannot take
                    raise EvaluationError(f"{name}: {error}") from error
            bar.update(len(scenes))
    return results


def format_table(means: Mapping[str, DepthMetrics], num_scenes: int) -> str:
    """One line per model: AbsRel (lower is better) and delta1 (higher is better), aligned in columns."""
    width = max(len("model"), *map(len, means))
    lines = [f"{'model':<{width}}  AbsRel  delta1  scenes"]
    lines += [f"{name:<{width}}  {m.abs_rel:6.4f}  {m.delta1:6.4f}  {num_scenes:6d}" for name, m in means.items()]
    return "\n".join(lines)


def protocol(seeds: Sequence[int], space: DepthSpace, input_px: int = CONTEXT_PX) -> str:
    """How the numbers were made, in one line."""
    kind = "held-out " if seeds[0] >= HELD_OUT_SEED else ""
    return (
        f"{len(seeds)} rendered scenes ({kind}seeds {seeds[0]} to {seeds[-1]}), seen at {input_px} px and scored at"
        f" {SCENE_SIDE_PX} px; {_ALIGNMENT[space]}; depth {MIN_DEPTH_M:g} to {MAX_DEPTH_M:g} m; mean over scenes"
    )


def _load(name: str, folder: Path, space: DepthSpace, device: str) -> Teacher:
    diffusion = (folder / "unet").is_dir() and (folder / "vae").is_dir()
    loader = "genpercept" if diffusion else "transformers"
    spec = TeacherSpec(name=name, loader=loader, checkpoint=str(folder), depth_space=space)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return load_teacher(spec, device=device)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:  # all seen for damaged checkpoints
        raise EvaluationError(f"{name}: {folder} cannot be loaded: {type(error).__name__}: {error}") from error


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """A name per folder: its last part, or all of it where last parts repeat."""
    unique = len({folder.resolve().name for folder in folders}) == len(folders)
    return {folder.resolve().name if unique else str(folder): folder for folder in folders}


def _write_json(path: Path, config: EvaluateConfig, results: Mapping[str, Sequence[SceneResult]]) -> None:
    models = {
        name: {
            "mean": dataclasses.asdict(mean_metrics([result.metrics for result in scenes])),
            "scenes": [{"seed": result.seed, **dataclasses.asdict(result.metrics)} for result in scenes],
        }
        for name, scenes in results.items()
    }
    seeds = range(config.seed_start, config.seed_start + config.scenes)
    content = {
        "configuration": resolved(config),
        "protocol": protocol(seeds, config.depth_space, config.input_px),
        "models": models,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside first: a reader never sees half a file, and a full disk leaves the old one.
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
