"""A run with all that a gallery may meet, and its gallery."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline.agreement import main as compare
from pipeline.browse.command import main
from pipeline.label.command import label
from stages.scenes import render_scene
from tests.conftest import label_config, picture_bytes, scene_bytes, write_tar

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>\u202e\x1b[31m{{7*7}}"
"""A key that would be markup, a template, a terminal's command, or read from right to left."""


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Path:
    """Five photographs in a tar, one of a hostile key, one cut and one that is no picture; two of another source."""
    folder = tmp_path_factory.mktemp("browse")
    jpeg = picture_bytes(Image.fromarray(render_scene(9, height_px=120, width_px=160).rgb), "jpg")
    members = {f"{key}.png": scene_bytes(seed) for seed, key in enumerate(("a", "b", "c", "d", HOSTILE.replace("/", "|")))}
    members |= {"cut.jpg": jpeg[: len(jpeg) // 2], "broken.jpg": b"\xff\xd8\xff\xe0 not a picture"}
    tars = [
        write_tar(folder / "one.tar", members),
        write_tar(folder / "two.tar", {"a.png": scene_bytes(7), "z.png": scene_bytes(8)}),
    ]
    label(label_config(folder / "run", tuple(map(str, tars)), checkpoints))
    assert compare([str(folder / "run"), "--workers", "0"]) == 0
    return folder / "run"


@pytest.fixture(scope="package")
def gallery(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it. Tests must not change it."""
    folder = tmp_path_factory.mktemp("galleries") / "all"
    assert main([str(run), "-o", str(folder)]) == 0
    return folder
