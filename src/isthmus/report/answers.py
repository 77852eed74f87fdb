"""What a study answers, in words with the figures; a question without data is not asked.

A difference counts as clear where it is more than twice its standard error over the seeds. With
one seed there is no such error, and the answer is that of the one run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from isthmus.report.findings import Row, Slope, beyond_spread, lines_of, slope_of
from isthmus.report.words import num_bytes, percent
from isthmus.study.transfer import CLAIM_RATIO, Claim, Reading, claims

CLAIMED = 0.7
HOLDS = 0.6  # "about 70 %", with room for the noise of a meter
_ONE_SEED = " Where there is one seed, no spread is known, and a small difference says nothing."
_WITHIN = " (within the spread of the seeds)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question of the study.

    Attributes:
        question: As people ask it.
        verdict: The answer in a few words.
        lines: The figures it rests on.
        note: How to read it; may be empty.
    """

    question: str
    verdict: str
    lines: tuple[str, ...]
    note: str = ""


def answers(rows: Sequence[Row], readings: Sequence[Reading] = ()) -> tuple[Answer, ...]:
    """Return every answer that the records and readings hold."""
    found = [_falls(rows), _resists(rows), _two_is_best(rows), _crosses(rows), _costs(rows)]
    found.append(_claim(readings))
    return tuple(answer for answer in found if answer is not None)


def headline(rows: Sequence[Row], readings: Sequence[Reading] = ()) -> str:
    """Return the study's finding in one sentence."""
    both = [pair for pair in _pairs(rows) if pair[0].ratio > 1]
    if both:
        ratios = {block.ratio for block, _ in both}
        ratio = CLAIM_RATIO if CLAIM_RATIO in ratios else max(ratios)
        chosen = [(block, cut) for block, cut in both if block.ratio == ratio]
        share = fmean(cut.num_bytes / block.num_bytes for block, cut in chosen)
        lost = 100 * fmean(block.mean - cut.mean for block, cut in chosen)
        return (
            f"At r = {ratio}, placement cut sends {percent(share)} of the bytes that placement "
            f"block sends, at {_change(-lost)} accuracy"
        )
    if rows:
        best = max(rows, key=lambda row: row.mean)
        name = f"{best.network}, placement {best.placement}, r = {best.ratio}"
        return f"Best of {len(rows)}: {name}, {percent(best.mean)}"
    answer = _claim(readings)
    return f"{answer.question} {answer.verdict}" if answer else "Nothing is finished yet"


def _falls(rows: Sequence[Row]) -> Answer | None:
    lines, falling = [], []
    for (network, placement), line in lines_of(rows).items():
        if len(line) < 2:
            continue
        first, last, slope = line[0], line[-1], slope_of(line)
        clear = beyond_spread(last.mean - first.mean, first.error, last.error)
        falling.append(slope.points < 0 and clear is not False)
        rises = sum(after.mean > before.mean for before, after in pairwise(line))
        lines.append(
            f"{network}, {placement}: {_slope(slope)} points for each doubling of r; "
            f"{_accuracy(first)} at r = {first.ratio}, {_accuracy(last)} at r = {last.ratio}"
            + (_WITHIN if clear is False else "")
            + (f"; it rises in {rises} of {len(line) - 1} steps" if rises else "")
        )
    if not lines:
        return None
    return Answer(
        question="Does accuracy fall with the ratio r?",
        verdict=_of(sum(falling), len(falling)),
        lines=tuple(lines),
        note="Slope of the straight line through the means, by the logarithm of r."
        + ("" if all(row.error is not None for row in rows) else _ONE_SEED),
    )


