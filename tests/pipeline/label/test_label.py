"""`python -m pipeline.label` as a user runs it: real Ray, real tars, real kills."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import manifests
from manifests.location import on_disk
from pipeline.label.command import label, main
from pipeline.label.config import LabelConfig
from pipeline.label.drive import DriveOptions, drive, require_seen
from pipeline.label.queue import RunNotSharedError, Task, TeacherUnusableError
from pipeline.label.run import describe_run, enter_run, needs_correction, open_run, refuse_replaced, units_left
from pipeline.label.sources import RunMismatchError, read_sources
from pipeline.label.worker import LabelWorker
from tests.conftest import label_config, picture_bytes, scene_bytes, with_teachers, write_tar
from tests.faults.processes import committed, is_alive, start, workers_of
from tests.faults.steps import UNIT_STEPS, Fault

_PLAN = ["--plan.context", "whole", "--plan.context-px", "48", "--plan.patch-px", "48"]


def _command(run: Path, source: Path, checkpoints: Path, *more: str) -> list[str]:
    teachers = []
    for name in ("primary", "assistant"):
        teachers += [f"--{name}.checkpoint", str(checkpoints / name), f"--{name}.licence", "Apache-2.0"]
    plan = [*_PLAN, "--plan.min-image-px", "8", "--part-size", "4", "--max-rejected-fraction", "0.1"]
    return ["--run", str(run), "--sources", str(source), *plan, *teachers, *more]


def _content(run: Path) -> dict[str, object]:
    """Everything a run says, less what may differ between two equal runs: attempts' names, hosts and times."""
    content: dict[str, object] = {}
    for path in sorted(run.glob("catalog/*.parquet")):
        content[path.name] = manifests.sha256_file(path)
    for path in sorted(run.glob("columns/*/*.json")):
        if path.name.endswith((".failure.json", "column.json")):
            continue
        manifest = json.loads(path.read_bytes())
        attempt = manifest["volatile"]["attempt"]
        for volatile in ("volatile", "zarr", "record_sha256"):
            manifest.pop(volatile, None)
        manifest = {key: value for key, value in manifest.items() if "sha256" not in key}
        for file in manifest["files"]:
            file["path"] = file["path"].replace(attempt, "ATTEMPT")
        content[f"{path.parent.name}/{path.name}"] = manifest
    return content


def test_every_image_is_labelled_or_rejected_and_the_run_is_sound(labelled_run: Path):
    assert manifests.verify(labelled_run) == []
    summary = manifests.summarize(labelled_run)
    for column in summary.columns:
        assert (column.labelled, sum(column.rejected.values()), column.failed, column.pending) == (10, 1, 0, 0)
        assert set(column.rejected) == {"not_an_image"} or set(column.rejected) == {"damaged"}


def test_a_finished_run_is_left_untouched(labelled_run: Path, checkpoints: Path, scenes_tar: Path):
    before = {path: path.stat().st_mtime_ns for path in labelled_run.rglob("*")}
    report = label(label_config(labelled_run, (str(scenes_tar),), checkpoints))
    assert report.committed == 0
    assert {path: path.stat().st_mtime_ns for path in labelled_run.rglob("*")} == before


@pytest.mark.campaign
def test_ray_workers_and_this_process_give_the_same_labels(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    report = label(label_config(tmp_path / "run", (str(scenes_tar),), checkpoints, workers=2))
    assert not report.failures
    assert _content(tmp_path / "run") == _content(labelled_run)


@pytest.mark.campaign
def test_a_driver_that_is_killed_takes_ray_along_and_the_next_run_ends_the_same(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    """Killed when something is committed, and while a worker hangs in a unit."""
    arguments = _command(tmp_path / "run", scenes_tar, checkpoints)
    hang = Fault(UNIT_STEPS["primary: its last file is written"], "sleep")
    process = start([*arguments, "--workers", "2"], [hang], tmp_path / "marks")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "marks").iterdir()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = workers_of(process.pid)
    process.kill()
    process.communicate()
    assert committed(tmp_path / "run")
    assert main([*arguments, "--workers", "0"]) == 0
    assert _content(tmp_path / "run") == _content(labelled_run)
    assert workers
    while left := [pid for pid in workers if is_alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed"),
        ({"part_size": 5}, "part_size"),
    ],
)
def test_a_run_of_other_settings_is_refused_naming_the_field(
    labelled_run: Path, checkpoints: Path, scenes_tar: Path, changes: dict[str, object], words: str
):
    with pytest.raises(RunMismatchError, match=words):
        label(label_config(labelled_run, (str(scenes_tar),), checkpoints, **changes))


