"""Devices that serve a bundle: they find each other, come back, and every request ends once."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from isthmus.bundle import read_bundle
from isthmus.errors import InputError, RequestError
from isthmus.files import from_json, to_json
from isthmus.run.client import PARALLEL, Client, open_client
from isthmus.run.early import Result
from isthmus.run.hop import Arrival
from isthmus.run.ingress import Ingress
from isthmus.run.messages import Ask, Work, about_key, infer_key
from isthmus.run.service import SERVICE, ServiceConfig, _infer, address, open_service
from isthmus.run.session import closing, locator, open_session
from tests.run.bundles import FAST, busy_program, far_program, logits, samples, write_chain
from tests.run.services import LONG_S, devices, free_ports

X = samples(64)
Y = logits(X)
TWO = ("near", "far")
MIDDLE = (replace(FAST, between=("near", "hub")), replace(FAST, between=("hub", "far")))
THREE = ("near", "hub", "far")


@pytest.fixture
def folder(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client of two devices that are there all the time."""
    folder = tmp_path_factory.mktemp("service") / "bundle"
    write_chain(folder, FAST)
    with devices(folder, TWO) as hosts:
        for name in TWO:
            hosts.start(name)
        with hosts.client() as client:
            client.ask(X[0])
            yield hosts, client


def test_the_answers_are_those_of_the_whole_network_however_they_are_asked_for(served):
    _, client = served
    for x, y in zip(X[:8], Y, strict=False):
        assert np.array_equal(client.ask(x)[0], y)
    assert np.array_equal(client.submit(X[9]).result(LONG_S)[0], Y[9])

    async def several():
        return await asyncio.gather(*(client.ask_async(x) for x in X[:8]))

    found = asyncio.run(several())
    assert all(np.array_equal(outputs[0], y) for outputs, y in zip(found, Y, strict=False))


def test_what_is_no_array_is_refused_in_one_line(served):
    _, client = served
    with pytest.raises(RequestError, match=r"sample: found \['list'\], expected") as error:
        client.ask([X[0]])
    assert error.value.reason == "refused"


def test_many_samples_come_back_in_order(served):
    _, client = served
    found = list(client.ask_all([[x] for x in X]))
    assert len(X) > 2 * PARALLEL
    assert np.array_equal(np.stack([outputs[0] for outputs in found]), Y)


def test_a_service_says_what_it_is_and_how_it_is(served):
    _, client = served
    about = client.about()
    assert (about.devices, about.away) == (TWO, ())
    assert [(each.shape, each.dtype) for each in about.inputs] == [((8,), "float32")]
    assert [(each.shape, each.dtype) for each in about.outputs] == [((3,), "float32")]
    assert (about.waiting, about.in_flight) == (0, 0)
    assert about.ended >= 1


def test_a_client_whose_answer_is_lost_asks_again_under_the_same_name(served):
    about = to_json(served[1].about())
    names, kept = [], []

    def infer(query):
        names.append(from_json(query.attachment.to_bytes(), Ask, where="").id)
        if len(names) == 1:
            kept.append(query)  # stays open, as one whose answer went astray
            return
        with query:
            query.reply(infer_key(SERVICE), Y[0].tobytes())

    def tell(query):
        with query:
            query.reply(about_key(SERVICE), about)

    with closing(open_session()) as session:
        session.declare_queryable(about_key(SERVICE), tell)
        session.declare_queryable(infer_key(SERVICE), infer)
        with Client(locator(session).removeprefix("tcp/"), deadline_s=LONG_S) as client:
            start_s = time.monotonic()
            assert np.array_equal(client.ask(X[0])[0], Y[0])
    assert time.monotonic() - start_s < LONG_S / 2
    assert len(names) == 2
    assert len(set(names)) == 1


