"""What several commands take, and how they print."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TextIO

import typer

from isthmus.errors import InputError
from isthmus.files import as_if_at, check_our_file, check_writable, refusing, write_bytes

Model = Annotated[
    str,
    typer.Argument(
        help="A name (digits-resnet, resnet18 ...), path/to/file.py:function, timm:NAME, or a "
        "folder that `isthmus compress` made. A .py file runs: trusted local files only."
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
        help="digits, cifar10, cifar100, fashion-mnist, imagefolder:DIR (a folder per class under "
        "train and test), npz:FILE (x_train or x_train_0 ..., "
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
Requests = Annotated[
    int | None, typer.Option(min=1, help="How many test samples to take; all if left out.")
]
Adapt = Annotated[
    str | None,
    typer.Option(
        metavar="latency=TIME",
        help="Let the first device choose the width of nested crossings for each request, so that "
        "its answer is in time while the links are as slow as they are.",
    ),
]
Bf16 = Annotated[
    bool, typer.Option("--bf16", help="Train in bfloat16: faster where the processor has it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Keys = Annotated[
    Path | None,
    typer.Option(help="Folder of one's own certificate and key, as `isthmus keys issue` made it."),
]
Signed = Annotated[
    bool,
    typer.Option(
        "--signed", help="Take only a bundle that the authority of --keys signed (`keys sign`)."
    ),
]
SignedSince = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
        help="As --signed, and only one that was signed then (UTC) or later.",
    ),
]

_STDOUT: ContextVar[TextIO | None] = ContextVar("stdout", default=None)  # under --json


@contextmanager
def as_signed(
    bundle: Path, keys: Path | None, signed: bool, since: datetime | None
) -> Iterator[Path]:
    """Yield a bundle; where it must be signed, a checked copy that nobody else can change."""
    if not signed and since is None:
        yield bundle
        return
    from isthmus.run.keys import check_signature  # needs the extra `serve`

    if keys is None:
        raise InputError("--signed: needs --keys, the folder that holds the authority's ca.pem")
    check_signature(bundle, keys, since=since)
    with TemporaryDirectory(prefix="isthmus-signed-") as folder:
        copy = Path(folder, "bundle")
        with refusing(bundle, "cannot be copied to check it", "make room, or export it anew"):
            copytree(bundle, copy, symlinks=True)
        with as_if_at(bundle, copy):
            check_signature(copy, keys, since=since)
            yield copy


@contextmanager
def resumable(goes_on: bool = True) -> Iterator[None]:
    """Say of a command that is interrupted that it goes on where it stopped, where it does."""
    try:
        yield
    except KeyboardInterrupt:
        if goes_on:
            line = "isthmus: interrupted; the same command goes on where it stopped"
            print(line, file=sys.stderr)
        raise


def check_used(used: bool, needs: str, **options: Any) -> None:
    """Raise where options, by name, are given though nothing reads them without what they need."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given and not used:
        raise InputError(f"{', '.join(given)}: found without {needs}; add it, or leave this out")


def check_out(out: Path | None, *suffixes: str) -> None:
    """Raise where a result may not be written: by its name, or by what stands there."""
    if out is not None and out.suffix not in suffixes:
        raise InputError(f"--out {out}: expected a name that ends in {' or '.join(suffixes)}")
    if out is not None:
        (check_our_file if out.suffix == ".json" else check_writable)(out)


def read_model(
    model: str, weights: Path | None, inputs: list[str] | None
) -> tuple[Any, tuple[Any, ...]]:
    """Return a model as the command line names it, and an example of its input."""
    from isthmus.models import example_inputs, load_model

    loaded = load_model(model, weights=weights)
    return loaded, example_inputs(input_texts(model, inputs), loaded)


def input_texts(model: str, inputs: list[str] | None) -> list[str]:
    """Return the shapes of a model's inputs, as given or as known."""
    from isthmus.models import MODELS, carries_weights, read_compressed

    if inputs is None and model in MODELS:
        inputs = [MODELS[model].input]
    if inputs is None and carries_weights(model):
        inputs = list(read_compressed(Path(model)).inputs)
    if inputs is None:
        raise InputError(f"model {model!r}: its input is unknown; add --input, e.g. 1x3x32x32")
    return inputs


@contextmanager
def json_alone(arguments: Sequence[str]) -> Iterator[None]:
    """Under --json send to stderr what is printed otherwise than by `print_text`.

    Models and data are files of the user's, which may print whatever they like.
    """
    if "--json" not in arguments:
        yield
        return
    token = _STDOUT.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _STDOUT.reset(token)


def print_text(text: str) -> None:
    """Print what programs read."""
    print(text, file=_STDOUT.get(), flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print JSON for programs."""
    print_text(json.dumps(dict(value), indent=1))


def print_path(path: Path, *, json_: bool, **facts: str) -> None:
    """Print the path of what was made, or for programs facts about it."""
    if json_:
        print_json(facts)
    else:
        print(path)


def print_result(text: str, *parts: Any, json_: bool, out: Path | None = None) -> None:
    """Print a result: its JSON for programs, or tables and lines for people.

    Args:
        text: The JSON.
        parts: What people read.
        json_: Whether programs read it.
        out: A file; one of JSON gets it too, after it is told, as the disk may be full.
    """
    try:
        if json_:
            print_text(text)
        else:
            print_parts(*parts)
    finally:  # also where nobody reads to the end
        if out is not None and out.suffix == ".json":
            write_bytes(out, f"{text}\n".encode())


def print_parts(*parts: Any) -> None:
    """Print tables and lines."""
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)
