"""Two hosts that serve a bundle with keys, and a process that asks the first."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.run.bundles import FAST, write_chain
from tests.run.cable import HOSTS, Cable

NAMES = ("near", "far")
Result = Callable[[], dict[str, Any]]
Asking = Callable[[int, float], AbstractContextManager[Result]]


@contextmanager
def serving(cable: Cable, folder: Path) -> Iterator[Asking]:
    """Serve at both ends of a cable; yields what asks so many times, with such a deadline."""
    keys = pytest.importorskip("isthmus.run.keys", reason="needs cryptography")
    write_chain(folder / "bundle", FAST)
    keys.init_keys(folder / "keys")
    for name, hosts in (("near", HOSTS[:1]), ("far", HOSTS[1:]), ("laptop", ())):
        keys.issue_key(folder / "keys", name, hosts=hosts)
    at = [f"--at={name}={host}" for name, host in zip(NAMES, HOSTS, strict=True)]
    served = []
    for end, name in enumerate(NAMES):
        with (folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "isthmus", "serve", str(folder / "bundle"),
                       f"--device={name}", f"--keys={folder / 'keys' / name}", *at]  # fmt: skip
            served.append(subprocess.Popen([*cable.inside(end), *command], stderr=log, stdout=log))

    @contextmanager
    def asking(count: int, deadline_s: float) -> Iterator[Result]:
        command = [*cable.inside(0), sys.executable, "-m", "tests.run.asking", HOSTS[0],
                   str(folder / "keys" / "laptop"), str(count), str(deadline_s)]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "begun\n"
            yield lambda: json.loads(client.communicate(timeout=120)[0])

    try:
        yield asking
    finally:
        for process in served:
            process.kill()
            process.wait()
