"""The simulated device and the bits of a code, in miniature: that both commands measure what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import device, label_bits


def test_the_simulated_device_reports_its_share_and_what_a_view_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.main(["--images", "3", "--quick", "--threads", "1", "--ms", "1", "20", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(0 < figures["efficiency"][ms] < 1 for ms in ("1", "20"))
    assert figures["cpu_ms_per_view"] > 0
    assert set(figures["stages_ms"]) >= {"read", "decode", "quantise", "pack"}
    assert "| pack |" in capsys.readouterr().out


def test_more_bits_keep_more_of_the_gradient_and_take_more_disk(capsys: pytest.CaptureFixture[str]) -> None:
    label_bits.main(["--images", "1", "--side-px", "112"])
    rows = [
        line.strip("|\n").split("|")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("| 8 ", "| 12 ", "| 16 "))
    ]
    assert len(rows) == 12  # of three bits in four tables
    bits_per_px, gradient_error = ([float(row[column].strip(" %")) for row in rows[:3]] for column in (1, -1))
    assert bits_per_px == sorted(bits_per_px)
    assert gradient_error == sorted(gradient_error, reverse=True)
