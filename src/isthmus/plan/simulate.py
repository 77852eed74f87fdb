"""A stream of requests through one plan or many: queues, shared media, jitter, failures.

.. code-block:: none

    arrivals --> [queue] stage --> [queue] hop --latency--> [queue] stage --> ... --> answer
                  one at a time     one at a time on its medium

Every stage and every hop has a queue before it and is served by a station, one request at a time
in the order of arrival: a stage by its device, a hop by its medium (`Link.medium`),
which is taken while the frame occupies it and free again during the latency after that.

A request is served once it has a place in the next queue: a full queue blocks the stage or hop
before it. A frame under way holds its place, as in any window of credits: a latency longer than a
window of frames limits the rate of its link. A queue belongs to a position on the way, and every
wait is for a later position or for work that ends by itself; so nothing can lock, even where two
stages of a plan share a device or two of its hops a medium.

A device that has had nothing to do when a request comes may take a while to wake up.

A device or medium that fails stops. What it worked at is done again from the beginning when it is
back; what waits for it waits.

References:
    Perros, "Queueing Networks with Blocking", 1994 (blocking before service).
    Kung, Blackwell, Chapman, "Credit-based flow control for ATM networks", SIGCOMM 1994.
"""

from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

import numpy as np
from simpy import Environment, Event, Resource
from simpy.resources.resource import Request as Place

from isthmus.errors import InputError
from isthmus.plan.arrivals import (
    ONE_IN_FLIGHT,
    STEADY,
    Array,
    Arrivals,
    InFlight,
    Jitter,
    draw_factors,
    draw_times_s,
)
from isthmus.plan.plan import Plan, as_walk
from isthmus.wire.frames import HEADER_BYTES

QUEUE = 16  # as many frames as the runner lets a hop have under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A station that is away for a while.

    Attributes:
        station: Name of a device, of a medium, or of a link without one: in both directions, or
            in one as ``a->b``.
        start_s: When it fails.
        end_s: When it is back.
    """

    station: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Requests of one plan.

    Attributes:
        plan: The way they take.
        requests: How many.
        arrivals: When they come; in seconds where given one by one. One that finds the first
            queue full waits outside if another's answer lets it in, and is dropped otherwise.
        names: Other names for devices and media of the plan: ``{"camera": "camera-17"}``.
    """

    plan: Plan
    requests: int
    arrivals: Arrivals = ONE_IN_FLIGHT
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What became of one request.

    Attributes:
        stream: Index of its stream.
        arrived_s: When it came.
        answered_s: When its answer was there; None where it was dropped.
    """

    stream: int
    arrived_s: float
    answered_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One attempt at a stage or a hop.

    Attributes:
        request: Index of the request.
        station: Who worked.
        start_s: From when.
        end_s: Until it was done, or until the station failed.
        done: Whether it was done; otherwise the work begins again.
    """

    request: int
    station: str
    start_s: float
    end_s: float
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """How busy a device or a medium was.

    Attributes:
        name: Of the device, of the medium, or of the link; ``a->b`` for one direction of a link.
        utilization: Share of the time in which it worked, in vain included; 0..1.
        longest_queue: The most requests that waited for it at once, in all queues before it.
    """

    name: str
    utilization: float
    longest_queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What happened; rates and shares are over the time from first arrival to last answer.

    Attributes:
        requests: In the order in which they came.
        stations: In the order of the ways.
        timeline: All work, in the order in which it began.
    """

    requests: tuple[Request, ...]
    stations: tuple[Station, ...]
    timeline: tuple[Span, ...]

    @property
    def answers_s(self) -> Array:
        """Times of all answers, rising."""
        return np.sort([r.answered_s for r in self.requests if r.answered_s is not None])

    @property
    def latencies_s(self) -> Array:
        """Time from arrival to answer of each answered request, in the order of arrival."""
        times_s = [(r.arrived_s, r.answered_s) for r in self.requests]
        return np.array([end_s - start_s for start_s, end_s in times_s if end_s is not None])

    def latency_s(self, percent: float) -> float:
        """Return the latency that so many percent of the answered requests do not exceed."""
        return float(np.percentile(self.latencies_s, percent))

    @property
    def throughput_per_s(self) -> float:
        """Answers in a second."""
        span_s = self.answers_s[-1] - self.requests[0].arrived_s
        return len(self.answers_s) / span_s if span_s else inf

    @property
    def interval_s(self) -> float:
        """Mean time between two answers; there must be two."""
        return float(np.diff(self.answers_s).mean())

    @property
    def dropped(self) -> int:
        """How many requests were not let in."""
        return sum(request.answered_s is None for request in self.requests)

    @property
    def retries(self) -> int:
        """How often something had to begin again."""
        return sum(not span.done for span in self.timeline)


def simulate(
    plan: Plan,
    *,
    requests: int,
    arrivals: Arrivals = ONE_IN_FLIGHT,
    queue: int | None = QUEUE,
    wake_s: float = 0.0,
    jitter: Jitter = STEADY,
    failures: Sequence[Failure] = (),
    seed: int = 0,
) -> Simulation:
    """Send requests through a plan.

    Args:
        plan: Gives each stage its time, each hop its link and frame.
        requests: How many.
        arrivals: When they come; as in `Stream`.
        queue: Places before each stage and each hop; None for no limit.
        wake_s: How much longer a stage takes whose device does nothing when the request comes.
        jitter: How times vary.
        failures: What is away, and when.
        seed: Of jitter and of random arrivals.

    Returns:
        What became of each request, and how busy everything was.

    Raises:
        InputError: A number out of range, or a failure of what is not on the way.
    """
    stream = Stream(plan=plan, requests=requests, arrivals=arrivals)
    return simulate_fleet(
        [stream], queue=queue, wake_s=wake_s, jitter=jitter, failures=failures, seed=seed
    )


def simulate_fleet(
    streams: Sequence[Stream],
    *,
    queue: int | None = QUEUE,
    wake_s: float = 0.0,
    jitter: Jitter = STEADY,
    failures: Sequence[Failure] = (),
    seed: int = 0,
) -> Simulation:
    """Send several streams at once through devices, links and media; those of one name are one.

    Args:
        streams: The plans, and the requests of each.
        queue: As in `simulate`. Streams share the queue of a hop at the same position on their
            ways, and the queue in which a stage finds what came over that hop.
        wake_s: As in `simulate`, as are those that follow.
        jitter: How times vary.
        failures: What is away, and when.
        seed: Of jitter and of random arrivals; each stream draws its own.

    Returns:
        What happened to all of them.

    Raises:
        InputError: As in `simulate`, or there are no streams.
    """
    for problem in _problems(streams, queue, wake_s, jitter, failures):
        raise InputError(problem)
    world = _World(places=inf if queue is None else queue)
    ways = [_way(world, stream, wake_s) for stream in streams]
    for failure in failures:
        _fail(world, failure)
    for index, (stream, way) in enumerate(zip(streams, ways, strict=True)):
        generator = np.random.default_rng((seed, index))
        factors = iter(draw_factors(jitter, (stream.requests, len(way)), generator).tolist())
        if isinstance(stream.arrivals, InFlight):
            for _ in range(min(stream.arrivals.count, stream.requests)):
                world.env.process(_closed(world, index, way, factors))
        else:
            times_s = draw_times_s(stream.arrivals, stream.requests, generator)
            world.env.process(_open(world, index, way, factors, times_s))
    world.env.run()
    return _result(world)


@dataclass(slots=True, kw_only=True)
class _Station:
    names: tuple[str, ...]
    turn: Resource
    away: list[tuple[float, float]] = field(default_factory=list)
    waiting: int = 0
    longest_queue: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A stage or a hop on the way of a plan, and the queue before it."""

    station: _Station
    queue: Resource
    seconds: float
    latency_s: float
    wake_s: float


