from itertools import pairwise

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from isthmus.errors import InputError
from isthmus.plan.sweep import Axis, Sweep, SweepCell
from isthmus.report.sweep_map import sweep_figure, write_sweep_page
from isthmus.report.sweep_table import sweep_headline, sweep_table

RATES = (125.0, 1250.0, 12500.0, 125000.0, 1250000.0)
SIZES = (1e3, 1e4, 1e5)
UNFIT = "nothing fits: hub weights"


def cell(*values, what, cost):
    return SweepCell(values=values, what=what, cost=cost, payload_bytes=64, fits=what != UNFIT)


LINE = Sweep(
    objective="latency",
    axes=(Axis(figure="link.bandwidth", unit="byte/s", values=RATES),),
    cells=tuple(
        cell(rate, what=what, cost=1000 / rate)
        for rate, what in zip(
            RATES, (UNFIT, "all on hub", "all on hub", "cut after <b>", "all on hub"), strict=True
        )
    ),
)
MAP = Sweep(
    objective="energy",
    axes=(*LINE.axes, Axis(figure="hub.memory.weights", unit="byte", values=SIZES)),
    cells=tuple(
        cell(rate, size, what=UNFIT if size < 1e4 else f"cut {size * rate > 1e8}", cost=rate)
        for rate in RATES
        for size in SIZES
    ),
)


def printed(table):
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return " ".join(capture.get().split())


def test_the_table_merges_neighbours_that_one_plan_wins():
    text = printed(sweep_table(LINE))
    assert "1 kbit/s nothing fits: hub weights 64 8 s" in text
    assert "10 kbit/s .. 100 kbit/s all on hub 64 800 ms .. 80 ms" in text
    assert "1 Mbit/s cut after <b> 64 8 ms" in text
    assert "10 Mbit/s all on hub 64 800 us" in text


def test_the_table_of_a_map_has_a_row_for_each_plan():
    table = sweep_table(MAP)
    assert table.row_count == 3
    text = printed(table)
    assert "1 kbit/s .. 10 Mbit/s 1 kB nothing fits: hub weights 64 125 J .. 1.25 MJ" in text
    assert "1 kbit/s .. 10 kbit/s 10 kB .. 100 kB cut False" in text


def test_the_headline_counts_the_plans():
    assert sweep_headline(LINE) == "2 plans win with link.bandwidth from 1 kbit/s to 10 Mbit/s"
    unfit = Sweep(objective="latency", axes=LINE.axes, cells=LINE.cells[:1])
    assert sweep_headline(unfit).startswith("No plans fit")


def test_along_one_axis_each_stretch_is_a_band_in_the_colour_of_its_plan():
    chart = sweep_figure(LINE).chart
    assert [trace.name for trace in chart.data if trace.showlegend] == [
        UNFIT, "all on hub", "cut after &lt;b&gt;",
    ]  # fmt: skip
    bands = chart.layout.shapes
    assert len(bands) == 4
    assert all(left.x1 == right.x0 for left, right in pairwise(bands))
    assert bands[1].fillcolor == bands[3].fillcolor != bands[2].fillcolor
    assert chart.layout.xaxis.type == chart.layout.yaxis.type == "log"
    assert list(chart.layout.xaxis.ticktext) == [
        "1 kbit/s", "10 kbit/s", "100 kbit/s", "1 Mbit/s", "10 Mbit/s",
    ]  # fmt: skip


def test_over_two_axes_each_cell_has_the_number_of_its_winner():
    chart = sweep_figure(MAP).chart
    heat, *legend = chart.data
    names = [trace.name for trace in legend]
    assert names[-1] == UNFIT
    assert [len(heat.x), len(heat.y)] == [len(RATES) + 1, len(SIZES) + 1]
    for row, size in zip(heat.z, SIZES, strict=True):
        for number, rate in zip(row, RATES, strict=True):
            found = next(c for c in MAP.cells if c.values == (rate, size))
            assert names[number] == found.what
    assert len(legend[-1].x) == len(RATES)


def test_more_plans_than_colours_still_have_one_each():
    axis = Axis(figure="hub.start", unit="s", values=tuple(float(2**k) for k in range(12)))
    cells = tuple(cell(value, what=f"plan {value}", cost=0.0) for value in axis.values)
    chart = sweep_figure(Sweep(objective="price", axes=(axis,), cells=cells)).chart
    assert len({trace.line.color for trace in chart.data}) == 12
    assert chart.layout.yaxis.type != "log"


def test_the_page_has_the_finding_the_figure_and_the_table(tmp_path):
    out = tmp_path / "sweep.html"
    write_sweep_page(out, LINE, title="digits on two-mcu-spi")
    text = out.read_text().replace(get_plotlyjs(), "")
    assert f"<h1>{sweep_headline(LINE)}</h1>" in text
    assert 'id="sweep"' in text
    assert "cut after &lt;b&gt;" in text
    out.write_text("My thesis")
    with pytest.raises(InputError, match="no page of Isthmus"):
        write_sweep_page(out, LINE, title="x")
