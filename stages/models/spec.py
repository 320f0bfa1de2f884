"""What a model is, in words that can be written down: everything that its predictions depend on, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.depth_space import DepthSpace

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
InputSize = int | Literal["stated", "native"]
"""A long side in pixels, the size that the checkpoint states for itself, or that of the picture as it comes."""


LATEST = "latest"
"""In the place of a commit: the newest, looked up once and recorded."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A depth model: how it is loaded, and what its numbers mean; in whatever role.

    Whatever is None here is the checkpoint's to say (see `stated`); what it says cannot be overruled.
    """

    name: str = "model"
    """What it is called: by its column, in results and in messages."""
    loader: str | None = None
    """transformers, lotus, genpercept, marigold, or a function of your own, `module:function` (docs/labelling.md). None takes
    the one that the checkpoint is laid out for."""
    checkpoint: str
    """A folder, or a hub id, owner/name or owner/name/folder; what a function of your own takes is its own affair."""
    depth_space: DepthSpace | None = None
    """What the numbers mean; to be stated for a checkpoint that does not say it."""
    revision: str | None = None
    """Full commit of the hub id, or `latest`, the newest, which is looked up once and recorded. None for one that is known here
    with its commit."""
    base: str | None = None
    """Where the other parts are of a UNet that is published alone, as GenPercept's are: a folder, or a hub id, in the layout of
    Stable Diffusion 2. None for a whole checkpoint, and for one that is known here with its base."""
    base_revision: str | None = None
    """Full commit of a base that is a hub id, or `latest`."""
    licence: str | None = None
    """Licence of the weights, recorded with every label; unknown where neither this nor the checkpoint says it."""
    dtype: Precision = "float32"
    """Precision of weights and activations; labels are float32 all the same. tf32 is float32 whose matrix products and
    convolutions a GPU may round to TF32. The last layers of a DPT head stay in float32."""
    compile: bool = False
    """Compile the network with `torch.compile`: minutes at the start, faster afterwards."""
    channels_last: bool = False
    """Keep the weights of convolutions with their channels last in memory, which a GPU may be faster with in half precision."""
    input_px: InputSize | None = None
    """Long side of the picture as the network sees it; `stated` is the size that the checkpoint states, `native` the
    picture's own. None is native too, but for known checkpoints that are worse at other sizes than their own."""
    steps: int | None = None
    """Denoising steps; marigold only. None takes those that the checkpoint states (`default_denoising_steps`)."""
    ensemble: int = 1
    """Predictions, each from its own noise, that are aligned and merged by their median; marigold only. No checkpoint states
    it; its authors score with 10."""

    @property
    def weights_dtype(self) -> str:
        """What weights and activations are kept in."""
        return "float32" if self.dtype == "tf32" else self.dtype

    @property
    def long_side_px(self) -> int | None:
        """`input_px` where it is a number."""
        return self.input_px if isinstance(self.input_px, int) else None

    @property
    def is_custom(self) -> bool:
        """Whether it is loaded by a function of the user's own."""
        return ":" in (self.loader or "")
