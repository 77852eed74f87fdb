"""Execute a bundle, one process per device, and measure it."""

from isthmus.run.client import Client
from isthmus.run.launch import run_bundle
from isthmus.run.processes import Workers, start_workers
from isthmus.run.record import CrossingRecord, RunRecord, StageRecord

__all__ = [
    "Client",
    "CrossingRecord",
    "RunRecord",
    "StageRecord",
    "Workers",
    "run_bundle",
    "start_workers",
]
