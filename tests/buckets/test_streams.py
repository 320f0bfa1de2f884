"""Several machines read from a bucket: with as many streams each fetches its share of the parts, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manifests.location import Url
from manifests.part_cache import SmallFiles
from pipeline.train.config import TrainConfig, read_command
from pipeline.train.labels import open_dataset
from pipeline.train.prefetch import prefetching
from pipeline.train.ranks import Process
from pipeline.train.setup import make_plan
from tests.buckets.conftest import upload
from tests.buckets.proxy import FaultProxy
from tests.training_run import write_run

_PARTS, _PART_SIZE, _BATCH_SIZE = 16, 4, 4
_EPOCH = _PARTS * _PART_SIZE // _BATCH_SIZE


@pytest.fixture
def config(bucket: Url, tmp_path: Path) -> TrainConfig:
    run = upload(
        write_run(tmp_path / "run", images=_PARTS * _PART_SIZE, part_size=_PART_SIZE, rejected={"primary": [9, 30]}), bucket
    )
    return TrainConfig(run=(run,), output=tmp_path / "out", batch_size=_BATCH_SIZE, steps=_EPOCH, columns=("primary",))


def _fetched(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, proxy: FaultProxy, rank: int, world_size: int) -> list[str]:
    """The parts of the column `images` that a rank with a disk of its own fetches for its share, each as often as it does."""
    monkeypatch.setattr("manifests.part_cache.small_files", SmallFiles())  # those of another machine
    config = replace(config, cache=config.output / f"disk-{rank}-of-{world_size}")
    dataset = open_dataset(config)
    plan = make_plan(config, dataset, Process(device="cpu", rank=rank, world_size=world_size), 0)
    proxy.forget()
    seen: list[str] = []
    proxy.trouble = lambda request: seen.append(request.path) if request.path.endswith("/jpeg/c/0") else None
    with prefetching(dataset, plan) as fetcher:
        assert fetcher is not None
        for step in range(config.steps):
            fetcher.reached(step)
            for request in plan.chunk(step, 0):
                dataset[request]
    proxy.forget()
    return [path.split("/columns/images/")[1].split(".first")[0] for path in seen]


def test_each_of_two_machines_fetches_its_own_parts_once_an_epoch(
    config: TrainConfig, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = _fetched(monkeypatch, config, proxy, 0, 1)
    assert len(alone) == len(set(alone)) == _PARTS
    both = [_fetched(monkeypatch, config, proxy, rank, 2) for rank in (0, 1)]
    assert all(len(one) == len(set(one)) > _PARTS // 2 for one in both)
    dealt = replace(config, streams=2, output=config.output / "dealt")
    both = [_fetched(monkeypatch, dealt, proxy, rank, 2) for rank in (0, 1)]
    assert all(len(one) == len(set(one)) for one in both)
    assert set(both[0]) | set(both[1]) == set(alone)
    assert len(set(both[0]) & set(both[1])) <= 1


def test_the_next_epochs_are_read_from_what_a_machine_has(
    config: TrainConfig, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, three = (replace(config, streams=2, steps=epochs * _EPOCH) for epochs in (1, 3))
    one = _fetched(monkeypatch, first, proxy, 0, 2)
    assert len(one) <= _PARTS // 2 + 1
    assert len(_fetched(monkeypatch, three, proxy, 0, 2)) <= 1


def test_the_commands_of_the_page_are_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "buckets.md").read_text(encoding="utf-8")
    commands = [line.split("pipeline.train ")[1].split() for line in page.splitlines() if "-m pipeline.train" in line]
    configs = [read_command(arguments) for arguments in commands]
    assert {config.streams for config in configs} == {1, 2}
