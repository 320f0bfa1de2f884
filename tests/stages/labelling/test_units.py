"""A unit of labelling: pixels stay in place, bad images cost nobody else, and the first commit wins."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manifests
from manifests.location import on_disk
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import read_sources
from pipeline.label.worker import WallClock
from stages.label_store import LabelReader, PictureReader
from stages.labelling.unit import Unit
from stages.labelling.units import label_images_part, label_teacher_part
from stages.views import ViewPlan
from tests.conftest import label_config, picture_bytes, scene_bytes, teacher_spec


class _ColumnOfTheRamp:
    """An identity teacher: its depth is the picture's own x coordinate, read from the red and green channels."""

    def __init__(self, checkpoints: Path) -> None:
        self.spec = teacher_spec(checkpoints, "primary", "transformers")

    def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
        return images[..., 0].astype(np.float32)


class _Sick(_ColumnOfTheRamp):
    """Says NaN of dark pictures and one number of bright ones."""

    def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
        depth = images[..., 0].astype(np.float32)
        depth[depth.mean((1, 2)) < 20] = np.nan
        depth[depth.mean((1, 2)) > 230] = 1
        return depth


def made_units(tmp_path: Path, checkpoints: Path, files: dict[str, bytes], **changes: object) -> list[Unit]:
    """The units of a new run over a folder of these files, one per column where they fit into one part."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    run = open_run(label_config(tmp_path / "run", (str(folder),), checkpoints, **changes), read_sources((str(folder),)))
    return [replace(unit, attempt="a0") for unit in units_left(run)]


def _folder(unit: Unit) -> Path:
    return on_disk(unit.run_dir) / unit.arrays


def _labels(unit: Unit) -> LabelReader:
    return LabelReader(manifests.place_of(unit.run_dir), unit.arrays)


@pytest.mark.parametrize("context", ["whole", "square"])
@pytest.mark.parametrize(("width", "height"), [(240, 240), (301, 173), (240, 61), (97, 240)])
def test_every_view_lies_where_its_box_says_within_half_a_pixel(
    tmp_path: Path, checkpoints: Path, context: str, width: int, height: int
):
    """The picture's red channel is its x coordinate (0 to 240 over its width), so every label must be that ramp, in place."""
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.rint((np.arange(width) + 0.5) / width * 240)
    plan = ViewPlan(context=context, context_px=96, patch_px=96, min_square_px=60)  # type: ignore[arg-type]
    images, primary, _ = made_units(
        tmp_path, checkpoints, {"a.png": picture_bytes(Image.fromarray(ramp))}, plan=plan, part_size=1
    )
    label_images_part(images, WallClock())
    label_teacher_part(primary, _ColumnOfTheRamp(checkpoints), WallClock())
    picture = PictureReader(manifests.place_of(images.run_dir), images.arrays)
    (top, left, box_height, box_width), reader = np.asarray(picture._table("context_box"))[0], _labels(primary)
    label, seen = reader.context(0), picture.picture(0)
    assert label is not None
    assert seen is not None
    rows, cols = label.values.shape
    assert seen.shape == (rows, cols, 3)
    step = 240 * box_width / width / cols  # what one pixel of the context grid changes the ramp by
    wanted = (left + (np.arange(cols) + 0.5) * box_width / cols) / width * 240
    inner = slice(2, -2)
    assert np.abs(label.values[:, inner] - wanted[inner]).max() < 0.5 * step + 2  # 2 levels: rounding and JPEG
    assert len(reader.patches(0)) >= 4
    for patch in reader.patches(0):
        columns = slice(patch.box.left + 2, patch.box.left + patch.box.width - 2)
        assert np.abs(patch.values[:, inner] - wanted[columns]).max() < 0.5 * step + 2
        assert np.abs(np.median(patch.values[:, inner] - wanted[columns])) < 0.25 * step + 0.5
    assert box_height <= height
    assert top >= 0


