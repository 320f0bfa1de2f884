"""A person's own pictures with true depth, scored as a benchmark is: found in a folder or by a list, read pair by pair.

Three layouts. A folder with `rgb/` (or `images/`) and `depth/`, whose files have the same names up to their suffixes. One
folder, with `NAME_rgb.jpg` or `rgb_NAME.jpg` beside `NAME_depth.png` or `depth_NAME.png`, where the picture may be plain
`NAME.jpg`, and depth as .npy or .pfm plain too. A list of two columns, picture and depth, from the list's own folder on. A pair
of which a half is missing, or is not as it must be, raises BenchmarkError when it is read: it is named, and no other suffers.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped, UInt8
from PIL import ExifTags, Image

from stages.evaluation.benchmark_files import BenchmarkError, BenchmarkFiles, decode_any_npy, decode_grey
from stages.evaluation.benchmarks import BenchmarkSample
from stages.evaluation.metrics import DISPARITY_FLOOR
from stages.evaluation.protocols import BenchmarkRules, ProtocolName
from stages.sources.photographs import PictureRejectedError, decode_upright
from stages.sources.source import is_image

DepthKind = Literal["depth", "disparity"]
_PICTURES, _DEPTHS = ("rgb", "images"), ("depth",)
_GREY, _ARRAYS, _UNREAD = (".png", ".tif", ".tiff", ".pfm"), (".npy",), (".exr", ".npz", ".mat", ".h5")
_CODES_PER_M = 1000.0
_ROLE = re.compile(r"(?:(rgb|image|color|depth)[_-])?(.+?)(?:[_-](rgb|image|color|depth))?")
_LAYOUTS = (
    "expected rgb/NAME.jpg with depth/NAME.png, NAME.jpg with NAME_depth.png, or a list of two columns, picture and depth, one "
    "pair a line"
)


class Pair(NamedTuple):
    """The paths of a picture and its depth, from the set's folder on; where one is missing, why."""

    picture: str
    depth: str
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class DepthUnits:
    """What the numbers in depth files mean.

    scale: how many of them are a metre (for disparity: 1/m); None is 1000 for integers, millimetres, and 1 for floats.
    min_m, max_m: true depth counts between them, both excluded. invalid: a number that means that nothing was measured; 0 and
    below, NaN and infinity always do.
    """

    kind: DepthKind = "depth"
    scale: float | None = None
    min_m: float = 1e-3
    max_m: float | None = None
    invalid: float | None = None

    def depth_m(self, values: Shaped[np.ndarray, "h w"]) -> tuple[Float32[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """Depth in metres, and where there is one in range; 0 elsewhere."""
        scale = self.scale or (_CODES_PER_M if values.dtype.kind in "iu" else 1.0)
        numbers: Float64[np.ndarray, "h w"] = values.astype(np.float64)
        known = np.isfinite(numbers) & (numbers > 0)
        if self.invalid is not None:
            known &= numbers != self.invalid
        metres = np.divide(numbers, scale, out=np.zeros_like(numbers), where=known)
        if self.kind == "disparity":
            metres = np.divide(1.0, metres, out=np.zeros_like(numbers), where=known)
        known &= (metres > self.min_m) & (metres < (self.max_m or np.inf))
        return np.where(known, metres, 0).astype(np.float32), known

    def describe(self) -> str:
        """What they are, in words."""
        per = "m" if self.kind == "depth" else "1/m"
        scale = f"{self.scale:g}" if self.scale else f"{_CODES_PER_M:g} for integers, 1 for floats"
        invalid = "" if self.invalid is None else f", {self.invalid:g} is none"
        return f"truth is {self.kind}, units per {per}: {scale}{invalid}"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A person's own set; made by `open_pairs`, and read as a `Benchmark` is."""

    rules: BenchmarkRules
    pairs: tuple[Pair, ...]
    units: DepthUnits
    list_sha256: str
    files: BenchmarkFiles
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The pictures' paths, in order; of a depth map without a picture its own."""
        return tuple(pair.picture or pair.depth for pair in self.pairs)

    def read(self, index: int) -> BenchmarkSample:
        """One pair. Raises BenchmarkError, naming the file, for whatever is not as expected."""
        picture, depth, problem = self.pairs[index]
        if problem:
            raise BenchmarkError(problem)
        rgb, values = _picture(self.files.read(picture), picture), _depth(self.files.read(depth), depth)
        if values.shape != rgb.shape[:2]:
            found, expected = ("{} x {}".format(*each.shape[:2]) for each in (values, rgb))
            raise BenchmarkError(f"{depth}: {found} px, expected {expected} as its picture {picture}")
        depth_m, valid = self.units.depth_m(values)
        if not valid.any():
            finite = values[np.isfinite(values)]
            numbers = f"{finite.min():g} to {finite.max():g}" if finite.size else "none that is finite"
            raise BenchmarkError(f"{depth}: no valid pixel, its numbers are {numbers}; expected some with {self._valid()}")
        return BenchmarkSample(name=picture, rgb=rgb, depth_m=depth_m, valid=valid)

    def _valid(self) -> str:
        high = "infinity" if self.units.max_m is None else f"{self.units.max_m:g}"
        return f"depth between {self.units.min_m:g} and {high} m ({self.units.describe()})"

    def check(self) -> tuple[str, ...]:
        """Nothing: what is wrong with a pair is said when it is read."""
        return ()


def open_pairs(location: Path, name: str, *, protocol: ProtocolName, units: DepthUnits) -> Pairs:
    """The pairs of a folder or a list. Raises BenchmarkError where none are found, or the list cannot be read."""
    folder = location if location.is_dir() else location.parent
    pairs = list(_in_folder(folder)) if location.is_dir() else _listed(location)
    if not pairs:
        raise BenchmarkError(f"{location}: no pair of a picture and its depth found; {_LAYOUTS}")
    in_depth = protocol == "marigold-depth"
    rules = BenchmarkRules(
        benchmark=name,
        protocol=protocol,
        align_in="depth" if in_depth else "disparity",
        valid_min_m=units.min_m,
        valid_max_m=units.max_m,
        clip_min_m=units.min_m,
        clip_max_m=units.max_m,
        disparity_floor=None if in_depth else DISPARITY_FLOOR,
        expected_images=len(pairs),
    )
    digest = hashlib.sha256("\n".join(f"{pair.picture}\t{pair.depth}" for pair in pairs).encode("utf-8", "surrogatepass"))
    return Pairs(
        rules=rules,
        pairs=tuple(pairs),
        units=units,
        list_sha256=digest.hexdigest(),
        files=BenchmarkFiles(location=folder, members=None),
        notes=(units.describe(),),
    )


def _in_folder(folder: Path) -> Iterator[Pair]:
    pictures, depths = (
        next((folder / name for name in names if (folder / name).is_dir()), None) for names in (_PICTURES, _DEPTHS)
    )
    if pictures and depths:
        halves = (_by_name(pictures, folder, None), _by_name(depths, folder, "depth"))
    else:
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        halves = (_flat(files, of_depth=False), _flat(files, of_depth=True))
    for name in sorted({*halves[0], *halves[1]}):
        yield _paired(name, *(half.get(name, []) for half in halves))


def _by_name(place: Path, folder: Path, role: str | None) -> dict[str, list[str]]:
    """The files below a folder that can be halves of pairs, by their paths there without suffix and role."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        if (_is_depth(path.name) if role else is_image(path.name)) and not path.name.startswith("."):
            inside = PurePosixPath(path.relative_to(place).as_posix())
            found[str(inside.with_name(_parted(inside.stem)[0]))].append(path.relative_to(folder).as_posix())
    return found


def _flat(files: Sequence[Path], *, of_depth: bool) -> dict[str, list[str]]:
    """Those of one folder that are pictures, or depth, by the name that they share with their other half."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in files:
        name, role = _parted(path.stem)
        is_depth = role == "depth" or path.suffix.lower() in (*_ARRAYS, *_UNREAD, ".pfm")
        if is_depth == of_depth and (_is_depth(path.name) if of_depth else is_image(path.name)):
            found[name].append(path.name)
    return found


def _parted(stem: str) -> tuple[str, str | None]:
    """A file's name without what says that it is a picture or depth, and that."""
    match = _ROLE.fullmatch(stem)
    assert match is not None or not stem
    return (match[2], match[1] or match[3]) if match else (stem, None)


def _is_depth(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in (*_GREY, *_ARRAYS, *_UNREAD) and not name.startswith(".")


def _paired(name: str, pictures: Sequence[str], depths: Sequence[str]) -> Pair:
    pair = Pair(pictures[0] if pictures else "", depths[0] if depths else "")
    if not pictures:
        return pair._replace(problem=f"{pair.depth}: no picture for this depth; expected one named {name}")
    if not depths:
        return pair._replace(problem=f"{pair.picture}: no depth for this picture; expected one named {name}")
    if more := [*pictures[1:], *depths[1:]]:
        return pair._replace(problem=f"{pair.picture}: more than one pair has the name {name}: {', '.join(more)}")
    return pair


def _listed(location: Path) -> list[Pair]:
    try:
        text = location.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{location}: the list cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        columns = [each.strip() for each in line.split("\t")] if "\t" in line else line.split()
        if len(columns) == 2:
            pairs.append(Pair(*columns))
        else:
            problem = f"{location.name}:{number}: {len(columns)} columns, expected 2, picture and depth, a space or tab between"
            pairs.append(Pair(f"{location.name}:{number}", "", problem))
    return pairs


def _picture(content: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in any format that is labelled, in the order of its pixels on disk."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever Pillow makes of nonsense: the next step says what it is
        turned = 1
    if turned in range(2, 9):
        raise BenchmarkError(f"{name}: its EXIF data turn it (orientation {turned}), and not its depth: save it upright")
    try:
        return np.asarray(decode_upright(content))
    except PictureRejectedError as error:
        raise BenchmarkError(f"{name}: {error}") from error


def _depth(content: bytes, name: str) -> Shaped[np.ndarray, "h w"]:
    """The numbers of a depth file as they are in it."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _ARRAYS:
        return decode_any_npy(content, name)
    if suffix in _GREY:
        return decode_grey(content, name)
    raise BenchmarkError(
        f"{name}: depth as {suffix or 'a file without a suffix'} is not read; save it as {', '.join((*_ARRAYS, *_GREY))}"
    )
