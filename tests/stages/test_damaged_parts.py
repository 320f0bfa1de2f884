"""A training reads a part as its manifest has it, or not at all: whatever file of it is lost, cut, changed or replaced."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from manifests import drop_parts, load_part
from manifests.part_files import LARGE_ARRAYS
from stages.distillation import columns
from stages.distillation.batch import Sample
from stages.distillation.dataset import LabelDataset
from stages.distillation.order import SampleRequest
from tests.training_run import write_run

TEACHERS = ("primary", "assistant")
REFUSED = (ValueError, OSError)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images in two parts, one of them rejected by a teacher."""
    return write_run(tmp_path_factory.mktemp("sound") / "run", images=3, part_size=2, rejected={"assistant": [1]})


def _copy(run: Path, place: Path) -> Path:
    """A copy whose files share their bytes with the run's: change one by replacing it."""
    return shutil.copytree(run, place, copy_function=os.link)


@contextmanager
def _harmed(run: Path, file: Path, harm: Callable[[Path], None]) -> Iterator[Path]:
    """The run with one file harmed, under a name of its own: parts that were read under another stay open."""
    content = (run / file).read_bytes()
    harm(run / file)
    alias = run.with_name("-".join((harm.__name__, *file.parts)))
    alias.symlink_to(run)
    try:
        yield alias
    finally:
        (run / file).unlink(missing_ok=True)
        (run / file).write_bytes(content)


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _samples(run: Path) -> dict[tuple[str, str], Sample]:
    dataset = LabelDataset(run, TEACHERS)
    samples = [dataset[SampleRequest(index, teacher, False)] for index in range(len(dataset)) for teacher in (0, 1)]
    return {(sample.key, sample.teacher): sample for sample in samples}


def _same(one: Sample, other: Sample) -> bool:
    pairs = [(one.image, other.image), *((getattr(one.context, n), getattr(other.context, n)) for n in ("values", "valid"))]
    pairs += [(a.values, b.values) for a, b in zip(one.patches, other.patches, strict=True)]
    pairs += [(a.valid, b.valid) for a, b in zip(one.patches, other.patches, strict=True)]
    return all(np.array_equal(a, b) for a, b in pairs) and [p.box for p in one.patches] == [p.box for p in other.patches]


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    _replace(path, path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [_remove, _cut])
def test_a_run_of_which_any_one_file_is_lost_or_cut_is_refused_or_read_right(
    run: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    wanted, outcomes = _samples(run), {"refused": 0, "read": 0}
    assert len(wanted) == 4
    run = _copy(run, tmp_path / "run")
    for file in sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file()):
        with _harmed(run, file, harm) as harmed:
            try:
                found = _samples(harmed)
            except REFUSED:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                assert harm is _remove, file
                assert len(file.parts) == 3, file  # a manifest: its part is as if it had not been made yet
                assert all(_same(found[key], wanted[key]) for key in found), file
    arrays = 2 * (11 + 2 * 19)
    records = 1 + 1 + 3  # of the run, the source, the columns
    assert outcomes == {"refused": records + arrays + 6 * (harm is _cut), "read": 6 * (harm is _remove)}


def test_a_lost_file_is_named_when_the_run_is_opened(run: Path, tmp_path: Path) -> None:
    harmed = _copy(run, tmp_path / "run")
    lost = "columns/assistant/scenes.00001.first.zarr/context_scale/c/0"
    (harmed / lost).unlink()
    with pytest.raises(ValueError, match=rf"(?s)not as their manifests list them.*{lost}: No such file.*manifests repair"):
        LabelDataset(harmed, TEACHERS)


@pytest.mark.parametrize("harm", [_remove, _cut])
def test_in_a_run_of_many_parts_a_file_of_most_is_missed_when_its_part_is_first_read(
    run: Path, tmp_path: Path, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_LOOKED_INTO", 1)
    harmed = _copy(run, tmp_path / "run")
    lost = "columns/assistant/scenes.00001.first.zarr/context/c/0/0"
    harm(harmed / lost)
    dataset = LabelDataset(harmed, TEACHERS)
    assert dataset[SampleRequest(0, 1, False)].key == "scenes.00000/scene-0"
    with pytest.raises(ValueError, match=rf"(?s)not as their manifests list them.*{lost}: .*manifests repair"):
        dataset[SampleRequest(1, 1, False)]


def test_in_a_run_of_many_parts_a_lost_folder_is_missed_when_it_is_opened(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_LOOKED_INTO", 1)
    harmed = _copy(run, tmp_path / "run")
    shutil.rmtree(harmed / "columns/assistant/scenes.00001.first.zarr")
    with pytest.raises(ValueError, match=r"(?s)scenes\.00001\.first\.zarr/.*: No such file.*manifests repair"):
        LabelDataset(harmed, TEACHERS)


def test_a_changed_bit_in_any_small_file_is_refused_when_its_part_is_read(run: Path, tmp_path: Path) -> None:
    small = [path.relative_to(run) for path in run.rglob("scenes.00000.first.zarr/**/*") if path.is_file()]
    small = sorted(path for path in small if not any(f"/{name}/c/" in str(path) for name in LARGE_ARRAYS))
    assert len(small) == 11 - 1 + 2 * (19 - 2)
    draw, run = random.Random(5), _copy(run, tmp_path / "run")

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        _replace(path, bytes(content))

    for file in small:
        with _harmed(run, file, flip) as harmed, pytest.raises(ValueError, match="found sha256"):
            _samples(harmed)


def test_a_digit_changed_in_the_shape_of_an_array_never_changes_the_width_of_a_patch(run: Path, tmp_path: Path) -> None:
    harmed = _copy(run, tmp_path / "run")
    for file in harmed.rglob("patch/zarr.json"):
        _replace(file, file.read_bytes().replace(b"32", b"12"))
    with pytest.raises(ValueError, match=r"patch/zarr\.json: found sha256 [0-9a-f]{64}, expected"):
        _samples(harmed)


def test_a_link_in_a_run_is_refused_wherever_it_leads(run: Path, tmp_path: Path) -> None:
    for number, place in enumerate(("columns/primary", "columns/primary/scenes.00000.first.zarr/context/c/0/0")):
        harmed = _copy(run, tmp_path / str(number))
        (harmed / place).rename(tmp_path / f"elsewhere-{number}")
        (harmed / place).symlink_to(tmp_path / f"elsewhere-{number}")
        with pytest.raises(REFUSED, match=r"found a (symbolic )?link, expected a"):
            LabelDataset(harmed, TEACHERS)


def test_a_part_that_was_made_again_meanwhile_is_read_if_it_is_the_same_and_refused_if_not(tmp_path: Path) -> None:
    write = partial(write_run, images=4, part_size=2)
    same, other = write(tmp_path / "same", attempt="second"), write(tmp_path / "other", images=3)
    for source, refused in ((same, False), (other, True)):
        run = write(tmp_path / f"run-{source.name}")
        dataset = LabelDataset(run, TEACHERS)
        drop_parts(run, {("primary", "scenes.00001"): "for the test"})
        for name in ("scenes.00001.json", load_part(source, "primary", "scenes.00001").zarr):
            path = source / "columns/primary" / name
            (shutil.copytree if path.is_dir() else shutil.copy)(path, run / "columns/primary" / name)
        if refused:
            with pytest.raises(ValueError, match=r"part scenes\.00001 of 'primary' is not what it was when the run was opened"):
                dataset[SampleRequest(2, 0, False)]
        else:
            assert dataset[SampleRequest(2, 0, False)].key == "scenes.00001/scene-2"
