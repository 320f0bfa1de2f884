"""Runs that grow: teachers and photographs that come later cost their own units, and touch nothing that is there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manifests
from manifests.location import on_disk
from pipeline.label.command import label, main
from pipeline.label.config import LabelConfig
from pipeline.label.drive import DriveOptions, drive
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import RunMismatchError, read_sources
from stages.labelling.teacher import TeacherSpec
from stages.sources.photographs import available_resamplers
from tests.conftest import label_config, picture_bytes, scene_bytes, teacher_spec, write_tar

_PLAN = ["--plan.context", "whole", "--plan.context-px", "48", "--plan.patch-px", "48", "--plan.min-image-px", "8"]


def write_photos(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f"{number:02d}.png").write_bytes(scene_bytes(number))
    return folder


def third_teacher(checkpoints: Path) -> TeacherSpec:
    return replace(teacher_spec(checkpoints, "student", "transformers"), name="third")


def all_files(run: Path) -> dict[Path, tuple[int, int]]:
    """Every file of a run but the lock, with inode and time of change."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in run.rglob("*")
        if path.is_file() and path.name != ".driver.lock"
    }


def arguments(run: Path, checkpoints: Path, *sources: Path, names: Sequence[str] = ("primary",)) -> list[str]:
    """A command line; `third` has the student's checkpoint."""
    teachers = []
    for name in names:
        teachers += [f"--{name}.checkpoint", str(checkpoints / {"third": "student"}.get(name, name))]
        teachers += [f"--{name}.licence", "Apache-2.0"]
    given = ["--sources", *map(str, sources)] if sources else []
    settings = [*_PLAN, "--part-size", "2", "--workers", "0"]
    return ["--run", str(run), *given, "--columns", *names, *teachers, *settings]


def test_three_teachers_added_one_by_one_to_a_run_of_two_folders_are_a_run_made_at_once(tmp_path: Path, checkpoints: Path):
    first, second = write_photos(tmp_path / "first", range(3)), write_photos(tmp_path / "second", range(3, 6))
    run = tmp_path / "run"
    counts = []
    for sources, name in [((first,), "primary"), ((first,), "assistant"), ((first, second), "third")]:
        before = all_files(run)
        status = main(arguments(run, checkpoints, *sources, names=[name]))
        assert before.items() <= all_files(run).items()
        counts.append((status, len(all_files(run)) > len(before)))
    assert counts == [(0, True), (0, True), (1, True)]  # of the second folder, two columns are missing
    assert main(arguments(run, checkpoints, names=["primary", "assistant", "third"])) == 0
    assert manifests.verify(run, deep=True) == []
    assert all(column.labelled == 6 for column in manifests.summarize(run).columns)
    at_once = tmp_path / "at once"
    assert main(arguments(at_once, checkpoints, first, second, names=["assistant", "primary", "third"])) == 0
    assert manifests.compare(run, at_once) == []


def test_one_teacher_is_a_run(tmp_path: Path, checkpoints: Path):
    run = tmp_path / "run"
    assert main(arguments(run, checkpoints, write_photos(tmp_path / "photos", range(3)), names=["primary"])) == 0
    assert [column.name for column in manifests.load_run(run).columns] == ["images", "primary"]


def test_a_teacher_of_any_name_is_named_by_its_flags_or_its_table(tmp_path: Path, checkpoints: Path):
    photos = write_photos(tmp_path / "photos", range(2))
    table = tmp_path / "label.toml"
    table.write_text(f"[teachers.from_file]\ncheckpoint = '{checkpoints / 'student'}'\nlicence = 'MIT'\n")
    names = ["--columns", "from_file", "by-flags", "--by-flags.checkpoint", str(checkpoints / "primary")]
    settings = [*_PLAN, "--workers", "0", "--config", str(table)]
    assert main(["--run", str(tmp_path / "run"), "--sources", str(photos), *names, *settings]) == 0
    columns = manifests.load_run(tmp_path / "run").columns
    assert [(column.name, column.configuration.get("licence")) for column in columns] == [
        ("images", None),
        ("by-flags", "unknown"),
        ("from_file", "MIT"),
    ]


@pytest.fixture
def config(tmp_path: Path, checkpoints: Path) -> LabelConfig:
    """A finished run over a folder of four photographs, one teacher, parts of two."""
    photos = write_photos(tmp_path / "photos", range(4))
    made = label_config(tmp_path / "run", (str(photos),), checkpoints, part_size=2)
    made = replace(made, columns=("primary",))
    assert not label(made).failures
    return made


