"""What a user can get wrong: one line says where and what to do, nothing is half-written."""

import json
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from isthmus.cli import options
from isthmus.cli.options import resumable
from isthmus.data.inputs import read_inputs
from isthmus.errors import InputError

PLATFORM = """
schema: isthmus.platform/1
name: pair
devices:
  a: {memory: {weights: 1 MiB, activations: 1 MiB}, compute: {fp32: 1 MMAC/s}}
  b: {memory: {weights: 1 MiB, activations: 1 MiB}, compute: {fp32: 1 MMAC/s}}
links:
  - {between: [a, b], bandwidth: 1 Mbit/s, latency: 1 ms}
input: a
output: b
"""


def one_line(result, *words):
    assert result.code == 1, (result.out, result.err)
    lines = [line for line in result.err.splitlines() if line.startswith("isthmus: ")]
    assert len(lines) == 1, result.err
    assert lines[0] == result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0]


PLAN = "plan digits-resnet two-mcu-spi "


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (PLAN + "--download --data-dir here", ["--data-dir, --download", "without --data;"]),
        (PLAN + "--sweep link.bandwidth=1kbit/s..1Mbit/s --stream out", ["--stream", "--sweep"]),
        (PLAN + "--limit latency=50", ["'latency=50'", "s", "unit"]),
        (PLAN + "--codec bottleneck:ratio=8,ratio=4", ["found option 'ratio' twice"]),
        ("compress digits-resnet --with fold --loss hinton", ["--loss", "without --epochs"]),
        ("compress digits-resnet --with fold --bf16", ["--bf16", "without --epochs"]),
        ("probe 127.0.0.1 --weights w.safetensors", ["--weights", "without --model"]),
        ("probe --listen 127.0.0.1 --out p.yaml", ["--out", "without HOST"]),
        ("study transfer --workers 2", ["--workers", "without a study that trains"]),
    ],
)
def test_an_option_that_nothing_reads_is_refused(isthmus, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    one_line(isthmus(*command.split()), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: pair", "name: &x [*x]", ["alias *x", "plain values"]),
        (
            "latency: 1 ms",
            "duplex: one-way}\n  - {between: [b, a], bandwidth: 1 Mbit/s",
            ["between [b, a]", "expected one link", "remove one"],
        ),
        ("between: [a, b]", "duplex: one-way, between: [b, a]", ["no way from a to b", "turn"]),
        (
            "links:\n  - {between: [a, b], bandwidth: 1 Mbit/s, latency: 1 ms}\n",
            "",
            ["devices.b", "no way from a", "add one or remove the device"],
        ),
        (
            "links:",
            "  c: {compute: {fp32: 1 MMAC/s}}\n  d: {compute: {fp32: 1 MMAC/s}}\nlinks:\n"
            "  - {between: [c, d], bandwidth: 1 Mbit/s}",
            ["devices.c", "no way from a", "add one or remove the device"],
        ),
        ("fp32: 1 MMAC/s", "fp32: 0 MMAC/s", ["devices.a.compute.fp32", "more than 0 MAC/s"]),
        ("weights: 1 MiB", "weights: 0 MiB", ["devices.a.memory.weights", "at least 1 byte"]),
        ("weights: 1 MiB", "weights: -1 MiB", ["devices.a.memory.weights", "at least 1 byte"]),
        ("weights: 1 MiB", "weights: 1e400 MiB", ["a.memory.weights", "finite number of byte"]),
        ("weights: 1 MiB", "weights: 1 MiB, shared: 1 MiB", ["a.memory", "one figure or two"]),
        ("fp32: 1 MMAC/s", "fp32: 1e-300 MAC/s", ["devices.a.compute.fp32", "1e-30 to 1e+30"]),
        ("fp32: 1 MMAC/s}", "fp32: 1 MMAC/s}, price: 1e308 USD", ["a.price", "1e-30 to 1e+30"]),
        ("latency: 1 ms", "latency: 1e308 s", ["links.0.latency: found '1e308 s', expected 1e"]),
        ("latency: 1 ms", "energy: 1e307 J/bit", ["links.0.energy", "1e+30 J/byte"]),
        (
            "latency: 1 ms",
            "message: {overhead: 1e308 byte}",
            ["0.message.overhead", "1e+30"],
        ),
        (
            "bandwidth: 1 Mbit/s",
            f"pins: {'9' * 401}, clock: 1 MHz",
            ["links.0.pins: found '999", "expected less than or equal to 1048576"],
        ),
        (
            "fp32: 1 MMAC/s}",
            f"fp32: 1 MMAC/s}}, efficiency: {{1 kMAC: {'9' * 401}}}",
            ["devices.a.efficiency: 1 kMAC: found '999", "a number over 0, up to 1"],
        ),
        ("bandwidth: 1 Mbit/s", "bandwidth: -1 Mbit/s", ["bandwidth", "at least"]),
        ("bandwidth: 1 Mbit/s", "bandwidth: 1 MHz", ["bandwidth", "1 MHz", "byte/s"]),
        ("bandwidth: 1 Mbit/s", "bandwidth: 125000", ["bandwidth", "125000"]),
        ("bandwidth: 1 Mbit/s", "bandwidth: 0 Mbit/s", ["bandwidth", "0 Mbit/s"]),
        ("between: [a, b]", "between: [a, c]", ["between", "'c'", "a, b"]),
        ("between: [a, b]", "between: [a, a]", ["between", "'a' twice", "two devices"]),
        ("input: a", "input: x", ["input", "'x'"]),
        ("  - {between", "  - {between: [b, a], bandwidth: 1 Mbit/s}\n  - {between", ["a", "b"]),
        (
            "links:",
            "  c: {memory: 1 MiB, compute: {fp32: 1 MMAC/s}}\nlinks:",
            ["c"],
        ),
        ("schema: isthmus.platform/1", "schema: isthmus.platform/7", ["isthmus.platform/7"]),
        ("name: pair", "nmae: pair", ["nmae"]),
        ("compute: {fp32: 1 MMAC/s}}\n  b", "compute: {fp33: 1 MMAC/s}}\n  b", ["fp33"]),
        ("name: pair", "name: [", ["mine.yaml"]),
    ],
)
def test_platform_files(isthmus, mine, old, new, words):
    assert old in PLATFORM
    (mine / "mine.yaml").write_text(PLATFORM.replace(old, new, 1))
    result = isthmus("plan", "digits-resnet", "mine.yaml", "--out", "plan.json")
    one_line(result, "mine.yaml", *words)
    assert not (mine / "plan.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{fp32: ", "{int8: ", ["fp32 arithmetic", "give its fp32 rate under compute"]),
        ("MMAC/s}", "MMAC/s}, codecs: [zip]", ["device a: codecs: no codec 'zip'; there are raw"]),
    ],
)
def test_platforms_whose_devices_can_do_nothing_of_use(isthmus, mine, old, new, words):
    (mine / "mine.yaml").write_text(PLATFORM.replace(old, new))
    one_line(isthmus("plan", "digits-resnet", "mine.yaml"), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bytes", "5"), ["--bytes", "fixed sizes", "+entropy"]),
        (("--drop", "1"), ["--drop", "fixed sizes", "+entropy"]),
        (("--loss", "simkd"), ["simkd", "expected hinton"]),
        (("--out", "/proc/here"), ["/proc/here", "name another --out"]),
    ],
)
def test_what_a_fit_cannot_do_is_said_before_anything_is_trained(isthmus, mine, options, words):
    assert isthmus(*PLAN.split(), "--out", "plan.json").code == 0
    result = isthmus("fit", "digits-resnet", "plan.json", "--data", "digits", *options)
    one_line(result, *words)
    assert ", loss " not in result.err
    assert {path.name for path in mine.iterdir()} == {
        "plan.json", "net.py", "w.safetensors", "data.npz",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["/proc/here", "w.safetensors/here"])
