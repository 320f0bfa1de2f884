"""Every command of docs/reproduce.md and docs/own-photographs.md, in order and in miniature.

Small checkpoints in a hub cache, small tars, small benchmarks.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from benchmarks.flops import teraflops
from pipeline.train.config import PRESETS, TrainConfig
from stages.evaluation.benchmarks import LIST_NAMES
from stages.evaluation.fixtures import write_benchmark
from stages.evaluation.protocols import BenchmarkName
from stages.models.known import BASES, known_of
from stages.views import ViewPlan, plan_views
from tests.conftest import scene_bytes, write_tar
from tests.hub_cache import cached, use_cache
from tests.stages.models.tiny_teachers import save_depth_anything, save_dpt, save_genpercept_unets, save_stable_diffusion

_DOCS = Path(__file__).parent.parent / "docs"
PAGE, OWN = ((_DOCS / name).read_text(encoding="utf-8") for name in ("reproduce.md", "own-photographs.md"))


def _commands(page: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^    python -m (.+)$", page, flags=re.M)]


COMMANDS = _commands(PAGE)
_UNETS = "guangkaixu/genpercept-models"
_SMALL_VIEWS = ["--plan.context-px", "48", "--plan.patch-px", "48", "--plan.min-square-px", "48", "--plan.min-image-px", "8"]


def _save_dinov2(folder: Path) -> None:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 12,
    }
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_convert_rgb": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _hub_cache(cache: Path) -> None:
    """Just what the page has downloaded, at the commits that it names."""
    downloads = [shlex.split(line)[2:] for line in re.findall(r"^    (hf download .+)$", PAGE, flags=re.M)]
    for hub_id, *options in downloads:
        named = dict(zip(options[::2], options[1::2], strict=False)) if "--revision" in options[:1] else {}
        known = known_of(hub_id)
        assert named.get("--revision") == (BASES.get(hub_id) or (known and known.revision))
        save = {_UNETS: save_genpercept_unets, "Intel/dpt-large": save_dpt}.get(hub_id, save_depth_anything)
        save = save_stable_diffusion if hub_id in BASES else _save_dinov2 if "dinov2" in hub_id else save
        cached(cache, hub_id, named.get("--revision", "1" * 40), save, branch=not named)


def _photographs(folder: Path) -> None:
    """Eighteen tars as those of SA-1B: a photograph and its masks."""
    folder.mkdir()
    for number in range(18):
        name = f"./sa_{number}"
        write_tar(folder / f"sa_{number:06d}.tar", {f"{name}.jpg": scene_bytes(number), f"{name}.json": b"{}"})


def _benchmarks(root: Path) -> None:
    """The tars and the lists that the page's last commands name."""
    evaluation = next(command for command in COMMANDS if command[0] == "pipeline.evaluate")
    where = {flag: evaluation[evaluation.index(flag) + 1 :][:5] for flag in ("--benchmark", "--data", "--list")}
    names: list[BenchmarkName] = where["--benchmark"]  # type: ignore[assignment]
    for name, data, listed in zip(names, where["--data"], where["--list"], strict=True):
        made = write_benchmark(name, root / "made", scenes=[1, 2], tar=True)
        (root / listed).parent.mkdir(parents=True, exist_ok=True)
        (root / data).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(made) as tar:
            (member,) = [member for member in tar.getnames() if member.endswith(LIST_NAMES[name])]
            content = tar.extractfile(member)
            assert content
            (root / listed).write_bytes(content.read())
        made.rename(root / data)


