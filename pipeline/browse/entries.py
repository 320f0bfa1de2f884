"""An image of a gallery: what is said of it, its pictures, and the values of its labels, each a file in a folder of its own.

Pictures are JPEG, in the colours of `stages.coloring`. Values are as they are stored: of each teacher's whole view the codes,
so that the page shows what a label says and not what a picture of it looks like.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from manifests.agreement import ImageAgreement
from manifests.checker import printable
from manifests.errors import DistillError
from pipeline.show.picture import Opinion, difference_panel, disparity_of
from pipeline.viewer.files import data_uri, jpeg_file, packed_map
from stages.agreement import agreement
from stages.coloring import colorize_disparity, robust_range
from stages.depth_space import DepthSpace
from stages.label_store import (
    ImageLabels,
    LabelColumn,
    OpenRun,
    PhotographPictures,
    Status,
    refuse_other_files,
)
from stages.sources.photographs import PictureRejectedError
from stages.stitching import stitch_patches

_THUMB_PX, _CLOUD_PX = 320, 280
_BITS_OF_OLD = 16  # of columns that do not say it
_WORSE_FIRST = ("rejected", "failed", "pending", "not_drawn", "labelled")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a teacher says of an image: the values between which 96 % of its whole view lie, and pictures, by their file names.

    apart: from the first teacher, in words; difference: the picture of it."""

    name: str
    space: DepthSpace
    low: float
    high: float
    label: str
    thumb: str
    close_ups: str | None
    num_close_ups: int
    valid: float
    difference: str | None = None
    apart: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An image. name: that of its folder. status: the worst of all columns; columns: of each the status, and the reason where
    there are no labels. All text can be printed."""

    name: str
    order: int
    source: str
    key: str
    status: str
    columns: list[tuple[str, str, str]]
    photo: str | None = None
    thumb: str | None = None
    size: tuple[int, int] | None = None
    trouble: str = ""
    teachers: list[Teacher] = field(default_factory=list)
    agreement: ImageAgreement = field(default_factory=ImageAgreement)

    @property
    def document(self) -> dict[str, Any]:
        """As the page reads it."""
        return asdict(self) | {"agreement": self.agreement._asdict()}


Files = dict[str, bytes]
Original = Callable[[str, str], Image.Image]
"""The photograph of a source and a key, from where it was labelled. Raises DistillError or OSError where it does not open."""


def make_entry(run: OpenRun, number: int, original: Original | None) -> tuple[Entry, Files]:
    """An image of the run by its number, and its files. What cannot be read or trusted is said in the entry's `trouble`."""
    source, key = run.images.place(number)[0].source, run.images.key(number)
    files: Files = {}
    columns, trouble = [], []
    for column in (run.pictures, *run.values()):
        try:
            columns.append((column.name, column.status((source, key))))
        except (DistillError, OSError) as error:
            columns.append((column.name, Status("failed", printable(f"its part cannot be read: {error}"))))
    told: dict[str, Any] = {}
    labelled = {name for name, status in columns if status.status == "labelled"}
    try:
        if run.pictures.name in labelled:
            told = _labelled(run, number, labelled, files, trouble)
        elif original is not None and columns[0][1].status == "rejected":
            told = _photo(files, np.asarray(original(source, key)))
    except PictureRejectedError:
        pass  # why is said already
    except OSError as error:  # without a path: a gallery may go to others
        trouble.append(f"its file cannot be read: {error.strerror or 'it has changed since'}")
    except (DistillError, ValueError) as error:
        trouble.append(printable(str(error) or type(error).__name__))
    return Entry(
        name=hashlib.sha256(f"{source}\0{key}".encode(errors="backslashreplace")).hexdigest()[:16],
        order=number,
        source=printable(source),
        key=printable(key),
        status=min((status.status for _, status in columns), key=_WORSE_FIRST.index),
        columns=[(name, status.status, status.reason) for name, status in columns],
        trouble="; ".join(trouble),
        **told,
    ), files