@pytest.mark.parametrize(
    "command",
    [
        "profile digits-resnet --measure --out {}.json",
        "plan digits-resnet two-mcu-spi --out {}.html",
        "compress digits-resnet --with fold --input 1x1x8x8 --data digits --epochs 1 --out {}",
        "probe 127.0.0.1 --out {}.yaml",
        "run absent --data digits --out {}",
        "study transfer --out {}/deeper",
        "study digits --out {}",
    ],
)
def test_where_nothing_can_be_written_is_said_before_anything_is_done(
    isthmus, mine, command, place
):
    before = sorted(mine.iterdir())
    one_line(isthmus(*command.format(place).split()), place, "cannot be made (", "another --out")
    assert sorted(mine.iterdir()) == before


def test_a_study_is_kept_in_no_file(isthmus, mine):
    one_line(isthmus("study", "digits", "--out", "net.py"), "net.py/study.db: cannot be made (Not")
    (mine / "dangling").symlink_to("nowhere")
    one_line(isthmus("study", "digits", "--out", "dangling"), "dangling: cannot be made", "--out")


def test_a_model_that_has_nothing_to_train_and_no_weights_is_refused(isthmus, planned):
    before = sorted(planned.iterdir())
    (planned / "net.py").write_text(
        (planned / "net.py").read_text().replace("Odd()\n", "Odd().requires_grad_(False)\n")
    )
    base = ("fit", "net.py:make", "plan.json", "--data", "npz:data.npz", "--epochs", "1")
    one_line(isthmus(*base), "no parameters that learn", "--weights", "requires_grad_(True)")
    compress = ("compress", "net.py:make", "--with", "fold", "--input", "1x2x9x7")
    result = isthmus(*compress, "--data", "npz:data.npz", "--epochs", "1")
    one_line(result, "no parameters that learn", "--weights", "requires_grad_(True)")
    assert sorted(planned.iterdir()) == before
    assert isthmus(*base, "--weights", "w.safetensors").code == 0


