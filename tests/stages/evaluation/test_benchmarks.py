"""Benchmarks in Marigold's layouts: values come back exactly, regions to the pixel, and whatever is wrong is named."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.evaluation.benchmark_files import BenchmarkError
from stages.evaluation.benchmarks import LIST_NAMES, BenchmarkSample, input_picture, open_benchmark
from stages.evaluation.fixtures import benchmark_scene, write_benchmark
from stages.evaluation.protocols import BENCHMARKS, REGIONS, BenchmarkName, ProtocolName, rules

SEEDS = (1_000_000, 1_000_005)  # a room, and a yard with sky
STEP_M: dict[BenchmarkName, float] = {"nyuv2": 1e-3, "scannet": 1e-3, "kitti": 1 / 256, "diode": 0, "eth3d": 0}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all five, `<name>` and `<name>.tar`."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        for tar in (False, True):
            write_benchmark(name, folder, scenes=SEEDS, tar=tar)
    assert np.isinf(benchmark_scene(SEEDS[1], 96, 128).depth_m).any()
    return folder


def opened(name: BenchmarkName, location: Path, protocol: ProtocolName = "marigold-disparity", **options: Path):
    return open_benchmark(name, location, protocol=protocol, **options)


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_depth_comes_back_to_the_encodings_step_and_pictures_as_they_are(data, name, suffix):
    benchmark = pickle.loads(pickle.dumps(opened(name, data / f"{name}{suffix}")))  # as a worker process gets it
    assert benchmark.check() == ()
    assert len(benchmark) == len(benchmark.names) == 2
    own = benchmark.rules
    for index, seed in enumerate(SEEDS):
        sample = benchmark.read(index)
        assert sample.name == benchmark.names[index]
        size_px = (375, 1242) if name == "kitti" else sample.rgb.shape[:2]
        scene = benchmark_scene(seed, *size_px)
        crop = np.s_[23:, 13:1229] if name == "kitti" else np.s_[:]  # 375 - 352 rows and (1242 - 1216) / 2 columns
        rgb, depth_m = scene.rgb[crop], scene.depth_m[crop]
        low, high = own.valid_min_m or 0, own.valid_max_m or np.inf
        inside = np.ones(depth_m.shape, np.bool_)
        if (region := REGIONS[own.region]) is not None:
            inside[:] = False
            inside[region.rows[0] : region.rows[1], region.columns[0] : region.columns[1]] = True
        step_m = STEP_M[name]
        expected = inside & (depth_m > low) & (depth_m < high)
        clear = (
            (depth_m < high - step_m) | (depth_m > high + step_m) | np.isinf(depth_m)
        )  # rounding to a step may carry a depth over the limit
        assert (sample.valid == expected)[clear].all()
        assert sample.valid.any()
        assert np.abs(sample.depth_m - depth_m)[sample.valid].max() <= 0.501 * step_m  # and float32
        if name in ("nyuv2", "kitti", "diode"):
            assert (sample.rgb == rgb).all()
        else:  # JPEG
            assert np.abs(sample.rgb.astype(int) - rgb).mean() < 8


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_tar_and_a_folder_have_the_same_list_names_and_values(data, name):
    folder, tar = opened(name, data / name), opened(name, data / f"{name}.tar")
    assert (folder.list_sha256, folder.names) == (tar.list_sha256, tar.names)
    one, other = folder.read(1), tar.read(1)
    assert all((getattr(one, field) == getattr(other, field)).all() for field in ("rgb", "depth_m", "valid"))


@pytest.mark.parametrize(
    ("name", "protocol", "rows", "columns"),
    [
        ("nyuv2", "marigold-disparity", (45, 471), (41, 601)),
        ("kitti", "marigold-disparity", (117, 321), (43, 1172)),
        ("kitti", "dav2", (143, 349), (43, 1172)),
    ],
)
def test_the_evaluated_region_has_exactly_these_edges(tmp_path, name, protocol, rows, columns):
    location = write_benchmark(name, tmp_path, scenes=SEEDS[:1])
    benchmark = opened(name, location, protocol=protocol)
    depth = location / benchmark.lines[0][1]
    Image.fromarray(np.full((480, 640) if name == "nyuv2" else (375, 1242), 1000, np.uint16)).save(depth)
    valid = benchmark.read(0).valid
    assert (np.flatnonzero(valid.any(1))[[0, -1]] == (rows[0], rows[1] - 1)).all()
    assert (np.flatnonzero(valid.any(0))[[0, -1]] == (columns[0], columns[1] - 1)).all()
    assert valid.sum() == (rows[1] - rows[0]) * (columns[1] - columns[0])


def test_depth_at_the_ends_of_the_range_is_not_scored(tmp_path):
    location = write_benchmark("scannet", tmp_path, scenes=SEEDS[:1], height_px=8, width_px=8)
    benchmark = opened("scannet", location)
    codes_mm = np.zeros((8, 8), np.uint16)
    codes_mm[0, :5] = 1, 2, 9999, 10000, 65535
    Image.fromarray(codes_mm).save(location / benchmark.lines[0][1])
    assert np.argwhere(benchmark.read(0).valid).tolist() == [[0, 1], [0, 2]]


def test_kitti_is_cropped_at_the_bottom_and_in_the_middle(tmp_path):
    location = write_benchmark("kitti", tmp_path, scenes=SEEDS[:1])
    benchmark = opened("kitti", location)
    coded = np.zeros((376, 1241, 3), np.uint8)  # another of KITTI's sizes; its odd pixel goes to the right
    coded[..., 0], coded[..., 1] = np.arange(376)[:, None] // 2, np.arange(1241) // 5
    Image.fromarray(coded).save(location / benchmark.names[0])
    Image.fromarray(np.arange(376 * 1241, dtype=np.uint32).reshape(376, 1241).astype(np.uint16)).save(
        location / benchmark.lines[0][1]
    )
    sample = benchmark.read(0)
    assert (sample.rgb == coded[24:, 12:1228]).all()
    assert sample.depth_m[0, 0] == np.float32(((24 * 1241 + 12) % 65536) / 256)


def test_the_inputs_long_side_is_the_rules_and_its_aspect_is_kept():
    rgb = np.zeros((768, 1024, 3), np.uint8)
    rgb[:, 512:] = 200
    rgb[100:200, :500:2] = 100  # stripes of one pixel, which only antialiasing blends
    sample = BenchmarkSample(name="x", rgb=rgb, depth_m=np.ones((768, 1024), np.float32), valid=np.ones((768, 1024), np.bool_))
    resized = input_picture(sample, rules("diode", "dav2"))
    assert resized.shape == (480, 640, 3)
    assert (resized[0, [0, -1], 0] == (0, 200)).all()
    assert (np.abs(resized[70:120, 5:300, 0].astype(int) - 50) < 25).all()
    assert input_picture(sample, rules("eth3d", "dav2")).shape == (567, 756, 3)
    assert input_picture(sample, rules("scannet", "dav2")) is rgb


# --- lists ------------------------------------------------------------------------------------------------------------


def test_kittis_lines_without_truth_are_left_out_and_counted(data):
    notes = opened("kitti", data / "kitti").notes
    assert any(note.startswith("1 lines of") and "no ground truth" in note for note in notes)
    assert "2 images, where published figures are of 652" in notes


@pytest.mark.parametrize("tar", [False, True])
def test_files_beside_the_listed_ones_that_the_list_does_not_name_are_counted_and_named(tmp_path, tar):
    location = write_benchmark("nyuv2", tmp_path, scenes=SEEDS[:1] * 3, tar=tar)
    lines = opened("nyuv2", location).lines
    assert not any("beside the listed ones" in note for note in opened("nyuv2", location).notes)
    (short := tmp_path / "short.txt").write_text("\n".join(" ".join(line) for line in lines[:2]))
    [note] = [note for note in opened("nyuv2", location, list_file=short).notes if "beside" in note]
    depth, filled, rgb = sorted(lines[2], key=lambda name: name.rpartition("/")[2])
    assert note == f"3 files beside the listed ones are not in the list: {depth}, {filled}, {rgb}"


def test_a_list_of_ones_own_beside_the_data_or_given_is_used(tmp_path, data):
    location = write_benchmark("scannet", tmp_path, scenes=SEEDS)
    own = tmp_path / "short.txt"
    own.write_text(f"\n{opened('scannet', location).names[1]}   scene0000_00/depth/000100.png\n")
    assert opened("scannet", location, list_file=own).names == ("scene0000_00/color/000100.jpg",)
    inside = location / LIST_NAMES["scannet"]
    inside.rename(tmp_path / inside.name)
    assert len(opened("scannet", location)) == 2
    nested = location / "data_split" / "scannet" / inside.name
    nested.parent.mkdir(parents=True)
    nested.write_bytes((tmp_path / inside.name).read_bytes())
    with pytest.raises(BenchmarkError, match="several lists"):
        opened("scannet", location)


def test_lists_that_cannot_be_used_are_refused(tmp_path, data):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    (tmp_path / "bare").mkdir()
    for options, message in (
        ({"list_file": tmp_path / "absent.txt"}, r"absent\.txt: the list cannot be read"),
        ({"list_file": tmp_path / "empty.txt"}, "lists no image with ground truth"),
        ({"list_file": tmp_path / "binary.txt"}, "not a list of file names"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            opened("eth3d", data / "eth3d", **options)
    with pytest.raises(BenchmarkError, match=r"no eth3d_filename_list\.txt in it, nor beside it"):
        opened("eth3d", tmp_path / "bare")


def test_a_list_that_does_not_match_the_data_is_described_in_full(tmp_path, data):
    good = (data / "diode" / LIST_NAMES["diode"]).read_text().splitlines()
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join([*good, good[0], "a.png b.npy", *(f"{n}.png {n}.npy {n}_mask.npy" for n in range(5))]))
    benchmark = opened("diode", data / "diode.tar", list_file=listing)
    columns, repeated, missing = benchmark.check()
    assert "'a.png b.npy' has 2 columns, expected 3: rgb, depth, mask" in columns
    assert f"1 pictures are listed more than once: {benchmark.names[0]}" in repeated
    assert "17 of the 26 files" in missing
    assert "a.png, b.npy, 0.png, ..." in missing
    with pytest.raises(BenchmarkError, match="has 2 columns"):
        benchmark.read(3)


# --- files ------------------------------------------------------------------------------------------------------------


def test_data_that_are_no_benchmark_are_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(BenchmarkError, match="compressed with gzip"):
        opened("nyuv2", tmp_path / "x.tar")
    with pytest.raises(BenchmarkError, match="no such file or folder"):
        opened("nyuv2", tmp_path / "absent")


def test_a_cut_tar_is_named_where_files_are_missing(tmp_path):
    location = write_benchmark("eth3d", tmp_path, scenes=SEEDS, tar=True)
    listing = tmp_path / LIST_NAMES["eth3d"]
    listing.write_text("\n".join(" ".join(line) for line in opened("eth3d", location).lines))
    whole = opened("eth3d", location, list_file=listing)
    location.write_bytes(location.read_bytes()[:40_000])
    with pytest.raises(BenchmarkError, match="the tar was cut"):
        whole.read(1)
    cut = opened("eth3d", location)  # the list inside is lost with the end, the one beside it is found
    [problem] = cut.check()
    assert "cut_payload" in problem
    with pytest.raises(BenchmarkError, match=r"not in .*eth3d\.tar is damaged: cut_payload"):
        cut.read(1)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


_UNITS = np.ones((96, 128), np.float32)


@pytest.mark.parametrize(
    ("name", "column", "content", "message"),
    [
        ("scannet", 0, None, "not in"),
        ("scannet", 0, b"", "cannot be decoded"),
        ("scannet", 0, _png(np.zeros((96, 128), np.uint8)), "mode L, expected RGB"),
        ("scannet", 0, _png(np.zeros((96, 127, 3), np.uint8)), "96 x 128 px, expected 96 x 127 as its picture"),
        ("scannet", 1, _png(np.zeros((96, 128), np.uint8)), "mode L, expected grey with 16 bits"),
        ("scannet", 1, _png(np.zeros((96, 128), np.uint16))[:60], "cannot be decoded"),
        ("scannet", 1, _png(np.zeros((96, 128), np.uint16)), "no valid pixel, depth is 0 to 0 m"),
        ("scannet", 1, _png(np.ones((90, 128), np.uint16)), "90 x 128 px, expected 96 x 128 as its picture"),
        ("eth3d", 1, bytes(4 * 64 * 96 - 4), "24572 bytes, expected 24576"),
        ("eth3d", 1, np.full((64, 96), np.inf, "<f4").tobytes(), "no valid pixel"),
        ("diode", 1, _npy(_UNITS.astype(np.float64)), "float64 of shape .* expected float32"),
        ("diode", 1, _npy(_UNITS[None]), r"float32 of shape \(1, 96, 128\), expected float32"),
        ("diode", 1, _npy(np.array([{}])), "cannot be read as .npy"),
        ("diode", 1, b"\x93NUMPY", "cannot be read as .npy"),
        ("diode", 1, _npy(np.zeros((96, 128, 1), np.float32)), "not finite and > 0 in .* valid pixels"),
        ("diode", 2, _npy(255 * _UNITS), "values 255.0 to 255.0; expected a mask"),
        ("diode", 2, _npy(0 * _UNITS), "no valid pixel"),
        ("diode", 2, _npy(_UNITS[:90]), "90 x 128 px, expected 96 x 128"),
        ("nyuv2", 0, _png(np.zeros((480, 600, 3), np.uint8)), "480 x 640 px, expected 480 x 600"),
    ],
)
def test_a_file_that_is_missing_or_wrong_is_named_with_what_was_expected(tmp_path, name, column, content, message):
    location = write_benchmark(name, tmp_path, scenes=SEEDS[:1])
    benchmark = opened(name, location)
    file = location / benchmark.lines[0][column]
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(BenchmarkError, match=message) as caught:
        benchmark.read(0)
    assert any(part in str(caught.value) for part in benchmark.lines[0])


@pytest.mark.parametrize(
    ("name", "size_px", "message"),
    [("nyuv2", (240, 320), "expected 480 x 640: the region eigen"), ("kitti", (352, 1000), "at least 352 x 1216")],
)
def test_pictures_whose_region_is_not_defined_are_refused(tmp_path, name, size_px, message):
    location = write_benchmark(name, tmp_path, scenes=SEEDS[:1], height_px=size_px[0], width_px=size_px[1])
    with pytest.raises(BenchmarkError, match=message):
        opened(name, location).read(0)
