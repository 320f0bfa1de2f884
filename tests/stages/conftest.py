"""One folder with small checkpoints of every family of teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stages.models import tiny_teachers


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dpt`, `depth_anything`, `metric`, `depth_pro`, `marigold`, `lotus`, `genpercept_77`, `_2`, `_encoder`, as published."""
    folder = tmp_path_factory.mktemp("families")
    torch.manual_seed(11)
    tiny_teachers.save_dpt(folder / "dpt")
    tiny_teachers.save_depth_anything(folder / "depth_anything")
    tiny_teachers.save_depth_anything(folder / "metric", metric=True)
    tiny_teachers.save_depth_pro(folder / "depth_pro")
    tiny_teachers.save_marigold(folder / "marigold")
    tiny_teachers.save_lotus(folder / "lotus")
    for text in ("77", "2", "encoder"):
        tiny_teachers.save_genpercept(folder / f"genpercept_{text}", text=text)
    return folder
