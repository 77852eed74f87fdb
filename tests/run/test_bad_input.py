"""What a service is given and cannot use: one line each, and what already serves stays up."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest

from isthmus.errors import RunError
from isthmus.files import to_json
from isthmus.run import start_workers
from isthmus.run.messages import Ask, infer_key
from isthmus.run.session import open_session
from tests.run.bundles import FAST, logits, samples, write_chain
from tests.run.services import devices, free_ports

X = samples(2)
Y = logits(X)
TWO = ("near", "far")


@pytest.fixture
def folder(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    return tmp_path / "bundle"


def serve(folder, *options, env=None):
    """Return the one line with which `isthmus serve` refuses to begin."""
    done = subprocess.run(
        [sys.executable, "-m", "isthmus", "serve", folder, "--device", "near", *options],
        capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    return done.stderr


def test_a_port_in_use_is_one_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = serve(folder, f"--at=near=127.0.0.1:{port}")
        assert f"127.0.0.1:{port}: the port is taken; name another" in said
        (free,) = free_ports(1)
        said = serve(folder, f"--at=near=127.0.0.1:{free}", f"--metrics={port}")
        assert f"127.0.0.1:{port}: cannot listen there" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("not { json", "expected"),
        ("{nonsense: 3}", "unknown field `nonsense`"),
        ('{mode: "boss"}', "unknown variant `boss`"),
        ('{listen: {endpoints: ["bogus/1"]}}', "bogus"),
        ('{listen: {endpoints: ["tcp/192.0.2.1:7447"]}}', "Cannot assign requested address"),
    ],
)
def test_a_configuration_that_zenoh_refuses_is_one_line(tmp_path, text, said):
    path = tmp_path / "zenoh.json5"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match=r"zenoh cannot start by .*zenoh\.json5: ") as error:
        open_session(config=path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert ".rs:" not in str(error.value)


def test_the_command_says_it_too(folder, tmp_path):
    (tmp_path / "zenoh.json5").write_text("{nonsense: 3}")
    assert "unknown field `nonsense`" in serve(folder, f"--config={tmp_path / 'zenoh.json5'}")


def test_a_backend_that_is_not_here_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['openvino'] = None")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    write_chain(tmp_path / "bundle", FAST, backend=("openvino", "onnxruntime"))
    said = 'backend openvino: needs openvino, which is not here; pip install "isthmus[openvino]"'
    assert serve(tmp_path / "bundle", env={"PYTHONPATH": path}) == f"isthmus: {said}\n"
    monkeypatch.setenv("PYTHONPATH", path)
    with (
        pytest.raises(RunError, match=r"device near: its worker ended") as error,
        start_workers(tmp_path / "bundle"),
    ):
        pass
    assert str(error.value).endswith(said)


def test_an_input_that_is_too_large_is_refused_or_dropped_and_the_service_stays_up(folder):
    with devices(folder, TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        assert np.array_equal(client.ask(X[0])[0], Y[0])
        process = psutil.Process(hosts.processes["near"].pid)
        before = process.memory_info().rss
        near = f"tcp/127.0.0.1:{hosts.ports['near']}"
        with open_session(listen="", connect=near) as stranger:
            answers = [ask(stranger, bytes(size)) for size in (0, 31, 33, 1 << 20)]
            for size, said in zip((0, 31, 33, 1 << 20), answers, strict=True):
                assert said["reason"] == "refused"
                assert said["message"] == f"sample: found {size} bytes, expected 32"
            assert ask(stranger, bytes(256 << 20), timeout=2.0) is None
        assert np.array_equal(client.ask(X[1])[0], Y[1])
        assert process.memory_info().rss - before < 64 << 20


def test_a_full_disk_costs_the_file_but_not_the_figures(folder, tmp_path):
    np.savez(tmp_path / "data.npz", x_train=X, y_train=[0, 1], x_test=X, y_test=[0, 1])
    (tmp_path / "small").mkdir()
    shell = (
        "mount -t tmpfs -o size=4k tmpfs small || exit 77; printf %4096s x > small/full; "
        "$0 -m isthmus run bundle --data npz:data.npz --no-throttle --json --out small/run; "
        "echo $? >&2; ls -A small >&2"
    )
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, sys.executable],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("may not mount a small disk here")
    assert json.loads(done.stdout)["lost"] == 0
    said, code, *left = done.stderr.splitlines()[-3:]
    assert "cannot be written (No space left on device); make room for it" in said
    assert (code, left) == ("1", ["full"])


def ask(session, payload, *, timeout=60.0):
    """Return what a service says that refuses; None if it says nothing."""
    attachment = to_json(Ask(id=str(len(payload)), deadline_s=30.0))
    for reply in session.get(
        infer_key("main"), payload=payload, attachment=attachment, timeout=timeout
    ):
        said = reply.err.payload.to_bytes()
        return json.loads(said) if said.startswith(b"{") else None
    return None
