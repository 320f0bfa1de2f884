"""Command lines: presets, files and flags in that order, and all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import parse_command, resolved
from pipeline.label import PRESETS, LabelConfig


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


def test_the_paper_is_the_default_and_asks_for_the_assistants_folder(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_status:
        _parse(*_REQUIRED)
    assert exit_status.value.code == 2
    assert "--assistant.checkpoint: none given" in capsys.readouterr().err
    config = _parse(*_REQUIRED, "--assistant.checkpoint", "x")
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


def test_the_resolved_configuration_is_plain_values():
    plain = resolved(_parse(*_DEMO))
    assert plain["sources"] == ["a", "b"]
    assert plain["run"] == "r"
    assert plain["plan"]["context"] == "whole"
    assert plain["primary"]["loader"] == "transformers"
