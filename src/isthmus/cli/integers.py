"""The command that writes stages for devices without floats."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import Data, DataDir, Download, Json, Requests, print_result


def integers(
    bundle: Annotated[Path, typer.Argument(help="The folder that `isthmus export` made.")],
    *,
    data: Data,
    data_dir: DataDir = None,
    download: Download = False,
    requests: Requests = None,
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("integers"),
    json_: Json = False,
) -> None:
    """Write stages of `quantize:int8` as integer arithmetic alone, for devices without floats.

    A file for each device: weights, biases, and the multipliers and shifts that bring each layer's
    sums to the next one's integers. Test samples are answered by these in numpy, and by the
    bundle's programs, and compared.

    Example: `isthmus integers bundle --data npz:data.npz --requests 200 --out integers`
    """
    from isthmus.data import load_data
    from isthmus.export import by_integers
    from isthmus.files import to_json
    from isthmus.progress import shown
    from isthmus.report.tables import integers_table

    with shown() as progress:
        samples = load_data(data, data_dir=data_dir, download=download, progress=progress)
        inputs = [x[:requests] for x in samples.x_test]
        record = by_integers(bundle, out, inputs, samples.y_test[:requests], report=progress)
    print_result(to_json(record), integers_table(record, out), json_=json_)
