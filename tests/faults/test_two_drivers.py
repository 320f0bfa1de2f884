"""Two drivers at once on one run: each part is committed once, and neither is disturbed."""

from __future__ import annotations

import re
from pathlib import Path

import manifests
from tests.faults.processes import Zygote, differences, label_arguments


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
