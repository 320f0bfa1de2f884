"""A checkpoint from a stranger is only data: it names no code and nothing elsewhere, and what is not data is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.models import ModelSpec, load_model


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _nested_attention(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["_attn_implementation"] = {"": "owner/kernel"}
    (folder / "config.json").write_text(json.dumps(config))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _header(length: int, header: bytes) -> bytes:
    return struct.pack("<Q", length) + header


def _safetensors(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def _setting(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: _edit(folder / "config.json", **changes)


def _processor(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: _edit(folder / "preprocessor_config.json", **changes)


_HUGE = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}).encode()
_HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "attention": (
        _setting(_attn_implementation="owner/kernel"),
        'attn_implementation is "owner/kernel": names code on the hub',
    ),
    "attention of a part": (_nested_attention, "names code on the hub"),
    "backbone": (_setting(backbone="owner/name", backbone_config=None), "backbone is .* outside of the checkpoint"),
    "weights": (_setting(transformers_weights="model.fp16.safetensors"), "transformers_weights is .* outside"),
    "quantized": (_setting(quantization_config={"quant_method": "bitsandbytes"}), "quantized weights are not supported"),
    "deep": (lambda f: (f / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000), "nested deeper than 32"),
    "long": (lambda f: (f / "config.json").write_bytes(b'{"a": "' + b"x" * (33 << 20) + b'"}'), "larger than 32 MB"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "found list, expected an object"),
    "no JSON": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config.json: no JSON"),
    "FIFO": (lambda f: _fifo(f / "preprocessor_config.json"), "no plain file"),
    "FIFO of weights": (lambda f: _fifo(f / "model.safetensors"), "no plain file"),
    "size": (_processor(size={"height": 1 << 40, "width": 1 << 40}), "size is 1099511627776, expected a side from 8 to 8192"),
    "multiple": (_processor(ensure_multiple_of=1 << 40), "ensure_multiple_of is 1099511627776"),
    "deviation": (_processor(image_std=[0, 1, 1]), "image_std is .*expected three numbers above 0"),
    "shards": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}'),
        "weight_map names '../other.safetensors'",
    ),
    "adapter": (lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}'), "an adapter"),
    "header too long": (_safetensors(_header(1 << 62, b"{}")), "damaged, or no safetensors file"),
    "header cut": (_safetensors(_header(1 << 20, b"{")), "damaged, or no safetensors file"),
    "header of no JSON": (_safetensors(_header(4, b"\x80\x04\x95.")), "damaged, or no safetensors file"),
    "header nested": (_safetensors(_header(4000, b"[" * 4000)), "damaged, or no safetensors file"),
    "shape of a yottabyte": (_safetensors(_header(len(_HUGE), _HUGE) + bytes(4)), "damaged, or no safetensors file"),
}


@pytest.mark.parametrize("attack", list(_HOSTILE))
def test_a_hostile_checkpoint_is_refused_in_words(families: Path, tmp_path: Path, attack: str):
    folder = shutil.copytree(families / "depth_anything", tmp_path / "copy")
    plant, message = _HOSTILE[attack]
    plant(folder)
    spec = ModelSpec(loader="transformers", checkpoint=str(folder), depth_space="disparity_affine_invariant")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(spec)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_2"},
        {"auto_map": {"AutoModelForDepthEstimation": "trap.Model", "AutoConfig": "trap.Config"}},
    ],
)
def test_attention_and_code_that_a_configuration_names_are_not_used(families: Path, tmp_path: Path, changes: dict[str, Any]):
    folder, images = shutil.copytree(families / "depth_anything", tmp_path / "copy"), np.full((1, 48, 48, 3), 99, np.uint8)
    spec = ModelSpec(loader="transformers", checkpoint=str(folder), depth_space="disparity_affine_invariant")
    wanted = load_model(spec).predict(images)
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    _edit(folder / "config.json", **changes)
    assert (load_model(spec).predict(images) == wanted).all()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["archive", "shape"])
def test_a_hostile_embedding_of_the_empty_text_is_refused_before_it_takes_memory(families: Path, tmp_path: Path, text: str):
    folder = shutil.copytree(families / "genpercept_77", tmp_path / "copy")
    path = folder / "empty_text_embed.npy"
    if text == "archive":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    else:
        path.write_bytes(path.read_bytes().replace(b"(77, 16), }      ", b"(77, 16000000), }"))
    spec = ModelSpec(loader="genpercept", checkpoint=str(folder), depth_space="disparity_affine_invariant")
    with pytest.raises(ValueError, match=r"empty_text_embed\.npy: (expected one array of floats|no whole array)"):
        load_model(spec)


def test_weights_that_were_loaded_stay_what_they_are_when_their_file_is_written_over(families: Path, tmp_path: Path):
    """Stored and used in float32, they would be mapped to the file."""
    folder, images = shutil.copytree(families / "depth_anything", tmp_path / "copy"), np.full((1, 48, 48, 3), 99, np.uint8)
    spec = ModelSpec(loader="transformers", checkpoint=str(folder), depth_space="disparity_affine_invariant")
    teacher = load_model(spec)
    wanted = teacher.predict(images)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.seek(size // 3)
        file.write(b"\x11" * (size // 2))
    assert (teacher.predict(images) == wanted).all()
