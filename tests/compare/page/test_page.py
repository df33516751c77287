"""The interactive page, as a user opens it: sorted, filtered, by keyboard, in dark and light."""

import json

import numpy as np
import pytest
from PIL import Image

from metalearn.compare.page import write

pytestmark = pytest.mark.slow  # one Chromium for all of them; the page's data are tested without it
RATES = ["0.1", "0.02", "0.003", "1e-4"]
FIRST = "#table tbody tr[data-group] > th"
SHOWN = '#legend button[aria-pressed="true"] .name'
TAB, ENTER, SPACE, RIGHT = ("Tab", 9), ("Enter", 13, "\r"), (" ", 32, " "), ("ArrowRight", 39)


@pytest.fixture
def page(make_comparison, picture, tmp_path):
    more = {"pictures": (picture,), "words": ("0.1 and 0.02 differ in two edges",)}
    more |= {
        "notices": ("runs/x is failed at step 3",),
        "stamps": {"test/error": "not comparable with papers"},
    }
    return write(make_comparison(RATES, **more), tmp_path / "compare.html")


def test_opens_without_a_complaint_or_a_request(browser, page):
    browser.size(1200)
    browser.open(page)

    assert browser.complaints == []
    assert browser.texts(FIRST) == RATES
    assert "4 configurations" in browser.texts("#counted")[0]
    assert browser.evaluate("document.querySelectorAll('#chart path.mean').length") == 4
    text = browser.evaluate("document.body.innerText")
    for words in ("differ in two edges", "runs/x is failed", "not comparable with papers", "2.10 ± 0.10"):
        assert words in text
    assert (
        browser.evaluate("document.title") == "Comparison of learning rates · metalearn"
    )  # no script of the picture
    first = "".join(browser.texts("#table tbody tr:first-child td"))
    assert "1.852 to 2.348" in first  # 2.1 ± 4.303 · 0.1 / √3
    assert "62 s" in first
    assert "2 Wh" in first


def test_sorts_by_numbers_and_says_so(browser, page):
    browser.open(page, "with=option%3Amethod.learning_rate")
    heading = 'button[data-focus="sort option:method.learning_rate"]'

    browser.click(heading)
    assert browser.texts(FIRST) == ["1e-4", "0.003", "0.02", "0.1"]
    sort = f"document.querySelector('{heading}').parentElement.ariaSort"
    assert browser.evaluate(sort) == "ascending"
    browser.click(heading)
    assert browser.texts(FIRST) == RATES
    assert browser.evaluate(sort) == "descending"

    browser.click('button[data-focus="sort final:valid/loss"]')
    assert browser.texts(FIRST) == RATES  # by mean
    browser.click('button[data-focus="sort final:valid/loss"]')
    assert browser.texts(FIRST) == RATES[::-1]
    browser.open(page, browser.evaluate("location.hash.slice(1)"))
    assert browser.texts(FIRST) == RATES[::-1]  # the link shows the same


def test_filters_rows_and_curves(browser, page):
    browser.open(page)
    browser.click("#filter")
    browser.type("name=sgd")
    assert browser.texts(FIRST) == ["0.02", "1e-4"]
    assert browser.texts(SHOWN) == ["0.02", "1e-4"]
    assert "2 of 4" in browser.texts("#counted")[0]

    browser.click("#clear")
    assert browser.texts(FIRST) == RATES
    browser.click("#option-filters summary")
    choose = (
        "(() => { const e = document.querySelector('select[data-key=\"method.name\"]'); e.value = 'adam';"
    )
    browser.evaluate(choose + " e.dispatchEvent(new Event('change')); })()")
    assert browser.texts(FIRST) == ["0.1", "0.003"]
    browser.open(page, browser.evaluate("location.hash.slice(1)"))
    assert browser.texts(FIRST) == ["0.1", "0.003"]


def test_keyboard_reaches_and_works_everything(browser, page):
    browser.size(1200)
    browser.open(page)
    browser.key(*TAB)
    assert browser.evaluate("document.activeElement.className") == "skip"
    browser.key(*ENTER)
    assert browser.evaluate("document.activeElement.id") == "configurations"

    reached = []
    for _ in range(80):
        browser.key(*TAB)
        focus = browser.evaluate("document.activeElement.dataset.focus || document.activeElement.id")
        reached.append(focus)
        if focus == "sort final:test/error":
            browser.key(*ENTER)
            browser.key(*ENTER)
            assert browser.texts(FIRST) == RATES[::-1]
            assert browser.evaluate("document.activeElement.dataset.focus") == focus  # is still there
        elif focus == "open 0":
            browser.key(*SPACE)
            assert browser.texts("td.runs tbody td:first-child") == ["0", "1", "2"]
        elif focus == "curve 1":
            browser.key(*SPACE)
            assert "0.02" not in browser.texts(SHOWN)
            break
        outline = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", focus
    assert {"filter", "unfold", "table", "pick 3", "log-x", "log-y", "from", "step", "curve 1"} <= set(
        reached
    )

    browser.evaluate("document.getElementById('step').focus()")
    browser.key("Home", 36)
    assert browser.texts("#read")[0].startswith("Step 0: 3 curves; best: 0.1, 3.1")
    browser.key(*RIGHT)
    assert browser.texts("#read")[0].startswith("Step 10: 3 curves; best: 0.1, 2.5")