def _smaller(command: list[str]) -> list[str]:
    module, *arguments = command
    if module == "pipeline.label":
        training = (
            ["--for-training", *(["paper"] * ("paper" in arguments)), "small.toml"] if "--for-training" in arguments else []
        )
        return [*arguments, *_SMALL_VIEWS, "--part-size", "8", "--workers", "0", *training]
    if module == "pipeline.train":
        images = ["--images", "4"] if {"paper-ablation", "paper-baseline"} & {*arguments} else []
        own = ["--config", "small.toml", "--device", "cpu", "--no-compile", "--loader-workers", "0"]
        return [*arguments, *own, *images]
    scenes = [] if "--benchmark" in arguments else ["--scenes", "2"]
    return [*arguments, "--workers", "1", *scenes] if module == "pipeline.evaluate" else arguments


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with what the page has downloaded in the hub's cache."""
    monkeypatch.chdir(tmp_path)
    _hub_cache(tmp_path / "huggingface" / "hub")
    use_cache(tmp_path / "huggingface" / "hub", monkeypatch)
    return tmp_path


def _run(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands:
        monkeypatch.setattr(sys, "argv", [command[0], *_smaller(command)])
        with pytest.raises(SystemExit) as ended:  # as `python -m` does, less the seconds of each one's imports
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        assert not ended.value.code, (command, capsys.readouterr())


@pytest.mark.campaign
def test_every_command_from_an_empty_disk_to_the_tables_runs_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _photographs(workplace / "sa1b")
    _benchmarks(workplace)
    (workplace / "small.toml").write_text("steps = 2\nbatch_size = 2\n")
    assert len(COMMANDS) == 30
    _run(COMMANDS, monkeypatch, capsys)
    for table in range(1, 6):
        assert f"table {table}" in (workplace / f"table-{table}.md").read_text()


def test_every_command_for_ones_own_photographs_runs_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "photos").mkdir()
    for seed in range(5):
        (workplace / "photos" / f"{seed}.png").write_bytes(scene_bytes(seed))
    (settings,) = re.findall(r"```toml\n(.*?)```", OWN, flags=re.S)
    (workplace / "own.toml").write_text(settings)
    (workplace / "small.toml").write_text(f"{settings}steps = 2\nbatch_size = 2\n")
    commands = _commands(OWN)
    assert [command[0] for command in commands] == [f"pipeline.{name}" for name in ("label", "train", "evaluate", "predict")]
    _run(commands, monkeypatch, capsys)


def test_the_numbers_of_the_page_are_those_of_the_plan_and_of_the_draw() -> None:
    """Views of a photograph, and labels that the training of table 5 draws of 200,000."""
    views = [plan_views(ViewPlan(), seed=0, key=str(key), height_px=1500, width_px=2250) for key in range(400)]
    assert f"has {np.mean([1 + len(context.patches) for (context,) in views]):.1f} views on average" in PAGE
    training = TrainConfig(run=(Path("run"),), output=Path("output"), **PRESETS["paper"])
    rows = training.draw.rows({f"sa.{part:05d}": 64 for part in range(200_000 // 64)}, 1)
    primary, assistant = (sum(map(len, rows[column].values())) for column in ("primary", "assistant"))
    assert f"draws {primary:,} squares" in PAGE
    assert f"{assistant:,} with the assistant's" in PAGE


def test_the_work_and_the_hours_of_the_page_are_those_of_the_networks() -> None:
    tflop = teraflops()
    primary, assistant = tflop["view, Depth Anything v2 L"], tflop["view, GenPercept or Lotus-D"]
    labels = {
        "table 5: 160,000 labels": 7.3625 * (112_104 * primary + 47_896 * assistant),
        "squares of 56,000": 56_000 * 7.3625 * (primary + assistant),
        "whole photographs, all": 56_000 * 16 * (primary + assistant),
    }
    trainings = {"table 5: the training": 1, "tables 1, 2 and 4: 14 trainings": 14}
    rates = {what: (work, 198) for what, work in labels.items()}
    rates |= {what: (160_000 * tflop["training sample, L"] * number, 396) for what, number in trainings.items()}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| table")]
    for what, (work, rate) in rates.items():
        (row,) = [row for row in rows if what in row[0]]
        assert float(row[1]) == pytest.approx(work / 1e6, rel=0.06)
        assert float(row[2]) == pytest.approx(work / rate / 3600, rel=0.06)
