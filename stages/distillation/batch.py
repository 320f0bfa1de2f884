"""Samples of a step together: as they travel from the processes that read them, and as the student's device has them.

They travel as they are stored, pictures as bytes and labels as codes of 2 bytes, with little padding, and are decoded on the
device: to the numbers of `decode_label`, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8, UInt16
from torch import Tensor

from stages.distillation.losses import LossTargets, PatchGroup
from stages.distillation.order import UNCHANGED, Color
from stages.label_store import AnyLabel, AnyPatch, CodedLabel, left_right

RecordT = TypeVar("RecordT", bound="_Packed")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One context of an image with one teacher's labels, at its own extent, mirrored where that was asked for."""

    image: UInt8[np.ndarray, "h w 3"]
    context: AnyLabel
    patches: tuple[AnyPatch, ...]
    key: str
    teacher: str
    color: Color = UNCHANGED

    def renamed(self, key: str) -> Sample:
        """The same with another key."""
        return dataclasses.replace(self, key=key)


def mirrored(sample: Sample) -> Sample:
    """Left and right exchanged within the sample's extent, for the image, its label, and its patches and their places."""
    width = sample.image.shape[1]
    boxes = (p.box._replace(left=width - p.box.left - p.box.width) for p in sample.patches)
    patches = tuple(dataclasses.replace(left_right(p), box=box) for p, box in zip(sample.patches, boxes, strict=True))
    return dataclasses.replace(sample, image=sample.image[:, ::-1], context=left_right(sample.context), patches=patches)


@dataclass(frozen=True, kw_only=True)
class Batch(LossTargets):
    """Samples of one teacher on the context grid of C x C, top-left aligned; what lies beyond a sample is 0 and invalid."""

    image: UInt8[Tensor, "b 3 c c"]
    extent: Int[Tensor, "b 2"]
    sizes: tuple[tuple[int, int], ...]
    """The extents again, height and width, where they can be asked for without waiting for the device."""
    keys: tuple[str, ...]
    """part/key of each sample, for messages; followed by #context where images have several."""
    teacher: str
    """`average` where all teachers' labels are fused."""
    color: Float[Tensor, "b 4"]
    """What `augmentation.color_jitter` is to make of each image, which is as the teachers saw it."""

    def samples(self, start: int, end: int) -> Batch:
        """Those from `start` to `end` as a batch of their own; waits for the device."""
        own = {name: value[start:end] for name, value in vars(self).items() if isinstance(value, Tensor)}
        groups = [group.of_samples(start, end) for group in self.patches]
        return dataclasses.replace(
            self,
            sizes=self.sizes[start:end],
            keys=self.keys[start:end],
            patches=tuple(group for group in groups if len(group.sample)),
            **own,
        )