def test_logarithmic_axes_zoom_single_runs_and_reading(browser, page):
    browser.size(1200)
    browser.open(page)
    before = browser.evaluate("document.querySelector('#chart path.mean').getAttribute('d')")
    browser.click("#log-y")
    browser.click("#log-x")
    ticks = {text: place for text, *place in browser.evaluate(
        "[...document.querySelectorAll('#chart g text')].map((e) => [e.textContent, +e.getAttribute('x'),"
        " +e.getAttribute('y')])"
    )}  # fmt: skip
    up, across = 1, 0
    assert ticks["0.5"][up] - ticks["1"][up] == pytest.approx(ticks["1"][up] - ticks["2"][up])  # halves
    assert ticks["50"][across] - ticks["20"][across] > ticks["100"][across] - ticks["50"][across] > 0
    assert browser.evaluate("document.querySelector('#chart path.mean').getAttribute('d')") != before
    assert "Steps of 0 have no place" in browser.texts("#drawn")[0]
    assert "NaN" not in browser.evaluate("document.getElementById('chart').innerHTML")

    browser.click("#singles")
    assert browser.evaluate("document.querySelectorAll('#chart path.single').length") == 12
    browser.open(page, "from=50&to=100&hide=2-3&metric=valid/accuracy")
    middle = browser.evaluate(
        "(() => { const e = document.getElementById('chart'); e.scrollIntoView();"
        " const b = e.getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.mouse("mouseMoved", *middle)
    # the middle between 50 and 100 is 75, a little less to the left of the numbers: 70
    assert browser.texts("#read")[0].startswith("Step 70: 2 curves; best: 0.1, 91.")  # more is better
    assert browser.texts("#legend .value")[2:] == ["", ""]
    browser.wait("location.hash.includes('step=70')")


def test_labels_and_messages_are_text(browser, make_comparison, evil, tmp_path):
    whole = make_comparison([evil, "plain"], title=evil, notices=(evil,), words=(evil,))
    path = write(whole, tmp_path / "compare.html")
    browser.open(path, "open=0-1&with=option%3Amethod.learning_rate")

    assert browser.complaints == []
    assert browser.evaluate("document.getElementById('evil')") is None
    assert browser.evaluate("document.images.length") == 0
    assert browser.texts(FIRST)[0] == evil
    assert browser.evaluate("document.title") == f"{evil} · metalearn"
    browser.open(path, "filter=%3Cb%20id&sort=%22%3E%3Cb%3E&hide=99999999.x-y")
    assert browser.complaints == []
    assert browser.texts(FIRST) == [evil]


@pytest.mark.parametrize("width", [360, 1200, 1600])
def test_dark_and_light_at_every_width(browser, page, tmp_path, width):
    browser.size(width)
    for look, link in (("light", ""), ("dark", ""), ("light", "look=dark"), ("dark", "look=light")):
        browser.look(look)
        browser.open(page, link)
        pixels = np.asarray(Image.open(browser.screenshot(tmp_path / "shown.png")).convert("L"), dtype=float)
        dark = (link or f"look={look}") == "look=dark"
        assert (pixels[2, 2] < 40) if dark else (pixels[2, 2] > 240)
        assert np.mean(np.abs(pixels - pixels[2, 2]) > 60) > 0.01  # ink
        assert browser.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll inside
    browser.look("light")


def test_prints_on_white_without_its_tools(browser, page):
    browser.size(1000)
    browser.open(page, "look=dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = "getComputedStyle(document.querySelector('.tools')).display"
    background = "getComputedStyle(document.body).backgroundColor"
    try:
        assert browser.evaluate(shown) == "none"
        assert browser.evaluate(background) == "rgb(255, 255, 255)"
        assert len(browser.call("Page.printToPDF")["data"]) > 10_000
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_a_hundred_curves_are_quick(browser, make_comparison, tmp_path):
    whole = make_comparison([f"rate {place}" for place in range(100)], points=500)
    path = write(whole, tmp_path / "compare.html")
    browser.open(path)
    assert len(browser.texts(SHOWN)) == 10  # the others are a click away
    assert "10 of 100 curves" in browser.texts("#drawn")[0]

    click = "document.getElementById('show-all').click()"
    seconds = f"(() => {{ const t = performance.now(); {click}; return (performance.now() - t) / 1000; }})()"
    assert browser.evaluate(seconds) < 3  # 0.2 alone on a core
    assert browser.evaluate("document.querySelectorAll('#chart path.mean').length") == 100
    assert json.loads(browser.evaluate("JSON.stringify(location.hash)")) == "#hide="
