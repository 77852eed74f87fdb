from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.wire import codec_text, default_codec_text, parse_codec
from isthmus.wire.frames import MAX_PAYLOAD_BYTES

MAP = ((64, 7, 9), "float32")
IMAGE = ((3, 5, 5), "float32")
SCORES = ((10,), "float32")
TOKENS = ((9, 24), "float32")
MASK = ((9,), "bool")
NUMBERS = ((9,), "int64")


def bind(text, *tensors):
    return parse_codec(text, shapes=[t[0] for t in tensors], dtypes=[t[1] for t in tensors])


@pytest.mark.parametrize(
    ("text", "tensors", "payload_bytes"),
    [
        ("raw", [MAP], 4 * 64 * 63),
        ("raw:bits=16", [MAP], 2 * 64 * 63),
        ("raw", [((5,), "float16")], 10),
        ("raw", [NUMBERS, MASK], 72 + 2),
        ("uniform:bits=3", [((3, 5, 7), "float32")], 40),
        ("uniform:bits=5", [((3,), "float32"), ((3,), "float32")], 2 + 2),
        ("uniform:bits=5", [((3,), "float32"), MASK], 2 + 2),
        ("uniform:bits=3,per=vector", [((3, 5, 7), "float32")], 40 + 4),  # 7 scales of 4 bits
        ("uniform:bits=4,per=vector", [((5,), "float32"), MASK], 3 + 1 + 2),
        ("float:format=bf16", [((5,), "float32")], 10),
        ("float", [((5,), "float16")], 5),
        ("float:format=mxfp4-e2m1", [((3, 5, 7), "float32")], 53 + 4),
        ("float:format=mxfp6-e3m2", [((3, 5, 7), "float16"), NUMBERS], 79 + 4 + 72),
        ("float:format=mxint8", [((64,), "float32")], 64 + 2),
        ("bottleneck:ratio=8,bits=4", [MAP], 8 * 63 // 2),
        ("bottleneck:ratio=5,bits=7", [((11, 3, 3), "float32")], 16),
        ("bottleneck:ratio=8,bits=2", [TOKENS], 7),
        ("pixels", [IMAGE], 75),
        ("label", [((256,), "float32")], 1),
        ("label", [((257,), "float32")], 2),
        ("label", [((40_000,), "float32")], 4),
        ("bottleneck:ratio=8", [((8, 31), "float32")], 8 * 3),
    ],
)
def test_a_fixed_payload_is_predicted_to_the_byte(text, tensors, payload_bytes):
    spec = bind(text, *tensors)
    assert spec.fixed_rate
    assert spec.payload_bytes == payload_bytes


def test_defaults_are_a_ratio_of_8_and_8_bits():
    assert codec_text(bind("bottleneck", MAP)) == "bottleneck:ratio=8,bits=8"
    assert codec_text(bind("uniform", MAP)) == "uniform:bits=8"


@pytest.mark.parametrize(
    ("text", "tensors"),
    [
        ("raw", [MAP]),
        ("raw:bits=16", [MAP]),
        ("uniform:bits=5", [MAP, MASK]),
        ("uniform:bits=1,per=tensor,range=aciq-laplace,symmetric=1", [MAP]),
        ("uniform:bits=4,range=mse+entropy", [MAP]),
        ("float:format=fp8-e4m3", [MAP, MASK]),
        ("float:format=fp8-e5m2+entropy", [MAP]),
        ("float:format=mxfp4-e2m1", [MAP]),
        ("uniform:bits=4,per=vector,range=octav,symmetric=1+entropy", [MAP]),
        ("bottleneck:ratio=1,bits=4", [MAP]),
        ("bottleneck:ratio=4,stride=2,hidden=8,sender=separable,bits=4", [MAP]),
        ("bottleneck:ratio=4,sender_hidden=8,bits=4", [MAP]),
        ("pixels", [IMAGE]),
        ("png", [IMAGE]),
        ("label", [SCORES]),
    ],
)
def test_a_codec_reads_back_as_it_is_written(text, tensors):
    assert codec_text(bind(text, *tensors)) == text


def test_options_that_say_nothing_are_left_out_of_a_text():
    text = "uniform:bits=4,per=channel,range=minmax,symmetric=0"
    assert codec_text(bind(text, MAP)) == "uniform:bits=4"
    assert bind(text, MAP) == bind("uniform:bits=4", MAP)


def test_one_range_for_a_tensor_takes_8_bytes_of_both_devices():
    spec = bind("uniform:bits=4,per=tensor", MAP, TOKENS, MASK)
    assert spec.encoder_weight_bytes == spec.decoder_weight_bytes == 16


@pytest.mark.parametrize(
    ("text", "tensors", "message"),
    [
        (
            "zip",
            [MAP],
            "no codec 'zip'; there are raw, uniform, bottleneck, float, pixels, png, label",
        ),
        ("uniform:ratio=2", [MAP], "found option 'ratio=2'; uniform takes bits=NUMBER"),
        ("pixels:bits=4", [IMAGE], "found option 'bits=4'; pixels takes none"),
        ("uniform:bits=x", [MAP], "found option 'bits=x'"),
        ("uniform:bits=9", [MAP], "found bits=9, expected 1 to 8"),
        (
            "uniform:range=l2",
            [MAP],
            "found range='l2', expected minmax or average or .* or octav$",
        ),
        ("uniform:per=row", [MAP], "found per='row', expected channel or tensor or vector$"),
        ("uniform:symmetric=2", [MAP], "found symmetric=2, expected 0 or 1$"),
        (
            "uniform:mode=1",
            [MAP],
            r"takes bits=NUMBER, per=channel\|tensor\|vector, range=minmax\|.*=0\|1$",
        ),
        ("raw:range=mse", [MAP], r"found option 'range=mse'; raw takes bits=32\|16$"),
        ("float:format=fp4", [MAP], "format='fp4', expected fp8-e4m3 or .* or mxint8$"),
        ("float", [NUMBERS], "expected floats; use raw"),
        ("float:bits=8", [MAP], r"found option 'bits=8'; float takes format=fp8-e4m3\|"),
        ("float:format=bf16+entropy", [MAP], r"16 bits and \+entropy, expected at most 8 bits$"),
        ("bottleneck:bits=1", [MAP], "found bits=1, expected 2 to 8"),
        ("raw:bits=8", [MAP], "found bits=8, expected 32 or 16"),
        ("bottleneck:ratio=0", [MAP], "found ratio=0, expected 1 to"),
        ("bottleneck:ratio=65", [MAP], "leaves no channel of 64; use ratio=64 or less"),
        ("bottleneck", [((8, 2, 2, 2), "float32")], "use uniform"),
        ("bottleneck:sender=wide", [MAP], "found sender='wide', expected dense or separable$"),
        (
            "bottleneck:sender=separable",
            [MAP],
            "stride=1, whose 1x1 is as cheap; use sender=dense",
        ),
        (
            "bottleneck:stride=2,sender=separable",
            [TOKENS],
            r"found stride=2 and \(9, 24\), expected \(C, H, W\); use stride=1",
        ),
        ("uniform", [NUMBERS], "found int64 .*, expected floats; use raw"),
        ("pixels", [MAP], "expected one float32 image"),
        ("png", [IMAGE, IMAGE], "expected one float32 image"),
        ("label", [MAP], "expected one vector of class scores"),
        ("raw", [((4,), "complex64")], "complex64 tensor cannot cross"),
        ("raw", [], "0 shapes and 0 dtypes"),
    ],
)
def test_a_codec_that_cannot_be_says_why_and_what_to_use(text, tensors, message):
    with pytest.raises(InputError, match=message):
        bind(text, *tensors)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ([MAP], "bottleneck:ratio=8,bits=8"),
        ([((16, 4, 4), "float32")], "bottleneck:ratio=8,bits=8"),
        ([((6, 4, 4), "float32")], "bottleneck:ratio=3,bits=8"),
        ([MAP, ((10,), "float32"), MASK], "bottleneck:ratio=5,bits=8"),
        ([((3, 4, 4), "float32")], "uniform:bits=8"),
        ([MAP, ((64, 2, 2, 2), "float32")], "uniform:bits=8"),
        ([((), "float32")], "uniform:bits=8"),
        ([NUMBERS], "raw"),
    ],
)
def test_the_default_codec_is_narrow_and_fits(tensors, text):
    assert default_codec_text([t[0] for t in tensors], [t[1] for t in tensors]) == text
    bind(text, *tensors)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 40), max_size=4).map(tuple),
            st.sampled_from(["float32", "float16", "int64", "bool"]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_every_crossing_has_a_default_no_wider_than_raw(tensors):
    text = default_codec_text([t[0] for t in tensors], [t[1] for t in tensors])
    assert bind(text, *tensors).payload_bytes <= bind("raw", *tensors).payload_bytes


def test_a_bottleneck_is_charged_for_its_convolutions():
    spec = bind("bottleneck:ratio=8,bits=4", MAP)
    positions, wire = 7 * 9, 8 * 7 * 9
    assert spec.encoder_macs == positions * 64 * 8 + wire
    assert spec.decoder_macs == positions * 64 * 8 + wire
    assert spec.encoder_buffer_bytes == 4 * wire + wire + wire // 2


def test_a_png_costs_its_bound_until_it_is_measured():
    spec = bind("png", IMAGE)
    assert not spec.fixed_rate
    assert spec.payload_bytes == spec.max_payload_bytes > 75
    assert bind("png", ((3, 1000, 1000), "float32")).payload_bytes < MAX_PAYLOAD_BYTES


def test_what_is_entropy_coded_has_a_bound_a_mean_and_a_text():
    spec = parse_codec(
        "uniform:bits=4+entropy", shapes=[(8, 4, 4), (9,)], dtypes=["float32", "bool"]
    )
    plain = parse_codec("uniform:bits=4", shapes=spec.shapes, dtypes=spec.dtypes)
    assert codec_text(spec) == "uniform:bits=4+entropy"
    assert not spec.fixed_rate
    assert spec.coded == (True, False)
    assert spec.max_payload_bytes == spec.payload_bytes == plain.payload_bytes
    assert replace(spec, measured_bytes=40.5).payload_bytes == 40.5
    assert spec.encoder_macs > plain.encoder_macs
    assert spec.encoder_buffer_bytes > plain.encoder_buffer_bytes


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("uniform+zip", r"found '\+zip', expected '\+entropy'"),
        ("raw+entropy", r"raw has no entropy stage; leave .\+entropy. out"),
        ("label+entropy", "label has no entropy stage"),
    ],
)
def test_the_entropy_stage_goes_with_quantized_codecs_only(text, found):
    with pytest.raises(InputError, match=found):
        parse_codec(text, shapes=[(10,)], dtypes=["float32"])


