"""Runs over lists of files and Parquet files: labelled, resumed, grown and predicted as those over folders and tars are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import manifests
from pipeline.label.command import main
from pipeline.predict.command import main as predict
from tests.conftest import scene_bytes
from tests.pipeline.label.test_growth import arguments, write_photos
from tests.stages.sources.parquet_files import published, write_published


def _rows(run: Path) -> dict[str, str]:
    """How each image stands in the column of the teacher."""
    parts = (manifests.load_part(run, "primary", part) for part in sorted(manifests.committed_parts(run, "primary")))
    return {image.key: image.problem.kind if image.problem else image.status for part in parts for image in part.images}


def test_a_list_is_labelled_and_what_it_names_later_is_taken_in(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    photos, run = write_photos(tmp_path / "photos", range(4)), tmp_path / "run"
    (tmp_path / "mine.txt").write_text("# a list\nphotos/00.png\nphotos/gone.png\nphotos/01.png\n")
    given = ["--sources", f"@{tmp_path / 'mine.txt'}", *arguments(run, checkpoints)]
    assert main(given) == 1
    assert "source mine.txt:3: unreadable: cannot be read: No such file or directory" in capsys.readouterr().err
    assert main([*given, "--allow-damaged-sources"]) == 0
    (tmp_path / "mine.txt").write_text(f"photos/01.png\nphotos/00.png\n{photos / '02.png'}\nphotos/03.png\n")
    capsys.readouterr()
    assert main([*arguments(run, checkpoints), "--allow-damaged-sources"]) == 1  # without --sources: the list, where it was
    assert "2 new files are not in the run: photos/02.png, photos/03.png" in capsys.readouterr().err
    assert main([*given, "--add-new-files", "--allow-damaged-sources"]) == 0
    assert _rows(run) == {f"photos/0{i}.png": "labelled" for i in range(4)}
    assert [(source.source, source.source_kind, source.extends) for source in manifests.load_run(run).sources] == [
        ("mine", "list", None),
        ("mine-2", "list", "mine"),
    ]
    (tmp_path / "mine.txt").write_text("photos/00.png\n")
    assert main(given) == 2
    assert "are gone (photos/01.png" in capsys.readouterr().err


def test_a_published_data_set_is_labelled_and_each_bad_row_is_named(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    scenes = [published(scene_bytes(i), f"scene/{i}.png") for i in range(3)]
    data, run = tmp_path / "set/data", tmp_path / "run"
    bad = [scenes[2], None, published(b""), published(b"no picture")]
    write_published(data / "train-00000-of-00002.parquet", scenes[:2], columns={"depth": scenes[:2]})
    write_published(data / "train-00001-of-00002.parquet", bad, columns={"depth": [None] * 4}, group=3)
    lenient = ["--max-rejected-fraction", "1"]
    assert main(arguments(run, checkpoints, tmp_path / "set")) == 2
    assert "the columns image, depth may all be images; name one, as in ?column=image" in capsys.readouterr().err
    assert main(["--sources", f"{tmp_path / 'set'}?column=image", *arguments(run, checkpoints), *lenient]) == 0
    assert "images are the column 'image' of 2 Parquet files" in capsys.readouterr().err
    assert _rows(run) == {
        **{f"scene/{i}.png": "labelled" for i in range(3)},
        "train-00001-of-00002/000001": "empty_file",
        "train-00001-of-00002/000002": "empty_file",
        "train-00001-of-00002/000003": "not_an_image",
    }
    assert manifests.verify(run, deep=True) == []
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    again = ["--sources", f"{tmp_path / 'elsewhere/data'}/train-*.parquet?column=image", *arguments(run, checkpoints), *lenient]
    assert main(again) == 0  # known again where it lies now
    (tmp_path / "elsewhere").rename(tmp_path / "set")
    assert main([*arguments(run, checkpoints, names=["third"]), *lenient]) == 0  # of the column that the run has
    assert manifests.summarize(run).columns[-1].labelled == 3
    write_published(data / "train-00000-of-00002.parquet", [scenes[2], scenes[1]], columns={"depth": scenes[:2]})
    assert main(["--sources", f"{tmp_path / 'set'}?column=image", *arguments(run, checkpoints), *lenient]) == 2
    assert "are gone (scene/0.png)" in capsys.readouterr().err


def test_lists_and_parquet_files_are_predicted_under_their_names(tmp_path: Path, checkpoints: Path):
    write_photos(tmp_path / "photos", range(2))
    write_published(tmp_path / "set/a.parquet", [published(scene_bytes(2), "x/2.png"), published(scene_bytes(3))])
    (tmp_path / "mine.txt").write_text("photos/00.png\nset/a.parquet\n")
    model = ["--model", str(checkpoints / "student"), "--output", str(tmp_path / "maps"), "--npy", "--no-color"]
    assert predict([f"@{tmp_path / 'mine.txt'}", *model]) == 0
    assert predict([str(tmp_path / "set"), str(tmp_path / "photos/01.png"), *model]) == 0
    maps = sorted(path.relative_to(tmp_path / "maps").as_posix() for path in (tmp_path / "maps").rglob("*.npy"))
    assert maps == ["01.png.npy", "a/000001.npy", "a/x/2.png.npy", "photos/00.png.npy"]
    write_photos(tmp_path / "alone", [3])
    assert predict([str(tmp_path / "alone"), *model[:2], "--output", str(tmp_path / "of-file"), "--npy", "--no-color"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "maps/a/000001.npy"), np.load(tmp_path / "of-file/03.png.npy"))
