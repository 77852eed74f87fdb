"""Compact blocks in place of 3x3 convolutions, or another network; both have to learn anew."""

from typing import Any

import torch
from torch import Tensor, nn

from isthmus.compress.technique import (
    Apply,
    Options,
    Samples,
    Technique,
    check_names,
    described,
    layers,
)
from isthmus.errors import InputError, one_line
from isthmus.models import load_model
from isthmus.models.blocks import BLOCKS
from isthmus.models.compressed import replaced
from isthmus.models.joint import first

NETWORK = "replace:network"
_FEWEST = 9  # channels read: an image's few are better read as they are


def _replace(kind: str) -> Apply:
    """Return the function of a technique: a block with as many channels and the same stride.

    Where the convolution had a bias a batch norm follows the block, which gives it one.
    """
    name = f"replace:{kind}"

    def apply(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
        del samples
        chosen = layers(model, (nn.Conv2d,), options, technique=name)
        alike = {path: layer for path, layer in chosen.items() if _plain(layer)}
        if not alike:
            raise InputError(
                f"technique {name}: found no 3x3 convolution of {_FEWEST} channels or more, one "
                "group, padding 1 and an even number of channels made; leave it out"
            )
        for path, layer in alike.items():
            conv: Any = layer
            block = BLOCKS[kind](conv.in_channels, conv.out_channels, conv.stride[0])
            if conv.bias is not None:
                block = nn.Sequential(block, nn.BatchNorm2d(conv.out_channels))
            model = replaced(model, path, block.train(conv.training), where=name)
        return model

    return apply


def _plain(conv: Any) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.stride in ((1, 1), (2, 2))
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.in_channels >= _FEWEST
        and conv.out_channels % 2 == 0
    )


def network(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Put another network in place of the model, or of the one module that ``only`` names.

    Tuned, it is the student of Hinton et al., and what it replaced its teacher.
    """
    check_names(model, options, technique=NETWORK)
    asked = f"technique {NETWORK}: {options['name']}"
    made = load_model(options["name"])
    with torch.no_grad():
        wanted = first(model(*samples.example))
        (path,) = options["only"] or ("",)
        model = replaced(model, path, made, where=NETWORK).eval()
        try:
            found = first(model(*samples.example))
        except Exception as error:  # a user's own network raises what it likes
            raise InputError(
                f"{asked}: cannot stand in place of {path or 'the model'} ({one_line(error)}); "
                "name another network"
            ) from error
    if found.shape != wanted.shape or found.dtype != wanted.dtype or found.isnan().any():
        raise InputError(
            f"{asked}: for two samples found {_said(found)}, expected the model's "
            f"{_said(wanted)}; name another network"
        )
    return model


def _said(output: Tensor) -> str:
    nan = ", NaN among them" if output.isnan().any() else ""
    return f"outputs {tuple(output.shape)} of {str(output.dtype)[6:]}{nan}"


def _check_network(options: Options) -> None:
    name, only, skip = options["name"], "+".join(options["only"]), "+".join(options["skip"])
    if not name or "+" in only or skip:
        raise InputError(
            f"technique {NETWORK}: found name={name}, only={only}, skip={skip}; expected name= "
            "with a model as MODEL is named, one module in only= or none, and no skip="
        )


def _technique(kind: str, does: str, paper: str, improves: tuple[str, ...]) -> Technique:
    return Technique(
        name=f"replace:{kind}",
        does=f"puts {does} in place of 3x3 convolutions",
        paper=paper,
        needs="training",
        improves=improves,
        stage="structure",
        apply=_replace(kind),
    )


_SMALLER = ("parameters", "macs", "weight bytes", "stored bytes")

REPLACEMENTS = (
    _technique(
        "fire", "a squeeze and 1x1 beside 3x3 convolutions",
        "Iandola et al., 2016, https://arxiv.org/abs/1602.07360", _SMALLER,
    ),
    _technique(
        "separable", "a depthwise and a 1x1 convolution",
        "Howard et al., 2017, https://arxiv.org/abs/1704.04861", _SMALLER,
    ),
    _technique(
        "inverted", "an expansion, a depthwise and a narrowing convolution",
        "Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381", _SMALLER,
    ),
    _technique(
        "shuffle", "grouped convolutions with a shuffle of channels between",
        "Zhang, Zhou, Lin, Sun, CVPR 2018, https://arxiv.org/abs/1707.01083", _SMALLER,
    ),
    _technique(
        "octave", "convolutions with half of the channels at half the resolution",
        "Chen et al., ICCV 2019, https://arxiv.org/abs/1904.05049", ("macs",),
    ),
    _technique(
        "ghost", "half the channels, and the others made from these one by one,",
        "Han et al., CVPR 2020, https://arxiv.org/abs/1911.11907", _SMALLER,
    ),
    _technique(
        "shift", "a shift of channels and a 1x1 convolution",
        "Wu et al., CVPR 2018, https://arxiv.org/abs/1711.08141", _SMALLER,
    ),
    _technique(
        "adder", "layers that add in place of multiplying",
        "Chen et al., CVPR 2020, https://arxiv.org/abs/1912.13200", ("macs", "energy"),
    ),
    Technique(
        name=NETWORK,
        does="puts another network, name=FILE.py:FUNCTION, in place of the model, which teaches "
        "it, or of the module only=",
        paper="Hinton, Vinyals, Dean, 2015, https://arxiv.org/abs/1503.02531",
        needs="training",
        improves=("macs",),
        stage="structure",
        apply=network,
        options={"name": described("a model as MODEL is named")},
        check=_check_network,
    ),
)  # fmt: skip
