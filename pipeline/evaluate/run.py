"""Models are shown every picture of an evaluation set and scored: read ahead, predicted in batches, scored behind.

While the device predicts, threads read and decode the next pictures, and score and keep the last predictions. Threads, because
decoding and arithmetic release the interpreter's lock, and maps of 24 megapixels are not worth sending between processes.
Nothing but the scores grows with the length of a set. Results are in the set's order, whatever was batched with what. What
fails is named, and the rest continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from pipeline.evaluate.cache import PredictionStore, picture_key
from pipeline.evaluate.config import ScoringConfig
from pipeline.evaluate.data import EvaluationSet, open_set
from pipeline.tally import Tally
from stages.depth_space import DepthSpace
from stages.evaluation.benchmarks import BenchmarkSample
from stages.models.batches import Predictor, in_batches
from stages.models.find import FoundModel, ModelError, find_model, refuse_unused_noise
from stages.models.pixels import resize_maps
from stages.sources.photographs import resize_region
from stages.threads import ahead
from stages.views import SourceBox

ScoreT = TypeVar("ScoreT")
Score = Callable[[Float32[np.ndarray, "h w"], BenchmarkSample], ScoreT]
"""From a prediction, at the size of the picture the model saw, to its score; raises ValueError, and runs in threads."""
_DEFAULT_OUTPUT = Path("evaluations")
_MOST_PX = 32e6
"""Pixels of pictures that are read ahead, and of maps that are scored, at a time: one of 24 megapixels, many of one."""
_NO_PICTURE = np.empty((0, 0, 3), np.uint8)
_SHOWN = 5
"""Unreadable files of a set that are named."""


class EvaluatedModel:
    """A model under its name in the tables; loaded when the first picture needs it, which may be never.

    square_px: it is shown pictures as squares of this side, and its maps are brought back to their aspect.
    """

    def __init__(
        self, found: FoundModel, *, device: str = "auto", batch: int = 8, seed: int = 0, square_px: int | None = None
    ) -> None:
        self.found, self.name, self._square_px = found, found.spec.name, square_px
        self._device, self._batch, self._seed = device, batch, seed

    @property
    def space(self) -> DepthSpace:
        """What its numbers mean."""
        space = self.found.spec.depth_space
        assert space is not None  # of a resolved spec
        return space

    @property
    def input_size(self) -> str:
        """The size at which it is shown pictures, as results record it."""
        return f"{self._square_px} x {self._square_px}" if self._square_px else self.found.input_size

    def settings(self) -> dict[str, Any]:
        """All that decides its prediction of a picture."""
        spec = self.found.spec
        own = {"loader": spec.loader, "dtype": spec.dtype, "input_px": self.input_size}
        if self.found.has_noise:
            own |= {"steps": spec.steps, "ensemble": spec.ensemble, "seed": self._seed}
        libraries = ["torch"]
        if not spec.is_custom:
            libraries.append("transformers" if spec.loader == "transformers" else "diffusers")
        return {"checkpoint_sha256": self.found.sha256, **own, **{name: version(name) for name in libraries}}

    def describe(self) -> str:
        """One line that identifies it, without the paths of this machine."""
        settings = {"depth_space": self.space, **self.settings(), "checkpoint_sha256": self.found.sha256[:16]}
        return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)

    def noise_seed(self, image: str) -> int:
        """63 bits that depend on the seed and the image's name alone."""
        return int.from_bytes(hashlib.sha256(f"{self._seed}\0{image}".encode("utf-8", "surrogatepass")).digest()[:8]) >> 1

    def predict(self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], names: Sequence[str]) -> Float32[np.ndarray, "b h w"]:
        """Maps of pictures of one size, whose noise is drawn from their names. Raises ModelError, and as `Predictor` does."""
        seeds = [self.noise_seed(name) for name in names]
        if self._square_px is None:
            return self._predictor.predict(pictures, seeds)
        height, width, _ = pictures[0].shape
        side, whole = self._square_px, SourceBox(0, 0, height, width)
        squares = [resize_region(Image.fromarray(picture), whole, side, side) for picture in pictures]
        return resize_maps(torch.from_numpy(self._predictor.predict(squares, seeds)), height, width).numpy()

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.found.load(self._device), self._batch)


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[ScoreT]):
    """What came of a set. A model that failed has no scores; problems are the set's files that could not be read."""

    scores: dict[str, dict[str, ScoreT]] = field(default_factory=dict)
    """By model, then by image in the set's order."""
    failures: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Scored(Generic[ScoreT]):
    """All sets of a command, and everything that went wrong, in words."""

    models: Mapping[str, EvaluatedModel]
    sets: Sequence[tuple[EvaluationSet, Outcome[ScoreT]]]
    failures: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Question:
    index: int
    picture: UInt8[np.ndarray, "h w 3"]
    sample: BenchmarkSample
    key: str
    kept: Mapping[str, Float32[np.ndarray, "h w"]]
    """By model: predictions that are already there."""

    @property
    def pixels(self) -> int:
        """Of the picture as a model sees it, or of the truth, which may be much larger."""
        return max(self.picture[..., 0].size, self.sample.valid.size)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    model: str
    question: _Question
    prediction: Float32[np.ndarray, "h w"]