def test_files_that_were_added_to_a_folder_are_left_out_by_name_and_taken_in_by_one_flag(
    tmp_path: Path, checkpoints: Path, config: LabelConfig, capsys: pytest.CaptureFixture[str]
):
    photos = write_photos(tmp_path / "photos", [9, 10, 11])
    before = all_files(on_disk(config.run))
    assert main(arguments(on_disk(config.run), checkpoints, photos)) == 1
    told = capsys.readouterr().err
    assert f"{photos}: 3 new files are not in the run: 09.png, 10.png, 11.png; take them in with --add-new-files" in told
    assert all_files(on_disk(config.run)) == before
    assert main([*arguments(on_disk(config.run), checkpoints, photos), "--add-new-files"]) == 0
    assert before.items() <= all_files(on_disk(config.run)).items()
    sources = {source.source: (source.images, source.extends) for source in manifests.load_run(config.run).sources}
    assert sources == {"photos": (4, None), "photos-2": (3, "photos")}
    assert [column.labelled for column in manifests.summarize(config.run).columns] == [7, 7]
    assert main(arguments(on_disk(config.run), checkpoints, photos)) == 0  # now all of the folder is known
    write_photos(photos, [20])
    assert main([*arguments(on_disk(config.run), checkpoints, photos), "--add-new-files"]) == 0
    assert [source.source for source in manifests.load_run(config.run).sources] == ["photos", "photos-2", "photos-3"]
    assert manifests.verify(on_disk(config.run), deep=True) == []


def test_a_folder_that_was_renamed_or_got_new_files_does_not_stop_an_interrupted_run_from_being_finished(
    tmp_path: Path, checkpoints: Path, config: LabelConfig
):
    manifests.drop_parts(on_disk(config.run), {("primary", "photos.00001"): "to have something left"})
    (tmp_path / "photos").rename(tmp_path / "pictures")
    write_photos(tmp_path / "pictures", [9])
    report = label(replace(config, sources=(str(tmp_path / "pictures"),)))
    assert (report.committed, report.failures) == (1, ())
    assert [source.source for source in manifests.load_run(config.run).sources] == ["photos"]


def test_without_sources_a_command_takes_those_of_the_run_and_names_one_that_is_gone(
    tmp_path: Path, checkpoints: Path, config: LabelConfig, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments(on_disk(config.run), checkpoints)) == 0
    (tmp_path / "photos").rename(tmp_path / "pictures")
    assert main(arguments(on_disk(config.run), checkpoints)) == 2
    assert f"{tmp_path / 'photos'}: nothing there, where the run had it; name its place by --sources" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda photos: (photos / "02.png").unlink(), "02"),
        (lambda photos: (photos / "02.png").write_bytes(scene_bytes(7)), "02"),
        (lambda photos: (photos / "02.png").rename(photos / "02b.png"), "02"),
    ],
)
def test_a_source_that_has_changed_is_refused_naming_the_file(tmp_path: Path, config: LabelConfig, harm, words: str):
    before = all_files(on_disk(config.run))
    harm(tmp_path / "photos")
    for add_new_files in (False, True):
        with pytest.raises(RunMismatchError, match=rf"photos.*\b{words}\b"):
            label(replace(config, add_new_files=add_new_files))
    assert all_files(on_disk(config.run)) == before


def test_a_tar_that_moved_is_the_same_and_a_second_one_of_its_name_is_another(tmp_path: Path, checkpoints: Path):
    (tmp_path / "other").mkdir()
    tar = write_tar(tmp_path / "s.tar", {"a.png": scene_bytes(1)})
    config = replace(label_config(tmp_path / "run", (str(tar),), checkpoints), columns=("primary",))
    label(config)
    moved = shutil.move(tar, tmp_path / "other/s.tar")
    assert label(replace(config, sources=(str(moved),))).committed == 0
    write_tar(tar, {"b.png": scene_bytes(2)})
    report = label(replace(config, sources=(str(tar), str(moved))))
    assert not report.failures
    assert {source.source: source.images for source in manifests.load_run(config.run).sources} == {"s": 1, "s-2": 1}


def test_a_column_that_is_not_wanted_any_more_is_taken_out_by_removing_its_folder(
    tmp_path: Path, checkpoints: Path, config: LabelConfig, capsys: pytest.CaptureFixture[str]
):
    label(replace(config, teachers={"third": third_teacher(checkpoints)}, columns=()))
    manifests.drop_parts(on_disk(config.run), {("third", "photos.00001"): "it was a mistake"})
    assert main(arguments(on_disk(config.run), checkpoints)) == 1
    assert "2 images are not labelled in the column third" in (told := capsys.readouterr().err)
    assert "remove the folder columns/third" in told
    shutil.rmtree(on_disk(config.run) / "columns/third")
    assert main(arguments(on_disk(config.run), checkpoints)) == 0
    assert manifests.verify(on_disk(config.run), deep=True) == []