def test_a_function_of_the_users_that_fails_is_one_line_with_its_place(isthmus, mine):
    (mine / "bad.py").write_text("def make():\n    return open('my.csv')\n")
    for arguments in (
        ("profile", "bad.py:make", "--input", "1x4"),
        ("compress", "digits-resnet", "--with", "fold", "--data", "bad.py:make", "--epochs", "1"),
    ):
        one_line(isthmus(*arguments), "bad.py: make failed when run (line 2, FileNotFound")


def test_several_arrays_cannot_be_asked_for(mine):
    with pytest.raises(InputError, match=r"data\.npz: is no array .* several; save the one"):
        list(read_inputs([mine / "data.npz"], (2, 9, 7), "float32"))


def test_an_array_of_no_samples_is_refused(mine):
    np.save(mine / "none.npy", np.zeros((0, 2, 9, 7), np.float32))
    with pytest.raises(
        InputError, match=r"none\.npy: found \[0, 2, 9, 7\], .* or one sample or more"
    ):
        list(read_inputs([mine / "none.npy"], (2, 9, 7), "float32"))


def test_samples_that_are_single_numbers_are_read(mine):
    np.save(mine / "numbers.npy", np.arange(3.0))
    assert [float(x) for _, x in read_inputs([mine / "numbers.npy"], (), "float64")] == [0, 1, 2]


def test_a_seed_that_torch_does_not_take_is_refused(isthmus):
    with_ = ("--with", "fold", "--input", "1x1x8x8", "--out", "made")
    result = isthmus("compress", "digits-resnet", *with_, "--seed", "-5")
    one_line(result, "seed: found -5, expected 0 to 4,294,967,295")


def test_a_fit_of_before_is_refused(isthmus, mine):
    (mine / "old").mkdir()
    (mine / "old" / "fit.json").write_text('{"schema": "isthmus.fit/1"}')
    one_line(isthmus("export", "old", "--out", "b"), "fit/1", "expected 'isthmus.fit/2'", "anew")


def test_the_json_of_techniques_has_no_number_that_json_lacks(isthmus):
    def refuse(word):
        raise AssertionError(word)

    json.loads(isthmus("techniques", "--json").out, parse_constant=refuse)


def test_what_a_model_prints_is_not_in_the_json(isthmus, mine):
    source = (
        (mine / "net.py").read_text().replace("x = self.stem(x)", "print(2); x = self.stem(x)")
    )
    (mine / "net.py").write_text("print(1)\n" + source)
    for command in ("profile net.py:make", "plan net.py:make two-mcu-spi"):
        result = isthmus(*command.split(), "--input", "1x2x9x7", "--json")
        assert json.loads(result.out)["schema"]
        assert {"1", "2"} <= {*result.err.splitlines()}
    assert isthmus("profile", "net.py:make", "--input", "1x2x9x7").out.startswith("1\n2\n")


