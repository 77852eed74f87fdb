"""What a codec is in bytes: costs on paper, bit packing, frames. numpy only."""

from isthmus.wire.frames import HEADER_BYTES, Frame, decode_frame, encode_frame
from isthmus.wire.nested import Width, parse_width, widths
from isthmus.wire.pack import pack, unpack
from isthmus.wire.spec import (
    CodecSpec,
    WireTensor,
    codec_text,
    default_codec_text,
    parse_codec,
)

__all__ = [
    "HEADER_BYTES",
    "CodecSpec",
    "Frame",
    "Width",
    "WireTensor",
    "codec_text",
    "decode_frame",
    "default_codec_text",
    "encode_frame",
    "pack",
    "parse_codec",
    "parse_width",
    "unpack",
    "widths",
]
