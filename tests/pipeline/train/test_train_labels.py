"""A training says which labels it uses, begins with all of them or as it was told, and keeps to those it began with."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.train.command import main, train
from pipeline.train.config import TrainConfig
from pipeline.train.state import LOCK, remove_states, save_state
from stages.distillation.student import load_student, save_student
from tests.pipeline.train.trainings import arguments, interrupt_at
from tests.training_run import CONTEXT_PX, write_run


def command(config: TrainConfig, *flags: str) -> int:
    """What `python -m pipeline.train` exits with, in this process."""
    return main([*arguments(config)[3:], *flags])


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    return write_run(tmp_path / "unfinished", images=11, without=[("assistant", 1)])


def test_a_run_that_is_not_labelled_to_its_end_is_refused_in_words_before_anything_is_made(
    small: TrainConfig, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(small, run=(unfinished,), output=tmp_path / "out")
    for flags in ((), ("--num-workers", "2")):
        assert command(config, *flags) == 2
        message = capsys.readouterr().err
        assert "is not labelled to its end: 6 of 11 images are in use; left out: 5 not yet labelled in 'assistant'" in message
        assert "--allow-partial" in message
        assert not config.output.exists()
    assert command(replace(config, steps=1), "--columns", "primary") == 0  # the column that is missing is not read


def test_a_partial_training_says_so_and_keeps_its_labels_though_there_are_more_by_now(
    small: TrainConfig, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(small, run=(unfinished,), output=tmp_path / "out", allow_partial=True)
    interrupt_at(4, config)
    assert f"{unfinished}: 6 of 11 images are in use; left out: 5 not yet labelled in 'assistant'\n" in capsys.readouterr().err
    whole = write_run(tmp_path / "whole", images=11)
    result = train(replace(config, run=(whole,), allow_partial=False))  # it was allowed when it began
    assert (result.resumed_from, result.images) == (3, 6)
    said = capsys.readouterr().err
    assert "6 of 11 images are in use; left out: 5 in parts labelled since the training began\n" in said
    assert "a new --output takes in those labelled since this training began" in said


def test_several_runs_are_trained_on_together_and_resumed_wherever_they_lie_by_then(
    small: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = write_run(tmp_path / "one", images=7), write_run(tmp_path / "other", images=4)
    config = replace(small, run=(one, other), output=tmp_path / "out")
    interrupt_at(4, config)
    said = capsys.readouterr().err
    assert f"{one}: 7 of 7 images are in use\n" in said
    assert f"{other}: 4 of 4 images are in use\n" in said
    assert command(replace(config, run=(one,))) == 2
    assert "belongs to a training on 2 runs, found 1; give the same runs in the same order" in capsys.readouterr().err
    assert command(replace(config, run=(other, one))) == 2
    assert "the labels are not those this training began with" in capsys.readouterr().err
    moved = one.rename(tmp_path / "moved")
    result = train(replace(config, run=(moved, other)))
    assert (result.resumed_from, result.images) == (3, 11)
    assert command(replace(config, run=(moved, other))) == 0  # finished


def test_a_finished_run_with_rejected_images_is_trained_on_and_says_which_are_left_out(
    small: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", images=11, rejected={"images": [2, 3], "primary": [2, 3], "assistant": [2, 3]})
    assert command(replace(small, run=(run,), steps=1, output=tmp_path / "out")) == 0
    assert "9 of 11 images are in use; left out: 2 rejected in 'images' (2 damaged)\n" in capsys.readouterr().err


# --- an output and its labels ---------------------------------------------------------------------------------------


def _another_run(place: Path) -> Path:
    """A finished run none of whose parts has a name that those of `write_run` have."""
    run = write_run(place, images=4, part_size=4)
    for path in [*run.glob("catalog/*.json"), *run.glob("columns/*/*.json"), *run.glob("columns/*/*.zarr")]:
        if path.is_file():
            document = json.loads(path.read_text().replace("scenes", "other"))
            del document["record_sha256"]
            path.write_text(json.dumps(document))
        path.rename(path.with_name(path.name.replace("scenes", "other")))
    return run


@pytest.mark.parametrize("finished", [False, True])
def test_an_output_of_another_run_is_said_to_be_that(
    small: TrainConfig, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: bool
) -> None:
    config = replace(small, output=shutil.copytree(trained, tmp_path / "out"))
    if not finished:
        (config.output / "model.safetensors").unlink()
    assert command(replace(config, run=(_another_run(tmp_path / "another"),))) == 2
    message = capsys.readouterr().err
    assert "out: belongs to a training on the labels of another run: dataset.lock.json names scenes.00000 and 2 more" in message
    assert "another has other.00000. Give the run that it began with, or choose another output" in message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"images/a.00000": 3}', "[" * 100_000])
def test_a_damaged_list_of_labels_is_named(
    small: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    config = replace(small, output=tmp_path / "out")
    config.output.mkdir()
    (config.output / LOCK).write_text(content)
    assert command(config) == 2
    assert f"{LOCK}: found " in (message := capsys.readouterr().err)
    assert "bring it back from a copy, or choose another output" in message


# --- states and the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 7])
def test_as_many_states_are_kept_as_were_asked_for(tmp_path: Path, keep: int) -> None:
    for step in range(1, 7):
        save_state(tmp_path, {}, {}, step, keep)
        kept = sorted(int(path.stem.removeprefix("step-")) for path in (tmp_path / "states").iterdir())
        assert kept == list(range(max(step - keep, 0) + 1, step + 1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk, in order: the syncs, renames and removals of this process, each with the path's last names."""
    seen: list[tuple[str, str]] = []

    def record(name: str, call: Any, *arguments: Any, **options: Any) -> Any:
        place = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else os.fspath(arguments[-1])
        seen.append((name, Path(place).name))
        return call(*arguments, **options)

    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(os, name, partial(record, name, getattr(os, name)))
    return seen


def test_the_folder_of_a_finished_student_is_on_disk_before_its_states_go(
    student: Path, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    out = tmp_path / "out"
    save_state(out, {}, {}, 3, 2)
    calls.clear()
    save_student(load_student(str(student), CONTEXT_PX), out, {})
    remove_states(out)
    named, gone = calls.index(("replace", "model.safetensors")), calls.index(("unlink", "step-000000003.pt"))
    assert {("fsync", "out"), ("fsync", tmp_path.name)} <= set(calls[named:gone])
    assert ("fsync", "out") in calls[calls.index(("replace", "training.json")) : named]
    assert ("fsync", "model.safetensors") in calls[:named]


def test_a_states_name_is_on_disk_before_an_older_one_goes(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    for step in (1, 2):
        calls.clear()
        save_state(tmp_path, {}, {}, step, 1)
    named, gone = calls.index(("replace", "step-000000002.pt")), calls.index(("unlink", "step-000000001.pt"))
    assert ("fsync", "states") in calls[named:gone]


def test_a_training_on_the_demos_labels_without_its_preset_says_what_to_do_in_a_line(
    small: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", images=5, preset="demo")
    for preset, said in (("default", True), ("demo", False)):
        train(replace(small, run=(run,), output=tmp_path / preset, preset=preset, steps=1))
        assert ("give --preset demo here too\n" in capsys.readouterr().err) == said
