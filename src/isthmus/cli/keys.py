"""The commands that make certificates for devices and clients of a service, and sign bundles."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import Json, print_path

keys = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make the certificates by which the devices and clients of a service know each other.\n\n"
    "Example: `isthmus keys init`, then `isthmus keys issue camera --host 10.0.0.5`",
)
Folder = Annotated[
    Path, typer.Option("--out", help="Folder of the authority; ca-key.pem never leaves it.")
]


@keys.command()
def init(*, out: Folder = Path("keys"), json_: Json = False) -> None:
    """Make a certificate authority, once for all devices and clients.

    Example: `isthmus keys init --out keys`
    """
    from isthmus.run.keys import CA, init_keys

    init_keys(out)
    print_path(out / CA, json_=json_, authority=str(out / CA))


@keys.command()
def issue(
    name: Annotated[
        str, typer.Argument(help="A device of the bundle, or a client by a name of its own.")
    ],
    *,
    out: Folder = Path("keys"),
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address at which others reach it, besides localhost. Repeat."
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long it is good.")] = 365,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Replace what it has; hosts stay if none are given."),
    ] = False,
    json_: Json = False,
) -> None:
    """Make a key and a certificate for a device or a client: a folder to copy to its machine.

    Example: `isthmus keys issue camera --host camera.local --host 10.0.0.5`
    """
    from isthmus.run.keys import issue_key

    place = issue_key(out, name, days=days, hosts=host or (), renew=renew)
    print_path(place, json_=json_, name=name, folder=str(place))


@keys.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="The folder that `isthmus export` made.")],
    *,
    keys: Annotated[
        Path, typer.Option(help="Folder of the authority, as `isthmus keys init` made it.")
    ] = Path("keys"),
    json_: Json = False,
) -> None:
    """Sign a bundle, so that devices can refuse any other: `isthmus serve --signed`.

    Example: `isthmus keys sign bundle --keys keys`
    """
    from isthmus.run.keys import sign_bundle

    place = sign_bundle(bundle, keys)
    print_path(place, json_=json_, signature=str(place))
