"""What every loader does around its network: pictures to tensors, sizes, maps back to the pictures' size, memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

_OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "not enough memory", "CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED"),
    *("unable to find an engine", "Unable to find a valid cuDNN algorithm"),  # cuDNN's, where none fits into what is left
)


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turns each of the ways in which memory runs out (CPU allocator, cuDNN, cuBLAS, NumPy) into torch.OutOfMemoryError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)
        if known and not isinstance(error, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(str(error) or "out of memory") from error
        raise


def to_tensor(images: UInt8[np.ndarray, "b h w 3"], device: str) -> Float32[Tensor, "b 3 h w"]:
    """Pictures in [0, 1] on the device."""
    pictures = torch.tensor(images)
    if device.startswith("cuda"):  # from pinned memory the copy is begun, and not waited for
        pictures = pictures.pin_memory()
    return pictures.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def network_size(
    height: int,
    width: int,
    *,
    multiple: int,
    input_px: int | None = None,
    keep_aspect: bool = True,
    floors: bool = False,
) -> tuple[int, int]:
    """Height and width of a picture as the network sees it: long side `input_px` or as it is, each the nearest multiple.

    Without `keep_aspect`, `input_px` is the side of a square. At most half a multiple away from the aspect of the picture; with
    `floors`, which takes the largest multiples that are not above, a whole one.
    """
    scale = input_px / max(height, width) if input_px else 1
    sides = (input_px, input_px) if input_px and not keep_aspect else (height * scale, width * scale)
    rows, columns = (max(int(side // multiple) if floors else round(side / multiple), 1) for side in sides)
    return rows * multiple, columns * multiple


def stated_size(
    height: int, width: int, *, stated_px: tuple[int, int], multiple: int, keep_aspect: bool = True
) -> tuple[int, int]:
    """Height and width that the library's processor gives a picture, for a checkpoint that states `stated_px`.

    With the aspect kept, both sides are scaled by that of the two factors which changes the picture less: a landscape's short
    side comes to the stated size, and so does a small portrait's. Each side is then the nearest multiple, and at least one.
    """
    scale_y, scale_x = stated_px[0] / height, stated_px[1] / width
    if keep_aspect:
        scale_y = scale_x = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
    return max(round(scale_y * height / multiple), 1) * multiple, max(round(scale_x * width / multiple), 1) * multiple


def resize_pictures(
    pixels: Float[Tensor, "b 3 h w"], size: tuple[int, int], *, bicubic: bool = True, antialias: bool = True
) -> Float[Tensor, "b 3 h2 w2"]:
    """Pictures in [0, 1] at another size, untouched where they have it."""
    if size == tuple(pixels.shape[-2:]):
        return pixels
    mode = "bicubic" if bicubic else "bilinear"
    return F.interpolate(pixels, size, mode=mode, antialias=antialias, align_corners=False).clamp(0, 1)


def resize_maps(maps: Float[Tensor, "b h2 w2"], height: int, width: int, *, bicubic: bool = False) -> Float32[Tensor, "b h w"]:
    """Bilinear, because bicubic overshoots below zero at depth edges; that is cut off at each map's own least and largest."""
    maps = maps.float()
    if (height, width) == tuple(maps.shape[-2:]):
        return maps
    if bicubic:
        resized = F.interpolate(maps[:, None], (height, width), mode="bicubic", align_corners=False)[:, 0]
        return resized.clamp(maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True))
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", antialias=True, align_corners=False)[:, 0]
