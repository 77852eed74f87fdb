"""What a probe measured as a platform file, the source of each figure beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

import yaml

from isthmus.errors import InputError
from isthmus.files import check_our_file, check_writable, write_bytes, write_json
from isthmus.platform.platform import Platform
from isthmus.run.probe import Direction, ProbeRecord
from isthmus.run.probed import Probed
from isthmus.run.rates import Quartiles
from isthmus.units import exact_quantity, format_quantity

_LONGEST_WORDS = 500
_WIDTH = 95


def times_file(out: Path, probed: Probed) -> Path:
    """Return where the node times of a device stand: beside the platform file."""
    return out.with_name(f"{out.stem}.{probed.name}.json")


def check_out(out: Path) -> None:
    """Raise an `InputError` if a platform file cannot be written at a path, or is not ours."""
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: expected a name that ends in .yaml")
    check_writable(out)
    if out.is_dir() or (out.exists() and Platform.SCHEMA not in out.read_text("utf-8", "replace")):
        raise InputError(f"--out {out}: exists and is no platform file; name another")


def write_platform(out: Path, record: ProbeRecord, *, day: str) -> tuple[Path, ...]:
    """Write the platform file of a probe, and the tables of node times that it names.

    Args:
        out: The file.
        record: What was measured.
        day: When, for people.

    Returns:
        What was written, the platform file last.

    Raises:
        InputError: Something else is there, or it cannot be written.
    """
    check_out(out)
    tables = [
        (times_file(out, probed), probed.times)
        for probed in (record.near, record.far)
        if probed.times is not None
    ]
    for path, _ in tables:
        check_our_file(path)
    for path, times in tables:
        write_json(path, times)
    text = "\n".join(_lines(out, record, day)) + "\n"
    write_bytes(out, text.encode())
    return (*(path for path, _ in tables), out)


def _lines(out: Path, record: ProbeRecord, day: str) -> Iterator[str]:
    """Yield the lines of YAML that `isthmus.platform.load_platform` reads."""
    near, far, there, back = record.near, record.far, record.there, record.back
    transport = "TLS" if record.secured else "TCP"
    yield f"# Measured by `isthmus probe {record.host}` on {day}, Isthmus {record.version}."
    yield "#"
    yield from _comment("", f"{near.name}: {near.machine}")
    yield from _comment("", f"{far.name}: {far.machine}")
    yield from _comment(
        "",
        f"The link: round trips over the hop that carries frames, by zenoh over {transport}; "
        f"{record.retries} frames were sent again. Figures are medians, with their quartiles.",
    )
    yield ""
    yield f"schema: {Platform.SCHEMA}"
    yield f"name: {yaml_name(f'{near.name[:31]}-{far.name[:31]}')}"
    yield "devices:"
    for probed in (near, far):
        yield from _device_lines(probed, out)
    yield "links:"
    yield f"  - between: [{yaml_name(near.name)}, {yaml_name(far.name)}]"
    rates = f"{near.name} to {far.name} {_rate_words(there)}, back {_rate_words(back)}"
    yield from _comment("    ", f"measured: {rates}; of frame bytes, with what {transport} adds")
    yield f"    bandwidth: {format_quantity(8 * there.bytes_per_s.median, 'bit/s')}"
    trip = f"that of the smallest frames takes {_range(record.round_trip_s, 's')}"
    rest = "half of what a round trip takes besides its bytes, less the set-up"
    yield from _comment("    ", f"measured: {rest}; {trip}")
    yield f"    latency: {format_quantity(record.latency_s, 's')}"
    between = f"the smallest frames, sent at once, come {_range(record.message_s, 's')} apart"
    yield from _comment("    ", f"measured: {between}, less their bytes")
    yield f"    setup: {format_quantity(record.setup_s, 's')}"
    yield f"input: {yaml_name(near.name)}"
    yield f"output: {yaml_name(far.name)}"


def yaml_name(name: str) -> str:
    """Return a name as YAML reads it back: in quotes where it would read a number or a truth."""
    return name if yaml.safe_load(name) == name else json.dumps(name)


def _device_lines(probed: Probed, out: Path) -> Iterator[str]:
    rates = probed.rates
    yield f"  {yaml_name(probed.name)}:"
    yield "    kind: probed"
    if rates.memory_bytes is not None:
        memory = exact_quantity(rates.memory_bytes, "byte", written=("KiB",))
        yield f"    memory: {memory}  # spec: all that its system has"
    best = f"the best of them {_range(rates.macs_per_s, 'MAC/s')}"
    yield from _comment("    ", f"measured: products of matrices, onnxruntime, 1 thread; {best}")
    yield f"    compute: {{fp32: {format_quantity(rates.macs_per_s.median, 'MAC/s')}}}"
    yield "    efficiency:  # measured: smaller and larger products"
    yield from (f"      {macs:.0f} MAC: {share:.3f}" for macs, share in rates.shares)
    yield from _comment("    ", f"measured: a product of numbers, {_range(rates.start_s, 's')}")
    yield f"    start: {format_quantity(rates.start_s.median, 's')}"
    if probed.times is not None:
        yield f"    measured: {times_file(out, probed).name}"


def _rate_words(direction: Direction) -> str:
    rate = direction.bytes_per_s
    bits = Quartiles(median=8 * rate.median, low=8 * rate.low, high=8 * rate.high)
    largest = format_quantity(direction.trips[-1].frame_bytes, "byte")
    return f"{_range(bits, 'bit/s')} by frames of up to {largest}"


def _range(found: Quartiles, unit: str) -> str:
    low, median, high = (
        format_quantity(value, unit) for value in (found.low, found.median, found.high)
    )
    return f"{median} ({low} to {high})"


def _comment(indent: str, text: str) -> Iterator[str]:
    """Return words as comments; some are the other side's, so only plain characters stay."""
    plain = "".join(c for c in text if c.isascii() and c.isprintable())[:_LONGEST_WORDS]
    return (f"{indent}# {line}" for line in wrap(plain, _WIDTH - len(indent)))