def score_all(
    config: ScoringConfig, score_of: Callable[[EvaluationSet], Score[ScoreT]], progress: bool = True
) -> Scored[ScoreT]:
    """Every model on every set; models of one depth space together, for they share a protocol."""
    failures: list[str] = []
    models: dict[str, EvaluatedModel] = {}
    for name, checkpoint in _named(config.model).items():
        try:
            found = find_model(
                checkpoint,
                name=name,
                depth_space=config.depth_space,
                input_px="native" if config.network_square else config.network_px or "stated",
                steps=config.steps,
                ensemble=config.ensemble,
                device=config.device,
            )
            square_px = config.network_long_side_px if config.network_square else None
            models[name] = EvaluatedModel(
                found, device=config.device, batch=config.batch_size, seed=config.seed, square_px=square_px
            )
        except ModelError as error:
            failures.append(str(error))
    try:
        refuse_unused_noise([model.found for model in models.values()], config.steps, config.ensemble)
    except ModelError as error:
        failures.append(str(error))
    sets = []
    for benchmark in config.sets:
        output = config.output or (None if benchmark == "scenes" else _DEFAULT_OUTPUT)
        spaces: list[DepthSpace] = list(dict.fromkeys(model.space for model in models.values()))
        for space in spaces:
            same = [model for model in models.values() if model.space == space]
            try:
                data = open_set(config, benchmark, space)
            except ValueError as error:
                failures.append(f"{benchmark}: {error} (not scored: {', '.join(model.name for model in same)})")
                continue
            outcome = evaluate_set(
                data,
                same,
                score_of(data),
                store=PredictionStore(output and output / benchmark),
                batch=config.batch_size,
                workers=config.threads,
                progress=progress,
            )
            sets.append((data, outcome))
            failures += outcome.failures.values()
            failures += _unreadable(data, outcome, config.allow_missing)
    return Scored(models=models, sets=sets, failures=tuple(dict.fromkeys(failures)))


def evaluate_set(
    data: EvaluationSet,
    models: Sequence[EvaluatedModel],
    score: Score[ScoreT],
    *,
    store: PredictionStore,
    batch: int = 8,
    workers: int = 4,
    progress: bool = True,
) -> Outcome[ScoreT]:
    """Every model's score of every picture.

    A model that cannot be loaded, that cannot take a picture or whose prediction cannot be scored is given up for this set.
    """
    keys = {model.name: store.add_model(model.settings()) for model in models}
    outcome: Outcome[ScoreT] = Outcome()
    collected: dict[str, dict[int, tuple[str, ScoreT]]] = {model.name: {} for model in models}
    sizes = _Sizes()
    questions = ahead(
        partial(_ask, data, store, keys, sizes),
        range(len(data.names)),
        threads=workers,
        depth=workers + batch,
        weight_of=lambda _: sizes.largest_px,
        most=_MOST_PX,
    )
    with Tally(data.name, len(data.names), "img", show=progress) as bar:
        answers = _answers(_readable(questions, outcome.problems, bar), models, outcome.failures, batch, bar)
        mark = partial(_mark, score, store, keys)
        marked = ahead(
            mark, answers, threads=workers, depth=workers, weight_of=lambda answer: answer.question.pixels, most=_MOST_PX
        )
        for answer, result in marked:
            if isinstance(result, ValueError):
                outcome.failures.setdefault(answer.model, f"{answer.model}: {result}")
            else:
                collected[answer.model][answer.question.index] = answer.question.sample.name, result
    for name, by_index in collected.items():
        if name not in outcome.failures:
            outcome.scores[name] = dict(by_index[index] for index in sorted(by_index))
    return outcome


