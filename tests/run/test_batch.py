"""A device that may compute several waiting requests in one call; real processes."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest

from isthmus.bundle import read_bundle, write_bundle
from isthmus.errors import RequestError
from isthmus.run import run_bundle, start_workers
from isthmus.run.messages import WINDOW
from isthmus.wire.nested import width_byte, widths
from tests.run.bundles import FAST, logits, samples, write_chain
from tests.run.services import devices
from tests.run.test_launch import NESTED, nested_logits, write_nested

BATCH = 4
TWO = ("near", "far")
X = samples(60)


def give_batch(folder):
    bundle = read_bundle(folder)
    batched = tuple(replace(device, batch=BATCH) for device in bundle.devices)
    write_bundle(folder, replace(bundle, devices=batched))


def together(workers, each):
    """Send requests while the last device is stopped; return outputs, and how it batched them."""
    os.kill(workers.processes[1].pid, signal.SIGSTOP)
    numbers = [workers.send([X[index]], each(index)) for index in range(WINDOW - 1)]
    os.kill(workers.processes[1].pid, signal.SIGCONT)
    found: dict[int, np.ndarray] = {}
    while len(found) < len(numbers):
        reply = workers.receive()
        assert reply is not None
        found[reply.request] = reply.outputs[0]
    work = workers.timings()[1].work
    return [found[number] for number in numbers], {each.request: each.batch for each in work}


def test_what_waits_is_computed_together_and_each_request_has_its_own_answer(tmp_path):
    write_nested(tmp_path / "bundle", FAST)
    give_batch(tmp_path / "bundle")
    every = list(widths(NESTED))

    def width(index):
        return every[index % len(every)]

    largest, end_s = 1, time.monotonic() + 60
    with start_workers(tmp_path / "bundle") as workers:
        reply = workers.wait(workers.send([X[0]], width_byte(NESTED, width(0))[0]))
        assert reply is not None
        alone = [reply.outputs[0]]
        assert {each.batch for each in workers.timings()[1].work} == {1}
        while largest == 1:
            assert time.monotonic() < end_s
            outputs, batches = together(workers, lambda index: width_byte(NESTED, width(index))[0])
            largest = max(batches.values())
            assert largest <= BATCH
            np.testing.assert_array_equal(outputs[:1], alone)
            for index, output in enumerate(outputs):
                expected = nested_logits(X[index : index + 1], width(index))[0]
                np.testing.assert_array_equal(output, expected)


def test_a_run_records_how_many_requests_were_computed_together(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    give_batch(tmp_path / "bundle")
    record = run_bundle(tmp_path / "bundle", [X[:20]], logits(X[:20]).argmax(1))
    assert record.accuracy == 1
    assert all(1 <= stage.batch <= BATCH for stage in record.stages)


def write_single(folder):
    """Write a bundle that says that it takes a batch, with a last program that takes none."""
    bundle = write_chain(folder, FAST)
    program = onnx.load(folder / "far" / "program.onnx")
    for value in (*program.graph.input, *program.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(program, folder / "far" / "program.onnx")
    write_bundle(folder, bundle)
    give_batch(folder)


def test_a_run_whose_program_takes_no_batch_goes_one_by_one(tmp_path):
    write_single(tmp_path / "bundle")
    with start_workers(tmp_path / "bundle") as workers:
        outputs, batches = together(workers, lambda index: 0)
    assert set(batches.values()) == {1}
    np.testing.assert_array_equal(outputs, logits(X[: len(outputs)]))


def test_requests_keep_their_deadlines_and_a_program_that_takes_no_batch_goes_one_by_one(tmp_path):
    folder = tmp_path / "bundle"
    write_single(folder)
    with devices(folder, TWO) as hosts, hosts.client() as client:
        for name in TWO:
            hosts.start(name)
        client.ask(X[0])
        hosts.processes["far"].send_signal(signal.SIGSTOP)
        short, *long = [
            client.submit(X[index], deadline_s=60.0 if index else 0.5) for index in range(8)
        ]
        with pytest.raises(RequestError) as error:
            short.result(timeout=60)
        assert error.value.reason == "deadline"
        hosts.processes["far"].send_signal(signal.SIGCONT)
        found = [future.result(timeout=60)[0] for future in long]
    np.testing.assert_array_equal(found, logits(X[1:8]))
