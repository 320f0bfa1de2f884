"""A photograph's labels as one picture: what is in it, where it goes, and that nothing in a run makes it go elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manifests
from pipeline.label.command import label
from pipeline.show import command
from pipeline.show.command import main, safe_name
from pipeline.show.picture import Opinion, label_picture
from pipeline.show.terminal import drawn, protocol_of
from stages.coloring import INVALID_GREY, colorize_disparity, robust_range
from stages.depth_space import DepthSpace
from stages.label_store import ImageLabels, Label, PatchLabel, open_run
from stages.views import Box
from tests.conftest import label_config, scene_bytes, write_tar

_TOP, _SIDE, _TITLE, _GAP = 10 + 23, 360, 23, 10
"""Where the first row begins under one line of text, a panel's side for a map of 40 px, its title, and what is between."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Path:
    """Three photographs, one of a hostile key, and a broken one; two sources have one key."""
    folder = tmp_path_factory.mktemp("show")
    hostile = "../\x1b]0;x\x07\x1b[31m\u202e evil\n"
    first = {"a.png": scene_bytes(1), f"{hostile}.png": scene_bytes(2), "broken.jpg": b"\xff\xd8\xff\xe0 not a picture"}
    tars = [write_tar(folder / "one.tar", first), write_tar(folder / "two.tar", {"a.png": scene_bytes(3)})]
    label(label_config(folder / "run", tuple(map(str, tars)), checkpoints))
    return folder / "run"


def _labels(
    values: np.ndarray, space: DepthSpace = "disparity_affine_invariant", teacher: str = "one", *, holes: bool = False
) -> Opinion:
    """A whole view with values; four close-ups of the same ones in another scale. Holes: without a label in two corners."""
    valid, side = np.ones(values.shape, bool), 30
    valid[:10, :10] = not holes
    boxes = [Box(top, left, side, side) for top in (0, 10) for left in (0, 10)]
    patches = []
    for box in boxes:
        window = np.s_[box.top : box.top + side, box.left : box.left + side]
        known = np.ones((side, side), bool)
        known[-5:, -5:] = not (holes and (box.top, box.left) == (10, 10))
        patches.append(PatchLabel(values=(2 * values[window] + 1).astype(np.float32), valid=known, box=box))
    context = Label(values=values.astype(np.float32), valid=valid)
    return Opinion(teacher, space, ImageLabels(context=context, patches=tuple(patches)))