class _Sizes:
    """Pixels that the next picture of a set is taken to have: those of the largest that was read, and before that, all."""

    def __init__(self) -> None:
        self.largest_px, self._any = _MOST_PX, False

    def see(self, pixels: int) -> None:
        """A picture has been read; from any thread."""
        self.largest_px, self._any = max(pixels, self.largest_px) if self._any else pixels, True


def _ask(data: EvaluationSet, store: PredictionStore, keys: Mapping[str, str], sizes: _Sizes, index: int) -> _Question | str:
    """A picture and what is kept of it, or why it cannot be read."""
    try:
        picture, sample = data.read(index)
    except (ValueError, OSError) as error:
        return f"{data.name}: {error}"
    key = picture_key(sample.name, picture)
    found = {model: store.load(model_key, key, picture.shape[:2]) for model, model_key in keys.items()}
    kept = {model: prediction for model, prediction in found.items() if prediction is not None}
    question = _Question(index=index, picture=picture, sample=sample, key=key, kept=kept)
    sizes.see(question.pixels)
    return question


def _readable(questions: Iterable[_Question | str], problems: list[str], bar: Tally) -> Iterator[_Question]:
    for question in questions:
        if isinstance(question, str):
            problems.append(question)
            bar.done()
        else:
            yield question


def _answers(
    questions: Iterable[_Question], models: Sequence[EvaluatedModel], failures: dict[str, str], batch: int, bar: Tally
) -> Iterator[_Answer]:
    """Every model's predictions, kept or new; pictures of equal shape go together."""
    batches = in_batches(
        questions,
        batch,
        shape_of=lambda question: question.picture.shape,
        position_of=lambda question: question.index,
        max_waiting=2 * batch,
        weight_of=lambda question: question.pixels,
        most=_MOST_PX / 2,
    )
    for asked in batches:
        for model in models:
            if model.name in failures:
                continue
            try:
                yield from _predict(model, asked)
            except (ModelError, ValueError, RuntimeError) as error:  # RuntimeError: torch's, for an input it cannot take
                names = ", ".join(question.sample.name for question in asked)  # that were shown to it together
                about = "" if isinstance(error, ModelError) else f"{model.name}: {names}: "
                failures[model.name] = f"{about}{error}"
        bar.done(len(asked))


def _predict(model: EvaluatedModel, asked: Sequence[_Question]) -> Iterator[_Answer]:
    new = [question for question in asked if model.name not in question.kept]
    pictures, names = [q.picture for q in new], [q.sample.name for q in new]
    predicted = dict(zip((q.index for q in new), model.predict(pictures, names), strict=True)) if new else {}
    for question in asked:
        kept = question.kept.get(model.name)
        prediction = predicted[question.index] if kept is None else kept
        yield _Answer(model=model.name, question=replace(question, picture=_NO_PICTURE), prediction=prediction)


def _mark(
    score: Score[ScoreT],
    store: PredictionStore,
    keys: Mapping[str, str],
    answer: _Answer,
) -> tuple[_Answer, ScoreT | ValueError]:
    question = answer.question
    if answer.model not in question.kept:
        store.save(keys[answer.model], question.key, answer.prediction)
    try:
        return answer, score(answer.prediction, question.sample)
    except ValueError as error:
        return answer, error


def _unreadable(data: EvaluationSet, outcome: Outcome[ScoreT], allowed: bool) -> list[str]:
    """The set's files that could not be read, which is no failure where it is allowed and something is left."""
    if not outcome.problems or (allowed and any(outcome.scores.values())):
        return []
    count = f"{data.name}: {len(outcome.problems)} of {len(data.names)} images could not be read, so there is no mean"
    return [*outcome.problems[:_SHOWN], f"{count}; mend them, or take the mean of the others with --allow-missing"]


def _named(checkpoints: Sequence[str]) -> dict[str, str]:
    """A name per checkpoint: its last part, or all of it where last parts repeat."""
    last = [Path(checkpoint).resolve().name for checkpoint in checkpoints]
    return dict(zip(last if len(set(last)) == len(last) else checkpoints, checkpoints, strict=True))
