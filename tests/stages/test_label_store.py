"""The label store: what goes in comes out within half a step, what is lost or damaged is never read as a depth."""

from __future__ import annotations

import io
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from zarr.codecs import Crc32cCodec
from zarr.codecs.numcodecs import PCodec

from manifests.place import NewFolder, place_of
from stages.label_store import (
    ContextPicture,
    ImageLabels,
    Label,
    LabelReader,
    LabelWriter,
    PatchLabel,
    PictureReader,
    decode_label,
    encode_picture,
    quantise,
    write_labels,
    write_pictures,
)
from stages.label_store.packing import PCODEC, pack_codes, shard_file, shard_places
from stages.views import Box, SourceBox

_STEP = 4 / 4094
"""Of the codes of `_label`, whose values are from 0 to 4."""


def _new(folder: Path) -> NewFolder:
    return place_of(folder).new_folder("a.zarr")


def _label(seed: int, height: int, width: int) -> Label:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 3, height * width, dtype=np.float32).reshape(height, width)
    return Label(values=ramp + rng.random((height, width), dtype=np.float32), valid=rng.random((height, width)) > 0.1)


def _labels(seed: int, height: int, width: int) -> ImageLabels:
    patches = [PatchLabel(box=Box(i, 0, 20, 20), **vars(_label(seed + i, 20, 20))) for i in range(3)]
    return ImageLabels(context=_label(seed, height, width), patches=tuple(patches))


@settings(deadline=None)
@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-1e6, 1e6, width=32)), hnp.arrays(bool, (5, 7)))
def test_codes_keep_values_within_half_a_step_and_validity_exactly(values, valid):
    label = quantise(Label(values=values, valid=valid))
    back, scale = decode_label(label.codes, label.scale, label.offset), label.scale
    assert (back.valid == valid).all()
    step_and_rounding = 0.5 * float(scale) * (1 + 1e-6) + np.abs(values).max() * 2e-7 + 1e-12
    assert (np.abs(back.values - values)[valid] <= step_and_rounding).all()


def test_a_non_finite_value_in_a_valid_pixel_is_refused():
    with pytest.raises(ValueError, match="1 valid pixels are not finite"):
        quantise(Label(values=np.array([[1, np.nan]], np.float32), valid=np.ones((1, 2), bool)))


def test_a_part_comes_back_with_its_extents_boxes_and_rejected_images(tmp_path: Path):
    given_labels = [_labels(0, 32, 48), None, _labels(10, 48, 30)]
    write_labels(_new(tmp_path), given_labels, context_px=48, depth_space="disparity_affine_invariant")
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    assert len(reader) == 3
    assert reader.context(1) is None
    assert reader.patches(1) == []
    for index in (0, 2):
        label, wanted = reader.context(index), given_labels[index]
        assert label is not None
        assert wanted is not None
        assert (label.valid == wanted.context.valid).all()
        assert np.abs(label.values - wanted.context.values)[label.valid].max() < _STEP
        for patch, wanted_patch in zip(reader.patches(index), wanted.patches, strict=True):
            assert patch.box == wanted_patch.box
            assert np.abs(patch.values - wanted_patch.values)[patch.valid].max() < _STEP


@pytest.mark.parametrize("rows", [(True, True, False), (True, False), (False, True)])
def test_rows_that_are_not_whole_images_are_refused_before_anything_is_written(tmp_path: Path, rows: tuple[bool, ...]):
    labels = [_labels(0, 16, 16) if given else None for given in rows]
    with pytest.raises(ValueError, match=r"image \d has the rows .*expected 2, all given or all rejected"):
        write_labels(_new(tmp_path), labels, context_px=16, depth_space="depth_metric", contexts_per_image=2)
    assert list((tmp_path / "a.zarr").iterdir()) == []


def test_several_contexts_of_an_image_are_rows_one_after_the_other(tmp_path: Path):
    wanted = [_labels(0, 16, 12), _labels(5, 12, 16), None, None]
    write_labels(_new(tmp_path), wanted, context_px=20, depth_space="depth_metric", contexts_per_image=2)
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    assert zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["contexts_per_image"] == 2
    for row, given_labels in enumerate(wanted):
        label = reader.context(row)
        assert (label is None) == (given_labels is None)
        if label is not None and given_labels is not None:
            assert (label.valid == given_labels.context.valid).all()