def test_two_commands_that_add_different_teachers_at_once_end_in_one_run(
    tmp_path: Path, checkpoints: Path, config: LabelConfig
):
    """Each opens the run before the other has added its column."""
    third = replace(config, teachers={"third": third_teacher(checkpoints)}, columns=())
    assistant = replace(config, columns=("assistant",))
    runs = [open_run(each, read_sources(each.sources)) for each in (third, assistant)]
    for run in runs:
        assert not drive(run, units_left(run), DriveOptions(workers=0, resources={})).failures
    assert [column.name for column in manifests.load_run(config.run).columns] == [
        "images",
        "assistant",
        "primary",
        "third",
    ]
    assert all(column.labelled == 4 for column in manifests.summarize(config.run).columns)


def test_another_folder_of_a_name_whose_folder_is_away_is_a_new_source(tmp_path: Path, config: LabelConfig):
    (tmp_path / "photos").rename(tmp_path / "unmounted")
    (tmp_path / "other").mkdir()
    write_photos(tmp_path / "other/photos", [7, 8])
    assert not label(replace(config, sources=(str(tmp_path / "other/photos"),))).failures
    assert {source.source: source.images for source in manifests.load_run(config.run).sources} == {
        "photos": 4,
        "photos-2": 2,
    }


def test_frames_of_equal_names_and_sizes_are_not_taken_for_those_of_another_folder(tmp_path: Path, checkpoints: Path):
    for folder, shade in (("a", 50), ("b", 100)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            picture = Image.fromarray(np.full((64, 64, 3), shade + i, np.uint8))
            (tmp_path / folder / f"{i}.bmp").write_bytes(picture_bytes(picture, "bmp"))
    config = replace(label_config(tmp_path / "run", (str(tmp_path / "a"),), checkpoints), columns=("primary",))
    assert label(config).committed == 2
    (tmp_path / "a").rename(tmp_path / "away")
    assert label(replace(config, sources=(str(tmp_path / "b"),))).committed == 2
    assert label(replace(config, sources=(str(tmp_path / "away"),))).committed == 0
    assert [source.source for source in manifests.load_run(config.run).sources] == ["a", "b"]


@pytest.mark.parametrize("place", ["photos/inner", "."])
def test_a_folder_inside_one_of_the_runs_or_around_it_is_refused(tmp_path: Path, config: LabelConfig, place: str):
    write_photos(tmp_path / "photos/inner", [7])
    with pytest.raises(RunMismatchError, match=r"is (inside|around) .*photos, which is the run's source photos"):
        label(replace(config, sources=(str(tmp_path / place),)))


def test_a_run_of_old_goes_on_with_its_own_bits_and_resampler(tmp_path: Path, checkpoints: Path):
    """Of which it says nothing: it was made when there was one of each."""
    photos, run = write_photos(tmp_path / "photos", range(4)), tmp_path / "run"
    given = arguments(run, checkpoints, photos)
    assert main([*given, "--resampler", "pillow", "--primary.label-bits", "16"]) == 0
    assert not {"label_bits", "resampler"} & {key for column in manifests.load_run(run).columns for key in column.fingerprint}
    first, *_ = manifests.parts(manifests.load_run(run))
    before = manifests.load_part(run, "primary", first.name)
    manifests.drop_parts(run, {("primary", first.name): "made again"})
    assert main(given) == 0
    after = manifests.load_part(run, "primary", first.name)
    assert [file.sha256 for file in after.files] == [file.sha256 for file in before.files]
    assert main([*given, "--primary.label-bits", "10"]) == 2


def test_a_new_run_says_its_bits_and_its_resampler_and_refuses_those_that_are_none(tmp_path: Path, checkpoints: Path, capsys):
    photos, run = write_photos(tmp_path / "photos", range(2)), tmp_path / "run"
    with pytest.raises(SystemExit, match="2"):
        main([*arguments(run, checkpoints, photos), "--primary.label-bits", "7"])
    assert "--primary.label-bits is 7, expected 8 to 16" in capsys.readouterr().err
    assert main(arguments(run, checkpoints, photos)) == 0
    fingerprint = next(column.fingerprint for column in manifests.load_run(run).columns if column.name == "primary")
    assert fingerprint["label_bits"] == 12
    assert fingerprint.get("resampler", "pillow") == available_resamplers()[0]
    assert "channels_last" not in fingerprint  # as in runs of before there was a choice
    assert main([*arguments(run, checkpoints, photos), "--primary.channels-last"]) == 2
    assert "channels_last" in capsys.readouterr().err
