"""The files of a benchmark: by name out of a folder or a tar, and from their bytes to pictures, depth maps and masks.

Pixels come as they are on disk: a picture is not turned by its EXIF data, for its depth would not turn with it. Every file
that is missing, cut or in another encoding than expected raises BenchmarkError, which names it.
"""

from __future__ import annotations

import io
import os
import posixpath
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from PIL import Image

from manifests.errors import DistillError
from stages.sources.tar_members import read_members

_NONSENSE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow and NumPy raise for bytes that stop making sense."""


class BenchmarkError(DistillError, ValueError):
    """A file of a benchmark, or its list, is not what it should be; says which, what was found, and what was expected."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkFiles:
    """Files under a folder, or the members of a tar; small enough to send to another process, and nothing is held open.

    members: null for a folder; for a tar, offset and size in bytes by name, without a leading `./`. damage: where the tar could
    not be read to its end.
    """

    location: Path
    members: dict[str, tuple[int, int]] | None
    damage: str | None = None

    def has(self, name: str) -> bool:
        return (self.location / name).is_file() if self.members is None else posixpath.normpath(name) in self.members

    def named(self, name: str) -> list[str]:
        """Every file of this name, wherever in a tar, or at most three folders deep."""
        if self.members is not None:
            return [member for member in self.members if posixpath.basename(member) == name]
        found = (path for depth in range(4) for path in self.location.glob("*/" * depth + name))
        return [path.relative_to(self.location).as_posix() for path in found]

    def beside(self, names: Collection[str]) -> list[str]:
        """Every other file in the folders of these, but for hidden ones, sorted."""
        folders = {posixpath.dirname(posixpath.normpath(name)) for name in names}
        if self.members is not None:
            found = {member for member in self.members if posixpath.dirname(member) in folders}
        else:
            present = (folder for folder in folders if (self.location / folder).is_dir())
            found = {posixpath.join(each, file.name) for each in present for file in _files_in(self.location / each)}
        shown = {name for name in found if not posixpath.basename(name).startswith(".")}
        return sorted(shown - {posixpath.normpath(name) for name in names})

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises BenchmarkError for one that is not there or cannot be read in full."""
        if not self.has(name):
            raise BenchmarkError(f"{name}: not in {self.location}; fetch or unpack the benchmark again{self.because()}")
        try:
            if self.members is None:
                return (self.location / name).read_bytes()
            offset, size_bytes = self.members[posixpath.normpath(name)]
            with self.location.open("rb") as file:
                file.seek(offset)
                content = file.read(size_bytes)
        except OSError as error:
            raise BenchmarkError(f"{name} in {self.location} cannot be read: {error}") from error
        if len(content) < size_bytes:
            raise BenchmarkError(f"{name} in {self.location} has {len(content)} bytes, expected {size_bytes}: the tar was cut")
        return content

    def because(self) -> str:
        """Why files may be missing, to end a sentence with."""
        return f" ({self.location.name} is damaged: {self.damage})" if self.damage else ""


def _files_in(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if entry.is_file()]


def open_files(location: Path) -> BenchmarkFiles:
    """Index a folder or an uncompressed tar. Raises BenchmarkError for what is neither, and for a tar without a file."""
    if location.is_dir():
        return BenchmarkFiles(location=location, members=None)
    if not location.is_file():
        raise BenchmarkError(f"{location}: no such file or folder; expected a benchmark's folder or its tar")
    found, _, problems = read_members(location)
    damage = "; ".join(f"{problem.kind}: {problem.message}" for problem in problems) or None
    members = {posixpath.normpath(each.name): (each.offset, each.size_bytes) for each in found if each.kind == "file"}
    if not members:
        raise BenchmarkError(f"{location}: expected a folder or an uncompressed tar with files; {damage or 'the tar is empty'}")
    return BenchmarkFiles(location=location, members=members, damage=damage)


def decode_picture(content: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB picture of 8 bits, its pixels as stored."""
    image = _decoded(content, name, ("JPEG", "PNG"))
    if image.mode != "RGB":
        raise BenchmarkError(
            f"{name}: a picture of Pillow's mode {image.mode}, expected RGB with 8 bits; is the list's order right?"
        )
    return np.asarray(image)


def decode_png16(content: bytes, name: str, codes_per_m: float) -> Float32[np.ndarray, "h w"]:
    """Depth in metres from a grey PNG of 16 bits; code 0, no measurement, comes out as 0."""
    image = _decoded(content, name, ("PNG",))
    if not image.mode.startswith("I;16"):
        raise BenchmarkError(
            f"{name}: a PNG of Pillow's mode {image.mode}, expected grey with 16 bits: depth * {codes_per_m:g}"
        )
    return np.divide(np.asarray(image), np.float32(codes_per_m), dtype=np.float32)


def decode_float32(content: bytes, name: str, size_px: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """Depth in metres from bare little-endian float32, row by row; infinity, no measurement, comes out as 0."""
    expected_bytes = 4 * size_px[0] * size_px[1]
    if len(content) != expected_bytes:
        raise BenchmarkError(
            f"{name}: {len(content)} bytes, expected {expected_bytes}: float32 without a header, {size_px[0]} x {size_px[1]}"
            " as the picture; a JPEG here means that depth was not unpacked, or columns of the list were swapped"
        )
    depth_m = np.frombuffer(content, "<f4").reshape(size_px)
    return np.where(np.isposinf(depth_m), np.float32(0), depth_m)


def decode_npy(content: bytes, name: str) -> Float32[np.ndarray, "h w"]:
    """Depth in metres from a float32 .npy of shape (h, w) or (h, w, 1)."""
    array = _loaded(content, name)
    if array.dtype != np.float32 or array.ndim != 2:
        raise BenchmarkError(f"{name}: {array.dtype} of shape {array.shape}, expected float32 of shape (h, w) or (h, w, 1)")
    return array


def decode_any_npy(content: bytes, name: str) -> Shaped[np.ndarray, "h w"]:
    """The numbers of a .npy of shape (h, w), (h, w, 1) or (1, h, w), of any kind of integer or float."""
    array = _loaded(content, name)
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iuf":
        raise BenchmarkError(f"{name}: {array.dtype} of shape {array.shape}, expected integers or floats of shape (h, w)")
    return array


def decode_grey(content: bytes, name: str) -> Shaped[np.ndarray, "h w"]:
    """The numbers of a grey PNG or TIFF, or of a PFM, of whatever width."""
    image = _decoded(content, name, ("PNG", "TIFF", "PPM"))
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        raise BenchmarkError(f"{name}: a picture of Pillow's mode {image.mode}, expected grey: numbers, not colours of them")
    return np.asarray(image)


def decode_mask(content: bytes, name: str) -> Bool[np.ndarray, "h w"]:
    """A mask from a .npy of any number type that holds only 0 and 1."""
    array = _loaded(content, name)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        found = f"values {array.min()} to {array.max()}" if array.size and array.dtype.kind in "biuf" else "no numbers"
        raise BenchmarkError(f"{name}: {array.dtype} of shape {array.shape}, {found}; expected a mask (h, w) of 0 and 1 only")
    return array.astype(np.bool_)


def _decoded(content: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        image.load()
    except _NONSENSE as error:
        expected = " or ".join(formats)
        raise BenchmarkError(f"{name}: cannot be decoded, expected {expected}; {type(error).__name__}: {error}") from error
    return image


def _loaded(content: bytes, name: str) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except _NONSENSE as error:
        raise BenchmarkError(f"{name}: cannot be read as .npy; {type(error).__name__}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise BenchmarkError(f"{name}: an archive of arrays, expected one array (.npy)")
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
