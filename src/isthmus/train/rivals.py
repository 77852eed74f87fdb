"""What the learned crossing has to beat: cheap ways that need no training, measured."""

import copy
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from isthmus.data import Dataset, few_of
from isthmus.links import make_codec
from isthmus.plan import Plan
from isthmus.split import SplitModel, split
from isthmus.train.fit import accuracy, calibrate, walk
from isthmus.wire import pack, parse_codec


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One way of getting the answer across.

    Attributes:
        name: input raw, input png ..., int8, int8 + zlib, label, a smaller network.
        payload_bytes: Mean payload of the widest link, one sample.
        accuracy: On the test set, 0..1.
        what: In words: what crosses, and who computes.
    """

    name: str
    payload_bytes: float
    accuracy: float
    what: str

    def __post_init__(self) -> None:
        if not self.payload_bytes > 0:
            raise ValueError(f"found a payload of {self.payload_bytes:g} bytes, expected more")


IMAGE_FORMATS: tuple[tuple[str, str, dict[str, int | bool]], ...] = (
    ("png", "PNG", {"optimize": True}),
    ("jpeg", "JPEG", {"quality": 90}),
    ("webp", "WEBP", {"quality": 90}),
)


def rivals(model: nn.Module, plan: Plan, data: Dataset) -> tuple[Rival, ...]:
    """Measure the cheap ways on the test set.

    Args:
        model: The whole model, before any crossing was fitted.
        plan: Names the crossing that is to be beaten.
        data: Its training half sets quantization ranges, its test half is measured.

    Returns:
        The input in the formats that suit it, int8 on the planned crossing with and without zlib,
        and the label.
    """
    whole = accuracy(model, data.x_test, data.y_test)
    found = [*_inputs(model, data, whole), *_post_hoc(model, plan, data)]
    label_bytes = 1 if data.num_classes <= 256 else 2
    words = "the near device computes everything, if it could hold it"
    return (
        *found,
        Rival(name="label", payload_bytes=label_bytes, accuracy=whole, what=words),
    )


def is_image(x: np.ndarray) -> bool:
    """Return whether an array (N, ...) holds grey or colour images valued in [0, 1]."""
    return bool(
        x.ndim == 4 and x.shape[1] in (1, 3) and x.dtype == np.float32
        and x.min() >= 0 and x.max() <= 1
    )  # fmt: skip


def png_bytes(data: Dataset) -> float | None:
    """Return the mean size of the training inputs as PNG, or None where they are no images."""
    if len(data.x_train) != 1 or not is_image(data.x_train[0]):
        return None
    (x,) = few_of(data.x_train, 500)
    spec = parse_codec("png", shapes=(x.shape[1:],), dtypes=("float32",))
    return float(np.mean([len(pack(spec, [pixels])) for pixels in _pixels(x)]))


def _inputs(model: nn.Module, data: Dataset, whole: float) -> list[Rival]:
    words = "the input; the far device computes everything, if it could hold it"
    if len(data.x_test) != 1 or not is_image(data.x_test[0]):
        num_bytes = sum(x[0].nbytes for x in data.x_test)
        return [Rival(name="input raw", payload_bytes=num_bytes, accuracy=whole, what=words)]
    pixels = _pixels(data.x_test[0])
    found = [Rival(name="input raw", payload_bytes=pixels[0].size, accuracy=whole, what=words)]
    for name, kind, options in IMAGE_FORMATS:
        coded = [_encode(image, kind, options) for image in pixels]
        decoded = np.stack([_decode(code, pixels.shape[1:]) for code in coded])
        found.append(
            Rival(
                name=f"input {name}",
                payload_bytes=float(np.mean([len(code) for code in coded])),
                accuracy=accuracy(model, (decoded,), data.y_test),
                what=words,
            )
        )
    return found


def _post_hoc(model: nn.Module, plan: Plan, data: Dataset) -> list[Rival]:
    """The planned inner crossing in 8 bits, ranges from the training set, nothing trained."""
    inner = [c for c in plan.crossings if 0 < c.cut < sum(len(s.nodes) for s in plan.stages)]
    if not inner or any(not dtype.startswith("float") for c in inner for dtype in c.dtypes):
        return []
    codecs: list[nn.Module] = []
    for crossing in plan.crossings:
        text = "uniform:bits=8" if crossing in inner else crossing.codec
        codecs.append(
            make_codec(parse_codec(text, shapes=crossing.shapes, dtypes=crossing.dtypes))
        )
    quantized = split(copy.deepcopy(model), plan, codecs, eval_form=True)
    calibrate(quantized, tuple(map(torch.from_numpy, few_of(data.x_train, 512))))
    correct = accuracy(quantized, data.x_test, data.y_test)
    payloads = _widest(quantized, [torch.from_numpy(x) for x in data.x_test])
    sizes = {
        "int8": [len(payload) for payload in payloads],
        "int8 + zlib": [len(zlib.compress(payload, 9)) for payload in payloads],
    }
    words = "the same crossing in 8 bits, not trained"
    return [
        Rival(name=name, payload_bytes=float(np.mean(size)), accuracy=correct, what=words)
        for name, size in sizes.items()
    ]


def _widest(quantized: SplitModel, tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """Return every sample's payload on the quantized crossing that carries most."""
    crossings = walk(quantized, tensors)
    found = [codec.compress(x) for _, codec, x in crossings if codec.spec.name == "uniform"]
    return max(found, key=lambda payloads: sum(map(len, payloads)))


def _pixels(x: np.ndarray) -> np.ndarray:
    """Return images (N, C, H, W) in [0, 1] as uint8."""
    return np.rint(x * 255).astype(np.uint8)


def _encode(pixels_CHW: np.ndarray, kind: str, options: dict[str, int | bool]) -> bytes:
    file = io.BytesIO()
    grey = len(pixels_CHW) == 1
    image = Image.fromarray(pixels_CHW[0] if grey else pixels_CHW.transpose(1, 2, 0))
    image.save(file, kind, **options)
    return file.getvalue()


def _decode(code: bytes, shape_CHW: tuple[int, ...]) -> np.ndarray:
    with Image.open(io.BytesIO(code)) as image:
        pixels = np.asarray(image.convert("L" if shape_CHW[0] == 1 else "RGB"), dtype=np.float32)
    return pixels.reshape(*shape_CHW[1:], -1).transpose(2, 0, 1) / np.float32(255)
