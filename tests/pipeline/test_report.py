"""The report is one self-contained page that says exactly what it was given."""

import base64
import dataclasses
import io
from collections.abc import Mapping
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.report import Example, LossCurve, ModelScore, ReportContent, write_report
from stages.scenes import render_scene

HOSTILE = """'"></title></style><script>alert("1")</script><img src=x onerror="y"> &amp; {{ 7 * 7 }} {% raw %} .jpg"""


class Page(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.bold = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
        if data.strip() and self.tags and "best" in (self.tags[-1][1].get("class") or "").split():
            self.bold.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    def pictures(self):
        encoded = [attributes["src"].split(",", 1)[1] for attributes in self.all("img")]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in encoded]


@pytest.fixture(scope="module")
def content():
    scene = render_scene(1_000_000, height_px=48, width_px=48)  # has sky
    disparity = np.where(np.isfinite(scene.depth_m), 1 / scene.depth_m, 0)
    maps = {"Perfect <map>": (7 * disparity + 2).astype(np.float32), "Dead": np.zeros((24, 24), np.float32)}
    steps = list(range(60))
    return ReportContent(
        title="Depth & distillation",
        summary=["First paragraph.", "Second paragraph."],
        facts={"pictures labelled": "192"},
        scores=[
            ModelScore(name="teacher", abs_rel=0.1234, delta1=0.9012, note="the primary"),
            ModelScore(name="old", abs_rel=0.2, delta1=0.7),
            ModelScore(name="new", abs_rel=0.15, delta1=0.9345),
        ],
        before="old",
        after="new",
        protocol="2 rendered scenes",
        examples=[
            Example(key=HOSTILE, rgb=scene.rgb, depth_m=scene.depth_m, maps=maps),
            Example(key="unknown.jpg", rgb=scene.rgb, depth_m=None, maps={"Perfect <map>": maps["Perfect <map>"]}),
        ],
        losses=[LossCurve(name=name, steps=steps, values=[1 / (1 + s) for s in steps]) for name in ("total", "local-global")],
        abs_rel_before=[0.3, 0.1],
        abs_rel_after=[0.1, 0.2],
        timings_s={"label": 61.2, "train": 3.0},
        provenance={"Configuration": {"key": "<value>"}},
    )


def page_of(content, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(path, content)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_but_itself(content, tmp_path):
    write_report(tmp_path / "report.html", content)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"} == set()
    addresses = [value for _, a in page.tags for name, value in a.items() if name in ("src", "href", "xlink:href", "srcset")]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert html.count("url(#") == html.count("url(")


def test_the_same_content_gives_the_same_bytes(content, tmp_path):
    write_report(tmp_path / "a.html", content)
    write_report(tmp_path / "b.html", content)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_every_number_and_text_is_on_the_page_and_nothing_is_read_as_markup(content, tmp_path):
    page = page_of(content, tmp_path)
    expected = ["Depth & distillation", "Second paragraph.", "192", HOSTILE, "Perfect <map>", "<value>", "2 rendered scenes."]
    expected += [
        "0.1234",
        "0.9012",
        "0.2000",
        "0.1500",
        "0.9345",
        "the primary",
        "61 s",
        "3 s",
        "better on 1 of 2 scenes",
    ]
    assert [text for text in expected if text not in page.text] == []


def with_hostile_texts(value, seen):
    """The value with every text in it that says something made hostile, names and keys too; they are added to `seen`."""
    if isinstance(value, str):
        seen |= {value + HOSTILE} if value else set()
        return value and value + HOSTILE
    if dataclasses.is_dataclass(value):
        changed = {field.name: with_hostile_texts(getattr(value, field.name), seen) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    if isinstance(value, Mapping):
        return {with_hostile_texts(key, seen): with_hostile_texts(item, seen) for key, item in value.items()}
    return [with_hostile_texts(item, seen) for item in value] if isinstance(value, list) else value


def test_no_text_of_any_field_is_read_as_markup(content, tmp_path):
    plain, texts = page_of(content, tmp_path), set()
    hostile = page_of(with_hostile_texts(content, texts), tmp_path)
    assert len(texts) == 21  # all that differ
    assert [text for text in texts if text not in hostile.text] == []
    assert [(tag, sorted(attributes)) for tag, attributes in hostile.tags] == [(tag, sorted(a)) for tag, a in plain.tags]
    captions = {caption + HOSTILE for caption in ("Perfect <map>", "Dead")}
    assert {attributes["alt"] for attributes in hostile.all("img")} == {"Photograph", "True disparity"} | captions


def test_the_tables_best_values_are_bold_and_the_change_is_told(content, tmp_path):
    page = page_of(content, tmp_path)
    assert page.bold[:2] == ["0.1234", "0.9345"]
    assert "−0.050 (−25.0%)" in page.text
    assert {"change better"} == {a["class"] for a in page.all("span") if "change" in a.get("class", "")}
    worse = page_of(dataclasses.replace(content, before="new", after="old"), tmp_path)
    assert {"change worse"} == {a["class"] for a in worse.all("span") if "change" in a.get("class", "")}


def test_each_example_shows_its_photograph_the_truth_where_known_and_every_map(content, tmp_path):
    page = page_of(content, tmp_path)
    alts = [a["alt"] for a in page.all("img")]
    assert alts == ["Photograph", "True disparity", "Perfect <map>", "Dead", "Photograph", "Perfect <map>"]
    photograph, truth, perfect, dead, *_ = (picture.astype(int) for picture in page.pictures())
    assert np.abs(photograph - content.examples[0].rgb.astype(int)).mean() < 4  # JPEG
    ground = np.isfinite(content.examples[0].depth_m)
    assert np.abs(truth - perfect)[ground].mean() < 4  # the same colours once aligned
    assert np.abs(truth[~ground] - 128).mean() < 8  # the sky is grey
    assert np.ptp(dead, axis=(0, 1)).max() < 8  # of one colour


def test_maps_carry_their_abs_rel_and_a_dead_map_says_that_it_has_none(content, tmp_path):
    page = page_of(content, tmp_path)
    assert page.text.count("no score") == 1
    assert page.bold[2:] == ["0.000"]


def test_curves_are_inline_drawings_in_the_pages_colours_with_no_id_twice(content, tmp_path):
    page = page_of(content, tmp_path)
    assert len(page.all("svg")) == 4  # two losses, the scatter, the shares
    styles = " ".join(a.get("style") or "" for _, a in page.tags)
    assert "var(--accent)" in styles
    assert "#0101" not in styles
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_report_without_examples_losses_or_scenes_leaves_those_sections_out(content, tmp_path):
    bare = dataclasses.replace(content, examples=[], losses=[], abs_rel_before=[], abs_rel_after=[], timings_s={}, facts={})
    page = page_of(bare, tmp_path)
    assert page.all("img") == page.all("svg") == []
    assert "0.1500" in page.text


def test_a_row_that_the_table_lacks_is_named(content, tmp_path):
    with pytest.raises(ValueError, match=r"no row 'ours' .* teacher, old, new"):
        write_report(tmp_path / "report.html", dataclasses.replace(content, after="ours"))
