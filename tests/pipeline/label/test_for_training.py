"""Labels for one training: what its steps draw and nothing else; and it ends with the student that all labels would give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import manifests
from pipeline.label.command import main as label
from pipeline.train.command import main as train
from stages.distillation.draw import Draw
from stages.label_store import LabelReader
from tests.conftest import scene_bytes, write_tar

_TRAINING = {"seed": 5, "steps": 6, "batch_size": 2, "context": "square", "feature_weight": 0.0, "loader_workers": 0}
_DRAW = Draw(
    seed=5,
    steps=6,
    batch_size=2,
    strategy="select",
    columns=("primary", "assistant"),
    ratios=(0.7, 0.3),
    images=None,
    patches=True,
)


def _toml(path: Path, **changes: object) -> Path:
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (_TRAINING | changes).items()))
    return path


def _label(run: Path, source: Path, checkpoints: Path, *more: str, columns: Sequence[str] = ("primary", "assistant")) -> int:
    plan = ["--plan.context-px", "48", "--plan.patch-px", "48", "--plan.min-square-px", "48", "--plan.min-image-px", "8"]
    plan += ["--plan.contexts-per-image", "2", "--part-size", "4", "--batch-size", "1"]
    teachers = [word for name in columns for word in (f"--{name}.checkpoint", str(checkpoints / name))]
    shares = ["--columns", *columns, "--max-rejected-fraction", "0.2", "--workers", "0"]
    return label(["--run", str(run), "--sources", str(source), *plan, *shares, *teachers, *more])


def _train(run: Path, output: Path, checkpoints: Path, training: Path, *more: str) -> int:
    own = ["--student", str(checkpoints / "student"), "--device", "cpu", "--config", str(training)]
    return train(["--run", str(run), "--output", str(output), *own, *more])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven scenes, and a file that every column rejects."""
    members = {f"{seed:04d}.png": scene_bytes(seed) for seed in range(11)}
    members["0003x.jpg"] = b"\xff\xd8\xff\xe0 not a picture"
    return write_tar(tmp_path_factory.mktemp("photographs") / "scenes.tar", dict(sorted(members.items())))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photographs: Path, checkpoints: Path) -> Path:
    """A folder with `all`, a run with all labels; `drawn`, one with those of `training.toml` alone; and that file."""
    folder = tmp_path_factory.mktemp("runs")
    training = _toml(folder / "training.toml")
    assert _label(folder / "all", photographs, checkpoints) == 0
    assert _label(folder / "drawn", photographs, checkpoints, "--for-training", str(training)) == 0
    return folder


def _rows(run: Path, column: str) -> dict[str, list[int]]:
    """Which rows have labels, by what is stored; and every label is that of the run with all of them."""
    rows = {}
    for name in sorted(manifests.committed_parts(run, column)):
        readers = []
        for of_run in (run, run.with_name("all")):
            part = manifests.load_part(of_run, column, name)
            readers.append(LabelReader(manifests.place_of(of_run), f"columns/{column}/{part.zarr}", part))
        own, every = readers
        rows[name] = [row for row in range(len(own)) if own.context(row) is not None]
        for row in rows[name]:
            views = [[reader.context(row), *reader.patches(row)] for reader in (own, every)]
            for one, other in zip(*views, strict=True):
                assert one is not None
                assert other is not None
                np.testing.assert_array_equal(one.values, other.values)
        assert all(not own.patches(row) for row in range(len(own)) if row not in rows[name])
    return rows


def test_exactly_what_the_training_draws_is_labelled_as_it_would_be_among_all(runs: Path) -> None:
    run = manifests.load_run(runs / "drawn")
    drawn = _DRAW.rows({part.name: part.images for part in manifests.parts(run)}, 2)
    broken = {"scenes.00001": {0, 1}}
    assert [part.images for part in manifests.parts(run)] == [4, 4, 4]
    for column in ("primary", "assistant"):
        wanted = {part: [row for row in rows if row not in broken.get(part, ())] for part, rows in drawn[column].items()}
        assert _rows(runs / "drawn", column) == wanted
        assert sum(map(len, wanted.values())) < 20  # of the 22 that the run with all labels has
    assert not {*drawn["primary"]["scenes.00000"]} & {*drawn["assistant"]["scenes.00000"]}  # one epoch draws each once


def test_the_student_is_that_of_all_labels_to_the_bit(runs: Path, tmp_path: Path, checkpoints: Path) -> None:
    for name in ("all", "drawn"):
        assert _train(runs / name, tmp_path / name, checkpoints, runs / "training.toml") == 0
    both = [manifests.sha256_file(tmp_path / name / "model.safetensors") for name in ("all", "drawn")]
    assert both[0] == both[1]


