"""The order: every draw is a pure function of its arguments; each sample is seen once an epoch, however the work is shared."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import RefusedError
from stages.distillation.order import (
    AVERAGE,
    UNCHANGED,
    BatchPlan,
    Strategy,
    all_draws,
    color_of,
    is_flipped,
    sample_order,
    stream_of_slot,
    teacher_for_step,
    with_stand_ins,
)

SIZES = (5, 3, 5, 5, 5, 2)


def plan(**changes: object) -> BatchPlan:
    given = {"batch_size": 4, "steps": 12, "seed": 3, "ratios": (0.5, 0.5), "flip": True, **changes}
    return BatchPlan(part_sizes=SIZES, **given)  # type: ignore[arg-type]


# --- samples --------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once_and_depends_on_seed_and_epoch_alone() -> None:
    orders = [sample_order(seed, epoch, SIZES).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(25)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    sample_order.cache_clear()
    assert sample_order(1, 1, SIZES).tolist() == orders[3]


def test_images_are_shuffled_within_a_window_of_parts() -> None:
    sizes = (10,) * 6
    order = sample_order(0, 0, sizes, window=2)
    windows = [{int(image) // 10 for image in order[start : start + 20]} for start in (0, 20, 40)]
    assert all(len(parts) == 2 for parts in windows)
    assert windows[0] | windows[1] | windows[2] == set(range(6))
    assert any(order[i] // 10 != order[i + 1] // 10 for i in range(8))  # parts are mixed, not one after the other


def test_a_plan_that_starts_later_continues_the_same_sequence() -> None:
    assert list(plan())[4:] == list(plan(first_step=4))
    seen = [request.sample for batch in plan(batch_size=10, steps=5) for request in batch]
    assert sorted(seen[:25]) == sorted(seen[25:]) == list(range(25))  # two epochs, across a batch


def test_all_draws_are_what_the_steps_draw() -> None:
    places, teachers = all_draws(plan())
    requests = [request for step in range(12) for request in plan().requests(step)]
    assert [(request.sample, request.teacher) for request in requests] == list(zip(places, teachers, strict=True))


def test_images_without_labels_change_no_other_draw_and_what_stands_in_for_them_is_drawn_for_the_same_teacher() -> None:
    sound, lost = plan(steps=40), {2, 7, 19}
    samples = np.where(np.isin(np.arange(25), list(lost)), -1, np.arange(25))
    with_lost = with_stand_ins(plan(steps=40, samples=samples))
    places, teachers = all_draws(sound)
    drawn = {teacher: set(places[teachers == teacher]) - lost for teacher in (0, 1)}
    stood_in = []
    for step in range(40):
        for before, after in zip(sound.requests(step), with_lost.requests(step), strict=True):
            if before.sample in lost:
                assert after.sample in drawn[before.teacher]
                assert after.teacher == before.teacher
                stood_in.append(after.sample)
            else:
                assert after == before
    assert len(set(stood_in)) > 5  # not always the same few
    assert list(with_lost)[4:] == list(with_stand_ins(plan(steps=40, samples=samples, first_step=4)))


def test_a_teacher_of_whom_nothing_that_is_drawn_has_labels_is_refused() -> None:
    with pytest.raises(RefusedError, match="none of the 4 samples that are drawn for one of the teachers has labels"):
        with_stand_ins(plan(steps=1, samples=np.full(25, -1)))


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    forwards = [plan(color_jitter=0.5).requests(step) for step in range(12)]
    sample_order.cache_clear()
    assert [plan(color_jitter=0.5).requests(step) for step in reversed(range(12))] == forwards[::-1]


def test_a_batch_larger_than_the_dataset_spans_epochs() -> None:
    samples = [request.sample for request in plan(batch_size=80, steps=1).requests(0)]
    assert [sorted(samples[start : start + 25]) for start in (0, 25, 50)] == [list(range(25))] * 3


@pytest.mark.parametrize("batch_size", [7, 8, 12])
def test_any_number_of_processes_and_micro_batches_shares_each_steps_batch_exactly(batch_size: int) -> None:
    whole = [plan(batch_size=batch_size).requests(step) for step in range(12)]
    for world_size in range(1, batch_size + 1):
        for accumulation in range(1, batch_size // world_size + 1):
            shared = {"batch_size": batch_size, "world_size": world_size, "accumulation": accumulation}
            ranks = [plan(rank=rank, **shared) for rank in range(world_size)]
            assert {len(rank) for rank in ranks} == {12 * accumulation}
            shares = list(zip(*ranks, strict=True))  # a tuple of all ranks' shares for each micro-batch
            lengths = {len(share) for shares_of_ranks in shares for share in shares_of_ranks}
            assert max(lengths) - min(lengths) <= 1
            assert min(lengths) >= 1
            for step, batch in enumerate(whole):
                micro = shares[step * accumulation : (step + 1) * accumulation]
                assert [request for shares_of_ranks in micro for share in shares_of_ranks for request in share] == batch


def test_a_batch_too_small_to_share_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size: found 4, expected at least one sample for each of 3 processes x 2"):
        plan(world_size=3, accumulation=2)
    with pytest.raises(ValueError, match="rank: found 2, expected 0 to 1"):
        plan(rank=2, world_size=2)
    with pytest.raises(ValueError, match=r"color_jitter: found 1\.5"):
        plan(color_jitter=1.5)


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "digest"),
    [
        ({}, "d33622eaf12b1f8f0d0fbad54f2adf76593b9ce600fec08f0d049bdc60313622"),
        (
            {"world_size": 2, "accumulation": 2, "rank": 1},
            "8215fb6c6ee2aff058154b5f9e46b663392c96351d8978f65379d4c1f8d1d2d9",
        ),
    ],
)
def test_one_stream_is_the_order_that_trainings_of_old_have(share: dict[str, int], digest: str) -> None:
    samples = np.where(np.isin(np.arange(25), [2, 7, 19]), -1, np.arange(25))
    drawn = with_stand_ins(plan(steps=40, samples=samples, streams=1, **share))
    told = [[(int(sample), int(teacher), bool(flip)) for sample, teacher, flip, _ in chunk] for chunk in drawn]
    assert hashlib.sha256(repr(told).encode()).hexdigest() == digest


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0), st.integers(1, 7), st.data())
def test_an_epoch_shows_every_image_once_in_any_number_of_streams(
    sizes: list[int], batch_size: int, data: st.DataObject
) -> None:
    streams, epoch = data.draw(st.integers(1, batch_size)), data.draw(st.integers(0, 3))
    order = sample_order(5, epoch, tuple(sizes), streams=streams, batch_size=batch_size)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


def test_each_part_is_in_one_stream_in_all_epochs_but_for_those_at_the_ends() -> None:
    sizes, batch_size, streams = (10,) * 23, 8, 4
    stream_of = stream_of_slot(batch_size, streams)
    found = []
    for epoch in range(3):
        order = sample_order(0, epoch, sizes, streams=streams, batch_size=batch_size)
        slots = (epoch * 230 + np.arange(230)) % batch_size
        found.append([set((order[stream_of[slots] == stream] // 10).tolist()) for stream in range(streams)])
        assert sum(map(len, found[-1])) <= len(sizes) + streams - 1
    for stream in range(streams):
        anywhere, everywhere = set.union(*(epoch[stream] for epoch in found)), set.intersection(*(e[stream] for e in found))
        assert len(anywhere - everywhere) <= 2
    orders = [sample_order(0, epoch, sizes, streams=streams, batch_size=batch_size).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("batch_size", "streams"), [(8, 4), (7, 3), (5, 5)])
def test_with_streams_too_any_number_of_processes_shares_the_same_batches(batch_size: int, streams: int) -> None:
    order = {"batch_size": batch_size, "streams": streams, "color_jitter": 0.5}
    whole = [plan(**order).requests(step) for step in range(12)]
    for world_size in range(1, batch_size + 1):
        for accumulation in range(1, batch_size // world_size + 1):
            ranks = [plan(rank=rank, world_size=world_size, accumulation=accumulation, **order) for rank in range(world_size)]
            for step, batch in enumerate(whole):
                shares = [request for rank in ranks for micro in range(accumulation) for request in rank.chunk(step, micro)]
                assert shares == batch
            if streams % world_size == 0:
                assert {rank.streams_read for rank in ranks} == {streams // world_size}


def test_what_stands_in_is_of_the_same_stream_and_teacher_and_near() -> None:
    sizes, lost = (40,) * 16, set(range(3, 640, 20))
    samples = np.where(np.isin(np.arange(640), list(lost)), -1, np.arange(640))
    many = {"batch_size": 8, "streams": 2, "steps": 80, "seed": 3, "ratios": (0.7, 0.3), "flip": False}
    before, after = (BatchPlan(part_sizes=sizes, samples=of, **many) for of in (None, samples))  # type: ignore[arg-type]
    places, teachers = all_draws(before)
    drawn = with_stand_ins(after)
    assert len(drawn.stand_ins) == len(lost)
    for number, place in drawn.stand_ins.items():
        (other,) = np.flatnonzero(places == place)
        assert teachers[other] == teachers[number]
        assert (other % 8 < 4) == (number % 8 < 4)
        assert abs(other - number) < 400


def test_more_streams_than_a_batch_has_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="streams: found 5, expected 1 to batch_size, which is 4"):
        plan(streams=5)


# --- teachers -------------------------------------------------------------------------------------------------------


def test_the_first_of_two_teachers_speaks_in_seven_of_ten_steps() -> None:
    first = [teacher_for_step(0, step, (0.7, 0.3)) == 0 for step in range(4000)]
    assert 0.68 < np.mean(first) < 0.72
    assert {teacher_for_step(0, step, (2.0,)) for step in range(200)} == {0}
    assert {teacher_for_step(0, step, (0.0, 1.0, 0.0)) for step in range(200)} == {1}
    one, other = ([teacher_for_step(seed, step, (0.7, 0.3)) for step in range(50)] for seed in (0, 1))
    assert one != other


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5).filter(lambda ratios: sum(ratios) > 0), st.integers(0, 99))
def test_only_the_proportions_of_ratios_matter_and_none_of_0_is_ever_drawn(ratios: list[float], step: int) -> None:
    drawn = teacher_for_step(0, step, tuple(ratios))
    assert ratios[drawn] > 0
    assert teacher_for_step(0, step, tuple(4 * ratio for ratio in ratios)) == drawn


@pytest.mark.parametrize(
    ("strategy", "ratios", "shares"),
    [
        ("select", (3.0,), {0: 1.0}),
        ("select", (7.0, 3.0), {0: 0.7, 1: 0.3}),
        ("select", (2.0, 1.0, 1.0), {0: 0.5, 1: 0.25, 2: 0.25}),
        ("average", (1.0, 1.0, 1.0), {AVERAGE: 1.0}),
    ],
)
def test_a_strategy_gives_each_teacher_its_share_of_the_steps(
    strategy: Strategy, ratios: tuple[float, ...], shares: dict[int, float]
) -> None:
    steps = plan(strategy=strategy, ratios=ratios)
    found, counts = np.unique([steps.teacher(step) for step in range(4000)], return_counts=True)
    assert dict(zip(found.tolist(), (counts / 4000).tolist(), strict=True)) == pytest.approx(shares, abs=0.025)


def test_one_teacher_speaks_in_all_of_a_steps_batch_on_every_rank() -> None:
    ranks = [plan(rank=rank, world_size=2, ratios=(1.0, 1.0, 1.0), steps=40) for rank in (0, 1)]
    teachers = [{request.teacher for share in shares for request in share} for shares in zip(*ranks, strict=True)]
    assert {len(teacher) for teacher in teachers} == {1}
    assert set.union(*teachers) == {0, 1, 2}


# --- augmentation ---------------------------------------------------------------------------------------------------


def test_half_of_the_images_are_mirrored_and_others_in_the_next_epoch() -> None:
    flips = np.array([[is_flipped(0, epoch, image) for image in range(1000)] for epoch in (0, 1)])
    assert 0.45 < flips.mean() < 0.55
    assert 0.4 < (flips[0] != flips[1]).mean() < 0.6
    assert not any(request.flip for batch in plan(flip=False) for request in batch)


def test_colours_fill_their_ranges_and_others_come_in_the_next_epoch() -> None:
    colors = np.array([[color_of(0, epoch, image, 0.5) for image in range(1000)] for epoch in (0, 1)])
    for channel, (low, high) in enumerate([(0.5, 1.5)] * 3 + [(-0.25, 0.25)]):
        drawn, tenth = colors[..., channel], (high - low) / 10
        assert low <= drawn.min() < low + tenth
        assert high - tenth < drawn.max() <= high
    assert np.abs(np.corrcoef(np.concatenate(colors).T) - np.eye(4)).max() < 0.1
    assert not (colors[0] == colors[1]).any()
    assert color_of(0, 0, 7, 0.0) == UNCHANGED


def test_colour_changes_nothing_else_of_the_order() -> None:
    plain, colored = list(plan()), list(plan(color_jitter=0.5))
    assert {request.color for batch in plain for request in batch} == {UNCHANGED}
    assert [[request._replace(color=UNCHANGED) for request in batch] for batch in colored] == plain
