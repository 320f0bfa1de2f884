"""Processes that train together: who is who, and how they stay together.

A collective waits for all. So whatever may fail on one rank alone (reading, loading) is done through `on_all_ranks`, which
fails on all of them or on none, and with the same message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

from manifests.errors import RefusedError

ValueT = TypeVar("ValueT")
AlikeT = TypeVar("AlikeT")


@dataclass(frozen=True, kw_only=True)
class Process:
    """Where one process trains: its device, and its rank among those that train together."""

    device: str
    rank: int = 0
    world_size: int = 1


def on_all_ranks(make: Callable[[], tuple[ValueT, AlikeT]]) -> tuple[ValueT, list[AlikeT]]:
    """The value that `make` gives here, and what else it gives on each rank, once it has succeeded on every one.

    Raises what `make` raises where there is one process, and RefusedError with the first rank's message where there are more.
    """
    if not dist.is_initialized():
        value, alike = make()
        return value, [alike]
    made, problem = None, None
    try:
        made = make()
    except (ValueError, OSError, RuntimeError) as error:
        problem = f"{type(error).__name__}: {error}"
    found = gathered([(problem, made and made[1])])
    for rank, (text, _) in enumerate(found):
        if text is not None:
            raise RefusedError(f"rank {rank}: {text}")
    assert made is not None
    return made[0], [alike for _, alike in found]


@cache
def _between_hosts(world: Any) -> Any:
    """The same processes joined by gloo: objects do not go through a GPU, nor wait for what it is doing."""
    return dist.new_group(backend="gloo")


def gathered(items: list[Any]) -> list[Any]:
    """The items of all ranks, in the order of ranks."""
    if not dist.is_initialized():
        return items
    lists: list[list[Any]] = [[]] * dist.get_world_size()
    dist.all_gather_object(lists, items, group=_between_hosts(dist.group.WORLD))
    return [item for one in lists for item in one]