def test_patches_planned_for_an_image_that_is_rejected_late_leave_no_rows(tmp_path: Path):
    kept = _labels(0, 32, 48)
    boxes = [Box(0, 0, 20, 20)] * 6
    with LabelWriter(_new(tmp_path), rows=2, boxes=boxes, context_px=48, depth_space="depth_metric") as writer:
        writer.append(None)
        writer.append(kept)
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    assert reader.context(0) is None
    assert [patch.box for patch in reader.patches(1)] == [patch.box for patch in kept.patches]
    assert zarr.open_array(tmp_path / "a.zarr" / "patch", mode="r").shape == (3, 20 * 20)


def test_writing_a_part_needs_the_memory_of_a_shard_and_not_of_the_part(tmp_path: Path):
    side, rows = 512, 260  # 136 MB of codes, 67 MB in a shard
    view = Label(values=np.ones((side, side), np.float32), valid=np.ones((side, side), bool))
    tracemalloc.start()
    labels = [ImageLabels(context=view, patches=())] * rows
    write_labels(_new(tmp_path), labels, context_px=side, depth_space="depth_metric")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100e6
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    for row in (0, 127, 128, rows - 1):
        label = reader.context(row)
        assert label is not None
        assert (label.values == 1).all()


def test_a_part_without_any_labelled_image_is_written_and_read(tmp_path: Path):
    write_labels(_new(tmp_path), [None, None], context_px=16, depth_space="depth_metric")
    assert [LabelReader(place_of(tmp_path), "a.zarr").context(i) for i in range(2)] == [None, None]


def test_plain_zarr_reads_a_part_as_the_format_describes_it(tmp_path: Path):
    wanted = _labels(0, 32, 48)
    write_labels(_new(tmp_path), [wanted], context_px=48, depth_space="disparity_affine_invariant")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    arrays = {name: np.asarray(array[...]) for name, array in group.arrays()}
    codes = np.cumsum(arrays["context"][0, : 32 * 48].reshape(32, 48), axis=0, dtype=np.uint16)
    values = arrays["context_offset"][0] + arrays["context_scale"][0] * (codes.astype(np.float32) - 1)
    assert group.attrs["depth_space"] == "disparity_affine_invariant"
    assert np.abs(values - wanted.context.values)[codes > 0].max() < _STEP


@pytest.mark.parametrize("name", ["context", "patch"])
def test_a_lost_chunk_is_an_error_that_names_it(tmp_path: Path, name: str):
    write_labels(_new(tmp_path), [_labels(0, 32, 48)], context_px=48, depth_space="depth_metric")
    (tmp_path / "a.zarr" / name / "c/0/0").unlink()
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    with pytest.raises(ValueError, match=f"{name}: row 0 has lost its chunk"):
        reader.context(0) if name == "context" else reader.patches(0)


def _nothing(side: int) -> Label:
    return Label(values=np.zeros((side, side), np.float32), valid=np.zeros((side, side), bool))


def _zeros(side: int) -> Label:
    return Label(values=np.zeros((side, side), np.float32), valid=np.ones((side, side), bool))


def _with_patch(label: Label) -> ImageLabels:
    return ImageLabels(context=_label(0, 32, 48), patches=(PatchLabel(box=Box(0, 0, 20, 20), **vars(label)),))


_TABLES = ("context_extent", "context_scale", "context_offset", "patch_start", "patch_box", "patch_scale", "patch_offset")


@pytest.mark.parametrize("name", _TABLES)
def test_a_lost_table_is_an_error_and_not_zeros(tmp_path: Path, name: str):
    write_labels(_new(tmp_path), [_labels(0, 32, 48)], context_px=48, depth_space="depth_metric")
    (chunk,) = (path for path in (tmp_path / "a.zarr" / name / "c").rglob("*") if path.is_file())
    chunk.unlink()
    with pytest.raises(ValueError, match=f"{name}: row 0 has lost its chunk; .*manifests repair"):
        LabelReader(place_of(tmp_path), "a.zarr").context(0)


