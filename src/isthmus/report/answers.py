"""What a study answers, in words with the figures; what its records leave open is said too.

A difference counts as clear where it is more than twice its standard error over the seeds, whose
spread is pooled over all rows that have several. Where every row has one seed there is no such
error, and the answer is that of the one run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from isthmus.report.findings import Row, Slope, beyond_spread, lines_of, slope_of
from isthmus.report.words import num_bytes, percent
from isthmus.study.transfer import CLAIM_RATIO, Claim, Reading, claims

CLAIMED = 0.7
HOLDS = 0.6  # "about 70 %", with room for the noise of a meter
_WITHIN = "within the spread of the seeds"
_ONE_SEED = "one seed, so no spread is known"
_WORDS = {"yes": True, "no": False, "not clear": None}


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


_Answered = tuple[str, list[str], str] | None  # verdict, lines and note, where rows answer


def answers(rows: Sequence[Row], readings: Sequence[Reading] = ()) -> tuple[Answer, ...]:
    """Return every answer that the records and readings hold, then what the records leave open."""
    found, left = [], []
    for question, (answer, needs) in _QUESTIONS.items() if rows else ():
        answered = answer(rows)
        if answered:
            verdict, lines, note = answered
            found.append(Answer(question=question, verdict=verdict, lines=tuple(lines), note=note))
        else:
            left.append(f"{question} It takes {needs}.")
    if left:
        verdict = f"{len(left)} of {len(_QUESTIONS)} questions"
        found.append(
            Answer(question="What is not answered here?", verdict=verdict, lines=tuple(left))
        )
    claim = _claim(readings)
    return (*found, claim) if claim else tuple(found)


def headline(rows: Sequence[Row], readings: Sequence[Reading] = ()) -> str:
    """Return the study's finding in one sentence."""
    both = [pair for pair in _pairs(rows) if pair[0].ratio > 1]
    if both:
        ratios = {block.ratio for block, _ in both}
        ratio = CLAIM_RATIO if CLAIM_RATIO in ratios else max(ratios)
        chosen = [(block, cut) for block, cut in both if block.ratio == ratio]
        share = fmean(cut.num_bytes / block.num_bytes for block, cut in chosen)
        change, doubt = _mean_change(chosen)
        return (
            f"At r = {ratio}, placement cut sends {percent(share)} of the bytes that placement "
            f"block sends, at {_change(change)} accuracy{doubt}"
        )
    if rows:
        best = max(rows, key=lambda row: row.mean)
        name = f"{best.network}, placement {best.placement}, r = {best.ratio}"
        return f"Best of {len(rows)}: {name}, {percent(best.mean)}"
    if shapes := saved_by_shape(readings):
        return f"Ratio {CLAIM_RATIO} saves {shapes} of what the fifth layer passes on"
    answer = _claim(readings)
    return f"{answer.question} {answer.verdict}" if answer else "Nothing is finished yet"


def _falls(rows: Sequence[Row]) -> _Answered:
    lines: list[str] = []
    falling: list[bool | None] = []
    for (network, placement), line in lines_of(rows).items():
        if len(line) < 2:
            continue
        first, last, slope = line[0], line[-1], slope_of(line)
        clear = beyond_spread(slope.points, slope.error)
        falling.append(slope.points < 0 if clear is not False else None)
        rises = sum(after.mean > before.mean for before, after in pairwise(line))
        lines.append(
            f"{network}, {placement}: {_slope(slope)} points for each doubling of r"
            + (f" ({_WITHIN})" if clear is False else "")
            + f"; {_accuracy(first)} at r = {first.ratio}, {_accuracy(last)} at r = {last.ratio}"
            + (f"; it rises in {rises} of {len(line) - 1} steps" if rises else "")
        )
    if not lines:
        return None
    note = "Slope of the straight line through the means, by the logarithm of r. "
    if _doubt(rows):
        note += f"There is {_ONE_SEED}, and a small difference says nothing."
    else:
        note += f"A change counts as {_WITHIN} up to twice its standard error, of a spread "
        note += "pooled over all rows with several seeds."
    return _of(falling) + _doubt(rows), lines, note


def _resists(rows: Sequence[Row]) -> _Answered:
    groups: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for (_, placement), line in lines_of(rows).items():
        groups.setdefault((placement, line[0].setting), {})[line[0].depth] = line
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
        span = ", ".join(map(str, sorted(ratios)))
        lines.append(f"{placement}{setting}: {each} points for each doubling (r = {span})")
    if not lines:
        return None
    note = (
        "Over the ratios that all of them have. From ResNet-50 on, the blocks are narrow by 4 "
        "before r divides them once more."
    )
    return _sentence("; ".join(words)) + _doubt(rows), lines, note


def _order(slopes: Sequence[Slope]) -> str:
    """Say whether slopes, shallow to deep, become less steep."""
    first, last = slopes[0], slopes[-1]
    values = [slope.points for slope in slopes]
    word = "yes" if values == sorted(values) and last.points > first.points else "not throughout"
    if last.points <= first.points:
        word = "no"
    clear = beyond_spread(last.points - first.points, first.error, last.error)
    return word + (f" ({_WITHIN})" if clear is False else "")