def _resists(rows: Sequence[Row]) -> Answer | None:
    groups: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in rows:
        group = groups.setdefault((row.placement, row.setting), {})
        group.setdefault(row.depth, []).append(row)
    words, lines = [], []
    for (placement, setting), networks in groups.items():
        ratios = set.intersection(*({row.ratio for row in line} for line in networks.values()))
        if len(networks) < 2 or len(ratios) < 2:
            continue
        slopes = {
            depth: slope_of([row for row in line if row.ratio in ratios])
            for depth, line in sorted(networks.items())
        }
        word = _order(list(slopes.values()))
        words.append(f"placement {placement}{setting}: {word}")
        each = ", ".join(f"ResNet-{depth} {_slope(slope)}" for depth, slope in slopes.items())
        span = f"r = {min(ratios)} to {max(ratios)}"
        lines.append(f"{placement}{setting}: {each} points for each doubling ({span})")
    if not lines:
        return None
    return Answer(
        question="Do deeper networks resist better?",
        verdict=_sentence("; ".join(words)),
        lines=tuple(lines),
        note="Over the ratios that all of them have. From ResNet-50 on, the blocks are narrow by "
        "4 before r divides them once more."
        + ("" if all(row.error is not None for row in rows) else _ONE_SEED),
    )


def _order(slopes: Sequence[Slope]) -> str:
    """Say whether slopes, shallow to deep, become less steep."""
    first, last = slopes[0], slopes[-1]
    values = [slope.points for slope in slopes]
    word = "yes" if values == sorted(values) and last.points > first.points else "not throughout"
    if last.points <= first.points:
        word = "no"
    clear = beyond_spread(last.points - first.points, first.error, last.error)
    return word + (_WITHIN if clear is False else "")


def _two_is_best(rows: Sequence[Row]) -> Answer | None:
    lines, best = [], []
    for (network, placement), line in lines_of(rows).items():
        by_ratio = {row.ratio: row for row in line}
        if line[0].depth not in (34, 50) or not {1, 2} <= by_ratio.keys():
            continue
        one, two = by_ratio[1], by_ratio[2]
        top = max(line, key=lambda row: row.mean)
        clear = beyond_spread(two.mean - one.mean, one.error, two.error)
        best.append(top is two)
        lines.append(
            f"{network}, {placement}: best at r = {top.ratio} ({_accuracy(top)}); r = 2 has "
            f"{_change(100 * (two.mean - one.mean))} than r = 1"
            + (_WITHIN if clear is False else "")
        )
    if not lines:
        return None
    return Answer(
        question="Is r = 2 best for ResNet-34 and ResNet-50?",
        verdict=_of(sum(best), len(best)),
        lines=tuple(lines),
    )


def _crosses(rows: Sequence[Row]) -> Answer | None:
    lines, less = [], []
    for (network, placement), line in lines_of(rows).items():
        first, last = line[0], line[-1]
        if first.ratio != 1 or len(line) < 2 or not first.cuts:
            continue
        before, after = _crossing(first), _crossing(last)
        if placement == "block":
            less.append(before != after)
        same = "the same" if before == after else after
        lines.append(f"{network}, {placement}: {before} at r = 1, {same} at r = {last.ratio}")
    if not less:
        return None
    places = " / ".join(cut["after"] for cut in rows[0].cuts)
    return Answer(
        question="Does placement block reduce what crosses?",
        verdict=_of(sum(less), len(less)),
        lines=tuple(lines),
        note=f"int8 bytes for one sample, cut after {places}.",
    )


def _crossing(row: Row) -> str:
    return " / ".join(num_bytes(cut["int8_bytes"]) for cut in row.cuts)


def _costs(rows: Sequence[Row]) -> Answer | None:
    changes: dict[str, list[str]] = {}
    points = []
    for block, cut in _pairs(rows):
        if block.ratio > 1:
            change = cut.mean - block.mean
            points.append(100 * change)
            clear = beyond_spread(change, block.error, cut.error)
            text = f"r = {block.ratio}: {100 * change:+.2f}" + ("*" if clear is False else "")
            changes.setdefault(block.network, []).append(text)
    if not points:
        return None
    return Answer(
        question="What does placement cut cost in accuracy at the same r?",
        verdict=f"{_sentence(_change(fmean(points)))} than placement block, mean of {len(points)}",
        lines=tuple(f"{network}: {', '.join(each)} points" for network, each in changes.items()),
        note="Placement cut against placement block."
        + (" *: within the spread of the seeds." if "*" in str(changes) else ""),
    )


