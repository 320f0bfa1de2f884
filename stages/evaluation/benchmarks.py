"""The five benchmarks in Marigold's layout, from a folder or a tar: pictures, true depth, and the pixels that are scored.

The list decides what is evaluated, and its hash names it. What the list asks for and cannot be read as expected raises
BenchmarkError: no image is left out without a word, except KITTI's lines without ground truth, which are counted.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from stages.evaluation.benchmark_files import (
    BenchmarkError,
    BenchmarkFiles,
    decode_float32,
    decode_mask,
    decode_npy,
    decode_picture,
    decode_png16,
    open_files,
)
from stages.evaluation.protocols import REGIONS, BenchmarkName, BenchmarkRules, ProtocolName, rules

LIST_NAMES: dict[BenchmarkName, str] = {
    "nyuv2": "filename_list_test.txt",
    "kitti": "eigen_test_files_with_gt.txt",
    "diode": "diode_val_all_filename_list.txt",
    "scannet": "scannet_val_sampled_list_800_1.txt",
    "eth3d": "eth3d_filename_list.txt",
}
"""What Marigold calls the list of each benchmark."""
_COLUMNS: dict[BenchmarkName, tuple[str, ...]] = {
    "nyuv2": ("rgb", "depth", "filled depth"),
    "kitti": ("rgb", "depth", "focal length"),
    "diode": ("rgb", "depth", "mask"),
    "scannet": ("rgb", "depth"),
    "eth3d": ("rgb", "depth"),
}
_READ_COLUMNS: dict[BenchmarkName, int] = {"nyuv2": 2, "kitti": 2, "diode": 3, "scannet": 2, "eth3d": 2}
"""How many columns are read; those that follow may be absent."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class BenchmarkSample:
    """One image. rgb: as on disk, on KITTI cropped. depth_m: metres, of the same size; nonsense where not valid.

    valid: the depth is in range, in the mask, and in the evaluated region; somewhere true.
    """

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float32[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A list and the files it names, in any order and from any process; made by `open_benchmark`.

    lines: the columns of each line that is evaluated. list_sha256: of the list's bytes. notes: what a reader of the numbers
    should know, such as another number of images than the published one.
    """

    rules: BenchmarkRules
    lines: tuple[tuple[str, ...], ...]
    list_name: str
    list_sha256: str
    notes: tuple[str, ...]
    files: BenchmarkFiles

    @property
    def _name(self) -> BenchmarkName:
        return cast(BenchmarkName, self.rules.benchmark)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def names(self) -> tuple[str, ...]:
        """The pictures' paths, in the list's order."""
        return tuple(line[0] for line in self.lines)

    def read(self, index: int) -> BenchmarkSample:
        """One image. Raises BenchmarkError, naming the file, for whatever is not as expected."""
        line = self.lines[index]
        if problem := _columns_problem(line, self._name):
            raise BenchmarkError(f"{self.list_name}: {problem}")
        rgb = decode_picture(self.files.read(line[0]), line[0])
        depth_m, valid = self._truth(line, rgb.shape[:2])
        for name, array in zip(line[1:], (depth_m, valid), strict=False):
            if array.shape != rgb.shape[:2]:
                raise BenchmarkError(f"{name}: {_size(array)} px, expected {_size(rgb)} as its picture {line[0]}")
        if self.rules.benchmark_crop is not None:
            window = _bottom_centre(rgb, self.rules.benchmark_crop, line[0])
            rgb, depth_m, valid = rgb[window], depth_m[window], valid[window]
        valid = valid & _region_mask(self.rules, rgb, line[0])
        if not valid.any():
            found = f"depth is {depth_m.min():g} to {depth_m.max():g} m"
            raise BenchmarkError(f"{line[1]}: no valid pixel, {found}; expected some under {self.rules.describe()}")
        truth_m = depth_m[valid]
        if bad := np.count_nonzero(~(np.isfinite(truth_m) & (truth_m > 0))):
            raise BenchmarkError(f"{line[1]}: depth is not finite and > 0 in {bad} of {truth_m.size} valid pixels")
        return BenchmarkSample(name=line[0], rgb=rgb, depth_m=depth_m, valid=valid)

    def check(self) -> tuple[str, ...]:
        """Every problem of the whole list that shows without decoding a picture; none where it can be evaluated."""
        found = [f"{self.list_name}: {problem}" for line in self.lines if (problem := _columns_problem(line, self._name))]
        if repeated := [name for name, times in Counter(self.names).items() if times > 1]:
            found.append(f"{self.list_name}: {len(repeated)} pictures are listed more than once: {_first(repeated)}")
        asked = [name for line in self.lines for name in line[: _READ_COLUMNS[self._name]]]
        if missing := [name for name in asked if not self.files.has(name)]:
            found.append(
                f"{len(missing)} of the {len(asked)} files in {self.list_name} are not in {self.files.location}:"
                f" {_first(missing)}; is this the list of these data?{self.files.because()}"
            )
        return tuple(found)

    def _truth(
        self, line: tuple[str, ...], size_px: tuple[int, ...]
    ) -> tuple[Float32[np.ndarray, "h w"], Bool[np.ndarray, "h2 w2"]]:
        """True depth, and where it is in range or in the mask; sizes are still to be compared."""
        content = self.files.read(line[1])
        match self._name:
            case "diode":
                return decode_npy(content, line[1]), decode_mask(self.files.read(line[2]), line[2])
            case "eth3d":
                depth_m = decode_float32(content, line[1], (size_px[0], size_px[1]))
            case "kitti":
                depth_m = decode_png16(content, line[1], 256)
            case "nyuv2" | "scannet":
                depth_m = decode_png16(content, line[1], 1000)
        low, high = self.rules.valid_min_m or 0.0, self.rules.valid_max_m or np.inf
        return depth_m, (depth_m > low) & (depth_m < high)


def open_benchmark(name: BenchmarkName, data: Path, *, protocol: ProtocolName, list_file: Path | None = None) -> Benchmark:
    """A benchmark in a folder or an uncompressed tar.

    list_file: paths in it are relative to `data`; None looks for Marigold's name in the data and beside them.
    Raises BenchmarkError for data that cannot be opened, and for a list that is absent, ambiguous, no text, or empty.
    """
    files = open_files(data)
    list_name, content = _found_list(name, files) if list_file is None else (str(list_file), _list_bytes(list_file))
    try:
        lines = [tuple(line.split()) for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{list_name}: not a list of file names in UTF-8: {error}") from error
    kept = tuple(line for line in lines if name != "kitti" or line[1:2] != ("None",))
    if not kept:
        raise BenchmarkError(f"{list_name}: lists no image with ground truth; expected lines of {', '.join(_COLUMNS[name])}")
    own = rules(name, protocol)
    notes = []
    if without := len(lines) - len(kept):
        notes.append(f"{without} lines of the list have no ground truth and are left out")
    if len(kept) != own.expected_images:
        notes.append(f"{len(kept)} images, where published figures are of {own.expected_images}")
    read = [each for line in kept for each in line[: _READ_COLUMNS[name]]]
    listed = {posixpath.normpath(each) for line in lines for each in line}
    if others := [each for each in files.beside(read) if each not in listed and posixpath.basename(each) != LIST_NAMES[name]]:
        notes.append(f"{len(others)} files beside the listed ones are not in the list: {_first(others)}")
    return Benchmark(
        rules=own,
        lines=kept,
        list_name=list_name,
        list_sha256=hashlib.sha256(content).hexdigest(),
        notes=tuple(notes),
        files=files,
    )


def input_picture(sample: BenchmarkSample, rules: BenchmarkRules) -> UInt8[np.ndarray, "h w 3"]:
    """What the model sees: the picture, or a copy with the rules' long side, bilinear and antialiased as Marigold's."""
    if rules.input_long_side_px is None:
        return sample.rgb
    height, width = sample.rgb.shape[:2]
    factor = rules.input_long_side_px / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    return np.asarray(Image.fromarray(sample.rgb).resize(size, Image.Resampling.BILINEAR))


def _found_list(name: BenchmarkName, files: BenchmarkFiles) -> tuple[str, bytes]:
    wanted = LIST_NAMES[name]
    inside, beside = files.named(wanted), files.location.parent / wanted
    found = [f"{files.location}/{each}" for each in inside] + ([str(beside)] if beside.is_file() else [])
    if len(found) != 1:
        what = f"several lists: {_first(found)}" if found else f"no {wanted} in it, nor beside it"
        raise BenchmarkError(f"{files.location}: {what}; expected one: name the list to use{files.because()}")
    return found[0], files.read(inside[0]) if inside else _list_bytes(beside)


def _list_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{path}: the list cannot be read: {error}") from error


def _columns_problem(line: Sequence[str], benchmark: BenchmarkName) -> str | None:
    columns = _COLUMNS[benchmark]
    if _READ_COLUMNS[benchmark] <= len(line) <= len(columns):
        return None
    return f"the line {' '.join(line)!r} has {len(line)} columns, expected {len(columns)}: {', '.join(columns)}"


def _bottom_centre(rgb: UInt8[np.ndarray, "h w 3"], crop: tuple[int, int], name: str) -> tuple[slice, slice]:
    top, left = rgb.shape[0] - crop[0], (rgb.shape[1] - crop[1]) // 2
    if min(top, left) < 0:
        raise BenchmarkError(f"{name}: {_size(rgb)} px, expected at least {crop[0]} x {crop[1]} for the benchmark's crop")
    return slice(top, top + crop[0]), slice(left, left + crop[1])


def _region_mask(rules: BenchmarkRules, rgb: UInt8[np.ndarray, "h w 3"], name: str) -> Bool[np.ndarray, "h w"]:
    region = REGIONS[rules.region]
    mask = np.full(rgb.shape[:2], region is None)
    if region is not None:
        if mask.shape != region.size_px:
            expected = "{} x {}".format(*region.size_px)
            raise BenchmarkError(f"{name}: {_size(rgb)} px, expected {expected}: the region {rules.region} is defined on it")
        mask[slice(*region.rows), slice(*region.columns)] = True
    return mask


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
