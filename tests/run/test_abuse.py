"""What does not belong is sent to a service in quantity, and it goes on."""

import random

import numpy as np
import psutil
import zenoh

from isthmus.bundle import bundle_id
from isthmus.run.messages import about_key, error_key, hop_key, infer_key, run_of
from isthmus.run.session import open_session
from isthmus.wire import HEADER_BYTES, encode_header
from tests.run.bundles import FAST, logits, samples, write_chain
from tests.run.services import devices

TWO = ("near", "far")
NUM_MALFORMED = 100_000
X = samples(4)
Y = logits(X)


def malformed(generator: random.Random) -> tuple[bytes, bytes | None]:
    """Return a payload and a header, or none: noise, cut short, or one byte of both changed."""
    kind = generator.random()
    if kind < 0.4:
        noise = generator.randbytes(generator.randrange(40))
        return noise, generator.randbytes(generator.randrange(40)) if kind < 0.3 else None
    payload = generator.randbytes(8)
    header = encode_header(generator.randrange(1 << 32), 1, payload)
    if kind < 0.5:
        return payload, header[: generator.randrange(len(header))]
    if kind < 0.6:
        return payload[: generator.randrange(len(payload))], header
    changed = bytearray(header + payload)
    changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed[HEADER_BYTES:]), bytes(changed[:HEADER_BYTES])


def test_a_hundred_thousand_malformed_frames_change_nothing(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    run = run_of("main", bundle_id(tmp_path / "bundle"))
    generator = random.Random(0)
    with devices(tmp_path / "bundle", TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        assert np.array_equal(client.ask(X[0])[0], Y[0])
        places = [f"tcp/127.0.0.1:{port}" for port in hosts.ports.values()]
        with open_session(listen="", more={"connect/endpoints": places}) as rogue:
            keys = [f"{hop_key(run, hop)}/{kind}" for hop in range(3) for kind in ("frame", "ack")]
            publishers = [
                rogue.declare_publisher(key, congestion_control=zenoh.CongestionControl.BLOCK)
                for key in (*keys, error_key(run))
            ]
            before = sizes(hosts)
            for turn in range(NUM_MALFORMED):
                payload, header = malformed(generator)
                publishers[turn % len(publishers)].put(payload, attachment=header)
            for x, y in zip(X, Y, strict=True):
                assert np.array_equal(client.ask(x)[0], y)
            grown = [after - start for start, after in zip(before, sizes(hosts), strict=True)]
            for key in (infer_key("main"), about_key("main")):
                for payload in (b"", b"\xff" * 10, bytes(1 << 20)):
                    list(rogue.get(key, payload=payload, attachment=payload, timeout=10.0))
        assert np.array_equal(client.ask(X[0])[0], Y[0])
        assert max(grown) < 32 << 20
        assert [process.poll() for process in hosts.processes.values()] == [None, None]
        assert "Traceback" not in hosts.log("near") + hosts.log("far")


def sizes(hosts) -> list[int]:
    return [psutil.Process(each.pid).memory_info().rss for each in hosts.processes.values()]
