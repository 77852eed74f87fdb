"""Seeds and threads; fixtures only, no logic."""

import os

# One OpenMP thread per process, before torch or onnxruntime load: tests start worker processes,
# and spinning barriers make busy processes crawl on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--write-expected",
        action="store_true",
        help="write expected results anew, where a change to them is meant",
    )
