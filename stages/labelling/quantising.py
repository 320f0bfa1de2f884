"""From what a teacher says of a view to its label as it is stored, or to the reason why it has none.

Where the prediction is on a GPU, so is this: codes of 16 bits leave it instead of floats, and no core is kept busy. Both ways
are the same sums of float64, in the same order: their results are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from manifests import Reason
from stages.label_store import Label, QuantisedLabel, quantise
from stages.label_store.format import LABEL_BITS, top_step
from stages.views import Box, onto_grid, onto_grid_where, resampling


def label_of(
    depth: Float32[np.ndarray, "h w"],
    box: Box | None,
    number: int,
    *,
    marks_invalid: bool = False,
    bits: int = LABEL_BITS,
) -> QuantisedLabel | Reason:
    """The label of view `number` of an image: a patch's, at the size of its box, or, without one, a context's.

    A prediction that is not finite is none, and neither is a context's that is the same everywhere. marks_invalid: NaN is a
    pixel that the teacher does not know, and has no label.
    """
    known = ~np.isnan(depth) if marks_invalid else np.ones(depth.shape, bool)
    values = depth[known]
    wrong = int(np.count_nonzero(~np.isfinite(values)))
    least, largest = (float(values.min()) + 0.0, float(values.max()) + 0.0) if values.size else (0.0, 0.0)  # +0.0: -0 is 0
    problem = _problem(number, box, size=depth.size, known=values.size, wrong=wrong, least=least, largest=largest)
    return problem or quantise(_on_box(depth, known, box), bits)


def _on_box(depth: Float32[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], box: Box | None) -> Label:
    """A prediction at the size in which it is stored; what is not known is invalid and 0."""
    if known.all():
        values = depth if box is None else onto_grid(depth, box.height, box.width)
        return Label(values=values, valid=np.ones(values.shape, bool))
    if box is None:
        return Label(values=np.where(known, depth, np.float32(0)), valid=known)
    values, valid = onto_grid_where(depth, known, box.height, box.width)
    return Label(values=values, valid=valid)


def _problem(number: int, box: Box | None, *, size: int, known: int, wrong: int, least: float, largest: float) -> Reason | None:
    """Why a prediction is no label. A patch may be constant, such as the sky's, or nowhere known; a context may not."""
    where = f"view {number}, {'a context' if box is None else 'a patch'}"
    if wrong:
        return Reason(kind="non_finite_label", message=f"{where}: {wrong} of {size} values are not finite")
    if box is None and not known:
        message = f"{where}: all {size} values are NaN, so the teacher knows none of its pixels"
        return Reason(kind="non_finite_label", message=message)
    if box is None and largest == least:
        everywhere = "everywhere" if known == size else f"at all {known} pixels that are known"
        return Reason(kind="constant_label", message=f"{where}: the prediction is {np.float32(least)} {everywhere}")
    return None


# --- on the device that has predicted -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LabelOnItsWay:
    """A label that a device makes: begun, and waited for by whoever calls it, in any thread."""

    box: Box | None
    number: int
    size: int
    codes: Tensor
    numbers: Tensor
    event: torch.cuda.Event | None

    def __call__(self) -> QuantisedLabel | Reason:
        """As `label_of`, which says the same to the last bit."""
        if self.event is not None:
            self.event.synchronize()
        known, wrong, scale, offset, pixels, code_sum, least, largest, error, said_least, said_largest = self.numbers.tolist()
        problem = _problem(
            self.number,
            self.box,
            size=self.size,
            known=int(known),
            wrong=int(wrong),
            least=said_least,
            largest=said_largest,
        )
        return problem or QuantisedLabel(
            codes=self.codes.numpy(),
            scale=np.float32(scale),
            offset=np.float32(offset),
            pixels=int(pixels),
            code_sum=int(code_sum),
            min=least,
            max=largest,
            error=error,
        )


