"""The label queue: every unit ends once, an image's fault is found, and what is nobody's fault is not laid on an image."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import manifests
from manifests.run import IMAGES
from pipeline.label.queue import (
    LabelQueue,
    Outcome,
    OutputUnwritableError,
    RunNotSharedError,
    Task,
    TeacherUnusableError,
    UnitInterruptedError,
    WorkerDiedError,
    WorkerStalledError,
)
from stages.labelling.teacher import TeacherSpec
from stages.labelling.unit import InputChangedError, Unit, UnitResult
from stages.sources.source import CatalogueRow, Source
from stages.views import ViewPlan

_COLUMNS = (IMAGES, "primary", "assistant")
_DONE = UnitResult(committed=True, labelled=1, rejected=0)


def _unit(tmp_path: Path, column: str, part: str, images: int = 8) -> Unit:
    (tmp_path / "columns" / column).mkdir(parents=True, exist_ok=True)
    rows = tuple(CatalogueRow(key=f"{i}", member=f"{i}.jpg", offset=0, size_bytes=1) for i in range(images))
    return Unit(
        run_dir=tmp_path,
        records={},
        column=column,
        part=part,
        attempt="",
        source=Source(name="photos", kind="folder", location=tmp_path),
        rows=rows,
        plan=ViewPlan(),
        seed=0,
        fingerprint={},
    )


def _queue(
    units: list[Unit], *, images_done: set[str] | None = None, committed: set[str] | None = None, teachers_first: bool = False
) -> LabelQueue:
    teachers = {name: TeacherSpec(name=name, loader="transformers", checkpoint=".") for name in _COLUMNS[1:]}
    return LabelQueue(
        units,
        teachers,
        images_done=images_done or set(),
        is_committed=lambda unit: unit.part in (committed or set()),
        max_attempts=3,
        teachers_first=teachers_first,
    )


def _work(queue: LabelQueue, outcome_of) -> list:
    """Do everything in one process; outcome_of(task) says how each task goes."""
    ended = []
    while task := queue.take(_COLUMNS):
        ended += queue.settle(task, outcome_of(task))
    assert not queue.has_more(_COLUMNS)
    return ended + queue.give_up_blocked()


def test_every_unit_ends_once_and_a_part_is_shown_to_teachers_after_its_images(tmp_path: Path):
    units = [_unit(tmp_path, column, part) for column in _COLUMNS for part in ("a", "b", "c")]
    order = []

    def outcome_of(task: Task) -> Outcome:
        order.append((task.unit.column, task.unit.part))
        return _DONE

    ended = _work(_queue(units), outcome_of)
    assert sorted((unit.column, unit.part) for unit, _ in ended) == sorted(order) == sorted((u.column, u.part) for u in units)
    for column, part in order:
        if column != IMAGES:
            assert order.index((IMAGES, part)) < order.index((column, part))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WorkerDiedError("gone"), "crashes_worker"),
        (WorkerStalledError("no sign of life"), "timed_out"),
        (KeyError("odd"), "raises_error"),
    ],
)
def test_the_images_that_take_a_unit_down_are_found_and_the_unit_runs_without_them(tmp_path: Path, error: Exception, kind: str):
    guilty = {2, 5}
    final: list[Unit] = []

    def outcome_of(task: Task) -> Outcome:
        if task.index is not None:
            return error if task.index in guilty else None
        if not guilty <= set(task.unit.excluded):
            return error
        final.append(task.unit)
        return _DONE

    ended = _work(_queue([_unit(tmp_path, IMAGES, "a")]), outcome_of)
    assert [ending for _, ending in ended] == [_DONE]
    assert {index: reason.kind for index, reason in final[0].excluded.items()} == dict.fromkeys(guilty, kind)


def test_an_image_that_fails_once_and_not_again_is_not_rejected(tmp_path: Path):
    """A machine that was switched off while an innocent image was tried must not cost that image."""
    seen: list[int] = []

    def outcome_of(task: Task) -> Outcome:
        if task.index is None:
            return _DONE if task.unit.excluded or len(seen) else WorkerDiedError("gone")
        seen.append(task.index)
        return WorkerDiedError("gone") if task.index == 6 or (task.index == 1 and seen.count(1) == 1) else None

    final: list[Unit] = []
    queue = _queue([_unit(tmp_path, IMAGES, "a")])
    while task := queue.take(_COLUMNS):
        final += [unit for unit, _ in queue.settle(task, outcome_of(task))]
    assert [set(unit.excluded) for unit in final] == [{6}]


def test_when_every_image_fails_it_is_the_teacher_and_not_the_images(tmp_path: Path):
    tried = []

    def outcome_of(task: Task) -> Outcome:
        tried.append(task)
        return RuntimeError("the device is gone")

    ((_, failure),) = _work(_queue([_unit(tmp_path, "primary", "a", images=64)], images_done={"a"}), outcome_of)
    assert isinstance(failure, manifests.FailureRecord)
    assert (failure.problem.kind, failure.problem.message, failure.images) == ("RuntimeError", "the device is gone", 64)
    assert len(tried) < 20  # not 64 images, twice each


@pytest.mark.parametrize(("proven", "ends"), [(True, _DONE), (False, "WorkerDiedError")])
def test_an_image_alone_in_its_part_is_to_blame_once_its_column_has_done_other_parts(tmp_path: Path, proven: bool, ends):
    def outcome_of(task: Task) -> Outcome:
        return WorkerDiedError("gone") if task.unit.part == "b" and not task.unit.excluded else _DONE

    units = [_unit(tmp_path, IMAGES, "a")] * proven + [_unit(tmp_path, IMAGES, "b", images=1)]
    _, ending = _work(_queue(units), outcome_of)[-1]
    assert (ending.problem.kind if isinstance(ending, manifests.FailureRecord) else ending) == ends


def test_a_source_that_goes_away_while_images_are_tried_is_not_laid_on_them(tmp_path: Path):
    def outcome_of(task: Task) -> Outcome:
        if task.index is None:
            return WorkerDiedError("gone")
        return None if task.index < 2 else OSError(errno.EIO, "Input/output error")

    queue = _queue([_unit(tmp_path, IMAGES, "a")])
    ((_, failure),) = _work(queue, outcome_of)
    assert isinstance(failure, manifests.FailureRecord)
    assert "Input/output error" in failure.problem.message


def test_a_unit_that_fails_though_each_image_goes_well_has_failed(tmp_path: Path):
    ((_, failure),) = _work(
        _queue([_unit(tmp_path, IMAGES, "a")]), lambda task: WorkerDiedError("memory") if task.index is None else None
    )
    assert isinstance(failure, manifests.FailureRecord)
    assert failure.problem.kind == "WorkerDiedError"


def test_labels_of_images_that_failed_are_failures_too_and_do_not_wait_forever(tmp_path: Path):
    units = [_unit(tmp_path, column, "a") for column in _COLUMNS]
    ended = _work(_queue(units), lambda task: WorkerDiedError("gone"))
    kinds = {unit.column: ending.problem.kind for unit, ending in ended if isinstance(ending, manifests.FailureRecord)}
    assert kinds == {IMAGES: "WorkerDiedError", "primary": "images_missing", "assistant": "images_missing"}


def test_changed_input_fails_at_once_and_is_not_laid_on_the_image(tmp_path: Path):
    tasks = []

    def outcome_of(task: Task) -> Outcome:
        tasks.append(task)
        return InputChangedError("x.jpg: its sha256 is 1, but it was 2")

    ((_, failure),) = _work(_queue([_unit(tmp_path, "primary", "a")], images_done={"a"}), outcome_of)
    assert isinstance(failure, manifests.FailureRecord)
    assert failure.problem.kind == "InputChangedError"
    assert len(tasks) == 1


def test_a_unit_whose_teacher_one_worker_cannot_load_waits_for_another_worker(tmp_path: Path):
    queue = _queue([_unit(tmp_path, "assistant", "a")], images_done={"a"})
    outcomes: list[Outcome] = [TeacherUnusableError("no weights here"), _DONE]
    assert [ending for _, ending in _work(queue, lambda task: outcomes.pop(0))] == [_DONE]


def test_a_column_that_is_given_up_ends_and_the_others_go_on(tmp_path: Path):
    units = [_unit(tmp_path, column, part) for column in _COLUMNS for part in "abcdef"]
    asked = []

    def outcome_of(task: Task) -> Outcome:
        asked.append(task.unit.column)
        if task.unit.column != "assistant":
            return _DONE
        queue.give_up("assistant", "no weights")
        return TeacherUnusableError("no weights")

    queue = _queue(units)
    ended = _work(queue, outcome_of)
    assert asked.count("assistant") == 1
    assert {unit.column for unit, _ in ended} == {IMAGES, "primary"}
    assert queue.given_up == {"assistant": "no weights"}


def test_a_full_disk_ends_the_run_and_not_the_unit(tmp_path: Path):
    queue = _queue([_unit(tmp_path, IMAGES, "a")])
    task = queue.take(_COLUMNS)
    assert task
    with pytest.raises(OutputUnwritableError, match="No space left"):
        queue.settle(task, OSError(errno.ENOSPC, "No space left on device", "x"))


def test_what_another_driver_has_committed_meanwhile_is_not_done_again(tmp_path: Path):
    units = [_unit(tmp_path, column, part) for column in (IMAGES, "primary") for part in ("a", "b")]
    ended = _work(_queue(units, committed={"a"}), lambda task: _DONE)
    assert {unit.part for unit, _ in ended} == {"b"}


def test_a_worker_keeps_its_teacher_and_a_free_one_takes_the_column_with_fewest_workers(tmp_path: Path):
    units = [_unit(tmp_path, column, part) for column in _COLUMNS[1:] for part in "abcdef"]
    queue = _queue(units, images_done=set("abcdef"))
    first, second, third = (queue.take(_COLUMNS) for _ in range(3))
    assert first
    assert second
    assert third
    assert {first.unit.column, second.unit.column} == {"primary", "assistant"}
    kept = queue.take(_COLUMNS, loaded="assistant")
    assert kept
    assert kept.unit.column == "assistant"


def test_before_anything_else_every_teacher_with_units_is_loaded_the_one_needed_next_last(tmp_path: Path):
    units = [_unit(tmp_path, column, "a") for column in _COLUMNS]
    queue = _queue(units, teachers_first=True)
    first = queue.take(_COLUMNS)
    second = queue.take(_COLUMNS)
    assert first
    assert second
    assert [(task.unit.column, task.only_teacher) for task in (first, second)] == [("assistant", True), ("primary", True)]
    assert queue.settle(second, None) == []
    assert queue.take(_COLUMNS) is None  # not before the other one is loaded too
    assert queue.has_more(["assistant"])
    assert queue.settle(first, None) == []
    assert len(_work(queue, lambda task: _DONE)) == 3


def test_a_teacher_without_units_is_not_loaded(tmp_path: Path):
    tasks = []

    def outcome_of(task: Task) -> Outcome:
        tasks.append((task.unit.column, task.only_teacher))
        return None if task.only_teacher else _DONE

    _work(_queue([_unit(tmp_path, "primary", "a")], images_done={"a"}, teachers_first=True), outcome_of)
    assert tasks == [("primary", True), ("primary", False)]


@pytest.mark.parametrize("error", [TeacherUnusableError("no weights here"), RunNotSharedError("another disk")])
def test_what_one_machine_cannot_do_waits_for_another_worker(tmp_path: Path, error: Exception):
    outcomes: list[Outcome] = [*[error] * 5, None, *[error] * 5, _DONE]
    queue = _queue([_unit(tmp_path, "assistant", "a")], images_done={"a"}, teachers_first=True)
    assert [ending for _, ending in _work(queue, lambda task: outcomes.pop(0))] == [_DONE]


def test_a_teacher_that_takes_its_workers_down_ends_it_all_after_some_attempts(tmp_path: Path):
    queue = _queue([_unit(tmp_path, "assistant", "a")], images_done={"a"}, teachers_first=True)
    tasks = []

    def outcome_of(task: Task) -> Outcome:
        tasks.append(task)
        return WorkerDiedError("out of memory")

    with pytest.raises(TeacherUnusableError, match=r"teacher assistant was to be loaded, 3 times; .*out of memory"):
        _work(queue, outcome_of)
    assert len(tasks) == 3


def test_the_queue_imports_neither_networks_nor_ray_nor_stores() -> None:
    script = "import sys, pipeline.label.queue; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "manifests" in loaded
    assert not {"torch", "ray", "zarr", "pyarrow"} & set(loaded)


def test_a_second_part_is_begun_beside_the_first_where_nobody_else_waits_for_it(tmp_path: Path):
    queue = _queue([_unit(tmp_path, "primary", part) for part in "abc"], images_done=set("abc"))
    first = queue.take(["primary"])
    assert first is not None
    assert queue.take_beside(first, workers=3) is None  # two parts are left, and two other workers to do them
    second = queue.take_beside(first, workers=2)
    assert second is not None
    assert (second.unit.part, second.alone) == ("b", False)


def test_pictures_and_single_images_are_done_alone(tmp_path: Path):
    queue = _queue([_unit(tmp_path, IMAGES, part) for part in "abc"])
    task = queue.take([IMAGES])
    assert task is not None
    assert queue.take_beside(task, workers=1) is None
    queue = _queue([_unit(tmp_path, "primary", part) for part in "abcd"], images_done=set("abcd"))
    tried, other = (Task(unit=_unit(tmp_path, "primary", "x"), teacher=None, index=index) for index in (3, None))
    assert queue.take_beside(tried, workers=1) is None
    assert queue.take_beside(other, workers=1) is None


def test_a_part_that_was_interrupted_has_lost_no_attempt_and_is_done_alone(tmp_path: Path):
    queue = _queue([_unit(tmp_path, "primary", "a")], images_done={"a"})
    for _ in range(5):  # more often than there are attempts
        task = queue.take(["primary"])
        assert task is not None
        assert queue.settle(task, UnitInterruptedError("gone")) == []
    task = queue.take(["primary"])
    assert task is not None
    assert task.alone
    assert not task.may_overlap
    assert queue.settle(task, _DONE) == [(task.unit, _DONE)]


def test_a_part_that_is_to_be_alone_is_not_begun_beside_another(tmp_path: Path):
    queue = _queue([_unit(tmp_path, "primary", part) for part in "ab"], images_done=set("ab"))
    first, second = queue.take(["primary"]), queue.take(["primary"])
    assert first is not None
    assert second is not None
    queue.settle(second, UnitInterruptedError("gone"))
    assert queue.take_beside(first, workers=1) is None
    again = queue.take(["primary"])
    assert again is not None
    assert again.alone
