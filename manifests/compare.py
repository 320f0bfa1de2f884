"""What tells two runs apart: settings, parts, images, records and label bytes; not when, where and by which attempt they came.

Two runs of the same command over the same sources, in any number of processes and with any interruptions, do not differ. The
manifests' digests are compared, not the files: whether those are as the manifests say is `verify`'s to tell.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from manifests.location import Location
from manifests.run import Run, catalogue_path, committed_parts, load_part, load_run, manifest_path
from manifests.schema import Catalogue, PartManifest

_NOTHING = "nothing"


class Difference(NamedTuple):
    """One field that is not the same. `where` is a path relative to both runs, `field` a place in that record, `a` and `b`
    the values as JSON, or `nothing`."""

    where: str
    field: str
    a: str
    b: str


def compare(run_a: Location, run_b: Location) -> list[Difference]:
    """Every difference; empty when the runs hold the same. Where two columns differ in their fingerprint, their parts are
    compared all the same.

    Raises NotARunError; InvalidRecordError or OSError for a record that cannot be read.
    """
    a, b = load_run(run_a), load_run(run_b)
    found = _differences("run.json", _run_fields(a), _run_fields(b))
    sources_b = {source.source: source for source in b.sources}
    for source in a.sources:
        if other := sources_b.get(source.source):
            where = str(catalogue_path(Path(), source.source))
            found += _differences(where, _catalogue_fields(source), _catalogue_fields(other))
    for column in sorted({column.name for column in a.columns} & {column.name for column in b.columns}):
        parts_a, parts_b = committed_parts(run_a, column), committed_parts(run_b, column)
        for part in sorted(parts_a | parts_b):
            where = str(manifest_path(Path(), column, part))
            if part in parts_a and part in parts_b:
                found += _differences(where, *(_part_fields(load_part(run, column, part)) for run in (run_a, run_b)))
            else:
                shown = ("committed", _NOTHING) if part in parts_a else (_NOTHING, "committed")
                found.append(Difference(where, "", *shown))
    return found


def _run_fields(run: Run) -> dict[str, str]:
    """What decides the run's content; where its sources lie, and the command's words, do not."""
    return _flat(
        {
            "seed": run.seed,
            "part_size": run.part_size,
            "plan": run.plan,
            "sources": {source.source: {"kind": source.source_kind, "images": source.images} for source in run.sources},
            "columns": {
                column.name: {"depth_space": column.depth_space, "fingerprint": column.fingerprint} for column in run.columns
            },
        }
    )


def _catalogue_fields(source: Catalogue) -> dict[str, str]:
    catalogue = dataclasses.asdict(source)
    fields = ("size_bytes", "images", "rows_sha256", "table_sha256", "problems", "extends")
    return _flat({field: catalogue[field] for field in fields})


def _part_fields(manifest: PartManifest) -> dict[str, str]:
    """Everything but the volatile fields and the attempt's name in paths; the fingerprint is the column's."""
    document = dataclasses.asdict(manifest)
    for field in ("volatile", "zarr", "fingerprint", "column", "part"):
        del document[field]
    document["images"] = {image.key: dataclasses.asdict(image) for image in manifest.images}
    document["files"] = {file.path.removeprefix(f"{manifest.zarr}/"): file.sha256 for file in manifest.files}
    return _flat(document)


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """The leaves of nested objects and lists, as JSON, by their place."""
    return dict(_leaves(value, path))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, json.dumps(value)


def _differences(where: str, a: Mapping[str, str], b: Mapping[str, str]) -> list[Difference]:
    fields = [field for field in dict.fromkeys((*a, *b)) if a.get(field) != b.get(field)]
    return [Difference(where, field, a.get(field, _NOTHING), b.get(field, _NOTHING)) for field in fields]