def test_bad_images_are_rejected_with_a_kind_and_their_neighbours_are_labelled(tmp_path: Path, checkpoints: Path):
    files = {
        "a.png": scene_bytes(1),
        "b.png": scene_bytes(2)[:900],
        "c.jpg": b"<html>not here</html>",
        "d.png": picture_bytes(Image.new("RGB", (3, 400))),
        "e.png": scene_bytes(3),
    }
    images, primary, _ = made_units(tmp_path, checkpoints, files, part_size=8)
    assert label_images_part(images, WallClock()).rejected == 3
    result = label_teacher_part(primary, _ColumnOfTheRamp(checkpoints), WallClock())
    assert (result.labelled, result.rejected) == (2, 3)
    outcomes = manifests.load_part(images.run_dir, "primary", primary.part).images
    assert [outcome.problem.kind if outcome.problem else None for outcome in outcomes] == [
        None,
        "damaged",
        "not_an_image",
        "too_small",
        None,
    ]
    assert [_labels(primary).context(i) is None for i in range(5)] == [False, True, True, True, False]


def test_a_label_that_says_nothing_rejects_its_image_in_that_column_only(tmp_path: Path, checkpoints: Path):
    files = {
        "a.png": picture_bytes(Image.new("RGB", (60, 60), "black")),
        "b.png": scene_bytes(2),
        "c.png": picture_bytes(Image.new("RGB", (60, 60), "white")),
    }
    images, primary, _ = made_units(tmp_path, checkpoints, files)
    assert label_images_part(images, WallClock()).rejected == 0
    label_teacher_part(primary, _Sick(checkpoints), WallClock())
    outcomes = manifests.load_part(images.run_dir, "primary", primary.part).images
    assert [outcome.problem.kind if outcome.problem else None for outcome in outcomes] == [
        "non_finite_label",
        None,
        "constant_label",
    ]


def test_the_second_attempt_at_a_part_is_discarded_and_the_first_stays(tmp_path: Path, checkpoints: Path):
    images, *_ = made_units(tmp_path, checkpoints, {"a.png": scene_bytes(1)})
    assert label_images_part(images, WallClock()).committed
    manifest = manifests.manifest_path(on_disk(images.run_dir), "images", images.part)
    before = manifest.read_bytes()
    second = replace(images, attempt="b1")
    assert not label_images_part(second, WallClock()).committed
    assert manifest.read_bytes() == before
    assert not _folder(second).exists()
    assert manifests.verify(images.run_dir) == []


# --- what is removed, and what never ---


def _fails_after(call: Callable[..., object], error: BaseException, when: Callable[[Path], bool]) -> Callable[..., object]:
    """The call, and then the error, where `when` holds for its first argument."""

    def called(place: object, *arguments: object, **options: object) -> object:
        returned = call(place, *arguments, **options)
        if when(Path(f"/proc/self/fd/{place}").resolve() if isinstance(place, int) else Path(os.fspath(place))):  # type: ignore[call-overload]
            raise error
        return returned

    return called


