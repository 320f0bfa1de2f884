"""Whether /dev/shm has room for the batches that loader processes hand over there: without it they die of a bus error."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from manifests.errors import RefusedError
from stages.distillation.joined import JoinedLabels

_PLACE = Path("/dev/shm")
_PREFETCHED = 2
"""Batches that each process of a DataLoader has ready at most, by its default."""
_ENOUGH = 4 << 30
"""Bytes that need no closer look; Docker gives a container 64 MB."""


def require_shared_memory(dataset: JoinedLabels, batches: Iterable[list[Any]], loader_workers: int) -> None:
    """Raises RefusedError where there is no room for what the loader's processes keep ready, each batch as large as the first.

    batches: what each batch is made of, as a DataLoader's batch_sampler gives it.
    """
    if not loader_workers or not _PLACE.is_dir() or (free := shutil.disk_usage(_PLACE).free) >= _ENOUGH:
        return
    if not (first := next(iter(batches), None)):
        return
    batch = dataset.collate([dataset[request] for request in first])
    size = sum(value.nbytes for value in vars(batch).values() if isinstance(value, Tensor))
    count = _PREFETCHED * loader_workers + 1  # and the one that is being learned from
    if free < count * size:
        raise RefusedError(
            f"{_PLACE}: {_megabytes(free)} free, but --loader-workers {loader_workers} keeps {count} batches of "
            f"{_megabytes(size)} there, together {_megabytes(count * size)}: its processes would be killed by a bus error. "
            "Give the container more, as in docker run --shm-size 2g, or give fewer --loader-workers, of which 0 needs none"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
