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
from jaxtyping import Bool, Float32, Float64, UInt16
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
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for view, box in enumerate(boxes):
        groups.setdefault(box and (box.height, box.width), []).append(view)
    on_host: dict[int, tuple[Tensor, Tensor]] = {}
    for size, views in groups.items():  # at once: each kernel that is begun keeps the host from the network's own
        some = depths if len(groups) == 1 else torch.stack([depths[view] for view in views])
        codes, facts = map(_to_host, _begun(some, size, marks_invalid, top_step(bits)))
        on_host.update(zip(views, zip(codes, facts, strict=True), strict=True))
    event = torch.cuda.Event(blocking=True) if depths.is_cuda else None  # else it is asked for without a pause
    if event is not None:
        event.record(torch.cuda.current_stream(depths.device))
    return [
        LabelOnItsWay(
            box=box, number=number, size=depths[0].numel(), codes=on_host[view][0], numbers=on_host[view][1], event=event
        )
        for view, (box, number) in enumerate(zip(boxes, numbers, strict=True))
    ]


def _begun(
    depths: Float32[Tensor, "b h w"], size: tuple[int, int] | None, marks_invalid: bool, top_step: int
) -> tuple[UInt16[Tensor, "b h2 w2"], Float64[Tensor, "b 11"]]:
    """Codes, and what is to be known of them: all whole numbers below 2**53 or of float32, which float64 holds exactly."""
    known = ~depths.isnan() if marks_invalid else torch.ones_like(depths, dtype=torch.bool)
    if size is None:
        values, valid = depths, known
    elif marks_invalid:
        values, valid = _onto_box_where(depths, known, size)
    else:
        values = _on_grid(depths.double(), size).float()
        valid = torch.ones_like(values, dtype=torch.bool)
    offset, top = _range(values, valid)
    scale = ((top.double() - offset.double()) / top_step).float()
    steps = (torch.where(valid, values, offset).double() - offset.double()) / scale.double()
    steps = torch.where(scale > 0, steps.round().clamp(0, top_step), 0.0)
    codes = torch.where(valid, steps + 1, 0.0).to(torch.int32)
    errors = (steps * scale.double() + offset.double()).float() - values
    pixels = valid.sum((1, 2), keepdim=True)
    nowhere = pixels == 0
    facts = [
        known.sum((1, 2), keepdim=True),
        (known & ~depths.isfinite()).sum((1, 2), keepdim=True),
        torch.where(nowhere, 0.0, scale),
        torch.where(nowhere, 0.0, offset),
        pixels,
        codes.sum((1, 2), keepdim=True, dtype=torch.int64),
        torch.where(nowhere, torch.nan, offset),
        torch.where(nowhere, torch.nan, top),
        torch.where(valid, errors.abs(), 0.0).amax((1, 2), keepdim=True),
        *((offset, top) if size is None else _range(depths, known)),
    ]
    return codes.to(torch.uint16), torch.cat([fact.double() for fact in facts], 1)[..., 0]


def _range(
    values: Float32[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]
) -> tuple[Float32[Tensor, "b 1 1"], Float32[Tensor, "b 1 1"]]:
    """The least and the largest of the valid values of each map."""
    least = torch.where(valid, values, torch.inf).amin((1, 2), keepdim=True)
    return least + 0.0, torch.where(valid, values, -torch.inf).amax((1, 2), keepdim=True) + 0.0


def _onto_box_where(
    depths: Float32[Tensor, "b h w"], known: Bool[Tensor, "b h w"], size: tuple[int, int]
) -> tuple[Float32[Tensor, "b h2 w2"], Bool[Tensor, "b h2 w2"]]:
    """`onto_grid_where`, which is `onto_grid` where all is known: shares are 1 then, to the last bit or so."""
    share = _on_grid(known.double(), size)
    sums = _on_grid(torch.where(known, depths, 0.0).double(), size)
    valid, everywhere = share >= 0.5, known.all(2, keepdim=True).all(1, keepdim=True)
    means = torch.where(valid, sums / torch.where(valid, share, 1.0), 0.0)
    return torch.where(everywhere, sums, means).float(), valid


def _on_grid(values: Float64[Tensor, "b h w"], size: tuple[int, int]) -> Float64[Tensor, "b h2 w2"]:
    return _resampled(_resampled(values, size[0]).mT.contiguous(), size[1]).mT.contiguous()


def _resampled(lines: Float64[Tensor, "b old n"], new: int) -> Float64[Tensor, "b new n"]:
    """See `stages.views`; not one product of matrices, whose sums would have another order."""
    (first, *others), (weight, *weights) = _resampling(lines.shape[1], new, lines.device)
    total = weight * lines[:, first]
    for index, weight in zip(others, weights, strict=True):
        total = total + weight * lines[:, index]
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
