"""Command lines: presets, files and flags in that order, and all problems at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.__main__ import main as manifests_main
from pipeline.config import folder_problems, parse_command, resolved, url_problems
from pipeline.demo.command import main as demo_main
from pipeline.evaluate.command import main as evaluate_main
from pipeline.evaluate.config import EvaluateConfig
from pipeline.label.command import main as label_main
from pipeline.label.config import PRESETS, LabelConfig
from pipeline.predict.command import PredictConfig
from pipeline.predict.command import main as predict_main
from pipeline.show.command import main as show_main
from pipeline.train.command import main as train_main
from pipeline.train.config import PRESETS as TRAIN_PRESETS
from pipeline.train.config import TrainConfig
from stages.labelling.teacher import TeacherSpec


def _parse(*argv: str) -> LabelConfig:
    return parse_command(LabelConfig, PRESETS, program="label", description="", argv=argv)


_REQUIRED = ("--run", "r", "--sources", "a", "b")
_DEMO = (*_REQUIRED, "--preset", "demo")


def test_the_preset_gives_way_to_the_file_and_the_file_to_the_flag(tmp_path: Path):
    file = tmp_path / "c.toml"
    file.write_text('part-size = 7\nseed = 5\n[plan]\ncontext = "whole"\ncontext_px = 100\npatch-px = 50\n')
    config = _parse(*_DEMO, "--config", str(file), "--seed", "6")
    assert (config.part_size, config.seed, config.plan.context_px, config.preset) == (7, 6, 100, "demo")
    assert config.sources == ("a", "b")
    assert _parse(*_DEMO).part_size == 16


def test_a_file_may_name_its_preset_and_the_flag_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "c.toml"
    file.write_text('preset = "demo"\npart-size = 7\n')
    config = _parse(*_REQUIRED, "--config", str(file))
    assert (config.preset, config.part_size, config.plan) == ("demo", 7, _parse(*_DEMO).plan)
    assert set(config.teachers) == set(_parse(*_DEMO).teachers)
    file.write_text('preset = "paper"\n')
    assert _parse(*_DEMO, "--config", str(file)) == dataclasses.replace(_parse(*_DEMO), config=file)
    file.write_text('preset = "dem"\n')
    with pytest.raises(SystemExit) as refused:
        _parse(*_REQUIRED, "--config", str(file))
    assert refused.value.code == 2
    assert f"{file}: preset: unknown 'dem', did you mean 'demo'?" in capsys.readouterr().err


@pytest.mark.parametrize("main", [label_main, train_main, predict_main, evaluate_main, show_main, demo_main, manifests_main])
def test_every_command_says_its_version(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"distill-any-depth-pipeline \S+ \(/.*\)\n", capsys.readouterr().out)


def test_the_paper_is_the_default_and_names_what_it_cannot_look_up(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_status:
        _parse(*_REQUIRED)
    assert exit_status.value.code == 2
    message = capsys.readouterr().err
    assert "the latest commit of guangkaixu/genpercept-models/unet_disparity_v2 cannot be looked up" in message
    config = LabelConfig(run=Path("r"), sources=("a",))
    assert (config.plan.context, config.plan.context_px, config.plan.min_square_px) == ("square", 560, 644)


def test_all_problems_are_named_at_once(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        _parse(*_DEMO, "--part-size", "0", "--batch-size", "-1", "--plan.context-px", "3")
    message = capsys.readouterr().err
    assert "3 problems" in message
    assert all(word in message for word in ("--part-size is 0", "--batch-size is -1", "context_px is 3"))


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("part_sise = 3", "did you mean 'part_size'"),
        ('part_size = "3"', "found '3', expected int"),
        ("part_size = true", "expected int"),
        ("[plan]\ncontext = 'round'", "expected one of 'whole', 'square'"),
        ("[plan]\ncontex = 'whole'", "did you mean 'context'"),
        ("this is not toml", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_with_a_suggestion(tmp_path: Path, capsys: pytest.CaptureFixture[str], toml: str, words: str):
    (tmp_path / "c.toml").write_text(toml)
    with pytest.raises(SystemExit) as exit_status:
        _parse(*_DEMO, "--config", str(tmp_path / "c.toml"))
    assert exit_status.value.code == 2
    assert words in capsys.readouterr().err


def test_a_misspelt_flag_or_preset_gets_the_right_one_suggested(capsys: pytest.CaptureFixture[str]):
    for argv, right in (((*_DEMO, "--part-sise", "3"), "--part-size"), ((*_REQUIRED, "--preset", "dem"), "demo")):
        with pytest.raises(SystemExit) as exit_status:
            _parse(*argv)
        assert exit_status.value.code == 2
        captured = capsys.readouterr()
        assert right in captured.err + captured.out


def test_a_misspelt_benchmark_gets_the_right_one_suggested(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as refused:
        evaluate_main(["--model", "owner/name", "--benchmark", "kitti", "nyu2", "--protocol", "dav"])
    assert refused.value.code == 2
    told = capsys.readouterr().err
    assert "--benchmark: unknown 'nyu2', did you mean 'nyuv2'?" in told
    assert "--protocol: unknown 'dav', did you mean 'dav2'?" in told


@pytest.mark.parametrize(("words", "meant"), [(["sumary", "r"], "summary"), (["list", "r", "--status", "rejcted"], "rejected")])
def test_a_misspelt_subcommand_or_status_gets_the_right_one_suggested(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as refused:
        manifests_main(words)
    assert refused.value.code == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def test_the_resolved_configuration_is_plain_values():
    plain = resolved(_parse(*_DEMO))
    assert plain["sources"] == ["a", "b"]
    assert plain["run"] == "r"
    assert plain["plan"]["context"] == "whole"
    assert plain["teachers"]["primary"]["name"] == "primary"


def _evaluate(*argv: str) -> object:
    return parse_command(EvaluateConfig, {"default": {}}, program="evaluate", description="", argv=argv)


def _predict(*argv: str) -> object:
    return parse_command(PredictConfig, {"default": {}}, program="predict", description="", argv=argv)


def _train(*argv: str) -> object:
    return parse_command(TrainConfig, TRAIN_PRESETS, program="train", description="", argv=argv)


@pytest.mark.parametrize(
    ("parse", "argv", "flag"),
    [
        (_parse, (*_DEMO, "--primary.checkpoint", "gs://bucket/primary"), "--primary.checkpoint gs://bucket/primary"),
        (_parse, (*_DEMO, "--config", "s3://bucket/c.toml"), "--config s3:/bucket/c.toml"),
        (_train, ("--run", "r", "--output", "o", "--config", "s3://b/c.toml"), "--config s3:/b/c.toml"),
        (_train, ("--run", "r", "--output", "o", "--cache", "s3://b/c"), "--cache s3:/b/c"),
        (_train, ("--run", "r", "--output", "o", "--student", "https://host/x"), "--student https://host/x"),
        (_predict, ("--model", "m", "--output", "o", "s3://b/photos"), "IN... s3:/b/photos"),
        (_predict, ("--model", "m", "--output", "file:///o", "p"), "--output file:/o"),
        (_evaluate, ("--model", "s3://b/m"), "--model s3://b/m"),
        (_evaluate, ("--model", "owner/name", "--list", "s3://b/l"), "--list s3:/b/l"),
        (_evaluate, ("--model", "owner/name", "--benchmark", "nyuv2", "--data", "s3://b/m"), "--data s3:/b/m"),
    ],
)
def test_a_url_is_refused_wherever_a_path_is_expected(
    parse: Callable[..., object], argv: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit_status:
        parse(*argv)
    assert exit_status.value.code == 2
    assert f"{flag}: a URL, expected a path on this machine" in capsys.readouterr().err


def test_a_url_in_a_file_is_refused_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.toml").write_text("run = 'hf://bucket/x'\n")
    with pytest.raises(SystemExit):
        _parse("--preset", "demo", "--sources", "a", "--config", str(tmp_path / "c.toml"))
    assert "--run hf://bucket/x: a URL" in capsys.readouterr().err


def test_what_is_no_path_may_be_a_url_and_a_hub_id_is_none():
    config = LabelConfig(
        run=Path("r"),
        sources=("a",),
        address="ray://host:10001",
        teachers={"primary": TeacherSpec(name="primary", checkpoint="owner/name", licence="https://host/l")},
    )
    assert url_problems(config) == []


@pytest.mark.parametrize("below", ["", "/x/y"])
def test_a_file_in_the_place_of_the_runs_folder_is_named(tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(SystemExit) as exit_status:
        _parse("--preset", "demo", "--run", f"{tmp_path}/README.md{below}", "--sources", "a")
    assert exit_status.value.code == 2
    assert f"--run {tmp_path}/README.md{below}: " in (told := capsys.readouterr().err)
    assert "a file; expected a folder" in told
    assert folder_problems("--run", tmp_path / "new/run") == []