@pytest.mark.parametrize("name", ["jpeg", "jpeg_start", "context_extent", "source_size"])
def test_a_lost_array_of_pictures_is_an_error_and_not_zeros(tmp_path: Path, name: str):
    jpeg = encode_picture(np.full((24, 40, 3), 99, np.uint8))
    stored = ContextPicture(jpeg=jpeg, extent=(24, 40), source_size=(24, 40), source=SourceBox(0, 0, 24, 40))
    write_pictures(_new(tmp_path), [stored])
    (chunk,) = (path for path in (tmp_path / "a.zarr" / name / "c").rglob("*") if path.is_file())
    chunk.unlink()
    reader = PictureReader(place_of(tmp_path), "a.zarr")
    with pytest.raises(ValueError, match=f"{name}: row 0 has lost its chunk"):
        _ = (reader.source_size(0), reader.picture(0))


@pytest.mark.parametrize("view", [_nothing(20), _zeros(20)], ids=["without any value", "zero everywhere"])
@pytest.mark.parametrize("within_its_shard", [False, True])
def test_a_lost_view_of_nothing_or_of_zeros_is_an_error_and_one_that_is_there_comes_back(
    tmp_path: Path, view: Label, within_its_shard: bool
):
    write_labels(
        _new(tmp_path),
        [_with_patch(view), _labels(0, 32, 48)],
        context_px=48,
        depth_space="depth_metric",
    )
    (patch,) = LabelReader(place_of(tmp_path), "a.zarr").patches(0)
    assert (patch.valid == view.valid).all()
    assert (patch.values == 0).all()
    if within_its_shard:  # Zarr drops a chunk that it is told to empty, and writes the shard anew with right checksums
        array = zarr.open_group(tmp_path / "a.zarr", mode="r+", zarr_format=3)["patch"]
        assert isinstance(array, zarr.Array)
        array.with_config({"write_empty_chunks": False})[0] = 0
    else:
        (tmp_path / "a.zarr/patch/c/0/0").unlink()
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    with pytest.raises(ValueError, match="patch: row 0 has lost its chunk"):
        reader.patches(0)
    assert not within_its_shard or len(reader.patches(1)) == 3


def test_a_part_whose_writer_left_out_what_is_zero_is_read_as_before(tmp_path: Path):
    labels = [_with_patch(_nothing(20)), None]
    write_labels(_new(tmp_path), labels, context_px=48, depth_space="depth_metric")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+", zarr_format=3)
    for _, array in list(group.arrays()):
        array.with_config({"write_empty_chunks": False})[...] = np.asarray(array[...])
    del group.attrs["every_chunk_written"]
    chunks = [path for path in (tmp_path / "a.zarr").glob("*/c/**/*") if path.is_file()]
    left_out = {"patch", "patch_scale", "patch_offset"}
    assert {path.relative_to(tmp_path / "a.zarr").parts[0] for path in chunks} == {"context", *_TABLES} - left_out
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    assert not reader.patches(0)[0].valid.any()
    assert reader.context(1) is None
    label, wanted = reader.context(0), labels[0]
    assert label is not None
    assert wanted is not None
    assert (label.valid == wanted.context.valid).all()


def test_a_view_without_any_valid_pixel_comes_back_as_one(tmp_path: Path):
    nothing = Label(values=np.zeros((9, 9), np.float32), valid=np.zeros((9, 9), bool))
    write_labels(
        _new(tmp_path),
        [ImageLabels(context=nothing, patches=())],
        context_px=9,
        depth_space="depth_metric",
    )
    label = LabelReader(place_of(tmp_path), "a.zarr").context(0)
    assert label is not None
    assert not label.valid.any()


def test_a_flipped_bit_in_the_labels_is_an_error_or_changes_nothing(tmp_path: Path):
    write_labels(_new(tmp_path), [_labels(0, 32, 48)], context_px=48, depth_space="depth_metric")
    shard = tmp_path / "a.zarr/context/c/0/0"
    sound, whole = LabelReader(place_of(tmp_path), "a.zarr").context(0), shard.read_bytes()
    assert sound is not None
    rng, noticed = random.Random(3), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        shard.write_bytes(damaged)
        try:
            label = LabelReader(place_of(tmp_path), "a.zarr").context(0)
        except (ValueError, RuntimeError, IndexError, OverflowError):
            noticed += 1
        else:
            assert label is not None
            assert not label.valid.any() or (label.values == sound.values).all()
    assert noticed > 50


