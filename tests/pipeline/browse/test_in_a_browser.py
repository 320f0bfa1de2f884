"""The gallery in a real browser, from the disk: searched, looked at, gone through by keys, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.label_store import open_run
from tests.pipeline.browser import PROGRAM, Page, browser, opened

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

_SHOWN = "[...document.querySelectorAll('.image:not([hidden]) .key')].map((key) => key.textContent)"
_CARD = "[...document.querySelectorAll('.image')].find((card) => card.querySelector('.key').textContent === '{key}')"
_STAGE = "document.getElementById('stage').getBoundingClientRect()"
_DRAWN = """(() => {
  const cloud = document.getElementById('cloud');
  const pixels = cloud.getContext('2d').getImageData(0, 0, cloud.width, cloud.height).data;
  let count = 0, sum = 0;
  for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3]) { count++; sum = (sum * 31 + pixels[i] + i) % 1e9; }
  return [count, sum];
})()"""
"""How many pixels have a point, and a digest of where and which."""
_APART = "[...document.querySelectorAll('.image:not([hidden])')].map((c) => (c.querySelector('b') || {}).textContent || '')"


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(tab: Page, gallery: Path) -> Iterator[Page]:
    """The gallery's page, opened."""
    with opened(tab, f"file://{gallery}/index.html", own=("file:", "data:", "about:", "blob:")) as page:
        yield page


def _set(page: Page, name: str, value: str) -> None:
    page.run(
        f"(() => {{ const e = document.getElementById('filters').elements['{name}']; e.value = '{value}';"
        " e.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def _open(page: Page, key: str) -> None:
    page.run(f"{_CARD.format(key=key)}.querySelector('a').focus()")
    page.press("Enter")
    page.wait_for("document.getElementById('viewer').open && document.getElementById('viewer').dataset.ready")


def test_images_are_found_by_source_status_key_agreement_and_values_and_sorted(page: Page):
    everything = page.run(_SHOWN)
    assert len(everything) == 9
    _set(page, "source", "two")
    assert page.run(_SHOWN) == ["a", "z"]
    _set(page, "source", "")
    _set(page, "status", "rejected")
    assert sorted(page.run(_SHOWN)) == ["broken", "cut"]
    _set(page, "status", "")
    _set(page, "key", "ONERROR")
    assert len(page.run(_SHOWN)) == 1
    _set(page, "key", "")
    _set(page, "order", "apart")
    apart = [float(text.removeprefix("AbsRel ")) for text in page.run(_APART) if text]
    assert len(apart) == 7
    assert apart == sorted(apart, reverse=True)
    _set(page, "apart-from", str(apart[2] - 1e-3))
    assert len(page.run(_SHOWN)) == len([value for value in apart if value >= apart[2]])
    _set(page, "value-from", "1e9")
    assert page.run(_SHOWN) == []
    assert page.run("document.getElementById('count').textContent") == "0 of 9 images"
    page.run("document.getElementById('again').click()")
    page.wait_for(f"{_SHOWN}.length === 9")
    assert page.run(_SHOWN) == everything


def test_an_image_is_opened_compared_and_left_with_keys_alone(page: Page):
    _open(page, "b")
    assert page.run("document.activeElement.id") == "next"
    assert page.run("[...document.getElementById('left').options].length") == 6
    page.run("document.getElementById('split').focus()")
    page.press("ArrowLeft")
    assert page.run("document.getElementById('stage').style.getPropertyValue('--split')") == "49.5%"
    before = page.run("document.getElementById('viewer-key').textContent")
    page.run("document.getElementById('next').focus()")
    page.press("n")
    assert page.run("document.getElementById('viewer-key').textContent") != before
    page.press("p")
    page.press("Escape")
    page.wait_for("!document.getElementById('viewer').open")
    assert page.run("document.activeElement.querySelector('.key').textContent") == "b"


def test_the_values_under_the_pointer_are_the_labels(page: Page, run: Path):
    _open(page, "z")
    page.wait_for("document.getElementById('under').complete && document.getElementById('over').complete")
    left, top, width, height = page.run(f"(({{ left, top, width, height }}) => [left, top, width, height])({_STAGE})")
    row, column = 11, 37
    page.point_at(left + (column + 0.5) / 48 * width, top + (row + 0.5) / 48 * height)
    page.wait_for("document.getElementById('values-note').textContent.startsWith('At row 11, column 37 of 48 x 48')")
    shown = [float(text) for text in page.run("[...document.getElementById('values').rows].map((r) => r.cells[1].textContent)")]
    opened = open_run(run)
    expected = [opened[name]["two", "z"].context.values[row, column] for name in opened]
    np.testing.assert_allclose(shown, expected, rtol=1e-4)


def test_a_label_is_a_cloud_of_points_that_keys_turn(page: Page):
    _open(page, "z")
    page.wait_for(f"{_DRAWN}[0] > 500")
    before = page.run(_DRAWN)
    page.run("document.getElementById('cloud').focus()")
    page.press("ArrowRight")
    assert page.run(_DRAWN) != before
    page.errors.clear()  # the browser's advice on what this test does
    assert page.run("document.getElementById('viewer-key').textContent") == "z"


def test_what_was_rejected_opens_with_its_reason(page: Page):
    _open(page, "broken")
    assert page.run("document.getElementById('stage').hidden && !document.getElementById('empty').hidden")
    assert "rejected: " in page.run("document.getElementById('told').textContent")
    page.run("document.getElementById('close').click()")
    _open(page, "cut")
    page.wait_for("document.getElementById('under').naturalWidth === 160")


def test_what_a_key_holds_is_text_in_the_large_view_too(page: Page):
    page.run(
        "[...document.querySelectorAll('.image')].find((c) => c.textContent.includes('onerror')).querySelector('a').click()"
    )
    page.wait_for("document.getElementById('viewer').dataset.ready")
    assert page.run("document.getElementById('viewer-key').textContent").startswith("<img src=x onerror=alert(1)>")
    assert page.run("document.getElementById('viewer-key').children.length") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("phone", [False, True])
def test_it_fits_wide_and_narrow_in_light_and_dark(page: Page, gallery: Path, dark: bool, phone: bool):
    page.look(f"file://{gallery}/index.html", 390 if phone else 1440, 844 if phone else 900, dark=dark, phone=phone)
    light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b) > 382"
    assert page.run(light) is not dark
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.run(fits)
    _open(page, "b")
    assert page.run(f"{fits} && document.getElementById('viewer').scrollWidth <= innerWidth")
    beside = f"document.querySelector('.side').getBoundingClientRect().left > {_STAGE}.right"
    assert page.run(beside) is not phone
    assert len(page.screenshot()) > 10_000
