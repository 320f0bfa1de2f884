"""Comparing the labels that two teachers have given to the images of a part, and keeping what was found in the run.

What is kept is a table (see `manifests.agreement`), made again where it is not of these labels. Any number of processes may do
so at once: all write the same, whole or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as parquet

from manifests import load_part, place_of
from manifests.agreement import FarApart, ImageAgreement, images_in, read_table, table_name, table_schema
from manifests.facts import part_digest
from stages.agreement import agreement
from stages.depth_space import DepthSpace
from stages.label_store import ImageLabels, OpenRun, refuse_other_files


class PartAgreement(NamedTuple):
    """Of two teachers on a part: what is known of each image that both have labelled, with its AbsRel where it has one."""

    images: list[ImageAgreement]
    far_apart: list[FarApart]
    views_compared: int
    """0 where the table was there."""


def compare_part(run: OpenRun, first: str, second: str, number: int) -> PartAgreement:
    """Of the part of this number, in the order of the run's parts, which both columns have.

    Raises OSError, InvalidRecordError, RefusedError and DamagedPartError where the labels cannot be read or trusted, or are of
    different files.
    """
    part, run_dir = run.images.parts[number], run.run_dir
    told = [load_part(run_dir, column, part.name) for column in (first, second)]
    digests = part_digest(told[0]), part_digest(told[1])
    table, compared = read_table(run_dir, first, second, part.name, digests), 0
    if table is None:
        labelled = [
            i
            for i, both in enumerate(zip(*(own.images for own in told), strict=True))
            if {o.status for o in both} == {"labelled"}
        ]
        rows = [row for i in labelled for row in _views(run, first, second, int(run.images.start[number]) + i, i)]
        table, compared = pa.Table.from_pylist(rows, table_schema(first, second, part.name, digests)), len(rows)
        content = io.BytesIO()
        parquet.write_table(table, content, compression="zstd")
        place_of(run_dir).replace(table_name(first, second, part.name), content.getvalue())
    found = images_in(table)
    far_apart = [
        FarApart(part.source, part.name, image, told[0].images[image].key, own.abs_rel)
        for image, own in found.items()
        if own.abs_rel is not None
    ]
    return PartAgreement(list(found.values()), far_apart, compared)


def _views(run: OpenRun, first: str, second: str, number: int, place: int) -> Iterator[dict[str, Any]]:
    """A row for each view of an image that both have labelled: of a context, then of its patches."""
    columns = run[first], run[second]
    refuse_other_files(number, columns)
    photographs = [column.numbered(number) for column in columns]
    spaces = columns[0].depth_space, columns[1].depth_space
    image = {"source": photographs[0].image.source, "key": photographs[0].image.key, "image": place}
    for context, (ours, theirs) in enumerate(zip(*(photograph.contexts for photograph in photographs), strict=True)):
        if ours is not None and theirs is not None:
            for patch, row in _of_context(ours, theirs, spaces):
                yield {**image, "context": context, "patch": patch, **row}


def _of_context(
    ours: ImageLabels, theirs: ImageLabels, spaces: tuple[DepthSpace, DepthSpace]
) -> Iterator[tuple[int | None, dict[str, Any]]]:
    yield None, vars(agreement(ours.context, theirs.context, *spaces))
    boxes = {patch.box: patch for patch in theirs.patches}
    for number, patch in enumerate(ours.patches):
        if patch.box in boxes:  # a column that was labelled without close-ups has none
            yield number, vars(agreement(patch, boxes[patch.box], *spaces))
