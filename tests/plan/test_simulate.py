from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.graph import capture
from isthmus.models import digits_resnet
from isthmus.plan import Crossing, Plan, Prediction, Stage, partition
from isthmus.plan.arrivals import Every, InFlight, Jitter, Poisson
from isthmus.plan.simulate import Failure, Stream, simulate, simulate_fleet
from isthmus.platform import Device, Link, Platform, load_platform
from isthmus.wire import HEADER_BYTES

FRAME_BYTES = 100


def hop(source, target, occupied_s, latency_s=0.0, **fields):
    """Return a link that one of our frames occupies for so long."""
    return Link(
        between=(source, target),
        bytes_per_s=FRAME_BYTES / occupied_s,
        latency_s=latency_s,
        **fields,
    )


def walk(devices, seconds, links):
    """Return a plan over devices, which may recur; only its times and links have a meaning."""
    platform = Platform(
        name="test",
        devices=tuple(Device(name=name, macs_per_s={"fp32": 1e9}) for name in sorted({*devices})),
        links=tuple(dict.fromkeys(links)),
        input=devices[0],
        output=devices[-1],
    )
    stages = tuple(
        Stage(
            device=name, nodes=(), macs=0, weight_bytes=0, peak_memory_bytes=0, format="fp32",
            compute_s=compute_s,
        )
        for name, compute_s in zip(devices, seconds, strict=True)
    )  # fmt: skip
    crossings = tuple(
        Crossing(
            link=link.name, cut=0, after="input", tensors=(), shapes=(), dtypes=(), codec="raw",
            payload_bytes=FRAME_BYTES - HEADER_BYTES, fixed_rate=True,
            transfer_s=link.transfer_s(FRAME_BYTES),
        )
        for link in links
    )  # fmt: skip
    busy_s = dict.fromkeys((*devices, *(link.clock("") for link in links)), 0.0)
    for name, compute_s in zip(devices, seconds, strict=True):
        busy_s[name] += compute_s
    for link in links:
        busy_s[link.clock("")] += link.occupied_s(FRAME_BYTES)
    return Plan(
        objective="latency",
        split=True,
        stages=stages,
        crossings=crossings,
        predicted=Prediction(
            latency_s=sum(seconds) + sum(crossing.transfer_s for crossing in crossings),
            interval_s=max(busy_s.values()),
            energy_j=0.0,
        ),
        inputs=(),
        platform=platform,
    )


def chain(seconds, hops, **fields):
    """Return a plan over one device after the other; hops are (occupied_s, latency_s)."""
    names = [f"d{index}" for index in range(len(seconds))]
    links = [
        hop(*ends, *times, **fields) for ends, times in zip(pairwise(names), hops, strict=True)
    ]
    return walk(names, seconds, links)


def there_and_back(seconds, occupied_s=1.0, **fields):
    """Return a plan that comes home over the link by which it left."""
    link = hop("a", "b", occupied_s, **fields)
    return walk(("a", "b", "a"), seconds, (link, link))


TIMES_S = st.floats(0.05, 1.0)
LATENCIES_S = st.sampled_from([0.0, 0.3])


@st.composite
def chains(draw):
    """Draw a plan over one to four devices of which each is visited once."""
    seconds = draw(st.lists(TIMES_S, min_size=1, max_size=4))
    hops = [(draw(TIMES_S), draw(LATENCIES_S)) for _ in seconds[1:]]
    return chain(seconds, hops, duplex=draw(st.sampled_from(["half", "full", "one-way"])))


@st.composite
def walks(draw):
    """Draw a plan over up to five stages on three devices, on one bus or on links of their own."""
    names = ["a", *draw(st.lists(st.sampled_from("abc"), max_size=4))]
    devices = [name for name, before in zip(names, (None, *names), strict=False) if name != before]
    medium = draw(st.sampled_from(["", "bus"]))
    links = {
        ends: hop(ends[0], ends[1], draw(TIMES_S), draw(LATENCIES_S), duplex="half", medium=medium)
        for ends in ("ab", "bc", "ac")
    }
    ways = [links["".join(sorted(ends))] for ends in pairwise(devices)]
    return walk(devices, [draw(TIMES_S) for _ in devices], ways)


