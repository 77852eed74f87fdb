"""What a codec is in bytes: costs on paper, bit packing, frames. numpy only."""

from isthmus.wire.frames import HEADER_BYTES, decode_header, encode_header
from isthmus.wire.nested import Width, parse_width, widths
from isthmus.wire.pack import pack, unpack
from isthmus.wire.spec import CodecSpec, WireTensor, codec_text, default_codec_text, parse_codec

__all__ = [
    "HEADER_BYTES",
    "CodecSpec",
    "Width",
    "WireTensor",
    "codec_text",
    "decode_header",
    "default_codec_text",
    "encode_header",
    "pack",
    "parse_codec",
    "parse_width",
    "unpack",
    "widths",
]
