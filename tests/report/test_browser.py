import shutil

import pytest

from isthmus.report.page import page
from tests.report.examples import FIT, GRAPH, PLAN, RIVALS, RUN, VERIFICATION

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"found none of {', '.join(NAMES)}")

FIGURES = ("memory", "accuracy", "timeline", "predicted", "bytes")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page in a browser, with everything it said and asked for."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    text = page(
        title="digits on two microcontrollers",
        plan=PLAN,
        graph=GRAPH,
        fit=FIT,
        verification=VERIFICATION,
        run=RUN,
        rivals=RIVALS,
    )
    path.write_text(text, encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        for name in FIGURES:
            tab.wait_for_selector(f"#{name} svg.main-svg", timeout=30_000)
        yield tab, said, asked
        browser.close()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(opened, name):
    tab, _, _ = opened
    assert tab.locator(f"#{name} .trace").count() > 0


def test_every_trace_has_ink(opened):
    tab, _, _ = opened
    for name in FIGURES:
        shapes = tab.locator(f"#{name} .trace path")
        assert shapes.count() > 0
        assert all(box["width"] > 0 for box in (s.bounding_box() for s in shapes.all()) if box)


def test_the_plan_is_a_picture_with_each_device_and_link(opened):
    tab, _, _ = opened
    assert tab.locator("#plan .device").count() == len(PLAN.stages)
    assert tab.locator("#plan .link").count() == len(PLAN.crossings)
    assert "32 bytes" in tab.locator("#plan").text_content()


def test_no_text_of_the_picture_leaves_its_box(opened):
    tab, _, _ = opened
    for device in tab.locator("#plan .device").all():
        frame = device.locator("rect").first.bounding_box()
        for text in device.locator("text").all():
            box = text.bounding_box()
            assert box["x"] + box["width"] <= frame["x"] + frame["width"]


def test_the_page_is_no_wider_than_the_window(opened):
    tab, _, _ = opened
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1200


def test_the_console_is_clean_and_nothing_else_is_asked_for(opened):
    _, said, asked = opened
    assert said == []
    assert len(asked) == 1
    assert asked[0].startswith("file://")
