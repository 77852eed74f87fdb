"""How tensors cross: the differentiable halves of each codec."""

from isthmus.links.codec import CODECS, Codec, make_codec

__all__ = ["CODECS", "Codec", "make_codec"]