@pytest.fixture(scope="module")
def digits():
    return capture(digits_resnet(), (torch.zeros(1, 1, 8, 8),))


class TestAgreesWithTheAnalyticModel:
    @pytest.mark.parametrize("name", ["two-mcu-spi", "camera-hub", "chiplets-4"])
    @pytest.mark.parametrize("objective", ["latency", "throughput"])
    def test_on_a_preset(self, digits, name, objective):
        plan = partition(digits, load_platform(name), objective=objective)
        alone = simulate(plan, requests=3)
        assert alone.latencies_s == pytest.approx(plan.predicted.latency_s, rel=1e-9)
        full = simulate(plan, requests=400, arrivals=InFlight(100), queue=100)
        assert full.interval_s == pytest.approx(plan.predicted.interval_s, rel=1e-9)

    @given(plan=walks())
    @settings(max_examples=60, deadline=None)
    def test_in_the_latency_of_one_request_on_any_walk(self, plan):
        alone = simulate(plan, requests=2, queue=1)
        assert alone.latencies_s == pytest.approx(plan.predicted.latency_s)

    @given(plan=chains())
    @settings(max_examples=30, deadline=None)
    def test_in_the_interval_of_a_full_chain(self, plan):
        full = simulate(plan, requests=120, arrivals=InFlight(60), queue=60)
        assert np.diff(full.answers_s[60:]) == pytest.approx(plan.predicted.interval_s)

    @pytest.mark.parametrize("fields", [{}, {"medium": "bus"}])
    def test_in_the_interval_where_stages_share_a_device_and_hops_a_medium(self, fields):
        plan = there_and_back((0.3, 0.2, 0.5), 0.7, latency_s=0.2, duplex="half", **fields)
        full = simulate(plan, requests=600, arrivals=InFlight(8))
        assert full.interval_s == pytest.approx(plan.predicted.interval_s, rel=0.01)


