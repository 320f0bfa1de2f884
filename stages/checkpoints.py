"""Checkpoints in the hub's formats: where one is, what decides its output, and whether it is whole.

A checkpoint is a folder, or a hub id fetched into one. Nothing in it is ever executed: only safetensors, NumPy arrays, JSON
and text are fetched or read, pickled weights (`.bin`, `.pt`, `.pth`) never. A network that lacks a weight is refused, because
both libraries fill gaps with random numbers. Knows nothing of any particular network, and imports none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

_FETCHED = ("*.safetensors", "*.json", "*.npy", "merges.txt", "*/merges.txt")
_NOT_FETCHED = ("*.fp16.safetensors", "*.non_ema.safetensors")  # other copies of the same weights
_DECIDING = (".safetensors", ".npy", "config.json", "index.json", "vocab.json", "merges.txt", "tokenizer.json", "_map.json")


def checkpoint_folder(checkpoint: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: itself, or the hub's snapshot at a revision.

    Raises FileNotFoundError for what is neither a folder nor a hub id, and OSError where the hub has or gives no such thing.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if not is_hub_id(checkpoint):
        raise FileNotFoundError(f"checkpoint {checkpoint!r}: no such folder, and not a hub id of the form owner/name")
    fetched = snapshot_download(
        checkpoint, revision=revision, allow_patterns=list(_FETCHED), ignore_patterns=list(_NOT_FETCHED)
    )
    return Path(fetched)


def is_hub_id(checkpoint: str) -> bool:
    """Whether a name that is no folder here has the form owner/name."""
    return not Path(checkpoint).is_dir() and not checkpoint.startswith((".", "/")) and checkpoint.count("/") == 1


def checkpoint_sha256(folder: Path) -> str:
    """One digest over the names and contents of all that decides a checkpoint's output: weights, configurations, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # A variant that another program fetched beside ours is not what we load.
        variant = any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in _NOT_FETCHED)
        if variant or not path.name.endswith(_DECIDING) or not path.is_file():
            continue
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def require_safetensors(folder: Path) -> None:
    """Raises FileNotFoundError for a folder without weights in safetensors, naming the pickles that are there instead."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    found = f"only {', '.join(pickles)}, which can run code when loaded and never is" if pickles else "none"
    raise FileNotFoundError(
        f"{folder}: weights: found {found}; expected *.safetensors. Take a revision that has them, or convert the weights "
        "once, where you trust them: load them with the library they come from and call save_pretrained"
    )


def complete(loaded: tuple[Any, Mapping[str, Any]], folder: Path) -> Any:
    """The network of `from_pretrained(..., output_loading_info=True)`. Raises ValueError where it misses a weight."""
    model, report = loaded
    for gap in ("missing_keys", "mismatched_keys"):
        if names := [str(name) for name in report.get(gap) or ()]:
            raise ValueError(
                f"{folder}: {len(names)} weights are {gap.removesuffix('_keys')} in the checkpoint: {', '.join(names[:5])}"
            )
    return model


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The checkpoint's `preprocessor_config.json`; the image processors that read it want torchvision.

    Raises FileNotFoundError where it is missing: an input prepared otherwise gives labels that are silently wrong.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; it must say how pictures are prepared, image_mean and image_std at least")
    return json.loads(path.read_text(encoding="utf-8"))


def read_image_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of the network's input, of pictures in [0, 1]. Raises FileNotFoundError."""
    processor = read_preprocessor(folder)
    return processor["image_mean"], processor["image_std"]
