"""The width of nested crossings follows the links, request by request."""

from dataclasses import replace

import numpy as np
import pytest

from isthmus.bundle import WidthEntry, read_bundle, write_bundle
from isthmus.errors import InputError
from isthmus.platform import Link
from isthmus.run import run_bundle, start_workers
from isthmus.run.adapt import Adapter, Rung, parse_target, rungs
from isthmus.wire import HEADER_BYTES
from isthmus.wire.nested import Width, payload_bytes_at, widths
from tests.run.bundles import FAST, samples, write_chain
from tests.run.services import devices
from tests.run.test_launch import NESTED, nested_logits, write_nested

LADDER = tuple(
    Rung(width=Width(ratio=1 << 5 - k, bits=8), byte=5 - k << 4 | 8, link_s=0.001 * 2**k)
    for k in range(6)
)  # 1 to 32 ms


def drive(adapter, count, base_s, slowdown, generator):
    """Let links be so slow; return what each request took, and how wide it was."""
    seconds, link_s = [], []
    for _ in range(count):
        rung = adapter.choose()
        took_s = (base_s + slowdown * rung.link_s) * generator.uniform(0.95, 1.05)
        adapter.learn(rung.byte, took_s)
        seconds.append(took_s)
        link_s.append(rung.link_s)
    return np.array(seconds), np.array(link_s)


@pytest.mark.parametrize("seed", range(5))
def test_the_width_follows_a_link_that_slows_down_and_recovers(seed):
    generator = np.random.default_rng(seed)
    adapter = Adapter(LADDER, target_s=0.050)
    _, before = drive(adapter, 100, 0.005, 1.0, generator)
    assert np.median(before[20:]) == 0.032  # all of it: 37 ms
    slow_s, during = drive(adapter, 200, 0.005, 10.0, generator)
    assert np.median(during) == 0.002  # 25 ms; with the next one 45, which is too near
    assert (slow_s[5:] <= 0.050).mean() >= 0.9
    _, after = drive(adapter, 200, 0.005, 1.0, generator)
    assert np.median(after[100:]) == 0.032


def test_what_no_width_can_keep_is_tried_with_the_narrowest():
    adapter = Adapter(LADDER, target_s=0.050)
    _, link_s = drive(adapter, 100, 0.200, 1.0, np.random.default_rng(0))
    assert (link_s[20:] == 0.001).all()


def test_an_answer_of_an_unknown_width_teaches_nothing():
    adapter = Adapter(LADDER, target_s=0.050)
    first = adapter.choose()
    for _ in range(10):
        adapter.learn(0, 10.0)
    assert adapter.choose() == first
    assert adapter.text(0) == ""
    assert adapter.text(LADDER[0].byte) == "ratio=32,bits=8"


def test_the_rungs_are_what_the_links_of_the_platform_take(tmp_path):
    link = replace(FAST, bytes_per_s=1000.0)
    write_nested(tmp_path / "bundle", link)
    bundle = read_bundle(tmp_path / "bundle")
    found = rungs(bundle, (link,))
    assert {rung.width for rung in found} == {
        Width(ratio=1, bits=4), Width(ratio=1, bits=3), Width(ratio=2, bits=4),
    }  # fmt: skip
    assert found[-1].width == widths(NESTED)[0]
    for rung in found:
        assert rung.link_s == pytest.approx(payload_bytes_at(NESTED, rung.width) / 1000)
    assert [rung.link_s for rung in found] == sorted(rung.link_s for rung in found)


def test_a_width_that_a_quicker_one_outdoes_is_left_out(tmp_path):
    link = replace(FAST, bytes_per_s=1000.0)
    write_nested(tmp_path / "bundle", link)
    bundle = read_bundle(tmp_path / "bundle")
    # Each of these has a byte to say which, then one; but (1, 2) has two, and (1, 4) three.
    worth = {(1, 4): 0.9, (1, 2): 0.5, (2, 4): 0.8, (2, 2): 0.6, (4, 4): 0.7, (4, 2): 0.6}
    entries = tuple(
        WidthEntry(ratio=ratio, bits=bits, payload_bytes=1.0, accuracy=accuracy)
        for (ratio, bits), accuracy in worth.items()
    )
    write_bundle(tmp_path / "bundle", replace(bundle, widths=entries))
    kept = rungs(read_bundle(tmp_path / "bundle"), (link,))
    assert [(rung.width.ratio, rung.width.bits, rung.accuracy) for rung in kept] == [
        (2, 4, 0.8), (1, 4, 0.9),
    ]  # fmt: skip