def _photo(files: Files, rgb: UInt8[np.ndarray, "h w 3"], source_size: tuple[int, int] | None = None) -> dict[str, Any]:
    shown = Image.fromarray(rgb)
    shown.thumbnail((1600, 1600), Image.Resampling.BOX, reducing_gap=2)
    files["photo.jpg"], files["photo-thumb.jpg"] = jpeg_file(np.asarray(shown)), jpeg_file(rgb, _THUMB_PX)
    return {"photo": "photo.jpg", "thumb": "photo-thumb.jpg", "size": source_size or rgb.shape[:2]}


def _labelled(run: OpenRun, number: int, labelled: set[str], files: Files, trouble: list[str]) -> dict[str, Any]:
    """What is shown of an image that has pictures. trouble: gets why a teacher's labels are left out."""
    seen = run.pictures.numbered(number)
    context, said = opinions_of(run, number, labelled, seen, trouble)
    picture = seen.pictures[context]
    told = _photo(files, picture, seen.source_size)
    teachers, codes, worst = [], [], ImageAgreement()
    for place, opinion in enumerate(said):
        teachers.append(_teacher(opinion, said[0] if place else None, files))
        codes.append(packed_map(opinion.labels.context, _bits(run[opinion.teacher])))
        for other in said[:place]:
            between = vars(agreement(other.labels.context, opinion.labels.context, other.space, opinion.space))
            worst = worst.worst(ImageAgreement(*(between[name] for name in ImageAgreement._fields)))
    document = json.dumps({"photo": data_uri(jpeg_file(picture, _CLOUD_PX)), "labels": codes})
    files["labels.js"] = f"gallery.labels({document});\n".encode()
    return told | {"teachers": teachers, "agreement": worst}


def opinions_of(
    run: OpenRun, number: int, labelled: set[str], seen: PhotographPictures, trouble: list[str]
) -> tuple[int, list[Opinion]]:
    """The first context that has labels, and what these teachers say of it."""
    of_columns: list[tuple[LabelColumn, Sequence[ImageLabels | None]]] = []
    for column in (column for name, column in run.items() if name in labelled):
        try:
            refuse_other_files(number, [run.pictures, column])
            found = column.numbered(number).contexts
            if wrong := {labels.context.values.shape for labels in found if labels} - {p.shape[:2] for p in seen.pictures}:
                raise ValueError(f"{column.name}: its labels are {wrong} px, unlike the pictures")
        except (DistillError, OSError, ValueError) as error:
            trouble.append(printable(str(error)))
        else:
            of_columns.append((column, found))
    context = next((i for i in range(len(seen.pictures)) if any(found[i] for _, found in of_columns)), 0)
    said = [(column, found[context]) for column, found in of_columns]
    return context, [Opinion(column.name, column.depth_space, labels) for column, labels in said if labels is not None]


def _teacher(opinion: Opinion, first: Opinion | None, files: Files) -> Teacher:
    """What a teacher says, with its pictures. first: who it is compared with."""
    name, space, labels = opinion
    whole = disparity_of(labels.context, space)
    low, high = robust_range(whole.values, whole.valid)
    picture = colorize_disparity(whole.values, whole.valid, low, high)
    label, thumb, close_ups, difference = (f"{kind}-{name}.jpg" for kind in ("label", "thumb", "close-ups", "difference"))
    files[label], files[thumb] = jpeg_file(picture), jpeg_file(picture, _THUMB_PX)
    if labels.patches:
        stitched = disparity_of(stitch_patches(labels), space)
        files[close_ups] = jpeg_file(colorize_disparity(stitched.values, stitched.valid, low, high))
    apart = ""
    if first is not None:
        panel = difference_panel(first, opinion)
        files[difference], apart = jpeg_file(panel.rgb), panel.title
    own_low, own_high = robust_range(labels.context.values, labels.context.valid)
    return Teacher(
        name=name,
        space=space,
        low=own_low,
        high=own_high,
        label=label,
        thumb=thumb,
        close_ups=close_ups if labels.patches else None,
        num_close_ups=len(labels.patches),
        valid=float(labels.context.valid.mean()),
        difference=difference if first is not None else None,
        apart=apart,
    )


def _bits(column: LabelColumn) -> int:
    return int(column.record.fingerprint.get("label_bits") or _BITS_OF_OLD)