@dataclass(slots=True, kw_only=True)
class _World:
    """What all requests share: stations and queues, by what makes two of them the same."""

    places: float
    env: Environment = field(default_factory=Environment)
    stations: dict[Hashable, _Station] = field(default_factory=dict)
    queues: dict[Hashable, Resource] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    requests: dict[int, Request] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)


_Way = tuple[_Step, ...]
_Factors = Iterator[list[float]]
_Process = Generator[Event, None, None]


def _closed(world: _World, stream: int, way: _Way, factors: _Factors) -> _Process:
    """Let a request in after each answer."""
    for own in factors:
        yield from _journey(world, stream, way, own, way[0].queue.request())


def _open(world: _World, stream: int, way: _Way, factors: _Factors, times_s: Array) -> _Process:
    """Let requests in at given times, or drop them."""
    env, queue = world.env, way[0].queue
    for time_s, own in zip(times_s.tolist(), factors, strict=True):
        yield env.timeout(max(0.0, time_s - env.now))
        if queue.count < queue.capacity:
            env.process(_journey(world, stream, way, own, queue.request()))
        else:
            lost = Request(stream=stream, arrived_s=env.now, answered_s=None)
            world.requests[next(world.numbers)] = lost


def _journey(world: _World, stream: int, way: _Way, own: list[float], place: Place) -> _Process:
    """Take one request from the door to its answer."""
    env, number, arrived_s = world.env, next(world.numbers), world.env.now
    yield place
    for step, ahead, factor in zip(way, (*way[1:], None), own, strict=True):
        station = step.station
        station.waiting += 1
        station.longest_queue = max(station.longest_queue, station.waiting)
        if ahead is not None:
            place_ahead = ahead.queue.request()
            yield place_ahead
        wake_s = 0.0 if station.turn.count else step.wake_s
        turn = station.turn.request()
        yield turn
        station.waiting -= 1
        step.queue.release(place)
        seconds = wake_s + step.seconds * factor
        for start_s, end_s, done in _attempts(env.now, seconds, station.away):
            name = station.names[0]
            span = Span(request=number, station=name, start_s=start_s, end_s=end_s, done=done)
            world.spans.append(span)
            station.busy_s += end_s - start_s
        yield env.timeout(end_s - env.now)
        station.turn.release(turn)
        if ahead is not None:
            yield env.timeout(step.latency_s)
            place = place_ahead
    world.requests[number] = Request(stream=stream, arrived_s=arrived_s, answered_s=env.now)


