"""What is exported of a photograph: names that lead nowhere, encoded labels, and what JSON says of them.

A sample is one context of a photograph with the labels of all chosen columns. Its name is made from source and key, and is made
of letters, digits, `-`, `_` and `/` alone: keys are hostile text. No two images of a run have one name.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from pipeline.export.config import ExportConfig, Format, LabelFiles
from stages.label_store import (
    CodedImage,
    CodedLabel,
    CodedPatch,
    LabelColumn,
    OpenRun,
    PhotographPictures,
    refuse_other_files,
)
from stages.sources.photographs import IMAGE_SUFFIXES

METRES = {"cm": 0.01, "mm": 0.001}
"""Of one step of a code."""
_PLAIN = re.compile("[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_DIGEST = re.compile("-[0-9a-f]{16}")
_AS_FILES = tuple(suffix.replace(".", "-") for suffix in IMAGE_SUFFIXES)
_MAX_NAME = 150
_LARGEST_CODE = 65535


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A context of a photograph as it is exported: its name, and its files by their place. num_patches: of each column."""

    name: str
    files: dict[str, bytes]
    num_patches: int


def sample_name(source: str, key: str, context: int | None = None) -> str:
    """The name of an image, and of one of its contexts where a run draws several.

    Its source, and its key where that is plain, with `-` before an image's suffix; else what is plain of the key and 16
    digits of its digest.
    """
    stem, dot, suffix = key.rpartition(".")
    is_file = f"{dot}{suffix}".lower() in IMAGE_SUFFIXES
    plain = stem if is_file else key
    ends_as_others = not is_file and (_DIGEST.search(key[-17:]) or key.lower().endswith(_AS_FILES))
    if len(key) <= _MAX_NAME and _PLAIN.fullmatch(plain) and not ends_as_others:
        name = f"{stem}-{suffix}" if is_file else key
    else:
        words = re.sub("[^A-Za-z0-9_-]+", "-", key).strip("-")[:80] or "image"
        name = f"{words}-{hashlib.sha256(key.encode(errors='backslashreplace')).hexdigest()[:16]}"
    return f"{source}/{name}" if context is None else f"{source}/{name}-{context}"


def file_place(layout: Format, name: str, suffix: str, column: str | None = None, patch: int | None = None) -> str:
    """Where a sample's file is: a member of a tar, or a path below the folder.

    suffix: with its dot. column: None for pictures and what JSON says. patch: None for the whole view.
    """
    number = "" if patch is None else f".p{patch:02d}"
    if layout == "webdataset":
        return f"{name}{'.' if column else ''}{(column or '').lower()}{number}{suffix}"  # its reader makes fields lower case
    kind = "json" if suffix == ".json" else "depth" if column else "rgb"
    return "/".join(filter(None, [kind + "_patches" * (patch is not None), column, f"{name}{number}{suffix}"]))


def label_suffix(labels: LabelFiles) -> str:
    """Of the files of labels."""
    return ".npy" if labels == "npy" else ".png"


def samples_of(run: OpenRun, number: int, config: ExportConfig) -> Iterator[Sample]:
    """Every context of the image of this number that all columns have labelled; none for an image that one of them has not.

    config: with the columns named. Raises what reading labels raises (DamagedPartError, RefusedError, OSError).
    """
    columns = [run[name] for name in config.columns]
    every = [run.pictures, *columns]
    if any(column.status_of_number(number).status != "labelled" for column in every):
        return
    refuse_other_files(number, every)
    seen, jpegs = run.pictures.numbered(number), run.pictures.jpegs(number)
    labelled = [(column, column.coded(number)) for column in columns]
    for context, jpeg in enumerate(jpegs):
        labels = [(column, coded) for column, images in labelled if (coded := images[context]) is not None]
        if len(labels) == len(columns):
            yield _sample(run, number, context, seen, jpeg, labels, config)


def _sample(
    run: OpenRun,
    number: int,
    context: int,
    seen: PhotographPictures,
    jpeg: bytes,
    labels: list[tuple[LabelColumn, CodedImage]],
    config: ExportConfig,
) -> Sample:
    name = sample_name(seen.image.source, seen.image.key, context if run.images.contexts > 1 else None)
    picture, box = seen.pictures[context], seen.boxes[context]
    files = {file_place(config.format, name, ".jpg"): jpeg}
    about: dict[str, Any] = {
        "source": seen.image.source,
        "key": seen.image.key,
        "content_sha256": run.pictures.content_sha256(number),
        "context": context,
        "photograph": {"size": seen.source_size, "box": list(box)},
        "picture": {"file": next(iter(files)), "size": picture.shape[:2]},
        "labels": {},
    }
    for column, coded in labels:
        said: dict[str, Any] = {"depth_space": column.depth_space, "licence": column.licence(number)}
        if config.views != "patches":
            place = file_place(config.format, name, label_suffix(config.labels), column.name)
            said["whole"], files[place] = encoded(coded.context, place, config.labels)
        if config.views != "whole":
            said["patches"] = []
            for i, patch in enumerate(coded.patches):
                place = file_place(config.format, name, label_suffix(config.labels), column.name, i)
                told, files[place] = encoded(patch, place, config.labels)
                said["patches"].append({"box": list(patch.box), **told})
        about["labels"][column.name] = said
    patches = labels[0][1].patches if config.views != "whole" else ()
    if config.format == "folder":
        for i, patch in enumerate(patches):
            files[file_place("folder", name, ".png", None, i)] = _close_up(picture, patch)
    files[file_place(config.format, name, ".json")] = json.dumps(about).encode()
    return Sample(name=name, files=files, num_patches=len(patches))


def encoded(label: CodedLabel, place: str, labels: LabelFiles) -> tuple[dict[str, Any], bytes]:
    """What JSON says of a label's file, and the file: value = offset + scale * (code - 1) in the column's space."""
    if labels == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.where(label.valid, label.values, np.float32(np.nan)))
        return {"file": place, "scale": None, "offset": None}, buffer.getvalue()
    if labels == "codes":
        return {"file": place, "scale": float(label.scale), "offset": float(label.offset)}, _png(label.codes)
    step = METRES[labels]
    steps = np.rint(label.values.astype(np.float64) / step)
    codes = np.where(label.valid & (steps >= 1) & (steps <= _LARGEST_CODE), steps, 0).astype(np.uint16)
    return {"file": place, "scale": step, "offset": step}, _png(codes)


def _close_up(picture: UInt8[np.ndarray, "h w 3"], patch: CodedPatch) -> bytes:
    box = patch.box
    return _png(np.ascontiguousarray(picture[box.top : box.top + box.height, box.left : box.left + box.width]))


def _png(pixels: UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)  # a quarter of the time of 6, and 6 % larger
    return buffer.getvalue()