def test_the_json_of_what_no_device_can_run_has_no_number_that_json_lacks(isthmus, mine):
    def refuse(word):
        raise AssertionError(word)

    (mine / "mine.yaml").write_text(PLATFORM.replace("MMAC/s}", "MMAC/s}, unsupported: [conv2d]"))
    for sweep in ((), ("--sweep", "link.bandwidth=1kbit/s..1Mbit/s")):
        found = isthmus("plan", "digits-resnet", "mine.yaml", "--json", *sweep).out
        fields = json.loads(found, parse_constant=refuse)
        assert (fields["cells"][0]["cost"] if sweep else fields["predicted"]["latency_s"]) is None


@pytest.mark.parametrize("figure", ["1e-30", "1e30"])
def test_figures_as_extreme_as_they_may_be_make_a_plan(isthmus, mine, figure):
    others = f"""efficiency: {{{figure} MAC: 1.0e-30}}, start: {figure} s, price: {figure} USD,
        energy: {{fp32: {figure} J/MAC, static: {figure} W}}}}"""
    text = PLATFORM.replace("1 MMAC/s}}", f"{figure} MAC/s}}, {others}")
    text = text.replace("latency: 1 ms", f"latency: {figure} s, energy: {figure} J/byte")
    (mine / "mine.yaml").write_text(text)
    for objective in ("latency", "energy", "price", "throughput"):
        found = isthmus("plan", "digits-resnet", "mine.yaml", "--objective", objective, "--json")
        assert (found.code, found.err) == (0, "")
        assert json.loads(found.out)["predicted"]["latency_s"] is not None


def test_the_good_platform_file_is_good(isthmus, mine):
    (mine / "mine.yaml").write_text(PLATFORM)
    assert isthmus("plan", "digits-resnet", "mine.yaml").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "net.py:branching", "two-mcu-spi", "--input", "1x4"), ["traced", "torch.where"]),
        (("plan", "net.py:looping", "two-mcu-spi", "--input", "1x4"), ["while", "cut this part"]),
        (
            ("plan", "net.py:selecting", "two-mcu-spi", "--input", "1x4"),
            ["index", "use torch.where"],
        ),
        (("plan", "digits-resnet", "two-mcu-spi", "--limit", "latency=-1s"), ["more than 0"]),
        (("plan", "digits-resnet", "two-mcu-spi", "--limit", "bytes=0byte"), ["more than 0"]),
        (("plan", "digits-resnet", "two-mcu-spi", "--limit", "drop=-1"), ["0 or more"]),
        (("plan", "digits-resnet", "two-mcu-spi", "--limit", "latency=1us"), ["; allow 8"]),
        (
            ("plan", "digits-resnet", "two-mcu-spi", "--cut", "layer2", "--limit", "bytes=1byte"),
            ["payload needs 64 B, has 1 B; allow 64 bytes"],
        ),
        (
            ("plan", "digits-resnet", "two-mcu-spi", "--cut", "layer2", "--method", "cpsat"),
            ["takes no cuts; use method chain"],
        ),
        (("plan", "digits-resnet", "two-mcu-spi", "--codec", "float:format=fp7"), ["fp8-e4m3"]),
        (("plan", "net.py:absent", "two-mcu-spi", "--input", "1x4"), ["no function 'absent'"]),
        (("plan", "resnet19", "two-mcu-spi"), ["resnet19", "resnet18"]),
        (("plan", "net.py:make", "two-mcu-spi"), ["--input"]),
        (("plan", "net.py:make", "two-mcu-spi", "--input", "3y4"), ["--input", "1x3x32x32"]),
        (("plan", "net.py:make", "two-mcu-spi", "--input", "1x5x9x7"), ["batch of 2"]),
        (
            ("profile", "net.py:make", "--input", "1x2x999999999x7"),
            ["--input", "13,999,999,986 numbers", "2**30"],
        ),
        (("ask", "127.0.0.1", "data.npz", "--deadline", "0s"), ["deadline: found 0 s"]),
        (("plan", "digits-resnet", "tow-mcu-spi"), ["tow-mcu-spi", "two-mcu-spi"]),
        (("plan", "digits-resnet", "two-mcu-spi", "--codec", "zip"), ["zip", "bottleneck"]),
        (("plan", "digits-resnet", "two-mcu-spi", "--codec", "uniform:bits=9"), ["bits"]),
        (
            ("plan", "digits-resnet", "two-mcu-spi", "--codec", "raw+entropy"),
            ["raw has no entropy stage; leave '+entropy' out"],
        ),
        (("plan", "digits-resnet", "two-mcu-spi", "--cut", "layer9"), ["layer9"]),
        (
            ("plan", "digits-resnet", "two-mcu-spi", "--cut", "stem", "--cut", "layer1"),
            ["--cut: found stem and layer1, expected one"],
        ),
        (("plan", "digits-resnet", "two-mcu-spi", "--objective", "speed"), ["speed", "latency"]),
        (("profile", "digits-resnet", "--out", "x.pdf"), ["x.pdf", ".html"]),
        (("fit", "net.py:make", "absent.json", "--data", "digits"), ["absent.json"]),
        (("export", "absent"), ["absent", "expected a file of isthmus.fit/"]),
        (("run", "absent", "--data", "digits"), ["absent"]),
        (("report", "absent"), ["absent"]),
    ],
)
def test_arguments(isthmus, mine, arguments, words):
    before = sorted(mine.iterdir())
    one_line(isthmus(*arguments), *words)
    assert sorted(mine.iterdir()) == before


