"""A run's labels by column and key: those of the right photograph, as they were given, or the reason why there are none."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader

import manifests
from pipeline.agreement import main as compare
from pipeline.label.command import label
from stages.distillation.dataset import LabelDataset
from stages.distillation.order import SampleRequest
from stages.label_store import (
    AmbiguousKeyError,
    DamagedPartError,
    ImageId,
    LabelReader,
    NoLabelsError,
    decode_picture,
    open_run,
    opening,
)
from stages.label_store.photographs import LabelledPhotographs
from stages.views import ViewPlan
from tests.conftest import SIDE_PX, label_config, scene_bytes, write_tar
from tests.manifests import small_run

TEACHER = "dav2"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Nine images of two sources in four parts of at most three; the fifth of `shard` is rejected."""
    return small_run.write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Path:
    """Two sources with a photograph of one key, two squares of each photograph; real teachers, small."""
    folder = tmp_path_factory.mktemp("squares")
    sources = [
        write_tar(folder / f"{name}.tar", {f"{key}.png": scene_bytes(seed, side_px=120) for key, seed in images.items()})
        for name, images in (("a", {"both": 1, "first": 2}), ("b", {"both": 3}))
    ]
    plan = ViewPlan(context_px=SIDE_PX, patch_px=SIDE_PX, min_square_px=60, contexts_per_image=2, min_image_px=8)
    label(label_config(folder / "run", tuple(map(str, sources)), checkpoints, plan=plan))
    return folder / "run"


def _key(source: str, index: int) -> ImageId:
    return ImageId(source, small_run.image_key(source, index))


def _all(dataset: torch.utils.data.Dataset[Any], **settings: Any) -> list[Any]:
    return list(DataLoader(dataset, batch_size=None, **settings))


def test_a_column_has_the_labelled_images_in_the_runs_order_and_every_one_is_that_of_its_key(small: Path):
    column = open_run(small)[TEACHER]
    expected = [_key("photos.v1", i) for i in range(2)] + [_key("shard", i) for i in range(7) if i != 4]
    assert list(column) == expected
    assert len(column) == 8
    assert 7 not in column
    readers = {name: LabelReader(manifests.place_of(small), f"columns/{TEACHER}/{name}.a1.zarr") for name in small_run.PARTS}
    for image, labels in column.items():
        assert column[image.key].image == image
        number = int(image.key[-3:])
        reader, row = readers[f"{image.source}.{number // 3:05d}"], number % 3
        assert (labels.image, labels.teacher, labels.depth_space) == (image, TEACHER, "disparity_affine_invariant")
        whole = reader.context(row)
        assert whole is not None
        assert labels.context.values.dtype == np.float32
        np.testing.assert_array_equal(labels.context.values, whole.values)
        np.testing.assert_array_equal(labels.context.valid, whole.valid)
        (patch,) = labels.patches
        assert patch.box == small_run.PATCH
        np.testing.assert_array_equal(patch.values, reader.patches(row)[0].values)


def test_the_pictures_are_those_that_the_teachers_saw_with_their_places_in_the_photographs(squares: Path):
    run = open_run(squares)
    dataset = LabelDataset(squares, ("primary",))
    sample = dataset[SampleRequest(3, 0, False)]
    assert sample.key == "a.00000/first#1"
    seen, labels = run.pictures["first"], run["primary"]["first"]
    np.testing.assert_array_equal(seen.pictures[1], sample.image)
    assert labels.contexts[1] is not None
    np.testing.assert_array_equal(labels.contexts[1].context.values, sample.context.values)
    assert [patch.box for patch in labels.contexts[1].patches] == [patch.box for patch in sample.patches]
    assert seen.source_size == (120, 120)
    assert len({*seen.boxes}) == 2
    assert all(60 <= box.height == box.width <= 120 for box in seen.boxes)
    assert labels.context is labels.contexts[0].context  # type: ignore[union-attr]
    assert seen.picture is seen.pictures[0]


