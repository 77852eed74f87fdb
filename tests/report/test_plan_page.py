import json
import re
import sys
from collections import Counter
from dataclasses import replace

import pytest

from isthmus.errors import InputError
from isthmus.graph import Graph
from isthmus.graph.ir import Tensor
from isthmus.report.drawing import BOX_HEIGHT, draw
from isthmus.report.plan_page import plan_page, write_plan_page
from tests.report.examples import GRAPH, PLAN, node

HOSTILE = '</script><script>alert("x")</script>{{ 7*7 }}'


def drawn_nodes(page):
    """The colour and the number of every operation in the drawing."""
    return [
        (int(number), int(color))
        for color, number in re.findall(r'class="node device(\d)" data-node="(\d+)"', page)
    ]


def words(page):
    """What a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def facts(page):
    text = re.search(r'id="facts">(.*?)</script>', page, re.DOTALL)
    assert text
    return json.loads(text[1])


def deep(blocks):
    """A chain of residual blocks of four operations each."""
    nodes = []
    last = "x"
    for k in range(blocks):
        module = f"layer{k // 10}.{k % 10}"
        nodes += [
            node(f"a{k}", f"{module}.conv1", "conv2d", last, (8, 4, 4), macs=k, weight_bytes=8),
            node(f"b{k}", module, "relu", f"a{k}", (8, 4, 4)),
            node(f"c{k}", f"{module}.conv2", "conv2d", f"b{k}", (8, 4, 4), macs=9),
            replace(node(f"d{k}", module, "add", f"c{k}", (8, 4, 4)), inputs=(f"c{k}", last)),
        ]
        last = f"d{k}"
    return Graph(inputs=GRAPH.inputs, nodes=tuple(nodes), outputs=(last,))


def on(graph, *sizes, crossings=PLAN.crossings):
    """The example's plan with stages of some sizes."""
    names = iter(node.name for node in graph.nodes)
    stages = tuple(
        replace(PLAN.stages[k], nodes=tuple(next(names) for _ in range(size)))
        for k, size in enumerate(sizes)
    )
    return replace(PLAN, stages=stages, crossings=crossings)


@pytest.fixture(scope="module")
def page():
    return plan_page(PLAN, GRAPH, title="digits on two microcontrollers")


def test_the_page_opens_with_the_finding_and_has_the_tables(page):
    assert "<h1>32 bytes cross from mcu-a to mcu-b for each sample, instead of 2,048</h1>" in page
    text = words(page)
    for expected in ("Stages", "Crossings, per sample", "Other plans, best first", "all on mcu-a"):
        assert expected in text


def test_every_operation_is_drawn_once_in_the_colour_of_its_device(page):
    assert drawn_nodes(page) == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    for color, device in enumerate(("mcu-a", "mcu-b")):
        assert re.search(rf'<li class="device{color}"><a href="#stage-{color}"><b>{device}', page)
        assert f'class="stage device{color}" id="stage-{color}"' in page


def test_the_crossing_is_a_line_with_its_bytes_link_codec_and_time(page):
    crossing = page[page.index('<g class="crossing">') :]
    crossing = words(crossing[: crossing.index("</g>")])
    assert "32 bytes, instead of 2,048" in crossing
    assert "mcu-a-mcu-b: bottleneck:ratio=8,bits=4, 716 us" in crossing


def test_the_legend_has_what_each_stage_takes(page):
    text = words(page)
    assert (
        "mcu-a input .. layer1 599 kMAC in fp32, 833 ms weights 74.8 kB peak memory 6.14" in text
    )


def test_the_panel_has_the_figures_of_the_graph(page):
    found = facts(page)
    assert [each["name"] for each in found] == [node.name for node in GRAPH.nodes]
    figures = dict(found[2]["facts"])
    assert figures["operation"] == "conv2d"
    assert figures["module"] == "layer1"
    assert figures["device"] == "mcu-a"
    assert figures["MACs"] == "589,824"
    assert figures["share"] == f"{100 * 589_824 / GRAPH.macs:.1f} % of all MACs"
    assert figures["weights"] == "73,728 bytes"
    assert figures["makes"] == "32\u00d74\u00d74 float32"


def test_an_operation_of_unknown_cost_says_so():
    nodes = (replace(GRAPH.nodes[0], macs=None, ops=None), *GRAPH.nodes[1:])
    figures = dict(facts(plan_page(PLAN, replace(GRAPH, nodes=nodes), title="x"))[0]["facts"])
    assert figures["MACs"] == "unknown: no cost rule"
    assert figures["other ops"] == "unknown"


def test_the_page_loads_nothing_and_forbids_it(page):
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", page)
    assert "https://" not in page
    assert len(page) < 100_000