_ERRORS = [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt(), SystemExit(), MemoryError()]


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["link", "unlink", "fsync"])
def test_whatever_is_raised_once_the_manifest_has_its_name_the_arrays_that_it_names_stay(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
):
    images, *_ = made_units(tmp_path, checkpoints, {"a.png": scene_bytes(1)})
    manifest = manifests.manifest_path(on_disk(images.run_dir), "images", images.part)
    struck = _fails_after(getattr(os, call), error, lambda path: manifest.exists())
    with monkeypatch.context() as patch:
        patch.setattr(os, call, struck)
        with pytest.raises(type(error)):
            label_images_part(images, WallClock())
    assert manifests.load_part(images.run_dir, "images", images.part).zarr == _folder(images).name
    assert manifests.verify(images.run_dir, deep=True) == []
    assert not label_images_part(replace(images, attempt="b1"), WallClock()).committed


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_before_that_nothing_of_the_attempt_is_left(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    images, *_ = made_units(tmp_path, checkpoints, {"a.png": scene_bytes(1)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fails_after(os.fsync, error, lambda path: path.name == _folder(images).name))
        with pytest.raises(type(error)):
            label_images_part(images, WallClock())
    assert os.listdir(_folder(images).parent) == ["column.json"]


def test_while_a_manifest_cannot_be_read_no_arrays_that_it_may_name_are_removed_and_the_first_error_is_raised(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
):
    images, *_ = made_units(tmp_path, checkpoints, {"a.png": scene_bytes(1)})
    manifest = manifests.manifest_path(on_disk(images.run_dir), "images", images.part)
    manifest.write_bytes(b"{}")
    lost = replace(images, attempt="b1")
    assert not label_images_part(lost, WallClock()).committed
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fails_after(os.fsync, OSError("the first"), lambda path: path == _folder(images)))
        with pytest.raises(OSError, match="the first"):
            label_images_part(images, WallClock())
    assert sorted(os.listdir(manifest.parent)) == sorted(
        ["column.json", manifest.name, _folder(images).name, _folder(lost).name]
    )


def test_a_removal_that_fails_does_not_hide_the_first_error(tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    images, *_ = made_units(tmp_path, checkpoints, {"a.png": scene_bytes(1)})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "the second")

    monkeypatch.setattr(os, "fsync", _fails_after(os.fsync, OSError("the first"), lambda path: ".zarr" in str(path)))
    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(OSError, match="the first") as caught:
        label_images_part(images, WallClock())
    assert "the second" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "jpeg/c/0").unlink(), "jpeg/c/0 was written and is gone"),
        (lambda folder: (folder / "jpeg/c/1").touch(), "jpeg/c/1 is there and was not written"),
        (lambda folder: os.truncate(folder / "jpeg/c/0", 7), "found 7 bytes"),
        (shutil.rmtree, "jpeg/c/0 was written and is gone"),
    ],
)
def test_arrays_that_are_not_what_was_written_are_not_committed(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], message: str
):
    """They are changed when the commit begins, which is when the attempt's folder is listed."""
    images, *_ = made_units(tmp_path, checkpoints, {"a.png": scene_bytes(1)})
    scandir, changes = os.scandir, [change]

    def list_changed(path: int):
        if Path(f"/proc/self/fd/{path}").resolve() == _folder(images) and changes:
            changes.pop()(_folder(images))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", list_changed)
    with pytest.raises(OSError, match=message):
        label_images_part(images, WallClock())
    assert os.listdir(_folder(images).parent) == ["column.json"]


def test_a_manifest_lists_every_file_that_was_written_even_where_a_folder_cannot_be_listed_in_the_meantime(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
):
    """EMFILE while the n-th folder is listed, for every n: another attempt, or the whole list; never a shorter one."""
    images, *_ = made_units(tmp_path, checkpoints, {"a.png": scene_bytes(1)})
    scandir, left = os.scandir, [0]

    def list_or_fail(path: Path):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return scandir(path)

    failed = 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", list_or_fail)
        while not manifests.committed_parts(images.run_dir, "images"):
            left[0] = failed + 1
            try:
                label_images_part(replace(images, attempt=f"a{failed}"), WallClock())
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                failed += 1
            left[0] = 0
    assert failed > 10
    assert manifests.verify(images.run_dir, deep=True) == []


def test_statistics_tell_range_and_measured_quantisation_error(labelled_run: Path):
    for part in manifests.parts(manifests.load_run(labelled_run)):
        statistics = manifests.load_part(labelled_run, "assistant", part.name).statistics
        assert statistics.min is not None
        assert statistics.max is not None
        assert statistics.mean is not None
        assert statistics.min <= statistics.mean <= statistics.max
        assert statistics.max_quantisation_error is not None
        assert 0 < statistics.max_quantisation_error < (statistics.max - statistics.min) / 4094
