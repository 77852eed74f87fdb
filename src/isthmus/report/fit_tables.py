"""What a fit came to, as tables: both ways to tune, and the sizes that were tried."""

from rich.table import Table

from isthmus.report.tables import add_row, new_table
from isthmus.report.words import judged, num_bytes, percent
from isthmus.train import FitRecord

_FAR = 1.03  # times the size that was wanted
_SENDERS = {
    "frozen": "the first device's network as it came",
    "tuned": "everything tuned",
}


def fit_result_tables(record: FitRecord) -> tuple[Table, ...]:
    """Return both results of a fit, its ladder and what its widths are worth, where it has them.

    Args:
        record: The facts of the fit.
    """
    found = ((record.ladder, _ladder), (record.results, _results), (record.widths, _widths))
    return tuple(table(record) for rows, table in found if rows)


def _ladder(record: FitRecord) -> Table:
    """The rung that was taken is marked."""
    table = new_table(
        "The ladder, on held-out training samples",
        ("wanted bytes", "r"), ("mean payload", "r"), ("accuracy", "r"), ("drop, points", "r"),
        ("", "l"),
    )  # fmt: skip
    taken = [r for r in record.ladder if r.payload_bytes == record.config.wanted_bytes][:1]
    for rung in record.ladder:
        add_row(
            table,
            num_bytes(rung.wanted_bytes),
            num_bytes(rung.payload_bytes),
            percent(rung.accuracy),
            f"{rung.drop:.2f}",
            "taken" if rung in taken else "",
        )
    return table


def _widths(record: FitRecord) -> Table:
    """A row for each ratio, a column for each number of bits."""
    bits = sorted({result.width.bits for result in record.widths}, reverse=True)
    table = new_table(
        f"What each width is worth, on the test set of {record.data}",
        ("ratio", "r"), *((f"{number} bits", "r") for number in bits),
    )  # fmt: skip
    for ratio in dict.fromkeys(result.width.ratio for result in record.widths):
        row = {r.width.bits: r for r in record.widths if r.width.ratio == ratio}
        cells = (f"{percent(row[b].accuracy)}, {num_bytes(row[b].payload_bytes)} B" for b in bits)
        add_row(table, str(ratio), *cells)
    return table


def _results(record: FitRecord) -> Table:
    table = new_table(
        f"Both ways to tune, on the test set of {record.data}",
        ("what was tuned", "l"), (judged(record).split()[0], "r"), ("drop, points", "r"),
        ("mean payload", "r"), ("", "l"),
    )  # fmt: skip
    for result in record.results:
        payloads = ", ".join(num_bytes(size) for size in result.payload_bytes)
        drop = 100 * (record.accuracy_whole - result.accuracy)
        kept = "kept" if result.sender == record.config.sender else ""
        what, wanted = _SENDERS[result.sender], record.config.wanted_bytes
        add_row(table, what, percent(result.accuracy), f"{drop:.2f}", payloads, kept)
        pairs = zip(record.plan.crossings, result.payload_bytes, strict=True)
        coded = sum(size for crossing, size in pairs if crossing.codec.endswith("+entropy"))
        if kept and wanted and coded > _FAR * wanted:
            learned = any(c.codec.startswith("bottleneck") for c in record.plan.crossings)
            keeps = (
                "" if learned else "; of what is entropy-coded a bottleneck alone keeps to a size"
            )
            table.caption = (
                f"{num_bytes(wanted)} bytes were wanted, which is not met: more --epochs come "
                f"nearer{keeps}."
            )
    return table