def _panel(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """A panel's map in the size that it had, and nothing of its title."""
    top = _TOP + row * (_TITLE + _SIDE + _GAP) + _TITLE
    left = 10 + column * (_SIDE + _GAP)
    return picture[top : top + _SIDE : 9, left : left + _SIDE : 9]


def _ramp() -> np.ndarray:
    return np.add.outer(np.arange(40), 2 * np.arange(40)) / 40 + 1


def test_every_panel_is_in_its_place_and_in_the_colours_of_the_whole_view():
    seen = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    ramp = _ramp()
    picture = label_picture(seen, [_labels(ramp, holes=True), _labels(3 - 5 * ramp[::-1], teacher="two")], ["a key"])
    np.testing.assert_array_equal(_panel(picture, 0, 0), seen)
    valid = np.ones((40, 40), bool)
    valid[:10, :10] = False
    expected = colorize_disparity(ramp.astype(np.float32), valid)
    np.testing.assert_array_equal(_panel(picture, 0, 1), expected)
    assert (_panel(picture, 0, 1)[:10, :10] == INVALID_GREY).all()
    stitched = colorize_disparity(ramp, None, *robust_range(ramp[valid]))
    assert np.abs(_panel(picture, 0, 2)[:35, :35].astype(int) - stitched[:35, :35]).max() < 12
    invalid = _panel(picture, 0, 3)
    assert (invalid[:10, :10] == (255, 0, 255)).all()
    assert (invalid[-5:, -5:] == (255, 200, 0)).all()
    assert np.ptp(invalid[15:30, 15:30].astype(int), axis=-1).max() == 0  # pale and grey, so that these are seen
    for colour in ((255, 0, 255), (255, 200, 0), (INVALID_GREY,) * 3):
        assert (picture[-60:] == colour).all(-1).any(), "the legend shows what invalid looks like"


@pytest.mark.parametrize("space", ["disparity_affine_invariant", "disparity_metric", "depth_metric"])
def test_teachers_that_differ_by_scale_and_shift_are_alike_and_what_one_sees_nearer_is_red(
    space: DepthSpace,
):
    ramp, near = _ramp(), _ramp()
    near[10:20, 10:20] += 0.5
    values = 1 / (0.5 * near + 2) if space == "depth_metric" else 7 * near - 3
    same = 1 / (0.5 * ramp + 2) if space == "depth_metric" else 7 * ramp - 3
    seen = np.zeros((40, 40, 3), np.uint8)
    alike = _panel(label_picture(seen, [_labels(ramp), _labels(same, space, "two")], ["a"]), 1, 0)
    assert (alike.astype(int) > 235).all()
    apart = _panel(label_picture(seen, [_labels(ramp), _labels(values, space, "two")], ["a"]), 1, 0).astype(int)
    red = apart[..., 0] - apart[..., 2]
    assert red[12:18, 12:18].min() > 60
    assert red[25:, 25:].max() < 20


def test_labels_of_another_size_than_the_picture_are_refused():
    with pytest.raises(ValueError, match=r"found a label of \(40, 40\) px by one, expected the picture's \(40, 41\)"):
        label_picture(np.zeros((40, 41, 3), np.uint8), [_labels(_ramp())], ["a"])


@pytest.mark.parametrize("shape", [(3, 560), (560, 3), (1500, 1400)])
def test_stripes_and_large_contexts_make_a_picture_of_a_size_that_can_be_looked_at(shape: tuple[int, int]):
    context = Label(values=np.random.default_rng(0).random(shape, np.float32), valid=np.ones(shape, bool))
    opinion = Opinion("one", "disparity_affine_invariant", ImageLabels(context=context, patches=()))
    picture = label_picture(np.zeros((*shape, 3), np.uint8), [opinion], ["a"])
    assert picture.shape[0] < 1300
    assert 4 * 360 < picture.shape[1] < 4 * 1140


def test_the_command_writes_the_picture_of_the_photograph_and_says_where(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "new" / "a.png"
    assert main([str(run), "a", "--source", "two", "--columns", "primary", "assistant", "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: a; primary; assistant\n"
    picture = np.asarray(Image.open(output))
    opened = open_run(run)
    expected = label_picture(
        opened.pictures["two", "a"].picture,
        [Opinion(name, "disparity_affine_invariant", opened[name]["two", "a"].first) for name in ("primary", "assistant")],
        ["a", "source two: 88 x 88 px at (0, 0) of 88 x 88, labelled at 48 x 48"],
    )
    np.testing.assert_array_equal(picture, expected)


def test_a_hostile_key_neither_reaches_the_terminal_nor_leads_out_of_the_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (hostile,) = [image.key for image in open_run(run)["primary"] if "evil" in image.key]
    assert main([str(run), hostile]) == 0
    (written,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written.parent == tmp_path / "here"
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*\.png", written.name)
    assert main([str(run), "\x1b[31m\u202e../nothing"]) == 2
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert all(line.isprintable() for line in text.splitlines())
    assert "evil" in said.out
    assert r"found no image of the key '\x1b[31m\u202e../nothing'" in said.err


@pytest.mark.parametrize("key", ["", "..", "/etc/passwd", "-o", "\x00", "\ud800", "a" * 5000, "東京", "con\n\x1b[2J.png"])
def test_the_name_of_a_file_is_safe_whatever_the_key_is(key: str):
    name = safe_name("source", key, 0)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,100}\.png", name)
    assert name != safe_name("other", key, 0) != safe_name("source", key, 1)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["broken"], 2, "'broken' of the source 'one' has nothing in 'images': rejected: damaged: "),
        (["a"], 2, "2 sources have the key 'a'; say which one: ('one', 'a') or ('two', 'a')\nName it with --source."),
        (["a", "--source", "two", "--columns", "third"], 2, "no teacher's column 'third' (it has: assistant, primary)"),
        (["a", "--source", "two", "--context", "1"], 2, "--context is 1, expected one from 0 to 0"),
        (["a", "-o", "photo.jpg"], 2, "-o photo.jpg: expected a name that ends in .png"),
    ],
)
def test_what_cannot_be_shown_says_why(
    run: Path, arguments: list[str], status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([str(run), *arguments]) == status
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_run_a_missing_teacher_and_a_damaged_part_are_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path), "a"]) == 2
    assert "found no run.json" in capsys.readouterr().err
    copy = tmp_path / "copy"
    for path in (path for path in run.rglob("*") if path.is_file()):
        (copy / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(run)).write_bytes(path.read_bytes())
    manifests.manifest_path(copy, "assistant", "two.00000").unlink()
    assert main([str(copy), "a", "--source", "two"]) == 0
    assert "; primary; " in (said := capsys.readouterr().out)
    assert "has nothing in 'assistant': pending: its part two.00000 is not labelled yet" in said
    next(copy.glob("columns/primary/two.*.zarr/context/c/0/0")).unlink()
    assert main([str(copy), "a", "--source", "two"]) == 1
    assert re.search(r"two\.00000\.\w+\.zarr/context/c/0/0: No such file.*\n.*manifests repair", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM_PROGRAM": "Apple_Terminal"}, None),
        ({}, None),
    ],
)
def test_only_terminals_that_say_so_are_sent_a_picture(environment: Mapping[str, str], protocol: str | None):
    assert protocol_of(environment) == protocol


