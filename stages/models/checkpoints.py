"""Checkpoints in the hub's formats: where one is, what decides its output, whether it is whole, and whether it is only data.

A checkpoint is a folder, or a hub id fetched into one, and may come from a stranger. Nothing in it is ever executed: only
safetensors, NumPy arrays, JSON and text are read, pickled weights (`.bin`, `.pt`, `.pth`) never, and it cannot name
code, weights or another checkpoint that lie elsewhere. A network that lacks a weight is refused, because both libraries fill
gaps with random numbers. Knows nothing of any particular network, and imports none.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from manifests.errors import DistillError, RefusedError

OWN_ATTENTION = None
"""Given as `attn_implementation` to every `from_pretrained`, together with a configuration that was read before: each part of a
network takes the library's choice for it, `sdpa` or `eager`, whatever its config.json says."""

_WORDS = ("*.json", "README.md")
_FETCHED = (*_WORDS, "*.safetensors", "*.npy", "merges.txt", "*/merges.txt")
NOT_FETCHED = ("*.fp16.safetensors", "*.non_ema.safetensors")
"""Other copies of the same weights."""
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(/(?P<inner>[\w.-]+(/[\w.-]+)*))?")
_LARGEST_JSON_BYTES = 32 << 20
_DEEPEST_JSON = 32
_DECIDING = (".safetensors", ".npy", "config.json", "index.json", "vocab.json", "merges.txt", "tokenizer.json", "_map.json")


class CheckpointChangedError(DistillError, ValueError):
    """A checkpoint is not the one that was looked at before."""


def checkpoint_folder(
    checkpoint: str, revision: str | None = None, *, words_only: bool = False, patterns: Sequence[str] = _FETCHED
) -> Path:
    """The local folder of a checkpoint: itself, or the hub's snapshot at a revision, or a folder in that.

    words_only: of a hub id, fetch what it says of itself and no weights. patterns: of the files that are fetched otherwise.
    Raises FileNotFoundError for what is neither a folder nor a hub id, and OSError where the hub has or gives no such thing.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    found = _HUB_ID.fullmatch(checkpoint) if is_hub_id(checkpoint) else None
    if not found:
        raise FileNotFoundError(
            f"checkpoint {checkpoint!r}: no such folder, and not a hub id of the form owner/name (or owner/name/folder)"
        )
    inner = found["inner"] or ""
    try:
        fetched = snapshot_download(
            found["repository"],
            revision=revision,
            allow_patterns=[f"{inner}/{pattern}".lstrip("/") for pattern in (_WORDS if words_only else patterns)],
            ignore_patterns=list(NOT_FETCHED),
        )
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{found['repository']} at {revision or 'its main branch'}: not in the hub's cache here, and the hub is "
            "not asked or cannot be reached; fetch it where it can be (hf download), or name a local folder"
        ) from error
    folder = Path(fetched) / inner
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{found['repository']} at {Path(fetched).name}: has no folder {inner}, or it is not in the cache"
        )
    return folder


def is_hub_id(checkpoint: str) -> bool:
    """Whether a name that is no folder here has the form owner/name, or owner/name/folder.

    A longer one whose beginning is a folder here is a misspelt path.
    """
    parts = checkpoint.split("/")
    if Path(checkpoint).is_dir() or not _HUB_ID.fullmatch(checkpoint) or checkpoint.startswith(".") or {".", ".."} & {*parts}:
        return False
    return len(parts) == 2 or not Path(parts[0]).exists()


def commit_of(checkpoint: str, folder: Path) -> str | None:
    """The commit of a hub id's folder, as `checkpoint_folder` gives it; None for a checkpoint that is a folder."""
    if not is_hub_id(checkpoint):
        return None
    return [folder, *folder.parents][checkpoint.count("/") - 1].name


