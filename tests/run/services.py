"""Services as people start them: a process for each device, by the command line."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.run.client import Client

LONG_S = 60.0  # no test waits so long unless something is wrong


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(kw_only=True)
class Devices:
    """The processes that serve a bundle."""

    bundle: Path
    ports: dict[str, int]
    options: tuple[str, ...] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *more: str, bundle: Path | None = None, log: str = "") -> None:
        at = [f"--at={each}=127.0.0.1:{port}" for each, port in self.ports.items()]
        with (self.bundle.parent / (log or f"{name}.log")).open("ab") as file:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "isthmus", "serve", bundle or self.bundle,
                 f"--device={name}", *at, *self.options, *more],
                stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def log(self, name: str) -> str:
        return (self.bundle.parent / f"{name}.log").read_text()

    def client(self, *, deadline_s: float = LONG_S, keys: Path | None = None) -> Client:
        first = next(iter(self.ports))
        return Client(f"127.0.0.1:{self.ports[first]}", deadline_s=deadline_s, keys=keys)

    def wait_for_log(self, name: str, words: str, *, times: int = 1) -> None:
        end_s = time.monotonic() + LONG_S
        while self.log(name).count(words) < times:
            assert time.monotonic() < end_s, f"{name}.log never said {words!r}:\n{self.log(name)}"
            time.sleep(0.02)


@contextmanager
def devices(bundle: Path, names: tuple[str, ...], *options: str) -> Iterator[Devices]:
    """Serve a bundle until the context ends; nothing is started yet."""
    found = Devices(
        bundle=bundle,
        ports=dict(zip(names, free_ports(len(names)), strict=True)),
        options=options,
    )
    try:
        yield found
    finally:
        for process in found.processes.values():
            process.kill()
            process.wait()