def test_other_weights_under_an_old_name_are_refused(labelled_run: Path, checkpoints: Path, scenes_tar: Path):
    config = label_config(labelled_run, (str(scenes_tar),), checkpoints)
    student = replace(config.teachers["primary"], checkpoint=str(checkpoints / "student"))
    with pytest.raises(RunMismatchError, match=r"column primary: .*weights_sha256"):
        label(with_teachers(config, student))


def test_changed_input_under_an_old_name_is_refused(tmp_path: Path, checkpoints: Path):
    source = write_tar(tmp_path / "s.tar", {"a.png": scene_bytes(1), "b.png": scene_bytes(2)})
    config = label_config(tmp_path / "run", (str(source),), checkpoints)
    label(config)
    write_tar(source, {"a.png": scene_bytes(3), "b.png": scene_bytes(2)})
    with pytest.raises(RunMismatchError, match=r"s\.tar: .*a"):
        label(config)


def test_a_damaged_source_makes_the_exit_status_non_zero_until_it_is_allowed(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    source = write_tar(tmp_path / "s.tar", {f"{i}.png": scene_bytes(i) for i in range(3)})
    source.write_bytes(source.read_bytes()[:-11_000])
    command = _command(tmp_path / "run", source, checkpoints, "--workers", "0")
    assert main(command) == 1
    assert "--allow-damaged-sources" in capsys.readouterr().err
    assert main([*command, "--allow-damaged-sources"]) == 0


def test_a_part_that_cannot_be_read_fails_by_name_its_neighbours_do_not_and_the_next_run_makes_it(
    tmp_path: Path, checkpoints: Path
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(scene_bytes(i))
    config = label_config(tmp_path / "run", (str(folder),), checkpoints)
    run = open_run(config, read_sources(config.sources))
    content = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(content[:50])  # lost after it was catalogued, as on a failing disk
    report = drive(run, units_left(run), DriveOptions(workers=0, resources={}, max_attempts=2))
    assert [(failure.column, failure.part, failure.attempts) for failure in report.failures] == [
        ("images", "photos.00001", 2),
        ("primary", "photos.00001", 1),
        ("assistant", "photos.00001", 1),
    ]
    assert "5.png no longer has" in report.failures[0].problem.message
    summary = manifests.summarize(on_disk(config.run))
    assert [(column.labelled, column.failed, column.pending) for column in summary.columns] == [(4, 2, 0)] * 3
    (folder / "5.png").write_bytes(content)
    assert not label(config).failures
    assert [column.labelled for column in manifests.summarize(on_disk(config.run)).columns] == [6, 6, 6]


def test_a_missing_source_is_a_usage_error(tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]):
    assert main(_command(tmp_path / "run", tmp_path / "nope.tar", checkpoints)) == 2
    assert "nothing there" in capsys.readouterr().err


def test_more_rejections_than_the_budget_allows_make_the_exit_status_non_zero_and_are_named(
    labelled_run: Path, checkpoints: Path, scenes_tar: Path, capsys: pytest.CaptureFixture[str]
):
    command = _command(labelled_run, scenes_tar, checkpoints, "--workers", "0")
    assert main([*command, "--max-rejected-fraction", "0.09"]) == 1
    told = capsys.readouterr().err
    assert "1 of 11 images rejected in images (more than the share of 0.09 allowed): 1 damaged" in told
    assert "(the run was made with 0.01)" in told
    assert main(command) == 0


def test_the_budget_of_rejections_that_made_the_run_is_in_its_record(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    source = write_tar(tmp_path / "s.tar", {"a.png": scene_bytes(1), "b.jpg": b"no picture"})
    command = _command(tmp_path / "run", source, checkpoints, "--workers", "0")
    assert main([*command, "--max-rejected-fraction", "0.25"]) == 1
    assert manifests.load_run(tmp_path / "run").configuration["max_rejected_fraction"] == 0.25
    assert main([*command, "--max-rejected-fraction", "0.5"]) == 0
    assert manifests.load_run(tmp_path / "run").configuration["max_rejected_fraction"] == 0.25


def test_the_end_says_what_the_run_holds_and_what_this_command_added(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    source = write_tar(tmp_path / "s.tar", {f"{i}.png": scene_bytes(i) for i in range(5)})
    config = label_config(tmp_path / "run", (str(source),), checkpoints)
    run = open_run(config, read_sources(config.sources))
    drive(run, units_left(run)[:5], DriveOptions(workers=0, resources={}))
    command = _command(tmp_path / "run", source, checkpoints, "--workers", "0")
    assert main(command) == main(command) == 0
    told = capsys.readouterr().out
    assert "6 of 6 parts are committed, 1 of them by this command." in told
    assert "6 of 6 parts are committed, 0 of them by this command." in told


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    tmp_path: Path, checkpoints: Path, scenes_tar: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(_command(tmp_path / "run", scenes_tar, checkpoints, "--workers", "2", "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "11 images; measured on 11 of them, for 2 workers" in told
    for column in ("images", "primary", "assistant"):
        assert re.search(rf"^{column} +[0-9]+ +[0-9.]+ ", told, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_images_that_took_their_worker_down_get_a_second_chance_when_asked_for(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    config = label_config(tmp_path / "run", (str(scenes_tar),), checkpoints)
    run = open_run(config, read_sources(config.sources))
    first, *rest = units_left(run)
    excluded = {1: manifests.Reason(kind="timed_out", message="no sign of life")}
    drive(run, [replace(first, excluded=excluded), *rest], DriveOptions(workers=0, resources={}))
    assert [column.rejected["timed_out"] for column in manifests.summarize(on_disk(config.run)).columns] == [1, 1, 1]
    assert label(config).committed == 0  # a rejection is final
    assert label(replace(config, retry_failed=True)).committed == 3
    assert _content(on_disk(config.run)) == _content(labelled_run)


def test_changed_bytes_under_an_old_name_are_refused_naming_the_file_and_both_digests(tmp_path: Path, checkpoints: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.bmp").write_bytes(picture_bytes(Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)), "bmp"))
    config = label_config(tmp_path / "run", (str(folder),), checkpoints)
    run = open_run(config, read_sources(config.sources))
    images, *teachers = units_left(run)
    options = DriveOptions(workers=0, resources={})
    assert not drive(run, [images], options).failures
    (folder / "1.bmp").write_bytes((folder / "2.bmp").read_bytes())  # of the very same size
    failures = drive(run, teachers, options).failures
    assert [failure.problem.kind for failure in failures] == ["InputChangedError"] * 2
    for digest in (hashlib.sha256((folder / "2.bmp").read_bytes()).hexdigest(), "1.bmp"):
        assert digest in failures[0].problem.message


def test_one_key_in_two_sources_is_named_in_the_catalogue_and_both_images_are_labelled(tmp_path: Path, checkpoints: Path):
    tars = [write_tar(tmp_path / f"{name}.tar", {"0001.png": scene_bytes(seed)}) for seed, name in enumerate("ab")]
    config = label_config(tmp_path / "run", tuple(map(str, tars)), checkpoints)
    report = label(config)
    assert [(problem.kind, problem.where) for problem in report.source_problems] == [("duplicate_key_across_sources", "b:0001")]
    assert manifests.load_catalogue(on_disk(config.run), "b").problems == report.source_problems
    assert [column.labelled for column in manifests.summarize(on_disk(config.run)).columns] == [2, 2, 2]


def _broken(checkpoints: Path, to: Path, how: str) -> Path:
    """The teachers with an `assistant` that is cut short, or all of whose numbers are nan."""
    shutil.copytree(checkpoints, to)
    for weights in (to / "assistant").rglob("*.safetensors"):
        if how == "cut short":
            weights.write_bytes(weights.read_bytes()[:-100])
        else:
            tensors = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}
            save_file(tensors, weights)
    return to


@pytest.mark.parametrize(("how", "words"), [("cut short", "cannot be loaded"), ("nan", "2304 of 2304 values are not finite")])
def test_a_teacher_that_is_of_no_use_is_named_before_anything_is_labelled_and_may_be_corrected(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path, how: str, words: str,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    broken = _broken(checkpoints, tmp_path / "broken", how)
    run = tmp_path / "run"
    assert main(_command(run, scenes_tar, broken, "--workers", "0")) == 2
    message = capsys.readouterr().err
    assert "teacher assistant" in message
    assert words in message
    assert [column.pending for column in manifests.summarize(run).columns] == [11, 11, 11]
    assert main(_command(run, scenes_tar, checkpoints, "--workers", "0")) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "corrected" in line]
    assert "columns/assistant/column.json: corrected, nothing of it was committed: weights_sha256: found" in line
    assert manifests.verify(run, deep=True) == []
    assert _content(run) == _content(labelled_run)


def _labelled_but_for_the_assistant(config: LabelConfig) -> None:
    run = open_run(config, read_sources(config.sources))
    units = [unit for unit in units_left(run) if unit.column != "assistant"]
    drive(run, units, DriveOptions(workers=0, resources={}))
    failure = manifests.FailureRecord(
        column="assistant",
        part=units[0].part,
        attempts=3,
        problem=manifests.Reason(kind="RuntimeError", message="of the former teacher"),
        images=len(units[0].rows),
    )
    manifests.write_replacing(
        manifests.failure_path(on_disk(config.run), "assistant", units[0].part), manifests.to_json(failure)
    )
    (manifests.column_dir(on_disk(config.run), "assistant") / f"{units[0].part}.0123abcd.zarr").mkdir()


def test_a_teacher_without_labels_gives_way_to_another_and_what_is_labelled_stays(
    tmp_path: Path, checkpoints: Path, scenes_tar: Path, capsys: pytest.CaptureFixture[str]
):
    config = label_config(tmp_path / "run", (str(scenes_tar),), checkpoints)
    _labelled_but_for_the_assistant(config)
    before = {path: path.read_bytes() for path in (on_disk(config.run) / "columns/primary").rglob("*") if path.is_file()}
    student = replace(config.teachers["primary"], name="assistant", checkpoint=str(checkpoints / "student"))
    report = label(with_teachers(config, student))
    assert (report.committed, report.parts_done, report.parts_total) == (3, 9, 9)
    assert {path: path.read_bytes() for path in before} == before
    assert manifests.verify(on_disk(config.run), deep=True) == []  # nothing of the former one is left
    assert "columns/assistant/column.json: corrected, nothing of it was committed: loader: found" in capsys.readouterr().err
    assert manifests.load_column(on_disk(config.run), "assistant").configuration["checkpoint"] == str(checkpoints / "student")


def test_nothing_is_corrected_where_anything_else_differs(tmp_path: Path, checkpoints: Path, scenes_tar: Path):
    config = label_config(tmp_path / "run", (str(scenes_tar),), checkpoints)
    _labelled_but_for_the_assistant(config)
    records = [on_disk(config.run) / "run.json", *on_disk(config.run).glob("columns/*/column.json")]
    before = [path.read_bytes() for path in records]
    primary, assistant = (
        replace(teacher, loader="transformers", checkpoint=str(checkpoints / "student")) for teacher in config.teachers.values()
    )
    for changed, words in (
        (with_teachers(config, primary), "column primary: weights_sha256: found"),
        (with_teachers(config, primary, assistant), "column primary: weights_sha256: found"),
        (with_teachers(replace(config, seed=5), assistant), "seed: found 0, expected 5"),
    ):
        with pytest.raises(RunMismatchError, match=words):
            label(changed)
    assert [path.read_bytes() for path in records] == before
    assert list(on_disk(config.run).glob("columns/assistant/*.failure.json"))


def test_a_teacher_is_not_corrected_while_another_command_has_the_run(
    tmp_path: Path, checkpoints: Path, scenes_tar: Path, capsys: pytest.CaptureFixture[str]
):
    config = label_config(tmp_path / "run", (str(scenes_tar),), checkpoints)
    open_run(config, read_sources(config.sources))
    before = manifests.column_record_path(on_disk(config.run), "assistant").read_bytes()
    student = ("--assistant.checkpoint", str(checkpoints / "student"))
    with manifests.hold_run(on_disk(config.run), exclusive=False):
        assert main(_command(on_disk(config.run), scenes_tar, checkpoints, "--workers", "0", *student)) == 2
    assert "can be replaced only while no other command has the run" in capsys.readouterr().err
    assert manifests.column_record_path(on_disk(config.run), "assistant").read_bytes() == before


def test_a_command_whose_record_was_corrected_under_its_hands_labels_nothing(
    tmp_path: Path, checkpoints: Path, scenes_tar: Path
):
    config = label_config(tmp_path / "run", (str(scenes_tar),), checkpoints)
    sources = read_sources(config.sources)
    ours = open_run(config, sources)
    unit = next(replace(unit, attempt="ours") for unit in units_left(ours) if unit.column == "assistant")
    student = replace(config.teachers["primary"], name="assistant", checkpoint=str(checkpoints / "student"))
    theirs = describe_run(with_teachers(config, student), ())
    assert needs_correction(theirs)
    with pytest.raises(RunMismatchError, match="column assistant: loader: found"):
        enter_run(theirs, sources)
    assert len(enter_run(theirs, sources, alone=True).corrections) == 1
    with pytest.raises(RunMismatchError, match=r"assistant/column.json: another command has replaced it"):
        refuse_replaced(ours)
    with pytest.raises(RunNotSharedError):
        LabelWorker(8, 1).do(Task(unit=unit, teacher=ours.teachers[1]))
    assert not list(on_disk(config.run).rglob("*.zarr"))


def test_a_worker_keeps_the_teacher_that_it_has_tried(tmp_path: Path, checkpoints: Path, scenes_tar: Path):
    """Weights that are gone once a teacher is loaded are not missed by the tasks that follow."""
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    config = label_config(tmp_path / "run", (str(scenes_tar),), tmp_path / "checkpoints")
    run = open_run(config, read_sources(config.sources))
    images, primary = (next(unit for unit in units_left(run) if unit.column == name) for name in ("images", "primary"))
    worker = LabelWorker(8, 1)
    assert worker.do(Task(unit=primary, teacher=run.teachers[0], only_teacher=True)) is None
    shutil.rmtree(tmp_path / "checkpoints")
    for unit, teacher in ((images, None), (primary, run.teachers[0])):
        result = worker.do(Task(unit=replace(unit, attempt="a"), teacher=teacher))
        assert result
        assert result.committed
    with pytest.raises(TeacherUnusableError):
        LabelWorker(8, 1).do(Task(unit=primary, teacher=run.teachers[0], only_teacher=True))


@pytest.mark.parametrize("there", ["another", "none", "no folder"])
def test_a_worker_that_sees_another_run_or_none_refuses_in_words_and_writes_nothing(
    tmp_path: Path, checkpoints: Path, scenes_tar: Path, there: str
):
    config = label_config(tmp_path / "run", (str(scenes_tar),), checkpoints)
    run = open_run(config, read_sources(config.sources))
    task = Task(unit=replace(units_left(run)[0], attempt="a"), teacher=None)
    (on_disk(config.run) / "run.json").unlink()
    if there == "another":
        (on_disk(config.run) / "run.json").write_text("{}")
    elif there == "no folder":
        shutil.rmtree(on_disk(config.run))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunNotSharedError, match=r"run.json on .* is not the driver's: .*, expected .*disk that they share"):
        LabelWorker(8, 1).do(task)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_commit_that_cannot_be_seen_here_is_refused_and_one_that_comes_late_is_not(tmp_path: Path):
    manifest = tmp_path / "part.json"
    with pytest.raises(RunNotSharedError, match="a worker has committed it"):
        require_seen(tmp_path, manifest.name, timeout_s=0.1)
    late = Timer(0.2, manifest.touch)
    late.start()
    require_seen(tmp_path, manifest.name, timeout_s=60)
    late.join()