def checkpoint_sha256(folder: Path) -> str:
    """One digest over the names and contents of all that decides a checkpoint's output: weights, configurations, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # A variant that another program fetched beside ours is not what we load.
        variant = any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in NOT_FETCHED)
        if variant or not path.name.endswith(_DECIDING) or not path.is_file():
            continue
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def refuse_changed(folder: Path, sha256: str) -> None:
    """Raises CheckpointChangedError where the digest is another one; asked after loading, it is that of what was loaded."""
    if (found := checkpoint_sha256(folder)) != sha256:
        raise CheckpointChangedError(
            f"{folder}: the files have changed while this command ran: their sha256 was {sha256:.16}, now {found:.16}; leave "
            "them alone, and run the command again"
        )


# --- what may come from a stranger ----------------------------------------------------------------------------------


def require_safetensors(folder: Path) -> None:
    """Makes sure that a network's folder has weights in safetensors and is only data, before a library is shown it.

    Raises FileNotFoundError without such weights, naming the pickles that are there instead, and ValueError for a file that is
    damaged, too large or no plain file, and for a configuration that names code or weights outside of the folder.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        found = f"only {', '.join(pickles)}, which can run code when loaded and never is" if pickles else "none"
        raise FileNotFoundError(
            f"{folder}: weights: found {found}; expected *.safetensors. Take a revision that has them, or convert the weights "
            "once, where you trust them: load them with the library they come from and call save_pretrained"
        )
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if path.name == "config.json":
            refuse_foreign(content, str(path))
        elif path.name.endswith(".safetensors.index.json"):
            _refuse_shards_elsewhere(content, path)
        elif path.name == "adapter_config.json":
            raise RefusedError(f"{path}: an adapter, which names another checkpoint; expected whole weights: merge them first")
    for path in weights:
        _refuse_damaged(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file; empty where there is no such file.

    Raises ValueError, naming the file, for what is no plain file, larger than 32 MB, nested deeper than 32, no JSON, or no
    object.
    """
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise RefusedError(f"{path}: no plain file, or a link to nothing; expected JSON")
        return {}
    with path.open("rb") as file:
        text = file.read(_LARGEST_JSON_BYTES + 1)
    if len(text) > _LARGEST_JSON_BYTES:
        raise RefusedError(f"{path}: larger than {_LARGEST_JSON_BYTES >> 20} MB, more than any checkpoint's JSON")
    try:
        content = json.loads(text)
    except RecursionError:
        content = None
        depth = _DEEPEST_JSON + 1
    except ValueError as error:
        raise RefusedError(f"{path}: no JSON: {error}") from error
    else:
        depth = _depth(content)
    if depth > _DEEPEST_JSON:
        raise RefusedError(f"{path}: nested deeper than {_DEEPEST_JSON}, more than any checkpoint's JSON")
    if not isinstance(content, dict):
        raise RefusedError(f"{path}: found {type(content).__name__}, expected an object")
    return content


def _depth(content: Any) -> int:
    """Of the containers within each other."""
    level, depth = [content], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        level, depth = [part for item in level for part in (item.values() if isinstance(item, dict) else item)], depth + 1
    return depth


def refuse_foreign(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for a network's configuration that names code or weights outside of its folder."""
    for key, value in _settings(config):
        if key.lstrip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in json.dumps(value):
            what, instead = "names code on the hub", "no such entry: we choose the implementation"
        elif key in ("backbone", "use_pretrained_backbone", "use_timm_backbone", "transformers_weights") and value:
            what, instead = "names weights outside of the checkpoint", "a backbone_config, and the usual names of files"
        elif key == "quantization_config" and value:
            what, instead = "quantized weights are not supported", "plain ones"
        else:
            continue
        raise RefusedError(f"{where}: {key} is {json.dumps(value):.200}: {what}; expected {instead}")


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration and of those within it."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _settings(value)


def _refuse_shards_elsewhere(index: Mapping[str, Any], path: Path) -> None:
    shards = index.get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {""}
    if wrong := sorted(name for name in names if not name.endswith(".safetensors") or Path(name).name != name):
        raise RefusedError(f"{path}: weight_map names {wrong[0]!r}; expected *.safetensors files beside it")


def _refuse_damaged(path: Path) -> None:
    if not path.is_file():
        raise RefusedError(f"{path}: no plain file, or a link to nothing; expected weights in safetensors")
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except SafetensorError as error:
        raise RefusedError(f"{path}: damaged, or no safetensors file: {error}; fetch it again") from error


# --- what is loaded -------------------------------------------------------------------------------------------------


def complete(loaded: tuple[Any, Mapping[str, Any]], folder: Path) -> Any:
    """The network of `from_pretrained(..., output_loading_info=True)`. Raises ValueError where it misses a weight.

    Its weights are its own: the libraries leave those that need no conversion mapped to the file, so that whoever writes into
    that file would change a network that is at work.
    """
    model, report = loaded
    for gap in ("missing_keys", "mismatched_keys"):
        if names := [str(name) for name in report.get(gap) or ()]:
            raise RefusedError(
                f"{folder}: {len(names)} weights are {gap.removesuffix('_keys')} in the checkpoint: {', '.join(names[:5])}"
            )
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The checkpoint's `preprocessor_config.json`; the image processors that read it want torchvision.

    Raises FileNotFoundError where it is missing, since an input prepared otherwise gives labels that are silently wrong.
    """
    path = folder / "preprocessor_config.json"
    if not (content := read_json(path)):
        raise FileNotFoundError(f"{path}: not there; it must say how pictures are prepared, image_mean and image_std at least")
    return content


def read_image_statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of the network's input, of pictures in [0, 1].

    Raises as `read_preprocessor`, and ValueError where they are not three numbers each.
    """
    content = read_preprocessor(folder)
    for name in ("image_mean", "image_std"):
        found = content.get(name)
        numbers = [value for value in found if _is_number(value)] if isinstance(found, list) else []
        if not isinstance(found, list) or not len(found) == len(numbers) == 3 or (name == "image_std" and min(numbers) <= 0):
            what = "three numbers" if name == "image_mean" else "three numbers above 0"
            path = folder / "preprocessor_config.json"
            raise RefusedError(f"{path}: {name} is {json.dumps(found):.200}, expected {what}")
    return content["image_mean"], content["image_std"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
