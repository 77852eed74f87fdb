"""The command that measures a real link between two hosts, and both of them."""

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.options import Inputs, Json, Keys, Weights, check_used, print_result, read_model
from isthmus.errors import InputError

if TYPE_CHECKING:
    from isthmus.progress import Report
    from isthmus.run.probed import Probed


def probe(
    host: Annotated[
        str | None, typer.Argument(help="Who answers, HOST or HOST:PORT; none with --listen.")
    ] = None,
    *,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Answer probes here until stopped, instead; loopback only without keys.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What to call this device; near, or with --listen far, if left out."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Time the blocks of a model on this device too; say it on both. A .py file runs: "
            "trusted local files only."
        ),
    ] = None,
    weights: Weights = None,
    input_: Inputs = None,
    keys: Keys = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Platform file to write.", show_default="platform.yaml"),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure a link to another host, and both hosts, and write the platform file of it.

    There, `isthmus probe --listen HOST` answers; here, round trips over the hop that a bundle's
    frames take give rate, latency and the cost of each message, and products of matrices how fast
    both compute.

    Example: `isthmus probe --listen 10.0.0.6 --keys keys/hub` there, then
    `isthmus probe 10.0.0.6 --keys keys/camera --out platform.yaml` here
    """
    from isthmus.files import to_json
    from isthmus.progress import shown
    from isthmus.report.probe_table import probe_tables
    from isthmus.run.probe import probe as measure
    from isthmus.run.probe import wait_for_host
    from isthmus.run.probe_file import check_out, write_platform
    from isthmus.run.probed import check_listen, check_name

    if (host is None) == (listen is None):
        raise InputError("found neither or both of HOST and --listen, expected one of them")
    check_used(model is not None, "--model", weights=weights, input=input_)
    check_used(listen is None, "HOST", out=out, json=json_)
    own_name = check_name(name or ("near" if listen is None else "far"))
    if host is None:
        place = check_listen(str(listen), keys)
        with shown() as progress:
            own = _probed(own_name, model, weights, input_, progress)
        _answer(place, own, keys)
        return
    out = out or Path("platform.yaml")
    check_out(out)
    wait_for_host(host, keys=keys)  # before this side takes its time
    with shown() as progress:
        own = _probed(own_name, model, weights, input_, progress)
        record = measure(host, own, keys=keys, report=progress)
    written = write_platform(out, record, day=time.strftime("%Y-%m-%d"))
    print_result(to_json(record), *probe_tables(record, written), json_=json_)


def _probed(
    name: str,
    model: str | None,
    weights: Path | None,
    inputs: list[str] | None,
    progress: "Report",
) -> "Probed":
    """Measure this device, and a model on it if there is one."""
    from isthmus.machine import describe_machine
    from isthmus.run.probed import Probed
    from isthmus.run.rates import measure_rates

    times = None
    if model is not None:
        from isthmus.graph import capture
        from isthmus.study import measure_nodes

        loaded, example = read_model(model, weights, inputs)
        times = measure_nodes(loaded, capture(loaded, example), example, report=progress)
    rates = measure_rates(progress)
    return Probed(name=name, machine=describe_machine(), rates=rates, times=times)


def _answer(place: str, own: "Probed", keys: Path | None) -> None:
    """Answer probes until stopped."""
    from isthmus.run.probed import open_answering

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def say(words: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {own.name}: {words}", flush=True)

    with open_answering(place, own, keys=keys) as answer:
        say(f"answers probes at {place}" + ("" if keys else " (this machine only: no keys)"))
        answer(stop, say)
    say("stopped")
