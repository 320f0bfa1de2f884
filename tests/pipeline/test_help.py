"""`--help` comes at once, begins with what one needs on the first day, and ends with commands that the tests run."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo import config as demo
from pipeline.evaluate import config as evaluate
from pipeline.help import HelpPage
from pipeline.label import config as label
from pipeline.predict import config as predict
from pipeline.report import config as report
from pipeline.show import config as show
from pipeline.train import config as train

ROOT = Path(__file__).parents[2]
_COMMANDS = ("label", "train", "evaluate", "predict", "show", "report", "figures", "demo")
_HEAVY = ("torch", "transformers", "ray", "diffusers", "zarr", "scipy", "matplotlib", "pyarrow", "huggingface_hub")
_PAGES = [
    (label.read_command, label.HELP, label.LabelConfig),
    (train.read_command, train.HELP, train.TrainConfig),
    (evaluate.read_command, evaluate.HELP, evaluate.EvaluateConfig),
    (predict.read_command, predict.HELP, predict.PredictConfig),
    (show.read_command, show.HELP, show.ShowConfig),
    (report.read_command, report.HELP, report.ReportConfig),
    (demo.read_command, demo.HELP, demo.DemoConfig),
]
Read = Callable[[Sequence[str]], Any]


def test_help_is_printed_before_anything_that_takes_seconds_to_import():
    script = f"""
import runpy, sys
for command in {_COMMANDS}:
    sys.argv = [command, "--help"]
    try:
        runpy.run_module("pipeline." + command, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, command
    print("IMPORTED", command, [name for name in {_HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall("^IMPORTED .*", done.stdout, flags=re.M) == [f"IMPORTED {command} []" for command in _COMMANDS]


@pytest.mark.parametrize(("read", "page", "kind"), _PAGES)
def test_help_is_short_and_help_all_has_every_option(
    read: Read, page: HelpPage, kind: type[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    options = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            read([flag])
        assert not ended.value.code
        text = capsys.readouterr().out
        assert all(command in text for command, _ in page.examples)
        options[flag] = set(re.findall(r"^\W*(?:-\w, )?--([a-z][\w.-]*)", text, flags=re.M)) - {"help"}
        assert ("--help-all" in text) == (flag == "--help" and bool(page.first))
    assert options["--help"] <= options["--help-all"]
    if page.first:
        assert 8 <= len(options["--help"]) <= 14 < len(options["--help-all"])
        assert set(page.first) <= {item.name for item in dataclasses.fields(kind)}


@pytest.mark.parametrize("page", [page for _, page, _ in _PAGES])
def test_the_examples_are_commands_of_the_documentation(page: HelpPage):
    documented = "\n".join(file.read_text(encoding="utf-8") for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert all(re.search(re.escape(command) + r"\s*(#|$)", documented, flags=re.M) for command, _ in page.examples)


def test_the_old_name_of_an_option_still_means_it_and_the_new_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = predict.read_command(["photo.jpg", "--model", "m", "--output", str(tmp_path), "--batch", "2", "--long-side=64"])
    assert (config.batch_size, config.network_px) == (2, 64)
    assert capsys.readouterr().err == "--batch is called --batch-size now\n--long-side is called --network-px now\n"
    (tmp_path / "old.toml").write_text("workers = 3", encoding="utf-8")
    old = evaluate.read_command(["--model", "owner/name", "--config", str(tmp_path / "old.toml")])
    assert old.threads == 3


def test_the_pages_lines_complete_an_option_in_the_shell(tmp_path: Path):
    page = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (.*(?:distill-label|completion).*)$", page, flags=re.M)
    assert len(lines) == 3
    script = "\n".join(lines).replace(".venv/bin/python", f"PYTHONPATH={ROOT} {sys.executable}")
    ask = """
function=$(complete -p distill-label | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=(distill-label --dry); COMP_CWORD=1; COMP_LINE="distill-label --dry"; COMP_POINT=${#COMP_LINE}
$function; echo "${COMPREPLY[@]}"; complete -p | grep -c python"""
    done = subprocess.run(["bash", "-c", script + ask], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-2:] == ["--dry-run", "0"], done