def _attempts(
    start_s: float, seconds: float, away: Sequence[tuple[float, float]]
) -> Iterator[tuple[float, float, bool]]:
    """Yield start and end of work between failures until it is done, and whether it is."""
    for fails_s, back_s in away:
        if start_s + seconds <= fails_s:
            break
        if start_s < fails_s:
            yield start_s, fails_s, False
        start_s = max(start_s, back_s)
    yield start_s, start_s + seconds, True


def _way(world: _World, stream: Stream, wake_s: float) -> _Way:
    """Return the steps of a plan: stage, hop, stage ... stage."""

    def call(name: str) -> str:
        return stream.names.get(name, name)

    plan, links = as_walk(stream.plan), {link.name: link for link in stream.plan.platform.links}
    names = [call(stage.device) for stage in plan.stages]
    way: list[_Step] = []
    for before, name, after, stage, crossing in zip(
        ("", *names), names, (*names[1:], ""), plan.stages, (*plan.crossings, None), strict=False
    ):
        queue: Hashable = (len(way), before, name)
        way.append(_step(world, queue, name, (name,), stage.compute_s, wake_s=wake_s))
        if crossing is not None:
            link = links[crossing.link]
            clock = tuple(map(call, link.clock(stage.device)))
            known = call(link.medium) or "-".join(map(call, link.between))
            known_as = (f"{name}->{after}", known) if name in clock[2:] else (known,)
            seconds = link.occupied_s(crossing.payload_bytes + HEADER_BYTES)
            queue = (len(way), name, after)
            way.append(_step(world, queue, clock, known_as, seconds, link.latency_s))
    return tuple(way)


def _step(
    world: _World,
    queue: Hashable,
    clock: Hashable,
    names: tuple[str, ...],
    seconds: float,
    latency_s: float = 0.0,
    wake_s: float = 0.0,
) -> _Step:
    """Return a step, with the station and the queue that are there already where they are."""
    station = _Station(names=names, turn=Resource(world.env))
    places = Resource(world.env, capacity=world.places)  # type: ignore[arg-type]  # or inf
    return _Step(
        station=world.stations.setdefault(clock, station),
        queue=world.queues.setdefault(queue, places),
        seconds=seconds,
        latency_s=latency_s,
        wake_s=wake_s,
    )


def _fail(world: _World, failure: Failure) -> None:
    stations = world.stations.values()
    found = [station for station in stations if failure.station in station.names]
    if not found:
        known = ", ".join(dict.fromkeys(station.names[-1] for station in stations))
        raise InputError(f"failure of {failure.station}: expected one that is used: {known}")
    for station in found:
        station.away = sorted([*station.away, (failure.start_s, failure.end_s)])


def _result(world: _World) -> Simulation:
    requests = tuple(request for _, request in sorted(world.requests.items()))
    last_s = max(request.answered_s or 0.0 for request in requests)
    span_s = last_s - requests[0].arrived_s or inf
    stations = tuple(
        Station(name=s.names[0], utilization=s.busy_s / span_s, longest_queue=s.longest_queue)
        for s in world.stations.values()
    )
    world.spans.sort(key=lambda span: span.start_s)
    return Simulation(requests=requests, stations=stations, timeline=tuple(world.spans))


def _problems(
    streams: Sequence[Stream],
    queue: int | None,
    wake_s: float,
    jitter: Jitter,
    failures: Sequence[Failure],
) -> Iterator[str]:
    """Say which figures mean nothing."""
    if not streams:
        yield "streams: found none, expected one or more"
    if queue is not None and queue < 1:
        yield f"queue: found {queue}, expected 1 or more, or None for no limit"
    if not 0 <= wake_s < inf:
        yield f"wake_s: found {wake_s}, expected 0 or more"
    variations = (jitter.stages, jitter.hops)
    if jitter.law not in ("lognormal", "gamma") or not all(0 <= v < inf for v in variations):
        yield f"found {jitter}, expected variations of 0 or more, lognormal or gamma"
    for stream in streams:
        if stream.requests < 1:
            yield f"requests: found {stream.requests}, expected 1 or more"
        if isinstance(stream.arrivals, InFlight) and stream.arrivals.count < 1:
            yield f"found {stream.arrivals}, expected 1 or more"
    for failure in failures:
        if not 0 <= failure.start_s < failure.end_s < inf:
            yield f"found {failure}, expected an end after its start"
