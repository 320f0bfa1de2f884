"""Several drivers of one run: which parts are a shard's, what a shard's command says and how it ends, and who does what."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import manifests
from manifests.run import IMAGES, PartId
from pipeline.label.command import label, main
from pipeline.label.config import read_command
from pipeline.label.queue import LabelQueue
from pipeline.label.shard import Shard, parse_shard
from stages.labelling.unit import Unit, UnitResult
from stages.sources.source import CatalogueRow, Source
from stages.views import ViewPlan
from tests.conftest import label_config, scene_bytes, write_tar
from tests.faults.processes import label_arguments


def _part(source: str, number: int) -> PartId:
    return PartId(source=source, number=number, name=f"{source}.{number:05d}", images=1, rows_sha256="")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_part_is_in_one_shard_and_all_shards_have_as_many_of_each_source(count: int):
    shards = [Shard(number, count) for number in range(count)]
    for source in ("photos", "photos-2", "shard-00001"):
        owners = [[shard.number for shard in shards if shard.has(_part(source, number))] for number in range(50)]
        assert all(len(owner) == 1 for owner in owners)
        sizes = Counter(owner for (owner,) in owners)
        assert max(sizes.values()) - min(sizes[number] for number in range(count)) <= 1


def test_sources_of_one_part_are_spread_over_the_shards():
    sizes = Counter(number for i in range(400) for number in range(4) if Shard(number, 4).has(_part(f"shard-{i:05d}", 0)))
    assert sizes.total() == 400
    assert min(sizes.values()) > 70


@pytest.mark.parametrize("text", ["2/2", "a", "0/0", "-1/2", "1/2/3", "", "0 / 2", "٠/٢", "1/1000000000"])
def test_what_is_no_shard_is_refused_in_words(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="expected I/N"):
        parse_shard(text)
    command = ["--run", str(tmp_path / "run"), "--sources", "photos", "--preset", "demo", f"--shard={text}"]
    with pytest.raises(SystemExit) as ended:
        read_command(command)
    assert ended.value.code == 2
    assert f"--shard: {text!r}: expected I/N with I from 0 to N - 1, such as 0/4" in capsys.readouterr().err


def test_each_shard_ends_by_its_own_parts_and_says_so(tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]):
    source = write_tar(tmp_path / "s.tar", {f"{i}.png": scene_bytes(i, side_px=64) for i in range(5)})
    command = label_arguments(tmp_path / "run", source, checkpoints, "--workers", "0")
    assert main([*command, "--shard", "1/2", "--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    images = {number: sum(_images_of(number)) for number in (0, 1)}
    assert first == f"shard 1/2: {images[1]} images; measured on 5 of them, for 1 workers"
    assert main([*command, "--shard", "1/2"]) == 0
    told = capsys.readouterr()
    mine, parts = 3 * len(_images_of(1)), 9
    assert (
        f"shard 1/2: {mine} of {mine} parts are committed, {mine} of them by this command; "
        f"of the whole run {mine} of {parts}, the rest is for the other shards." in told.out
    )
    assert f"label shard 1/2, primary: {images[1]}/{images[1]} images" in told.err
    assert [column.pending for column in manifests.summarize(tmp_path / "run").columns] == [images[0]] * 3
    assert manifests.load_run(tmp_path / "run").configuration["shard"] is None
    assert main([*command, "--shard", "0/2"]) == 0
    assert f"of the whole run {parts} of {parts}. Inspect" in capsys.readouterr().out
    assert main(command) == 0


def _images_of(number: int) -> list[int]:
    """The sizes of the parts of `s.tar` that are in this shard of two."""
    return [images for i, images in enumerate((2, 2, 1)) if Shard(number, 2).has(_part("s", i))]


def test_rejections_and_second_chances_are_those_of_the_shard(tmp_path: Path, checkpoints: Path, scenes_tar: Path):
    """The broken file of the eleven is in the last part."""
    config = label_config(tmp_path / "run", (str(scenes_tar),), checkpoints, max_rejected_fraction=0.01)
    command = label_arguments(tmp_path / "run", scenes_tar, checkpoints, "--workers", "0", "--part-size", "4")
    bad = next(number for number in (0, 1) if Shard(number, 2).has(_part("scenes", 2)))
    assert not label(config).failures
    assert {number: main([*command, "--shard", f"{number}/2"]) for number in (0, 1)} == {bad: 1, 1 - bad: 0}
    assert label(replace(config, retry_failed=True, shard=f"{bad}/2")).committed == 0  # a damaged file stays damaged


# --- without shards ----------------------------------------------------------------------------------------------------


def _queue(run: Path, parts: int, committed: set[str], seed: int) -> LabelQueue:
    rows = (CatalogueRow(key="0", member="0.jpg", offset=0, size_bytes=1),)
    source = Source(name="photos", kind="folder", location=run)
    units = [
        Unit(
            run_dir=run,
            records={},
            column=IMAGES,
            part=f"photos.{number:05d}",
            attempt="",
            source=source,
            rows=rows,
            plan=ViewPlan(),
            seed=0,
            fingerprint={},
        )
        for number in range(parts)
    ]
    return LabelQueue(units, {}, images_done=set(), is_committed=lambda unit: unit.part in committed, max_attempts=3, seed=seed)


def _drive_together(run: Path, parts: int, drivers: int) -> tuple[int, list[str]]:
    """Drivers that begin alike and are equally fast; the parts that were made for nothing, and what the first has done."""
    committed: set[str] = set()
    queues = [_queue(run, parts, committed, seed) for seed in range(drivers)]
    lost, order = 0, list[str]()
    while tasks := [(queue, task) for queue in queues if (task := queue.take([IMAGES]))]:
        for queue, task in tasks:
            won = task.unit.part not in committed
            committed.add(task.unit.part)
            queue.settle(task, UnitResult(committed=won, labelled=1, rejected=0))
            lost += not won
            order += [task.unit.part] * (queue is queues[0])
    assert len(committed) == parts
    return lost, order


def test_drivers_that_begin_alike_part_ways_and_lose_little(tmp_path: Path):
    lost, _ = _drive_together(tmp_path, 400, drivers=2)
    assert lost <= 12  # of 400: in one order all would be made twice
    lost, _ = _drive_together(tmp_path, 400, drivers=4)
    assert lost <= 40


def test_a_driver_alone_keeps_the_order_of_the_sources(tmp_path: Path):
    lost, order = _drive_together(tmp_path, 50, drivers=1)
    assert (lost, order) == (0, sorted(order))
