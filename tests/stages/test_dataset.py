"""Samples: the right pixels under the right labels, in an order that only seed and epoch decide."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from torch.utils.data import DataLoader

from manifests.run import load_run
from manifests.schema import to_json
from stages.distillation.dataset import BatchPlan, LabelDataset, SampleRequest, is_flipped, sample_order, teacher_for_step
from tests.training_run import AFFINE, CONTEXT_PX, scene_disparity, write_run

TEACHERS = ("primary", "assistant")
WIDE, TALL = (32, 48), (48, 36)


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in two shapes; 2 is rejected everywhere, 7 by the assistant alone."""
    rejected = {"images": [2], "primary": [2], "assistant": [2, 7]}
    return write_run(tmp_path_factory.mktemp("mixed") / "run", extents=(WIDE, TALL), rejected=rejected)


def plan_for(dataset: LabelDataset, **changes: object) -> BatchPlan:
    given = {"batch_size": 4, "steps": 6, "seed": 3, "primary_ratio": 0.5, "num_teachers": 2, "flip": True, **changes}
    return BatchPlan(part_sizes=dataset.part_sizes, **given)  # type: ignore[arg-type]


def test_only_images_that_every_column_has_labelled_are_samples(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    keys = [dataset[SampleRequest(i, 0, False)].key for i in range(len(dataset))]
    assert keys == [f"scenes.{i // 5:05d}/scene-{i}" for i in range(12) if i not in (2, 7)]
    assert len(LabelDataset(mixed_run, ("primary",))) == 11


def test_each_context_of_an_image_is_a_sample_with_its_own_pixels_and_labels(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=4, part_size=2, contexts_per_image=3, rejected={"assistant": [1]})
    dataset = LabelDataset(run, TEACHERS)
    assert dataset.part_sizes == (3, 6)
    assert dataset.digest() != LabelDataset(run, ("primary",)).digest()
    scenes = [image * 3 + context for image in (0, 2, 3) for context in range(3)]
    for index, scene in enumerate(scenes):
        sample = dataset[SampleRequest(index, 0, False)]
        assert sample.key == f"scenes.{scene // 6:05d}/scene-{scene // 3}#{scene % 3}"
        disparity, (scale, shift) = scene_disparity(scene, CONTEXT_PX, CONTEXT_PX), AFFINE["primary"]
        assert np.abs(sample.context.values - (disparity * scale + shift))[sample.context.valid].max() < 1e-4
        assert np.abs(sample.image[..., 0] - disparity * 255).mean() < 3  # JPEG
        corner = sample.patches[0]
        wanted = disparity[: corner.box.height, : corner.box.width] * (3 * scale) + shift + 1
        assert np.abs(corner.values - wanted).max() < 1e-4


def test_a_run_written_before_contexts_were_counted_has_one_of_each_image(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=3)
    record = load_run(run)
    plan = {key: value for key, value in record.plan.items() if key != "contexts_per_image"}
    (run / "run.json").write_bytes(to_json(dataclasses.replace(record, plan=plan)))
    assert len(LabelDataset(run, TEACHERS)) == 3


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("teacher", [0, 1])
def test_picture_label_and_patches_show_the_same_place(mixed_run: Path, teacher: int, flip: bool) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    batch = dataset.collate([dataset[SampleRequest(i, teacher, flip)] for i in (0, 1)])
    assert batch.teacher == TEACHERS[teacher]
    assert batch.extent.tolist() == [list(WIDE), list(TALL)]
    scale, shift = AFFINE[batch.teacher]
    for i, (height, width) in enumerate((WIDE, TALL)):
        disparity = scene_disparity(i, height, width)[:, :: -1 if flip else 1]
        label, valid = batch.label[i].numpy(), batch.valid[i].numpy()
        assert valid.sum() == height * width - 1  # one corner of every label is invalid
        assert not valid[0, width - 1 if flip else 0]
        error = np.abs(label[:height, :width] - (disparity * scale + shift))
        assert error[valid[:height, :width]].max() < 1e-4
        red = batch.image[i, 0].numpy().astype(int)
        assert np.abs(red[:height, :width] - disparity * 255).mean() < 3  # JPEG
        for beyond in (batch.image[i].sum(0).numpy(), valid):
            assert not beyond[height:].any()
            assert not beyond[:, width:].any()
        boxes = batch.patch_box[i].tolist()
        assert (height, width) in {(top + h, left + w) for top, left, h, w in boxes}
        for j, (top, left, patch_height, patch_width) in enumerate(boxes):
            crop = disparity[top : top + patch_height, left : left + patch_width] * (3 * scale) + shift + 1
            assert np.abs(batch.patch_label[i, j, :patch_height, :patch_width].numpy() - crop).max() < 1e-4
            assert batch.patch_valid[i, j].sum() == patch_height * patch_width


def test_samples_of_different_patch_counts_are_padded_with_invalid_patches(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    first, second = (dataset[SampleRequest(i, 0, False)] for i in (0, 1))
    fewer = dataclasses.replace(second, patches=second.patches[:1])
    batch = dataset.collate([first, fewer])
    assert batch.patch_label.shape == (2, 4, 24, 24)
    assert batch.patch_box[1, 1:].abs().sum() == 0
    assert not batch.patch_valid[1, 1:].any()


def test_worker_processes_yield_the_same_batches(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    dataset[SampleRequest(0, 0, False)]  # opened here: open arrays must not travel
    plan = plan_for(dataset)
    alone = DataLoader(dataset, batch_sampler=plan, collate_fn=dataset.collate)
    processes = {"num_workers": 2, "multiprocessing_context": "forkserver"}
    workers = DataLoader(dataset, batch_sampler=plan, collate_fn=dataset.collate, **processes)
    for ours, theirs in zip(alone, workers, strict=True):
        for name, value in vars(ours).items():
            other = getattr(theirs, name)
            assert value.equal(other) if isinstance(value, Tensor) else value == other, name


def test_patches_are_left_out_where_no_loss_needs_them(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS, read_patches=False)
    assert dataset.collate([dataset[SampleRequest(0, 0, False)]]).patch_label.shape[1] == 0


# --- order ----------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once_and_depends_on_seed_and_epoch_alone() -> None:
    sizes = (5, 3, 5, 5, 5, 2)
    orders = [sample_order(seed, epoch, sizes).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(25)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    sample_order.cache_clear()
    assert sample_order(1, 1, sizes).tolist() == orders[3]


def test_images_are_shuffled_within_a_window_of_parts() -> None:
    sizes = (10,) * 6
    order = sample_order(0, 0, sizes, window=2)
    windows = [{int(image) // 10 for image in order[start : start + 20]} for start in (0, 20, 40)]
    assert all(len(parts) == 2 for parts in windows)
    assert windows[0] | windows[1] | windows[2] == set(range(6))
    assert any(order[i] // 10 != order[i + 1] // 10 for i in range(8))  # parts are mixed, not one after the other


def test_a_plan_that_starts_later_continues_the_same_sequence(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    assert list(plan_for(dataset))[4:] == list(plan_for(dataset, first_step=4))
    seen = [request.sample for batch in plan_for(dataset, steps=5) for request in batch]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))  # two epochs, across batch borders


def test_the_primary_teacher_speaks_in_seven_of_ten_steps() -> None:
    primary = [teacher_for_step(0, step, 0.7) == 0 for step in range(4000)]
    assert 0.68 < np.mean(primary) < 0.72
    assert {teacher_for_step(0, step, 1.0) for step in range(200)} == {0}
    assert [teacher_for_step(1, step) for step in range(50)] != [teacher_for_step(0, step) for step in range(50)]


def test_half_of_the_images_are_mirrored_and_others_in_the_next_epoch() -> None:
    flips = np.array([[is_flipped(0, epoch, image) for image in range(1000)] for epoch in (0, 1)])
    assert 0.45 < flips.mean() < 0.55
    assert 0.4 < (flips[0] != flips[1]).mean() < 0.6


# --- refusals -------------------------------------------------------------------------------------------------------


def test_teachers_of_different_depth_spaces_are_refused_naming_both(tmp_path: Path) -> None:
    spaces = {"primary": "disparity_affine_invariant", "assistant": "depth_affine_invariant"}
    run = write_run(tmp_path / "run", spaces=spaces)
    with pytest.raises(ValueError, match=r"depth_space: 'primary' has disparity_affine.*'assistant' has depth_affine"):
        LabelDataset(run, TEACHERS)
    assert len(LabelDataset(run, ("assistant",))) == 12


def test_an_unknown_column_is_refused_with_the_known_ones(mixed_run: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'asistant' \(it has: primary, assistant\)"):
        LabelDataset(mixed_run, ("primary", "asistant"))
    with pytest.raises(ValueError, match="teachers: found"):
        LabelDataset(mixed_run, ("primary", "primary"))


def test_columns_with_different_view_plans_are_refused_naming_the_field(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", fingerprints={"assistant": {"plan_context_px": 2 * CONTEXT_PX}})
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
    partial = write_run(tmp_path / "partial", without=[("assistant", 1)])
    assert len(LabelDataset(partial, TEACHERS)) == 7
    assert LabelDataset(partial, TEACHERS).digest() != LabelDataset(partial, ("primary",)).digest()
    empty = write_run(tmp_path / "empty", without=[("assistant", number) for number in range(3)])
    with pytest.raises(ValueError, match=r"no image is labelled in all columns.*assistant: 0"):
        LabelDataset(empty, TEACHERS)
