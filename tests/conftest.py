"""Threads, options, and which tests may run beside each other."""

import fcntl
import os
import tempfile

import hypothesis
import pytest

# One OpenMP thread per process, before torch or onnxruntime load: tests start worker processes,
# and spinning barriers make busy processes crawl on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is, no more.
hypothesis.settings.register_profile("isthmus", deadline=None)
hypothesis.settings.load_profile("isthmus")


def pytest_addoption(parser):
    parser.addoption(
        "--write-expected",
        action="store_true",
        help="write expected results anew, where a change to them is meant",
    )


def pytest_xdist_auto_num_workers():
    """Return one process more than there are cores, as many tests wait for a clock or a link."""
    return 1 + (os.cpu_count() or 1)


def pytest_collection_modifyitems(items):
    """Put files with tests that run alone last: before these, all others have to end."""
    files = {item.path for item in items if item.get_closest_marker("alone")}
    items.sort(key=lambda item: item.path in files)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Let tests marked ``alone`` run while no other worker of pytest-xdist runs one."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return (yield)
    place = os.path.join(tempfile.gettempdir(), f"isthmus-tests-{run}")
    with open(f"{place}.door", "a") as door, open(f"{place}.room", "a") as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # who waits to be alone keeps the others out
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)
