"""Labels on their way to other trainers: every number is that of the run, whatever reads it and whatever interrupted it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

import manifests
from pipeline.export import command
from pipeline.export.command import main
from pipeline.export.samples import encoded, sample_name
from pipeline.label.command import label
from stages.label_store import CodedLabel, ImageId, Label, open_run
from stages.views import ViewPlan
from tests.conftest import SIDE_PX, label_config, scene_bytes, teacher_spec, write_tar
from tests.stages.models.tiny_teachers import save_depth_anything

PAGE = (Path(__file__).parents[3] / "docs/export.md").read_text(encoding="utf-8")
HOSTILE = "../\x1b]0;x\x07\u202e evil\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Path:
    """Two sources that share a key, keys that are no names, and a broken picture; two squares of each photograph."""
    folder = tmp_path_factory.mktemp("export")
    first = {"both.png": scene_bytes(1), f"{HOSTILE}.png": scene_bytes(2), "c/d.png": scene_bytes(3), "broken.jpg": b"no"}
    write_tar(folder / "one.v1.tar", first)
    (folder / "two").mkdir()
    for name, seed in {"both.png": 4, "both-png.png": 5, "x y.png": 6}.items():
        (folder / "two" / name).write_bytes(scene_bytes(seed))
    plan = ViewPlan(context_px=SIDE_PX, patch_px=SIDE_PX, min_square_px=60, contexts_per_image=2, min_image_px=8)
    config = label_config(folder / "run", (str(folder / "one.v1.tar"), str(folder / "two")), checkpoints, plan=plan)
    label(dataclasses.replace(config, part_size=2, max_rejected_fraction=1.0))
    return folder / "run"


def _export(run: Path, output: Path, layout: str, *more: str) -> int:
    return main([str(run), "-o", str(output), "--format", layout, *more])


def _decoded(file: bytes, told: Mapping[str, Any]) -> Label:
    """A label as whoever reads the JSON finds it."""
    if told["scale"] is None:
        values = np.load(io.BytesIO(file))
        return Label(values=np.where(np.isnan(values), np.float32(0), values), valid=~np.isnan(values))
    codes = np.asarray(Image.open(io.BytesIO(file)))
    assert codes.dtype == np.uint16
    values = np.where(codes > 0, told["offset"] + told["scale"] * (codes.astype(np.float64) - 1), 0)
    return Label(values=values.astype(np.float32), valid=codes > 0)


def _assert_same(found: Label, expected: Label) -> None:
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.valid, expected.valid)


def _samples_of_tars(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    for sample in webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False):  # type: ignore[attr-defined]
        key = sample["__key__"]
        yield json.loads(sample["json"]), {f"{key}.{name}": file for name, file in sample.items() if name[0] != "_"}


def _samples_of_folder(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    for path in sorted((folder / "json").rglob("*.json")):
        yield json.loads(path.read_bytes()), files


@pytest.mark.parametrize(
    ("layout", "labels", "read"), [("webdataset", "codes", _samples_of_tars), ("folder", "npy", _samples_of_folder)]
)
def test_what_is_read_back_is_to_the_bit_what_the_run_has(run: Path, tmp_path: Path, layout: str, labels: str, read: Any):
    assert _export(run, tmp_path / "out", layout, "--views", "both", "--labels", labels, "--workers", "1") == 0
    opened, found = open_run(run), list(read(tmp_path / "out"))
    expected = [(image, context) for image in opened["primary"] for context in range(2)]
    assert sorted((ImageId(told["source"], told["key"]), told["context"]) for told, _ in found) == sorted(expected)
    for told, files in found:
        image, context = ImageId(told["source"], told["key"]), told["context"]
        seen = opened.pictures[image]
        picture = np.asarray(Image.open(io.BytesIO(files[told["picture"]["file"]])))
        np.testing.assert_array_equal(picture, seen.pictures[context])
        assert (told["photograph"]["size"], told["photograph"]["box"]) == ([*seen.source_size], [*seen.boxes[context]])
        assert sorted(told["labels"]) == ["assistant", "primary"]
        for name, said in told["labels"].items():
            column = opened[name]
            own = column[image].contexts[context]
            assert own is not None
            assert (said["depth_space"], said["licence"]) == (column.depth_space, "Apache-2.0")
            _assert_same(_decoded(files[said["whole"]["file"]], said["whole"]), own.context)
            assert [tuple(patch["box"]) for patch in said["patches"]] == [patch.box for patch in own.patches]
            for patch, label_of_patch in zip(said["patches"], own.patches, strict=True):
                _assert_same(_decoded(files[patch["file"]], patch), label_of_patch)


def test_one_column_and_close_ups_alone_have_no_other_files(run: Path, tmp_path: Path):
    assert _export(run, tmp_path / "tars", "webdataset", "--columns", "primary", "--views", "patches") == 0
    told, files = next(_samples_of_tars(tmp_path / "tars"))
    assert list(told["labels"]) == ["primary"]
    assert "whole" not in told["labels"]["primary"]
    assert {name.rpartition(".")[2] for name in files} == {"jpg", "json", "png"}
    assert all(".primary.p" in name for name in files if name.endswith(".png"))


def test_a_folder_is_read_by_its_lists_as_the_two_trainers_read_them(run: Path, tmp_path: Path):
    assert _export(run, tmp_path / "out", "folder", "--views", "both", "--columns", "primary") == 0
    for name, count in {"primary.txt": 12, "primary.patches.txt": 48}.items():
        lines = (tmp_path / "out" / name).read_text().splitlines()
        assert len(lines) == len(set(lines)) == count
        for line in lines:
            rgb, depth = line.split(" ")  # Depth Anything v2's; Marigold's splits at any white space
            assert line.split() == [rgb, depth]
            picture, codes = (np.asarray(Image.open(tmp_path / "out" / path)) for path in (rgb, depth))
            assert (picture.dtype, codes.dtype) == (np.uint8, np.uint16)
            assert picture.shape == (*codes.shape, 3)


def test_metric_depth_comes_in_centimetres_and_millimetres_and_nothing_else_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert _export(run, tmp_path / "no", "folder", "--labels", "cm") == 2
    assert "--labels cm takes metric depth (depth_metric), and assistant has disparity_affine_" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    save_depth_anything(tmp_path / "metric", metric=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(scene_bytes(1))
    spec = dataclasses.replace(teacher_spec(tmp_path, "metric", "transformers"), depth_space="depth_metric")
    label(label_config(tmp_path / "run", (str(tmp_path / "photos"),), tmp_path, teachers={"metric": spec}))
    metres = open_run(tmp_path / "run")["metric"]["a.png"].context.values
    for unit, step in {"cm": 100, "mm": 1000}.items():
        assert _export(tmp_path / "run", tmp_path / unit, "folder", "--labels", unit) == 0
        (line,) = (tmp_path / unit / "metric.txt").read_text().splitlines()
        depth = np.asarray(Image.open(tmp_path / unit / line.split()[1])) / step
        np.testing.assert_allclose(depth, metres, rtol=0, atol=0.51 / step)


def test_a_depth_beyond_the_codes_of_a_unit_has_no_label():
    codes = np.array([[0, 1, 2, 3]], np.uint16)
    label = CodedLabel(codes=codes, scale=np.float32(65.53), offset=np.float32(0.001))
    told, file = encoded(label, "a", "mm")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), [[0, 1, 65531, 0]])
    assert told == {"file": "a", "scale": 0.001, "offset": 0.001}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


_KILLED = """
import os, signal, sys
count, replace = [0], os.replace
def strike(*arguments, **options):
    count[0] += 1
    if count[0] == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments, **options)
