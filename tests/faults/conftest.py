"""A small source, an uninterrupted run over it, and processes that start at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import scene_bytes, write_tar
from tests.faults.processes import Zygote, kill_what_is_left, label_arguments


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    kill_what_is_left()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as started:
        yield started


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of five scenes, which are three parts."""
    return write_tar(tmp_path_factory.mktemp("five") / "five.tar", {f"{i}.png": scene_bytes(i, side_px=64) for i in range(5)})


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, five: Path, checkpoints: Path) -> Path:
    """A finished run over `five`. Tests must not change it."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    ended = zygote.run(label_arguments(run, five, checkpoints, "--workers", "0"))
    assert ended.status == 0, ended.output
    return run
