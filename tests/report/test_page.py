import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from isthmus.backends import TensorSpec
from isthmus.bundle import Bundle, DeviceEntry, write_bundle
from isthmus.errors import BundleError, InputError
from isthmus.files import to_json, write_json
from isthmus.platform import dump_platform
from isthmus.report.page import page, write_profile, write_report
from tests.report.examples import FIT, GRAPH, PLAN, RIVALS, RUN, VERIFICATION

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&{{ 7*7 }}'


def ours(text):
    """The page without plotly's own source."""
    assert text.count(get_plotlyjs()) == 1
    return text.replace(get_plotlyjs(), "")


def words(text):
    """What a page says, without its tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def write_example_bundle(folder, schema="isthmus.verification/1"):
    """Write a bundle of one device, with the verification that export leaves."""
    (folder / "mcu-a").mkdir(parents=True)
    (folder / "mcu-a" / "program.onnx").write_bytes(b"program")
    (folder / "platform.yaml").write_text(dump_platform(PLAN.platform))
    text = to_json(VERIFICATION).replace(VERIFICATION.SCHEMA, schema)
    (folder / "verification.json").write_text(text)
    bundle = Bundle(
        version="0.1.0",
        devices=(DeviceEntry(name="mcu-a", program="mcu-a/program.onnx"),),
        crossings=(),
        inputs=(TensorSpec(name="x", shape=(1, 8, 8), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(10,), dtype="float32"),),
        files={},
    )
    write_bundle(folder, bundle)
    return folder


@pytest.fixture(scope="module")
def full():
    return ours(
        page(
            title="digits on two microcontrollers",
            plan=PLAN,
            graph=GRAPH,
            fit=FIT,
            verification=VERIFICATION,
            run=RUN,
            rivals=RIVALS,
        )
    )


@pytest.fixture
def fitted(tmp_path):
    write_json(tmp_path / "fitted" / "fit.json", FIT)
    write_json(tmp_path / "fitted" / "graph.json", GRAPH)
    return tmp_path / "fitted"


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "run" / "run.json", RUN)
    return tmp_path / "run"


def test_the_page_opens_with_the_finding(full):
    assert "<h1>32 bytes cross from mcu-a to mcu-b for each sample, instead of 2,048</h1>" in full


def test_the_page_loads_nothing_and_forbids_it(full):
    assert "default-src &#39;none&#39;" in full or "default-src 'none'" in full
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", full)
    assert not re.findall(r"https?://", full)


def test_every_energy_is_called_predicted(full):
    texts = re.sub(r"<[^>]+>", " ", full).split("\n")
    lines = [line for line in texts if "energy" in line.lower() and "{" not in line]
    assert len(lines) >= 3
    assert all("predict" in line.lower() for line in lines)


def test_the_page_says_what_is_emulated_and_what_made_it(full):
    for expected in (
        "The run, on emulated links",
        "links emulated, devices at this machine&#39;s speed",
        "Some Processor 3000, 2 cores, Linux 6.1",
        "torch 2.13.0",
        "digits-resnet",
        "learning_rate",
    ):
        assert expected in full


def test_what_is_not_given_is_left_out():
    text = ours(page(title="run only", run=RUN))
    assert "360 requests, half of them within 1.62 ms" in text
    assert 'id="timeline"' in text
    for name in ("plan", "accuracy", "bytes", "memory"):
        assert f'id="{name}"' not in text


def test_hostile_names_stay_text():
    crossing = replace(PLAN.crossings[0], after=HOSTILE)
    device = replace(PLAN.platform.devices[0], kind=HOSTILE)
    platform = replace(PLAN.platform, devices=(device, PLAN.platform.devices[1]))
    plan = replace(PLAN, crossings=(crossing,), platform=platform, notes=(HOSTILE,))
    run = replace(RUN, emulated=HOSTILE, machine=HOSTILE)
    rivals = (replace(RIVALS[0], name=HOSTILE, what=HOSTILE),)
    text = ours(page(title=HOSTILE, plan=plan, graph=GRAPH, fit=FIT, run=run, rivals=rivals))
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "49" not in re.findall(r"&amp;(.{0,8})", text)
    assert "&lt;script&gt;alert" in text


def test_a_profile_is_a_page_of_the_model_alone(tmp_path):
    write_profile(tmp_path / "profile.html", GRAPH, title="net.py:make")
    text = ours((tmp_path / "profile.html").read_text())
    assert "42,266 parameters, 169 kB of weights, 968 kMAC for one sample" in text
    assert 'id="bytes"' in text


@pytest.mark.parametrize("backwards", [False, True])
def test_a_report_takes_the_folders_in_any_order(fitted, run, tmp_path, backwards):
    folders = [run, fitted] if backwards else [fitted, run]
    write_report(folders, tmp_path / "report.html")
    text = ours((tmp_path / "report.html").read_text())
    for name in ("plan", "bytes", "accuracy", "timeline", "predicted", "memory"):
        assert f'id="{name}"' in text
    assert "digits-resnet on two-mcu-spi" in text


def test_the_report_of_the_separate_chain_has_the_rivals_and_the_verification(
    fitted, run, tmp_path
):
    write_json(fitted / "fit.json", replace(FIT, rivals=RIVALS))
    bundle = write_example_bundle(tmp_path / "bundle")
    write_report([fitted, bundle, run], tmp_path / "report.html")
    text = words(ours((tmp_path / "report.html").read_text()))
    assert "int8 + zlib 287.3 98.1 % the same crossing in 8 bits, not trained" in text
    assert "uncut, fp32 2,048 98.1 %" in text
    assert "Isthmus, measured 32 97.5 %" in text
    assert "97.2 % accuracy of 360 samples, measured of all 97.5 %, and 98.1 % without a" in text
    assert "smaller network 1 95.1 %" in text
    assert "samples compared 360" in text


def test_a_verification_of_another_version_is_refused(tmp_path):
    bundle = tmp_path / "bundle"
    write_example_bundle(bundle, schema="isthmus.verification/99")
    with pytest.raises(InputError, match=r"verification\.json: found schema"):
        write_report([bundle], tmp_path / "report.html")


def test_every_page_says_in_its_head_what_made_it(full):
    assert '<meta name="generator" content="isthmus">' in full[:2000]


@pytest.mark.parametrize("old", ["My thesis", "<html>isthmus</html>", ""])
def test_a_file_that_is_not_ours_is_never_replaced(old, fitted, tmp_path):
    out = tmp_path / "thesis.html"
    out.write_text(old)
    for write in (
        lambda: write_report([fitted], out),
        lambda: write_profile(out, GRAPH, title="net.py:make"),
    ):
        with pytest.raises(InputError, match=r"thesis\.html: exists and is no page of Isthmus"):
            write()
    assert out.read_text() == old


def test_a_page_of_ours_is_replaced(fitted, tmp_path):
    out = tmp_path / "report.html"
    write_profile(out, GRAPH, title="net.py:make")
    write_report([fitted], out)
    assert "digits-resnet on two-mcu-spi" in out.read_text()


def test_a_folder_or_a_device_is_no_page(fitted, tmp_path):
    for out in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="is no page of Isthmus"):
            write_report([fitted], out)


def test_a_page_whose_accuracy_is_that_of_guessing_says_so(fitted):
    text = page(title="x", graph=GRAPH, fit=replace(FIT, accuracy_split=0.1))
    assert "hardly better than guessing among 10 outputs" in words(ours(text))


def test_a_folder_that_is_none_of_ours_is_refused(fitted, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"photos: found none of fit\.json"):
        write_report([fitted, tmp_path / "photos"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_of_another_plan_is_refused(fitted, tmp_path):
    other = replace(RUN, crossings=(replace(RUN.crossings[0], codec="raw"),))
    write_json(tmp_path / "other" / "run.json", other)
    with pytest.raises(InputError, match="is a run of another plan"):
        write_report([fitted, tmp_path / "other"], tmp_path / "report.html")


def test_two_different_plans_are_refused(fitted, tmp_path):
    other = replace(PLAN, objective="energy")
    write_json(tmp_path / "other" / "plan.json", other)
    with pytest.raises(InputError, match="2 different plans"):
        write_report([fitted, tmp_path / "other"], tmp_path / "report.html")


def test_a_damaged_bundle_is_refused(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(BundleError):
        write_report([tmp_path / "bundle"], tmp_path / "report.html")


def test_a_record_of_another_version_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(to_json(RUN).replace(RUN.SCHEMA, "isthmus.run/99"))
    with pytest.raises(InputError, match=r"found schema 'isthmus\.run/99'"):
        write_report([tmp_path / "run"], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("record", "changed", "said"),
    [
        (RUN, {"stages": []}, "found 0 stages around 1 crossings, expected one more"),
        (RUN, {"latency_s": {"p50": 0, "p95": 1, "p99": 1}}, "found a latency of 0 s"),
        (
            RUN,
            {"stages": [{"device": "a", "compute_s": 1, "pid": 1, "times_s": {}, "busy_s": {}}]},
            r"stages\.0: found times ; expected wait, queue, decode, compute, encode",
        ),
        (
            FIT,
            {"results": [{"sender": "tuned", "accuracy": 1, "payload_bytes": [1, 2]}]},
            "a result with more or fewer payloads than crossings",
        ),
        (
            FIT,
            {"rivals": [{"name": "a", "payload_bytes": 0, "accuracy": 1, "what": "b"}]},
            r"rivals\.0: found a payload of 0 bytes",
        ),
    ],
)
def test_figures_that_do_not_fit_together_are_refused(record, changed, said, tmp_path):
    fields = json.loads(to_json(record)) | changed
    (tmp_path / ("run.json" if record is RUN else "fit.json")).write_text(json.dumps(fields))
    with pytest.raises(InputError, match=said):
        write_report([tmp_path], tmp_path / "report.html")