def test_what_is_sent_is_the_file_in_the_protocols_own_pieces():
    png = np.random.default_rng(0).bytes(10_000)
    kitty = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", drawn(png, "kitty", 80))
    assert base64.b64decode("".join(piece for _, piece in kitty)) == png
    assert [keys for keys, _ in kitty] == ["a=T,f=100,q=2,c=80,m=1", "m=1", "m=1", "m=0"]
    assert all(len(piece) <= 4096 for _, piece in kitty)
    (iterm,) = re.findall(r"\x1b\]1337;File=inline=1;size=10000:(.*)\x07", drawn(png, "iterm2", 80))
    assert base64.b64decode(iterm) == png


def test_a_terminal_that_draws_gets_the_picture_and_no_file_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "protocol_of", lambda environment: "iterm2")
    leader, follower = os.openpty()
    sent = io.StringIO()
    sent.isatty, sent.fileno = (lambda: True), (lambda: follower)
    monkeypatch.setattr(sys, "stdout", sent)
    assert main([str(run), "a", "--source", "one"]) == 0
    os.close(leader)
    os.close(follower)
    (picture,) = re.findall(r"\x1b\]1337;File=inline=1;size=\d+:(.*)\x07\na; assistant; primary\n$", sent.getvalue())
    assert Image.open(io.BytesIO(base64.b64decode(picture))).format == "PNG"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_label_of_one_context_is_told(run: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    column = open_run(run)["assistant"]
    whole = type(column).numbered

    def without(self, number: int):
        labels = whole(self, number)
        return dataclasses.replace(labels, contexts=(None,)) if self.name == "assistant" else labels

    monkeypatch.setattr(type(column), "numbered", without)
    assert main([str(run), "a", "--source", "one"]) == 0
    assert "; primary; assistant has no label of context 0: it was not wanted" in capsys.readouterr().out
