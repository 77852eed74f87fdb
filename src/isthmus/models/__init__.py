"""Networks with a name, and how to load one of your own."""

from isthmus.models.load import (
    MODELS,
    KnownModel,
    ModelReference,
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
    "KnownModel",
    "ModelReference",
    "Wire",
    "digits_resnet",
    "example_inputs",
    "load_model",
    "load_weights",
    "read_weights",
    "reference",
    "resnet",
    "wires",
]
