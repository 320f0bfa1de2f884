"""The page is self-contained and says exactly what it was given."""

import base64
import dataclasses
import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.report.examples import ShownMap, label_of, make_example
from pipeline.report.page import (
    ExampleGroup,
    LossCurve,
    Measure,
    ReportContent,
    Scenes,
    Score,
    ScoreTable,
    TextTable,
    write_report,
)
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
        encoded = [attributes["src"].split(",", 1)[1] for attributes in self.all("img") if "src" in attributes]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in encoded]


@pytest.fixture(scope="module")
def content():
    scene = render_scene(1_000_000, height_px=48, width_px=48)  # has sky
    disparity = np.where(np.isfinite(scene.depth_m), 1 / scene.depth_m, 0)
    perfect, dead = label_of((7 * disparity + 2).astype(np.float32)), label_of(np.zeros((48, 48), np.float32))
    maps = [
        ShownMap(name="exact depth", space="depth_metric", label=label_of(scene.depth_m)),
        ShownMap(name="Perfect <map>", space="disparity_affine_invariant", label=perfect, score="0.000", best=True),
        ShownMap(name="Dead", space="disparity_affine_invariant", label=dead, score="no score"),
    ]
    steps = list(range(60))
    return ReportContent(
        title="Depth & distillation",
        summary=["First paragraph.", "Second paragraph."],
        notices=["It has not ended."],
        facts={"pictures labelled": "192"},
        scores=ScoreTable(
            heading="Accuracy",
            note="2 rendered scenes.",
            measures=[Measure(name="AbsRel", direction="lower"), Measure(name="δ1", direction="higher")],
            rows=[
                Score(name="teacher", values=[0.1234, 0.9012], note="the primary"),
                Score(name="old", values=[0.2, 0.7]),
                Score(name="new", values=[0.15, 0.9345]),
            ],
            before="old",
            after="new",
        ),
        groups=[
            ExampleGroup(
                heading="What it looks like",
                note="Two of them.",
                examples=[
                    make_example(HOSTILE, scene.rgb, maps, told={"agreement": "best"}, compared=("Perfect <map>", "Dead")),
                    make_example("unknown.jpg", scene.rgb, maps[1:2]),
                ],
                difference="How far off.",
            )
        ],
        losses=[LossCurve(name=name, steps=steps, values=[1 / (1 + s) for s in steps]) for name in ("total", "local-global")],
        scenes=Scenes(before=[0.3, 0.1], after=[0.1, 0.2]),
        tables=[TextTable(heading="Licences", note="Of weights.", head=["name", "licence"], rows=[["teacher", "MIT"]])],
        commands=[("python -m pipeline.browse runs/mine -o gallery", "Look through the labels")],
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
    assert {tag for tag, _ in page.tags} & {"iframe", "object", "base", "form"} == set()
    assert [a.get("type") for a in page.all("script")] == ["application/json", None]
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    addresses = [value for _, a in page.tags for name, value in a.items() if name in ("src", "href", "xlink:href", "srcset")]
    assert addresses
    assert all(address.startswith(("data:image/", "data:,", "#")) for address in addresses)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
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
        "better on 1 of 2, and worse on 1",
        "It has not ended.",
        "python -m pipeline.browse runs/mine -o gallery",
        "MIT",
    ]
    assert [text for text in expected if text not in page.text] == []


