import json
from dataclasses import replace

import pytest

from isthmus.bundle import Bundle, bundle_id, read_bundle, write_bundle
from isthmus.errors import BundleError
from tests.run.bundles import FAST, write_chain


@pytest.fixture
def folder(tmp_path):
    write_chain(tmp_path / "bundle", FAST)
    return tmp_path / "bundle"


def edit(folder, **fields):
    """Change top-level fields of bundle.json."""
    index = folder / "bundle.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **fields}))


def edit_crossing(folder, **fields):
    crossing = json.loads((folder / "bundle.json").read_text())["crossings"][0]
    edit(folder, crossings=[{**crossing, **fields}])


def test_a_written_bundle_reads_back_equal_with_a_hash_for_every_file(tmp_path):
    bundle = write_chain(tmp_path / "bundle", FAST)
    assert read_bundle(tmp_path / "bundle") == bundle
    assert sorted(bundle.files) == [
        "far/program.onnx",
        "near/program.onnx",
        "plan.json",
        "platform.yaml",
    ]


def test_two_bundles_have_two_ids_and_one_bundle_keeps_its_own(tmp_path):
    write_chain(tmp_path / "a", FAST)
    write_chain(tmp_path / "b", FAST)
    write_chain(tmp_path / "c", FAST, after="elsewhere")
    assert bundle_id(tmp_path / "a") == bundle_id(tmp_path / "b") != bundle_id(tmp_path / "c")


def test_a_folder_that_is_no_bundle_says_what_is_expected(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle\.json, expected a bundle"):
        read_bundle(tmp_path)


def test_a_bundle_of_another_version_names_the_version_that_wrote_it(folder):
    edit(folder, schema="isthmus.bundle/7", version="9.1.0")
    with pytest.raises(BundleError, match=r"'isthmus.bundle/7', written by Isthmus 9\.1\.0") as e:
        read_bundle(folder)
    assert Bundle.SCHEMA in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_an_index_that_is_not_ours_is_one_line(folder, text):
    (folder / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match="bundle"):
        read_bundle(folder)


def test_a_field_that_does_not_fit_is_named(folder):
    edit(folder, devices=[{"name": 3}])
    with pytest.raises(BundleError, match=r"bundle\.json: devices\.0\.name"):
        read_bundle(folder)


def test_a_changed_a_truncated_and_a_missing_file_are_named(folder):
    program = folder / "far" / "program.onnx"
    whole = program.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        program.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"far/program\.onnx: has been changed or cut short"):
            read_bundle(folder)
    program.unlink()
    with pytest.raises(BundleError, match=r"far/program\.onnx: is missing"):
        read_bundle(folder)


def test_a_file_that_was_added_is_named(folder):
    (folder / "near" / "weights.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"near/weights\.bin: does not belong"):
        read_bundle(folder)


def test_a_folder_that_was_left_over_is_named(folder):
    bundle = read_bundle(folder)
    (folder / "old" / "inner").mkdir(parents=True)
    for read in (lambda: read_bundle(folder), lambda: write_bundle(folder, bundle)):
        with pytest.raises(BundleError, match=r"old/inner: does not belong to the bundle"):
            read()
    (folder / "old" / "inner").rmdir()
    (folder / "old").rmdir()
    (folder / "old").symlink_to(folder / "near")
    with pytest.raises(BundleError, match=r"old: does not belong to the bundle"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "near/../../secret", "./x", "C:\\x", "a//b", "", "a\0b"]
)
def test_no_path_leads_out_of_the_bundle(folder, name):
    files = json.loads((folder / "bundle.json").read_text())["files"]
    (folder.parent / "secret").write_text("x")
    edit(folder, files={**files, name: "0" * 64})
    with pytest.raises(BundleError, match="leaves the bundle"):
        read_bundle(folder)


@pytest.mark.parametrize("linked", ["far/program.onnx", "far"])
def test_a_symbolic_link_is_refused_even_where_the_hash_is_right(folder, linked):
    target = folder.parent / "elsewhere"
    (folder / linked).rename(target)
    (folder / linked).symlink_to(target)
    with pytest.raises(BundleError, match="leaves the bundle"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shapes": [[0, 5]]}, "expected sizes over 0"),
        ({"shapes": [[1 << 20, 1 << 20]]}, "at most 2..31 elements"),
        ({"dtypes": ["object"]}, "found dtype 'object'"),
        ({"dtypes": ["float32", "float32"]}, "one dtype for each shape"),
        ({"payload_bytes": 2.5}, "whole bytes at a fixed rate"),
        ({"payload_bytes": -1}, "found a payload of -1"),
        ({"tables": "crossing0.tables"}, "is not among the files"),
        ({"source": "far"}, "found crossings"),
    ],
)
def test_a_crossing_that_makes_no_sense_is_named(folder, fields, said):
    edit_crossing(folder, **fields)
    with pytest.raises(BundleError, match=said):
        read_bundle(folder)


def test_devices_that_make_no_sense_are_named(folder):
    bundle = read_bundle(folder)
    (folder / "bundle.json").unlink()
    near, far = bundle.devices
    for devices, said in (
        ((near, replace(far, program=None)), "device far: no program"),
        ((near, replace(far, program="far/other.onnx")), "not among the files"),
        ((near, replace(far, threads=0)), "found 0 threads"),
        ((near, replace(far, batch=0)), "found a batch of 0"),
        ((near, near), "each once"),
        ((), "at least one"),
    ):
        with pytest.raises(BundleError, match=said):
            write_bundle(folder, replace(bundle, devices=devices))
    assert not (folder / "bundle.json").exists()


def test_a_device_that_passes_bytes_on_has_the_same_codec_on_both_links(tmp_path):
    links = (replace(FAST, between=("near", "mid")), replace(FAST, between=("mid", "far")))
    bundle = write_chain(tmp_path / "bundle", *links)
    first, second = bundle.crossings
    edit(tmp_path / "bundle", version="0.1.0")
    with pytest.raises(BundleError, match="device mid: no program, expected the same codec"):
        write_bundle(
            tmp_path / "bundle",
            replace(bundle, crossings=(first, replace(second, codec="raw"))),
        )
