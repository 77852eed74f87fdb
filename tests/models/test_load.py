import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from isthmus.errors import InputError
from isthmus.models import MODELS, example_inputs, load_model, read_weights, reference

NET = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))

def make():
    return nn.Linear(3, 2)

def tied():
    return Tied()

def number():
    return 5
"""


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_named_model_takes_its_usual_input(name):
    model = load_model(name)
    with torch.no_grad():
        assert model(*example_inputs([MODELS[name].input], model)).shape[0] == 1


def test_a_function_in_a_file_makes_the_model(net):
    model = load_model(f"{net}:make")
    assert isinstance(model, nn.Linear)
    assert not model.training


def test_a_reference_does_not_depend_on_the_folder_and_notices_a_change(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    ref = reference("net.py:make")
    assert ref.text == f"{net}:make"
    monkeypatch.chdir("/")
    load_model(ref)
    net.write_text(NET + "\n# changed\n")
    with pytest.raises(InputError, match="has changed since"):
        load_model(ref)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet19", "unknown; expected adder-resnet20, digits-resnet"),
        ("absent.py:make", "no file"),
        ("{net}:absent", "no function 'absent'"),
        ("{net}:number", "returned int, expected a torch.nn.Module"),
    ],
)
def test_a_model_that_is_not_there_says_what_is(net, text, message):
    with pytest.raises(InputError, match=message):
        load_model(text.format(net=net))


def test_a_network_of_timm_is_made_without_a_download(monkeypatch):
    def create_model(name, *, pretrained):
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        assert not pretrained
        return nn.Linear(3, 2)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    assert isinstance(load_model("timm:tiny"), nn.Linear)
    with pytest.raises(InputError, match=r"^model timm:huge: Unknown model \(huge\)$"):
        load_model("timm:huge")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="needs timm; pip install timm"):
        load_model("timm:tiny")


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "th"])
def test_weights_come_back_from_either_format(net, tmp_path, suffix):
    state = nn.Linear(3, 2).state_dict()
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    loaded = load_model(f"{net}:make", weights=path).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_weights_that_do_not_match_name_the_keys(net, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(2, 4), "other": torch.zeros(1)}, path)
    with pytest.raises(InputError) as caught:
        load_model(f"{net}:make", weights=path)
    assert "missing bias" in str(caught.value)
    assert "unexpected other" in str(caught.value)
    assert "weight is (2, 4), expected (2, 3)" in str(caught.value)


def test_tied_weights_may_be_stored_once(net, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a.weight": torch.eye(3) * 2}, path)
    model = load_model(f"{net}:tied", weights=path)
    assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 3), 4.0))


def test_a_pickle_in_place_of_weights_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Malicious:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    for name in ("w.pt", "w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Malicious()))
        with pytest.raises(InputError, match="holds no plain weights"):
            read_weights(tmp_path / name)
    assert not marker.exists()


def test_a_checkpoint_without_tensors_says_what_it_holds(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds list, expected tensors by name"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(tmp_path / "absent.pt")


class TwoInputs(nn.Module):
    def forward(self, image, ids):
        return image.flatten(1).sum(1) + ids.sum(1)


def test_inputs_are_written_as_sizes_with_a_name_and_a_dtype():
    for texts in (["1x3x8x8", "1x16:int64"], ["ids:1x16:int64", "image:1x3x8x8"]):
        image, tokens = example_inputs(texts, TwoInputs())
        assert image.shape == (1, 3, 8, 8)
        assert image.dtype == torch.float32
        assert tokens.shape == (1, 16)
        assert tokens.dtype == torch.int64


@pytest.mark.parametrize("text", ["", "3x", "1x0x3", "1x3:int128", "a b:1x3", "1x3x-1"])
def test_an_input_of_another_form_shows_the_form(text):
    with pytest.raises(InputError, match="like 1x3x32x32"):
        example_inputs([text], TwoInputs())


def test_an_input_that_forward_does_not_take_names_those_that_it_does():
    with pytest.raises(InputError, match="forward takes image, ids"):
        example_inputs(["picture:1x3"], TwoInputs())
    with pytest.raises(InputError, match="image is given twice"):
        example_inputs(["1x3", "image:1x3"], TwoInputs())


class Optional(nn.Module):
    def forward(self, x, mask=None, scale=None, *, names=None):
        return x


class Any(nn.Module):
    def forward(self, x, *others, **options):
        return x


@pytest.mark.parametrize(
    ("model", "texts", "message"),
    [
        (TwoInputs(), ["1x3", "1x4", "1x5"], "--input: found 3, but forward takes image, ids; "),
        (nn.Identity(), ["1x3", "1x4"], "--input: found 2, but forward takes input; give one"),
        (TwoInputs(), ["1x3"], "--input: no ids; forward takes image, ids; give one for each"),
        (TwoInputs(), ["ids:1x3"], "--input: no image; forward takes image, ids"),
        (TwoInputs(), [], "--input: no image, ids; forward takes image, ids"),
        (Optional(), ["1x3"] * 4, "--input: found 4, but forward takes x, mask, scale; give"),
        (Optional(), ["1x3", "scale:1"], "--input: no mask; forward takes x, mask, scale"),
        (Optional(), ["1x3", "names:1"], "forward takes x, mask, scale; use one of these names"),
        (Any(), [], r"--input: no x; forward takes x, \*others; give one for each"),
    ],
)
def test_as_many_inputs_as_forward_takes_are_asked_for_by_name(model, texts, message):
    with pytest.raises(InputError, match=message) as caught:
        example_inputs(texts, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "counts"), [(TwoInputs(), [2]), (Optional(), [1, 2, 3]), (Any(), [1, 2, 4])]
)
def test_inputs_with_defaults_may_be_left_out_and_star_arguments_take_any_number(model, counts):
    for count in counts:
        texts = [f"1x{k + 1}" for k in range(count)]
        found = example_inputs(texts, model)
        assert [x.shape[1] for x in found] == list(range(1, count + 1))


def test_two_files_of_a_user_each_import_what_lies_beside_them(tmp_path):
    for name, width in (("a", 3), ("b", 5)):
        (tmp_path / name / "parts").mkdir(parents=True)
        (tmp_path / name / "layers.py").write_text(f"WIDTH = {width}")
        (tmp_path / name / "parts" / "one.py").write_text(f"WIDTH = {width}")
        (tmp_path / name / "net.py").write_text(
            "from layers import WIDTH\nfrom parts import one\nfrom torch import nn\n\n\n"
            "def make():\n    return nn.Linear(WIDTH, one.WIDTH)\n"
        )
    shapes = [load_model(f"{tmp_path / name}/net.py:make").weight.shape for name in "aba"]
    assert shapes == [(3, 3), (5, 5), (3, 3)]
