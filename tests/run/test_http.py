"""Services by HTTP: a stock client of the Open Inference Protocol, errors in one line, metrics."""

import http.client
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import InputError, RunError
from isthmus.run import oip
from isthmus.run.oip import MAX_BATCH
from isthmus.run.service import ServiceConfig, open_service
from tests.run.bundles import FAST, logits, samples, write_chain
from tests.run.services import LONG_S, devices, free_ports

triton = pytest.importorskip("tritonclient.http")
prometheus = pytest.importorskip("prometheus_client.parser")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from isthmus.run.http import open_http  # noqa: E402  needs the extra `serve`

TWO = ("near", "far")
X = samples(64)
Y = logits(X)
GOOD = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": X[0].tolist()}
INFER = "/v2/models/main/infer"


class Served:
    """Two devices, where they listen, and plain HTTP to them."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.http, self.metrics = free_ports(2)

    def start(self, name):
        self.hosts.start(name, *([f"--http={self.http}"] if name == "near" else []),
                         *([f"--metrics={self.metrics}"] if name == "far" else []))  # fmt: skip

    def connect(self, port=None):
        return http.client.HTTPConnection("127.0.0.1", port or self.http, timeout=LONG_S)

    def call(self, method, path, body=None, headers=None, *, port=None):
        """Return status, headers, and what the body says, if it is JSON."""
        connection = self.connect(port)
        try:
            connection.request(method, path, body, headers or {})
            return read_answer(connection)
        finally:
            connection.close()

    def infer(self, **changed):
        return self.call("POST", INFER, json.dumps({"inputs": [GOOD]} | changed))

    def wait_until(self, status):
        end_s = time.monotonic() + LONG_S
        while (found := self.status())[0] != status:
            assert time.monotonic() < end_s, found
            time.sleep(0.05)
        return found

    def status(self):
        try:
            return self.call("GET", "/v2/health/ready")
        except OSError as error:
            return 0, {}, str(error)

    def counts(self, *, port=None):
        """Return the samples that /metrics tells, by name and labels."""
        _, headers, text = self.call("GET", "/metrics", port=port)
        assert headers["content-type"].startswith("text/plain; version=")
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in prometheus.text_string_to_metric_families(text)
            for sample in family.samples
        }


def read_answer(connection):
    answer = connection.getresponse()
    body = answer.read().decode()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    is_json = headers.get("content-type") == "application/json"
    return answer.status, headers, json.loads(body) if is_json else body


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two devices that are there all the time."""
    folder = tmp_path_factory.mktemp("http") / "bundle"
    write_chain(folder, FAST)
    with devices(folder, TWO) as hosts:
        found = Served(hosts)
        for name in TWO:
            found.start(name)
        found.wait_until(200)
        yield found
        assert "Traceback" not in hosts.log("near") + hosts.log("far")


@pytest.fixture(scope="module")
def client(served):
    with triton.InferenceServerClient(f"127.0.0.1:{served.http}") as found:
        yield found


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_a_stock_client_has_the_answers_of_the_whole_network_in_order(
    client, binary_in, binary_out
):
    x = triton.InferInput("x", [3, 8], "FP32")
    x.set_data_from_numpy(X[:3], binary_data=binary_in)
    wanted = triton.InferRequestedOutput("logits", binary_data=binary_out)
    result = client.infer(
        "main", [x], outputs=[wanted], request_id="seven", timeout=50_000_000, priority=2
    )
    assert np.array_equal(result.as_numpy("logits"), Y[:3])
    assert result.as_numpy("logits").dtype == np.float32
    said = result.get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == ("seven", "main", "1")
    assert ("data" in said["outputs"][0]) != binary_out
    assert np.array_equal(client.infer("main", [x], "1").as_numpy("logits"), Y[:3])


def test_a_stock_client_may_ask_many_times_at_once(served):
    with triton.InferenceServerClient(f"127.0.0.1:{served.http}", concurrency=8) as client:
        futures = []
        for start in range(0, len(X), 8):
            x = triton.InferInput("x", [8, 8], "FP32")
            x.set_data_from_numpy(X[start : start + 8])
            futures.append(client.async_infer("main", [x]))
        found = [future.get_result().as_numpy("logits") for future in futures]
    assert np.array_equal(np.concatenate(found), Y)


