"""Early exits: while a device is silent, the first one answers alone, and says so."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from isthmus.bundle import confidence, read_bundle, write_bundle
from isthmus.errors import BundleError, RequestError, RunError
from isthmus.run.early import load_exit
from isthmus.run.messages import in_flight
from tests.run.bundles import FAST, early_logits, logits, samples, write_chain
from tests.run.services import LONG_S, devices

X = samples(8)
WHOLE, EARLY = logits(X), early_logits(X)
TWO = ("near", "far")


@pytest.fixture
def folder(tmp_path):
    write_chain(tmp_path / "bundle", FAST, early_exit=True)
    return tmp_path / "bundle"


def test_the_exit_answers_while_the_next_device_is_silent_and_the_reply_says_so(folder):
    assert not np.array_equal(WHOLE, EARLY)
    with devices(folder, TWO) as hosts, hosts.client() as client:
        hosts.start("near")
        client.about()
        futures = [client.submit(x, deadline_s=2.0) for x in X]  # more than may be in flight
        for future, y in zip(futures, EARLY, strict=True):
            outputs = future.result(LONG_S)
            assert (outputs.early_exit, len(outputs)) == ("near", 1)
            assert np.array_equal(outputs[0], y)
        hosts.start("far")
        outputs = client.ask(X[0])
        assert (outputs.early_exit, outputs[0].tolist()) == ("", WHOLE[0].tolist())
        hosts.kill("far")
        outputs = client.ask(X[1], deadline_s=2.0)
        assert (outputs.early_exit, outputs[0].tolist()) == ("near", EARLY[1].tolist())
        with pytest.raises(RequestError, match="NaN"):
            client.ask(np.full(8, np.nan, np.float32))
        hosts.processes["near"].terminate()
        assert hosts.processes["near"].wait(LONG_S) == 0


def test_a_result_that_comes_in_time_is_that_of_the_whole_network(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        for x, y in zip(X, WHOLE, strict=True):
            outputs = client.ask(x)
            assert (outputs.early_exit, outputs[0].tolist()) == ("", y.tolist())


def test_http_metrics_and_the_command_say_so_too(folder, tmp_path):
    triton = pytest.importorskip("tritonclient.http")
    from tests.run.test_http import GOOD, Served

    np.save(tmp_path / "x.npy", X[0])
    with devices(folder, TWO) as hosts:
        served = Served(hosts)
        served.start("near")
        served.wait_until(503)
        status, _, said = served.infer(inputs=[GOOD], parameters={"timeout": 2_000_000})
        assert (status, said["outputs"][0]["data"]) == (200, early_logits(X[:1])[0].tolist())
        assert said["parameters"] == {"early_exit": "near", "early_exit_samples": 1}
        with triton.InferenceServerClient(f"127.0.0.1:{served.http}") as client:
            x = triton.InferInput("x", [1, 8], "FP32")
            x.set_data_from_numpy(X[:1])
            answer = client.infer("main", [x], timeout=2_000_000)
            assert answer.get_response()["parameters"]["early_exit"] == "near"
        assert served.counts()["isthmus_requests_total", "early exit"] == 2
        done = subprocess.run(
            [sys.executable, "-m", "isthmus", "ask", f"127.0.0.1:{hosts.ports['near']}",
             "x.npy", "--deadline", "2s", "--json"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["early_exit"] == "near"


def test_what_the_exit_is_sure_of_does_not_cross(tmp_path):
    sure = [confidence(scores) for scores in EARLY]
    least = float(np.median(sure))
    write_chain(tmp_path / "bundle", FAST, early_exit=True, exit_confidence=least)
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        for x, early, whole, how_sure in zip(X, EARLY, WHOLE, sure, strict=True):
            outputs = client.ask(x)
            leaves = how_sure >= least
            assert outputs.early_exit == ("near" if leaves else "")
            assert np.array_equal(outputs[0], early if leaves else whole)
    assert 0 < sum(each >= least for each in sure) < len(X)


def test_the_newest_of_a_crowd_are_answered_by_the_exit_and_the_others_by_the_network(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        hosts.start("near", "--switch-at", "1")
        client.about()
        futures = [client.submit(x) for x in X]
        depth = in_flight(read_bundle(folder))
        end_s = time.monotonic() + LONG_S
        while sum(each.done() for each in futures) < len(X) - depth - 1:
            assert time.monotonic() < end_s
            time.sleep(0.02)
        about = client.about()
        assert (about.waiting, about.in_flight) == (1, depth)
        hosts.start("far")
        early = 0
        for future, y, whole in zip(futures, EARLY, WHOLE, strict=True):
            outputs = future.result(LONG_S)
            assert np.array_equal(outputs[0], y if outputs.early_exit else whole)
            early += bool(outputs.early_exit)
        assert early == len(X) - depth - 1


def test_there_has_to_be_an_exit_to_switch_to(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    with devices(tmp_path / "bundle", TWO) as hosts:
        hosts.start("near", "--switch-at", "1")
        assert hosts.processes["near"].wait(LONG_S) == 1
        assert "found no early exit to switch to; export it with" in hosts.log("near")


def test_an_exit_that_is_not_there_or_does_not_fit_is_refused(folder):
    bundle = read_bundle(folder)
    with pytest.raises(BundleError, match=r"early exit: program 'near/x\.onnx' is not among"):
        write_bundle(folder, replace(bundle, early_exit="near/x.onnx"))
    with pytest.raises(BundleError, match=r"exit confidence: found 1\.5, expected 0 to 1"):
        write_bundle(folder, replace(bundle, exit_confidence=1.5))
    (folder / "near" / "exit.onnx").write_bytes(b"no program")
    write_bundle(folder, bundle)
    with pytest.raises(RunError, match=r"exit\.onnx: onnxruntime cannot load it"):
        load_exit(folder, read_bundle(folder))
    (folder / "near" / "exit.onnx").write_bytes((folder / "near" / "program.onnx").read_bytes())
    write_bundle(folder, bundle)
    with pytest.raises(RunError, match=r"sample: found .*'uint8'.*, expected .*'float32'"):
        load_exit(folder, read_bundle(folder))


def expire(client, times):
    """Fill the hop with requests whose deadline passes while the next device is away."""
    for _ in range(times):
        list(client.ask_all([[x] for x in X], deadline_s=0.3))


def test_a_crowd_is_answered_by_the_exit_though_the_hop_has_long_been_full(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        hosts.start("near", "--switch-at", "1")
        client.about()
        expire(client, 12)
        futures = [client.submit(x) for x in X]
        end_s = time.monotonic() + LONG_S / 3  # half a deadline before the exit answers them all
        while sum(each.done() for each in futures) < len(X) - 1:
            assert time.monotonic() < end_s
            time.sleep(0.02)


def test_what_the_exit_is_sure_of_waits_for_nobody(tmp_path):
    x = samples(200)
    sure = np.array([confidence(scores) for scores in early_logits(x)]) >= 0.9
    write_chain(tmp_path / "bundle", FAST, early_exit=True, exit_confidence=0.9)
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        hosts.start("near")
        client.about()
        for times in (0, 12):  # with room in the hop, and without
            expire(client, times)
            unsure = [client.submit(each) for each in x[~sure][:6]]
            answer = client.submit(x[sure][0]).result(LONG_S / 3)
            assert answer.early_exit == "near"
            assert not any(each.done() for each in unsure)
