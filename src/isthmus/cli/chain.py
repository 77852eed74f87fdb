"""The commands of the chain, from a model to measured figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.cli.options import (
    Adapt,
    Bf16,
    Data,
    DataDir,
    Download,
    Inputs,
    Json,
    Keys,
    Model,
    Requests,
    Signed,
    SignedSince,
    Weights,
    as_signed,
    check_out,
    print_json,
    print_parts,
    print_result,
    print_text,
    read_model,
    resumable,
)
from isthmus.errors import InputError, naming


def demo(
    *,
    seed: Annotated[int, typer.Option(help="Of everything: weights, order, training.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("isthmus-demo"),
    json_: Json = False,
) -> None:
    """Run the whole chain on handwritten digits, in about a minute on two cores.

    Trains a small ResNet that fits on neither of two microcontrollers, finds where to cut it,
    learns how little has to cross, and runs both halves as processes over an emulated SPI link.

    Example: `isthmus demo`
    """
    from isthmus.progress import shown
    from isthmus.report.demo import write_demo
    from isthmus.report.tables import demo_tables

    with shown() as progress:
        outcome = write_demo(out, seed=seed, report=progress)
    tables = demo_tables(outcome.record, report=outcome.report)
    print_result(json.dumps(outcome.summary, indent=1), *tables, json_=json_)


def profile(
    model: Model,
    *,
    weights: Weights = None,
    input_: Inputs = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Time every block on this machine instead; --out writes the table that a "
            "platform file names: `measured: times.json`.",
        ),
    ] = False,
    savings: Annotated[
        bool,
        typer.Option(
            "--savings",
            help="Count instead what ideas of hardware would save: im2col, FFT, Winograd, "
            "Strassen, repeated weights, dataflows, roofline; with --data also zeros.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="As in `isthmus fit`: samples of its training half, whose zeros count."),
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: .json, or .html for the plot of the costs."),
    ] = None,
    json_: Json = False,
) -> None:
    """Show MACs, weights, activations, and the bytes that cross at every cut.

    Example: `isthmus profile resnet18 --input 1x3x32x32`
    """
    from isthmus.files import to_json
    from isthmus.graph import capture, cuts
    from isthmus.report.tables import profile_tables

    if (measure and savings) or (data is not None and not savings):
        raise InputError("--savings: expected without --measure, and --data only with --savings")
    check_out(out, ".json", *([] if measure or savings else [".html"]))
    loaded, example = read_model(model, weights, input_)
    graph = capture(loaded, example)
    if savings:
        text, parts = _counted(loaded, graph, example, data, data_dir)
    elif measure:
        text, parts = _measured(loaded, graph, example)
    else:
        text, parts = to_json(graph), profile_tables(graph, cuts(graph))
    if out is not None and out.suffix == ".html":
        from isthmus.report.page import write_profile

        write_profile(out, graph, title=model)
    print_result(text, *parts, json_=json_, out=out)


def _measured(model: Any, graph: Any, example: tuple[Any, ...]) -> tuple[str, Sequence[Any]]:
    """Time a model on this machine; return the table as JSON, and for people."""
    from isthmus.files import to_json
    from isthmus.progress import shown
    from isthmus.report.times_table import times_table
    from isthmus.study import measure_nodes

    with shown() as progress:
        times = measure_nodes(model, graph, example, report=progress)
    return to_json(times), times_table(graph, times)


def _counted(
    model: Any, graph: Any, example: tuple[Any, ...], data: str | None, data_dir: Path | None
) -> tuple[str, Sequence[Any]]:
    """Count what ideas of hardware would save; return it as JSON, and for people."""
    from isthmus.compress import count_savings
    from isthmus.data import load_data
    from isthmus.report.compress_tables import savings_json, savings_tables
    from isthmus.study.compress import samples_of
    from isthmus.train import check_fits

    inputs: tuple[Any, ...] = ()
    if data is not None:
        samples = load_data(data, data_dir=data_dir)
        check_fits(model, samples)
        inputs = samples_of(model, example, samples).inputs
    counted = count_savings(model, example, inputs)
    return savings_json(counted), savings_tables(counted, graph.macs)


def platforms(
    name: Annotated[str | None, typer.Argument(help="A preset, to print it as YAML.")] = None,
    *,
    json_: Json = False,
) -> None:
    """List the platform presets, or print one as YAML to start your own from.

    Example: `isthmus platforms two-mcu-spi > mine.yaml`
    """
    from isthmus.files import to_json
    from isthmus.platform import PRESETS, Platform, load_platform, preset_text

    if name is not None:
        print_text(to_json(load_platform(name)) if json_ else preset_text(name))
    elif json_:
        print_json({"schema": Platform.SCHEMA, "presets": list(PRESETS)})
    else:
        from isthmus.report.tables import platforms_table

        print_parts(platforms_table([load_platform(preset) for preset in PRESETS]))


def fit(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="plan.json, as `isthmus plan` wrote it.")],
    *,
    data: Data,
    data_dir: DataDir = None,
    download: Download = False,
    weights: Weights = None,
    epochs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Passes over the training set; also for the base model if it has no weights.",
        ),
    ] = 20,
    drop: Annotated[
        float | None,
        typer.Option(
            help="Points of accuracy that may be lost: tries ever fewer bytes on held-out "
            "training samples, then fits with the fewest that do. For codecs with +entropy."
        ),
    ] = None,
    bytes_: Annotated[
        float | None,
        typer.Option(
            "--bytes", help="Mean payload that is allowed instead. For codecs with +entropy."
        ),
    ] = None,
    freeze_sender: Annotated[
        bool,
        typer.Option(
            "--freeze-sender",
            help="Keep the result that leaves the first device's network as it came, as where its "
            "firmware is fixed. Both results are always shown.",
        ),
    ] = False,
    loss: Annotated[
        str | None,
        typer.Option(
            help="What is minimised, summed: task, hinton, decoupled, teacher-free, feature, "
            "attention, relational, fitnets, nst, boundary, flow; with commas between. "
            "task,hinton if left out."
        ),
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled",
            help="Read no labels of the training half: learn from the whole model alone, --loss "
            "hinton. Where the test half has none either, its agreement is measured.",
        ),
    ] = False,
    eval_form: Annotated[
        bool,
        typer.Option(
            "--eval-form",
            help="Train the form of evaluation, for a model whose training differs in more than "
            "dropout and norms (DropPath, auxiliary heads).",
        ),
    ] = False,
    bf16: Bf16 = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("fitted"),
    json_: Json = False,
) -> None:
    """Learn the narrow crossings, and the base model where it came without weights.

    Interrupted, the same command goes on from the last finished epoch; until then the state of
    training lies in a hidden folder beside --out.

    Example: `isthmus fit net.py:make plan.json --weights w.safetensors --data npz:data.npz`
    """
    from isthmus.data import load_data
    from isthmus.files import read_json, to_json
    from isthmus.models import carries_weights
    from isthmus.plan import Plan
    from isthmus.progress import shown
    from isthmus.report.fit_tables import fit_result_tables
    from isthmus.report.tables import fit_table
    from isthmus.study import fit_plan
    from isthmus.train import FitConfig, augmentation_for

    if drop is not None and bytes_ is not None:
        raise InputError("--drop and --bytes: found both, expected one of them")
    with resumable(), shown() as progress:
        record = fit_plan(
            model,
            read_json(plan, Plan),
            load_data(
                data,
                data_dir=data_dir,
                download=download,
                unlabelled=unlabelled,
                progress=progress,
            ),
            out,
            weights=weights,
            config=FitConfig(
                epochs=epochs,
                base_epochs=0 if weights or carries_weights(model) else epochs,
                seed=seed,
                losses=tuple((loss or ("hinton" if unlabelled else "task,hinton")).split(",")),
                eval_form=eval_form,
                drop=drop,
                wanted_bytes=bytes_,
                sender="frozen" if freeze_sender else "tuned",
                precision="bf16-mixed" if bf16 else "32-true",
                augmentation=augmentation_for(data),
            ),
            report=progress,
        )
    tables = fit_table(record, out), *fit_result_tables(record)
    print_result(to_json(record), *tables, json_=json_)


def export(
    fitted: Annotated[Path, typer.Argument(help="The folder that `isthmus fit` made.")],
    *,
    early_exit: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Fit an answer of the first device alone, for when the others are silent; "
            "DATA as in `isthmus fit`.",
        ),
    ] = None,
    early_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Or let this one answer, a folder that `isthmus compress` made, such as a narrow "
            "width of the network.",
        ),
    ] = None,
    exit_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Share of requests that it answers anyway, those it is surest of.",
        ),
    ] = None,
    exit_agreement: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Or: as many as it may, this share of them as the model would."
        ),
    ] = None,
    exit_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Or: as many as it may, with at most so many points of accuracy lost; DATA needs "
            "labels for that.",
        ),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("bundle"),
    json_: Json = False,
) -> None:
    """Write the bundle, a folder per device, and verify it against the model.

    Example: `isthmus export fitted --out bundle`
    """
    from isthmus.models.compressed import ExitKind, ExitRule
    from isthmus.report.tables import verification_table
    from isthmus.study import export_fitted

    given: dict[ExitKind, float | None] = {
        "share": exit_share,
        "agreement": exit_agreement,
        "drop": exit_drop,
    }
    asked = [ExitRule(kind, value) for kind, value in given.items() if value is not None]
    options = "--exit-share, --exit-agreement, --exit-drop"
    if asked and early_exit is None:
        raise InputError(f"{options}: found no early exit; add --early-exit")
    if len(asked) > 1:
        raise InputError(f"{options}: found {len(asked)}, expected one of them")
    exit_data = None
    if early_exit is not None:
        from isthmus.data import load_data

        exit_data = load_data(
            early_exit, data_dir=data_dir, download=download, unlabelled=exit_drop is None
        )
    verification = export_fitted(
        fitted,
        out,
        exit_data=exit_data,
        exit_rule=asked[0] if asked else None,
        exit_model=early_model,
    )
    facts = json.dumps({"bundle": str(out), **asdict(verification)}, indent=1)
    print_result(facts, verification_table(verification, out), json_=json_)


def run(
    bundle: Annotated[Path, typer.Argument(help="The folder that `isthmus export` made.")],
    *,
    data: Data,
    data_dir: DataDir = None,
    download: Download = False,
    requests: Requests = None,
    throttle: Annotated[
        bool, typer.Option(help="Make each link as slow as the platform's.")
    ] = True,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="TCP port on loopback; chosen by the system if left out."
        ),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            metavar="ratio=R,bits=B",
            help="How much of a nested crossing to use; `isthmus fit` lists what each is worth. "
            "The widest if left out.",
        ),
    ] = None,
    adapt: Adapt = None,
    keys: Keys = None,
    signed: Signed = False,
    signed_since: SignedSince = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to make, with run.json and timeline.json, which ui.perfetto.dev opens."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Run all stages here, a process each, over links as slow as the platform's.

    Devices run at this machine's speed; only the links are emulated.

    Example: `isthmus run bundle --data npz:data.npz --requests 200 --out run`

    Example: `isthmus run bundle --data npz:data.npz --adapt latency=50ms`
    """
    from isthmus.bundle import count_samples, read_bundle
    from isthmus.data import load_data
    from isthmus.files import check_ours, new_folder, to_json, write_bytes, write_json
    from isthmus.progress import shown
    from isthmus.report.tables import run_tables
    from isthmus.run import run_bundle
    from isthmus.run.adapt import parse_target
    from isthmus.run.record import RUN_FILE
    from isthmus.run.timeline import TIMELINE_FILE
    from isthmus.wire.nested import parse_width

    files = (RUN_FILE, TIMELINE_FILE)
    if out is not None:
        check_ours(out, files=files)
    target_s = None if adapt is None else parse_target(adapt)
    traces: list[dict[str, Any]] = []
    with as_signed(bundle, keys, signed, signed_since) as checked, shown() as progress:
        samples = load_data(data, data_dir=data_dir, download=download, progress=progress)
        with naming(f"--data {data}"):
            count_samples(read_bundle(checked), samples.x_test)
        record = run_bundle(
            checked,
            samples.x_test,
            samples.y_test,
            requests=requests,
            warmup_inputs=samples.x_train,
            throttle=throttle,
            port=port,
            width=None if width is None else parse_width(width),
            target_s=target_s,
            timeline=traces.append,
            progress=lambda done, total: progress("requests", done, total),
        )
    try:  # it is told first, as the disk may be full, and written though nobody reads to the end
        print_result(to_json(record), *run_tables(record), json_=json_)
    finally:
        if out is not None:
            with new_folder(out, files=files) as folder:
                write_json(folder / RUN_FILE, record)
                write_bytes(folder / TIMELINE_FILE, json.dumps(traces[0]).encode())
