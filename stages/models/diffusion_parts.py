"""What diffusion networks have in common: a UNet, a VAE, and the embedding of the empty text, by which they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file
from torch import Tensor

from manifests.errors import RefusedError
from stages.models.checkpoints import read_json
from stages.models.loading import load_diffusers, load_transformers

EMPTY_TEXT = "empty_text_embedding.safetensors"
EMPTY_TEXT_NUMPY = "empty_text_embed.npy"
"""The name in GenPercept's repository."""
EMPTY_TEXT_CONFIG = "empty_text_config.json"
"""How many `tokens` the text encoder is to be shown; 2 where there is no such file."""
_TOKENS = (2, 77)
_LARGEST_TEXT = 77 * 8192


class DiffusionParts(NamedTuple):
    """The networks of a checkpoint, and its empty text as they take it; the text encoder is used once and not kept."""

    vae: Any
    unet: Any
    text: Float[Tensor, "1 tokens width"]


def load_parts(folder: Path, dtype: torch.dtype, device: str) -> DiffusionParts:
    """Raises as `load_diffusers` and `empty_text_embedding` do."""
    vae = load_diffusers("AutoencoderKL", folder / "vae", dtype, device)
    unet = load_diffusers("UNet2DConditionModel", folder / "unet", dtype, device)
    text = empty_text_embedding(folder, unet.config.cross_attention_dim).to(device, dtype)
    return DiffusionParts(vae=vae, unet=unet, text=text)


def empty_text_embedding(folder: Path, width: int) -> Float32[Tensor, "1 tokens width"]:
    """The embedding of the empty text that a checkpoint comes with: a stored one, or its text encoder's.

    The published ones of 77 and of 2 tokens give different results, so none is guessed. Raises FileNotFoundError where the
    folder has none, ValueError where it has several or one of another shape.
    """
    makers = {EMPTY_TEXT: _from_safetensors, EMPTY_TEXT_NUMPY: _from_numpy, "text_encoder": _from_encoder}
    found = [name for name in makers if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no embedding of the empty text; expected {EMPTY_TEXT} or {EMPTY_TEXT_NUMPY} ([77 or 2, {width}]), or "
            "the folders text_encoder and tokenizer (pickles are never loaded)"
        )
    if len(found) > 1:
        raise RefusedError(f"{folder}: several empty texts: {', '.join(found)}; keep the one it was trained with")
    text = makers[found[0]](folder).float().clone()  # not mapped to the file
    text = text.reshape(1, *text.shape[-2:])
    if text.shape[1] not in _TOKENS or text.shape[2] != width:
        shape = list(text.shape[1:])
        raise RefusedError(f"{folder}/{found[0]}: the embedding has shape {shape}, expected [77 or 2, {width}] for this UNet")
    return text


def _from_safetensors(folder: Path) -> Tensor:
    tensors = load_file(folder / EMPTY_TEXT)
    if len(tensors) != 1:
        raise RefusedError(
            f"{folder}/{EMPTY_TEXT}: found {len(tensors)} tensors, expected one, the embedding of the empty text"
        )
    return next(iter(tensors.values()))


def _from_numpy(folder: Path) -> Tensor:
    """Mapped and not read, so that its shape can be refused before it takes memory."""
    where = f"{folder}/{EMPTY_TEXT_NUMPY}"
    try:
        array = np.load(folder / EMPTY_TEXT_NUMPY, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise RefusedError(f"{where}: no whole array of numbers, and a pickle is never loaded: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.size > _LARGEST_TEXT:
        raise RefusedError(f"{where}: expected one array of floats of an embedding's size")
    return torch.from_numpy(np.array(array))


@torch.inference_mode()
def _from_encoder(folder: Path) -> Tensor:
    """Begin and end of text without padding, as Marigold, Lotus and GenPercept v2 have it, or padded to 77 tokens, as
    GenPercept v1 has it; the encoder is not kept."""
    from transformers import CLIPTokenizer

    for path in (folder / "tokenizer").glob("*.json"):
        read_json(path)
    encoder = load_transformers("CLIPTextModel", folder / "text_encoder", torch.float32, "CLIPTextConfig").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    padding = "max_length" if read_json(folder / EMPTY_TEXT_CONFIG).get("tokens") == max(_TOKENS) else "do_not_pad"
    tokens = tokenizer("", padding=padding, max_length=max(_TOKENS), return_tensors="pt").input_ids
    return encoder(tokens)[0]
