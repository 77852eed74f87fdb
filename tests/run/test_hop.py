import json
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import zenoh

from isthmus.errors import RunError
from isthmus.run.hop import Receiver, Sender
from isthmus.run.messages import WINDOW, Terms
from isthmus.run.session import closing, locator, open_session
from isthmus.wire import HEADER_BYTES, decode_header, encode_header

TERMS = Terms(bundle="b", codec="c")


@contextmanager
def two_sessions():
    with closing(open_session()) as near, closing(open_session(connect=locator(near))) as far:
        yield near, far


def relay(session, source, target, alter):
    """Pass frames from one hop to another, and acknowledgements back, as ``alter`` says."""

    def passing(kind, target):
        def put(sample):
            for data in alter(kind, sample.payload.to_bytes()):
                session.put(
                    target,
                    data,
                    attachment=sample.attachment,
                    congestion_control=zenoh.CongestionControl.DROP,
                )

        return put

    return (
        session.declare_subscriber(f"{source}/frame", passing("frame", f"{target}/frame")),
        session.declare_subscriber(f"{target}/ack", passing("ack", f"{source}/ack")),
    )


def wait_until_heard(session, key):
    publisher = session.declare_publisher(key)
    end_s = time.monotonic() + 10
    while not publisher.matching_status.matching:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    publisher.undeclare()


def taken(receiver, count):
    return [frame.request for _ in range(count) if (frame := receiver.receive(5.0))]


