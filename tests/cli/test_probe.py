"""What a user can get wrong with `isthmus probe`."""

import pytest

from tests.run.services import free_ports


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "10.0.0.6"], "10.0.0.6, expected 127.0.0.1"),
        (["--listen", "10.0.0.6:x"], "expected HOST or HOST:PORT"),
        ([], "expected one of them"),
        (["127.0.0.1", "--listen", "127.0.0.1"], "expected one of them"),
        (["127.0.0.1", "--name", "a b"], "name 'a b'"),
        (["127.0.0.1", "--out", "theirs.yaml"], "is no platform file"),
        (["127.0.0.1", "--out", "platform.txt"], "ends in .yaml"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_measured(isthmus, mine, options, words):
    (mine / "theirs.yaml").write_text("mine: 1\n")
    done = isthmus("probe", *options)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert words in done.err
    assert (mine / "theirs.yaml").read_text() == "mine: 1\n"
    assert not (mine / "platform.yaml").exists()


def test_that_nobody_answers_is_found_out_before_anything_is_measured(isthmus, mine, monkeypatch):
    monkeypatch.setattr("isthmus.run.probe.SILENCE_S", 0.3)
    (port,) = free_ports(1)
    done = isthmus("probe", f"127.0.0.1:{port}")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert "nobody answers within 0.3 s; is `isthmus probe --listen` running" in done.err
    assert not (mine / "platform.yaml").exists()
