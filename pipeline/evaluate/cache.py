"""Predictions kept on disk, so that no picture is shown twice to the same model.

    FOLDER/<benchmark>/<model key>/<picture key>.pco      one float32 map, lossless
    FOLDER/<benchmark>/<model key>/model.json             what the model key stands for

A model key is the digest of all that decides a prediction beside the picture (the checkpoint's digest, the settings); a picture
key that of the picture's name and pixels as the model sees them. So a changed file, list or input size can never be answered
from an old prediction, and another protocol or list over the same pictures is. A file is its own sha256 (32 bytes), then
height and width (little-endian uint32), then the map's PCodec stream; it is written aside and renamed, and one that is damaged
counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numcodecs.pcodec import PCodec

import manifests

_DIGEST_BYTES = 32
_SIZE = struct.Struct("<II")


class PredictionStore:
    """The kept predictions of one benchmark; without a folder, none are."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def add_model(self, settings: Mapping[str, Any]) -> str:
        """The key of a model with these settings, which are written down beside its predictions."""
        described = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
        key = hashlib.sha256(described).hexdigest()[:32]
        if self._folder is not None:
            (self._folder / key).mkdir(parents=True, exist_ok=True)
            manifests.write_replacing(self._folder / key / "model.json", described)
        return key

    def load(self, model_key: str, picture_key: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "h w"] | None:
        """The map of a picture of this height and width; None where there is none, or a damaged one."""
        path = self._path(model_key, picture_key)
        if path is None or not path.is_file():
            return None
        content = path.read_bytes()
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest or body[: _SIZE.size] != _SIZE.pack(*shape):
            return None
        return np.asarray(PCodec().decode(body[_SIZE.size :])).view(np.float32).reshape(shape)

    def save(self, model_key: str, picture_key: str, prediction: Float32[np.ndarray, "h w"]) -> None:
        """Keep a map, in place of whatever stood there."""
        if path := self._path(model_key, picture_key):
            body = _SIZE.pack(*prediction.shape) + bytes(PCodec().encode(np.ascontiguousarray(prediction)))
            manifests.write_replacing(path, hashlib.sha256(body).digest() + body)

    def _path(self, model_key: str, picture_key: str) -> Path | None:
        return self._folder and self._folder / model_key / f"{picture_key}.pco"


def picture_key(name: str, picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """Digest of a picture's name, size and pixels; the name counts because a diffusion model's noise is drawn from it."""
    digest = hashlib.sha256(f"{name}\0{picture.shape}\0".encode("utf-8", "surrogatepass"))
    digest.update(picture.tobytes())
    return digest.hexdigest()[:32]
