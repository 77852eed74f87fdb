"""The command that plans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import (
    DataDir,
    Download,
    Inputs,
    Json,
    Model,
    Weights,
    check_out,
    check_used,
    print_result,
    print_text,
    read_model,
)
from isthmus.errors import InfeasibleError, InputError

_LIMITS = {
    "latency": ("latency_s", "s"),
    "interval": ("interval_s", "s"),
    "energy": ("energy_j", "J"),
    "price": ("price", "USD"),
    "bytes": ("link_bytes", "byte"),
    "drop": ("drop", ""),
}
_FREE = ("price", "drop")  # that may be kept at nothing


def plan(
    model: Model,
    platform: Annotated[str, typer.Argument(help="A preset (see `isthmus platforms`) or a file.")],
    *,
    weights: Weights = None,
    input_: Inputs = None,
    objective: Annotated[
        str, typer.Option(help="What to make small: latency, throughput, energy or price.")
    ] = "latency",
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="A bound: latency=50ms, interval=20ms, energy=2mJ, price=40USD, bytes=64byte on "
            "each link, drop=1 point of accuracy. Repeat for several."
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="What carries inner crossings: raw:bits=16, uniform:bits=5, "
            "bottleneck:ratio=8,bits=8. Left out, a sensible narrow one and raw compete."
        ),
    ] = None,
    cut: Annotated[
        list[str] | None, typer.Option(help="Force the cut after this module, e.g. layer2.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="As in `isthmus fit`: codecs are tried on training images at the promising cuts, "
            "without training, and the plan chooses among them too."
        ),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    fits: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder that `isthmus fit` or `isthmus study` made, whose accuracy counts. "
            "Repeat."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="chain: exact for stages one after another. cpsat: exact for any assignment of "
            "operations; needs isthmus[plan]. greedy: a baseline."
        ),
    ] = "chain",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Map which plan wins over a range of a figure of the platform, or of two: "
            "link.bandwidth=10kbit/s..1Gbit/s, hub.compute.fp32=1MMAC/s..1GMAC/s."
        ),
    ] = None,
    stream: Annotated[
        Path | None,
        typer.Option(help="Folder to make: platform, network and plan as Stream reads them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .json, or .html with the network drawn.")
    ] = None,
    json_: Json = False,
) -> None:
    """Choose cuts, devices and codecs; say what they cost, or what does not fit and by how much.

    Example: `isthmus plan digits-resnet two-mcu-spi --codec bottleneck:ratio=8,bits=4`
    """
    from isthmus.export.stream import write_stream
    from isthmus.files import to_json
    from isthmus.graph import capture, find_cut
    from isthmus.plan import partition
    from isthmus.platform import load_platform
    from isthmus.report.plan_tables import plan_tables

    check_used(data is not None, "--data", data_dir=data_dir, download=download)
    if sweep and stream is not None:
        raise InputError("--stream: found with --sweep, which finds many plans; leave one out")
    check_out(out, ".json", ".html")
    target = load_platform(platform)
    loaded, example = read_model(model, weights, input_)
    graph = capture(loaded, example)
    index = find_cut(graph, _only(cut)).index if cut else None
    title = f"{model} on {target.name}"
    options: dict[str, Any] = {
        "objective": objective,
        "codec": codec,
        "cut": index,
        "limits": _limits(limit or ()),
        "method": method,
    }
    if data is not None or fits:
        _check_trained(model, weights)
        found_in = (data, data_dir, download)
        options |= _known(loaded, graph, target, options, fits or (), found_in)
    if sweep:
        _sweep(graph, target, sweep, options, title=title, out=out, json_=json_)
        return
    try:
        found = partition(graph, target, **options)
    except InfeasibleError as error:
        if json_:
            print_text(to_json(error.nearest))
        raise
    if stream is not None:
        write_stream(stream, loaded, graph, example, found)
    if out is not None and out.suffix == ".html":
        from isthmus.report.plan_page import write_plan_page

        write_plan_page(out, found, graph, title=title)
    print_result(to_json(found), *plan_tables(found), json_=json_, out=out)


def _limits(texts: Sequence[str]) -> Any:
    from isthmus.plan import Limits
    from isthmus.units import parse_quantity

    values: dict[str, float] = {}
    for text in texts:
        name, _, bound = text.partition("=")
        if name not in _LIMITS:
            raise InputError(f"--limit {text!r}: expected one of {', '.join(_LIMITS)} and a bound")
        field, unit = _LIMITS[name]
        if field in values:
            raise InputError(f"--limit {text!r}: found {name} twice, expected once")
        try:
            values[field] = parse_quantity(bound, unit) if unit else float(bound) / 100
        except InputError as error:
            raise InputError(f"--limit {text!r}: {error}") from error
        except ValueError as error:
            raise InputError(
                f"--limit {text!r}: expected points of accuracy, like drop=1"
            ) from error
        if not (values[field] > 0 or (values[field] == 0 and name in _FREE)):
            least = "0 or more" if name in _FREE else "more than 0"
            raise InputError(f"--limit {text!r}: found {bound}, expected {least}")
    return Limits(**values)


def _check_trained(model: str, weights: Path | None) -> None:
    from isthmus.models import MODELS

    if weights is None and model in MODELS:
        raise InputError(f"--data, --fits: {model} has random weights here; add --weights")


def _only(cuts: Sequence[str]) -> str:
    if len(cuts) > 1:
        raise InputError(f"--cut: found {' and '.join(cuts)}, expected one; leave out the rest")
    return cuts[0]


def _known(
    model: Any,
    graph: Any,
    platform: Any,
    options: dict[str, Any],
    fits: Sequence[Path],
    found_in: tuple[str | None, Path | None, bool],
) -> dict[str, Any]:
    """Return what data and earlier fits tell: accuracies through codecs, and sizes as PNG."""
    from isthmus.data import load_data
    from isthmus.progress import shown
    from isthmus.study import accuracy_table
    from isthmus.train import png_bytes

    data, data_dir, download = found_in
    asked = {key: options[key] for key in ("objective", "codec", "cut")}
    with shown() as progress:
        samples = None
        if data is not None:
            samples = load_data(data, data_dir=data_dir, download=download, progress=progress)
        table = accuracy_table(
            model, graph, platform, samples, **asked, fits=fits, report=progress
        )
    return {"accuracy": table, "png_bytes": samples and png_bytes(samples)}


def _sweep(
    graph: Any,
    platform: Any,
    texts: Sequence[str],
    options: dict[str, Any],
    *,
    title: str,
    out: Path | None,
    json_: bool,
) -> None:
    """Print the map of which plan wins where, and write it."""
    from isthmus.files import to_json
    from isthmus.plan.sweep import VALUES, parse_axis, sweep
    from isthmus.progress import shown
    from isthmus.report.sweep_map import write_sweep_page
    from isthmus.report.sweep_table import sweep_headline, sweep_table

    if len(texts) not in VALUES:
        raise InputError(f"--sweep: found {len(texts)} figures, expected one or two")
    axes = [parse_axis(text, platform, num_values=VALUES[len(texts)]) for text in texts]
    with shown() as progress:
        found = sweep(
            graph,
            platform,
            axes,
            progress=lambda done, total: progress("plans", done, total),
            **options,
        )
    if out is not None and out.suffix == ".html":
        write_sweep_page(out, found, title=title)
    tables = (sweep_headline(found), sweep_table(found))
    print_result(to_json(found), *tables, json_=json_, out=out)
