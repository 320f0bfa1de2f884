"""The predict command on real checkpoints of a few thousand random weights: every photograph has its map, or is named."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline.predict.command
from pipeline.predict.command import PredictConfig, main, make_results, predict
from pipeline.predict.files import find_photographs, unfinished
from pipeline.predict.progress import PredictProgress
from stages.demo_networks import build_depth_anything, save_depth_anything
from stages.labelling.teacher import TeacherSpec
from stages.models.find import find_model
from stages.prediction import png_text, read_depth_png
from stages.scenes import render_scene
from tests.conftest import picture_bytes, scene_bytes, write_tar
from tests.pipeline.forked import ended_by
from tests.stages.models.tiny_teachers import save_marigold


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    save_depth_anything(
        build_depth_anything(hidden=16, layers=4, heads=2, patch_px=8, fusion=8, image_px=48), folder, torch.float32, 48
    )
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs in a tree, two of them with one stem."""
    folder = tmp_path / "photos"
    (folder / "deep/er").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "deep/er/b.png")):
        (folder / name).write_bytes(scene_bytes(seed, side_px=56))
    (folder / "a.jpg").write_bytes(picture_bytes(Image.fromarray(render_scene(2, height_px=40, width_px=72).rgb), "jpg"))
    (folder / "notes.txt").write_text("no photograph")
    return folder


def _run(model: str, *arguments: object, output: Path) -> int:
    return main(["--model", model, *map(str, arguments), "--output", str(output), "--device", "cpu"])


