"""What the arrays of a committed part say, held against its manifest, its run's plan and each other.

An array that is lost, or was never written, reads as zeros in this format. Nothing here takes zeros for labels: the extents,
the places of patches, and the number, minimum and maximum of all label values must be what the manifest says they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from manifests.checker import shown
from manifests.chunks import Fault, FaultError, Layout, chunks, expect, read_layout, read_metadata
from manifests.place import Place
from manifests.schema import PartManifest

if TYPE_CHECKING:
    import numpy as np

_JPEG_START = b"\xff\xd8"
_FLOAT32_ERROR = 1e-6
_DIFFERENCES = 2  # the version of a column whose views are stored as differences of their rows


def faults(place: Place, folder: str, manifest: PartManifest, plan: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the arrays of the group `folder`, whose files are as the manifest says; empty when nothing is.

    Raises OSError. Holds a chunk in memory at a time, and the tables with a row for each view.
    """
    part = _Part(place=place, folder=folder, manifest=manifest, plan=plan)
    try:
        return list(part.faults())
    except FaultError as error:
        return [error.fault]


@dataclass(frozen=True, kw_only=True)
class _Views:
    """What was counted in an array of views: values, their sum, the lowest and highest of them."""

    pixels: int = 0
    sum: float = 0.0
    low: float = math.inf
    high: float = -math.inf


