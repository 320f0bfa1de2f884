"""Batches as they travel and as the device has them: every pixel once, in its place, and to the bit what was stored."""

from __future__ import annotations

import dataclasses
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.distillation.batch import PackedMaps, Sample, mirrored, packed
from stages.distillation.losses import crop_patches
from stages.label_store import AnyLabel, AnyPatch, CodedLabel, CodedPatch, Label, PatchLabel, decode_label
from stages.views import Box

CONTEXT_PX = 40


def assert_equal(one: Any, other: Any) -> None:
    """Of two batches, packed or not: every number and name."""
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        if isinstance(value, Tensor):
            assert value.dtype == theirs.dtype, name
            assert value.equal(theirs), name
        elif is_dataclass(value):
            assert_equal(value, theirs)
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for ours, other_one in zip(value, theirs, strict=True):
                assert_equal(ours, other_one)
        else:
            assert value == theirs, name


def _codes(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    codes = rng.integers(0, 65536, (height, width), np.uint16) * (rng.random((height, width)) > 0.2)
    return {"codes": codes.astype(np.uint16), "scale": np.float32(rng.random()), "offset": np.float32(rng.normal())}


def samples_of_many_sizes(seed: int) -> list[Sample]:
    """Five contexts: with one patch, with several of other sizes, with none, with one all invalid, and one all invalid."""
    rng, samples = np.random.default_rng(seed), []
    for i, (height, width) in enumerate(((40, 40), (40, 23), (17, 40), (40, 40), (31, 40))):
        patches = []
        for _ in range((1, 4, 0, 3, 2)[i]):
            h, w = int(rng.integers(2, height)), int(rng.integers(2, width))
            box = Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
            patches.append(CodedPatch(**_codes(rng, h, w), box=box))
        context = CodedLabel(**_codes(rng, height, width))
        if i == 3:
            patches[1].codes[...] = 0
        if i == 4:
            context.codes[...] = 0
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        samples.append(Sample(image=image, context=context, patches=tuple(patches), key=f"{i}", teacher="primary"))
    return samples


def _as_values(label: AnyLabel) -> Label:
    return Label(values=label.values, valid=label.valid)


def _patch_as_values(patch: AnyPatch) -> AnyPatch:
    return PatchLabel(values=patch.values, valid=patch.valid, box=patch.box)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("are_codes", [True, False])
def test_every_pixel_arrives_in_its_place_and_nothing_beyond(are_codes: bool, flip: bool) -> None:
    samples = samples_of_many_sizes(0)
    if not are_codes:
        samples = [
            Sample(**vars(s) | {"context": _as_values(s.context), "patches": tuple(map(_patch_as_values, s.patches))})
            for s in samples
        ]
    samples = [mirrored(sample) for sample in samples] if flip else samples
    batch = packed(samples, CONTEXT_PX).to("cpu")
    for i, sample in enumerate(samples):
        height, width = sample.context.valid.shape
        for found, expected in (
            (batch.image[i].permute(1, 2, 0), sample.image),
            (batch.label[i], sample.context.values),
            (batch.valid[i], sample.context.valid),
        ):
            assert np.array_equal(found[:height, :width], expected)
            assert not found[height:].any()
            assert not found[:, width:].any()
        views = batch.patches_of(i)
        assert sorted(box for box, _, _ in views) == sorted(patch.box for patch in sample.patches)
        own = {patch.box: patch for patch in sample.patches}
        for box, values, valid in views:
            assert np.array_equal(values, own[box].values)
            assert np.array_equal(valid, own[box].valid)
    shown = sum(int(patch.valid.sum()) for sample in samples for patch in sample.patches)
    assert sum(int(group.valid.sum()) for group in batch.patches) == shown


def test_the_student_is_cropped_where_the_patch_lies() -> None:
    batch = packed(samples_of_many_sizes(4), CONTEXT_PX).to("cpu")
    maps = torch.arange(batch.label.numel(), dtype=torch.float64).view(batch.label.shape)
    for group in batch.patches:
        for crop, sample, (top, left, height, width) in zip(
            crop_patches(maps, group), group.sample, group.box.tolist(), strict=True
        ):
            assert crop[:height, :width].equal(maps[sample, top : top + height, left : left + width])


def test_codes_are_decoded_on_the_device_to_the_bits_of_the_label_store() -> None:
    rng = np.random.default_rng(3)
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for _ in range(20):
        scale, offset = (np.float32(rng.normal() * 10.0 ** rng.integers(-20, 20)) for _ in range(2))
        expected = decode_label(codes, scale, offset)
        maps = PackedMaps(maps=torch.from_numpy(codes[None]), code=torch.tensor([[float(scale), float(offset)]]))
        (values,), (valid,) = maps.decoded()
        assert np.array_equal(values.numpy().view(np.int32), expected.values.view(np.int32))
        assert np.array_equal(valid.numpy(), expected.valid)


def test_a_batch_travels_in_little_more_bytes_than_its_pixels_have() -> None:
    """The paper's: squares that fill the grid, each cut into 2, 3 or 4 patches a side."""
    rng, samples = np.random.default_rng(5), []
    for i, per_side in enumerate((2, 3, 4, 4, 3, 2, 2, 3)):
        side = CONTEXT_PX // per_side + 4
        patches = [CodedPatch(**_codes(rng, side, side - j % 2), box=Box(0, 0, side, side - j % 2)) for j in range(per_side**2)]
        image = rng.integers(0, 256, (CONTEXT_PX, CONTEXT_PX, 3), np.uint8)
        context = CodedLabel(**_codes(rng, CONTEXT_PX, CONTEXT_PX))
        samples.append(Sample(image=image, context=context, patches=tuple(patches), key=f"{i}", teacher="primary"))
    batch = packed(samples, CONTEXT_PX)
    pixels = sum(label.valid.size for sample in samples for label in (sample.context, *sample.patches))
    pictures = sum(sample.image.nbytes for sample in samples)
    count = sum(len(sample.patches) for sample in samples)
    assert len(batch.patches) == 3
    assert batch.size_bytes <= pictures + 2.1 * pixels + 48 * count + 1000


def test_some_samples_of_a_batch_are_those_samples_packed_alone() -> None:
    samples = samples_of_many_sizes(2)
    batch = packed(samples, CONTEXT_PX).to("cpu")
    for start, end in ((0, 1), (1, 3), (2, 5), (2, 3)):
        some, alone = batch.samples(start, end), packed(samples[start:end], CONTEXT_PX).to("cpu")
        assert_equal(dataclasses.replace(some, patches=()), dataclasses.replace(alone, patches=()))
        for i in range(end - start):
            ours, theirs = (sorted(it.patches_of(i), key=lambda view: view[0]) for it in (some, alone))
            for (box, values, valid), (own_box, own_values, own_valid) in zip(ours, theirs, strict=True):
                assert box == own_box
                assert values.equal(own_values)
                assert valid.equal(own_valid)
