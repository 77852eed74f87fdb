"""What a probe measured, for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from isthmus.report.tables import add_row, new_table
from isthmus.report.words import quantity
from isthmus.run.probe import ProbeRecord
from isthmus.run.rates import Quartiles


def probe_tables(record: ProbeRecord, written: Sequence[Path]) -> tuple[Table | Text, ...]:
    """Return the round trips by size, and what the platform file says of link and devices.

    Args:
        record: What was measured.
        written: The files, the platform file last.
    """
    near, far = record.near.name, record.far.name
    trips = new_table(
        f"Round trips to {record.host}: a frame one way, the smallest the other way",
        ("bytes", "r"), ("there", "r"), ("quartiles", "r"), ("back", "r"), ("quartiles", "r"),
    )  # fmt: skip
    for there, back in zip(record.there.trips, record.back.trips, strict=True):
        add_row(
            trips,
            f"{there.frame_bytes:,}",
            quantity(there.seconds.median, "s"),
            _range(there.seconds, "s"),
            quantity(back.seconds.median, "s"),
            _range(back.seconds, "s"),
        )
    figures = new_table("Measured", ("figure", "l"), ("median", "r"), ("quartiles", "r"))
    rates = record.there.bytes_per_s, record.back.bytes_per_s
    rows = (
        (f"rate {near} to {far}", rates[0], "byte/s"),
        (f"rate {far} to {near}", rates[1], "byte/s"),
        ("round trip of the smallest frames", record.round_trip_s, "s"),
        ("each message of a burst", record.message_s, "s"),
        *(
            (f"{probed.name} computes", probed.rates.macs_per_s, "MAC/s")
            for probed in (record.near, record.far)
        ),
    )
    for words, found, unit in rows:
        add_row(figures, words, quantity(found.median, unit), _range(found, unit))
    said = (
        f"The link: latency {quantity(record.latency_s, 's')}, set-up "
        f"{quantity(record.setup_s, 's')} for each message; {record.retries} frames sent again."
    )
    return trips, figures, Text(said), Text(f"Written: {', '.join(map(str, written))}")


def _range(found: Quartiles, unit: str) -> str:
    return f"{quantity(found.low, unit)} to {quantity(found.high, unit)}"