os.replace = strike
from pipeline.export.command import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_export_resumes_to_the_same_bytes_and_a_finished_one_writes_no_part_again(run: Path, tmp_path: Path):
    assert _export(run, tmp_path / "whole", "webdataset") == 0
    arguments = [str(run), "-o", str(tmp_path / "killed"), "--format", "webdataset"]
    ended = subprocess.run([sys.executable, "-c", _KILLED, *arguments], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert _files(tmp_path / "killed") != _files(tmp_path / "whole")
    assert main(arguments) == 0
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").glob("*.tar")}
    assert _export(run, tmp_path / "whole", "webdataset") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("layout", ["webdataset", "folder"])
def test_what_is_lost_of_an_export_is_written_again(run: Path, tmp_path: Path, layout: str):
    assert _export(run, tmp_path / "out", layout) == 0
    whole = _files(tmp_path / "out")
    lost = {"webdataset": ["two.00000.tar"], "folder": ["json/two/both-png-1.json", ".export/one-v1.00000.json"]}[layout]
    for name in lost:
        (tmp_path / "out" / name).unlink()
    assert _export(run, tmp_path / "out", layout) == 0
    assert _files(tmp_path / "out") == whole


def test_processes_write_the_same(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert _export(run, tmp_path / "threads", "folder", "--workers", "1") == 0
    monkeypatch.setattr(command, "_WORTH_PROCESSES", 0)
    assert _export(run, tmp_path / "processes", "folder", "--workers", "2") == 0
    assert _files(tmp_path / "processes") == _files(tmp_path / "threads")


def test_holes_are_named_and_labels_that_come_later_too(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    manifest = manifests.manifest_path(copy, "assistant", "one-v1.00001")
    kept = manifest.read_bytes()
    manifest.unlink()
    assert _export(copy, tmp_path / "out", "webdataset") == 1
    printed = capsys.readouterr()
    assert "pending in assistant: one-v1 " in printed.out
    assert re.search(r"rejected in images: one-v1 broken: not_an_image: ", printed.out)
    assert "2 of 7 images pending in assistant" in printed.err
    missing = [json.loads(line) for line in (tmp_path / "out/missing.jsonl").read_text().splitlines()]
    assert sorted({(image["status"], image["column"]) for image in missing}) == [
        *(("pending", "assistant"), ("rejected", "images"), ("rejected", "primary"))
    ]
    assert not json.loads((tmp_path / "out/export.json").read_bytes())["finished"]
    manifest.write_bytes(kept)
    assert _export(copy, tmp_path / "out", "webdataset") == 0
    assert "1 of 4 parts to write, 3 are written already" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/export.json").read_bytes())["finished"]
    manifest.unlink()
    assert _export(copy, tmp_path / "out", "webdataset") == 1
    assert "one-v1.00001: written earlier, and the run has it no more: remove" in capsys.readouterr().err


def test_a_damaged_part_is_named_and_the_others_are_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    part = manifests.load_part(copy, "primary", "two.00000")
    (copy / "columns/primary" / part.zarr / "patch_box/c/0/0").unlink()
    assert _export(copy, tmp_path / "out", "webdataset") == 1
    assert re.search(r"two.00000: not exported: .*patch_box", capsys.readouterr().err, re.S)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        *("one-v1.00000.tar", "one-v1.00001.tar", "two.00001.tar")
    ]


def test_nothing_is_written_among_other_files_and_over_other_settings(
    run: Path, tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    assert _export(run, tmp_path / "mine", "folder") == 2
    assert "found files and no export.json" in capsys.readouterr().err
    assert _export(run, tmp_path / "out", "folder", "--dry-run") == 0
    assert re.search(r"4 of 4 parts to write. About [\d.]+ MB for 7 images, by 5 of them; ", capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert _export(run, tmp_path / "out", "folder") == 0
    assert _export(run, tmp_path / "out", "folder", "--labels", "npy") == 2
    assert 'labels "codes", now "npy"' in capsys.readouterr().err
    (tmp_path / "two").mkdir()
    (tmp_path / "two/a.png").write_bytes(scene_bytes(9))
    label(label_config(tmp_path / "other", (str(tmp_path / "two"),), checkpoints))
    assert _export(tmp_path / "other", tmp_path / "out", "folder") == 2
    assert "an export of another run, with the sources one-v1, two" in capsys.readouterr().err
    assert _export(run, tmp_path / "out", "folder", "--columns", "primary", "Primary") == 2
    assert _export(run, tmp_path / "out", "folder", "--columns", "tertiary") == 2


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("0001", "a/0001"),
        ("cats/1", "a/cats/1"),
        ("1.png", "a/1-png"),
        ("cats/1.JPG", "a/cats/1-JPG"),
        ("1-png", "a/1-png-"),
        (HOSTILE, "a/0-x-evil-"),
        ("a b.png", "a/a-b-png-"),
        ("x" * 200, f"a/{'x' * 80}-"),
        ("..", "a/image-"),
        ("/etc/passwd", "a/etc-passwd-"),
        ("a//b", "a/a-b-"),
    ],
)
def test_a_name_is_its_key_where_that_is_plain_and_leads_nowhere_else(key: str, name: str):
    found = sample_name("a", key)
    assert found == name or re.fullmatch(re.escape(re.sub("[0-9a-f]{16}$", "", name)) + "[0-9a-f]{16}", found)
    assert sample_name("a", key, 1) == f"{found}-1"


def test_no_two_keys_have_one_name():
    keys = ["1.png", "1-png", "1.PNG", "a/1.png", "a-1.png", "a/1", "a-1", sample_name("a", "..")[2:], "..", "1.", "1"]
    assert len({sample_name("a", key) for key in keys}) == len(keys)


def test_the_page_shows_what_runs(
    tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/1.png").write_bytes(scene_bytes(1))
    label(label_config(Path("runs/mine"), ("photos",), checkpoints))
    commands = re.findall(r"^    python -m pipeline.export (.+)$", PAGE, re.M)
    assert len(commands) == 2
    for arguments in commands:
        assert main(shlex.split(arguments)) == 0
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    names: dict[str, Any] = {}
    exec(program, names)
    expected = open_run("runs/mine")["primary"]["1.png"].context.values
    np.testing.assert_array_equal(names["depth"].astype(np.float32), expected)
    (line,) = re.findall(r"^    (sed .+)$", PAGE, re.M)
    subprocess.run(line, shell=True, cwd="labels/folder", check=True)
    for path in Path("labels/folder/primary.absolute.txt").read_text().split():
        assert Path(path).is_absolute()
        assert Path(path).is_file()
