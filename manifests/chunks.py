"""Reads a committed part as its users will: every chunk of every array is decoded, and each labelled image has its place.

Zarr is imported when the first part is read, and not by name: this package answers without it, and says so in its contract.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from manifests.schema import PartManifest

# What Zarr and its codecs raise for bytes that they cannot make sense of; a codec that is not installed is an ImportError.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, MemoryError)


def undecodable(folder: Path, manifest: PartManifest) -> Iterator[tuple[str, str]]:
    """The arrays of the group `folder` that cannot be read, or do not hold what the manifest says, each with the reason.

    Holds one chunk at a time in memory.
    """
    zarr = importlib.import_module("zarr")
    warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr", category=UserWarning)
    try:
        group = zarr.open_group(folder, mode="r", zarr_format=3)
    except _UNREADABLE as error:
        yield "zarr.json", f"cannot be decoded: {type(error).__name__}: {error}"
        return
    for name in sorted({"context_extent"}.union(path.parent.name for path in folder.glob("*/zarr.json"))):
        try:
            array = group[name]
            rows = max(array.chunks[0], 1)
            for start in range(0, array.shape[0], rows):
                array[start : start + rows]
            if name == "context_extent":
                extents, rows_per_image = array[...].tolist(), group.attrs.get("contexts_per_image", 1)
                yield from ((name, message) for message in _misplaced(extents, manifest, rows_per_image))
        except _UNREADABLE as error:
            yield name, f"cannot be decoded: {type(error).__name__}: {error}"


def _misplaced(extents: list[list[int]], manifest: PartManifest, rows_per_image: int) -> Iterator[str]:
    """Where the arrays and the manifest disagree on how many images there are, and which of them are labelled."""
    images = [image for image in manifest.images for _ in range(rows_per_image)]
    if len(extents) != len(images):
        yield f"found {len(extents)} rows, expected {rows_per_image} for each of the {len(manifest.images)} images"
    for row, (extent, image) in enumerate(zip(extents, images, strict=False)):
        if all(extent) != (image.status == "labelled"):
            yield f"row {row}: found the extent {extent}, but the manifest says that {image.key!r} is {image.status}"
