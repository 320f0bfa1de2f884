"""Errors and signals inside a commit, wherever they strike: a part is complete or absent, and the next command completes it."""

from __future__ import annotations

from pathlib import Path

import pytest

import manifests
from pipeline.label.command import label
from pipeline.label.config import LabelConfig
from tests.conftest import label_config, scene_bytes
from tests.faults.processes import differences, label_arguments, start
from tests.faults.steps import UNIT_STEPS, Fault
from tests.faults.strikes import IN_THREADS, Strike, sweep

every_fifth_or_each = pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.campaign)])
"""`make test` strikes at every fifth place, `make campaign` at each."""


@pytest.fixture(scope="module")
def strike() -> Strike:
    return Strike()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> LabelConfig:
    """A finished run of one small image."""
    folder = tmp_path_factory.mktemp("struck")
    (folder / "photos").mkdir()
    (folder / "photos/a.png").write_bytes(scene_bytes(1, side_px=64))
    config = label_config(folder / "run", (str(folder / "photos"),), checkpoints, part_size=1)
    assert label(config).committed == 3
    assert manifests.verify(config.run, deep=True) == []
    return config


@every_fifth_or_each
def test_struck_after_any_system_call_of_a_commit_a_part_is_complete_or_absent_and_the_next_command_completes_it(
    config: LabelConfig, strike: Strike, every: int
):
    struck = sweep(config, "images", strike, strike.after_call, every=every)
    assert struck.total() > 150 // every, struck
    manifests.clean(config.run)
    assert manifests.verify(config.run, deep=True) == []


@every_fifth_or_each
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # of Zarr's, when its caller is interrupted
def test_struck_while_threads_write_its_files_a_part_is_complete_or_absent_and_the_next_command_completes_it(
    config: LabelConfig, strike: Strike, every: int
):
    struck = sweep(config, "images", strike, strike.before_file_event, IN_THREADS, every=every)
    assert struck.total() > 50 // every, struck


@pytest.mark.campaign
def test_struck_in_a_worker_of_ray_just_after_a_manifest_has_its_name_the_run_ends_as_the_uninterrupted_one(
    tmp_path: Path, five: Path, checkpoints: Path, uninterrupted: Path
):
    """Each of the three parts of two columns meets one deed, in whichever worker; the arrays that a manifest names stay."""
    linked = "the manifest has its name and loses the other"
    syncing = "the manifest has its name alone and the folder is synced"
    deeds = {
        "images": [(linked, "EIO"), (syncing, "EIO"), (syncing, "SIGTERM")],
        "primary": [(linked, "MemoryError"), (linked, "SIGTERM"), (syncing, "EIO")],
    }
    faults = [Fault(UNIT_STEPS[f"{column}: {step}"], deed) for column, those in deeds.items() for step, deed in those]
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "2", "--max-attempts", "9")
    process = start(arguments, faults, tmp_path / "marks")
    _, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages
    assert len(list((tmp_path / "marks").iterdir())) == len(faults)
    assert differences(tmp_path / "run", uninterrupted) == []
