"""Gradients summed over devices, while the backward pass that makes them is still at work.

DistributedDataParallel does this from within the network, and needs to know of every parameter that a pass does not use. Here
the first sum shows which those are: it is made after the pass, in one piece; from then on parameters that have gradients are
summed in buckets, each as soon as it and those before it are complete. All devices sum the same buckets in the same order,
whatever happens on one of them; so none waits for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_BYTES = 1 << 25  # large enough for a link's full speed; ViT-L has some 40 of them


class GradientSum:
    """Sums the gradients of `parameters`, which are those of one network on every device, in the order of their use."""

    def __init__(self, parameters: Sequence[nn.Parameter], bucket_bytes: int = _BUCKET_BYTES) -> None:
        self._parameters, self._bucket_bytes = list(parameters), bucket_bytes
        self._buckets: list[list[nn.Parameter]] | None = None

    def backward(self, loss: Tensor) -> None:
        """The last backward pass of a step: afterwards every gradient is the sum of what each device has accumulated."""
        if not dist.is_initialized():
            loss.backward()
        elif self._buckets is None:
            loss.backward()
            used = [parameter for parameter in self._parameters if parameter.grad is not None]
            self._buckets = _buckets(used[::-1], self._bucket_bytes)  # the last layers' gradients come first
            _Pass([used]).finish()
        else:
            this_pass = _Pass(self._buckets)
            handles = [p.register_post_accumulate_grad_hook(this_pass.ready) for bucket in self._buckets for p in bucket]
            try:
                loss.backward()
            finally:
                for handle in handles:
                    handle.remove()
            this_pass.finish()


class _Pass:
    """One backward pass: which gradients are there, and the sums that are under way."""

    def __init__(self, buckets: Sequence[Sequence[nn.Parameter]]) -> None:
        self._buckets = buckets
        self._missing = [{id(parameter) for parameter in bucket} for bucket in buckets]
        self._bucket_of = {parameter: number for number, missing in enumerate(self._missing) for parameter in missing}
        self._sums: list[tuple[Tensor, dist.Work | None]] = []

    def ready(self, parameter: Tensor) -> None:
        """A gradient is complete: begin the sums of all buckets that are, in their order."""
        self._missing[self._bucket_of[id(parameter)]].discard(id(parameter))
        while len(self._sums) < len(self._buckets) and not self._missing[len(self._sums)]:
            self._begin()

    def finish(self) -> None:
        """Sum what is left, and put every sum in its place; a gradient that a device lacks counts as 0."""
        while len(self._sums) < len(self._buckets):
            self._begin()
        for bucket, (flat, work) in zip(self._buckets, self._sums, strict=True):
            if work is not None:
                work.wait()
            for parameter, summed in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                summed = summed.view_as(parameter)
                if parameter.grad is None:
                    parameter.grad = summed.clone()
                else:
                    parameter.grad.copy_(summed)

    def _begin(self) -> None:
        bucket = self._buckets[len(self._sums)]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        self._sums.append((flat, dist.all_reduce(flat, async_op=True)))


def _buckets(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Parameters in their order, cut where a bucket is full."""
    ends = itertools.accumulate(parameter.numel() * parameter.element_size() for parameter in parameters)
    pairs = zip(parameters, ends, strict=True)
    return [[p for p, _ in group] for _, group in itertools.groupby(pairs, key=lambda pair: (pair[1] - 1) // bucket_bytes)]