@pytest.mark.parametrize("goes_on", [True, False])
def test_an_interrupted_command_says_whether_it_goes_on(capsys, goes_on):
    with pytest.raises(KeyboardInterrupt), resumable(goes_on):
        raise KeyboardInterrupt
    assert ("the same command goes on" in capsys.readouterr().err) == goes_on


def test_limits_that_cannot_be_kept_together_are_a_line_each_with_a_remedy(isthmus, mine):
    limits = ("--limit", "latency=1us", "--limit", "energy=1nJ")
    result = isthmus("plan", "digits-resnet", "two-mcu-spi", *limits)
    assert result.code == 1
    head, *lines = result.err.splitlines()
    assert head == "isthmus: no plan fits:"
    assert [line.split()[1] for line in lines] == ["latency", "energy"]
    assert all("; allow " in line for line in lines)


def test_a_network_that_fits_nowhere_says_what_is_missing(isthmus, mine):
    result = isthmus("plan", "resnet18", "two-mcu-spi", "--out", "plan.json")
    assert result.code == 1
    assert "needs" in result.err
    assert "has" in result.err
    assert not (mine / "plan.json").exists()
    programs = isthmus("plan", "resnet18", "two-mcu-spi", "--json")
    assert programs.code == 1
    nearest = json.loads(programs.out)
    assert nearest["schema"] == "isthmus.plan/1"
    assert all(broken["need"] > broken["limit"] for broken in nearest["violations"])
    assert nearest["violations"]


def test_weights_that_do_not_match_or_are_a_pickle(isthmus, mine):
    torch.save({"stem.0.weight": torch.zeros(1)}, mine / "other.pt")
    base = ("plan", "net.py:make", "two-mcu-spi", "--input", "1x2x9x7", "--weights")
    one_line(isthmus(*base, "other.pt"), "other.pt", "missing", "stem.0.bias")
    (mine / "evil.pt").write_bytes(pickle.dumps(print))
    one_line(isthmus(*base, "evil.pt"), "evil.pt", "safetensors")


@pytest.fixture
def planned(isthmus, mine):
    result = isthmus(
        "plan", "net.py:make", "two-mcu-spi", "--input", "1x2x9x7", "--cut", "down",
        "--out", "plan.json",
    )  # fmt: skip
    assert result.code == 0, result.err
    return mine


def test_data_that_does_not_fit(isthmus, planned):
    base = ("fit", "net.py:make", "plan.json", "--epochs", "1", "--data")
    np.savez(planned / "small.npz", x_train=np.zeros((4, 2), "f4"), y_train=np.zeros(4, int),
             x_test=np.zeros((4, 2), "f4"), y_test=np.zeros(4, int))  # fmt: skip
    one_line(isthmus(*base, "npz:small.npz"), "small.npz", "the plan was made for")
    np.savez(planned / "evil.npz", x_train=np.array([print], dtype=object))
    one_line(isthmus(*base, "npz:evil.npz"), "evil.npz", "pickled objects")
    one_line(isthmus(*base, "npz:absent.npz"), "absent.npz")
    assert not (planned / "fitted").exists()


