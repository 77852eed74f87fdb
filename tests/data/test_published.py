"""Downloads, from a server on loopback that may break off, ignore ranges or send other data."""

import fcntl
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isthmus.data import Search, load_images
from isthmus.data.cifar import CIFAR10, read_cifar
from isthmus.data.published import MIB, Published, fetch, obtain
from isthmus.errors import InputError
from tests.data.layouts import pack, write_cifar10_binary
from tests.data.server import Server, serving

DATA = np.random.default_rng(0).bytes(2 * MIB + 300)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(DATA) as state:
        yield state


def published(server: Server, data: bytes = DATA) -> Published:
    return Published(url=server.url, md5=hashlib.md5(data).hexdigest(), num_bytes=len(data))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    assert "\n" not in str(error.value)
    assert [part for part in parts if part not in str(error.value)] == []


def test_a_file_arrives_whole_and_says_how_far_it_is(server, tmp_path):
    said: list[tuple[str, int, int]] = []
    fetch(published(server), tmp_path / "new" / "f.gz", progress=lambda *step: said.append(step))
    assert (tmp_path / "new" / "f.gz").read_bytes() == DATA
    assert names(tmp_path / "new") == ["f.gz"]
    assert [done for _, done, _ in said] == [1, 2, 3]
    assert said[-1] == ("download f.gz, MiB", 3, 3)


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.stop_after = MIB + 7
    with pytest.raises(InputError) as error:
        fetch(published(server), tmp_path / "f")
    one_line(error, server.url, "ended after 1,048,583 of 2,097,452 bytes", "run the same again")
    assert names(tmp_path) == ["f.partial"]
    server.stop_after = None
    fetch(published(server), tmp_path / "f")
    assert server.asked == [None, "bytes=1048583-"]
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_server_that_ignores_ranges_starts_anew(server, tmp_path):
    (tmp_path / "f.partial").write_bytes(DATA[:1000])
    server.ranges = False
    fetch(published(server), tmp_path / "f")
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "f").read_bytes() == DATA


def test_what_arrived_whole_but_was_not_yet_renamed_is_not_fetched_again(server, tmp_path):
    (tmp_path / "f.partial").write_bytes(DATA)
    fetch(published(server), tmp_path / "f")
    assert server.asked == []
    assert names(tmp_path) == ["f"]


def test_two_processes_do_not_fetch_the_same_file_at_once(server, tmp_path):
    with (tmp_path / "f.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"f\.partial: another process is fetching"):
            fetch(published(server), tmp_path / "f")
    assert server.asked == []
    fetch(published(server), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.data = DATA[:-1] + b"?"
    with pytest.raises(InputError) as error:
        fetch(published(server), tmp_path / "f")
    one_line(error, server.url, published(server).md5, "nothing is kept")
    assert names(tmp_path) == []


def test_a_damaged_beginning_costs_one_more_attempt(server, tmp_path):
    (tmp_path / "f.partial").write_bytes(b"<html>")
    with pytest.raises(InputError, match="nothing is kept"):
        fetch(published(server), tmp_path / "f")
    fetch(published(server), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_no_more_is_taken_than_was_published(server, tmp_path):
    server.data = DATA * 3
    with pytest.raises(InputError, match="of 2,097,452 bytes"):
        fetch(published(server), tmp_path / "f")
    assert names(tmp_path) == []


def test_a_server_that_has_no_such_file_or_is_not_there_is_one_line(server, tmp_path):
    missing = replace(published(server), url=server.url.replace("moved", "absent"))
    with pytest.raises(InputError) as error:
        fetch(missing, tmp_path / "f")
    one_line(error, "not fetched (Not Found)", f"put the file at {tmp_path / 'f'}")
    with pytest.raises(InputError, match="refused"):
        fetch(replace(missing, url="http://127.0.0.1:9/f"), tmp_path / "f")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not fetched"):
        fetch(published(server), tmp_path / "file" / "f")


def test_only_what_is_missing_is_fetched(server, tmp_path):
    (tmp_path / "a").write_bytes(b"here")
    files = {"a": published(server), "sub/b": published(server)}
    found = obtain(
        "letters",
        Search(tmp_path, download=True),
        find=lambda folder: True if (folder / "sub/b").is_file() else None,
        looked_for="a and sub/b",
        published=files,
        publisher=server.url,
    )
    assert found
    assert len(server.asked) == 1
    assert (tmp_path / "a").read_bytes() == b"here"


def test_a_data_set_is_fetched_once_and_only_where_allowed(server, tmp_path):
    write_cifar10_binary(tmp_path / "cifar-10-batches-bin")
    pack(tmp_path / "cifar-10-batches-bin", tmp_path / "served")
    server.data = (tmp_path / "served").read_bytes()
    cifar = replace(CIFAR10, published=published(server, server.data))
    folder = tmp_path / "data"
    with pytest.raises(InputError) as error:
        read_cifar(cifar, "test", Search(folder))
    one_line(error, f"not in {folder} (no such folder)", "add --download", server.url)
    assert server.asked == []
    for _ in range(2):
        assert len(read_cifar(cifar, "test", Search(folder, download=True)).y) == 3
    assert len(server.asked) == 1
    assert names(folder) == ["cifar-10-binary.tar.gz"]


def test_no_folder_at_all_says_how_to_name_one(monkeypatch):
    monkeypatch.delenv("ISTHMUS_DATA", raising=False)
    with pytest.raises(InputError) as error:
        load_images("cifar100", "train")
    one_line(error, "data cifar100: nowhere to look", "--data-dir", "$ISTHMUS_DATA")