@given(plan=chains(), queue=st.integers(1, 4), in_flight=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_blocking_follows_the_recursion_of_a_tandem_of_queues(plan, queue, in_flight):
    """A start waits for the request itself, for the station, and for a place in the next queue."""
    simulation = simulate(plan, requests=30, arrivals=InFlight(in_flight), queue=queue)
    seconds = [(stage.compute_s, 0.0) for stage in plan.stages]
    for index, link in enumerate(plan.platform.links):
        seconds.insert(2 * index + 1, (link.occupied_s(FRAME_BYTES), link.latency_s))
    starts_s = np.full((30, len(seconds)), -np.inf)
    answers_s = np.zeros(30)
    for number in range(30):
        ready_s = answers_s[number - in_flight] if number >= in_flight else 0.0
        for place, (service_s, latency_s) in enumerate(seconds):
            free_s = starts_s[number - 1, place] + service_s if number else 0.0
            ahead = number >= queue and place + 1 < len(seconds)
            room_s = starts_s[number - queue, place + 1] if ahead else 0.0
            starts_s[number, place] = max(ready_s, free_s, room_s)
            ready_s = starts_s[number, place] + service_s + latency_s
        answers_s[number] = ready_s
    assert simulation.answers_s == pytest.approx(answers_s)
    assert max(station.longest_queue for station in simulation.stations) <= queue


class TestAgreesWithQueueingTheory:
    @pytest.mark.parametrize("load", [0.3, 0.7])
    @pytest.mark.parametrize(
        ("jitter", "variation"),
        [
            (Jitter(), 0.0),  # M/D/1
            (Jitter(stages=1.0, law="gamma"), 1.0),  # M/M/1
            (Jitter(stages=0.5, law="lognormal"), 0.5),  # M/G/1
        ],
    )
    def test_in_the_mean_wait_of_pollaczek_and_khinchine(self, load, jitter, variation):
        simulation = simulate(
            chain([1.0], []), requests=15_000, arrivals=Poisson(load), queue=None, jitter=jitter
        )
        waits_s = [
            span.start_s - simulation.requests[span.request].arrived_s
            for span in simulation.timeline
        ]
        wait_s = load * (1 + variation**2) / (2 * (1 - load))
        batches_s = np.mean(np.reshape(waits_s, (15, 1000)), axis=1)
        error_s = np.std(batches_s, ddof=1) / np.sqrt(15)
        assert abs(np.mean(waits_s) - wait_s) < 3 * error_s
        assert simulation.stations[0].utilization == pytest.approx(load, rel=0.03)

    @given(
        gaps_s=st.lists(st.floats(0, 2), min_size=1, max_size=30),
        seconds=st.floats(0.1, 2),
    )
    @settings(max_examples=50, deadline=None)
    def test_in_every_wait_of_lindleys_recursion(self, gaps_s, seconds):
        times_s = tuple(np.cumsum(gaps_s).tolist())
        simulation = simulate(
            chain([seconds], []), requests=len(gaps_s), arrivals=times_s, queue=None
        )
        waits_s = [0.0]
        for gap_s in gaps_s[1:]:
            waits_s.append(max(0.0, waits_s[-1] + seconds - gap_s))
        assert simulation.latencies_s == pytest.approx(np.add(waits_s, seconds))


@st.composite
def fleets(draw):
    """Draw up to four streams that meet at devices and links, with everything that can go on."""
    arrivals = st.sampled_from([InFlight(3), Every(0.2), Poisson(4.0)])
    streams = [
        Stream(plan=plan, requests=draw(st.integers(1, 12)), arrivals=draw(arrivals))
        for plan in draw(st.lists(walks(), min_size=1, max_size=4))
    ]
    starts_s = draw(st.lists(st.floats(0, 5), max_size=3))
    failures = [Failure(station="a", start_s=start_s, end_s=start_s + 0.7) for start_s in starts_s]
    return streams, failures


@given(fleet=fleets(), queue=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_request_ends_once_and_nothing_is_done_twice_at_once(fleet, queue, seed):
    streams, failures = fleet
    jitter = Jitter(stages=0.5, hops=0.5)
    result = simulate_fleet(streams, queue=queue, jitter=jitter, failures=failures, seed=seed)
    answered = [request for request in result.requests if request.answered_s is not None]
    assert len(result.requests) == sum(stream.requests for stream in streams)
    assert len(answered) + result.dropped == len(result.requests)
    assert [r.arrived_s for r in result.requests] == sorted(r.arrived_s for r in result.requests)
    for index, stream in enumerate(streams):
        own = [request for request in result.requests if request.stream == index]
        ends_s = [request.answered_s for request in own if request.answered_s is not None]
        assert len(own) == stream.requests
        assert ends_s == sorted(ends_s)  # no request overtakes another of its stream
    steps = {index: 2 * len(stream.plan.stages) - 1 for index, stream in enumerate(streams)}
    done = [span.request for span in result.timeline if span.done]
    for number, request in enumerate(result.requests):
        expected = 0 if request.answered_s is None else steps[request.stream]
        assert done.count(number) == expected
    for station in result.stations:
        spans = [span for span in result.timeline if span.station == station.name]
        assert all(one.end_s <= two.start_s + 1e-9 for one, two in pairwise(spans))
        assert 0 <= station.utilization <= 1 + 1e-9
    away = [(failure.start_s, failure.end_s) for failure in failures]
    for span in result.timeline:
        if span.station == "a":
            assert all(span.end_s <= fails or back <= span.start_s for fails, back in away)


class TestAMedium:
    def test_of_a_full_duplex_link_has_a_clock_for_each_direction(self):
        plan = there_and_back((0.1, 0.1, 0.1))
        busy = simulate(plan, requests=50, arrivals=InFlight(10))
        assert busy.interval_s == pytest.approx(1.0)
        assert [station.name for station in busy.stations] == ["a", "a->b", "b", "b->a"]

    def test_of_a_half_duplex_link_is_one_clock_for_both(self):
        plan = there_and_back((0.1, 0.1, 0.1), duplex="half")
        busy = simulate(plan, requests=200, arrivals=InFlight(10))
        assert busy.throughput_per_s == pytest.approx(0.5, rel=0.01)
        assert [station.name for station in busy.stations] == ["a", "a-b", "b"]

    def test_of_a_bus_is_one_clock_for_all_links_on_it(self):
        bus = {"duplex": "half", "medium": "bus"}
        links = (hop("a", "b", 1.0, **bus), hop("b", "c", 2.0, **bus))
        busy = simulate(walk("abc", (0.1,) * 3, links), requests=200, arrivals=InFlight(10))
        assert busy.throughput_per_s == pytest.approx(1 / 3, rel=0.01)
        assert [station.name for station in busy.stations] == ["a", "bus", "b", "c"]

    def test_is_free_during_the_latency(self):
        plan = chain([0.1, 0.1], [(1.0, 5.0)])
        assert simulate(plan, requests=50, arrivals=InFlight(20)).interval_s == pytest.approx(1.0)

    def test_carries_a_window_of_frames_in_each_latency_where_the_queue_is_short(self):
        plan = chain([0.1, 0.1], [(1.0, 5.0)])
        busy = simulate(plan, requests=200, arrivals=InFlight(20), queue=2)
        assert busy.throughput_per_s == pytest.approx(2 / 6, rel=0.02)


class TestADeviceThatWakesUp:
    def test_takes_longer_for_each_stage_of_a_lone_request_and_no_hop_does(self):
        plan = chain([1.0, 2.0], [(1.0, 0.5)])
        alone = simulate(plan, requests=3, wake_s=0.25)
        assert alone.latencies_s.tolist() == [5.0, 5.0, 5.0]

    def test_stays_awake_while_there_is_work(self):
        """The first wakes it up, the second finds it at work, the third finds it asleep."""
        times_s = (0.0, 0.5, 4.0)
        done = simulate(chain([1.0], []), requests=3, arrivals=times_s, wake_s=0.25)
        assert [request.answered_s for request in done.requests] == [1.25, 2.25, 5.25]

    def test_is_woken_by_no_one_where_two_stages_share_it_and_it_is_full(self):
        plan = there_and_back((1.0, 0.5, 1.0))
        full = simulate(plan, requests=500, arrivals=InFlight(5), wake_s=0.25)
        assert full.interval_s == pytest.approx(2.0, rel=0.02)


class TestAFailure:
    def test_of_a_device_has_its_work_done_again_and_lets_the_rest_wait(self):
        failures = [Failure(station="d0", start_s=0.5, end_s=3.0)]
        simulation = simulate(chain([1.0], []), requests=2, arrivals=(0.0, 1.0), failures=failures)
        assert simulation.latencies_s.tolist() == [4.0, 4.0]
        assert simulation.retries == 1
        assert [(span.start_s, span.end_s, span.done) for span in simulation.timeline] == [
            (0.0, 0.5, False),
            (3.0, 4.0, True),
            (4.0, 5.0, True),
        ]

    def test_of_a_link_without_a_medium_is_one_of_both_directions(self):
        plan = there_and_back((1.0, 1.0, 1.0))
        failures = [Failure(station="a-b", start_s=3.5, end_s=10.0)]
        simulation = simulate(plan, requests=1, failures=failures)
        assert simulation.latencies_s.tolist() == [12.0]
        one = [Failure(station="a->b", start_s=3.5, end_s=10.0)]
        assert simulate(plan, requests=1, failures=one).latencies_s.tolist() == [5.0]

    def test_of_something_else_is_refused_with_what_there_is(self):
        failures = [Failure(station="cat", start_s=0.0, end_s=1.0)]
        with pytest.raises(InputError, match=r"failure of cat: expected one .*: d0, d0-d1, d1"):
            simulate(chain([1.0, 1.0], [(1.0, 0.0)]), requests=1, failures=failures)


def test_a_request_that_finds_the_first_queue_full_is_dropped():
    """One is served, two wait; the fourth comes too early, the fifth finds a place."""
    times_s = (0.0, 0.1, 0.2, 0.3, 1.1)
    simulation = simulate(chain([1.0], []), requests=5, arrivals=times_s, queue=2)
    assert [request.answered_s for request in simulation.requests] == [1.0, 2.0, 3.0, None, 4.0]
    assert simulation.dropped == 1


def test_a_plan_that_comes_back_never_locks_with_one_place_for_each_queue():
    plan = there_and_back((0.3, 1.0, 0.3), duplex="half")
    simulation = simulate(plan, requests=100, arrivals=InFlight(50), queue=1)
    assert len(simulation.answers_s) == 100


def test_streams_share_the_devices_and_the_media_of_one_name():
    """Two cameras with a radio of their own, two on one; the hub does all they can send."""
    plan = chain([0.1, 0.1], [(1.0, 0.0)], duplex="half", medium="radio")
    names = [{"d0": f"camera-{k}", "radio": f"radio-{min(k, 2)}", "d1": "hub"} for k in range(4)]
    streams = [Stream(plan=plan, requests=100, arrivals=InFlight(3), names=own) for own in names]
    fleet = simulate_fleet(streams)
    answered = [r.stream for r in fleet.requests if r.answered_s is not None and r.answered_s < 90]
    assert [answered.count(stream) for stream in range(4)] == [89, 89, 45, 44]
    assert {station.name for station in fleet.stations} == {
        name for own in names for name in own.values()
    }


def test_a_failure_names_a_link_as_its_stream_does():
    plan = chain([1.0, 1.0], [(1.0, 0.0)])
    stream = Stream(plan=plan, requests=1, names={"d0": "camera"})
    failures = [Failure(station="camera-d1", start_s=1.5, end_s=3.0)]
    assert simulate_fleet([stream], failures=failures).latencies_s.tolist() == [5.0]


@pytest.mark.parametrize("law", ["lognormal", "gamma"])
def test_jitter_keeps_the_mean_and_has_the_variation_asked_for(law):
    plan = chain([2.0, 1e-6], [(3.0, 0.0)])
    jitter = Jitter(stages=0.4, hops=0.2, law=law)
    simulation = simulate(plan, requests=4000, arrivals=Every(100.0), jitter=jitter, seed=1)
    for station, mean_s, variation in (("d0", 2.0, 0.4), ("d0->d1", 3.0, 0.2)):
        spans = [span for span in simulation.timeline if span.station == station]
        seconds = np.array([span.end_s - span.start_s for span in spans])
        assert seconds.mean() == pytest.approx(mean_s, rel=0.03)
        assert seconds.std() / seconds.mean() == pytest.approx(variation, rel=0.06)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    plan = chain([0.2, 0.1], [(0.3, 0.0)])
    jitter = Jitter(stages=0.1, hops=0.1)
    one, same, other = (
        simulate(plan, requests=20, arrivals=Poisson(1.0), jitter=jitter, seed=seed)
        for seed in (3, 3, 4)
    )
    assert one == same
    assert one.latency_s(50) != other.latency_s(50)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"requests": 0}, "found 0, expected 1 or more"),
        ({"queue": 0}, "queue: found 0"),
        ({"wake_s": -0.1}, "wake_s: found -0.1, expected 0 or more"),
        ({"arrivals": InFlight(0)}, "InFlight"),
        ({"arrivals": Every(-1.0)}, "rising times"),
        ({"arrivals": Poisson(0.0)}, "rising times"),
        ({"arrivals": Poisson(-1.0)}, "rising times"),
        ({"arrivals": (1.0, 0.5)}, "rising times"),
        ({"arrivals": (1.0,)}, "for 2 requests, expected as many rising"),
        ({"jitter": Jitter(law="normal")}, "lognormal or gamma"),
        ({"jitter": Jitter(stages=-0.1)}, "variations of 0 or more"),
        ({"failures": [Failure(station="d0", start_s=1.0, end_s=1.0)]}, "end after its start"),
    ],
)
def test_a_figure_that_means_nothing_is_refused_in_one_line(changed, message):
    options = {"requests": 2, **changed}
    with pytest.raises(InputError, match=message) as caught:
        simulate(chain([1.0], []), **options)
    assert "\n" not in str(caught.value)


def test_a_fleet_of_no_streams_is_refused():
    with pytest.raises(InputError, match="streams: found none"):
        simulate_fleet([])