def test_a_plan_that_is_damaged_or_of_another_version(isthmus, planned):
    base = ("fit", "net.py:make", "plan.json", "--epochs", "1", "--data", "npz:data.npz")
    content = json.loads((planned / "plan.json").read_text())
    (planned / "plan.json").write_text(json.dumps({**content, "schema": "isthmus.plan/99"}))
    one_line(isthmus(*base), "plan.json", "isthmus.plan/99", "isthmus.plan/1")
    (planned / "plan.json").write_text(json.dumps({**content, "stages": "none"}))
    one_line(isthmus(*base), "plan.json", "stages")
    evil = {**content["platform"], "name": "../../evil"}
    (planned / "plan.json").write_text(json.dumps({**content, "platform": evil}))
    one_line(isthmus(*base), "plan.json: platform: name: found '../../evil', expected at most 64")
    (planned / "plan.json").write_text("{")
    one_line(isthmus(*base), "plan.json", "not JSON")


def test_an_output_file_that_is_not_ours(isthmus, mine):
    before = (mine / "net.py").read_text()
    one_line(isthmus("plan", "digits-resnet", "two-mcu-spi", "--out", "net.py"), "net.py")
    assert (mine / "net.py").read_text() == before
    assert isthmus("plan", "digits-resnet", "two-mcu-spi", "--out", "plan.json").code == 0
    assert isthmus("plan", "digits-resnet", "two-mcu-spi", "--out", "plan.json").code == 0


def test_an_output_folder_that_is_not_ours(isthmus, planned):
    (planned / "precious").mkdir()
    (planned / "precious" / "thesis.txt").write_text("mine")
    base = ("fit", "net.py:make", "plan.json", "--epochs", "1", "--data", "npz:data.npz")
    one_line(isthmus(*base, "--out", "precious"), "precious", "not ours")
    one_line(isthmus("demo", "--out", "precious"), "precious", "not ours")
    assert (planned / "precious" / "thesis.txt").read_text() == "mine"


@pytest.fixture
def bundle(isthmus, planned):
    isthmus("fit", "net.py:make", "plan.json", "--epochs", "1", "--data", "npz:data.npz")
    assert isthmus("export", "fitted", "--out", "bundle").code == 0
    return planned / "bundle"


def nobody_reads(*_, **__):
    raise BrokenPipeError


def test_a_result_is_written_though_nobody_reads_what_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "print_text", nobody_reads)
    with pytest.raises(BrokenPipeError):
        options.print_result("{}", json_=True, out=tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == "{}\n"


@pytest.mark.long
def test_bundles(isthmus, bundle, monkeypatch):
    base = ("run", "bundle", "--data", "npz:data.npz", "--requests", "2")
    index = bundle / "bundle.json"
    content = index.read_text()
    index.write_text(content.replace("isthmus.bundle/1", "isthmus.bundle/9"))
    one_line(isthmus(*base), "isthmus.bundle/9")
    index.write_text(content)

    program = bundle / "mcu-a" / "program.onnx"
    whole = program.read_bytes()
    program.write_bytes(whole[:-1])
    one_line(isthmus(*base), "program.onnx")
    program.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    one_line(isthmus(*base), "program.onnx")
    program.unlink()
    one_line(isthmus(*base), "program.onnx")
    program.write_bytes(whole)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        one_line(isthmus(*base, "--port", port), port)
    one_line(isthmus(*base[:2], "--data", "digits"), "--data digits: input", "1, 8, 8", "2, 9, 7")
    assert isthmus(*base).code == 0
    monkeypatch.setattr("isthmus.cli.chain.print_result", nobody_reads)
    assert isthmus(*base, "--out", "run").code == 1
    assert (bundle.parent / "run" / "run.json").is_file()


def test_an_unknown_option_is_wrong_usage():
    for arguments in (
        ["plan", "--colour"],
        ["paint"],
        ["plan"],
        ["run", "x", "--requests", "many"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "isthmus", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "Usage" in done.stderr
