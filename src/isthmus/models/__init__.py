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
from isthmus.models.resnet import resnet
from isthmus.models.small import digits_resnet

__all__ = [
    "MODELS",
    "KnownModel",
    "ModelReference",
    "digits_resnet",
    "example_inputs",
    "load_model",
    "load_weights",
    "read_weights",
    "reference",
    "resnet",
]
