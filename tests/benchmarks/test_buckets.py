"""Buckets beside a disk, in miniature: that the command measures what it says."""

from __future__ import annotations

import os

import pytest

from benchmarks import buckets


def test_each_latency_is_compared_with_the_disk(capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    buckets.main(["--quick"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 7
    assert all(float(row[1].split()[0]) > 0 for row in rows)
    assert dict(os.environ) == before
