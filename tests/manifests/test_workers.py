"""Many calls at once: their results in order, and an end in words where a process dies."""

from __future__ import annotations

import os
from functools import partial

import pytest

from manifests.workers import WorkerDiedError, in_order


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_calls(workers: int) -> None:
    assert list(in_order((partial(divmod, i, 7) for i in range(100)), workers)) == [divmod(i, 7) for i in range(100)]


def test_what_a_call_raises_is_raised() -> None:
    for workers in (1, 2):
        with pytest.raises(ZeroDivisionError):
            list(in_order([partial(divmod, 1, 0)], workers))


def test_a_process_that_dies_is_said_with_what_to_do() -> None:
    with pytest.raises(WorkerDiedError, match="with fewer --workers"):
        list(in_order([partial(os._exit, 9)], workers=2))