def test_a_key_of_two_sources_is_refused_with_the_ways_to_say_which_and_each_of_them_works(squares: Path):
    column = open_run(squares)["primary"]
    with pytest.raises(AmbiguousKeyError, match=r"2 sources have the key 'both'.*\('a', 'both'\) or \('b', 'both'\)"):
        column["both"]
    assert not issubclass(AmbiguousKeyError, KeyError)  # the photographs are there: `get` must not say that they are not
    one, other = column["a", "both"], column["b", "both"]
    assert (one.image, other.image) == (("a", "both"), ("b", "both"))
    assert not np.array_equal(one.context.values, other.context.values)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("nowhere", "found no image of the key 'nowhere', expected one of its catalogue such as 'photos.v1/Straße 000'"),
        (("nowhere", "shard/Straße 000"), "the source 'nowhere' has no image of the key 'shard/Straße 000'; 'shard' has"),
        ("shard/Straße 004", "'shard/Straße 004' of the source 'shard' .*: rejected: undecodable: image file is truncated"),
        ("\x1b[31m../x", r"found no image of the key '\\x1b\[31m../x'"),
    ],
)
def test_an_image_without_labels_is_no_key_of_a_column_and_the_error_says_why(small: Path, key: Any, words: str):
    column = open_run(small)[TEACHER]
    with pytest.raises(KeyError, match=words):
        column[key]
    assert key not in column
    assert column.get(key) is None


def test_what_is_pending_failed_or_rejected_says_so(tmp_path: Path):
    run_dir = small_run.write_run(tmp_path / "run", commit=["shard.00000", "shard.00001"])
    small_run.fail_part(run_dir, TEACHER, "shard.00002")
    column = open_run(run_dir)[TEACHER]
    assert len(column) == 5
    found = {column.status(_key(source, i))[0] for source, i in (("photos.v1", 0), ("shard", 0), ("shard", 4), ("shard", 6))}
    assert found == {"pending", "labelled", "rejected", "failed"}
    with pytest.raises(NoLabelsError, match=r"pending: its part photos.v1.00000 is not labelled yet; give the command"):
        column[_key("photos.v1", 0)]
    with pytest.raises(NoLabelsError, match=r"failed: its part shard.00002: out_of_memory: the device has 8 GiB"):
        column[_key("shard", 6)]


def test_a_column_that_is_not_there_is_named_beside_those_that_are(small: Path, tmp_path: Path):
    run = open_run(str(small))
    assert list(run) == [TEACHER]
    with pytest.raises(KeyError, match=r"no teacher's column 'primary' \(it has: dav2\)"):
        run["primary"]
    with pytest.raises(KeyError, match="its pictures are in `pictures`"):
        run["images"]
    with pytest.raises(manifests.NotARunError, match=r"found no run.json"):
        open_run(tmp_path / "nothing")


def test_a_lookup_reads_the_tables_and_one_manifest_and_no_other_part(small: Path):
    column = open_run(small)[TEACHER]
    for part in set(small_run.PARTS) - {"shard.00001"}:
        manifests.manifest_path(small, TEACHER, part).write_bytes(b"not looked at")
    assert column[_key("shard", 3).key].image == _key("shard", 3)


@pytest.mark.parametrize("victim", ["context/c/0/0", "zarr.json", "patch_box/c/0/0"])
@pytest.mark.parametrize("harm", ["lost", "cut", "changed"])
def test_a_damaged_part_is_refused_with_the_file_and_what_to_do(small: Path, victim: str, harm: str):
    path = small / "columns" / TEACHER / "shard.00000.a1.zarr" / victim
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.unlink() if harm == "lost" else path.write_bytes(content[:-9] if harm == "cut" else content)
    column = open_run(small)[TEACHER]
    with pytest.raises(DamagedPartError, match=r"(?s)shard.00000.a1.zarr/" + victim.split("/")[0] + ".*manifests repair"):
        [column[_key("shard", index)] for index in range(3)]
    assert column[_key("shard", 3)].image == _key("shard", 3)