def with_hostile_texts(value, seen):
    """The value with every text in it that says something made hostile, names and keys too; they are added to `seen`."""
    if isinstance(value, str):
        known = value in ("", "lower", "higher", "disparity_affine_invariant", "depth_metric")
        seen |= set() if known else {value + HOSTILE}
        return value if known else value + HOSTILE
    if dataclasses.is_dataclass(value):
        changed = {field.name: with_hostile_texts(getattr(value, field.name), seen) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    if isinstance(value, Mapping):
        return {with_hostile_texts(key, seen): with_hostile_texts(item, seen) for key, item in value.items()}
    return type(value)(with_hostile_texts(item, seen) for item in value) if isinstance(value, list | tuple) else value


def test_no_text_of_any_field_is_read_as_markup(content, tmp_path):
    plain, texts = page_of(content, tmp_path), set()
    given = dataclasses.replace(content, groups=[dataclasses.replace(content.groups[0], examples=[])])
    hostile = page_of(with_hostile_texts(given, texts), tmp_path)
    assert len(texts) > 30
    unseen = {"What it looks like", "Two of them.", "How far off."}
    assert {text.removesuffix(HOSTILE) for text in texts if text not in hostile.text} == unseen
    figures = ("figure", "img", "figcaption", "button")
    assert not {tag for tag, _ in hostile.tags} - {tag for tag, _ in plain.tags}
    assert all(not name.startswith("on") for page in (plain, hostile) for _, attributes in page.tags for name in attributes)
    assert HOSTILE in plain.text  # the key
    assert {tag for tag, _ in plain.tags}.issuperset(figures)


def test_the_tables_best_values_are_bold_and_the_change_is_told(content, tmp_path):
    page = page_of(content, tmp_path)
    assert page.bold[:2] == ["0.1234", "0.9345"]
    assert "−0.0500 (−25.0%)" in page.text
    assert {"change better"} == {a["class"] for a in page.all("span") if "change" in a.get("class", "")}
    scores = dataclasses.replace(content.scores, before="new", after="old")
    worse = page_of(dataclasses.replace(content, scores=scores), tmp_path)
    assert {"change worse"} == {a["class"] for a in worse.all("span") if "change" in a.get("class", "")}


def test_each_example_shows_its_photograph_every_map_and_how_far_it_is_from_the_first(content, tmp_path):
    page = page_of(content, tmp_path)
    alts = [a["alt"] for a in page.all("img") if "src" in a]
    maps = ["exact depth", "Perfect <map>", "Dead"]
    assert alts == ["Photograph", *maps, *maps[1:], "Photograph", "Perfect <map>"]
    photograph, truth, perfect, _, no_difference, _, *_ = (picture.astype(int) for picture in page.pictures())
    assert np.abs(photograph - content.groups[0].examples[0].tiles[0].rgb.astype(int)).mean() < 4  # JPEG
    sky = ~np.isfinite(render_scene(1_000_000, height_px=48, width_px=48).depth_m)
    assert np.abs(truth - perfect)[~sky].mean() < 4  # the same colours once aligned
    assert np.abs(truth[sky] - 128).mean() < 8  # the sky is grey
    assert np.abs(no_difference[~sky] - 247).mean() < 6  # white is alike
    assert page.bold[2:] == ["0.000", "0.000"]
    assert "no score" in page.text


def test_the_large_view_gets_the_values_of_the_maps(content, tmp_path):
    write_report(tmp_path / "report.html", content)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    documents = json.loads(html.partition('id="documents">')[2].partition("</script>")[0])
    assert list(documents) == ["0.0", "0.1"]
    assert documents["0.0"]["key"] == HOSTILE
    assert documents["0.0"]["compared"] == ["Perfect <map>", "Dead"]
    ids = [picture["id"] for picture in documents["0.0"]["pictures"]]
    assert ids == ["photograph", "exact depth", "Perfect <map>", "Dead", "difference: Perfect <map>", "difference: Dead"]
    exact = documents["0.0"]["maps"][0]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(exact["codes"])), np.uint8).astype(np.uint16)
    steps = (planes[: planes.size // 2] + 256 * planes[planes.size // 2 :]).reshape(48, 48)
    codes = np.cumsum(steps, 1, dtype=np.uint16)
    depth_m = render_scene(1_000_000, height_px=48, width_px=48).depth_m
    np.testing.assert_array_equal(codes > 0, np.isfinite(depth_m))
    values = exact["offset"] + exact["scale"] * (codes - 1.0)
    np.testing.assert_allclose(values[codes > 0], depth_m[codes > 0], atol=np.ptp(depth_m[codes > 0]) / 4000)


def test_curves_are_inline_drawings_in_the_pages_colours_with_no_id_twice(content, tmp_path):
    page = page_of(content, tmp_path)
    assert len(page.all("svg")) == 4  # two losses, the scatter, the shares
    styles = " ".join(a.get("style") or "" for _, a in page.tags)
    assert "var(--accent)" in styles
    assert "#0101" not in styles
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_report_without_examples_losses_or_scenes_leaves_those_sections_out(content, tmp_path):
    page = page_of(ReportContent(title="Bare", summary=["Nothing."]), tmp_path)
    assert [a for a in page.all("img") if "src" in a] == page.all("svg") == page.all("section")[2:] == []
    assert "Nothing." in page.text


def test_a_row_that_the_table_lacks_is_named(content, tmp_path):
    with pytest.raises(ValueError, match=r"no row 'ours' .* teacher, old, new"):
        write_report(
            tmp_path / "report.html", dataclasses.replace(content, scores=dataclasses.replace(content.scores, after="ours"))
        )
