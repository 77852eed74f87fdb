"""The commands that make certificates."""

import json

import pytest

from isthmus.errors import InputError
from isthmus.run import keys
from isthmus.run.keys import tls_settings


def test_an_authority_and_a_device_are_two_commands(isthmus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isthmus("keys", "init").out == "keys/ca.pem\n"
    done = isthmus("keys", "issue", "hub", "--host", "10.0.0.5", "--days", "30", "--json")
    assert json.loads(done.out) == {"name": "hub", "folder": "keys/hub"}
    assert tls_settings(tmp_path / "keys" / "hub", name="hub")
    assert isthmus("keys", "issue", "hub", "--renew").out == "keys/hub\n"


def test_a_mistake_is_one_line(isthmus, tmp_path):
    folder = tmp_path / "mine"
    missing = isthmus("keys", "issue", "hub", "--out", folder)
    assert missing.code == 1
    assert missing.err.startswith(f"isthmus: {folder}: no ca-key.pem; make")
    assert json.loads(isthmus("keys", "init", "--out", folder, "--json").out) == {
        "authority": str(folder / "ca.pem")
    }
    for arguments in (("init",), ("issue", "a b")):
        done = isthmus("keys", *arguments, "--out", folder)
        assert done.code == 1
        assert done.err.count("\n") == 1


def test_an_authority_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise InputError("ca.pem: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "_write_certificate", full)
        with pytest.raises(InputError, match="No space left"):
            keys.init_keys(tmp_path / "k")
    assert not list((tmp_path / "k").iterdir())
    keys.init_keys(tmp_path / "k")


def test_wrong_usage_is_two(isthmus, tmp_path):
    assert isthmus("keys", "issue").code == 2
    assert isthmus("keys", "issue", "hub", "--days", "0", "--out", tmp_path).code == 2
