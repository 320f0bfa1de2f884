"""`python -m pipeline.predict --model DIR IN... --output OUT`: photographs in, depth maps out.

IN are photographs, folders and tars of them, whose tree is kept below OUT, globs and brace patterns. Each photograph gets a
16-bit PNG of its size that says what its numbers mean, and a picture in colours; docs/predict.md says more. Run it again
after any interruption: what is finished stays, what is missing is made. Exit status: 0 everything asked for is there, 1
something failed, each named with the reason, 2 the command cannot be run as given, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32, UInt8

import manifests
from pipeline.demo_notice import ONLY_SCENES, made_by_the_demo
from pipeline.exits import DONE, PROBLEMS, exit_status, say
from pipeline.predict.config import PredictConfig, read_command
from pipeline.predict.files import (
    ForeignResultError,
    Photograph,
    find_photographs,
    unfinished,
    write_results,
)
from pipeline.predict.progress import PredictProgress
from stages.depth_space import DepthSpace
from stages.models import DepthModel
from stages.models.batches import in_batches
from stages.models.find import FoundModel, find_model, refuse_unused_noise
from stages.prediction import MapRejectedError, PicturePredictor
from stages.sources.photographs import PictureRejectedError, decode_upright
from stages.threads import ahead

_PROGRAM = "pipeline.predict"
_MOST_PX = 64e6
"""Pixels of photographs that are decoded ahead, and of maps that are written, at a time: two of 24 megapixels each."""


def main(argv: Sequence[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: PredictConfig) -> int:
    """Predicts, and says how it ended; returns the exit status."""
    try:
        progress = predict(config)
    except KeyboardInterrupt as error:
        return say(_PROGRAM, error, f"What is finished in {config.output} stays; the same command resumes.")
    except Exception as error:
        hint = f"What is finished in {config.output} stays; when the cause is gone, the same command resumes."
        return say(_PROGRAM, error, hint if exit_status(error) == PROBLEMS else "")
    if made_by_the_demo(config.model):
        print(ONLY_SCENES)
    print(f"{progress.done} of {progress.total} photographs have their map in {config.output}, {progress.made} made now.")
    if progress.failed:
        print(f"{progress.failed} failed; the same command tries them again.", file=sys.stderr)
    return PROBLEMS if progress.failed else DONE


def predict(config: PredictConfig) -> PredictProgress:
    """Make every result that is not there yet; the tally says how it ended.

    Raises PredictError and ModelError for what cannot be run as given, before anything is written, OSError where results
    cannot be written, and torch.AcceleratorError for a device that gives up.
    """
    photographs, problems = find_photographs(config.inputs, config.output)
    model = find_model(
        config.model,
        depth_space=config.depth_space,
        revision=config.revision,
        input_px=config.network_px or "stated",
        steps=config.steps,
        ensemble=config.ensemble,
        device=config.device,
    )
    refuse_unused_noise([model], config.steps, config.ensemble)
    if config.tile and not config.network_px and model.stated_px is None and not model.spec.is_custom:
        model = model.at(config.tile)
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, dtype=config.dtype))
    recipe = _recipe(config, model)
    todo = unfinished(photographs, recipe, config.wanted, overwrite=config.overwrite, threads=config.threads)
    teacher = model.load(config.device) if todo else None
    with PredictProgress(total=len(photographs), done=len(photographs) - len(todo)) as progress:
        for problem in problems:
            progress.fail(problem)
        if teacher:
            make_results(teacher, todo, config=config, recipe=recipe, progress=progress)
    return progress


def _recipe(config: PredictConfig, model: FoundModel) -> dict[str, str]:
    """All that decides a map beside its photograph, as the PNG records it."""
    noise = {"steps": str(model.spec.steps), "ensemble": str(model.spec.ensemble)} if model.has_noise else {}
    return {
        **noise,
        "depth_space": str(model.spec.depth_space),
        "model_sha256": model.sha256,
        "input_px": model.input_size,
        "dtype": model.spec.dtype,
        "tile_px": str(config.tile),
        "tile_overlap": str(config.tile_overlap if config.tile else None),
    }


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    photograph: Photograph
    picture: UInt8[np.ndarray, "h w 3"]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Predicted:
    photograph: Photograph
    values: Float32[np.ndarray, "h w"]
    space: DepthSpace
    marks_invalid: bool
    sha256: str


def make_results(
    teacher: DepthModel,
    photographs: Sequence[Photograph],
    *,
    config: PredictConfig,
    recipe: Mapping[str, str],
    progress: PredictProgress,
) -> None:
    """Predicts photographs and writes their results, which record `recipe`; each is told to `progress`.

    Decoding runs ahead and writing behind, in threads; the device is used from this one. Each holds as many photographs as
    `_MOST_PX` has room for, and a batch half of that. Raises OSError and torch.AcceleratorError as `predict` does.
    """
    predictor = PicturePredictor(teacher, batch_size=config.batch_size, tile_px=config.tile, tile_overlap=config.tile_overlap)
    write = partial(_write, recipe=recipe, wanted=config.wanted, overwrite=config.overwrite)
    with (
        closing(
            ahead(
                _decode, photographs, threads=config.threads, depth=config.batch_size, weight_of=_stated_pixels, most=_MOST_PX
            )
        ) as decoded,
        closing(_predict(decoded, predictor, config.batch_size, progress)) as predicted,
        closing(
            ahead(
                write,
                predicted,
                threads=config.threads,
                depth=config.batch_size,
                weight_of=lambda item: item.values.size,
                most=_MOST_PX,
            )
        ) as outcomes,
    ):
        for problem in outcomes:
            if problem is None:
                progress.advance()
            else:
                progress.fail(problem)


def _stated_pixels(photograph: Photograph) -> int:
    return photograph.pixels()


def _decode(photograph: Photograph) -> _Decoded | manifests.Problem:
    try:
        content = photograph.read()
        picture = np.asarray(decode_upright(content))
    except OSError as error:
        return manifests.Problem(kind="unreadable", where=photograph.name, message=error.strerror or str(error))
    except PictureRejectedError as error:
        return manifests.Problem(kind=error.kind, where=photograph.name, message=str(error))
    return _Decoded(photograph=photograph, picture=picture, sha256=hashlib.sha256(content).hexdigest())


def _predict(
    decoded: Iterator[_Decoded | manifests.Problem], predictor: PicturePredictor, batch_size: int, progress: PredictProgress
) -> Generator[_Predicted, None, None]:
    """The maps of all that could be decoded, batch by batch of one size; what fails is told to `progress`."""

    def numbered() -> Iterator[tuple[int, _Decoded]]:
        for number, item in enumerate(decoded):
            if isinstance(item, manifests.Problem):
                progress.fail(item)
            else:
                yield number, item

    batches = in_batches(
        numbered(),
        batch_size,
        shape_of=lambda item: item[1].picture.shape,
        position_of=lambda item: item[0],
        max_waiting=2 * batch_size,
        weight_of=lambda item: item[1].picture[..., 0].size,
        most=_MOST_PX / 2,
    )
    for group in batches:
        items = [item for _, item in group]
        for item, values in zip(items, _maps(predictor, items), strict=True):
            if isinstance(values, manifests.Problem):
                progress.fail(values)
            else:
                yield _Predicted(
                    photograph=item.photograph,
                    values=values,
                    space=predictor.depth_space,
                    marks_invalid=predictor.marks_invalid,
                    sha256=item.sha256,
                )


def _maps(predictor: PicturePredictor, items: Sequence[_Decoded]) -> list[Float32[np.ndarray, "h w"] | manifests.Problem]:
    """Each photograph's map, or why it has none; where they fail together, each is tried alone."""
    try:
        return [*predictor.predict([item.picture for item in items])]
    except torch.AcceleratorError:  # the device will not recover
        raise
    except (RuntimeError, ValueError) as error:  # torch's, for an input the network cannot take
        kind = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "cannot_predict"
        problem = manifests.Problem(kind=kind, where=items[0].photograph.name, message=str(error))
    # Outside of the handler: the error would keep the failed batch's tensors alive.
    return [problem] if len(items) == 1 else [result for item in items for result in _maps(predictor, [item])]


def _write(item: _Predicted, *, recipe: Mapping[str, str], wanted: Sequence[str], overwrite: bool) -> manifests.Problem | None:
    """Raises OSError for what would befall the next photograph too, such as a full disk."""
    about = {**recipe, "photograph_sha256": item.sha256}
    try:
        write_results(
            item.photograph,
            item.values,
            item.space,
            about=about,
            wanted=wanted,
            overwrite=overwrite,
            marks_invalid=item.marks_invalid,
        )
    except MapRejectedError as error:
        return manifests.Problem(kind=error.kind, where=item.photograph.name, message=str(error))
    except ForeignResultError as error:
        return manifests.Problem(kind="in_the_way", where=item.photograph.name, message=str(error))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return manifests.Problem(kind="name_too_long", where=item.photograph.name, message="so are its results' names")
    return None
