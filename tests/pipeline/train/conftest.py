"""A small run, a small student, and a small training of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from tests.pipeline.train.trainings import small_training
from tests.training_run import write_run, write_student


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven contexts, which batches of four do not divide: a training resumes in the midst of an epoch. No photograph and no
    teacher is there."""
    return write_run(tmp_path_factory.mktemp("train") / "run", images=11)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student") / "checkpoint")


@pytest.fixture(scope="module")
def small(run: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Twelve steps; tests give it an output of their own."""
    return small_training(run, student, tmp_path_factory.mktemp("unused"), steps=12)


@pytest.fixture(scope="module")
def trained(small: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `small`, never interrupted."""
    output = tmp_path_factory.mktemp("trained") / "student"
    result = train(replace(small, output=output))
    assert (result.resumed_from, result.images) == (0, 11)
    return output
