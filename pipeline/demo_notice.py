"""Where the demo's small networks meet photographs: they know only rendered scenes, and that is said, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

DEMO_CHECKPOINTS = Path(__file__).resolve().parent / "demo_checkpoints"
ONLY_SCENES = (
    "The demo's networks know only rendered scenes: their maps of photographs, and a student of these, are a try-out of the "
    "pipeline. For labels to use, leave --preset demo out (Depth Anything v2 Large and GenPercept), or give --preset lotus "
    "(Depth Anything v2 Large and Lotus-D)."
)


def is_of_the_demo(sha256: object) -> bool:
    """Whether weights of this digest are those of one of the demo's checkpoints."""
    from stages.models.checkpoints import checkpoint_sha256  # here, as `label --help` reads this module

    return sha256 in {checkpoint_sha256(DEMO_CHECKPOINTS / name) for name in ("primary", "assistant", "student")}


def made_by_the_demo(model: str) -> bool:
    """Whether a model's folder is one of the demo's checkpoints, or a student that a training began from the demo's."""
    folder = Path(model)
    if folder.resolve().parent == DEMO_CHECKPOINTS:
        return True
    try:
        return json.loads((folder / "training.json").read_text(encoding="utf-8"))["settings"]["student"] == "demo"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