def test_a_client_asks_a_service_that_comes_back_with_another_bundle_what_that_takes(served):
    about = served[1].about()
    older = replace(about, inputs=(replace(about.inputs[0], shape=(7,)),))
    said = [older, about]

    def tell(query):
        with query:
            query.reply(about_key(SERVICE), to_json(said[0]))

    def infer(query):
        with query:
            query.reply(infer_key(SERVICE), Y[0].tobytes())

    with closing(open_session()) as session:
        session.declare_queryable(about_key(SERVICE), tell)
        session.declare_queryable(infer_key(SERVICE), infer)
        with Client(locator(session).removeprefix("tcp/"), deadline_s=LONG_S) as client:
            with pytest.raises(RequestError, match=r"expected \[\(\(7,\),"):
                client.ask(X[0])
            del said[0]
            assert np.array_equal(client.ask(X[0])[0], Y[0])


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (np.zeros(7, np.float32), r"found \[\(\(7,\), 'float32'\)\], expected \[\(\(8,\),"),
        (np.zeros(8, np.int64), r"'int64'\)\], expected"),
        (np.full(8, np.nan, np.float32), "input x: found NaN or infinity, expected finite"),
        (np.full(8, -np.inf, np.float32), "input x: found NaN or infinity"),
    ],
)
def test_an_input_that_the_model_does_not_take_is_refused_and_the_service_stays_up(
    served, sample, said
):
    _, client = served
    with pytest.raises(RequestError, match=said) as error:
        client.ask(sample)
    assert error.value.reason == "refused"
    assert np.array_equal(client.ask(X[0])[0], Y[0])


@pytest.mark.parametrize("deadline_s", [-1.0, 1e9])
def test_a_deadline_that_is_none_is_refused(served, deadline_s):
    _, client = served
    with pytest.raises(RequestError) as error:
        client.ask(X[0], deadline_s=deadline_s)
    assert error.value.reason in ("refused", "deadline")
    assert "\n" not in str(error.value)


