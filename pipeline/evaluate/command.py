"""`python -m pipeline.evaluate --model MODEL [MODEL ...]`: score depth models on public benchmarks and on rendered scenes.

Students and teachers alike, from folders or the hub, several models and benchmarks in one call. Prints models down and
benchmarks across, AbsRel/delta1, and under it the protocol behind each number. Predictions are kept in `--output`:
interrupted, the same command resumes; under another protocol nothing is predicted again. A model or a file that fails is
named, the others are scored, and the exit status is 1; there is no mean over a part of a benchmark unless `--allow-missing`
asks for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import manifests
from manifests.errors import DistillError
from pipeline.config import resolved
from pipeline.evaluate.cache import PredictionStore
from pipeline.evaluate.config import EvaluateConfig, read_command
from pipeline.evaluate.data import RenderedScenes
from pipeline.evaluate.data import scenes_protocol as protocol
from pipeline.evaluate.run import EvaluatedModel, evaluate_set, score_all
from pipeline.evaluate.tables import (
    SetResult,
    as_json,
    eval_results,
    format_table,
    markdown,
    notes,
    per_image_file,
    result_table,
)
from pipeline.exits import DONE, PROBLEMS, exit_status, say
from stages.depth_space import DepthSpace
from stages.distillation.model_card import replace_results
from stages.evaluation.published import Table
from stages.evaluation.rendered import CONTEXT_PX, SceneResult
from stages.models.find import ModelError, find_model

__all__ = ["Evaluation", "EvaluationError", "evaluate", "evaluate_models", "format_table", "main", "protocol"]

_PROGRAM = "pipeline.evaluate"


class EvaluationError(DistillError):
    """A model could not be loaded or scored; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found: the models, a result per benchmark and depth space, and what went wrong."""

    models: Mapping[str, EvaluatedModel]
    results: Sequence[SetResult]
    failures: Sequence[str]


def main(argv: Sequence[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: EvaluateConfig) -> int:
    """Scores, prints and writes what was asked for; returns the exit status."""
    try:
        done = evaluate(config)
    except KeyboardInterrupt as error:
        return say(_PROGRAM, error, "Where predictions are kept, the same command resumes from here.")
    except Exception as error:  # of the predictions that are kept: a full disk, say
        return say(
            _PROGRAM, error, "When the cause is gone, the same command resumes." if exit_status(error) == PROBLEMS else ""
        )
    if done.results:
        print(result_table(list(done.models), done.results, config.table))
    for note in notes(done.results, config.table):
        print(note)
    failures = [*done.failures, *_write(config, done)]
    for failure in failures:
        print(f"{_PROGRAM}: {failure}", file=sys.stderr)
    return PROBLEMS if failures else DONE


def evaluate(config: EvaluateConfig, progress: bool = True) -> Evaluation:
    """Score every model on every set; what fails is in the result."""
    scored = score_all(config, lambda data: data.score, progress)
    results = [
        SetResult(
            benchmark=data.name,
            rules=f"{data.describe()}; {_seen([scored.models[name] for name in (*outcome.scores, *outcome.failures)])}",
            protocol=data.protocol,
            list_sha256=data.list_sha256,
            images=len(data.names),
            expected_images=data.expected_images,
            scores=outcome.scores,
            failures=outcome.failures,
            problems=outcome.problems,
            allow_missing=config.allow_missing,
        )
        for data, outcome in scored.sets
    ]
    return Evaluation(models=scored.models, results=results, failures=scored.failures)


def _seen(models: Sequence[EvaluatedModel]) -> str:
    """The size at which each network saw the pictures; where it is one for all, without their names."""
    names: dict[str, list[str]] = {}
    for model in models:
        names.setdefault(f"{model.input_size} px".replace("native px", "native pixels"), []).append(model.name)
    one = len(names) == 1
    return "networks see " + ", ".join(size if one else f"{size} ({', '.join(who)})" for size, who in names.items())


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
    try:
        asked = [
            EvaluatedModel(find_model(str(folder), name=name, depth_space=space), device=device)
            for name, folder in models.items()
        ]
    except ModelError as error:
        raise EvaluationError(str(error)) from error
    data = RenderedScenes(seeds, space, input_px)
    outcome = evaluate_set(data, asked, data.score, store=PredictionStore(None), progress=progress)
    for failure in [*outcome.failures.values(), *outcome.problems]:
        raise EvaluationError(failure)
    return {
        name: [SceneResult(seed=seed, metrics=score.metrics) for seed, score in zip(seeds, scores.values(), strict=True)]
        for name, scores in outcome.scores.items()
    }


def _write(config: EvaluateConfig, done: Evaluation) -> list[str]:
    """Every file that was asked for, each whole or not at all; what could not be written, in words."""
    names = list(done.models)
    problems: list[str | None] = []
    if config.json_file:
        models = {
            name: {"checkpoint": model.found.spec.checkpoint, "depth_space": model.space, **model.settings()}
            for name, model in done.models.items()
        }
        content = as_json(resolved(config), models, done.results, config.table) | {"failures": list(done.failures)}
        problems.append(_replace(config.json_file, (json.dumps(content, indent=2) + "\n").encode()))
    if config.markdown:
        problems.append(_replace(config.markdown, _markdown(done, names, config.table).encode()))
    if config.per_image:
        problems.append(_replace(config.per_image, per_image_file(done.results, config.per_image.suffix)))
    if config.write_card:
        problems += [_write_card(done, name) for name in names]
    return [problem for problem in problems if problem]


def _write_card(done: Evaluation, name: str) -> str | None:
    """Put the model's results into its card, or say why not."""
    found = done.models[name].found
    card = (found.folder or Path(found.spec.checkpoint)) / "README.md"
    results = eval_results(name, done.results)
    if not results:
        return f"{card}: left as it is: {name} has no mean to write"
    if not found.folder or not Path(found.spec.checkpoint).is_dir() or not card.is_file():
        return f"{card}: no model card in a local folder, so --write-card has nowhere to put the results of {name}"
    try:
        text = replace_results(card.read_text(encoding="utf-8"), _markdown(done, [name]), card.parent.resolve().name, results)
    except ValueError as error:
        return f"{card}: {error}"
    return _replace(card, text.encode())


def _markdown(done: Evaluation, names: Sequence[str], table: Table | None = None) -> str:
    return markdown({name: done.models[name].describe() for name in names}, done.results, table)


def _replace(path: Path, content: bytes) -> str | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        manifests.write_replacing(path, content)
    except OSError as error:
        return f"{path}: cannot be written: {error.strerror}; what was predicted is kept where --output says"
    return None