def test_pictures_come_back_as_the_jpeg_pixels(tmp_path: Path):
    picture = np.asarray(Image.linear_gradient("L").convert("RGB").resize((40, 24)))
    jpeg = encode_picture(picture)
    stored = ContextPicture(jpeg=jpeg, extent=(24, 40), source_size=(24, 40), source=SourceBox(0, 0, 24, 40))
    write_pictures(_new(tmp_path), [None, stored, stored])
    reader = PictureReader(place_of(tmp_path), "a.zarr")
    assert len(reader) == 3
    assert reader.picture(0) is None
    back = reader.picture(2)
    assert back is not None
    assert back.shape == (24, 40, 3)
    assert np.abs(back.astype(int) - picture).max() < 8


# --- parts from a stranger ------------------------------------------------------------------------------------------


def _one_picture(folder: Path, content: bytes, extent: tuple[int, int] = (24, 40)) -> PictureReader:
    picture = ContextPicture(jpeg=content, extent=extent, source_size=extent, source=SourceBox(0, 0, *extent))
    write_pictures(place_of(folder.parent).new_folder(folder.name), [picture])
    return PictureReader(place_of(folder.parent), folder.name)


def test_a_picture_that_is_a_program_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interpreter = tmp_path / "bin" / "gs"
    interpreter.parent.mkdir()
    interpreter.write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(interpreter.parent), prepend=os.pathsep)
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n%%EndComments\nshowpage\n"
    with pytest.raises(ValueError, match=r"jpeg: row 0 is damaged \(cannot be decoded as JPEG"):
        _one_picture(tmp_path / "a.zarr", program).picture(0)
    assert not (tmp_path / "trace").exists()


def test_a_picture_of_another_format_or_size_than_stated_is_refused(tmp_path: Path):
    png = io.BytesIO()
    Image.new("RGB", (40, 24)).save(png, "PNG")
    with pytest.raises(ValueError, match="cannot be decoded as JPEG"):
        _one_picture(tmp_path / "a.zarr", png.getvalue()).picture(0)
    large = io.BytesIO()
    Image.new("L", (20_000, 4_000)).save(large, "JPEG")
    with pytest.raises(ValueError, match=r"found a picture of \(4000, 20000\), expected \(24, 40\)"):
        _one_picture(tmp_path / "b.zarr", large.getvalue()).picture(0)


def test_a_group_of_zarr_version_2_whose_codecs_may_execute_what_they_read_is_not_opened(tmp_path: Path):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    for name in _TABLES:
        group.create_array(name, data=np.zeros((1, 4), np.int32))
    with pytest.raises(ValueError, match="found no group of Zarr version 3"):
        LabelReader(place_of(tmp_path), "a.zarr").context(0)


@pytest.mark.parametrize(("name", "shape"), [("context_scale", [10**9]), ("context", [1, 10**6, 10**6])])
def test_an_array_that_says_it_is_huge_is_refused_before_it_fills_the_memory(tmp_path: Path, name: str, shape: list[int]):
    write_labels(_new(tmp_path), [_labels(0, 32, 48)], context_px=48, depth_space="depth_metric")
    path = tmp_path / "a.zarr" / name / "zarr.json"
    document = json.loads(path.read_text())
    document["shape"] = document["chunk_grid"]["configuration"]["chunk_shape"] = shape
    document["codecs"][0]["configuration"]["chunk_shape"] = shape
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"{name}: found \d+ bytes to be read at once, expected 67108864 at most"):
        LabelReader(place_of(tmp_path), "a.zarr").context(0)