def test_devices_may_start_in_any_order_and_after_the_request(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        future = client.submit(X[0])
        hosts.start("far")
        hosts.wait_for_log("far", "serves")
        hosts.start("near")
        assert np.array_equal(future.result(LONG_S)[0], Y[0])
        assert "far is here" in hosts.log("near")


def test_a_request_that_nobody_computes_ends_at_its_deadline_and_names_who_is_away(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        hosts.start("near")
        client.about()
        start_s = time.monotonic()
        with pytest.raises(RequestError, match=r"no result within 0\.\d+ s; far is away") as error:
            client.ask(X[0], deadline_s=0.5)
        assert (error.value.reason, error.value.device) == ("deadline", "far")
        assert 0.4 < time.monotonic() - start_s < 5
        hosts.start("far")
        assert np.array_equal(client.ask(X[0])[0], Y[0])


def test_a_service_that_is_not_there_is_one_line_in_time(tmp_path):
    with (
        devices(tmp_path, TWO) as hosts,
        hosts.client(deadline_s=0.3) as client,
        pytest.raises(RequestError, match=r"for service 'main' within 0\.3 s; is `isthmus") as e,
    ):
        client.ask(X[0])
    assert e.value.reason == "deadline"


def test_every_request_has_one_result_while_stages_are_killed_under_load(tmp_path):
    write_chain(tmp_path / "bundle", *MIDDLE)
    choose = random.Random(0)
    with devices(tmp_path / "bundle", THREE) as hosts, hosts.client() as client:
        for name in THREE:
            hosts.start(name)
        client.ask(X[0])
        for _ in range(10):
            victim = choose.choice(THREE)
            futures = [client.submit(x) for x in X]
            time.sleep(choose.uniform(0, 0.05))
            hosts.kill(victim)
            hosts.start(victim)
            found = [future.result(LONG_S)[0] for future in futures]
            assert np.array_equal(np.stack(found), Y), victim


def test_a_device_that_is_stopped_finishes_what_is_under_way(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        client.ask(X[0])
        futures = [client.submit(x) for x in X]
        hosts.processes["near"].terminate()
        assert hosts.processes["near"].wait(LONG_S) == 0
        hosts.processes["far"].terminate()
        assert hosts.processes["far"].wait(LONG_S) == 0
        assert "Traceback" not in hosts.log("near") + hosts.log("far")
        for name in TWO:
            hosts.start(name)
        done = [(f.exception(LONG_S), y, f) for f, y in zip(futures, Y, strict=True)]
        assert {getattr(e, "reason", "done") for e, _, _ in done} <= {"done", "busy"}
        right = [np.array_equal(f.result()[0], y) for e, y, f in done if e is None]
        assert right
        assert all(right)


def test_a_device_that_nobody_takes_frames_from_stops_all_the_same(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        hosts.start("near")
        client.about()
        found = [client.submit(x, deadline_s=0.3) for x in X]  # more than a hop holds
        reasons = {getattr(each.exception(LONG_S), "reason", None) for each in found}
        assert reasons == {"deadline"}
        hosts.processes["near"].terminate()
        assert hosts.processes["near"].wait(LONG_S) == 0
        assert "Traceback" not in hosts.log("near")


def test_a_device_that_is_told_twice_to_stop_finishes_nothing(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        hosts.start("near")
        client.about()
        found = [client.submit(x, deadline_s=60.0) for x in X]
        near = hosts.processes["near"]
        while near.poll() is None:  # that it is told once more may come before the first is read
            near.terminate()
            time.sleep(0.2)
        assert near.returncode == -signal.SIGTERM
        assert not any(each.done() and each.exception() is None for each in found)


def test_devices_of_two_bundles_never_hear_each_other_and_both_say_why(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    write_chain(tmp_path / "other", FAST, payload_spread_bytes=1.0)
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        hosts.start("near")
        hosts.start("far", bundle=tmp_path / "other")
        for name, other in (("near", "far"), ("far", "near")):
            hosts.wait_for_log(name, f"device {other}: serves bundle and protocol")
            assert "give both the same bundle" in hosts.log(name)
        with pytest.raises(RequestError, match="far is away"):
            client.ask(X[0], deadline_s=0.5)


def test_a_program_that_fails_is_a_typed_error_and_the_device_stays_up(tmp_path):
    write_chain(tmp_path / "bundle", FAST, input_dtype="int32")
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        for _ in range(2):
            with pytest.raises(RequestError, match=r"device near: .*onnxruntime failed") as error:
                client.ask(X[0].astype("int32"))
            assert (error.value.reason, error.value.device) == ("failed", "near")
            assert "\n" not in str(error.value)
        assert hosts.processes["near"].poll() is None


def test_with_keys_only_those_who_belong_are_heard(folder, tmp_path):
    keys = pytest.importorskip("isthmus.run.keys", reason="needs cryptography")
    for authority in ("keys", "others"):
        keys.init_keys(tmp_path / authority)
        for name in (*TWO, "laptop"):
            keys.issue_key(tmp_path / authority, name)
    mine, theirs = tmp_path / "keys", tmp_path / "others"
    with devices(folder, TWO) as hosts, hosts.client(keys=mine / "laptop") as client:
        for name in TWO:
            hosts.start(name, f"--keys={mine / name}")
        assert np.array_equal(client.ask(X[0])[0], Y[0])
        for stranger in (None, theirs / "laptop"):
            with (
                hosts.client(keys=stranger, deadline_s=1.0) as other,
                pytest.raises(RequestError, match="nobody answers"),
            ):
                other.ask(X[0])
        for why in ("it does not speak TLS", "it does not believe this device's certificate"):
            hosts.wait_for_log("near", why)
            told = [line[9:] for line in hosts.log("near").splitlines() if why in line]
            assert len(told) == len(set(told))  # though it tried again and again
            assert all(line.startswith("near: refused somebody") for line in told)
            assert all("from" not in line or "from 127.0.0.1:" in line for line in told)
        hosts.kill("far")
        hosts.start("far", f"--keys={theirs / 'far'}")
        hosts.wait_for_log("far", "serves", times=2)
        with pytest.raises(RequestError, match="far is away"):
            client.ask(X[0], deadline_s=2.0)
        hosts.kill("far")
        hosts.start("far", f"--keys={mine / 'far'}")
        assert np.array_equal(client.ask(X[0])[0], Y[0])
        hosts.kill("far")
        hosts.start("far", f"--keys={mine / 'near'}")
        hosts.wait_for_log("far", "found the name near, expected far")


@pytest.mark.parametrize("name", ["", "a/b", "*", "a b", "x" * 65])
def test_a_service_has_a_plain_name(folder, name):
    with (
        pytest.raises(InputError, match="expected at most 64 letters"),
        open_service(folder, "near", site=ServiceConfig(service=name)),
    ):
        pass


@pytest.mark.parametrize(
    ("device", "addresses", "said"),
    [
        ("middle", {}, "has no device 'middle'; there are near, far"),
        ("near", {"hub": "127.0.0.1"}, "address of 'hub': the bundle has no such device"),
        ("near", {"near": "127.0.0.1:0"}, "expected HOST or HOST:PORT"),
        ("near", {"near": "10.0.0.5"}, "without keys everybody could use it; .*isthmus keys init"),
    ],
)
def test_a_site_that_makes_no_sense_is_one_line(folder, device, addresses, said):
    with (
        pytest.raises(InputError, match=said) as error,
        open_service(folder, device, site=ServiceConfig(addresses=addresses)),
    ):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hub", "hub:7447"),
        ("hub:80", "hub:80"),
        ("10.0.0.5", "10.0.0.5:7447"),
        ("::1", "[::1]:7447"),
        ("[::1]", "[::1]:7447"),
        ("[::1]:80", "[::1]:80"),
    ],
)
def test_an_address_has_a_port(text, found):
    assert address(text, 7447) == found


@pytest.mark.parametrize("text", ["", ":80", "hub:", "hub:http", "hub:70000", "a b"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InputError, match="expected HOST or HOST:PORT"):
        address(text, 7447)


def test_the_command_asks_and_prints_for_people_and_for_programs(served, tmp_path):
    hosts, _ = served
    np.save(tmp_path / "x.npy", X[:3])
    np.save(tmp_path / "one.npy", X[3])
    np.save(tmp_path / "bad.npy", np.full((1, 8), np.nan, np.float32))

    def ask(*arguments):
        command = [sys.executable, "-m", "isthmus", "ask", f"127.0.0.1:{hosts.ports['near']}"]
        return subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)

    lines = ask("x.npy", "one.npy", "--json").stdout.splitlines()
    said = [json.loads(line) for line in lines]
    assert [each["name"] for each in said] == ["x.npy[0]", "x.npy[1]", "x.npy[2]", "one.npy"]
    assert np.array_equal([each["outputs"][0] for each in said], Y[:4])
    assert "near (here) -> far (here)" in ask().stdout
    assert json.loads(ask("--json").stdout)["devices"] == list(TWO)
    bad = ask("bad.npy")
    assert bad.returncode == 1
    assert "NaN" in bad.stdout
    assert bad.stderr == "isthmus: 1 of 1 inputs have no result; see above\n"
    none = ask("none.npy")
    assert (none.returncode, none.stderr.count("\n")) == (1, 1)
    assert "none.npy: no such file" in none.stderr


def ingress_of(folder, session):
    return Ingress(read_bundle(folder), "id", session, "main/5-x")


def test_no_request_is_taken_for_another(folder):
    first, second = (x.tobytes() for x in X[:2])
    with closing(open_session()) as session, ingress_of(folder, session) as ingress:
        own = ingress.submit(first, deadline_s=0.5)
        named = [
            ingress.submit(second, deadline_s=0.5, id_=turn.to_bytes(8, "little"))
            for turn in range(3)
        ]
        assert ingress.submit(second, deadline_s=0.5, id_=bytes(8)) is named[0]
        with pytest.raises(RequestError, match="that of another request that is under way"):
            ingress.submit(first, deadline_s=0.5, id_=bytes(8))
        last = ingress.submit(first, deadline_s=0.5)
        futures = [own, *named, last]
        assert len({id(each) for each in futures}) == 5
        for future in futures:
            with pytest.raises(RequestError, match=r"no result within 0\.5 s"):
                future.result(LONG_S)


def test_a_request_that_cannot_be_sent_fails_and_those_after_it_are_taken(folder):
    large = 17 << 20
    bundle = read_bundle(folder)
    wide = replace(bundle, inputs=(replace(bundle.inputs[0], shape=(large,)),))
    with (
        closing(open_session()) as session,
        Ingress(wide, "id", session, "main/5-x") as ingress,
    ):
        for _ in range(2):
            future = ingress.submit(np.zeros(large, np.float32).tobytes(), deadline_s=LONG_S)
            with pytest.raises(RequestError, match="found a payload of 71303168 bytes") as failed:
                future.result(LONG_S)
            assert failed.value.reason == "failed"


def test_of_queries_with_one_id_only_the_last_is_kept(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        hosts.start("near")
        client.about()
        with closing(open_client(client.host, None)) as session:
            ask = to_json(Ask(id="same", deadline_s=LONG_S))
            first, last = (
                session.get(infer_key(SERVICE), payload=X[0].tobytes(), attachment=ask,
                            timeout=LONG_S)
                for _ in range(2)
            )  # fmt: skip
            assert list(first) == []  # long before its time, as nobody waits for it
            hosts.start("far")
            (reply,) = last
            assert reply.ok is not None
            assert reply.ok.payload.to_bytes() == Y[0].tobytes()
            (reply,) = session.get(infer_key(SERVICE), payload=X[0].tobytes(),
                                   attachment=ask + 5000 * " ")  # fmt: skip
            assert reply.err is not None
            assert b"over 4096 bytes beside the input" in reply.err.payload.to_bytes()


def test_a_request_that_ends_just_as_it_is_asked_again_is_answered():
    future: Future[Result] = Future()

    class Ending(dict[Any, Any]):
        def pop(self, key, default=None):
            found = super().pop(key, default)
            if found is first:
                future.set_result(Result(payload=b"y"))
            return found

    ingress, first, again, asked = MagicMock(), MagicMock(), MagicMock(), Ending()
    ingress.submit.return_value = future
    for query in (first, again):
        query.attachment.to_bytes.return_value = to_json(Ask(id="same", deadline_s=1.0))
        _infer(ingress, "key", asked, query)
    again.reply.assert_called_once_with("key", b"y", attachment=None)
    assert not asked


def test_a_client_looks_again_where_another_bundle_is_served(tmp_path):
    write_chain(tmp_path / "bundle")
    write_chain(tmp_path / "other", input_dtype="int32")
    with devices(tmp_path / "bundle", ("only",)) as hosts, hosts.client() as client:
        hosts.start("only")
        assert np.array_equal(client.ask(X[0])[0], Y[0])
        hosts.kill("only")
        hosts.start("only", bundle=tmp_path / "other")  # as many bytes, which mean another input
        with pytest.raises(RequestError, match=r"found .*float32.*, expected .*int32") as refused:
            client.ask(X[0])
        assert refused.value.reason == "refused"
        hosts.kill("only")
        hosts.start("only")
        assert np.array_equal(client.ask(X[1])[0], Y[1])


def test_what_is_under_way_is_sent_again_though_the_log_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.run.bundles.far_program", lambda: busy_program(far_program()))
    write_chain(tmp_path / "bundle", FAST)
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        hosts.start("near", log="/dev/full")
        hosts.start("far")
        client.ask(X[0])
        answer = client.submit(X[1])
        time.sleep(0.5)  # it takes 2 s
        hosts.kill("far")
        time.sleep(0.5)
        hosts.start("far")
        assert np.array_equal(answer.result(LONG_S)[0], Y[1])


def test_a_payload_longer_than_a_frame_fails_and_the_device_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("isthmus.wire.frames.MAX_PAYLOAD_BYTES", 2)
    write_chain(tmp_path / "bundle", FAST)
    places = (f"127.0.0.1:{port}" for port in free_ports(2))
    site = ServiceConfig(addresses=dict(zip(TWO, places, strict=True)))
    with open_service(tmp_path / "bundle", "far", site=site) as far:
        told: list[Work | None] = []
        far.on_frame = told.append
        frame = Arrival(request=7, payload=bytes(3), width=0, arrived_s=time.monotonic())
        far._compute([frame], threading.Event())
        assert told[-1] is None
