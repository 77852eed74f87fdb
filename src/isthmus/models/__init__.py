"""Networks with a name, and how to load one of your own."""

from isthmus.models.compressed import Compressed, Figures, ModelReference, read_compressed
from isthmus.models.load import (
    MODELS,
    KnownModel,
    carries_weights,
    example_inputs,
    load_model,
    load_weights,
    read_weights,
    reference,
)
from isthmus.models.resnet import RATIOS, Wire, resnet, wires
from isthmus.models.small import digits_resnet

__all__ = [
    "MODELS",
    "RATIOS",
    "Compressed",
    "Figures",
    "KnownModel",
    "ModelReference",
    "Wire",
    "carries_weights",
    "digits_resnet",
    "example_inputs",
    "load_model",
    "load_weights",
    "read_compressed",
    "read_weights",
    "reference",
    "resnet",
    "wires",
]