@dataclass(frozen=True, kw_only=True)
class _Part:
    place: Place
    folder: str
    manifest: PartManifest
    plan: Mapping[str, Any]
    layouts: dict[str, Layout] = field(default_factory=dict)

    @cached_property
    def contexts(self) -> int:
        """Rows of an image."""
        return self._planned("contexts_per_image", 1)

    @cached_property
    def labelled(self) -> np.ndarray:
        """bool [rows]: whether the row has labels: its image is labelled, and the row was to be."""
        import numpy as np

        of_images = np.repeat([image.status == "labelled" for image in self.manifest.images], self.contexts).astype(bool)
        if self.manifest.rows is None:
            return of_images
        return of_images & np.isin(np.arange(len(of_images)), self.manifest.rows)

    def faults(self) -> Iterator[Fault]:
        group, space = read_metadata(self.place, self.folder, "zarr.json"), self.manifest.depth_space
        expect(group, {"zarr_format": 3, "node_type": "group"}, "zarr.json")
        given = found if isinstance(found := group.get("attributes"), dict) else {}
        differences = space is not None and given.get("format_version") == _DIFFERENCES
        attributes = {"format_version": _DIFFERENCES if differences else 1, "contexts_per_image": self.contexts}
        expect(given, attributes | ({} if space is None else {"depth_space": space}), "zarr.json")
        rows = len(self.manifest.images) * self.contexts
        if space is None:
            self._lay_out_pictures(rows)
        else:
            self._lay_out_labels(rows, flat=differences)
        known = {"zarr.json"}.union(*({f"{name}/zarr.json", *array.files()} for name, array in self.layouts.items()))
        listed = {file.path.removeprefix(f"{self.manifest.zarr}/") for file in self.manifest.files}
        for name in sorted(listed - known):
            yield Fault(name, "wrong_array", "the format has no such file in this place")
        self._check_extents()
        yield from self._pictures() if space is None else self._labels()

    def _planned(self, key: str, default: int) -> int:
        value = self.plan.get(key, default)
        if type(value) is not int or value < 1:
            raise FaultError("zarr.json", "wrong_array", f"cannot be checked: {key} in run.json's plan is {shown(value)}")
        return value

    def _lay_out(self, name: str, dtype: str, *shape: int | None, packed: bool = False) -> Layout:
        layout = self.layouts[name] = read_layout(self.place, self.folder, name, dtype, shape, packed=packed)
        return layout

    def _lay_out_labels(self, rows: int, *, flat: bool) -> None:
        side = self._planned("context_px", 0)
        self._lay_out("context", "uint16", rows, *([side * side] if flat else [side, side]), packed=True)
        self._lay_out("context_extent", "int32", rows, 2)
        patches, *sides = self._lay_out("patch", "uint16", *[None] * (2 if flat else 3), packed=True).shape
        height, width = [math.isqrt(sides[0]), -(-sides[0] // max(math.isqrt(sides[0]), 1))] if flat else sides
        if height != width or not 1 <= height <= side:
            found = f"found patches of {height} x {width}"
            raise FaultError("patch", "wrong_array", f"{found}, expected squares that fit the context grid of {side} x {side}")
        self._lay_out("patch_start", "int64", rows + 1)
        self._lay_out("patch_box", "int32", patches, 4)
        for views, count in (("context", rows), ("patch", patches)):
            self._lay_out(f"{views}_scale", "float32", count)
            self._lay_out(f"{views}_offset", "float32", count)

    def _lay_out_pictures(self, rows: int) -> None:
        self._lay_out("jpeg", "uint8", None)
        self._lay_out("jpeg_start", "int64", rows + 1)
        self._lay_out("context_extent", "int32", rows, 2)
        self._lay_out("source_size", "int32", rows, 2)
        self._lay_out("context_box", "float64", rows, 4)

    def _chunks(self, name: str) -> Iterator[tuple[int, np.ndarray | None]]:
        return chunks(self.place, self.folder, self.layouts[name], self.manifest.versions)

    def _table(self, name: str) -> np.ndarray:
        """An array of one chunk."""
        import numpy as np

        layout = self.layouts[name]
        for _, values in self._chunks(name):
            if values is not None:
                return values
        return np.zeros(layout.shape, layout.dtype)

    def _check_extents(self) -> None:
        import numpy as np

        extents = self._table("context_extent")
        side = self.plan.get("context_px", 0)
        labelled = (extents > 0).all(1) & (extents <= side).all(1)
        wrong = np.where(self.labelled, ~labelled, (extents != 0).any(1)).nonzero()[0]
        if len(wrong):
            row, image = wrong[0], self.manifest.images[wrong[0] // self.contexts]
            found = f"row {row}: found the extent {extents[row].tolist()}"
            raise FaultError(
                "context_extent", "wrong_array", f"{found}, but the manifest says that {image.key!r} is {image.status}"
            )

    def _starts(self, name: str, total: int) -> np.ndarray:
        """Where each row's patches or bytes begin, and the last end; raises FaultError unless they follow each other."""
        import numpy as np

        starts = self._table(name)
        if starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any() or np.diff(starts)[~self.labelled].any():
            message = f"found {starts[0]} to {starts[-1]}, expected to rise from 0 to {total}, and not in rejected rows"
            raise FaultError(name, "wrong_array", message)
        return starts

    def _pictures(self) -> Iterator[Fault]:
        import numpy as np

        starts = self._starts("jpeg_start", self.layouts["jpeg"].shape[0])
        empty = (starts[1:] == starts[:-1]) & self.labelled
        if empty.any():
            yield Fault("jpeg_start", "wrong_array", f"row {empty.nonzero()[0][0]}: found no bytes of a labelled image")
        firsts = starts[:-1][self.labelled & ~empty]
        places, wanted = (np.concatenate([firsts, firsts + 1]), np.repeat(np.frombuffer(_JPEG_START, np.uint8), len(firsts)))
        for first, values in self._chunks("jpeg"):
            there = (places >= first) & (places < first + self.layouts["jpeg"].chunk_rows)
            if there.any() and (values is None or (values[places[there] - first] != wanted[there]).any()):
                yield Fault("jpeg", "wrong_array", f"bytes {first} onwards: found no JPEG file where a row begins")
                return
        for name in ("source_size", "context_box"):
            sizes = self._table(name)[:, -2:]
            if ((sizes > 0).all(1) != self.labelled).any():
                yield Fault(name, "wrong_array", "found a labelled row without a size, or a rejected one with it")

    def _labels(self) -> Iterator[Fault]:
        import numpy as np

        extents, boxes = self._table("context_extent"), self._table("patch_box").astype(np.int64)
        starts, side = self._starts("patch_start", len(boxes)), math.isqrt(self.layouts["patch"].chunk_values)
        rows = np.repeat(np.arange(len(extents)), np.diff(starts))
        ends = boxes[:, :2] + boxes[:, 2:]
        if (boxes[:, :2] < 0).any() or (boxes[:, 2:] < 1).any() or (boxes[:, 2:] > side).any() or (ends > extents[rows]).any():
            yield Fault(
                "patch_box", "wrong_array", f"found a box outside its context, or larger than the {side} px of its label"
            )
            return
        found = [self._count("context", extents), self._count("patch", boxes[:, 2:])]
        yield from self._other_statistics(found, int(self.labelled.sum()) + len(boxes))

    def _count(self, name: str, extents: np.ndarray) -> _Views:
        """Counts the values of an array of views; raises FaultError where one lies beyond its view's extent."""
        import numpy as np

        scale, offset = self._table(f"{name}_scale"), self._table(f"{name}_offset")
        counted = _Views()
        for row, chunk in self._chunks(name):
            height, width = extents[row]
            codes, beyond = (None, False) if chunk is None else _view(chunk[0], int(height), int(width))
            pixels = 0 if codes is None else int((codes > 0).sum())
            if beyond:
                raise FaultError(name, "wrong_array", f"row {row}: found values beyond its extent of {[height, width]}")
            if codes is None or not pixels:
                continue
            step, zero = float(scale[row]), float(offset[row]) - float(scale[row])  # value = zero + step * code
            lowest, highest = int(codes[codes > 0].min()), int(codes.max())
            if not step and highest > 1:
                raise FaultError(f"{name}_scale", "wrong_array", f"row {row}: found a scale of 0 for codes up to {highest}")
            counted = _Views(
                pixels=counted.pixels + pixels,
                sum=counted.sum + zero * pixels + step * int(codes.sum(dtype=np.int64)),
                low=min(counted.low, zero + step * lowest),
                high=max(counted.high, zero + step * highest),
            )
        return counted

    def _other_statistics(self, found: list[_Views], views: int) -> Iterator[Fault]:
        """The manifest's numbers, against those of the arrays."""
        told = self.manifest.statistics
        pixels = sum(counted.pixels for counted in found)
        if (pixels, views) != (told.pixels, told.views):
            message = f"found {pixels} values in {views} views, but the manifest counts {told.pixels} in {told.views}"
            yield Fault("context", "wrong_array", message)
            return
        values = {"mean": math.nan, "min": math.inf, "max": -math.inf}
        if pixels:
            values["mean"] = sum(counted.sum for counted in found) / pixels
            values["min"], values["max"] = min(counted.low for counted in found), max(counted.high for counted in found)
        largest = max(abs(value) for value in (told.min or 0.0, told.max or 0.0))
        allowed = (told.max_quantisation_error or 0.0) + _FLOAT32_ERROR * largest
        for name, value in values.items():
            if (given := getattr(told, name)) is not None and not abs(value - given) <= allowed:
                message = f"found values with a {name} of {value:g}, but the manifest says {given:g}"
                yield Fault("context_offset", "wrong_array", message)
                return


def _view(stored: np.ndarray, height: int, width: int) -> tuple[np.ndarray, bool]:
    """A view's codes, and whether there is anything beyond its extent. From version 2 on, each row is stored as its differences
    from the row above, one after the other."""
    import numpy as np

    if stored.ndim == 1:
        rows = stored[: height * width].reshape(height, width)
        return np.cumsum(rows, axis=0, dtype=np.uint16), bool(stored[height * width :].any())
    codes = stored[:height, :width]
    return codes, int((stored > 0).sum()) != int((codes > 0).sum())
