"""How exactly a GPU multiplies float32 numbers: as they are, or with their inputs rounded to TF32 (10 bits of mantissa)."""

from __future__ import annotations

import torch


def allow_tf32(allowed: bool) -> None:
    """For matrix products and convolutions of this process alike; left alone, PyTorch rounds those of convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
