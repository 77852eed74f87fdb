"""The command line: one function per command, in the order of the chain."""

import signal
import sys

import typer

from isthmus.cli.chain import demo, export, fit, platforms, profile, run
from isthmus.cli.compress import compress, techniques
from isthmus.cli.integers import integers
from isthmus.cli.keys import keys
from isthmus.cli.options import json_alone
from isthmus.cli.plan import plan
from isthmus.cli.probe import probe
from isthmus.cli.serve import ask, serve
from isthmus.cli.study import report, study
from isthmus.errors import InfeasibleError, IsthmusError
from isthmus.signals import raise_at

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fit a neural network onto chips joined by narrow links.",
)
_COMMANDS = (
    demo, profile, platforms, techniques, compress, plan, fit, export, integers, run, serve, ask,
    probe, study, report,
)  # fmt: skip
for command in _COMMANDS:
    app.command()(command)
app.add_typer(keys, name="keys")

_EXTRAS = {
    "torch": "fit", "lightning": "fit", "safetensors": "fit", "sklearn": "fit",
    "torch_pruning": "compress", "onnx": "fit", "onnxscript": "fit",
    "PIL": "fit", "plotly": "report", "jinja2": "report", "matplotlib": "report",
    "optuna": "study", "psycopg": "study", "psutil": "study", "sqlalchemy": "study",
    "filelock": "study", "cryptography": "serve", "prometheus_client": "serve",
    "openvino": "openvino", "starlette": "serve", "uvicorn": "serve",
}  # fmt: skip


def main() -> None:
    """Run one command; a user's mistake is one line and exit 1, wrong usage is typer's exit 2."""
    raise_at(signal.SIGTERM, lambda: SystemExit(143))  # so that workers are stopped
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # the terminal is closed; no nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        with json_alone(sys.argv):
            app()
    except InfeasibleError as error:
        one = len(error.violations) == 1
        lines = [str(error)] if one else ["no plan fits:", *map(str, error.violations)]
        line = "\n  ".join(lines)
    except IsthmusError as error:
        line = " ".join(str(error).split())
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        line = f'this command needs {error.name}; pip install "isthmus[{extra}]"'
    except OSError as error:
        line = f"{error.filename or 'system'}: {error.strerror or error}"
    else:
        return
    print(f"isthmus: {line}", file=sys.stderr)
    sys.exit(1)
