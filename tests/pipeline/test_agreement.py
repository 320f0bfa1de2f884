"""How far the teachers of a run agree: found out once, part by part, and never taken from labels that are there no more."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

import manifests
from manifests.__main__ import main as manifests_main
from manifests.agreement import Agreements, ImageAgreement
from manifests.listing import list_images
from pipeline.agreement import main
from stages.agreement import agreement
from stages.label_store import open_run

PAIR = ("assistant", "primary")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, labelled_run: Path) -> Path:
    """The small run, compared. Tests must not change it."""
    run = Path(shutil.copytree(labelled_run, tmp_path_factory.mktemp("agreement") / "run"))
    assert main([str(run), "--workers", "0"]) == 0
    return run


@pytest.fixture
def run(tmp_path: Path, compared: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "run"))


def _tables(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "agreement/assistant/primary").iterdir())}


def _forget(run: Path, part: str) -> None:
    """The labels of a part are no more what they were: other files, by the manifest's word."""
    path = manifests.manifest_path(run, "primary", part)
    record = json.loads(path.read_text())
    record["files"][0]["sha256"] = "0" * 64
    del record["record_sha256"]
    path.write_text(json.dumps(record))


def test_every_view_that_both_have_labelled_is_compared_and_the_numbers_are_its_own(compared: Path):
    opened = open_run(compared)
    rows = parquet.read_table(compared / "agreement/assistant/primary").to_pylist()  # as anybody would read them
    first, second = (opened[name] for name in PAIR)
    assert len({row["key"] for row in rows}) == len(first) == 10
    for row in (rows[0], rows[1], rows[-1]):
        ours, theirs = (column[row["source"], row["key"]].contexts[row["context"]] for column in (first, second))
        assert ours is not None
        assert theirs is not None
        views = [labels.context if row["patch"] is None else labels.patches[row["patch"]] for labels in (ours, theirs)]
        expected = vars(agreement(views[0], views[1], first.depth_space, second.depth_space))
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert sum(row["patch"] is None for row in rows) == 10
    assert sum(row["patch"] is not None for row in rows) == sum(len(labels.patches) for labels in first.values())


def test_summary_shows_the_distribution_and_names_the_worst(compared: Path, capsys: pytest.CaptureFixture[str]):
    (pair,) = manifests.summarize(compared).agreement
    whole = {
        row["key"]: row["abs_rel"]
        for row in parquet.read_table(compared / "agreement/assistant/primary").to_pylist()
        if row["patch"] is None
    }
    assert (pair.first, pair.second, pair.up_to_date, pair.images) == (*PAIR, True, 10)
    assert [image.key for image in pair.farthest_apart] == sorted(whole, key=lambda key: -whole[key])[:5]
    assert pair.quantiles["abs_rel"][-1] == pytest.approx(max(whole.values()))
    manifests_main(["summary", str(compared)])
    printed = capsys.readouterr().out
    assert "agreement of assistant and primary in 10 images" in printed
    assert f"{pair.farthest_apart[0].key}: AbsRel" in printed


def test_list_shows_it_and_picks_by_it(compared: Path, capsys: pytest.CaptureFixture[str]):
    images = [image for image in list_images(compared, columns=["primary"]) if image.status == "labelled"]
    assert all(image.abs_rel is not None for image in images)
    middle = sorted(image.abs_rel or 0 for image in images)[5]
    picked = list(list_images(compared, columns=["primary"], abs_rel_above=middle))
    assert picked == [image for image in images if (image.abs_rel or 0) > middle]
    assert len(picked) == 4
    manifests_main(["list", str(compared), "--column", "assistant", "--abs-rel-above", str(middle)])
    assert [line.split("\t")[6][:7] for line in capsys.readouterr().out.splitlines()] == ["AbsRel "] * 4


def test_a_second_time_nothing_is_compared_or_written(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_ino for path in run.rglob("*")}
    assert main([str(run), "--workers", "0"]) == 0
    assert ", 0 views compared" in capsys.readouterr().out
    assert {path: path.stat().st_ino for path in run.rglob("*")} == before


def test_what_is_missing_or_of_other_labels_does_not_count_and_is_all_that_is_made_again(run: Path):
    before = _tables(run)
    first = next(part for part in sorted(before) if part.endswith("00000.parquet"))
    part = first.removesuffix(".parquet")
    known = Agreements(run, manifests.load_run(run)).of("primary", part)
    assert known
    (run / "agreement/assistant/primary" / first).unlink()
    assert Agreements(run, manifests.load_run(run)).of("primary", part) == {}
    assert main([str(run), "--workers", "0"]) == 0
    assert _tables(run) == before
    _forget(run, part)
    assert Agreements(run, manifests.load_run(run)).of("primary", part) == {}
    assert not manifests.summarize(run).agreement[0].up_to_date
    listed = [image for image in list_images(run, columns=["primary"]) if image.part == part]
    assert {image.abs_rel for image in listed} == {None}


def test_a_part_that_cannot_be_read_is_named_and_the_others_are_compared(run: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(run / "agreement")
    zarr = next(path for path in sorted((run / "columns/primary").glob("*.zarr")))
    (zarr / "zarr.json").write_text("{}")
    assert main([str(run), "--workers", "0"]) == 1
    assert zarr.name.split(".a")[0].rpartition(".")[0] in capsys.readouterr().err
    assert len(_tables(run)) == 2  # and no overview
    assert not manifests.summarize(run).agreement[0].up_to_date


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"format": "distill-any-depth agreement 1"}'])
def test_what_somebody_else_wrote_there_is_as_if_it_were_not_there(run: Path, content: bytes):
    for path in (run / "agreement/assistant/primary").iterdir():
        path.write_bytes(content)
    assert {image.abs_rel for image in list_images(run)} == {None}
    (pair,) = manifests.summarize(run).agreement
    assert not pair.up_to_date
    shutil.rmtree(run / "agreement")
    os.symlink("/etc", run / "agreement")
    assert {image.abs_rel for image in list_images(run)} == {None}
    assert manifests.summarize(run).agreement == ()


def test_it_is_disposable(run: Path, labelled_run: Path):
    assert list(manifests.verify(run)) == []
    assert manifests.compare(run, labelled_run) == []
    assert manifests.clean(run, dry_run=True) == []
    aside = ".x.parquet.1.0123456789abcdef"
    (run / "agreement/assistant/primary" / aside).write_bytes(b"cut")
    assert manifests.clean(run) == [f"agreement/assistant/primary/{aside}"]
    os.symlink("/etc", run / "agreement/assistant/other")
    assert [item.where for item in manifests.verify(run)] == ["agreement/assistant/other"]


def test_a_run_without_two_teachers_and_a_wrong_column_are_refused(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(run), "--workers", "0", "--columns", "primary", "secondary"]) == 2
    assert "has no teacher 'secondary'" in capsys.readouterr().err
    shutil.rmtree(run / "columns/assistant")
    assert main([str(run), "--workers", "0"]) == 2
    assert "expected two to compare" in capsys.readouterr().err


def test_the_worst_of_several_is_the_worst_in_each_measure():
    one, other = ImageAgreement(0.1, 0.9, None), ImageAgreement(0.2, None, 0.5)
    assert one.worst(other) == ImageAgreement(0.2, 0.9, 0.5)


@pytest.mark.campaign
def test_over_ray_the_same_is_found(run: Path):
    before = _tables(run)
    shutil.rmtree(run / "agreement")
    assert main([str(run), "--workers", "2"]) == 0
    assert _tables(run) == before
