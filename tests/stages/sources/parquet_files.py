"""Parquet files as the library `datasets` publishes them: its schema, its metadata, row groups of a hundred rows or less."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Row = Mapping[str, object] | None


def write_published(
    path: Path,
    images: Sequence[Row],
    *,
    group: int = 100,
    columns: Mapping[str, Sequence[Row]] | None = None,
    said: bool = True,
) -> Path:
    """A file with the columns `image` and `label`, and others of images; `said`: as its metadata says, too."""
    of_images = {"image": images, **(columns or {})}
    features = {name: {"_type": "Image"} for name in of_images} | {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if said else None
    schema = pa.schema([*((name, IMAGE) for name in of_images), ("label", pa.int64())], metadata=metadata)
    values = {name: list(rows) for name, rows in of_images.items()} | {"label": [0] * len(images)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(values, schema=schema), path, row_group_size=group)
    return path


def published(content: bytes, path: str | None = None) -> Row:
    return {"bytes": content, "path": path}
