"""Two drivers at once on one run: each part is committed once, and neither is disturbed."""

from __future__ import annotations

import re
from pathlib import Path

import manifests
from tests.faults.processes import Zygote, committed, differences, label_arguments
from tests.faults.steps import Fault, Step

_SHARDS = ("0/2", "1/2")


def test_two_drivers_at_once_commit_each_part_once_and_both_end_well(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path
):
    run = tmp_path / "run"
    arguments = label_arguments(run, five, checkpoints, "--workers", "0")
    drivers = [zygote.start(arguments), zygote.start(arguments)]
    ends = [zygote.wait(pid) for pid in drivers]
    assert [end.status for end in ends] == [0, 0], ends
    commits = [int(found[1]) for end in ends if (found := re.search(r"parts are committed, (\d+) of them", end.output))]
    assert sum(commits) == 9
    assert len(commits) == 2
    assert manifests.clean(run, dry_run=True) == []  # whoever came second has taken away what it wrote
    assert differences(run, uninterrupted) == []


def test_two_shards_at_once_make_each_part_once_and_their_union_is_the_run(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path
):
    run = tmp_path / "run"
    arguments = label_arguments(run, five, checkpoints, "--workers", "0")
    drivers = [zygote.start([*arguments, "--shard", shard]) for shard in _SHARDS]
    ends = [zygote.wait(pid) for pid in drivers]
    assert [end.status for end in ends] == [0, 0], ends
    made = [int(found[1]) for end in ends if (found := re.search(r"shard ./2: .* (\d+) of them by this", end.output))]
    assert (len(made), sum(made), min(made)) == (2, 9, 3), ends
    assert len(committed(run)) == len(list(run.glob("columns/*/*.zarr"))) == 9  # no attempt beside those
    assert differences(run, uninterrupted) == []


def test_a_hole_is_a_failure_of_its_own_shard_alone(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path
):
    run = tmp_path / "run"
    arguments = label_arguments(run, five, checkpoints, "--workers", "0")
    breaks = Fault(Step("os.mkdir", r"columns/primary/five\.00000\.[^/]+\.zarr$"), "EIO", once=False)
    drivers = [zygote.start([*arguments, "--shard", shard], [breaks]) for shard in _SHARDS]
    ends = {shard: zygote.wait(pid) for shard, pid in zip(_SHARDS, drivers, strict=True)}
    assert sorted(end.status for end in ends.values()) == [0, 1], ends
    (holed,) = (shard for shard, end in ends.items() if end.status == 1)
    assert "failed: primary/five.00000: OSError" in ends[holed].output
    assert zygote.run([*arguments, "--shard", holed]).status == 0
    assert differences(run, uninterrupted) == []
