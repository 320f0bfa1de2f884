"""`python -m pipeline.figures`: the paper's figures 2 and 5 for one's own models and pictures.

`fig2`: AbsRel on the central half of every picture, once with scale and shift fitted on the whole of it and once on that half
alone: how much of the error is the fit's. `fig5`: one region of a photograph as labelled in a close-up, beside the same region
cut out of the whole photograph's label: how much detail a close-up adds.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

import manifests
from manifests.tables import aligned
from pipeline.evaluate.run import score_all
from pipeline.exits import DONE, PROBLEMS, say
from pipeline.figures.config import Fig2, Fig5, read_command
from stages.coloring import colorize_disparity, robust_range
from stages.depth_space import is_disparity
from stages.evaluation.metrics import align_scale_shift
from stages.evaluation.published import FIGURE_2
from stages.evaluation.rendered import resize_bilinear
from stages.models import DepthModel
from stages.models.find import ModelError, find_model, refuse_unused_noise
from stages.sources.photographs import decode_upright, resize_region
from stages.views import SourceBox

_PAPER_PX = 560
_SHOWN_PX = 480
_GAP_PX = 8


_PROGRAM = "pipeline.figures"


def main(argv: Sequence[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: Fig2 | Fig5) -> int:
    """Draws or prints the figure; returns the exit status."""
    try:
        return _fig2(config) if isinstance(config, Fig2) else _fig5(config)
    except KeyboardInterrupt as error:
        return say(_PROGRAM, error, "Where predictions are kept, the same command resumes from here.")
    except Exception as error:
        return say(_PROGRAM, error)


def _fig2(config: Fig2) -> int:
    scored = score_all(config, lambda data: data.central_half)
    rows = [["model", "benchmark", "images", "fitted on the whole", "fitted on the half"]]
    for data, outcome in scored.sets:
        for model, scores in outcome.scores.items():
            pairs = [(pair[0].abs_rel, pair[1].abs_rel) for pair in scores.values() if pair]
            if pairs and (config.allow_missing or not outcome.problems):
                count = str(len(pairs)) if len(pairs) == len(data.names) else f"{len(pairs)} of {len(data.names)}"
                rows.append([model, data.name, count, *(f"{value:.4f}" for value in np.mean(pairs, 0))])
    rows += [["paper, figure 2", name, "", f"{whole:.3f}", f"{half:.3f}"] for name, whole, half in FIGURE_2]
    print("\n".join(aligned(rows)))
    for data, _ in scored.sets:
        print(
            f"AbsRel on the central half of rows and columns, of images with depth there; but for the fits: {data.describe()}"
        )
    for failure in scored.failures:
        print(f"{_PROGRAM}: {failure}", file=sys.stderr)
    return PROBLEMS if scored.failures else DONE


def _fig5(config: Fig5) -> int:
    try:
        image = decode_upright(config.image.read_bytes())
        box = region_box(image, config.box)
        model = find_model(
            config.model,
            depth_space=config.depth_space,
            steps=config.steps,
            ensemble=config.ensemble,
            device=config.device,
        )
        refuse_unused_noise([model], config.steps, config.ensemble)
        stated_px = max(model.stated_px) if isinstance(model.stated_px, tuple) else model.stated_px
        teacher = model.at("native").load(config.device)  # it is given pictures of the size that it shall see
        input_px = config.network_px or stated_px or _PAPER_PX
        picture = region_comparison(teacher, image, box, input_px=input_px, seed=config.seed)
    except (ModelError, RuntimeError, ValueError) as error:  # RuntimeError: torch's, for an input it cannot take
        print(f"{_PROGRAM}: {config.image}: {error}", file=sys.stderr)
        return PROBLEMS
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    manifests.write_replacing(config.output, content.getvalue())
    print(f"{config.output}: the region of the photograph; cut out of the whole photograph's label; labelled as a close-up")
    return 0


def region_box(image: Image.Image, box: tuple[int, int, int, int] | None) -> SourceBox:
    """A region of at least 8 x 8 pixels: the central half, or what is given. Raises ValueError for one that is not inside."""
    half = (image.height // 4, image.width // 4, image.height // 2, image.width // 2)
    top, left, height, width = box or half
    if min(top, left) < 0 or min(height, width) < 8 or top + height > image.height or left + width > image.width:
        raise ValueError(
            f"--box {top} {left} {height} {width}: expected top, left, height and width of at least 8 x 8 pixels inside"
            f" {image.height} x {image.width}"
        )
    return SourceBox(top, left, height, width)


def region_comparison(
    teacher: DepthModel, image: Image.Image, box: SourceBox, *, input_px: int, seed: int = 0
) -> UInt8[np.ndarray, "h w 3"]:
    """Three pictures side by side: the region, its part of the whole's label, and its own label as a close-up.

    The close-up's label is fitted to the other by scale and shift, and both have the range of colours of the other.
    """
    whole = _label(teacher, image, SourceBox(0, 0, image.height, image.width), input_px, seed)
    factor = _SHOWN_PX / max(box.height, box.width)
    shape = max(round(box.height * factor), 1), max(round(box.width * factor), 1)
    scale_y, scale_x = whole.shape[0] / image.height, whole.shape[1] / image.width
    edges = (box.left * scale_x, box.top * scale_y, (box.left + box.width) * scale_x, (box.top + box.height) * scale_y)
    cut = np.asarray(Image.fromarray(whole).resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=edges))
    close = resize_bilinear(_label(teacher, image, box, input_px, seed), shape)
    fit = align_scale_shift(close, cut, np.ones(shape, np.bool_))
    low, high = robust_range(cut)
    labels = [colorize_disparity(values, low=low, high=high) for values in (cut, fit.scale * close + fit.shift)]
    gap = np.full((shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([resize_region(image, box, *shape), gap, labels[0], gap, labels[1]], axis=1)


def _label(teacher: DepthModel, image: Image.Image, box: SourceBox, input_px: int, seed: int) -> Float32[np.ndarray, "h w"]:
    """A region's label at the size that the model sees it, near = large."""
    factor = input_px / max(box.height, box.width)
    picture = resize_region(image, box, max(round(box.height * factor), 1), max(round(box.width * factor), 1))
    (values,) = teacher.predict(picture[None], [seed])
    space = teacher.spec.depth_space
    return values if space is not None and is_disparity(space) else -values


if __name__ == "__main__":
    raise SystemExit(main())
