"""The report in a real browser, from the disk: enlarged, compared, turned, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.browser import PROGRAM, Page, browser, opened

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

_READY = "document.getElementById('viewer').open && document.getElementById('viewer').dataset.ready"
_POINTS = """(() => {
  const cloud = document.getElementById('cloud');
  const pixels = cloud.getContext('2d').getImageData(0, 0, cloud.width, cloud.height).data;
  let count = 0;
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) count++;
  return count;
})()"""
_SIDES = "['left', 'right'].map((id) => document.getElementById(id).selectedOptions[0].text)"


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(tab: Page, report: Path) -> Iterator[Page]:
    """The report, opened."""
    with opened(tab, f"file://{report}") as page:
        yield page


def test_a_click_enlarges_beside_the_photograph_and_a_button_compares_before_and_after(page: Page):
    page.run("document.querySelector('.tile[data-id=\"assistant, whole\"]').click()")
    page.wait_for(_READY)
    assert page.run(_SIDES) == ["Photograph", "assistant, whole"]
    page.press("Escape")
    page.wait_for("!document.getElementById('viewer').open")
    assert page.run("document.activeElement.dataset.id") == "assistant, whole"
    page.run("document.querySelector('.compare').click()")
    page.wait_for(_READY)
    assert page.run(_SIDES) == ["student before", "student after"]
    page.run("document.getElementById('split').focus()")
    page.press("ArrowLeft")
    assert page.run("document.getElementById('stage').style.getPropertyValue('--split')") == "49.5%"
    page.wait_for(f"{_POINTS} > 200")
    key = page.run("document.getElementById('viewer-key').textContent")
    page.run("document.getElementById('next').focus()")
    page.press("n")
    page.wait_for(_READY)
    assert page.run("document.getElementById('viewer-key').textContent") != key
    assert page.run(_SIDES) == ["student before", "student after"]


def test_a_hostile_key_is_text_in_the_page_and_enlarged(page: Page):
    of_key = "[...document.querySelectorAll('.example')].find((e) => e.textContent.includes('onerror'))"
    page.run(f"{of_key}.querySelector('.tile').click()")
    page.wait_for(_READY)
    assert page.run("document.getElementById('viewer-key').textContent").startswith("<img src=x onerror=alert(1)>")
    assert page.run("document.getElementById('viewer-key').children.length") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("phone", [False, True])
def test_it_fits_wide_and_narrow_in_light_and_dark(page: Page, report: Path, dark: bool, phone: bool):
    page.look(f"file://{report}", 390 if phone else 1440, 844 if phone else 900, dark=dark, phone=phone)
    light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b) > 382"
    assert page.run(light) is not dark
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.run(fits)
    page.run("document.querySelector('.compare').click()")
    page.wait_for(_READY)
    assert page.run(f"{fits} && document.getElementById('viewer').scrollWidth <= innerWidth")
