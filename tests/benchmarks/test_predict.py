"""What `predict` costs, in miniature: that the command measures what it says."""

from __future__ import annotations

import pytest

from benchmarks import predict


def test_each_side_and_step_of_predict_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(["--images", "2", "--size", "96", "64", "--rounds", "1"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    figures = {row[0]: float(row[-1].split()[0]) for row in rows if row[-1][:1].isdigit()}
    assert figures["1"] > 0
    assert figures["all of the command"] > figures["map, as PNG of 16 bits"] > 0