def test_hostile_names_stay_text():
    odd = [
        replace(node, name=f"{HOSTILE}{k}", op=HOSTILE, module=HOSTILE)
        for k, node in enumerate(GRAPH.nodes)
    ]
    graph = replace(
        GRAPH, nodes=tuple(odd), inputs=(Tensor(name="x", shape=(1, 8, 8), dtype="float32"),)
    )
    crossings = (replace(PLAN.crossings[0], after=HOSTILE, tensors=(HOSTILE,), link=HOSTILE),)
    plan = replace(on(graph, 3, 3, crossings=crossings), notes=(HOSTILE,))
    text = plan_page(plan, graph, title=HOSTILE)
    assert "<script>alert" not in text
    assert "49" not in re.findall(r"&gt;(\d\d)", text)
    assert facts(text)[0]["facts"][0] == ["operation", HOSTILE]


def test_a_plan_that_does_not_split_has_a_band_for_each_device():
    crossings = (replace(PLAN.crossings[0], cut=0, after="input", codec="pixels"),)
    plan = replace(on(GRAPH, 0, 6, crossings=crossings), split=False)
    drawing = draw(plan, GRAPH)
    assert drawing.bands[0].words == "only sends the input"
    assert drawing.bands[1].words.startswith("the whole model")
    entry = next(box for box in drawing.boxes if box.node is None)
    assert drawing.bands[0].y < entry.y < drawing.strips[0].y < drawing.bands[1].y
    assert "Do not split" in plan_page(plan, GRAPH, title="x")


def test_a_device_that_only_passes_on_is_a_band_without_operations():
    stages = (PLAN.stages[0], replace(PLAN.stages[0], device="relay", nodes=()), PLAN.stages[1])
    plan = replace(PLAN, stages=stages, crossings=PLAN.crossings * 2)
    drawing = draw(plan, GRAPH)
    assert drawing.bands[1].words == "only passes on"
    assert len(drawing.strips) == 2
    inside = [b for b in drawing.boxes if drawing.strips[0].y < b.y < drawing.strips[1].y]
    assert inside == []
    assert drawing.bands[2].color == 2


def test_stages_that_are_no_stretches_keep_the_colours_and_say_what_they_send():
    first, second = PLAN.stages
    stages = (
        replace(first, nodes=("conv", "l1", "l2")),
        replace(second, nodes=("relu", "pool", "fc")),
    )
    crossings = tuple(replace(PLAN.crossings[0], tensors=(name,)) for name in ("conv", "l2"))
    plan = replace(PLAN, stages=stages, crossings=crossings)
    drawing = draw(plan, GRAPH)
    assert len(drawing.bands) == len(drawing.strips) == 0
    colors = {box.node: box.color for box in drawing.boxes if box.node is not None}
    assert colors == {0: 0, 1: 1, 2: 0, 3: 0, 4: 1, 5: 1}
    assert {box.node for box in drawing.boxes if box.sends} == {0, 3}
    crossed = {(line.source, line.target) for line in drawing.lines if line.crosses}
    assert crossed == {(0, 1), (1, 2), (3, 4)}
    assert "3 operations" in plan_page(plan, GRAPH, title="x")


def test_modules_are_named_beside_their_rows():
    graph = deep(30)
    drawing = draw(on(graph, 60, 60), graph)
    paths = [module.path for module in drawing.modules]
    assert paths[:3] == ["layer0", "layer0.0", "layer0.1"]
    assert len(paths) == 33
    block = next(module for module in drawing.modules if module.path == "layer0.1")
    tops = [drawing.boxes[1 + k].y for k in range(4, 8)]
    assert (block.y, block.y + block.height) == (tops[0], tops[-1] + BOX_HEIGHT)


def test_a_network_of_512_operations_is_drawn_on_less_than_2_mb():
    graph = deep(128)
    text = plan_page(on(graph, 200, 312), graph, title="deep")
    assert len(text) < 2_000_000
    assert drawn_nodes(text) == [(k, int(k >= 200)) for k in range(512)]


def calls_to_draw(blocks):
    """Count what Python calls for a drawing of that many blocks: as many on every machine."""
    graph = deep(blocks)
    plan = on(graph, 2 * blocks, 2 * blocks)
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        draw(plan, graph)
    finally:
        sys.setprofile(None)
    return calls["call"]


def test_a_network_four_times_as_deep_is_drawn_in_at_most_six_times_the_calls():
    assert 0 < calls_to_draw(256) < 6 * calls_to_draw(64)


def test_an_input_that_is_also_an_output_and_several_outputs_are_drawn():
    graph = replace(GRAPH, outputs=("fc", "l2", "x"))
    drawing = draw(PLAN, graph)
    assert sum(box.words == "output" for box in drawing.boxes) == 3
    assert (None, None) in {(line.source, line.target) for line in drawing.lines}


def test_a_page_of_ours_is_replaced_and_no_other_file(tmp_path):
    out = tmp_path / "plan.html"
    write_plan_page(out, PLAN, GRAPH, title="first")
    write_plan_page(out, PLAN, GRAPH, title="second")
    assert "<title>second</title>" in out.read_text()
    out.write_text("My thesis")
    with pytest.raises(InputError, match="exists and is no page of Isthmus"):
        write_plan_page(out, PLAN, GRAPH, title="third")
    assert out.read_text() == "My thesis"
