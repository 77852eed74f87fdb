import errno
import json
import os
from dataclasses import dataclass
from functools import partial

import pytest

from isthmus.errors import BundleError, InputError
from isthmus.files import (
    check_our_file,
    check_ours,
    from_json,
    new_folder,
    to_json,
    write_bytes,
)

FILES = ("kind.json", "weights", "*/program", "inner/deep/leaf")


def make(path, text="1"):
    """Write a folder of this kind, every file that it may hold."""
    with new_folder(path, files=FILES) as folder:
        for name in ("weights", "near/program", "far/program", "inner/deep/leaf"):
            write_bytes(folder / name, text.encode())
        (folder / "kind.json").write_text(json.dumps({"schema": "isthmus.kind/1"}))


def tree(path):
    return {
        p.relative_to(path).as_posix(): p.is_file() and p.read_bytes() for p in path.rglob("*")
    }


def refused(path, said):
    before = tree(path.parent)
    with pytest.raises(InputError, match=said) as error:
        make(path, "2")
    assert "\n" not in str(error.value)
    assert tree(path.parent) == before


def test_a_folder_of_ours_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path):
    for text in ("1", "2"):
        make(tmp_path / "out", text)
        assert (tmp_path / "out" / "near" / "program").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_and_a_missing_folder_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    make(tmp_path / "not" / "yet")
    assert tree(tmp_path / "empty") == tree(tmp_path / "not" / "yet")


@pytest.mark.parametrize(
    "name", ["work.py", "near/notes", "inner/leaf", "a/b/program", "inner/deep/sub/leaf", ".git/x"]
)
def test_a_file_of_the_users_beside_ours_is_named_and_nothing_is_touched(tmp_path, name):
    make(tmp_path / "out")
    write_bytes(tmp_path / "out" / name, b"mine")
    refused(tmp_path / "out", rf"out: holds {name.partition('/')[0]}.*not ours")


def test_a_marker_that_we_did_not_write_makes_no_folder_ours(tmp_path):
    for content in (b"{}", b"[]", b"\xff", b'{"schema": 3}', b'{"schema": "other/1"}'):
        write_bytes(tmp_path / "out" / "kind.json", content)
        refused(tmp_path / "out", r"holds no kind\.json of ours")


def test_a_file_that_stands_where_the_folder_shall_be_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(tmp_path / "out", "not ours")
    refused(tmp_path / "out" / "deeper", "cannot be made")


def test_the_current_folder_and_those_around_it_are_refused(tmp_path, monkeypatch):
    make(tmp_path / "out")
    (tmp_path / "out" / "near" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "out" / "near" / "sub")
    for path in (".", "..", "../..", "../../../out", str(tmp_path / "out")):
        with pytest.raises(InputError, match="current folder"):
            check_ours(type(tmp_path)(path), files=FILES)
    assert (tmp_path / "out" / "weights").is_file()


def test_where_nothing_can_be_written_is_seen_beforehand_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("mine")
    for check in (check_our_file, partial(check_ours, files=FILES)):
        check(tmp_path / "new")
        check(tmp_path / "not" / "yet")
        for name in ("file/below", "file/far/below", "x" * 300):
            with pytest.raises(InputError, match=r"cannot be made \(.*\); name another --out"):
                check(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


def test_links_are_refused_and_what_they_lead_to_stays(tmp_path):
    make(tmp_path / "real")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("out", "broken"):
        refused(tmp_path / name, "link")
    make(tmp_path / "other")
    (tmp_path / "other" / "weights").unlink()
    (tmp_path / "other" / "weights").symlink_to(tmp_path / "real" / "weights")
    refused(tmp_path / "other", "holds weights")


def test_when_the_writer_fails_the_old_folder_stands(tmp_path):
    make(tmp_path / "out")
    before = tree(tmp_path)
    with (
        pytest.raises(InputError, match=r"^\S+out: cannot be written \(Is a directory\); "),
        new_folder(tmp_path / "out", files=FILES) as folder,
    ):
        write_bytes(folder, b"not a folder's")
    assert tree(tmp_path) == before


def test_errors_name_the_folder_that_was_to_be_made_and_not_the_temporary_one(tmp_path):
    def fails(error, folder):
        if error is BundleError:
            raise BundleError(f"{folder / 'far' / 'program'}: differs")
        if error is OSError:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (folder / "absent" / "program").write_bytes(b"")

    for error, kind, said in (
        (BundleError, BundleError, "/out/far/program: differs"),
        (OSError, InputError, r"/out: cannot be written \(No space left on device\); make room"),
        (None, InputError, r"/out: cannot be written \(No such file or directory\); make room"),
    ):
        with (
            pytest.raises(kind, match=f"^{tmp_path}{said}"),
            new_folder(tmp_path / "out", files=FILES) as folder,
        ):
            fails(error, folder)
    with pytest.raises(ConnectionError), new_folder(tmp_path / "out", files=FILES):
        raise ConnectionError(errno.ECONNRESET, "is none of the folder's")
    assert not list(tmp_path.iterdir())


def test_when_the_new_folder_cannot_be_put_in_place_the_old_one_is_put_back(tmp_path):
    make(tmp_path / "out")
    before = tree(tmp_path)
    with (
        pytest.raises(InputError, match="out: cannot be made"),
        new_folder(tmp_path / "out", files=FILES) as folder,
    ):
        folder.rmdir()
    assert tree(tmp_path) == before


def test_what_the_user_put_there_meanwhile_stays(tmp_path):
    make(tmp_path / "out")
    with (
        pytest.raises(InputError, match=r"holds work\.py"),
        new_folder(tmp_path / "out", files=FILES),
    ):
        (tmp_path / "out" / "work.py").write_text("mine")
    assert (tmp_path / "out" / "work.py").read_text() == "mine"


def test_a_file_is_written_whole_with_the_usual_permissions(tmp_path):
    write_bytes(tmp_path / "a" / "b", b"x")
    (tmp_path / "usual").touch()
    assert (tmp_path / "a" / "b").read_bytes() == b"x"
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_file_that_cannot_be_written_is_named_as_the_user_wrote_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name, why in (
        ("folder", "Is a directory"),
        (".", "Is a directory"),
        ("file/below", ""),
        ("x" * 300, "too long"),
    ):
        with pytest.raises(InputError, match=rf"^{name}: cannot be written \(.*{why}.*\); .") as e:
            write_bytes(type(tmp_path)(name), b"x")
        assert "\n" not in str(e.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@dataclass(frozen=True)
class Measured:
    SCHEMA = "isthmus.measured/1"
    seconds: float


def test_what_is_written_is_json_and_what_is_not_is_refused():
    assert from_json(to_json(Measured(0.5)), Measured, where="x") == Measured(0.5)
    assert json.loads(to_json(Measured(float("inf"))))["seconds"] is None
    text = to_json(Measured(0.5)).replace("0.5", "NaN")
    with pytest.raises(InputError, match=r"x: not JSON \(found NaN, expected a number\)"):
        from_json(text, Measured, where="x")