def _two_is_best(rows: Sequence[Row]) -> _Answered:
    lines: list[str] = []
    best: list[bool | None] = []
    for (network, placement), line in lines_of(rows).items():
        by_ratio = {row.ratio: row for row in line}
        if line[0].depth not in (34, 50) or not {1, 2} <= by_ratio.keys():
            continue
        two = by_ratio[2]
        other = max((row for row in line if row is not two), key=lambda row: row.mean)
        top = max(two, other, key=lambda row: row.mean)
        clear = beyond_spread(two.mean - other.mean, two.error, other.error)
        best.append(top is two if clear is not False else None)
        lines.append(
            f"{network}, {placement}: best of r = {', '.join(map(str, by_ratio))} is r = "
            f"{top.ratio} ({_accuracy(top)}); r = 2 has {_change(100 * (two.mean - other.mean))} "
            f"than r = {other.ratio}" + (f" ({_WITHIN})" if clear is False else "")
        )
    if not lines:
        return None
    absent = [f"ResNet-{depth}" for depth in (34, 50) if depth not in {row.depth for row in rows}]
    note = f"Not run: {', '.join(absent)}." if absent else ""
    return _of(best) + _doubt(rows), lines, note


def _crosses(rows: Sequence[Row]) -> _Answered:
    lines: list[str] = []
    less: list[bool | None] = []
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
    return _of(less), lines, f"int8 bytes for one sample, cut after {places}."


def _crossing(row: Row) -> str:
    return " / ".join(num_bytes(cut["int8_bytes"]) for cut in row.cuts)


def _costs(rows: Sequence[Row]) -> _Answered:
    plain = {row.network: row for row in rows if row.ratio == 1}
    pairs = [pair for pair in _pairs(rows) if pair[0].ratio > 1]
    if not pairs:
        return None
    changes: dict[str, list[str]] = {}
    for block, cut in pairs:
        against = [("block", block)]
        if block.network in plain:
            against.append(("r = 1", plain[block.network]))
        for name, other in against:
            change = cut.mean - other.mean
            mark = "*" if beyond_spread(change, cut.error, other.error) is False else ""
            line = changes.setdefault(f"{block.network}, against {name}", [])
            line.append(f"r = {block.ratio}: {100 * change:+.2f}{mark}")
    change, doubt = _mean_change(pairs)
    verdict = f"{_change(change)} than placement block, mean of {len(pairs)}{doubt}"
    lines = [f"{name}: {', '.join(each)} points" for name, each in changes.items()]
    note = "Placement cut less placement block at the same r, and less the plain network. "
    note += "Block narrows every block, so it has fewer weights and MACs than cut at the same r."
    note += f" *: {_WITHIN}." if "*" in str(changes) else ""
    return f"Nothing: {verdict}" if change >= 0 else verdict, lines, note


def _mean_change(pairs: Sequence[tuple[Row, Row]]) -> tuple[float, str]:
    """Return by how many points placement cut is better, on average, and what is to doubt."""
    change = fmean(cut.mean - block.mean for block, cut in pairs)
    errors = [row.error for pair in pairs for row in pair]
    mean = [None if error is None else error / len(pairs) for error in errors]
    within = f" ({_WITHIN})" if beyond_spread(change, *mean) is False else ""
    return 100 * change, within or _doubt([row for pair in pairs for row in pair])


def _claim(readings: Sequence[Reading]) -> Answer | None:
    found = claims(readings)
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
        f"fifth layer, {found[0].layer}?",
        verdict=_sentence("; ".join(words)),
        lines=(
            *(f"{claim.placement}, {claim.meter}: {saving(claim)}" for claim in found),
            *doubts(readings),
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
        nothing = "less than nothing" if claim.before_bytes < 0 else "nothing"
        return f"{span}: reads {nothing} at r = 1, says nothing"
    if claim.saved > 1:
        return f"{span}: reads less than nothing, says nothing"
    word = "holds" if holds(claim) else "does not hold"
    less = "less" if claim.saved >= 0 else "more"
    return f"{span}: {percent(abs(claim.saved))} {less}, {word}"


def saved_by_shape(readings: Sequence[Reading]) -> str:
    """Return what each placement saves at the fifth layer, by shape; empty if nothing says it."""
    return " and ".join(
        f"{percent(claim.saved)} with placement {claim.placement}"
        for claim in claims(readings)
        if claim.meter == "shape" and claim.saved is not None
    )


def doubts(readings: Sequence[Reading]) -> list[str]:
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


def _doubt(rows: Sequence[Row]) -> str:
    """Return what a verdict on some rows must say of itself."""
    return f" ({_ONE_SEED})" if all(row.error is None for row in rows) else ""


def _of(found: Sequence[bool | None]) -> str:
    """Return the verdict of a question that every line answers for itself; None is unclear."""
    counts = {word: found.count(each) for word, each in _WORDS.items() if each in found}
    if len(counts) > 1:
        return _sentence(", ".join(f"{word} in {count}" for word, count in counts.items()))
    (word,), total = counts, len(found)
    if word == "not clear":
        return f"Not clear, {_WITHIN}"
    return _sentence(
        word if total == 1 else f"{word}, in {'all' if word == 'yes' else 'none of'} {total}"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# What the study is asked, who answers, and what that takes.
_QUESTIONS: dict[str, tuple[Callable[[Sequence[Row]], _Answered], str]] = {
    "Does accuracy fall with the ratio r?": (_falls, "one network at two ratios"),
    "Do deeper networks resist better?": (_resists, "two depths that share two ratios"),
    "Is r = 2 best for ResNet-34 and ResNet-50?": (
        _two_is_best,
        "one of them at r = 1 and r = 2",
    ),
    "Does placement block reduce what crosses?": (
        _crosses,
        "placement block at r = 1 and at another ratio",
    ),
    "What does placement cut cost in accuracy at the same r?": (
        _costs,
        "both placements at one ratio above 1",
    ),
}