def test_a_shard_is_what_zarr_itself_would_write(tmp_path: Path):
    """Chunks are packed one by one, elsewhere; Zarr with the same codecs makes the same file of the same values."""
    labels = [ImageLabels(context=_label(row, 40, 30 + row), patches=()) for row in range(3)]
    write_labels(_new(tmp_path), [*labels, None], context_px=48, depth_space="depth_metric")
    written = zarr.open_array(tmp_path / "a.zarr" / "context", mode="r")
    again = zarr.create_array(
        tmp_path / "b.zarr",
        shape=written.shape,
        dtype=written.dtype,
        chunks=written.chunks,
        shards=written.shards,
        serializer=PCodec(**PCODEC),
        compressors=[Crc32cCodec()],  # type: ignore[list-item]
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    again[...] = written[...]
    assert (tmp_path / "b.zarr/c/0/0").read_bytes() == (tmp_path / "a.zarr/context/c/0/0").read_bytes()


def test_a_part_of_version_1_is_read_as_before(tmp_path: Path):
    """Its views are squares of codes of 16 bits, top-left aligned, and not differences."""
    wanted = _labels(0, 32, 48)
    write_labels(_new(tmp_path), [wanted], context_px=48, depth_space="depth_metric", label_bits=16)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+", zarr_format=3)
    extents = {"context": [(32, 48)], "patch": [(20, 20)] * 3}
    for name, sizes in extents.items():
        flat = np.asarray(group[name])  # type: ignore[arg-type]
        side = 48 if name == "context" else 20
        views = np.zeros((len(flat), side, side), np.uint16)
        for row, (height, width) in enumerate(sizes):
            differences = flat[row, : height * width].reshape(height, width)
            views[row, :height, :width] = np.cumsum(differences, axis=0, dtype=np.uint16)
        del group[name]
        group.create_array(
            name,
            data=views,
            chunks=(1, side, side),
            shards=views.shape,
            compressors=[Crc32cCodec()],
            serializer=PCodec(level=8),
        )  # type: ignore[arg-type]
    group.attrs["format_version"] = 1
    del group.attrs["label_bits"]
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    label, patches = reader.context(0), reader.patches(0)
    assert label is not None
    for found, given_label in zip([label, *patches], [wanted.context, *wanted.patches], strict=True):
        assert (found.valid == given_label.valid).all()
        assert np.abs(found.values - given_label.values)[found.valid].max() < 4 / 65534


@pytest.mark.parametrize(
    ("chunk_of", "refused"),
    [
        (lambda chunk: pack_codes(np.ones((3, 3), np.uint16), 5), r"row 0 is damaged \(found other than 2304 values\)"),
        (lambda chunk: chunk[:-1] + bytes([chunk[-1] ^ 1]), r"row 0 is damaged \(the stored checksum is another\)"),
    ],
    ids=["of-another-size", "another-checksum"],
)
def test_a_view_in_whose_place_another_lies_is_refused_and_its_neighbour_is_read(
    tmp_path: Path, chunk_of: Callable[[bytes], bytes], refused: str
):
    write_labels(_new(tmp_path), [_labels(0, 32, 48), _labels(1, 32, 48)], context_px=48, depth_space="depth_metric")
    shard = tmp_path / "a.zarr/context/c/0/0"
    content = shard.read_bytes()
    sound = LabelReader(place_of(tmp_path), "a.zarr").context(1)
    places = zarr.open_array(tmp_path / "a.zarr/context", mode="r").shards[0]  # type: ignore[index]
    first, second = (content[start : start + size] for start, size in shard_places(content[-16 * places - 4 :])[:2].tolist())
    shard.write_bytes(b"".join(shard_file([chunk_of(first), second], places)))
    reader = LabelReader(place_of(tmp_path), "a.zarr")
    with pytest.raises(ValueError, match=refused):
        reader.context(0)
    neighbour = reader.context(1)
    assert sound is not None
    assert neighbour is not None
    assert (neighbour.values == sound.values).all()


def test_a_changed_byte_in_a_picture_is_an_error(tmp_path: Path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 48, 3), np.uint8) for _ in range(2)]
    place = SourceBox(0, 0, 40, 48)
    rows = [ContextPicture(jpeg=encode_picture(it), extent=(40, 48), source_size=(40, 48), source=place) for it in pictures]
    write_pictures(_new(tmp_path), rows)
    shard = tmp_path / "a.zarr/jpeg/c/0"
    content = bytearray(shard.read_bytes())
    content[len(rows[0].jpeg) // 2] ^= 1
    shard.write_bytes(content)
    reader = PictureReader(place_of(tmp_path), "a.zarr")
    with pytest.raises(ValueError, match=r"jpeg: row 0 is damaged \(the stored checksum is another\)"):
        reader.picture(0)
