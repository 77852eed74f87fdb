"""The command line: one function per command, in the order of the chain."""

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from isthmus.errors import InfeasibleError, InputError, IsthmusError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fit a neural network onto chips joined by narrow links.",
)

Model = Annotated[
    str,
    typer.Argument(
        help="A name (digits-resnet, resnet18 ...), path/to/file.py:function, or timm:NAME. "
        "A .py file runs: trusted local files only."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="safetensors, or a torch checkpoint of tensors alone; never run."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Shape of an input, batch first: 1x3x32x32 or NAME:1x16:int64. Repeat for several.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="digits, cifar10, cifar100, fashion-mnist, npz:FILE (x_train or x_train_0 ..., "
        "y_train, x_test, y_test), or file.py:function, which runs: trusted local files only."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Where the published files of data sets lie; or set $ISTHMUS_DATA."),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a missing data set from its publisher.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_EXTRAS = {
    "torch": "fit", "lightning": "fit", "torchmetrics": "fit", "safetensors": "fit",
    "sklearn": "fit", "onnx": "fit", "onnxscript": "fit",
    "PIL": "fit", "plotly": "report", "jinja2": "report", "matplotlib": "report",
    "optuna": "study", "psycopg": "study", "psutil": "study", "sqlalchemy": "study",
    "filelock": "study",
}  # fmt: skip


@app.command()
def demo(
    *,
    seed: Annotated[int, typer.Option(help="Of everything: weights, order, training.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("isthmus-demo"),
    json_: Json = False,
) -> None:
    """Run the whole chain on handwritten digits, in a minute or two on two cores.

    Trains a small ResNet that fits on neither of two microcontrollers, finds where to cut it,
    learns how little has to cross, and runs both halves as processes over an emulated SPI link.

    Example: `isthmus demo`
    """
    from isthmus.progress import shown
    from isthmus.report.demo import write_demo

    with shown() as progress:
        outcome = write_demo(out, seed=seed, report=progress)
    if json_:
        _print_json(outcome.summary)
    else:
        from isthmus.report.tables import demo_tables

        _print(*demo_tables(outcome.record, report=outcome.report))


@app.command()
def profile(
    model: Model,
    *,
    weights: Weights = None,
    input_: Inputs = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .json for the graph, .html for the plot.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show MACs, weights, activations, and the bytes that cross at every cut.

    Example: `isthmus profile resnet18 --input 1x3x32x32`
    """
    from isthmus.files import check_our_file, to_json, write_bytes
    from isthmus.graph import cuts
    from isthmus.graph.ir import SCHEMA
    from isthmus.report.tables import profile_tables

    if out is not None and out.suffix not in (".json", ".html"):
        raise InputError(f"--out {out}: expected a name that ends in .json or .html")
    graph = _capture(model, weights, input_)
    text = to_json(graph, schema=SCHEMA)
    if out is not None and out.suffix == ".html":
        from isthmus.report.page import write_profile

        write_profile(out, graph, title=model)
    elif out is not None:
        check_our_file(out)
        write_bytes(out, text.encode())
    if json_:
        print(text)
    else:
        _print(*profile_tables(graph, cuts(graph)))


@app.command()
def platforms(
    name: Annotated[str | None, typer.Argument(help="A preset, to print it as YAML.")] = None,
    *,
    json_: Json = False,
) -> None:
    """List the platform presets, or print one as YAML to start your own from.

    Example: `isthmus platforms two-mcu-spi > mine.yaml`
    """
    from isthmus.files import to_json
    from isthmus.platform import PRESETS, load_platform, preset_text
    from isthmus.platform.files import SCHEMA

    if name is not None:
        print(to_json(load_platform(name), schema=SCHEMA) if json_ else preset_text(name))
    elif json_:
        _print_json({"schema": SCHEMA, "presets": list(PRESETS)})
    else:
        from isthmus.report.tables import platforms_table

        _print(platforms_table([load_platform(preset) for preset in PRESETS]))


@app.command()
def plan(
    model: Model,
    platform: Annotated[str, typer.Argument(help="A preset (see `isthmus platforms`) or a file.")],
    *,
    weights: Weights = None,
    input_: Inputs = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="What carries inner crossings: raw:bits=16, uniform:bits=5, "
            "bottleneck:ratio=8,bits=8. Left out, a sensible narrow one is chosen and named."
        ),
    ] = None,
    cut: Annotated[
        str | None, typer.Option(help="Force the cut after this module, e.g. layer2.")
    ] = None,
    objective: Annotated[str, typer.Option(help="latency, throughput or energy.")] = "latency",
    out: Annotated[Path | None, typer.Option(help="File to write, plan.json.")] = None,
    json_: Json = False,
) -> None:
    """Choose cuts, devices and codecs; say what they cost, or what does not fit and by how much.

    Example: `isthmus plan digits-resnet two-mcu-spi --codec bottleneck:ratio=8,bits=4`
    """
    from isthmus.files import check_our_file, to_json, write_bytes
    from isthmus.graph import find_cut
    from isthmus.plan import partition
    from isthmus.plan.plan import SCHEMA
    from isthmus.platform import load_platform
    from isthmus.report.tables import plan_tables

    if out is not None:
        check_our_file(out)
    target = load_platform(platform)
    graph = _capture(model, weights, input_)
    try:
        found = partition(
            graph,
            target,
            objective=objective,
            codec=codec,
            cut=None if cut is None else find_cut(graph, cut).index,
        )
    except InfeasibleError as error:
        if json_:
            print(to_json(error.nearest, schema=SCHEMA))
        raise
    text = to_json(found, schema=SCHEMA) + "\n"
    if out is not None:
        write_bytes(out, text.encode())
    if json_:
        print(text, end="")
    else:
        _print(*plan_tables(found))


@app.command()
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
    eval_form: Annotated[
        bool,
        typer.Option(
            "--eval-form",
            help="Train the form of evaluation, for a model whose training differs in more than "
            "dropout and norms (DropPath, auxiliary heads).",
        ),
    ] = False,
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
    from isthmus.plan import Plan
    from isthmus.plan import plan as plans
    from isthmus.progress import shown
    from isthmus.report.tables import fit_table
    from isthmus.study import fit_plan
    from isthmus.train import FitConfig
    from isthmus.train.fitted import SCHEMA

    try:
        with shown() as progress:
            record = fit_plan(
                model,
                read_json(plan, Plan, schema=plans.SCHEMA),
                load_data(data, data_dir=data_dir, download=download, progress=progress),
                out,
                weights=weights,
                config=FitConfig(
                    epochs=epochs,
                    base_epochs=0 if weights else epochs,
                    seed=seed,
                    eval_form=eval_form,
                ),
                report=progress,
            )
    except KeyboardInterrupt:
        print("isthmus: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise
    if json_:
        print(to_json(record, schema=SCHEMA))
    else:
        _print(fit_table(record, out))


@app.command()
def export(
    fitted: Annotated[Path, typer.Argument(help="The folder that `isthmus fit` made.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("bundle"),
    json_: Json = False,
) -> None:
    """Write the bundle, a folder per device, and verify it against the model.

    Example: `isthmus export fitted --out bundle`
    """
    from isthmus.report.tables import verification_table
    from isthmus.study import export_fitted

    verification = export_fitted(fitted, out)
    if json_:
        _print_json({"bundle": str(out), **asdict(verification)})
    else:
        _print(verification_table(verification, out))


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="The folder that `isthmus export` made.")],
    *,
    data: Data,
    data_dir: DataDir = None,
    download: Download = False,
    requests: Annotated[
        int | None, typer.Option(min=1, help="How many test samples to send; all if left out.")
    ] = None,
    throttle: Annotated[
        bool, typer.Option(help="Make each link as slow as the platform's.")
    ] = True,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="TCP port on loopback; chosen by the system if left out."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make, with run.json.")] = None,
    json_: Json = False,
) -> None:
    """Run all stages here, a process each, over links as slow as the platform's.

    Devices run at this machine's speed; only the links are emulated.

    Example: `isthmus run bundle --data npz:data.npz --requests 200 --out run`
    """
    from isthmus.data import load_data
    from isthmus.files import check_ours, new_folder, to_json, write_json
    from isthmus.progress import shown
    from isthmus.report.tables import run_tables
    from isthmus.run import run_bundle
    from isthmus.run.record import RUN_FILE, SCHEMA

    if out is not None:
        check_ours(out, files=(RUN_FILE,))
    with shown() as progress:
        samples = load_data(data, data_dir=data_dir, download=download, progress=progress)
        record = run_bundle(
            bundle,
            samples.x_test,
            samples.y_test,
            requests=requests,
            warmup_inputs=samples.x_train,
            throttle=throttle,
            port=port,
            progress=lambda done, total: progress("requests", done, total),
        )
    if out is not None:
        with new_folder(out, files=(RUN_FILE,)) as folder:
            write_json(folder / RUN_FILE, record, schema=SCHEMA)
    if json_:
        print(to_json(record, schema=SCHEMA))
    else:
        _print(*run_tables(record))


@app.command()
def study(
    name: Annotated[
        str, typer.Argument(help="digits (3 minutes), small (2 cores), paper (GPU), or transfer.")
    ] = "digits",
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; study-NAME if left out.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database for many machines: postgresql://USER@HOST/DB.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    join: Annotated[
        bool, typer.Option("--join", help="Help with a study that was created elsewhere.")
    ] = False,
    meter: Annotated[
        list[str] | None,
        typer.Option(help="transfer only: memory, shape or wire. Repeat; all if left out."),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    json_: Json = False,
) -> None:
    """Run the paper's experiments: accuracy against ratio, and what passes from layer to layer.

    What is finished is not done again: stopped or killed, the same command goes on.

    Example: `isthmus study small --data-dir data --workers 2`
    """
    from isthmus.progress import shown
    from isthmus.report.study import study_tables, transfer_tables, write_study
    from isthmus.study.source import run_named, run_transfer

    folder = out or Path(f"study-{name}")
    if meter and name != "transfer":
        raise InputError("--meter: is for `isthmus study transfer` alone; leave it out")
    with shown() as progress:
        if name == "transfer":
            readings = run_transfer(folder, meter, report=progress)
            page = write_study(
                folder, title="Transfer", records=(), choice=None, readings=readings
            )
            parts = transfer_tables(readings)
            summary: dict[str, Any] = {"readings": len(readings)}
        else:
            outcome = run_named(
                name,
                folder,
                storage=storage,
                workers=workers,
                join=join,
                data_dir=data_dir,
                download=download,
                report=progress,
            )
            page = write_study(
                folder,
                title=f"Study {name}",
                records=outcome.records,
                choice=outcome.choice,
            )
            parts = study_tables(outcome.records)
            summary = asdict(outcome.summary)
    if json_:
        _print_json({"schema": "isthmus.study/1", "name": name, **summary, "page": str(page)})
    else:
        _print(*parts)
        print(page)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="What fit, export and run made, in any order.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    json_: Json = False,
) -> None:
    """Write one self-contained HTML page with the figures.

    Example: `isthmus report fitted bundle run --out report.html`
    """
    from isthmus.report.page import write_report

    write_report(folders, out)
    if json_:
        _print_json({"report": str(out)})
    else:
        print(out)


def main() -> None:
    """Run one command; a user's mistake is one line and exit 1, wrong usage is typer's exit 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are stopped
    try:
        app()
    except InfeasibleError as error:
        print("isthmus: no plan fits:", file=sys.stderr)
        for violation in error.violations:
            print(f"  {violation}", file=sys.stderr)
        sys.exit(1)
    except IsthmusError as error:
        print(f"isthmus: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        remedy = f'needs {error.name}; pip install "isthmus[{extra}]"'
        print(f"isthmus: this command {remedy}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"isthmus: {error.filename or 'system'}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def _capture(model: str, weights: Path | None, inputs: list[str] | None) -> Any:
    from isthmus.graph import capture
    from isthmus.models import MODELS, example_inputs, load_model

    loaded = load_model(model, weights=weights)
    if inputs is None and model in MODELS:
        inputs = [MODELS[model].input]
    if inputs is None:
        raise InputError(f"model {model!r}: its input is unknown; add --input, e.g. 1x3x32x32")
    return capture(loaded, example_inputs(inputs, loaded))


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(dict(value), indent=1))


def _print(*parts: Any) -> None:
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)
