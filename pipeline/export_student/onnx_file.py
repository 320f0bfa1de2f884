"""A student as an ONNX file that takes pictures of any size and number, held against PyTorch before anybody uses it.

torch.export traces it with symbols for the number of pictures and for the rows and columns of patches; what takes one size
alone is refused. The input is what the student's image processor makes of pictures, the output what the network says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn

from manifests.errors import DistillError, RefusedError
from stages.distillation.student import load_network, patch_px_of, prepare_images
from stages.models.checkpoints import read_image_statistics

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT, OUTPUT = "pixel_values", "predicted_depth"
_OPSET = 18
_ALLOWED = {"float32": 1e-3, "float16": 5e-2}
"""Largest difference from PyTorch, as a share of the largest value."""
_CHECKED = ((1, 6, 6), (2, 5, 8), (1, 9, 4), (3, 4, 4))
"""Pictures, and rows and columns of patches of each."""


class OtherMapsError(DistillError):
    """The ONNX file does not say what the network says."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of the maps of an ONNX file from PyTorch's: the largest one, the largest value, and the sizes that were compared."""

    largest: float
    largest_value: float
    sizes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        share = self.largest / self.largest_value if self.largest_value else 0.0
        sizes = ", ".join(" x ".join(map(str, size)) for size in self.sizes)
        return (
            f"largest difference from PyTorch {self.largest:.3g}, {share:.2g} of the largest value ({sizes}, of a photograph)"
        )


class _Network(nn.Module):
    """Pictures to maps, without the library's record around them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        return self.network(pixel_values).predicted_depth


def refuse_without_packages() -> None:
    """Raises RefusedError where ONNX files cannot be written here."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise RefusedError(f"--onnx needs {', '.join(missing)}: pip install {' '.join(missing)} (the extra `onnx`)")


def write_onnx(folder: Path, path: Path, *, float16: bool) -> Difference:
    """Writes a student's network as ONNX, and compares what both say of a photograph.

    folder: of the checkpoint. float16: weights and inner values; input and output stay float32. Raises RefusedError for a
    network that is no student or takes one size alone, OtherMapsError, and OSError.
    """
    loaded = load_network(folder)
    network, patch_px = _Network(loaded).eval(), patch_px_of(loaded.config)
    model = _traced(network, patch_px, f"{folder}: a {loaded.config.model_type}").model_proto
    if float16:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    import onnx

    onnx.save(model, path)
    found = _compared(network, path, patch_px, folder)
    if not found.largest <= _ALLOWED["float16" if float16 else "float32"] * found.largest_value:
        path.unlink()
        raise OtherMapsError(f"{path}: {found}: not kept; expected at most {_ALLOWED['float16' if float16 else 'float32']:g}")
    return found


def _traced(network: _Network, patch_px: int, what: str) -> Any:
    size = torch.export.Dim
    shapes = {
        0: size("batch", min=1, max=1024),
        2: patch_px * size("rows", min=2, max=1024),
        3: patch_px * size("columns", min=2, max=1024),
    }
    example = torch.zeros(2, 3, 4 * patch_px, 5 * patch_px)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the library's own code
            program = torch.export.export(network, (example,), dynamic_shapes={INPUT: shapes}, strict=True)
            traced = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=_OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever the tracer makes of another network's code
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RefusedError(f"{what} that cannot be traced for pictures of any size: {reason}") from error
    assert traced is not None  # which it is only where it wrote a file itself
    return traced


def _compared(network: _Network, path: Path, patch_px: int, folder: Path) -> Difference:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest, largest_value, sizes = 0.0, 0.0, []
    for pictures in _pictures(patch_px, folder):
        with torch.no_grad():
            expected = network(torch.from_numpy(pictures)).numpy()
        (found,) = session.run([OUTPUT], {INPUT: pictures})
        if found.shape != expected.shape or not np.isfinite(found).all():
            path.unlink()
            what = f"found maps of {found.shape}" if found.shape != expected.shape else "found maps that are not finite"
            raise OtherMapsError(f"{path}: {what}, expected {expected.shape} of PyTorch: not kept")
        largest = max(largest, float(np.abs(found - expected).max()))
        largest_value = max(largest_value, float(np.abs(expected).max()))
        sizes.append(pictures.shape)
    return Difference(largest=largest, largest_value=largest_value, sizes=tuple(sizes))


def _pictures(patch_px: int, folder: Path) -> Iterator[Float32[np.ndarray, "b 3 h w"]]:
    """Batches of several sizes, made of a photograph in the public domain that matplotlib brings, turned for each."""
    mean, std = read_image_statistics(folder)
    with Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")) as image:
        photograph = image.convert("RGB")
    for count, rows, columns in _CHECKED:
        turned = [photograph.rotate(20 * i).resize((columns * patch_px, rows * patch_px)) for i in range(count)]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in turned])).permute(0, 3, 1, 2)
        yield prepare_images(pixels, tuple(mean), tuple(std)).numpy()
