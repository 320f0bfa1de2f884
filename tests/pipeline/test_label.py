"""`python -m pipeline.label` as a user runs it: real Ray, real tars, real kills."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manifests
from pipeline.label import label, main
from pipeline.label_engine import DriveOptions, drive
from pipeline.label_run import RunMismatchError, open_run, read_sources, units_left
from tests.conftest import label_config, picture_bytes, scene_bytes, write_tar
from tests.faults.processes import committed, workers_of

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
        if path.name.endswith(".failure.json"):
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


def test_ray_workers_and_this_process_give_the_same_labels(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    report = label(label_config(tmp_path / "run", (str(scenes_tar),), checkpoints, workers=2))
    assert not report.failures
    assert _content(tmp_path / "run") == _content(labelled_run)


def _start(command: list[str], run: Path) -> subprocess.Popen[bytes]:
    """The command, once it has committed something."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "RAY_worker_niceness": "0"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and not committed(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    return process


def test_a_driver_that_is_killed_takes_ray_along_and_the_next_run_ends_the_same(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    arguments = _command(tmp_path / "run", scenes_tar, checkpoints, "--workers", "2")
    process = _start([sys.executable, "-m", "pipeline.label", *arguments], tmp_path / "run")
    workers = workers_of(process.pid)
    process.kill()
    process.communicate()
    assert main(_command(tmp_path / "run", scenes_tar, checkpoints, "--workers", "0")) == 0
    assert _content(tmp_path / "run") == _content(labelled_run)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


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
    student = replace(config.primary, checkpoint=str(checkpoints / "student"))
    with pytest.raises(RunMismatchError, match=r"column primary: .*weights_sha256"):
        label(replace(config, primary=student))


def test_changed_input_under_an_old_name_is_refused(tmp_path: Path, checkpoints: Path):
    source = write_tar(tmp_path / "s.tar", {"a.png": scene_bytes(1), "b.png": scene_bytes(2)})
    config = label_config(tmp_path / "run", (str(source),), checkpoints)
    label(config)
    write_tar(source, {"a.png": scene_bytes(3), "b.png": scene_bytes(2)})
    with pytest.raises(RunMismatchError, match="rows_sha256"):
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
    summary = manifests.summarize(config.run)
    assert [(column.labelled, column.failed, column.pending) for column in summary.columns] == [(4, 2, 0)] * 3
    (folder / "5.png").write_bytes(content)
    assert not label(config).failures
    assert [column.labelled for column in manifests.summarize(config.run).columns] == [6, 6, 6]


def test_a_missing_source_is_a_usage_error(tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]):
    assert main(_command(tmp_path / "run", tmp_path / "nope.tar", checkpoints)) == 2
    assert "nothing there" in capsys.readouterr().err


def test_more_rejections_than_the_budget_allows_make_the_exit_status_non_zero_and_are_named(
    labelled_run: Path, checkpoints: Path, scenes_tar: Path, capsys: pytest.CaptureFixture[str]
):
    command = _command(labelled_run, scenes_tar, checkpoints, "--workers", "0")
    assert main([*command, "--max-rejected-fraction", "0.09"]) == 1
    assert "1 of 11 images were rejected (1 damaged)" in capsys.readouterr().err
    assert main(command) == 0


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
    assert [column.rejected["timed_out"] for column in manifests.summarize(config.run).columns] == [1, 1, 1]
    assert label(config).committed == 0  # a rejection is final
    assert label(replace(config, retry_failed=True)).committed == 3
    assert _content(config.run) == _content(labelled_run)


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
    assert manifests.load_catalogue(config.run, "b").problems == report.source_problems
    assert [column.labelled for column in manifests.summarize(config.run).columns] == [2, 2, 2]
