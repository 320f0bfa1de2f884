"""What belongs together is trained on together, and a lock names what has changed since."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from manifests import ImageOutcome, Reason, load_part, manifest_path, to_json
from stages.distillation.columns import lock_differences
from stages.distillation.dataset import LabelDataset
from tests.training_run import AFFINE, CONTEXT_PX, write_run

TEACHERS = ("primary", "assistant")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("columns") / "run", images=7, part_size=3)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_teachers_of_different_depth_spaces_are_refused_naming_both_and_what_would_convert_them(tmp_path: Path) -> None:
    spaces = {"primary": "disparity_affine_invariant", "assistant": "depth_affine_invariant", "third": "depth_metric"}
    run = write_run(tmp_path / "run", images=2, spaces=spaces)
    with pytest.raises(ValueError, match=r"depth_space: 'primary' has disparity_affine.*'assistant' has depth_affine") as found:
        LabelDataset(run, TEACHERS)
    assert "--convert-depth approximate." in str(found.value)
    with pytest.raises(ValueError, match=r"'third' has depth_metric.* --convert-depth metric or approximate\."):
        LabelDataset(run, ("primary", "third"))
    with pytest.raises(ValueError, match=r"'assistant' has depth_affine.*--convert-depth metric does not make all"):
        LabelDataset(run, tuple(spaces), conversion="metric")
    assert LabelDataset(run, tuple(spaces), conversion="approximate").depth_space == "disparity_affine_invariant"
    assert LabelDataset(run, ("assistant",)).depth_space == "depth_affine_invariant"


def test_an_unknown_column_is_refused_with_the_known_ones(run: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'asistant' \(it has: assistant, primary\)"):
        LabelDataset(run, ("primary", "asistant"))
    for wrong in (("primary", "primary"), (), ("images",)):
        with pytest.raises(ValueError, match="teachers: found"):
            LabelDataset(run, wrong)


def test_columns_with_different_view_plans_are_refused_naming_the_field(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=2, fingerprints={"assistant": {"plan_context_px": 2 * CONTEXT_PX}})
    with pytest.raises(ValueError, match=r"view plans of 'assistant' .* differ: plan_context_px: found 96, expected 48"):
        LabelDataset(run, TEACHERS)


def test_a_part_from_another_run_is_refused_naming_the_field(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", fingerprints={"primary": {"weights": "a"}})
    other = write_run(tmp_path / "other", fingerprints={"primary": {"weights": "b"}})
    name = Path("columns", "primary", "scenes.00001.json")
    (run / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=r'scenes\.00001\.json: not made with .* weights: found "b", expected "a"'):
        LabelDataset(run, TEACHERS)


def test_parts_still_being_labelled_are_left_out_and_none_at_all_is_refused(tmp_path: Path) -> None:
    begun = write_run(tmp_path / "begun", without=[("assistant", 1)])
    assert len(LabelDataset(begun, TEACHERS)) == 7
    assert LabelDataset(begun, TEACHERS).digest() != LabelDataset(begun, ("primary",)).digest()
    empty = write_run(tmp_path / "empty", without=[("assistant", number) for number in range(3)])
    with pytest.raises(ValueError, match=r"no image is labelled in all columns.*12 not yet labelled in 'assistant'"):
        LabelDataset(empty, TEACHERS)


# --- lock -----------------------------------------------------------------------------------------------------------


def test_a_lock_names_every_part_of_every_column_in_use(run: Path) -> None:
    lock = LabelDataset(run, ("assistant",)).lock()
    assert sorted(lock) == [f"{column}/scenes.{part:05d}" for column in ("assistant", "images") for part in range(3)]
    assert len(set(lock.values())) == 6
    assert set(lock) < set(LabelDataset(run, TEACHERS).lock())


def test_parts_labelled_again_with_the_same_outcome_are_the_same_parts(run: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path / "again", images=7, part_size=3, attempt="second")
    assert (again / "columns" / "primary" / "scenes.00000.second.zarr").is_dir()
    ours, theirs = (LabelDataset(folder, TEACHERS) for folder in (run, again))
    assert theirs.lock() == ours.lock()
    assert theirs.digest() == ours.digest()


def test_other_labels_another_outcome_or_other_settings_change_the_lock(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = LabelDataset(run, TEACHERS), partial(write_run, images=7, part_size=3)
    weights = write(tmp_path / "weights", fingerprints={"assistant": {"weights": "b"}})
    rejected = write(tmp_path / "rejected", rejected={"assistant": [4]})
    monkeypatch.setitem(AFFINE, "assistant", (0.5, -3.001))
    other = write(tmp_path / "other")
    every = "changed: " + ", ".join(f"assistant/scenes.{part:05d}" for part in range(3))
    expected = {weights: every, rejected: "changed: assistant/scenes.00001", other: every}
    for changed, message in expected.items():
        after = LabelDataset(changed, TEACHERS)
        assert lock_differences(after.lock(), before.lock()) == [message]
        assert after.digest() != before.digest()


def test_a_changed_outcome_in_a_manifest_changes_the_lock_though_the_arrays_are_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=4, part_size=4)
    before, record = LabelDataset(run, TEACHERS).lock(), load_part(run, "primary", "scenes.00000")
    rejected = ImageOutcome(key="scene-3", status="rejected", problem=Reason(kind="timed_out", message=""))
    for last in (rejected, dataclasses.replace(record.images[3], key="scene-4")):
        changed = dataclasses.replace(record, images=(*record.images[:3], last))
        manifest_path(run, "primary", "scenes.00000").write_bytes(to_json(changed))
        assert lock_differences(LabelDataset(run, TEACHERS).lock(), before) == ["changed: primary/scenes.00000"]


def test_the_digest_also_knows_which_teachers_speak_and_what_becomes_of_their_labels(run: Path) -> None:
    ways = [(TEACHERS, "refuse"), (TEACHERS[::-1], "refuse"), (TEACHERS, "approximate"), (TEACHERS[:1], "refuse")]
    digests = {LabelDataset(run, teachers, conversion=way).digest() for teachers, way in ways}  # type: ignore[arg-type]
    assert len(digests) == 4


def test_differences_of_locks_are_named_and_then_counted() -> None:
    expected = {f"a/s.{i}": "0" for i in range(6)}
    found = {**dict.fromkeys(list(expected)[:5], "1"), "a/s.7": "0"}
    assert lock_differences(found, expected) == ["changed: a/s.0, a/s.1, a/s.2 and 2 more", "missing: a/s.5", "new: a/s.7"]
    assert lock_differences(expected, expected) == []
