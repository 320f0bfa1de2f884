"""Position embeddings of frozen vision transformers, resized once for each size of picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_SIZES = 64
"""Of pictures, that an encoder remembers: photographs that are labelled whole come in many."""


def remember_positions(network: nn.Module) -> None:
    """Has the network keep what it makes of its position embeddings, which changes with the picture's size alone.

    The library resizes them in each pass: 3 of 20 ms of a batch of Depth Anything v2 Small on an H100. The
    network's weights must not change afterwards.
    """
    for module in network.modules():
        resize = getattr(module, "interpolate_pos_encoding", None)
        if resize is not None:
            module.interpolate_pos_encoding = _remembered(resize)  # type: ignore[assignment]


def _remembered(resize: Callable[[Tensor, int, int], Tensor]) -> Callable[[Tensor, int, int], Tensor]:
    found: dict[Any, Tensor] = {}

    def resized(embeddings: Tensor, height: int, width: int) -> Tensor:
        """See the library's: positions for tokens of a picture of height x width pixels."""
        key = height, width, embeddings.shape[1:], embeddings.device, embeddings.dtype
        if key not in found:
            if len(found) == _SIZES:
                found.clear()
            found[key] = resize(embeddings, height, width)
        return found[key]

    return resized