def test_three_thousand_frames_reach_a_slow_reader_in_order_within_bounded_memory():
    count, size = 3000, 64 << 10
    with open_session() as session:
        command = [sys.executable, "-m", "tests.run.reader", locator(session), "hop", str(count)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as reader,
            Sender(session, "hop", crossing=0, timeout_s=20.0) as sender,
        ):
            sender.agree(TERMS)
            start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for request in range(count):
                sent_bytes = sender.send(request, request.to_bytes(4, "little") * (size // 4))
            out, _ = reader.communicate(timeout=30)
            grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib
    seen = json.loads(out)
    assert sent_bytes == size + HEADER_BYTES
    assert seen["in_order"] == count
    assert grown_kib < 48 << 10  # a quarter of what was sent; the queues hold 2 MiB
    assert seen["grown_kib"] < 48 << 10


def test_frames_that_are_lost_damaged_or_doubled_on_the_way_arrive_once():
    seen = {"frame": 0, "ack": 0}

    def alter(kind, data):
        seen[kind] += 1
        turn = seen[kind] % 7
        if kind == "ack":
            return [] if turn == 2 else [data]
        damaged = data[:-1] + bytes([data[-1] ^ 1])
        return {1: [], 3: [damaged], 5: [data, data]}.get(turn, [data])

    with two_sessions() as (near, far):
        receiver = Receiver(far, "b", TERMS)
        passing = relay(far, "a", "b", alter)
        with Sender(near, "a", crossing=0, timeout_s=60.0, resend_s=0.05) as sender:
            frames = []
            for turn in range(4):
                for request in range(8 * turn, 8 * turn + 8):
                    sender.send(request, b"%d" % request)
                for _ in range(8):
                    frame = receiver.receive(60.0)
                    assert frame is not None
                    frames.append((frame.request, frame.payload))
            assert receiver.receive(0.2) is None
        for subscriber in passing:
            subscriber.undeclare()
    assert sorted(frames) == [(request, b"%d" % request) for request in range(32)]
    assert receiver.damaged > 0
    assert sender.retries > 0


@pytest.mark.parametrize("size", [0, 1, 13, 14, 16 << 10, (16 << 10) + 1, 1 << 20])
def test_a_payload_of_any_length_arrives_as_it_was(size):
    payload = bytes(k % 251 for k in range(size))
    with two_sessions() as (near, far):
        receiver = Receiver(far, "hop", TERMS)
        with Sender(near, "hop", crossing=2, timeout_s=5.0) as sender:
            sender.agree(TERMS)
            sender.send(7, payload, 3)
            frame = receiver.receive(5.0)
    assert frame is not None
    assert (frame.request, frame.payload, frame.width) == (7, payload, 3)
    assert receiver.damaged == 0


def test_a_receiver_holds_no_more_frames_than_its_window():
    with two_sessions() as (near, far):
        receiver = Receiver(far, "hop", TERMS)
        with Sender(near, "hop", crossing=0, timeout_s=5.0) as sender:
            sender.agree(TERMS)
        header = encode_header(0, 0, b"x")
        for wrong in (None, b"", header[:-1], header + b"x"):  # take no place
            for _ in range(WINDOW):
                near.put("hop/frame", b"x", attachment=wrong)
        for request in range(WINDOW + 50):
            near.put("hop/frame", b"x", attachment=encode_header(request, 0, b"x"))
        time.sleep(0.3)
        assert receiver._frames.qsize() == WINDOW
        assert receiver.damaged == 4 * WINDOW
        assert taken(receiver, WINDOW) == list(range(WINDOW))
        assert receiver.receive(0.1) is None


def test_a_sender_without_acknowledgements_stops_after_its_window_and_then_says_so():
    with two_sessions() as (near, far):
        receiver = Receiver(far, "hop", TERMS)
        with Sender(near, "hop", crossing=3, timeout_s=0.3) as sender:
            sender.agree(TERMS)
            for request in range(WINDOW):
                sender.send(request, b"x")
            with pytest.raises(RunError, match=r"hop 3: request 0 has no acknowledgement"):
                sender.send(WINDOW, b"x")
            assert receiver.receive(1.0) is not None
            time.sleep(0.1)
            sender.send(WINDOW, b"x")


def test_a_frame_is_not_sent_again_while_its_link_takes_long():
    with two_sessions() as (near, far):

        def pass_on(sample):
            frame = sample.payload.to_bytes()
            request, _, _ = decode_header(frame[:HEADER_BYTES], frame[HEADER_BYTES:])
            ack = request.to_bytes(4, "little") + bytes(4)
            timer = threading.Timer(0.8, far.put, ("hop/ack", ack))
            timer.daemon = True
            timer.start()

        passing = far.declare_subscriber("hop/frame", pass_on)
        with Sender(near, "hop", crossing=0, timeout_s=30.0, resend_s=0.3) as sender:
            for request in range(8):
                before = sender.retries
                sender.send(request, b"x")
                assert sender.flush(30.0)
                if request == 0:
                    assert sender.retries > 0  # nobody knows yet how slow the link is
                if request > 4:
                    assert sender.retries == before
        passing.undeclare()


def test_a_frame_that_is_acknowledged_before_its_sender_has_noted_it_is_not_sent_again():
    with two_sessions() as (near, far):
        receiver = Receiver(far, "hop", TERMS)
        with Sender(near, "hop", crossing=0, timeout_s=10.0, resend_s=0.05) as sender:
            sender.agree(TERMS)
            transport = sender._publisher

            class Slow:
                def put(self, payload):
                    transport.put(payload)
                    assert receiver.receive(10.0) is not None
                    receiver._acknowledge()
                    end_s = time.monotonic() + 10
                    while sender._putting is not None and time.monotonic() < end_s:
                        time.sleep(0.01)

            sender._publisher = Slow()  # type: ignore[assignment]
            for request in range(2 * WINDOW):
                sender.send(request, b"x")
                assert not sender._parcels
            assert len(sender.round_trips()) == len(sender.passages()) == 2 * WINDOW
            time.sleep(0.2)
            assert sender.retries == 0


def test_a_frame_that_is_lost_is_sent_again_when_a_later_one_is_acknowledged():
    seen = {"frame": 0}

    def alter(kind, data):
        seen["frame"] += kind == "frame"
        return [] if kind == "frame" and seen["frame"] == 1 else [data]

    with two_sessions() as (near, far):
        receiver = Receiver(far, "b", TERMS)
        passing = relay(far, "a", "b", alter)
        with Sender(near, "a", crossing=0, timeout_s=10.0, resend_s=60.0) as sender:
            wait_until_heard(near, "a/frame")
            wait_until_heard(far, "b/frame")
            sender.send(0, b"0")
            sender.send(1, b"1")
            found = [receiver.receive(10.0), receiver.receive(10.0)]
        for subscriber in passing:
            subscriber.undeclare()
    assert [frame.request for frame in found if frame] == [1, 0]
    assert sender.retries == 1


def test_a_receiver_that_is_another_process_gets_what_the_first_did_not_acknowledge():
    with (
        two_sessions() as (near, far),
        Sender(near, "hop", crossing=0, timeout_s=5.0, resend_s=60.0) as sender,
    ):
        first = Receiver(far, "hop", TERMS)
        sender.agree(TERMS)
        for request in range(100, 104):
            sender.send(request, b"x")
        assert taken(first, 1) == [100]
        time.sleep(0.2)
        first.close()
        second = Receiver(far, "hop", TERMS)
        sender.agree(TERMS)
        sender.send_again()
        assert sorted(taken(second, 3)) == [101, 102, 103]
        assert second.receive(0.1) is None


def test_a_lost_frame_comes_soon_though_many_were_sent_again_to_another_process():
    with (
        two_sessions() as (near, far),
        Sender(near, "hop", crossing=0, timeout_s=5.0, resend_s=0.5) as sender,
    ):
        for request in range(WINDOW):
            sender.send(request, b"x")  # nobody takes them
        receiver = Receiver(far, "hop", TERMS)
        sender.agree(TERMS)
        sender.send_again()
        assert sorted(taken(receiver, WINDOW)) == list(range(WINDOW))
        receiver.receive(0.0)  # acknowledges the last ones
        assert sender.flush(5.0)
        receiver.close()
        time.sleep(0.2)
        sender.send(WINDOW, b"x")  # is lost
        time.sleep(0.2)
        assert taken(Receiver(far, "hop", TERMS), 1) == [WINDOW]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(TERMS, protocol=1), "sender has protocol 1, the receiver 5"),
        (replace(TERMS, bundle="another"), "sender has bundle 'another', the receiver 'b'"),
        (replace(TERMS, codec="raw"), "sender has codec 'raw', the receiver 'c'"),
    ],
)
def test_no_frame_passes_before_both_ends_agree_on_protocol_bundle_and_codec(other, said):
    with two_sessions() as (near, far):
        receiver = Receiver(far, "hop", TERMS)
        with (
            Sender(near, "hop", crossing=0, timeout_s=5.0) as sender,
            pytest.raises(RunError, match=said),
        ):
            sender.agree(other)
        assert receiver.receive(0.05) is None


def test_a_hop_that_nobody_receives_is_an_error_in_time():
    with (
        open_session() as session,
        Sender(session, "hop", crossing=1, timeout_s=0.2) as sender,
        pytest.raises(RunError, match=r"hop 1: nobody receives after 0\.2 s"),
    ):
        sender.agree(TERMS)


def test_a_taken_port_is_one_line_that_says_what_to_do():
    with open_session() as session:
        taken = locator(session)
        with pytest.raises(RunError, match="port is taken; name another") as error:
            open_session(listen=taken)
        assert "\n" not in str(error.value)
