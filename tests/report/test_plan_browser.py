import shutil
from dataclasses import replace

import pytest

from isthmus.report.plan_page import write_plan_page
from tests.report.examples import GRAPH, PLAN
from tests.report.test_plan_page import deep, on

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"found none of {', '.join(NAMES)}")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """The page of a network of 64 operations, with everything it said and asked for."""
    graph = deep(16)
    graph = replace(graph, nodes=(replace(graph.nodes[0], macs=123_456), *graph.nodes[1:]))
    path = tmp_path_factory.mktemp("plan") / "plan.html"
    write_plan_page(path, on(graph, 30, 34), graph, title="deep")
    said: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    return tab, graph, said, asked


def panel(tab):
    """What the panel says: its heading, and its terms with their values."""
    terms = [term.text_content() for term in tab.locator("#panel dt").all()]
    values = [value.text_content() for value in tab.locator("#panel dd").all()]
    return tab.locator("#panel h2").text_content(), dict(zip(terms, values, strict=True))


def number(text):
    return int(text.split()[0].replace(",", ""))


def test_before_a_click_the_panel_has_the_whole_model(opened):
    tab, graph, _, _ = opened
    tab.reload()
    _, figures = panel(tab)
    assert number(figures["MACs"]) == graph.macs
    assert number(figures["weights"]) == graph.weight_bytes


@pytest.mark.parametrize("index", [0, 30, 63])
def test_a_click_on_an_operation_shows_its_costs(opened, index):
    tab, graph, _, _ = opened
    tab.click(f'[data-node="{index}"]')
    node = graph.nodes[index]
    name, figures = panel(tab)
    assert name == node.name
    assert (figures["operation"], figures["module"]) == (node.op, node.module)
    assert figures["device"] == ("mcu-a" if index < 30 else "mcu-b")
    assert number(figures["MACs"]) == node.macs
    assert number(figures["other ops"]) == node.ops
    assert number(figures["weights"]) == node.weight_bytes
    assert number(figures["reads"]) == node.read_bytes
    assert number(figures["writes"]) == node.written_bytes
    assert float(figures["share"].split()[0]) == pytest.approx(
        100 * node.macs / graph.macs, abs=0.1
    )
    assert figures["from"].split() == list(node.inputs)
    assert tab.locator("#panel").is_visible()
    box = tab.locator("#panel").bounding_box()
    assert 0 <= box["y"] < 900


def test_a_click_lights_the_links_of_the_operation(opened):
    tab, _, _, _ = opened
    tab.click('[data-node="3"]')  # adds the input and what three operations made of it
    assert tab.locator(".edge.lit").count() == 4
    assert tab.locator(".node.chosen").count() == 1


@pytest.mark.parametrize("key", ["Enter", " "])
def test_the_keyboard_does_as_well(opened, key):
    tab, graph, _, _ = opened
    tab.focus('[data-node="7"]')
    tab.keyboard.press("Tab")
    tab.keyboard.press(key)
    assert panel(tab)[0] == graph.nodes[8].name


def test_texts_can_be_selected(opened):
    tab, _, _, _ = opened
    text = tab.locator('[data-node="0"] text').first
    assert text.evaluate("node => getComputedStyle(node).userSelect") != "none"


def test_no_words_of_the_drawing_leave_their_place(opened):
    tab, _, _, _ = opened
    tab.click('[data-zoom="1"]')
    frame = tab.locator("#drawing").bounding_box()
    for words in tab.locator(".stage text, .crossing text").all():
        box = words.bounding_box()
        assert box["x"] + box["width"] <= frame["x"] + frame["width"]
    for node in tab.locator(".node").all()[:4]:
        first, last = (node.locator("text").nth(k).bounding_box() for k in (0, 1))
        assert first["x"] + first["width"] < last["x"]


def test_the_whole_drawing_can_be_seen_at_once(opened):
    tab, _, _, _ = opened
    tab.click('[data-zoom="0"]')
    assert tab.locator("#drawing").bounding_box()["height"] <= 900
    tab.click('[data-zoom="1"]')
    assert tab.locator("#drawing").bounding_box()["height"] > 1800


def test_the_legend_leads_to_the_stage(opened):
    tab, _, _, _ = opened
    tab.click('.stages a[href="#stage-1"]')
    box = tab.locator("#stage-1 text").bounding_box()
    frame = tab.locator(".sheet").bounding_box()
    assert frame["y"] <= box["y"] <= frame["y"] + frame["height"]


def test_the_page_is_no_wider_than_the_window(opened):
    tab, _, _, _ = opened
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1200


def test_a_hostile_name_runs_nothing(browser, tmp_path):
    hostile = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    nodes = (replace(GRAPH.nodes[0], op=hostile, module=hostile), *GRAPH.nodes[1:])
    write_plan_page(tmp_path / "plan.html", PLAN, replace(GRAPH, nodes=nodes), title="safe")
    tab = browser.new_page()
    tab.goto((tmp_path / "plan.html").as_uri())
    tab.click('[data-node="0"]')
    assert panel(tab)[1]["module"] == hostile
    assert tab.title() == "safe"
    tab.close()


def test_the_console_is_clean_and_nothing_else_is_asked_for(opened):
    _, _, said, asked = opened
    assert said == []
    assert {url.partition("#")[0] for url in asked} == {asked[0]}
    assert asked[0].startswith("file://")