def test_damaged_records_and_parts_of_other_settings_are_refused_by_name(small: Path):
    path = manifests.manifest_path(small, TEACHER, "shard.00000")
    path.write_bytes(path.read_bytes().replace(b'"labelled"', b'"labelLed"', 1))
    with pytest.raises(manifests.InvalidRecordError, match=r"shard.00000.json: not a valid record"):
        open_run(small)[TEACHER][_key("shard", 0)]
    column = manifests.column_record_path(small, TEACHER)
    record = manifests.load_column(small, TEACHER)
    changed = manifests.ColumnRecord(**{**vars(record), "fingerprint": {**record.fingerprint, "seed": 8}})
    column.write_bytes(manifests.to_json(changed))
    with pytest.raises(ValueError, match="not made with this run's settings: seed: found 7, expected 8"):
        open_run(small)[TEACHER][_key("shard", 3)]
    (table,) = (small / "catalog").glob("shard.*.parquet")
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{re.escape(str(table))}: found sha256 .* Restore the table"):
        open_run(small)[TEACHER][_key("shard", 0)]


def test_labels_that_this_package_would_not_write_are_refused(small: Path):
    folder = small / "columns" / TEACHER / "shard.00001.a1.zarr"
    group = zarr.open_group(folder, mode="r+", zarr_format=3)
    for array, row, value in (("patch_box", 0, (9, 0, 4, 4)), ("context_scale", 0, np.nan)):
        before = group[array][row]  # type: ignore[index]
        group[array][row] = value  # type: ignore[index]
        small_run.commit_again(small)
        with pytest.raises(DamagedPartError, match=r"shard.00001.a1.zarr: labels of .* boxes outside .* manifests repair"):
            open_run(small)[TEACHER][_key("shard", 3)]
        group[array][row] = before  # type: ignore[index]


def test_an_opened_column_can_be_sent_to_another_process_at_any_time(small: Path):
    column = open_run(small)[TEACHER]
    fresh, (first, *_) = pickle.loads(pickle.dumps(column)), column
    assert column[first].image == first
    assert len(column) == 8
    used = pickle.loads(pickle.dumps(column))
    assert "_index" not in vars(used.images)  # hashes of texts are another process's own
    for other in (fresh, used):
        np.testing.assert_array_equal(other[first].context.values, column[first].context.values)


def test_few_parts_are_open_at_a_time(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opening, "_OPEN_PARTS", 2)
    column = open_run(small)[TEACHER]
    assert len(list(column.values())) == 8
    assert column._part.cache_info().currsize == 2  # type: ignore[attr-defined]


def test_the_dataset_gives_every_photograph_that_all_teachers_have_labelled_and_workers_the_same(labelled_run: Path):
    dataset = LabelledPhotographs(labelled_run, ["primary", "assistant"])
    assert len(dataset) == 10
    assert dataset.depth_spaces == ("disparity_affine_invariant",) * 2
    run = open_run(labelled_run)
    items = _all(dataset)
    for item in items:
        key = item["source"], item["key"]
        np.testing.assert_array_equal(item["image"].numpy().transpose(1, 2, 0), run.pictures[key].picture)
        for t, name in enumerate(("primary", "assistant")):
            np.testing.assert_array_equal(item["label"][t], run[name][key].context.values)
            np.testing.assert_array_equal(item["valid"][t], run[name][key].context.valid)
    assert items[0]["image"].dtype == torch.uint8
    shared = _all(dataset, num_workers=2, multiprocessing_context="forkserver")
    assert [item["key"] for item in shared] == [item["key"] for item in items]
    for one, other in zip(items, shared, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("image", "label", "valid"))


