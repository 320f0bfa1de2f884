"""Pictures with true depth of a person's own: the layouts, the units, and each bad pair named beside sound ones."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.evaluate.command import main
from stages.demo_networks import build_depth_anything, save_depth_anything
from stages.evaluation.benchmark_files import BenchmarkError
from stages.evaluation.fixtures import write_benchmark
from stages.evaluation.pairs import DepthUnits, open_pairs
from tests.conftest import picture_bytes

_UNITS = DepthUnits()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_depth_anything(
        build_depth_anything(hidden=16, layers=4, heads=2, patch_px=8, fusion=8, image_px=48), folder, torch.float32, 48
    )
    return folder


def _rgb(shape: tuple[int, int] = (6, 8), **options: object) -> bytes:
    return picture_bytes(Image.fromarray(np.full((*shape, 3), 90, np.uint8)), "jpeg", **options)


def _png(values: np.ndarray) -> bytes:
    return picture_bytes(Image.fromarray(values), "png")


def _npy(values: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), values)
    return file.getvalue()


_METRES = np.arange(1, 49, dtype=np.float32).reshape(6, 8) / 8
_TIFF = picture_bytes(Image.fromarray(_METRES), "tiff")
_TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
_MM = (_METRES * 1000).astype(np.uint16)


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _evaluate(tmp_path: Path, *arguments: object, expected: int = 0) -> dict[str, Any]:
    written = tmp_path / "result.json"
    quick = ["--network-px", "48", "--device", "cpu", "--output", tmp_path / "kept", "--json", written]
    assert main([str(argument) for argument in (*arguments, *quick)]) == expected
    return json.loads(written.read_text())


@pytest.mark.parametrize(
    "files",
    [
        {"rgb/a.jpg": _rgb(), "depth/a.png": _png(_MM), "rgb/in/b.png": _rgb(), "depth/in/b.npy": _npy(_METRES), "x.txt": b""},
        {"images/a.jpg": _rgb(), "depth/a_depth.png": _png(_MM), "images/b.jpg": _rgb(), "depth/b.npy": _npy(_METRES[None])},
        {"a_rgb.jpg": _rgb(), "a_depth.png": _png(_MM), "b.jpg": _rgb(), "b.npy": _npy(_METRES.astype(np.float64))},
        {"rgb_a.jpg": _rgb(), "depth_a.png": _png(_MM), "color-b.JPG": _rgb(), "depth-b.tif": _TIFF},
        {"x.jpg": _rgb(), "y.png": _png(_MM), "pairs.txt": b"# mine\nx.jpg y.png\n\nx.jpg\ty.png\r\n"},
    ],
)  # fmt: skip
def test_each_layout_gives_its_pairs_in_metres(tmp_path: Path, files: Mapping[str, bytes]):
    place = _write(tmp_path / "set", files) / ("pairs.txt" if "pairs.txt" in files else "")
    found = open_pairs(place, "pairs-set", protocol="marigold-disparity", units=_UNITS)
    assert len(found.pairs) == 2
    for index in range(2):
        sample = found.read(index)
        assert sample.rgb.shape == (6, 8, 3)
        np.testing.assert_allclose(sample.depth_m, _METRES, rtol=1e-6)


def test_units_kinds_and_what_is_no_measurement(tmp_path: Path):
    values = np.array([[0, -1, np.nan, np.inf], [65535, 2, 4, 40]], np.float32)
    depth_m, valid = DepthUnits(scale=2, max_m=10, invalid=65535).depth_m(values)
    assert (depth_m[valid].tolist(), np.argwhere(valid).tolist()) == ([1, 2], [[1, 1], [1, 2]])
    depth_m, valid = DepthUnits(kind="disparity", scale=2, invalid=65535).depth_m(values)
    np.testing.assert_allclose(depth_m[valid], [1, 0.5, 0.05])
    depth_m, valid = DepthUnits().depth_m(np.array([[1500, 0]], np.uint16))
    assert (depth_m.tolist(), valid.tolist()) == ([[1.5, 0]], [[True, False]])


_BAD: dict[str, tuple[Mapping[str, bytes], str]] = {
    "no depth": ({"rgb/b.jpg": _rgb()}, "rgb/b.jpg: no depth for this picture; expected one named b"),
    "no picture": ({"depth/b.png": _png(_MM)}, "depth/b.png: no picture for this depth"),
    "two": ({"rgb/b.jpg": _rgb(), "depth/b.png": _png(_MM), "depth/b.npy": _npy(_METRES)}, "more than one pair has the name b"),
    "size": ({"rgb/b.jpg": _rgb((8, 6)), "depth/b.png": _png(_MM)}, "depth/b.png: 6 x 8 px, expected 8 x 6 as its picture"),
    "turned": ({"rgb/b.jpg": _rgb(exif=_TURNED), "depth/b.png": _png(_MM)}, "its EXIF data turn it (orientation 6)"),
    "cut": ({"rgb/b.jpg": _rgb()[:150], "depth/b.png": _png(_MM)}, "rgb/b.jpg: "),
    "cut depth": ({"rgb/b.jpg": _rgb(), "depth/b.png": _png(_MM)[:60]}, "depth/b.png: cannot be decoded"),
    "colours": ({"rgb/b.jpg": _rgb(), "depth/b.png": _png(np.zeros((6, 8, 3), np.uint8))}, "expected grey: numbers"),
    "nothing valid": ({"rgb/b.jpg": _rgb(), "depth/b.png": _png(_MM * 0)}, "no valid pixel, its numbers are 0 to 0; expected"),
    "pickle": ({"rgb/b.jpg": _rgb(), "depth/b.npy": _npy(np.array([[{}]], object))}, "depth/b.npy: cannot be read as .npy"),
    "exr": ({"rgb/b.jpg": _rgb(), "depth/b.exr": b"v/1\1"}, "depth as .exr is not read; save it as .npy"),
}  # fmt: skip


@pytest.mark.parametrize("case", _BAD)
def test_a_bad_pair_is_named_and_the_others_are_read(tmp_path: Path, case: str):
    files, words = _BAD[case]
    _write(tmp_path, {"rgb/a.jpg": _rgb(), "depth/a.png": _png(_MM), "rgb/c.jpg": _rgb(), "depth/c.png": _png(_MM), **files})
    found = open_pairs(tmp_path, "pairs-x", protocol="marigold-depth", units=_UNITS)
    assert len(found.pairs) == 3
    with pytest.raises(BenchmarkError) as raised:
        found.read(1)
    assert words in str(raised.value)
    assert [found.read(index).name for index in (0, 2)] == ["rgb/a.jpg", "rgb/c.jpg"]


def test_a_list_names_a_line_that_is_no_pair_and_a_file_that_is_gone(tmp_path: Path):
    _write(tmp_path, {"l.txt": b"a b c\nx.jpg y.png\n"})
    found = open_pairs(tmp_path / "l.txt", "pairs-l", protocol="marigold-depth", units=_UNITS)
    for index, words in enumerate((r"l\.txt:1: 3 columns, expected 2", r"x\.jpg: not in ")):
        with pytest.raises(BenchmarkError, match=words):
            found.read(index)
    with pytest.raises(BenchmarkError, match=r"no pair of a picture and its depth found; expected rgb/NAME\.jpg"):
        open_pairs(_write(tmp_path / "none", {"a.txt": b""}), "pairs-none", protocol="marigold-depth", units=_UNITS)


def test_own_pairs_score_as_a_benchmark_of_the_same_pixels(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    """ScanNet's rules are those of a plain set up to 10 m in millimetres."""
    scannet = write_benchmark("scannet", tmp_path, scenes=[1, 2])
    lines = (scannet / "scannet_val_sampled_list_800_1.txt").read_text().split()
    mine = _write(tmp_path / "mine", {f"rgb/{i}.jpg": (scannet / lines[2 * i]).read_bytes() for i in range(2)})
    _write(mine, {f"depth/{i}.png": (scannet / lines[2 * i + 1]).read_bytes() for i in range(2)})
    given = ["--model", checkpoint, "--pairs", mine, "--depth-max-m", "10"]
    both = _evaluate(tmp_path, *given, "--benchmark", "scannet", "--data", scannet)
    means = {result["benchmark"]: result["means"]["tiny"] for result in both["results"]}
    assert means["pairs-mine"] == means["scannet"]
    (rules,) = [result["rules"] for result in both["results"] if result["benchmark"] == "pairs-mine"]
    assert "valid: depth 0.001 m to 10 m" in rules
    assert "truth is depth, units per m: 1000 for integers, 1 for floats" in rules
    (mine / "rgb/2.jpg").write_bytes(_rgb())
    alone = _evaluate(tmp_path, *given, expected=1)
    assert [result["means"] for result in alone["results"]] == [{}]
    assert "rgb/2.jpg: no depth for this picture" in capsys.readouterr().err
    lenient = _evaluate(tmp_path, *given, "--allow-missing")
    assert lenient["results"][0]["means"]["tiny"] == means["scannet"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth-scale", "2"], "--depth-scale: for --pairs alone"),
        (["--pairs", "nowhere"], "--pairs nowhere: not there"),
        (["--pairs", ".", "--depth-scale", "0"], "--depth-scale is 0.0, expected units per metre"),
        (["--pairs", ".", "--depth-min-m", "5", "--depth-max-m", "5"], "--depth-min-m is 5.0"),
        (["--pairs", ".", "./"], "have one name"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    checkpoint: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(checkpoint), *arguments])
    assert words in " ".join(capsys.readouterr().err.split())
