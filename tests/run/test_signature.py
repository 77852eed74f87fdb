"""Bundles that an authority signed, and those that it did not."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from isthmus.bundle import bundle_id, read_bundle
from isthmus.cli.options import as_signed
from isthmus.errors import BundleError, InputError, IsthmusError
from isthmus.run.keys import check_signature, init_keys, issue_key, sign_bundle
from tests.run.bundles import FAST, samples, write_chain


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two authorities, each with a device."""
    folder = tmp_path_factory.mktemp("keys")
    for authority in ("ours", "theirs"):
        init_keys(folder / authority)
        issue_key(folder / authority, "near")
    return folder


@pytest.fixture
def signed(keys, tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    sign_bundle(tmp_path / "bundle", keys / "ours")
    return tmp_path / "bundle"


def test_a_signed_bundle_is_the_same_bundle_and_every_device_can_tell(keys, signed):
    before = bundle_id(signed)
    for folder in (keys / "ours", keys / "ours" / "near"):
        check_signature(signed, folder)
    sign_bundle(signed, keys / "ours")
    check_signature(signed, keys / "ours")
    assert bundle_id(signed) == before
    read_bundle(signed)


def test_a_bundle_without_a_signature_is_refused(keys, tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    with pytest.raises(BundleError, match=r"has no bundle\.sig, expected one; sign it with"):
        check_signature(tmp_path / "bundle", keys / "ours")


def test_the_signature_of_another_authority_is_refused(keys, signed):
    for folder in (keys / "theirs", keys / "theirs" / "near"):
        with pytest.raises(BundleError, match=r"bundle\.sig: is of another authority than"):
            check_signature(signed, folder)
    signature = json.loads((signed / "bundle.sig").read_text())
    sign_bundle(signed, keys / "theirs")
    theirs = json.loads((signed / "bundle.sig").read_text())
    (signed / "bundle.sig").write_text(json.dumps({**theirs, "authority": signature["authority"]}))
    with pytest.raises(BundleError, match="is not what was signed"):
        check_signature(signed, keys / "ours")


def test_an_older_signature_is_refused_and_its_time_cannot_be_changed(keys, signed):
    place, hour = signed / "bundle.sig", timedelta(hours=1)
    found = json.loads(place.read_text())
    signed_at = datetime.fromisoformat(found["signed_at"])
    assert abs(datetime.now(UTC) - signed_at) < hour
    east = timezone(5 * hour)
    for since in (signed_at, signed_at.replace(tzinfo=None), signed_at.astimezone(east)):
        check_signature(signed, keys / "ours", since=since)
        with pytest.raises(BundleError, match=r"was signed at .*, expected .* or later"):
            check_signature(signed, keys / "ours", since=since + timedelta(seconds=1))
    for later in ((signed_at + hour).isoformat(), "", "tomorrow"):
        place.write_text(json.dumps({**found, "signed_at": later}))
        with pytest.raises(BundleError, match="is not what was signed"):
            check_signature(signed, keys / "ours", since=signed_at)


def test_a_changed_byte_is_found_by_the_signature_or_by_the_checksum(keys, signed):
    index, program = signed / "bundle.json", signed / "near" / "program.onnx"
    whole = index.read_bytes()
    for place in range(0, len(whole), 97):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BundleError, match=r"bundle\.json: is not what was signed"):
            check_signature(signed, keys / "ours")
    index.write_bytes(whole)
    data = program.read_bytes()
    program.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    check_signature(signed, keys / "ours")
    with pytest.raises(BundleError, match="has been changed"):
        read_bundle(signed)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"x" * 10_000, b"[" * 4_000, b'{"schema": "isthmus.signature/2"}',
        b'{"schema": "isthmus.signature/2", "authority": "", "signed_at": "", "signature": ""}',
        b'{"schema": "isthmus.signature/1", "authority": "", "signature": ""}',
    ],
)  # fmt: skip
def test_a_signature_that_is_none_is_one_line(keys, signed, text):
    (signed / "bundle.sig").write_bytes(text)
    with pytest.raises(IsthmusError, match=r"bundle\.sig") as error:
        check_signature(signed, keys / "ours")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("signature", ["", "AAAA", "no base64!", "\u00e4"])
def test_a_signature_that_does_not_fit_is_refused(keys, signed, signature):
    found = json.loads((signed / "bundle.sig").read_text())
    (signed / "bundle.sig").write_text(json.dumps({**found, "signature": signature}))
    with pytest.raises(BundleError, match="is not what was signed"):
        check_signature(signed, keys / "ours")


def test_only_the_authority_signs_and_only_a_whole_bundle(keys, signed):
    with pytest.raises(InputError, match=r"no ca-key\.pem"):
        sign_bundle(signed, keys / "ours" / "near")
    (signed / "near" / "program.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="has been changed"):
        sign_bundle(signed, keys / "ours")


def test_the_commands_sign_and_refuse_before_anything_is_loaded(keys, tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    np.savez(tmp_path / "data.npz", x_train=samples(4), y_train=np.arange(4),
             x_test=samples(4), y_test=np.arange(4))  # fmt: skip

    def isthmus(*arguments):
        command = [sys.executable, "-m", "isthmus", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    near = f"--keys={keys / 'ours' / 'near'}"
    run = ("run", "bundle", "--data", "npz:data.npz", "--no-throttle", "--signed", "--json")
    serve = ("serve", "bundle", "--device", "near", "--signed")
    for arguments, said in (
        ((*serve, near), "has no bundle.sig"),
        ((*run, near), "has no bundle.sig"),
        (run, "--signed: needs --keys"),
    ):
        done = isthmus(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert said in done.stderr
    done = isthmus("keys", "sign", "bundle", "--keys", str(keys / "ours"))
    assert done.stdout == "bundle/bundle.sig\n", done.stderr
    assert json.loads(isthmus(*run, near).stdout)["lost"] == 0
    for command in (run, serve):
        done = isthmus(*command, near, "--signed-since", "2999-01-01")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "expected 2999-01-01T00:00:00+00:00 or later" in done.stderr


def test_what_was_checked_is_a_copy_that_nobody_else_can_change(keys, signed, tmp_path):
    own = keys / "ours" / "near"
    with as_signed(signed, own, True, None) as checked:
        assert checked != signed
        (signed / "bundle.json").write_text("{}")
        (signed / "near" / "program.onnx").write_bytes(b"evil")
        read_bundle(checked)
        check_signature(checked, own)
        assert not (checked.parent.stat().st_mode & 0o077)
    assert not checked.exists()
    with pytest.raises(BundleError), as_signed(signed, own, True, None):
        pytest.fail("it is not what was signed")
    with as_signed(signed, None, False, None) as checked:
        assert checked == signed


def test_a_signed_bundle_is_served_from_inside_its_folder(keys, signed, monkeypatch):
    monkeypatch.chdir(signed)
    for place in (Path(), Path("near", "..")):
        with as_signed(place, keys / "ours" / "near", True, None) as checked:
            assert read_bundle(checked) == read_bundle(signed)


def test_an_index_that_is_no_file_is_not_waited_for(keys, signed):
    own = keys / "ours" / "near"
    (signed / "bundle.json").unlink()
    os.mkfifo(signed / "bundle.json")  # reading it would take until somebody writes
    with pytest.raises(BundleError, match=r"found no bundle\.json"):
        check_signature(signed, own)