def test_a_photograph_whose_columns_were_made_from_different_files_is_refused(squares: Path, tmp_path: Path):
    run_dir = Path(shutil.copytree(squares, tmp_path / "run"))
    part = manifests.load_part(run_dir, "images", "b.00000")
    (image,) = part.images
    changed = dataclasses.replace(part, images=(dataclasses.replace(image, content_sha256="0" * 64),))
    manifests.manifest_path(run_dir, "images", "b.00000").write_bytes(manifests.to_json(changed))
    dataset = LabelledPhotographs(run_dir)
    assert dataset[0]["key"] == "both"
    with pytest.raises(ValueError, match=r"'both' of the source 'b': its columns were made from different files \(sha256: im"):
        dataset[2]


def test_the_programs_of_the_page_on_reading_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Path, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/1.png").write_bytes(scene_bytes(1))
    Path("photos/broken.jpg").write_bytes(b"no picture")
    label(label_config(Path("runs/mine"), ("photos",), checkpoints))
    assert compare(["runs/mine", "--workers", "0"]) == 0
    capsys.readouterr()
    page = (Path(__file__).parents[2] / "docs/reading.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(programs) == 4
    names: dict[str, Any] = {"__name__": "__main__"}
    for program in programs:
        exec(program.replace('num_workers=2, multiprocessing_context="forkserver"', "num_workers=0"), names)
    assert names["table"].num_rows == 1 + len(names["labels"].patches)
    assert names["depth"].shape == names["known"].shape == names["labels"].context.values.shape
    lines = capsys.readouterr().out.splitlines()
    assert "1.png Status(status='labelled', reason='')" in lines
    assert any(re.match(r"broken.jpg Status\(status='rejected', reason=.not_an_image: ", line) for line in lines)
    assert lines[-1].startswith("1.png torch.Size([3, 48, 48]) torch.Size([2, 48, 48]) tensor(1.)")


def test_codes_and_files_are_what_labels_and_pictures_are_decoded_from(squares: Path):
    run = open_run(squares)
    column = run["assistant"]
    number = run.images.number(("b", "both"))
    assert column.status_of_number(number) == column.status(("b", "both"))
    assert column.licence(number) == "Apache-2.0"
    for coded, labels in zip(column.coded(number), column["b", "both"].contexts, strict=True):
        assert coded is not None
        assert labels is not None
        np.testing.assert_array_equal(coded.context.values, labels.context.values)
        assert [patch.box for patch in coded.patches] == [patch.box for patch in labels.patches]
    for jpeg, picture in zip(run.pictures.jpegs(number), run.pictures.numbered(number).pictures, strict=True):
        np.testing.assert_array_equal(decode_picture(jpeg, picture.shape[:2]), picture)


def test_the_dataset_takes_any_context_and_batches_of_squares(squares: Path):
    (batch,) = DataLoader(LabelledPhotographs(squares, context=1), batch_size=3)
    assert batch["label"].shape == (3, 2, SIDE_PX, SIDE_PX)
    assert batch["source"] == ["a", "a", "b"]
    labels = open_run(squares)["assistant"]["first"].contexts[1]
    assert labels is not None
    np.testing.assert_array_equal(batch["label"][1, 0], labels.context.values)
    with pytest.raises(ValueError, match="found context 2, expected one from 0 to 1"):
        LabelledPhotographs(squares, context=2)


def test_the_dataset_leaves_out_what_a_teacher_has_not_and_refuses_where_nothing_is_left(squares: Path, tmp_path: Path):
    run_dir = Path(shutil.copytree(squares, tmp_path / "run"))
    manifests.manifest_path(run_dir, "assistant", "a.00000").unlink()
    assert [item["source"] for item in _all(LabelledPhotographs(run_dir))] == ["b"]
    assert len(LabelledPhotographs(run_dir, ["primary"])) == 3
    manifests.manifest_path(run_dir, "assistant", "b.00000").unlink()
    with pytest.raises(ValueError, match=r"every teacher \(labelled: images 3, assistant 0, primary 3"):
        LabelledPhotographs(run_dir)