def test_numbers_add_up_and_the_run_is_sound(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = manifests.summarize(runs / "drawn")
    assert not summary.complaints()
    for column in summary.columns[1:]:
        assert column.labelled + column.not_drawn + sum(column.rejected.values()) == 12
        assert column.not_drawn > 0
    assert manifests.verify(runs / "drawn", deep=True) == []


def test_a_label_that_is_lost_is_missed_where_it_was_to_be_and_nowhere_else(runs: Path) -> None:
    part = manifests.load_part(runs / "drawn", "primary", "scenes.00002")
    assert part.rows is not None
    images = tuple(replace(image, status="labelled") for image in part.images)
    more = replace(part, images=images, rows=tuple(range(8)))
    assert more.rows != part.rows
    path = manifests.column_dir(runs / "drawn", "primary") / f"{part.part}.json"
    sound = path.read_bytes()
    try:
        path.write_bytes(manifests.to_json(more))
        problems = [str(problem) for problem in manifests.verify(runs / "drawn", deep=True)]
    finally:
        path.write_bytes(sound)
    assert any("context_extent" in problem for problem in problems)


def test_the_same_command_finds_nothing_left_and_another_draw_is_refused(
    runs: Path, photographs: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _label(runs / "drawn", photographs, checkpoints, "--for-training", str(runs / "training.toml")) == 0
    assert "0 of them by this command" in capsys.readouterr().out
    other = _toml(tmp_path / "other.toml", steps=7)
    assert _label(runs / "drawn", photographs, checkpoints, "--for-training", str(other)) == 2
    assert "column primary: draw.steps: found 6, expected 7" in capsys.readouterr().err
    assert _label(runs / "drawn", photographs, checkpoints) == 2
    assert "column primary: draw.batch_size: found 2, expected nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "draw.seed: found 5, expected 6"),
        ({"steps": 7}, "draw.steps: found 6, expected 7"),
        ({"strategy": "average"}, 'draw.strategy: found "select", expected "average"'),
        ({"columns": ["primary"]}, 'draw.columns: found "primary assistant", expected "primary"'),
        ({"images": 8}, "draw.images: found null, expected 8"),
        ({"mask_disagreement": 1.0}, "draw.compared: found false, expected true"),
    ],
)
def test_another_training_is_refused_and_each_difference_named(
    runs: Path, tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], message: str
) -> None:
    training = _toml(tmp_path / "other.toml", **changes)
    assert _train(runs / "drawn", tmp_path / "out", checkpoints, training) == 2
    found = capsys.readouterr().err
    assert message in found
    assert "column 'primary' has the labels that one training draws" in found


def test_fewer_steps_and_no_patches_are_within_what_was_labelled(runs: Path, tmp_path: Path, checkpoints: Path) -> None:
    training = _toml(tmp_path / "shorter.toml", steps=4, local_global_weight=0.0)
    assert _train(runs / "drawn", tmp_path / "out", checkpoints, training) == 0


def test_a_training_without_close_ups_costs_none(
    photographs: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = _toml(tmp_path / "training.toml", local_global_weight=0.0, columns=["primary"], images=6)
    run = tmp_path / "run"
    assert _label(run, photographs, checkpoints, "--for-training", str(training), columns=["primary"]) == 0
    parts = [manifests.load_part(run, "primary", name) for name in sorted(manifests.committed_parts(run, "primary"))]
    drawn = sum(len(part.rows or ()) for part in parts)
    assert drawn - 2 <= sum(part.statistics.views for part in parts) <= drawn <= 12  # the rejected image may be among them
    assert manifests.verify(run, deep=True) == []
    assert _train(run, tmp_path / "out", checkpoints, training) == 0
    assert "more than was asked for" not in capsys.readouterr().err  # those were never labelled
    with_close_ups = _toml(tmp_path / "more.toml", columns=["primary"], images=6)
    assert _train(run, tmp_path / "more", checkpoints, with_close_ups) == 2
    assert "draw.patches: found false, expected true" in capsys.readouterr().err


def test_more_photographs_would_change_what_is_drawn_and_are_refused(
    photographs: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training, run = _toml(tmp_path / "training.toml"), tmp_path / "run"
    for_training = ("--for-training", str(training))
    assert _label(run, photographs, checkpoints, *for_training, columns=["primary", "assistant"]) == 0
    more = write_tar(tmp_path / "more.tar", {"new.png": scene_bytes(99)})
    before = sorted(run.rglob("*"))
    assert _label(run, more, checkpoints, *for_training) == 2
    assert "column primary: draw.catalogued: found 12, expected 13" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_what_the_dry_run_counts_is_what_is_drawn(
    runs: Path, photographs: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = []
    for more in ((), ("--for-training", str(runs / "training.toml"))):
        assert _label(tmp_path / "none", photographs, checkpoints, "--dry-run", *more) == 0
        table = capsys.readouterr().out.splitlines()
        views.append({line.split()[0]: int(line.split()[1]) for line in table if line.startswith(("primary", "assistant"))})
    every, drawn = views
    rows = _DRAW.rows({"scenes": 12}, 2)
    for column in ("primary", "assistant"):
        assert drawn[column] == pytest.approx(every[column] * sum(map(len, rows[column].values())) / 24, abs=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["papre"], "--for-training: unknown 'papre', did you mean 'paper'?"),
        (["gone.toml"], "--for-training gone.toml: cannot be read"),
        (["wrong.toml"], "key: unknown 'stpes', did you mean 'steps'?"),
        (["bad.toml"], "--for-training: --steps is 0, expected at least 1"),
        (["single.toml"], "--for-training: that training reads primary, not assistant; leave it out with --columns"),
    ],
)
def test_what_is_no_training_is_refused_before_any_work(
    photographs: Path,
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.toml").write_text("stpes = 3\n")
    Path("bad.toml").write_text("steps = 0\n")
    Path("single.toml").write_text('columns = ["primary"]\n')
    with pytest.raises(SystemExit, match="2"):
        _label(tmp_path / "run", photographs, checkpoints, "--for-training", *words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
