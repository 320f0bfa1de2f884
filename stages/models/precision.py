"""How exactly a GPU multiplies float32 numbers, as they are or with their inputs rounded to TF32 (10 bits of mantissa), and in
which order of memory it meets the weights of convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from stages.models.spec import ModelSpec


def allow_tf32(allowed: bool) -> None:
    """For matrix products and convolutions of this process alike; left alone, PyTorch rounds those of convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """`allow_tf32`, and afterwards what was before."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def in_memory_format(spec: ModelSpec, *networks: nn.Module) -> None:
    """Puts the weights of convolutions into the order that the spec asks for; what a convolution then gives has it too."""
    if spec.channels_last:
        for network in networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
