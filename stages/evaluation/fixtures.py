"""Small benchmarks in the exact layouts and encodings of the public ones, made of rendered scenes.

For tests, and for trying the evaluation without the data. Depth comes back from the readers exact to the encoding's step: 1 mm
on NYUv2 and ScanNet, 1/256 m on KITTI, float32 on DIODE and ETH3D. The sky has no depth.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from stages.evaluation.benchmarks import LIST_NAMES
from stages.evaluation.protocols import BenchmarkName
from stages.scenes import Scene, render_scene

_SIZES_PX: dict[BenchmarkName, tuple[int, int]] = {
    "nyuv2": (480, 640),
    "kitti": (375, 1242),
    "diode": (96, 128),
    "scannet": (96, 128),
    "eth3d": (64, 96),
}
"""Height and width; those of NYUv2 and KITTI are the real ones, which their evaluated regions need."""
_RENDERED_PX = 160
"""Long side that is rendered at most; what is larger repeats pixels."""


def write_benchmark(
    name: BenchmarkName,
    folder: Path,
    *,
    scenes: Sequence[int],
    tar: bool = False,
    height_px: int | None = None,
    width_px: int | None = None,
) -> Path:
    """Write a benchmark with one image per seed and its list, under Marigold's names; returns its folder or its tar.

    KITTI's list has a line without ground truth besides. Raises FileExistsError for a benchmark that is there already.
    """
    size_px = (height_px or _SIZES_PX[name][0], width_px or _SIZES_PX[name][1])
    lines: list[str] = []
    contents: dict[str, bytes] = {}
    for number, seed in enumerate(scenes):
        files = _files(name, number, benchmark_scene(seed, *size_px))
        contents |= {path: content for path, content in files if content is not None}
        lines.append(" ".join(path for path, _ in files))
    if name == "kitti":
        lines.append("2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000009999.png None 721.5377")
    contents[LIST_NAMES[name]] = "\n".join(lines).encode()  # without a final newline, as the public lists
    location = folder / f"{name}.tar" if tar else folder / name
    folder.mkdir(parents=True, exist_ok=True)
    if tar:
        _write_tar(location, contents)
    else:
        location.mkdir()
        for path, content in contents.items():
            (location / path).parent.mkdir(parents=True, exist_ok=True)
            (location / path).write_bytes(content)
    return location


def benchmark_scene(seed: int, height_px: int, width_px: int) -> Scene:
    """The scene that `write_benchmark` stores for a seed: at most 160 px are rendered, and repeated up to the size."""
    factor = max(1, -(-max(height_px, width_px) // _RENDERED_PX))
    scene = _rendered(seed, -(-height_px // factor), -(-width_px // factor))
    rgb, depth_m = (array.repeat(factor, 0).repeat(factor, 1)[:height_px, :width_px] for array in (scene.rgb, scene.depth_m))
    return Scene(rgb=rgb, depth_m=depth_m)


@lru_cache(16)  # several benchmarks have the same scenes at the same size
def _rendered(seed: int, height_px: int, width_px: int) -> Scene:
    return render_scene(seed, height_px=height_px, width_px=width_px)


def _files(name: BenchmarkName, number: int, scene: Scene) -> list[tuple[str, bytes | None]]:
    """The columns of an image's line, and the bytes of those that are files."""
    depth_m = scene.depth_m
    known = np.isfinite(depth_m)
    match name:
        case "nyuv2":
            depth = _image(_codes(depth_m, 1000))
            room, frame = f"test/rendered_{number % 2:04}", f"{number + 1:04}.png"
            return [
                (f"{room}/rgb_{frame}", _image(scene.rgb)),
                (f"{room}/depth_{frame}", depth),
                (f"{room}/filled_{frame}", depth),
            ]
        case "kitti":
            drive, frame = "2011_09_26_drive_0002_sync", f"{number:010}.png"
            return [
                (f"2011_09_26/{drive}/image_02/data/{frame}", _image(scene.rgb)),
                (f"{drive}/proj_depth/groundtruth/image_02/{frame}", _image(_codes(depth_m, 256))),
                ("721.5377", None),
            ]
        case "diode":
            place = ("indoors", "outdoor")[number % 2]
            stem = f"{place}/scene_00019/scan_00183/00019_00183_{place}_{number:03}_010"
            return [
                (f"{stem}.png", _image(scene.rgb)),
                (f"{stem}_depth.npy", _npy(np.where(known, depth_m, np.float32(0))[..., None])),
                (f"{stem}_depth_mask.npy", _npy(known.astype(np.float64))),
            ]
        case "scannet":
            stem = f"{number * 100:06}"
            return [
                (f"scene0000_00/color/{stem}.jpg", _image(scene.rgb, "JPEG")),
                (f"scene0000_00/depth/{stem}.png", _image(_codes(depth_m, 1000))),
            ]
        case "eth3d":
            shot = f"dslr_images/DSC_{number + 1:04}.JPG"
            return [
                (f"rgb/room/images/{shot}", _image(scene.rgb, "JPEG")),
                (f"depth/room_dslr_depth/room/ground_truth_depth/{shot}", depth_m.astype("<f4").tobytes()),
            ]


def _codes(depth_m: np.ndarray, codes_per_m: float) -> np.ndarray:
    codes = np.round(np.where(np.isfinite(depth_m), depth_m, 0) * np.float64(codes_per_m))
    return np.where(codes > np.iinfo(np.uint16).max, 0, codes).astype(np.uint16)  # beyond the encoding is no measurement


def _image(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"quality": 95} if form == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _write_tar(location: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(location, "x") as tar:
        for path, content in contents.items():
            member = tarfile.TarInfo(f"./{path}")  # as in Marigold's tars
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