@pytest.mark.parametrize("text", ["uniform:bits=4", "bottleneck:ratio=1", "float", "png"])
def test_a_tensor_without_values_is_refused(text):
    with pytest.raises(InputError, match=r"found float32 \(3, 0, 2\), expected values in every"):
        parse_codec(text, shapes=[(3, 0, 2)], dtypes=["float32"])
    assert parse_codec("raw", shapes=[(3, 0, 2)], dtypes=["float32"]).payload_bytes == 0


def test_the_entropy_stage_leaves_the_scales_of_vectors_and_blocks():
    for text in ("uniform:bits=4,per=vector+entropy", "float:format=mxfp4-e2m1+entropy"):
        assert bind(text, MAP, MASK, TOKENS).coded == (True, False, False, True, False)


def test_the_scales_of_vectors_and_blocks_are_charged():
    plain, vector = bind("uniform:bits=4", MAP), bind("uniform:bits=4,per=vector", MAP)
    num_values = 64 * 7 * 9
    assert vector.encoder_macs == 2 * (plain.encoder_macs + num_values / 16)
    # in each direction: a float, a byte and half of one for every 16 values
    assert vector.encoder_buffer_bytes == plain.encoder_buffer_bytes + 5.5 * num_values / 16
    fp8, block = bind("float", MAP), bind("float:format=mxfp8-e4m3", MAP)
    assert block.decoder_macs == fp8.decoder_macs * 33 / 32


def test_the_bits_of_a_float_are_those_of_its_format():
    assert [bind(f"float:format={f}", MAP).bits for f in ("mxfp4-e2m1", "bf16")] == [4, 16]
    with pytest.raises(InputError, match="found bits=8, expected 16"):
        replace(bind("float:format=bf16", MAP), bits=8)


@pytest.mark.parametrize("text", ["raw", "uniform:bits=8", "uniform:bits=4+entropy", "float"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_for_each_sample_has_its_cost(text, shape):
    spec = parse_codec(text, shapes=[shape], dtypes=["float32"])
    assert spec.encoder_buffer_bytes == spec.decoder_buffer_bytes > 0


def test_more_channels_than_tables_have_are_refused():
    parse_codec("uniform:bits=4", shapes=[(70_000,)], dtypes=["float32"])
    with pytest.raises(InputError, match=r"70000 channels .* at most 65535; leave \+entropy"):
        parse_codec("uniform:bits=4+entropy", shapes=[(70_000,)], dtypes=["float32"])