def _files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_steps_and_ensemble_are_told_to_a_model_that_starts_from_noise_and_recorded_in_its_maps(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_marigold(tmp_path / "marigold")
    arguments = (str(tmp_path / "marigold"), photos / "a.png", "--network-px", "48")
    assert _run(*arguments, output=tmp_path / "stated") == 0
    assert _run(*arguments, "--steps", "2", "--ensemble", "3", output=tmp_path / "told") == 0
    texts = [png_text(tmp_path / folder / "a.png.png") for folder in ("stated", "told")]
    assert [(text["steps"], text["ensemble"]) for text in texts] == [("4", "1"), ("2", "3")]
    one, other = (read_depth_png(tmp_path / folder / "a.png.png")[0] for folder in ("stated", "told"))
    assert (one != other).any()
    assert _run(*arguments, "--steps", "2", output=tmp_path / "told") == 2  # another map is in its place
    assert _run(model, photos, "--steps", "2", output=tmp_path / "none") == 2
    assert "--steps and --ensemble are for models that start from noise" in capsys.readouterr().err


def test_every_photograph_has_its_results_in_its_place_and_they_are_the_models(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    single = tmp_path / "single.webp"
    single.write_bytes(scene_bytes(3))  # a PNG, whatever its name says
    out = tmp_path / "new/out"
    assert _run(model, photos, single, "--npy", output=out) == 0
    names = {"a.png", "a.jpg", "deep/er/b.png", "single.webp"}
    assert set(_files(out)) == {name + suffix for name in names for suffix in (".png", ".npy", ".color.jpg")}
    teacher = find_model(model).load("cpu")
    for name in names:
        picture = _pixels(single if name == single.name else photos / name)
        exact = np.load(out / f"{name}.npy")
        np.testing.assert_allclose(exact, teacher.predict(picture[None])[0], atol=1e-3 * np.ptp(exact))  # not in that batch
        values, space = read_depth_png(out / f"{name}.png")
        np.testing.assert_allclose(values, exact, atol=np.ptp(exact) / 65535)
        assert values.shape == picture.shape[:2] == _pixels(out / f"{name}.color.jpg").shape[:2]
        assert space == "disparity_affine_invariant"
    assert capsys.readouterr().out.startswith("4 of 4 photographs have their map")


def test_all_orientations_of_a_photograph_give_one_upright_map(model: str, tmp_path: Path):
    upright = Image.fromarray(render_scene(4, height_px=40, width_px=64).rgb)
    turn = Image.Transpose
    stored = {1: None, 2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM}
    stored |= {5: turn.TRANSPOSE, 6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    (tmp_path / "exif").mkdir()
    for orientation, how in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = upright if how is None else upright.transpose(how)
        (tmp_path / f"exif/{orientation}.png").write_bytes(picture_bytes(turned, exif=exif))
    assert _run(model, tmp_path / "exif", "--npy", output=tmp_path / "out") == 0
    maps = [np.load(tmp_path / f"out/{orientation}.png.npy") for orientation in stored]
    assert maps[0].shape == (40, 64)
    for values in maps[1:]:  # the same pixels, in other places of a batch
        np.testing.assert_allclose(values, maps[0], atol=1e-3 * np.ptp(maps[0]))


def test_bad_files_are_named_with_what_to_do_and_the_rest_are_made(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (photos / "empty.jpg").touch()
    (photos / "cut.png").write_bytes(scene_bytes(5)[:-200])
    (photos / "gone.jpg").symlink_to(photos / "nowhere")
    long_name = "n" * 248 + ".png"
    (photos / long_name).write_bytes(scene_bytes(6))
    out = tmp_path / "out"
    for made in (3, 0):
        assert _run(model, photos, output=out) == 1
        output = capsys.readouterr()
        assert f"3 of 6 photographs have their map in {out}, {made} made now" in output.out
        for name, kind, advice in (
            ("empty.jpg", "empty_file", "replace it"),
            ("cut.png", "damaged", "replace it"),
            ("gone.jpg", "unreadable", "make it readable"),
            (long_name, "name_too_long", "a shorter name"),
        ):
            (line,) = [line for line in output.err.splitlines() if line.startswith(f"failed: {photos}/{name}: {kind}: ")]
            assert advice in line
        assert "predict: 3/6 images" in output.err
        assert len(_files(out)) == 6


def test_a_finished_run_touches_nothing_and_only_what_is_missing_or_cut_is_made(model: str, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert _run(model, photos, output=out) == 0
    before = _files(out)
    assert _run(model, photos, "--batch-size", 1, "--threads", 1, output=out) == 0
    assert _run(model, photos, "--no-color", output=out) == 0
    assert _files(out) == before
    (out / "a.png.color.jpg").unlink()
    (out / "a.jpg.png").write_bytes((out / "a.jpg.png").read_bytes()[:-100])
    assert _run(model, photos, output=out) == 0
    changed = {name for name, when in _files(out).items() if when != before[name]}
    assert changed == {"a.png.png", "a.png.color.jpg", "a.jpg.png", "a.jpg.color.jpg"}
    assert _run(model, photos, "--npy", output=out) == 0
    assert len(_files(out)) == 9


def test_what_another_model_other_options_or_another_photograph_left_is_refused_by_name_and_overwritten_on_request(
    model: str, checkpoints: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, other = tmp_path / "out", str(checkpoints / "student")
    assert _run(model, photos, "--npy", output=out) == 0
    before = _files(out)
    assert _run(other, photos, output=out) == 2
    message = capsys.readouterr().err
    assert all(f"{out / name}.png: model_sha256 is " in message for name in ("a.png", "a.jpg", "deep/er/b.png"))
    assert _run(model, photos, "--network-px", 48, "--tile", 40, output=out) == 2
    message = capsys.readouterr().err
    assert "input_px is stated 48 x 48, now 48; tile_px is None, now 40; tile_overlap is None, now 0.25" in message
    (photos / "a.png").write_bytes(scene_bytes(9, side_px=56))
    assert _run(model, photos, output=out) == 2
    assert "a.png.png: made from another photograph" in capsys.readouterr().err
    (out / "a.png.png").write_bytes(scene_bytes(0))
    assert _run(model, photos, output=out) == 2
    assert "a.png.png: not made by this command" in capsys.readouterr().err
    assert _files(out).keys() == before.keys()
    assert _run(other, photos, "--overwrite", output=out) == 0
    assert all(when != before[name] for name, when in _files(out).items())  # the .npy too, though nobody asked
    values = find_model(other).load("cpu").predict(_pixels(photos / "a.png")[None])[0]
    np.testing.assert_allclose(np.load(out / "a.png.npy"), values, atol=1e-3 * np.ptp(values))


@pytest.mark.parametrize("options", [("--npy",), ("--no-color",), ("--npy", "--no-color"), ()])
def test_files_that_this_command_did_not_make_are_never_replaced_unless_it_is_asked_for(
    model: str, photos: Path, tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    out.mkdir()
    foreign = {"a.png.npy": b"my own array", "a.png.color.jpg": b"my own picture"}
    for name, content in foreign.items():
        (out / name).write_bytes(content)
    wanted = [name for name, option in zip(foreign, ("--npy" in options, "--no-color" not in options), strict=True) if option]
    assert _run(model, photos, *options, output=out) == (2 if wanted else 0)
    assert {name: (out / name).read_bytes() for name in foreign} == foreign
    message = capsys.readouterr().err
    for name in wanted:
        assert f"{out / name}: not made by this command; no map beside it records it" in message
    assert (out / "a.png.png").exists() != bool(wanted)
    assert _run(model, photos, "--npy", "--overwrite", output=out) == 0
    assert all((out / name).read_bytes() != content for name, content in foreign.items())


def test_a_file_beside_a_map_is_ours_only_while_it_is_the_one_that_the_map_records(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert _run(model, photos, "--npy", output=out) == 0
    (out / "a.png.npy").write_bytes(b"somebody else's")
    (out / "a.png.color.jpg").unlink()
    assert _run(model, photos, "--npy", output=out) == 1
    assert "in_the_way" in capsys.readouterr().err
    assert (out / "a.png.npy").read_bytes() == b"somebody else's"
    assert _run(model, photos, "--npy", "--overwrite", output=out) == 0
    np.testing.assert_allclose(np.load(out / "a.png.npy"), read_depth_png(out / "a.png.png")[0], atol=1e-3)
    (out / "empty.png").touch()
    (out / "a.jpg.png").write_bytes(b"")
    assert _run(model, photos, "--npy", output=out) == 2
    assert "a.jpg.png: not made by this command" in capsys.readouterr().err


def test_a_command_that_died_between_two_files_of_a_photograph_goes_on(model: str, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert _run(model, photos, "--npy", output=out) == 0
    before = _files(out)
    for name in ("a.png.npy", "a.png.color.jpg"):
        (out / name).unlink()
    assert _run(model, photos, "--npy", output=out) == 0
    assert _files(out).keys() == before.keys()


def test_a_photograph_is_shown_at_the_size_that_the_checkpoint_states_and_the_map_records_it(
    model: str, photos: Path, tmp_path: Path
):
    for name, options, recorded in (
        ("stated", (), "stated 48 x 48"),
        ("native", ("--network-px", "native"), "native"),
        ("given", ("--network-px", 96), "96"),
        ("tiled", ("--tile", 32), "stated 48 x 48"),
    ):
        assert _run(model, photos, *options, output=tmp_path / name) == 0
        assert png_text(tmp_path / name / "a.jpg.png")["input_px"] == recorded
    stated, native, given = (read_depth_png(tmp_path / name / "a.jpg.png")[0] for name in ("stated", "native", "given"))
    picture = _pixels(photos / "a.jpg")[None]
    np.testing.assert_allclose(stated, find_model(model).load("cpu").predict(picture)[0], atol=1e-3)
    assert np.abs(stated - native).max() > 1e-3 * np.ptp(native)
    assert np.abs(given - native).max() > 1e-3 * np.ptp(native)


def test_weights_that_are_replaced_before_they_are_loaded_make_no_map(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    copy = shutil.copytree(model, tmp_path / "copy")

    def unfinished_and_replace(*arguments: Any, **options: Any) -> Any:
        network = build_depth_anything(hidden=16, layers=4, heads=2, patch_px=8, fusion=8, image_px=48)
        save_depth_anything(network, copy, torch.float32, 48)
        return unfinished(*arguments, **options)

    monkeypatch.setattr(pipeline.predict.command, "unfinished", unfinished_and_replace)
    assert _run(str(copy), photos, output=tmp_path / "out") == 2
    assert "the files have changed while this command ran" in capsys.readouterr().err
    assert not _files(tmp_path / "out")


def test_commands_that_cannot_be_meant_are_refused_before_anything_is_written(
    model: str, checkpoints: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "twin").mkdir()
    shutil.copy(photos / "a.png", tmp_path / "twin/a.png")
    (tmp_path / "bare").mkdir()
    out = tmp_path / "out"
    for inputs, output, words in (
        ((photos, tmp_path / "twin"), out, f"{out}/a.png.png: {photos}/a.png and {tmp_path}/twin/a.png"),
        ((photos,), photos / "maps", "results need a folder of their own"),
        ((photos / "a.png",), photos, "results need a folder of their own"),
        ((tmp_path / "bare",), out, "no photograph found; looked for .apng, "),
        ((photos, tmp_path / "missing"), out, f"nothing there:\n  - {tmp_path}/missing"),
    ):
        assert _run(model, *inputs, output=output) == 2
        assert words in capsys.readouterr().err
    assert _run(str(tmp_path / "bare"), photos, output=out) == 2
    assert "bare cannot be loaded" in capsys.readouterr().err
    for argv, words in (
        ((), "IN: none given"),
        ((photos, "--tile", 3), "--tile is 3, expected at least 32"),
        ((photos, "--tile-overlap", 1), "--tile-overlap is 1.0"),
        ((photos, "--tile-overlap", 0), "from 0.05, below which seams show"),
    ):
        with pytest.raises(SystemExit) as stopped:
            _run(model, *argv, output=out)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_photograph_given_twice_is_made_once(model: str, photos: Path, tmp_path: Path):
    progress = predict(
        PredictConfig(inputs=(photos, photos / "a.png", photos / "a.png"), model=model, output=tmp_path / "out", device="cpu")
    )
    assert (progress.total, progress.made, progress.failed) == (3, 3, 0)


def test_a_model_that_does_not_say_what_its_numbers_mean_is_asked_for_it(
    checkpoints: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, assistant = tmp_path / "out", str(shutil.copytree(checkpoints / "assistant", tmp_path / "assistant"))
    (tmp_path / "assistant/training.json").unlink()
    assert _run(assistant, photos, output=out) == 2
    assert "give --depth-space" in capsys.readouterr().err
    arguments = (photos, "--depth-space", "depth_affine_invariant", "--tile", 48, "--dtype", "bfloat16")
    assert _run(assistant, *arguments, output=out) == 0
    text = png_text(out / "a.jpg.png")
    assert {key: text[key] for key in ("depth_space", "dtype", "input_px", "tile_px", "tile_overlap")} == {
        "depth_space": "depth_affine_invariant",
        "dtype": "bfloat16",
        "input_px": "48",
        "tile_px": "48",
        "tile_overlap": "0.25",
    }
    assert read_depth_png(out / "a.jpg.png")[0].shape == (40, 72)


class _SmallMemory:
    """A teacher whose device holds so many pixels and no more; remembers how many pictures it got at a time."""

    def __init__(self, holds_px: int) -> None:
        self.spec = TeacherSpec(loader="transformers", checkpoint="none", depth_space="depth_metric")
        self.holds_px, self.batches = holds_px, list[int]()

    def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
        self.batches.append(len(images))
        if images[..., 0].size > self.holds_px:
            raise torch.OutOfMemoryError("out of memory")
        return images.mean(-1, dtype=np.float32)


def test_photographs_of_one_size_go_together_and_one_that_memory_cannot_hold_is_reported(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "sizes"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_bytes(scene_bytes(index, side_px=20 if index % 2 else 24))
    (folder / "large.png").write_bytes(scene_bytes(7, side_px=60))
    config = PredictConfig(inputs=(folder,), model="none", output=tmp_path / "out", batch_size=3)
    photographs, _ = find_photographs(config.inputs, config.output)
    teacher = _SmallMemory(holds_px=3 * 24 * 24)
    with PredictProgress(total=7, done=0) as progress:
        make_results(teacher, photographs, config=config, recipe={}, progress=progress)
    assert teacher.batches == [3, 3, 1]
    assert (progress.made, progress.failed) == (6, 1)
    assert f"failed: {folder}/large.png: out_of_memory: out of memory; give --network-px" in capsys.readouterr().err
    np.testing.assert_allclose(
        read_depth_png(tmp_path / "out/4.png.png")[0], _pixels(folder / "4.png").mean(-1), atol=255 / 65535
    )


def test_large_photographs_are_predicted_alone_and_small_ones_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline.predict.command, "_MOST_PX", 2 * 40 * 40)
    folder = tmp_path / "sizes"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_bytes(scene_bytes(index, side_px=40 if index < 3 else 20))
    (folder / "broken.png").write_bytes(b"no picture")
    config = PredictConfig(inputs=(folder,), model="none", output=tmp_path / "out", batch_size=3)
    photographs, _ = find_photographs(config.inputs, config.output)
    teacher = _SmallMemory(holds_px=10**6)
    with PredictProgress(total=7, done=0) as progress:
        make_results(teacher, photographs, config=config, recipe={}, progress=progress)
    assert teacher.batches == [1, 1, 1, 3]
    assert (progress.made, progress.failed) == (6, 1)


class _OneTooMany(_SmallMemory):
    """A teacher whose network fails on a white picture, and so on every batch with one."""

    def predict(self, images: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
        if (images == 255).all((1, 2, 3)).any():
            raise RuntimeError("no map of this")
        return super().predict(images, seeds)


def test_a_photograph_that_the_network_cannot_take_does_not_cost_those_it_was_predicted_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(scene_bytes(index, side_px=24))
    (folder / "1.png").write_bytes(picture_bytes(Image.new("RGB", (24, 24), "white")))
    config = PredictConfig(inputs=(folder,), model="none", output=tmp_path / "out", batch_size=3, color=False)
    photographs, _ = find_photographs(config.inputs, config.output)
    with PredictProgress(total=3, done=0) as progress:
        make_results(_OneTooMany(holds_px=9999), photographs, config=config, recipe={}, progress=progress)
    assert (progress.made, progress.failed) == (2, 1)
    assert set(_files(tmp_path / "out")) == {"0.png.png", "2.png.png"}
    assert f"failed: {folder}/1.png: cannot_predict: no map of this" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--model", model, str(photos), "--output", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert "device is cuda, but torch sees no CUDA device here; use cpu or auto" in capsys.readouterr().err


def test_an_interrupted_command_says_so_leaves_whole_files_and_resumes(model: str, tmp_path: Path):
    folder, out = tmp_path / "many", tmp_path / "out"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index}.png").write_bytes(scene_bytes(index % 2, side_px=40))
    arguments = ["--model", model, str(folder), "--output", str(out), "--no-color", "--batch-size", "1", "--threads", "1"]
    printed = tmp_path / "printed"
    assert ended_by(signal.SIGINT, (pipeline.predict.command, "write_results"), main, arguments, printed) == 130
    assert "What is finished" in printed.read_text()
    assert "the same command resumes" in printed.read_text()
    made = _files(out)
    assert 3 <= len(made) < 20
    assert all(name.endswith(".png") and not name.startswith(".") for name in made)
    assert main(arguments) == 0
    assert len(_files(out)) == 20
    assert made.items() <= _files(out).items()


def test_tars_globs_and_braces_are_predicted_and_a_name_that_leads_elsewhere_is_not(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, second = (scene_bytes(seed, side_px=56) for seed in (0, 1))
    write_tar(tmp_path / "shards-0.tar", {"deep/a.png": first, "deep/a.json": b"{}", "../../evil.png": first})
    write_tar(tmp_path / "shards-1.tar", {"a.png": second})
    out = tmp_path / "out"
    assert _run(model, tmp_path / "shards-{0..1}.tar", photos / "*.jpg", "--no-color", output=out) == 1
    assert "shards-0.tar/../../evil: unsafe_name: its name in the tar leads out of a folder" in capsys.readouterr().err
    maps = _files(out)
    assert sorted(maps) == ["a.jpg.png", "shards-0/deep/a.png.png", "shards-1/a.png.png"]
    assert not list(tmp_path.parent.glob("evil*"))
    assert _run(model, photos / "a.png", "--no-color", output=tmp_path / "alone") == 0
    alone, of_the_tar = (read_depth_png(path)[0] for path in (tmp_path / "alone/a.png.png", out / "shards-0/deep/a.png.png"))
    np.testing.assert_array_equal(alone, of_the_tar)
    (tmp_path / "shards-0.tar").write_bytes((tmp_path / "shards-1.tar").read_bytes())
    assert _run(model, tmp_path / "shards-1.tar", "--no-color", output=out) == 0  # nothing is left to do
    assert _files(out) == maps
    for nothing in ("*.tiff", "a{b.png"):
        assert _run(model, photos / nothing, output=out) == 2
        assert "nothing there:" in capsys.readouterr().err
