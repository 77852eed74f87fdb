"""Reaching the database of a study: one line for whatever goes wrong, one process at a time."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from isthmus.errors import StorageError, one_line

_MAX_RETRIES = 3  # of a cell whose workers die; running the study again begins anew
_LOCK_S = 300  # longest wait for another process that changes the study
_LOCK_NUMBER = 0x1574_4D05  # any; names our advisory lock within one PostgreSQL database
_BUSY_S = 60  # longest wait for another process's SQLite transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How a dead worker is found.

    Attributes:
        interval_s: Whole seconds between two signs of life.
        grace_s: Whole seconds of silence after which a cell is given to another worker.
    """

    interval_s: int = 15
    grace_s: int = 90


def shown(url: URL) -> str:
    """Return an address without its password."""
    return url.render_as_string(hide_password=True)


def parse_address(address: str) -> URL:
    """Parse and check the address of a database; psycopg is the driver for PostgreSQL.

    Raises:
        StorageError: It is no address, or one of a database that workers cannot share.
    """
    expected = "expected sqlite:///study.db or postgresql://user@host/database"
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise StorageError(f"storage: {address!r} is no database address; {expected}") from error
    kind = url.get_backend_name()
    if kind == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if kind != "sqlite" or url.database in (None, "", ":memory:"):
        raise StorageError(f"storage {shown(url)}: cannot be shared by workers; {expected}")
    return url


@contextmanager
def reaching(url: URL) -> Iterator[None]:
    """Turn whatever goes wrong with the database into one line.

    Raises:
        StorageError: Something did.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, Timeout) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        why = one_line(getattr(cause, "orig", None) or cause or error)
        raise StorageError(
            f"storage {shown(url)}: cannot be used ({why}); mend that or name another --storage"
        ) from error


@contextmanager
def alone(url: URL) -> Iterator[None]:
    """Let one process at a time through, on all machines; the lock of a dead one is free."""
    if url.get_backend_name() == "sqlite":
        with FileLock(f"{url.database}.lock", timeout=_LOCK_S):
            yield
        return
    engine = create_engine(url, poolclass=NullPool, connect_args=_connect_args(url))
    with engine.begin() as connection:
        # The first limit is ours; the second ends us should this machine vanish with the lock.
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_S}s'"))
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_LOCK_S}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})"))
        yield


@contextmanager
def connected(url: URL, heartbeat: Heartbeat) -> Iterator[RDBStorage]:
    """Connect optuna until the context ends; make its tables where they are missing."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    address = url.render_as_string(hide_password=False)
    try:
        with quiet():
            storage = RDBStorage(
                address.replace("{", "{{").replace("}", "}}"),  # optuna formats it
                engine_kwargs={"pool_pre_ping": True, "connect_args": _connect_args(url)},
                heartbeat_interval=heartbeat.interval_s,
                grace_period=heartbeat.grace_s,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(_MAX_RETRIES),
            )
    except RuntimeError as error:  # of another optuna; says how to bring it up to date
        raise StorageError(f"storage {shown(url)}: {error}") from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _connect_args(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": _BUSY_S}
    # Heartbeats are compared as local times, so all sessions have to have one clock.
    options = {} if "options" in url.query else {"options": "-c timezone=UTC"}
    return {"connect_timeout": 10, **options}


@contextmanager
def quiet() -> Iterator[None]:
    """Hide that heartbeats are experimental, and meant for optuna's own loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        yield
