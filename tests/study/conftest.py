"""Databases for a study: SQLite, and PostgreSQL where the server is installed."""

import multiprocessing
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

USERS = ("postgres", "nobody")  # the server refuses to run as root


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A PostgreSQL server of our own, on a socket in a folder."""

    programs: Path
    folder: Path
    user: str | None

    def url(self, database: str) -> str:
        return f"postgresql://tester@/{database}?host={self.folder}"

    def call(self, program: str, *args: str) -> None:
        subprocess.run(
            [self.programs / program, "-D", self.folder / "data", *args],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self.user,
            cwd=self.folder,
            timeout=60,
        )

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        self.call("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        self.call("pg_ctl", "stop", "-w", "-m", "immediate")

    def create(self, database: str) -> str:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())
        return self.url(database)


def programs() -> Path | None:
    """Return the folder of PostgreSQL's server programs; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return newest[-1].parent if newest else None


def other_user() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in USERS if user in known), None)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    found = programs()
    if found is None:
        pytest.skip("the PostgreSQL server (initdb) is not installed")
    user = other_user() if os.geteuid() == 0 else None
    if os.geteuid() == 0 and user is None:
        pytest.skip(f"PostgreSQL refuses to run as root, and there is no user {USERS[0]}")
    folder = Path(tempfile.mkdtemp(prefix="isthmus-postgres-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        started = Server(programs=found, folder=folder, user=user)
        started.call("initdb", "-U", "tester", "-A", "trust", "-E", "UTF8", "-N", "--locale=C")
        started.start()
        yield started
        started.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def postgresql(server, request):
    return server.create(f"db{abs(hash(request.node.nodeid))}")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """The address of an empty database, of both kinds."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def processes():
    """How tests start processes: all from one that has done the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isthmus.study.workers"])
    return context
