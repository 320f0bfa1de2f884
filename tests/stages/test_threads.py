"""Work in other threads: in order, and never more of it at a time than was said."""

from __future__ import annotations

import threading

import pytest

from stages.models.batches import in_batches
from stages.threads import ahead


@pytest.mark.parametrize("most", [10, 3])
def test_items_that_are_begun_and_not_taken_weigh_no_more_than_was_said(most: int) -> None:
    """7 weighs more than 3, and goes alone; the depth by itself would let 29 in: 5 + 7 + 7 + 5 + 5."""
    weights = [1, 2, 3, 5, 7, 7, 5, 5, 3, 1] * 3
    lock, begun, seen = threading.Lock(), list[int](), list[int]()

    def begin(weight: int) -> int:
        with lock:
            begun.append(weight)
            seen.append(sum(begun))
        return weight

    taken = []
    for weight in ahead(begin, weights, threads=3, depth=4, weight_of=float, most=most):
        taken.append(weight)
        with lock:
            begun.remove(weight)
    assert taken == weights
    assert max(seen) <= max(most, 7)


def test_a_batch_weighs_no_more_than_was_said_and_what_is_heavier_goes_alone() -> None:
    items = [(0, 4), (1, 9), (2, 4), (3, 4), (4, 9), (5, 1), (6, 1), (7, 1)]
    batches = in_batches(
        items,
        3,
        shape_of=lambda item: item[1],
        position_of=lambda item: item[0],
        max_waiting=8,
        weight_of=lambda item: item[1],
        most=8,
    )
    assert [[number for number, _ in batch] for batch in batches] == [[1], [0, 2], [4], [5, 6, 7], [3]]