def labels_on_device(
    depths: Float32[Tensor, "b h w"],
    boxes: Sequence[Box | None],
    numbers: Sequence[int],
    *,
    marks_invalid: bool = False,
    bits: int = LABEL_BITS,
) -> list[LabelOnItsWay]:
    """Begins, on the device where the predictions are, what `label_of` does with each; the host waits for nothing."""
    begun = [_begun(depth, box, marks_invalid, top_step(bits)) for depth, box in zip(depths, boxes, strict=True)]
    on_host = [(_to_host(codes), _to_host(facts)) for codes, facts in begun]
    event = torch.cuda.Event() if depths.is_cuda else None
    if event is not None:
        event.record(torch.cuda.current_stream(depths.device))
    return [
        LabelOnItsWay(box=box, number=number, size=depths[0].numel(), codes=codes, numbers=facts, event=event)
        for box, number, (codes, facts) in zip(boxes, numbers, on_host, strict=True)
    ]


def _begun(
    depth: Float32[Tensor, "h w"], box: Box | None, marks_invalid: bool, top_step: int
) -> tuple[Tensor, Float64[Tensor, "11"]]:
    """Codes, and what is to be known of them: all whole numbers below 2**53 or of float32, which float64 holds exactly."""
    known = ~depth.isnan() if marks_invalid else torch.ones_like(depth, dtype=torch.bool)
    values, valid = (depth, known) if box is None else _onto_box(depth, known, box)
    offset, top = _range(values, valid)
    scale = ((top.double() - offset.double()) / top_step).float()
    steps = (torch.where(valid, values, offset).double() - offset.double()) / scale.double()
    steps = torch.where(scale > 0, steps.round().clamp(0, top_step), 0.0)
    codes = torch.where(valid, steps + 1, 0.0).to(torch.int32)
    errors = (steps * scale.double() + offset.double()).float() - values
    said = _range(depth, known)
    pixels = valid.sum()
    nowhere = pixels == 0
    facts = [
        known.sum(),
        (known & ~depth.isfinite()).sum(),
        torch.where(nowhere, 0.0, scale),
        torch.where(nowhere, 0.0, offset),
        pixels,
        codes.sum(dtype=torch.int64),
        torch.where(nowhere, torch.nan, offset),
        torch.where(nowhere, torch.nan, top),
        torch.where(valid, errors.abs(), 0.0).amax(),
        *said,
    ]
    return codes.to(torch.uint16), torch.stack([fact.double() for fact in facts])


def _range(values: Float32[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> tuple[Tensor, Tensor]:
    """The least and the largest of the valid values."""
    return torch.where(valid, values, torch.inf).amin() + 0.0, torch.where(valid, values, -torch.inf).amax() + 0.0


def _onto_box(
    depth: Float32[Tensor, "h w"], known: Bool[Tensor, "h w"], box: Box
) -> tuple[Float32[Tensor, "h2 w2"], Bool[Tensor, "h2 w2"]]:
    """`onto_grid_where`, which is `onto_grid` where all is known: shares are 1 then, to the last bit or so."""
    share = _on_grid(known.double(), box)
    sums = _on_grid(torch.where(known, depth, 0.0).double(), box)
    valid, everywhere = share >= 0.5, known.all()
    means = torch.where(valid, sums / torch.where(valid, share, 1.0), 0.0)
    return torch.where(everywhere, sums, means).float(), valid


def _on_grid(values: Float64[Tensor, "h w"], box: Box) -> Float64[Tensor, "h2 w2"]:
    return _resampled(_resampled(values, box.height).T.contiguous(), box.width).T.contiguous()


def _resampled(lines: Float64[Tensor, "old n"], new: int) -> Float64[Tensor, "new n"]:
    """See `stages.views`; not one product of matrices, whose sums would have another order."""
    (first, *others), (weight, *weights) = _resampling(len(lines), new, lines.device)
    total = weight * lines[first]
    for index, weight in zip(others, weights, strict=True):
        total = total + weight * lines[index]
    return total


@cache
def _resampling(old: int, new: int, device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    places, weights = resampling(old, new)
    return torch.from_numpy(places).to(device).unbind(), torch.from_numpy(weights).to(device)[:, :, None].unbind()


def _to_host(values: Tensor) -> Tensor:
    """A copy that is begun and not waited for."""
    if not values.is_cuda:
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