# --- as it travels --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """A record of tensors, and of tuples of such records."""

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                yield value
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, _Packed):
                    yield from part.tensors()

    def each(self: RecordT, change: Callable[[Tensor], Tensor]) -> RecordT:
        """The same record with every tensor in it changed."""

        def changed(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(map(changed, value))
            return value.each(change) if isinstance(value, _Packed) else change(value) if isinstance(value, Tensor) else value

        return dataclasses.replace(self, **{name: changed(value) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class PackedMaps(_Packed):
    """Labels, filled up to one size: codes, 0 where invalid, or values, NaN where invalid, where these were computed."""

    maps: UInt16[Tensor, "n h w"] | Float32[Tensor, "n h w"]
    code: Float32[Tensor, "n 2"]
    """Scale and offset of each map's codes."""

    def decoded(self) -> tuple[Float32[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
        """Values, 0 where invalid, and where they are valid.

        Every step is one of `decode_label`, in float64 and rounded alone, so that all devices give the same bits.
        """
        if self.maps.is_floating_point():
            valid = ~self.maps.isnan()
            return torch.where(valid, self.maps, 0), valid
        scale, offset = self.code.double()[:, :, None, None].unbind(1)
        codes = self.maps.to(torch.int32)
        valid = codes > 0
        return torch.where(valid, offset + scale * (codes.double() - 1), 0).float(), valid


@dataclass(frozen=True, kw_only=True)
class PackedPatches(PackedMaps):
    """Patches of about one size, whichever sample they belong to."""

    sample: Int[Tensor, "n"]
    box: Int[Tensor, "n 4"]


@dataclass(frozen=True, kw_only=True)
class PackedBatch(_Packed):
    """A `Batch` in as few bytes as it is stored in."""

    image: UInt8[Tensor, "b 3 c c"]
    context: PackedMaps
    patches: tuple[PackedPatches, ...]
    extent: Int[Tensor, "b 2"]
    sizes: tuple[tuple[int, int], ...]
    keys: tuple[str, ...]
    teacher: str
    color: Float[Tensor, "b 4"]

    @property
    def size_bytes(self) -> int:
        """What travels."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def pin_memory(self) -> PackedBatch:
        """Called by the DataLoader."""
        return self.each(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, decoded there; copies from pinned memory do not wait, and nothing waits for the device."""
        there = self.each(lambda tensor: tensor.to(device, non_blocking=True))
        label, valid = there.context.decoded()
        groups = [(group, *group.decoded()) for group in there.patches]
        return Batch(
            image=there.image,
            extent=there.extent,
            label=label,
            valid=valid,
            patches=tuple(PatchGroup(label=x, valid=m, sample=group.sample, box=group.box) for group, x, m in groups),
            sizes=self.sizes,
            keys=self.keys,
            teacher=self.teacher,
            color=there.color,
        )


def packed(samples: Sequence[Sample], context_px: int) -> PackedBatch:
    """Samples of one teacher; patches of about one size together, because each is filled up to the largest of them."""
    image = np.zeros((len(samples), 3, context_px, context_px), np.uint8)
    for place, sample in zip(image, samples, strict=True):
        height, width = sample.image.shape[:2]
        place[:, :height, :width] = sample.image.transpose(2, 0, 1)
    sizes = tuple((sample.image.shape[0], sample.image.shape[1]) for sample in samples)
    maps, code = _packed([sample.context for sample in samples], (context_px, context_px))
    return PackedBatch(
        image=torch.from_numpy(image),
        context=PackedMaps(maps=maps, code=code),
        patches=tuple(_packed_patches(group) for group in _by_size(samples)),
        extent=torch.tensor(sizes),
        sizes=sizes,
        keys=tuple(sample.key for sample in samples),
        teacher=samples[0].teacher,
        color=torch.tensor([sample.color for sample in samples], dtype=torch.float32),
    )


def _by_size(samples: Sequence[Sample]) -> list[list[tuple[int, AnyPatch]]]:
    """All patches with their samples' numbers; in each group, no side is below 7/8 of another."""
    groups: list[list[tuple[int, AnyPatch]]] = []
    every = [(number, patch) for number, sample in enumerate(samples) for patch in sample.patches]
    for one in sorted(every, key=lambda it: -it[1].box.height * it[1].box.width):
        for group in groups:
            boxes = [patch.box for _, patch in (*group, one)]
            sides = [box.height for box in boxes], [box.width for box in boxes]
            if all(8 * min(side) >= 7 * max(side) for side in sides):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _packed_patches(group: Sequence[tuple[int, AnyPatch]]) -> PackedPatches:
    numbers, patches = zip(*group, strict=True)
    boxes = [patch.box for patch in patches]
    maps, code = _packed(patches, (max(box.height for box in boxes), max(box.width for box in boxes)))
    return PackedPatches(maps=maps, code=code, sample=torch.tensor(numbers), box=torch.tensor([tuple(box) for box in boxes]))


def _packed(labels: Sequence[AnyLabel], size: tuple[int, int]) -> tuple[Tensor, Float32[Tensor, "n 2"]]:
    """What `PackedMaps` has of labels: codes only where all are codes."""
    coded = [label for label in labels if isinstance(label, CodedLabel)]
    if len(coded) == len(labels):
        codes = np.zeros((len(labels), *size), np.uint16)
        for place, label in zip(codes, coded, strict=True):
            place[: label.codes.shape[0], : label.codes.shape[1]] = label.codes
        return torch.from_numpy(codes), torch.tensor([[float(label.scale), float(label.offset)] for label in coded])
    values = np.full((len(labels), *size), np.nan, np.float32)
    for place, label in zip(values, labels, strict=True):
        height, width = label.valid.shape
        place[:height, :width] = np.where(label.valid, label.values, np.float32(np.nan))
    return torch.from_numpy(values), torch.zeros(len(labels), 2)