def test_a_target_is_read_and_what_is_none_is_named():
    assert parse_target("latency=50ms") == 0.050
    for text in ("50ms", "latency=", "latency=0s", "latency=-1s", "energy=5mJ", "latency=fast"):
        with pytest.raises(InputError, match="--adapt"):
            parse_target(text)


def test_a_bundle_without_a_nested_crossing_cannot_adapt(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    with pytest.raises(InputError, match="no crossing of this bundle is nested"):
        run_bundle(tmp_path / "bundle", [samples(4)], target_s=0.1)
    with pytest.raises(InputError, match="expected one"):
        run_bundle(tmp_path / "bundle", [samples(4)], target_s=0.1, width=Width(ratio=1, bits=4))


@pytest.mark.alone
def test_over_a_real_slow_link_what_is_chosen_is_what_crosses(tmp_path):
    relayed = (replace(FAST, between=("near", "mid")), replace(FAST, between=("mid", "far")))
    write_nested(tmp_path / "bundle", *relayed)
    x = samples(12)
    bundle = read_bundle(tmp_path / "bundle")
    with start_workers(tmp_path / "bundle") as workers:
        for rung, sample in zip(rungs(bundle, workers.links), x, strict=False):
            reply = workers.wait(workers.send([sample], rung.byte))
            assert reply is not None
            assert reply.width == rung.byte
            np.testing.assert_array_equal(
                reply.outputs[0], nested_logits(sample[np.newaxis], rung.width)[0]
            )
            sizes = {work.payload_bytes for work in workers.timings()[0].work}
            assert sizes == {payload_bytes_at(NESTED, rung.width)}


@pytest.mark.alone
def test_a_run_keeps_its_target_over_a_link_too_slow_for_the_widest(tmp_path):
    slow = Link(between=("near", "far"), bytes_per_s=20.0)  # 0.2 s for the widest payload
    write_nested(tmp_path / "bundle", slow)
    empty_s = HEADER_BYTES / 20.0
    target_s = (empty_s + 0.15) / 0.85  # margin included: at most three bytes
    record = run_bundle(tmp_path / "bundle", [samples(6)], target_s=target_s)
    assert record.adapted is not None
    assert record.adapted.target_s == target_s
    assert sum(record.adapted.requests.values()) == 6
    assert record.adapted.requests["ratio=1,bits=4"] == 0


def test_a_service_says_what_width_it_used(tmp_path):
    write_nested(tmp_path / "bundle", replace(FAST, bytes_per_s=1e6))
    with devices(tmp_path / "bundle", ("near", "far")) as hosts:
        hosts.start("near", "--adapt=latency=10s")
        hosts.start("far")
        with hosts.client() as client:
            for sample in samples(5):
                found = client.ask(sample)
                assert found.width == "ratio=1,bits=4"  # ten seconds are enough for all of it
                np.testing.assert_array_equal(
                    found[0],
                    nested_logits(sample[np.newaxis], Width(ratio=1, bits=4))[0],
                )


def test_widths_that_are_none_of_the_codecs_are_refused(tmp_path):
    write_nested(tmp_path / "bundle", FAST)
    entry = WidthEntry(ratio=3, bits=4, payload_bytes=1.0, accuracy=0.5)
    bundle = replace(read_bundle(tmp_path / "bundle"), widths=(entry,))
    write_bundle(tmp_path / "bundle", bundle)
    with pytest.raises(InputError, match=r"adapt: none of the widths .* export it anew"):
        rungs(read_bundle(tmp_path / "bundle"), (FAST,))
