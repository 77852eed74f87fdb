"""The commands for several hosts: serve a device, ask a service."""

import json
import signal
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import (
    Adapt,
    Json,
    Keys,
    Signed,
    SignedSince,
    as_signed,
    print_parts,
    print_text,
)
from isthmus.errors import InputError, RequestError, RunError, naming
from isthmus.machine import keep_freed_memory

ServiceName = Annotated[
    str, typer.Option("--service", help="Its name, where one network has several.")
]


def serve(
    bundle: Annotated[Path, typer.Argument(help="The folder that `isthmus export` made.")],
    *,
    device: Annotated[str, typer.Option(help="Which of the bundle's devices this host is.")],
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE=HOST[:PORT]",
            help="Where a device is, the same on every host; repeat for each. Loopback, at port "
            "7447 and the following in the bundle's order, if left out.",
        ),
    ] = None,
    service: ServiceName = "main",
    keys: Keys = None,
    signed: Signed = False,
    signed_since: SignedSince = None,
    config: Annotated[
        Path | None,
        typer.Option(help="zenoh's own settings (json5), in place of --at; taken as they are."),
    ] = None,
    adapt: Adapt = None,
    switch_at: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With more requests than this waiting, let the first device's early exit answer "
            "the newest of them.",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Where the first device speaks the Open Inference Protocol, and /metrics.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Where a device offers /metrics alone; loopback if no HOST.",
        ),
    ] = None,
) -> None:
    """Serve one device of a bundle until stopped; one such command on each host.

    They may start in any order, and each may stop and start again: requests wait as long as their
    deadline allows. SIGTERM and Ctrl-C let it finish what is under way.

    Example: `isthmus serve bundle --device hub --at camera=10.0.0.5 --at hub=10.0.0.6`
    """
    from isthmus.run.adapt import parse_target
    from isthmus.run.refusals import telling_refusals
    from isthmus.run.service import ServiceConfig, open_service

    if http is not None or metrics is not None:
        from isthmus.run.http import open_http  # needs the extra `serve`

    addresses = {}
    for each in at or ():
        name, equals, place = each.partition("=")
        if not (name and equals and place):
            raise InputError(f"--at {each!r}: expected DEVICE=HOST or DEVICE=HOST:PORT")
        addresses[name] = place
    target_s = None if adapt is None else parse_target(adapt)
    stop = threading.Event()

    def end(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # asked twice, it ends at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)

    def say(words: str) -> None:
        with suppress(OSError):  # a log that is full, or that nobody reads, stops no service
            print(f"{time.strftime('%H:%M:%S')} {device}: {words}", flush=True)

    site = ServiceConfig(
        addresses=addresses,
        service=service,
        keys=keys,
        config=config,
        target_s=target_s,
        switch_at=switch_at,
    )
    keep_freed_memory()
    with ExitStack() as stack:
        if keys is not None:
            stack.enter_context(telling_refusals(say))
        with as_signed(bundle, keys, signed, signed_since) as checked:  # all is loaded at once
            served = stack.enter_context(open_service(checked, device, site=site, say=say))
        places = [served.place]
        if http is not None or metrics is not None:
            places += stack.enter_context(open_http(served, http=http, metrics=metrics))
        say(f"serves {bundle} at {', '.join(places)}")
        served.work(stop)
    say("stopped")


def ask(
    host: Annotated[str, typer.Argument(help="The first device: HOST or HOST:PORT.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help=".npy files (a sample, or samples along axis 0), images, folders."),
    ] = None,
    *,
    deadline: Annotated[
        str, typer.Option(help="How long each may take, such as 500ms or 10s.")
    ] = "10s",
    priority: Annotated[int, typer.Option(help="Higher goes before others' requests.")] = 0,
    service: ServiceName = "main",
    keys: Keys = None,
    json_: Json = False,
) -> None:
    """Send inputs to a service and print the results; without inputs, print how it is.

    With --json an object a line, as answers come; what is no finite number is null.

    Example: `isthmus ask 10.0.0.5 images/ --deadline 2s`
    """
    from isthmus.data.inputs import read_inputs
    from isthmus.files import to_json
    from isthmus.report.ask_table import Answer, about_table, answers_table, finite
    from isthmus.run.client import Client
    from isthmus.units import parse_quantity

    with naming("--deadline"):
        deadline_s = parse_quantity(deadline, "s")
    with Client(host, service=service, deadline_s=deadline_s, keys=keys) as client:
        about = client.about()
        if not inputs and json_:
            print_text(to_json(about))
        elif not inputs:
            print_parts(about_table(about, client.host))
        if not inputs:
            return
        if len(about.inputs) != 1:
            raise InputError(
                f"{client.host}: takes {len(about.inputs)} inputs; ask it from Python, by "
                "isthmus.run.Client"
            )
        tensor = about.inputs[0]
        answers: list[Answer] = []
        with ExitStack() as stack:
            if not json_:  # what came before a file that cannot be read, too
                stack.callback(
                    lambda: print_parts(*([answers_table(answers, about)] if answers else []))
                )
            for name, sample in read_inputs(inputs, tensor.shape, tensor.dtype):
                start_s = time.perf_counter()
                facts: dict[str, Any] = {}
                try:
                    facts["outputs"] = got = client.ask(sample, priority=priority)
                    facts |= {"width": got.width, "early_exit": got.early_exit}
                except RequestError as error:
                    facts |= {"error": str(error), "reason": error.reason}
                answer = Answer(name=name, **facts, seconds=time.perf_counter() - start_s)
                answers.append(answer)
                if json_:
                    values = [finite(x) for x in answer.outputs]
                    print_text(json.dumps({**asdict(answer), "outputs": values}))
    num_failed = sum(bool(answer.error) for answer in answers)
    if num_failed:
        raise RunError(f"{num_failed} of {len(answers)} inputs have no result; see above")
