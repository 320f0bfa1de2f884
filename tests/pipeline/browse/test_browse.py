"""A gallery without a browser: what is in it, that its values are the labels' own, and that nothing in a run becomes markup."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import manifests
from manifests.listing import list_images
from pipeline.browse.command import main
from stages.label_store import open_run
from tests.pipeline.browse.conftest import HOSTILE

_IMAGES = 9


class _Elements(HTMLParser):
    """The elements of a page, with their attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _documents(folder: Path) -> dict[str, dict[str, Any]]:
    """What the page's script reads, by key and source."""
    page = (folder / "index.html").read_text()
    (text,) = re.findall(r'<script type="application/json" id="documents">(.*?)</script>', page, flags=re.S)
    return {f"{entry['source']}/{entry['key']}": entry for entry in json.loads(text).values()}


def test_every_image_is_shown_with_its_pictures_and_all_that_the_page_names_is_there(gallery: Path):
    page = _Elements((gallery / "index.html").read_text())
    cards = [attributes for tag, attributes in page.found if tag == "li"]
    assert len(cards) == len(_documents(gallery)) == _IMAGES
    named = [value for _, attributes in page.found for name in ("src", "href") if (value := attributes.get(name))]
    files = [value for value in named if value not in ("data:,",) and not value.startswith("#")]
    assert len(files) > 3 * (_IMAGES - 2)
    assert [name for name in files if not (gallery / name).is_file()] == []
    for entry in _documents(gallery).values():
        for teacher in entry["teachers"]:
            for picture in ("label", "thumb", "close_ups"):
                with Image.open(gallery / "images" / entry["name"] / teacher[picture]) as image:
                    assert max(image.size) == 48


def test_no_network_is_asked_for_anything(gallery: Path):
    for path in gallery.rglob("*"):
        if path.suffix in (".html", ".js", ".css"):
            assert not re.search(rb"https?:|['\"]//|@import|fetch\(|XMLHttp", path.read_bytes()), path
    assert "default-src 'none'" in (gallery / "index.html").read_text()


def test_what_a_key_holds_is_text_everywhere(gallery: Path):
    page = _Elements((gallery / "index.html").read_text())
    assert all(not name.startswith("on") for _, attributes in page.found for name in attributes)
    scripts = [attributes for tag, attributes in page.found if tag == "script"]
    assert [script.get("src") or script.get("type") for script in scripts] == ["gallery.js", "application/json"]
    shown = HOSTILE.replace("/", "|").replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    assert shown.partition(".")[0] in "".join(page.texts)
    assert "\u202e" not in (gallery / "index.html").read_text()
    names = [path.name for path in (gallery / "images").iterdir()]
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in names)


def test_the_values_are_those_of_the_labels(run: Path, gallery: Path):
    opened, entry = open_run(run), _documents(gallery)["two/z"]
    text = (gallery / "images" / entry["name"] / "labels.js").read_text()
    told = json.loads(text.removeprefix("gallery.labels(").removesuffix(");\n"))
    assert [teacher["name"] for teacher in entry["teachers"]] == list(opened) == ["assistant", "primary"]
    for teacher, stored in zip(entry["teachers"], told["labels"], strict=True):
        label = opened[teacher["name"]]["two", "z"].context
        planes = np.frombuffer(zlib.decompress(base64.b64decode(stored["codes"])), np.uint8).astype(np.uint16)
        steps = (planes[: planes.size // 2] + 256 * planes[planes.size // 2 :]).reshape(stored["height"], stored["width"])
        codes = np.cumsum(steps, 1, dtype=np.uint16)
        np.testing.assert_array_equal(codes > 0, label.valid)
        np.testing.assert_allclose(
            (stored["offset"] + stored["scale"] * (codes - 1.0))[codes > 0], label.values[label.valid], rtol=1e-6
        )
        assert (teacher["low"], teacher["high"]) == pytest.approx(
            np.quantile(label.values[label.valid], (0.02, 0.98)), rel=1e-5
        )


def test_what_was_rejected_is_shown_with_the_reason_and_with_the_picture_where_it_opens(gallery: Path):
    cut, broken = (_documents(gallery)[f"one/{key}"] for key in ("cut", "broken"))
    assert {entry["status"] for entry in (cut, broken)} == {"rejected"}
    assert all(entry["columns"][0][2] for entry in (cut, broken))
    with Image.open(gallery / "images" / cut["name"] / cut["photo"]) as picture:
        assert picture.size == (160, 120)
    assert (broken["photo"], broken["teachers"], broken["trouble"]) == (None, [], "")


def test_the_agreement_is_that_of_the_table(run: Path, gallery: Path):
    known = {f"{image.source}/{image.key}": image.abs_rel for image in list_images(run, columns=["primary"]) if image.abs_rel}
    shown = {name: entry["agreement"]["abs_rel"] for name, entry in _documents(gallery).items() if entry["teachers"]}
    assert len(shown) == 7
    for name in ("two/z", "two/a", "one/b"):
        assert shown[name] == pytest.approx(known[name], rel=1e-5)


def test_a_sample_says_what_it_is_of_and_replaces_the_gallery_before(run: Path, gallery: Path, tmp_path: Path):
    folder = Path(shutil.copytree(gallery, tmp_path / "gallery"))
    (folder / "images" / "mine").mkdir()
    assert main([str(run), "-o", str(folder), "--images", "1", "--worst", "2", "--rejected", "1"]) == 0
    page, shown = (folder / "index.html").read_text(), _documents(folder)
    assert "1 of 9 images, drawn at random (seed 0); the 2 in which two teachers are farthest apart; 1 rejected." in page
    far_apart = [f"{image.source}/{image.key}" for image in manifests.summarize(run).agreement[0].farthest_apart[:2]]
    assert {name.partition(".")[0] for name in far_apart} <= {name.partition(".")[0] for name in shown}
    assert sum(entry["status"] == "rejected" for entry in shown.values()) >= 1
    assert {path.name for path in (folder / "images").iterdir()} == {entry["name"] for entry in shown.values()} | {"mine"}


def test_a_folder_with_something_else_in_it_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "thesis.tex").write_text("")
    assert main([str(run), "-o", str(tmp_path)]) == 2
    assert "found 'thesis.tex' in it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_photographs_that_are_gone_and_a_damaged_part_are_said_and_the_rest_is_shown(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    zarr = next((copy / "columns/primary").glob("two.*.zarr"))
    (zarr / "context_scale/zarr.json").write_text("{}")
    catalogue = manifests.catalogue_path(copy, "one")
    told = json.loads(catalogue.read_text())
    del told["record_sha256"]
    catalogue.write_text(json.dumps(told | {"location": "/no/such/place.tar"}))
    assert main([str(copy), "-o", str(tmp_path / "gallery")]) == 0
    shown = _documents(tmp_path / "gallery")
    assert shown["one/cut"]["trouble"] == "its file cannot be read: it is not where it was labelled"
    assert "zarr.json" in shown["two/z"]["trouble"]
    assert [teacher["name"] for teacher in shown["two/z"]["teachers"]] == ["assistant"]
    assert len(shown["one/b"]["teachers"]) == 2
    assert "4 images cannot be shown in full" in capsys.readouterr().err


def test_without_originals_nothing_but_the_run_is_read(run: Path, tmp_path: Path):
    assert main([str(run), "-o", str(tmp_path / "gallery"), "--no-originals"]) == 0
    assert _documents(tmp_path / "gallery")["one/cut"]["photo"] is None
