import pytest

from isthmus.report.study import study_page
from tests.report.studies import CHOICE, RECORDS, TRANSFER
from tests.report.test_browser import CHROMIUM, sync_api
from tests.report.test_browser import pytestmark as needs_chromium

pytestmark = [needs_chromium, pytest.mark.long]
FIGURES = ("accuracy_ratio", "accuracy_bytes", "transfer_layers")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page in a browser, with everything it said and asked for."""
    path = tmp_path_factory.mktemp("study") / "study.html"
    text = study_page(title="Study small", records=RECORDS, choice=CHOICE, transfer=TRANSFER)
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


def test_every_line_of_the_study_is_drawn(opened):
    tab, _, _ = opened
    # Two networks by two placements; of each network its front, two placements and the rings;
    # two placements by three meters by three ratios.
    for name, count in zip(FIGURES, (4, 8, 18), strict=True):
        assert tab.locator(f"#{name} .trace").count() == count


def test_no_label_of_the_study_is_cut_off(opened):
    tab, _, _ = opened
    for name in FIGURES:
        frame = tab.locator(f"#{name}").bounding_box()
        for text in tab.locator(f"#{name} .annotation-text").all():
            box = text.bounding_box()
            assert frame["x"] <= box["x"]
            assert box["x"] + box["width"] <= frame["x"] + frame["width"]


def test_the_study_fits_the_window_and_asks_for_nothing(opened):
    tab, said, asked = opened
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1200
    assert said == []
    assert len(asked) == 1
    assert asked[0].startswith("file://")
