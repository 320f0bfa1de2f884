"""Samples: the right pixels under the right labels, whoever reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from manifests.schema import parse_run, to_json
from stages.distillation.batch import mirrored
from stages.distillation.dataset import LabelDataset
from stages.distillation.fusion import agreement_weighted_average
from stages.distillation.order import AVERAGE, BatchPlan, SampleRequest
from tests.stages.distillation.test_batch import assert_equal
from tests.training_run import AFFINE, CONTEXT_PX, scene_disparity, write_run

TEACHERS = ("primary", "assistant")
WIDE, TALL = (32, 48), (48, 36)


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in two shapes; 2 is rejected everywhere, 7 by the assistant alone."""
    rejected = {"images": [2], "primary": [2], "assistant": [2, 7]}
    return write_run(tmp_path_factory.mktemp("mixed") / "run", extents=(WIDE, TALL), rejected=rejected)


def test_only_images_that_every_column_has_labelled_are_samples(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    keys = [dataset[SampleRequest(i, 0, False)].key for i in range(len(dataset))]
    assert keys == [f"scenes.{i // 5:05d}/scene-{i}" for i in range(12) if i not in (2, 7)]
    assert len(LabelDataset(mixed_run, ("primary",))) == 11


def test_each_context_of_an_image_is_a_sample_with_its_own_pixels_and_labels(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=4, part_size=2, contexts_per_image=3, rejected={"assistant": [1]})
    dataset = LabelDataset(run, TEACHERS)
    assert tuple(len(part.rows) for part in dataset.parts) == (3, 6)
    assert dataset.digest() != LabelDataset(run, ("primary",)).digest()
    scenes = [image * 3 + context for image in (0, 2, 3) for context in range(3)]
    for index, scene in enumerate(scenes):
        sample = dataset[SampleRequest(index, 0, False)]
        assert sample.key == f"scenes.{scene // 6:05d}/scene-{scene // 3}#{scene % 3}"
        disparity, (scale, shift) = scene_disparity(scene, CONTEXT_PX, CONTEXT_PX), AFFINE["primary"]
        assert np.abs(sample.context.values - (disparity * scale + shift))[sample.context.valid].max() < 1e-3
        assert np.abs(sample.image[..., 0] - disparity * 255).mean() < 3  # JPEG
        corner = sample.patches[0]
        wanted = disparity[: corner.box.height, : corner.box.width] * (3 * scale) + shift + 1
        assert np.abs(corner.values - wanted).max() < 1e-3


def test_a_run_written_before_contexts_were_counted_has_one_of_each_image(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=3)
    record = parse_run((run / "run.json").read_bytes(), "run.json")
    plan = {key: value for key, value in record.plan.items() if key != "contexts_per_image"}
    (run / "run.json").write_bytes(to_json(dataclasses.replace(record, plan=plan)))
    assert len(LabelDataset(run, TEACHERS)) == 3


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("teacher", [0, 1])
def test_picture_label_and_patches_show_the_same_place(mixed_run: Path, teacher: int, flip: bool) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    batch = dataset.collate([dataset[SampleRequest(i, teacher, flip)] for i in (0, 1)]).to("cpu")
    assert batch.teacher == TEACHERS[teacher]
    assert batch.extent.tolist() == [list(WIDE), list(TALL)]
    scale, shift = AFFINE[batch.teacher]
    for i, (height, width) in enumerate((WIDE, TALL)):
        disparity = scene_disparity(i, height, width)[:, :: -1 if flip else 1]
        label, valid = batch.label[i].numpy(), batch.valid[i].numpy()
        assert valid.sum() == height * width - 1  # one corner of every label is invalid
        assert not valid[0, width - 1 if flip else 0]
        error = np.abs(label[:height, :width] - (disparity * scale + shift))
        assert error[valid[:height, :width]].max() < 1e-3
        red = batch.image[i, 0].numpy().astype(int)
        assert np.abs(red[:height, :width] - disparity * 255).mean() < 3  # JPEG
        for beyond in (batch.image[i].sum(0).numpy(), valid):
            assert not beyond[height:].any()
            assert not beyond[:, width:].any()
        patches = batch.patches_of(i)
        assert (height, width) in {(top + h, left + w) for (top, left, h, w), _, _ in patches}
        for (top, left, patch_height, patch_width), values, known in patches:
            crop = disparity[top : top + patch_height, left : left + patch_width] * (3 * scale) + shift + 1
            assert np.abs(values.numpy() - crop).max() < 1e-3
            assert known.all()


def test_worker_processes_yield_the_same_batches(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    dataset[SampleRequest(0, 0, False)]  # opened here: open arrays must not travel
    plan = BatchPlan(
        part_sizes=tuple(len(part.rows) for part in dataset.parts),
        batch_size=4,
        steps=6,
        seed=3,
        ratios=(0.5, 0.5),
        flip=True,
        color_jitter=0.5,
    )
    alone = DataLoader(dataset, batch_sampler=plan, collate_fn=dataset.collate)
    processes = {"num_workers": 2, "multiprocessing_context": "spawn"}
    workers = DataLoader(dataset, batch_sampler=plan, collate_fn=dataset.collate, **processes)
    for ours, theirs in zip(alone, workers, strict=True):
        assert_equal(ours, theirs)


def test_patches_are_left_out_where_no_loss_needs_them(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS, read_patches=False)
    assert dataset.collate([dataset[SampleRequest(0, 0, False)]]).patches == ()


def test_the_colour_asked_for_is_handed_on_and_changes_neither_picture_nor_label(mixed_run: Path) -> None:
    dataset, color = LabelDataset(mixed_run, TEACHERS), (1.25, 0.5, 1.5, -0.125)
    plain, colored = (dataset.collate([dataset[SampleRequest(0, 1, True, *c)]]) for c in ((), (color,)))
    assert plain.color.tolist() == [[1, 1, 1, 0]]
    assert colored.color.tolist() == [list(color)]
    assert_equal(dataclasses.replace(plain, color=colored.color), colored)


def test_a_sample_of_all_teachers_is_their_agreement_on_the_context_and_on_each_patch(tmp_path: Path) -> None:
    names = ("primary", "assistant", "third")
    run = write_run(tmp_path / "run", images=2, spaces=dict.fromkeys(names, "disparity_affine_invariant"))
    dataset = LabelDataset(run, names)
    fused, *own = (dataset[SampleRequest(1, teacher, False)] for teacher in (AVERAGE, 0, 1, 2))
    assert (fused.teacher, [sample.teacher for sample in own]) == ("average", list(names))
    wanted = agreement_weighted_average([sample.context for sample in own])
    assert np.array_equal(fused.context.values, wanted.values)
    assert np.array_equal(fused.context.valid, own[0].context.valid)
    assert [patch.box for patch in fused.patches] == [patch.box for patch in own[0].patches]
    for patch, views in zip(fused.patches, zip(*(sample.patches for sample in own), strict=True), strict=True):
        assert np.array_equal(patch.values, agreement_weighted_average(views).values)
    assert np.array_equal(dataset[SampleRequest(1, AVERAGE, True)].context.values, mirrored(fused).context.values)


def test_metric_depth_comes_out_as_disparity_where_that_was_chosen(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", images=2, spaces={"primary": "disparity_metric", "assistant": "depth_metric"})
    plain, changed = (LabelDataset(run, ("assistant",), conversion=choice) for choice in ("refuse", "metric"))
    assert (plain.depth_space, changed.depth_space) == ("depth_metric", "disparity_affine_invariant")
    depth, disparity = (dataset[SampleRequest(1, 0, False)] for dataset in (plain, changed))
    pairs = [(depth.context, disparity.context), *zip(depth.patches, disparity.patches, strict=True)]
    for depth_view, view in pairs:
        assert np.array_equal(view.valid, depth_view.valid)
        assert np.allclose(view.values[view.valid], 1 / np.maximum(depth_view.values[view.valid], 1e-3))
    both = LabelDataset(run, TEACHERS, conversion="metric")
    as_it_was = LabelDataset(run, ("primary",))[SampleRequest(1, 0, False)]
    assert np.array_equal(both[SampleRequest(1, 0, False)].context.values, as_it_was.context.values)


def test_the_key_of_a_sample_is_known_without_its_arrays(mixed_run: Path) -> None:
    dataset = LabelDataset(mixed_run, TEACHERS)
    assert [dataset.key_of(i) for i in (0, 9)] == [dataset[SampleRequest(i, 0, False)].key for i in (0, 9)]
