"""The presets label from hub ids alone, found in a local hub cache that holds small checkpoints in the published layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.label.command import main
from stages.models import KNOWN
from tests.conftest import scene_bytes, write_tar
from tests.hub_cache import cached, use_cache
from tests.stages.models.tiny_teachers import save_depth_anything, save_lotus

PRIMARY = "depth-anything/Depth-Anything-V2-Large-hf"
LOTUS = "jingheya/lotus-depth-d-v2-0-disparity"
SMALL = ["--plan.context-px", "64", "--plan.patch-px", "32", "--plan.patches-per-side", "2", "--plan.min-square-px", "64"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots at the pinned commits, as after a fetch by their hashes."""
    cache = tmp_path_factory.mktemp("huggingface") / "hub"
    for hub_id, save in ((PRIMARY, save_depth_anything), (LOTUS, save_lotus)):
        cached(cache, hub_id, str(KNOWN[hub_id].revision), save, branch=False)
    return cache


@pytest.fixture
def command(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that labels two photographs with nothing fetched."""
    use_cache(cache, monkeypatch)
    source = write_tar(tmp_path / "photographs.tar", {f"{seed}.png": scene_bytes(seed) for seed in range(2)})
    return ["--run", str(tmp_path / "run"), "--sources", str(source), "--workers", "0", *SMALL]


def test_the_preset_lotus_labels_from_hub_ids_alone(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*command, "--preset", "lotus", "--dry-run"]) == 0
    assert {"images", "primary", "assistant"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
