"""`python -m pipeline.label` as a user runs it: real Ray, real tars, real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import manifests
from pipeline.label import label, main
from pipeline.label_engine import drive
from pipeline.label_run import RunMismatchError, open_run, units_left
from tests.conftest import label_config, scene_bytes, write_tar

_PLAN = ["--plan.context", "whole", "--plan.context-px", "48", "--plan.patch-px", "48", "--plan.max-patches-short-side", "2"]


def _command(run: Path, source: Path, checkpoints: Path, *more: str) -> list[str]:
    teachers = []
    for name in ("primary", "assistant"):
        teachers += [f"--{name}.checkpoint", str(checkpoints / name), f"--{name}.licence", "Apache-2.0"]
    plan = [*_PLAN, "--plan.min-image-px", "8", "--part-size", "4"]
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


def test_killed_at_random_moments_and_run_again_the_run_ends_the_same(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    """The whole process group is killed: driver, Ray and workers, at moments drawn between start and finish."""
    arguments = _command(tmp_path / "run", scenes_tar, checkpoints, "--workers", "0")
    command = [sys.executable, "-m", "pipeline.label", *arguments]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    rng, kills = random.Random(5), 0
    for _ in range(30):
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wanted = len(_committed(tmp_path / "run")) + rng.randint(1, 3)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(_committed(tmp_path / "run")) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.15)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    else:
        pytest.fail("the run never ended")
    assert kills >= 2
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert _content(tmp_path / "run") == _content(labelled_run)
    assert manifests.verify(tmp_path / "run") == []


def _start(command: list[str], run: Path) -> subprocess.Popen[bytes]:
    """The command, once it has committed something."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "RAY_worker_niceness": "0"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and not _committed(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    return process


def _ray_workers(driver: int) -> list[int]:
    """Processes of the Ray actors below a driver."""
    parents, titles = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile

    def is_below(pid: int) -> bool:
        return pid == driver or (pid in parents and is_below(parents[pid]))

    return [pid for pid, title in titles.items() if title.startswith("ray::LabelWorker") and is_below(pid)]


def test_a_worker_that_is_killed_is_replaced_and_the_labels_are_the_same(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    arguments = _command(tmp_path / "run", scenes_tar, checkpoints, "--workers", "2")
    process = _start([sys.executable, "-m", "pipeline.label", *arguments], tmp_path / "run")
    workers = _ray_workers(process.pid)
    assert workers  # the second may still be starting when the first has committed
    os.kill(workers[0], signal.SIGKILL)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert _content(tmp_path / "run") == _content(labelled_run)


def test_a_driver_that_is_killed_takes_ray_along_and_the_next_run_ends_the_same(
    tmp_path: Path, labelled_run: Path, checkpoints: Path, scenes_tar: Path
):
    arguments = _command(tmp_path / "run", scenes_tar, checkpoints, "--workers", "2")
    process = _start([sys.executable, "-m", "pipeline.label", *arguments], tmp_path / "run")
    workers = _ray_workers(process.pid)
    process.kill()
    process.communicate()
    assert main(_command(tmp_path / "run", scenes_tar, checkpoints, "--workers", "0")) == 0
    assert _content(tmp_path / "run") == _content(labelled_run)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def _committed(run: Path) -> list[Path]:
    return [path for path in run.glob("columns/*/*.json") if not path.name.endswith(".failure.json")]


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
    run = open_run(config)
    content = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(content[:50])  # lost after it was catalogued, as on a failing disk
    report = drive(run, units_left(run), workers=0, batch_size=8, max_attempts=2, address=None)
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
