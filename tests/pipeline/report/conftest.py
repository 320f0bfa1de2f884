"""A run whose labels are known, a student trained from it for a moment, and the report of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report.command import main
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from tests.pipeline.train.trainings import small_training
from tests.training_run import write_run, write_student

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>\u202e\x1b[31m{{7*7}}"
"""A key that would be markup, a template, a terminal's command, or read from right to left."""


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs of two teachers, which agree but for their scale, one of a hostile key and one rejected."""
    names, rejected = {0: HOSTILE}, {name: [5] for name in ("images", "primary", "assistant")}
    return write_run(tmp_path_factory.mktemp("report") / "run", images=6, names=names, rejected=rejected)


@pytest.fixture(scope="package")
def settings(run: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Of a small training; tests give it an output of their own."""
    folder = tmp_path_factory.mktemp("students")
    start = write_student(folder / "start")
    return small_training(run, start, folder / "student", steps=8, batch_size=2, warmup_steps=1)


@pytest.fixture(scope="package")
def student(settings: TrainConfig) -> Path:
    train(settings)
    return settings.output


@pytest.fixture(scope="package")
def report(run: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page. Tests must not change it."""
    page = tmp_path_factory.mktemp("page") / "report.html"
    assert main([str(run), str(student), "-o", str(page), "--examples", "3"]) == 0
    return page