def test_a_stock_client_reads_what_the_model_is_and_how_it_is(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("main")
    assert client.is_model_ready("main", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("main", "1") == {
        "name": "main",
        "versions": ["1"],
        "platform": "isthmus",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_a_stock_client_is_told_what_is_wrong(client):
    x = triton.InferInput("x", [1, 7], "FP32")
    x.set_data_from_numpy(X[:1, :7])
    with pytest.raises(triton.InferenceServerException, match=r"expected \[n, 8\]") as error:
        client.infer("main", [x])
    assert error.value.status() == "400"
    with pytest.raises(triton.InferenceServerException, match="no model 'other'") as error:
        client.infer("other", [x])
    assert error.value.status() == "404"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {}, 404),
        ("GET", "/v2/models/main/versions/2", None, {}, 404),
        ("GET", INFER, None, {}, 405),
        ("POST", INFER, b"{", {}, 400),
        ("POST", INFER, b'{"inputs": [' + b"[" * 50_000, {}, 400),
        ("POST", INFER, json.dumps({"inputs": [GOOD]}), {"Content-Encoding": "gzip"}, 400),
        ("POST", INFER, json.dumps({"inputs": [GOOD | {"data": [np.nan] * 8}]}), {}, 400),
        ("POST", INFER, json.dumps({"inputs": [GOOD | {"data": [1e300] * 8}]}), {}, 400),
        ("POST", INFER, b"9" * (1 << 18), {}, 413),
        ("POST", INFER, (b"9" * (1 << 10) for _ in range(1 << 8)), {}, 413),
        *(
            ("POST", INFER, json.dumps({"inputs": [GOOD]}), {"Inference-Header-Content-Length": x},
             400)
            for x in ("-1", "0", "1", "99999", "9" * 5000, "1e3", "", "0x10", "\xb2")
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_of_json(served, method, path, body, headers, status):
    found, _, said = served.call(method, path, body, headers)
    assert found == status
    assert list(said) == ["error"]
    assert "\n" not in said["error"]
    assert served.infer()[0] == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
CHANGED = st.builds(
    lambda key, value: {"inputs": [GOOD | {key: value}]}, st.sampled_from(sorted(GOOD)), JSON
)
BODIES = st.binary(max_size=99) | (JSON | CHANGED).map(lambda value: json.dumps(value).encode())
LENGTHS = st.none() | st.integers(-9, 300).map(str) | st.text("0123456789-+. ", max_size=30)


@settings(deadline=None, max_examples=150)
@given(body=BODIES, length=LENGTHS)
def test_no_body_brings_the_service_down(served, body, length):
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    status, _, said = served.call("POST", INFER, body, headers)
    assert 400 <= status < 500, said
    assert list(said) == ["error"]
    assert "\n" not in said["error"]


def test_a_body_that_ends_too_early_leaves_nothing_behind(served):
    for _ in range(3):
        connection = served.connect()
        connection.putrequest("POST", INFER)
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"{")
        connection.close()
    assert served.infer()[2]["outputs"][0]["data"] == Y[0].tolist()


def test_a_full_batch_in_json_fits(served):
    data = np.full((MAX_BATCH, 8), -1.2345678e-30, np.float32)
    one = GOOD | {"shape": data.shape, "data": data.astype(float).tolist()}
    status, _, said = served.infer(inputs=[one])
    assert (status, said["outputs"][0]["shape"]) == (200, [MAX_BATCH, 3])


def test_a_large_body_is_read_aside_so_that_others_are_answered_meanwhile(tmp_path, monkeypatch):
    write_chain(tmp_path / "bundle", FAST)
    threads = []
    read = oip.read_question

    def noted(*arguments):
        threads.append(threading.current_thread().name)
        return read(*arguments)

    monkeypatch.setattr(oip, "read_question", noted)
    near, far, http_port = free_ports(3)
    at = {"near": f"127.0.0.1:{near}", "far": f"127.0.0.1:{far}"}
    with (
        open_service(tmp_path / "bundle", "near", site=ServiceConfig(addresses=at)) as service,
        open_http(service, http=str(http_port)),
    ):
        for padding in (0, 40_000):
            body = {"inputs": [GOOD], "id": "x" * padding, "parameters": {"timeout": 1000}}
            connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=LONG_S)
            connection.request("POST", INFER, json.dumps(body))
            assert read_answer(connection)[0] == 504  # far is away
            connection.close()
    assert [name == "isthmus-http" for name in threads] == [True, False]


def test_metrics_are_told_by_every_device_and_move(served):
    before = served.counts()
    assert served.infer(inputs=[GOOD | {"shape": [2, 8], "data": X[:2].tolist()}])[0] == 200
    assert served.infer(inputs=[])[0] == 400
    after = served.counts()
    moved = {name: after[name] - before[name] for name in after if name in before}
    assert moved["isthmus_requests_total", "done"] == 2
    assert moved["isthmus_requests_total", "refused"] == 1
    assert moved["isthmus_request_seconds_count",] == 2
    assert moved["isthmus_stage_frames_total", "done"] == 2
    assert moved["isthmus_stage_compute_seconds_count",] == 2
    assert moved["isthmus_stage_compute_seconds_sum",] > 0
    assert moved["isthmus_stage_payload_bytes_total",] == 6
    for name in ("queue", "wait", "decode", "encode"):
        assert moved[f"isthmus_stage_{name}_seconds_count",] == 2
    assert after["isthmus_requests_in_flight",] == after["isthmus_requests_waiting",] == 0
    assert after["isthmus_device_away", "far"] == 0
    assert after["isthmus_hop_damaged_total",] == 0
    far = served.counts(port=served.metrics)
    assert far["isthmus_stage_frames_total", "done"] >= 2
    assert far["isthmus_device_away", "near"] == 0
    assert ("isthmus_requests_total", "done") not in far
    assert served.call("GET", "/v2", port=served.metrics)[0] == 404


def test_a_service_is_ready_while_nobody_is_away_and_a_request_ends_at_its_timeout(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    with devices(tmp_path / "bundle", TWO) as hosts:
        served = Served(hosts)
        served.start("near")
        status, headers, said = served.wait_until(503)
        assert (said["error"], headers["retry-after"]) == ("far is away", "1")
        assert served.call("GET", "/v2/health/live")[0] == 200
        served.start("far")
        served.wait_until(200)
        assert served.infer()[0] == 200
        hosts.kill("far")
        served.wait_until(503)
        assert served.call("GET", "/v2/models/main/ready")[0] == 503
        assert served.counts()["isthmus_device_away", "far"] == 1
        status, _, said = served.infer(parameters={"timeout": 300_000})
        assert (status, said["error"]) == (504, "no result within 0.3 s; far is away")
        assert served.counts()["isthmus_requests_total", "deadline"] == 1
        served.start("far")
        served.wait_until(200)
        assert served.infer()[2]["outputs"][0]["data"] == Y[0].tolist()


def test_a_service_that_is_full_says_so_and_one_that_stops_answers_what_it_has(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    batch = [GOOD | {"shape": [32, 8], "data": X[:32].tolist()}]
    with ThreadPoolExecutor(8) as threads, devices(tmp_path / "bundle", TWO) as hosts:
        served = Served(hosts)
        served.start("near")
        served.wait_until(503)
        wait = {"timeout": 60_000_000}
        futures = [threads.submit(served.infer, inputs=batch, parameters=wait) for _ in range(8)]
        end_s = time.monotonic() + LONG_S
        while served.counts()["isthmus_requests_waiting",] < 8 * 32 - 3:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        status, headers, said = served.infer(inputs=batch)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "requests wait already" in said["error"]
        hosts.processes["near"].terminate()
        assert hosts.processes["near"].wait(LONG_S) == 0
        for future in futures:
            status, _, said = future.result()
            assert (status, said) == (503, {"error": "the service was stopped"})
        assert "Traceback" not in hosts.log("near")


def test_a_program_that_fails_is_named(tmp_path):
    write_chain(tmp_path / "bundle", FAST, input_dtype="int32")
    with devices(tmp_path / "bundle", TWO) as hosts:
        served = Served(hosts)
        for name in TWO:
            served.start(name)
        served.wait_until(200)
        status, _, said = served.infer(inputs=[GOOD | {"datatype": "INT32", "data": [1] * 8}])
        assert status == 500
        assert said["error"].startswith("device near: ")
        assert served.counts()["isthmus_stage_frames_total", "failed"] == 1


@pytest.mark.parametrize(
    ("device", "where", "said"),
    [
        ("far", {"http": "8000"}, "--http 8000: device far is not the first one; give it to near"),
        ("near", {"http": "10.0.0.5:80"}, "--http 10.0.0.5:80: expected 127.0.0.1, as everybody"),
        ("near", {"http": "0.0.0.0"}, "expected 127.0.0.1"),
        ("near", {"http": "localhost:0"}, "--http: address 'localhost:0': expected HOST"),
        ("near", {"http": "80", "metrics": "127.0.0.1:80"}, "--http has this address"),
        ("far", {"metrics": ""}, "--metrics: address '': expected HOST"),
    ],
)
def test_a_place_that_makes_no_sense_is_one_line(tmp_path, device, where, said):
    write_chain(tmp_path / "bundle", FAST)
    at = dict(zip(TWO, (f"127.0.0.1:{port}" for port in free_ports(2)), strict=True))
    with open_service(tmp_path / "bundle", device, site=ServiceConfig(addresses=at)) as service:
        with pytest.raises(InputError, match=said) as error, open_http(service, **where):
            pass
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("site", [{"switch_at": 3}, {"target_s": 0.1}])
def test_what_the_first_device_alone_chooses_is_refused_on_others(tmp_path, site):
    write_chain(tmp_path / "bundle", FAST)
    with (
        pytest.raises(InputError, match="--adapt, --switch-at: give them to near alone"),
        open_service(tmp_path / "bundle", "far", site=ServiceConfig(**site)),
    ):
        pass


def test_a_port_that_is_taken_is_one_line(served, tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    at = dict(zip(TWO, (f"127.0.0.1:{port}" for port in free_ports(2)), strict=True))
    with (
        open_service(tmp_path / "bundle", "near", site=ServiceConfig(addresses=at)) as service,
        pytest.raises(RunError, match=f"http://127.0.0.1:{served.http}: cannot listen there"),
        open_http(service, http=str(served.http)),
    ):
        pass


def test_a_service_without_http_loads_none_of_it():
    code = "import isthmus.run.service, isthmus.cli.serve, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not {"starlette", "uvicorn", "prometheus_client", "h11"} & set(done.stdout.split())
