"""Every command that the README shows is run here; what takes minutes is given a small number to do."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import scene_bytes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
_SMALLER = {
    "pipeline.train": ["--steps", "2", "--loader-workers", "0"],
    "pipeline.evaluate": ["--scenes", "2"],
    "pipeline.label": ["--workers", "0"],
    "pipeline.agreement": ["--workers", "0"],
    "pipeline.report": ["--images", "2", "--examples", "1"],
}


def _commands(start: str) -> list[list[str]]:
    lines = re.findall(r"^    (.+)$", README, flags=re.M)
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def test_the_commands_on_ones_own_photographs_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(scene_bytes(seed, side_px=240))
    commands = _commands(".venv/bin/python")
    assert len(commands) == 12
    for _, dash_m, module, *arguments in commands:
        assert dash_m == "-m"
        monkeypatch.setattr(sys, "argv", [module, *arguments, *_SMALLER.get(module, [])])
        with pytest.raises(SystemExit) as ended:  # as `python -m` does, less the seconds of each one's imports
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        printed = capsys.readouterr()
        assert not ended.value.code, printed
        if module in ("pipeline.label", "pipeline.predict") and "--dry-run" not in arguments:
            assert "know only rendered scenes" in printed.out
    (tmp_path / "photo.jpg").write_bytes(scene_bytes(7))
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", README, flags=re.S):
        exec(snippet, names)
    assert names["labels"].context.values.shape == (192, 192)  # type: ignore[attr-defined]
    assert tuple(names["disparity"].shape[-2:]) == (88, 88)  # type: ignore[attr-defined]


def test_the_make_targets_exist():
    targets = _commands("make")
    assert {"demo", "test"} <= {target for _, target in targets}
    for command in targets:
        assert subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_every_file_and_folder_that_the_readme_names_is_there():
    for name in re.findall(r"^    (\w+/)", README, flags=re.M) + re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (ROOT / name).exists(), name
