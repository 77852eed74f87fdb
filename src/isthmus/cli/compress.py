"""The commands that make a model smaller."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import (
    Bf16,
    DataDir,
    Download,
    Inputs,
    Json,
    Model,
    Weights,
    check_used,
    input_texts,
    print_json,
    print_parts,
    print_result,
    read_model,
    resumable,
)
from isthmus.errors import InputError


def techniques(*, json_: Json = False) -> None:
    """List every way to make a model smaller: paper, level, what it needs, what it improves.

    Example: `isthmus techniques`
    """
    from isthmus.compress import TECHNIQUES
    from isthmus.report.compress_tables import technique_rows, techniques_table

    if json_:
        print_json({"schema": "isthmus.techniques/1", "techniques": technique_rows(TECHNIQUES)})
    else:
        print_parts(techniques_table(TECHNIQUES))


def compress(
    model: Model,
    *,
    with_: Annotated[
        list[str],
        typer.Option(
            "--with",
            help="A technique and its options: prune:slimming,keep=0.5. Repeat for a chain, which "
            "is applied in order; `isthmus techniques` lists them.",
        ),
    ],
    weights: Weights = None,
    input_: Inputs = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="As in `isthmus fit`: techniques look at its training half, and the accuracy on "
            "its test half is shown."
        ),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    epochs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Passes over the training set after each technique; also for the model first, if "
            "it has no weights.",
        ),
    ] = 0,
    loss: Annotated[
        str | None,
        typer.Option(
            help="What is minimised, summed: task, hinton, decoupled, teacher-free, mutual; and "
            "of what the outermost blocks make: feature, attention, relational, fitnets, nst, "
            "boundary, flow; or simkd, alone.",
            show_default="task,hinton",
        ),
    ] = None,
    bf16: Bf16 = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("compressed"),
    json_: Json = False,
) -> None:
    """Make a model smaller, and write it as a folder that other commands take as MODEL.

    Interrupted, the same command goes on from the last finished epoch; until then the state of
    tuning lies in a hidden folder beside --out.

    Example: `isthmus compress digits-resnet --data digits --epochs 8 --with prune:l1,keep=0.75`
    """
    import torch

    from isthmus.compress import parse_chain
    from isthmus.data import load_data
    from isthmus.files import to_json
    from isthmus.models import carries_weights, reference
    from isthmus.models.load import is_random
    from isthmus.progress import shown
    from isthmus.report.compress_tables import compressed_tables
    from isthmus.study import compress_model
    from isthmus.train import FitConfig, augmentation_for
    from isthmus.train.fit import check_seed

    check_used(data is not None, "--data", data_dir=data_dir, download=download)
    check_used(epochs > 0, "--epochs", loss=loss, bf16=bf16)
    steps = parse_chain(with_)
    check_seed(seed)
    torch.manual_seed(seed)
    loaded, example = read_model(model, weights, input_)
    trained = weights is not None or carries_weights(model)
    if not trained and not epochs and is_random(model):
        raise InputError(
            f"{model} has random weights here; add --weights, or --data and --epochs to train it"
        )
    config = None
    if epochs:
        config = FitConfig(
            epochs=epochs,
            base_epochs=0 if trained else epochs,
            losses=tuple((loss or "task,hinton").split(",")),
            seed=seed,
            precision="bf16-mixed" if bf16 else "32-true",
            augmentation=augmentation_for(data or ""),
        )
    with resumable(bool(epochs)), shown() as progress:
        samples = None
        if data is not None:
            samples = load_data(data, data_dir=data_dir, download=download, progress=progress)
        facts = compress_model(
            loaded,
            reference(model),
            steps,
            example,
            out,
            inputs=input_texts(model, input_),
            data=samples,
            config=config,
            report=progress,
        )
    print_result(to_json(facts), *compressed_tables(facts, out), json_=json_)