def _claim(readings: Sequence[Reading]) -> Answer | None:
    found = claims(readings) if readings else ()
    if not found:
        return None
    places = list(dict.fromkeys(claim.placement for claim in found))
    words = []
    for place in places:
        meters = [claim.meter for claim in found if claim.placement == place and holds(claim)]
        words.append(
            f"placement {place}: {'by ' + ', '.join(meters) if meters else 'by no meter'}"
        )
    return Answer(
        question=f"Does ratio {CLAIM_RATIO} cut about {100 * CLAIMED:.0f} % of what passes at the "
        "fifth layer?",
        verdict=_sentence("; ".join(words)),
        lines=(
            *(f"{claim.placement}, {claim.meter}: {saving(claim)}" for claim in found),
            *_doubts(readings),
        ),
        note=f"It counts as holding where {100 * HOLDS:.0f} % or more is saved. memory and rss "
        "are what an allocator did; shape and wire are what is handed on; shape inside is the "
        "tensor inside a block, which a cut there would send beside the full-width shortcut.",
    )


def holds(claim: Claim) -> bool:
    """Tell whether a meter confirms the paper's claim; a negative transfer confirms nothing."""
    return claim.saved is not None and HOLDS <= claim.saved <= 1


def saving(claim: Claim) -> str:
    """Return what a meter says about the paper's claim."""
    span = f"{num_bytes(claim.before_bytes)} to {num_bytes(claim.after_bytes)} bytes"
    if claim.saved is None:
        return f"{span}: reads nothing at r = 1, says nothing"
    if claim.saved > 1:
        return f"{span}: reads less than nothing, says nothing"
    word = "holds" if holds(claim) else "does not hold"
    less = "less" if claim.saved >= 0 else "more"
    return f"{span}: {percent(abs(claim.saved))} {less}, {word}"


def _doubts(readings: Sequence[Reading]) -> list[str]:
    """Say of each meter how many of its readings no transfer could be."""
    lines = []
    for meter in dict.fromkeys(reading.meter for reading in readings):
        chosen = [reading for reading in readings if reading.meter == meter]
        total = sum(reading.repeats for reading in chosen)
        share = sum(reading.not_positive * reading.repeats for reading in chosen) / total
        if share > 0:
            lines.append(f"{meter}: {percent(share)} of its {total:,} readings are not positive")
    return lines


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return what both placements have: the same network and ratio."""
    cuts = {(row.network, row.ratio): row for row in rows if row.placement == "cut"}
    return [
        (row, cuts[row.network, row.ratio])
        for row in rows
        if row.placement == "block" and (row.network, row.ratio) in cuts
    ]


def accuracy_text(row: Row) -> str:
    """Return mean and spread in percent; the mean alone for one seed."""
    if row.spread is None:
        return f"{100 * row.mean:.2f}"
    return f"{100 * row.mean:.2f} \u00b1 {100 * row.spread:.2f}"


def _accuracy(row: Row) -> str:
    return f"{accuracy_text(row)} %"


def _slope(slope: Slope) -> str:
    error = "" if slope.error is None else f" \u00b1 {slope.error:.2f}"
    return f"{slope.points:+.2f}{error}"


def _change(points: float) -> str:
    return f"{abs(points):.2f} points {'less' if points < 0 else 'more'}"


def _of(count: int, total: int) -> str:
    """Return the verdict of a question that every line answers for itself."""
    if count in (0, total):
        word = "Yes" if count else "No"
        return word if total == 1 else f"{word}, in {'all' if count else 'none of'} {total}"
    return f"In {count} of {total}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
