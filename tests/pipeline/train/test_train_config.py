"""The settings of a training: presets, the ablations that the documentation promises, and what is refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.config import parse_command
from pipeline.train.config import PRESETS, TrainConfig

TRAINING = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")


def parse(*flags: str) -> TrainConfig:
    argv = ["--run", "r", "--output", "o", *flags]
    return parse_command(TrainConfig, PRESETS, program="train", description="", argv=argv)


def table_cells(heading: str) -> list[TrainConfig]:
    """The settings of each cell of a table in docs/training.md: its column's flags and its own."""
    lines = [line for line in TRAINING.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines() if "|" in line]
    header, _, *rows = [f"| {heading} |" + lines[0], *lines[1:]]
    columns = [re.findall(r"`(--[^`]+)`", cell) for cell in header.strip("|").split("|")[1:]]
    cells = [[re.findall(r"`(--[^`]+)`", cell) for cell in row.strip("|").split("|")[1:]] for row in rows]
    return [parse(*shlex.split(" ".join(common + own))) for row in cells for common, own in zip(columns, row, strict=True)]


def test_every_cell_of_the_papers_tables_is_a_command() -> None:
    one = table_cells("table 1")
    assert [(c.shared_weight > 0, c.local_global_weight > 0) for c in one] == [(True, False), (False, True)] * 4
    names = [c.normalization_shared if c.shared_weight else c.normalization_local for c in one]
    assert names == [name for name in ("global", "none", "local", "hybrid") for _ in range(2)]
    raw = [c for c in one if "none" in (c.normalization_shared, c.normalization_local)]
    assert [c.columns for c in raw] == [("primary",)] * 2
    two = table_cells("table 2")
    assert [(str(*c.run), c.local_global_weight, c.context) for c in two] == [
        ("whole", 0, "whole"),
        ("whole", 0.5, "whole"),
        ("squares", 0, "any"),
        ("squares", 0.5, "any"),
    ]
    assert [c.normalization_shared for c in two] == ["global", "global", "hybrid", "hybrid"]
    both = ("primary", "assistant")
    four = [(c.columns, c.strategy) for c in table_cells("table 4")]
    assert four == [(("primary",), "select"), (("assistant",), "select"), (both, "average"), (both, "select")]


def test_the_paper_is_the_default() -> None:
    config = parse()
    weights = (config.shared_weight, config.local_global_weight, config.feature_weight, config.gradient_weight)
    assert weights == (1.0, 0.5, 1.0, 2.0)
    assert (config.steps, config.batch_size, config.lr_encoder, config.lr_decoder) == (20_000, 8, 5e-6, 5e-5)
    assert (config.shares, config.strategy, config.trim_fraction, config.anchor_weight) == ((0.7, 0.3), "select", 0, 0)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_differ_in_size_or_in_the_loss(preset: str) -> None:
    config = parse("--preset", preset)
    assert (config.normalization_shared == "global") is ("baseline" in preset)
    assert (config.local_global_weight == 0) is ("baseline" in preset)
    assert (config.steps, config.batch_size) == ((300, 8) if "demo" in preset else (20_000, 8))


def test_the_papers_preset_is_the_model_of_table_5_and_its_ablations_see_50_000_images() -> None:
    paper, ablation, baseline = (parse("--preset", f"paper{name}") for name in ("", "-ablation", "-baseline"))
    assert (paper.student, paper.start) == ("depth-anything/Depth-Anything-V2-Large-hf", "fresh-head")
    assert (paper.steps, paper.batch_size, paper.feature_encoder) == (20_000, 8, "facebook/dinov2-large")
    assert [c.images for c in (paper, ablation, baseline)] == [None, 50_000, 50_000]
    assert [c.student for c in (ablation, baseline)] == [paper.student] * 2


@pytest.mark.parametrize("kind", ["shared", "local"])
def test_raw_values_of_teachers_with_scales_of_their_own_are_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = f"--normalization-{kind}"
    with pytest.raises(SystemExit):
        parse(flag, "none")
    assert f"normalization_{kind}: none compares raw values, and primary, assistant have scales" in capsys.readouterr().err
    weight = {"shared": "--shared-weight", "local": "--local-global-weight"}[kind]
    for sound in (["--columns", "primary"], ["--ratios", "1", "0"], ["--strategy", "average"], [weight, "0"]):
        parse(flag, "none", *sound)


def test_values_that_cannot_be_accepted_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--steps 0 --ratios 1 -1 --shared-weight 0 --local-global-weight 0 --num-workers 9 --ema-decay 1"
    with pytest.raises(SystemExit):
        parse(*flags.split(), "--strategy", "average", "--columns", "primary")
    problems = capsys.readouterr().err
    assert "7 problems" in problems
    for named in (
        "--steps is 0, expected at least 1",
        "ratios: found 2, expected one for each",
        "ratios: found (1.0, -1.0)",
        "both 0",
        "batch_size:",
        "ema_decay:",
        "strategy:",
    ):
        assert named in problems


def test_columns_are_learned_from_in_the_ratios_that_are_given() -> None:
    assert parse("--columns", "a").shares == (1.0,)
    assert parse("--columns", "a", "b", "c").shares == (1.0, 1.0, 1.0)
    assert parse("--columns", "a", "b", "c", "--ratios", "5", "3", "2").shares == (5.0, 3.0, 2.0)


def test_one_column_has_no_other_to_disagree_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("--mask-disagreement", "1.5").mask_disagreement == 1.5
    assert all(parse("--preset", preset).mask_disagreement is None for preset in PRESETS)
    for flags, words in (
        (["--mask-disagreement", "1", "--columns", "primary"], "mask_disagreement: needs two columns or more to compare"),
        (["--mask-disagreement", "0"], "mask_disagreement: found 0.0, expected more than 0"),
        (["--mask-disagreement", "nan"], "mask_disagreement: found nan, expected more than 0"),
    ):
        with pytest.raises(SystemExit):
            parse(*flags)
        assert words in " ".join(capsys.readouterr().err.split())
