"""The codec: openpi's layout to the bit, and nothing from a stranger beyond its limits."""

import resource
import struct

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

from gpc.errors import InputError
from gpc.serve.codec import DIMENSIONS, DTYPES, FRAME, ITEMS, LONGEST, pack, unpack

RNG = np.random.default_rng(0)
MESSAGES = [
    {"state": RNG.normal(size=(2, 5)), "image": RNG.integers(0, 256, (96, 96, 3), np.uint8), "prompt": "Wirf den Ball — ü"},
    {"empty": np.zeros((0, 3), np.float32), "one": np.array(3.5), "flags": np.array([True, False])},
    {"scalars": [np.float32(0.1), np.int64(-(2**62)), np.uint64(2**64 - 1), np.bool_(True), 7, 2.5, None, False, "", b""]},
    {"turned": RNG.normal(size=(3, 4)).T, "strided": np.arange(20)[::3], "big": np.arange(3, dtype=">f4")},
    {"nested": {"maps": [{"a": np.float16(1)}, []]}, "nan": np.array([np.nan, np.inf, -0.0])},
]  # fmt: skip


def same(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        native = a.dtype.newbyteorder("=")
        return (
            type(a) is type(b)
            and b.dtype == native
            and a.shape == b.shape
            and a.astype(native).tobytes() == b.tobytes()
        )
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: next(iter(message)))
def test_the_layout_is_openpis_to_the_bit_and_the_way_back(message):
    frame = pack(message)
    assert frame == msgpack_numpy.packb(message)
    assert same(message, unpack(frame))
    theirs = msgpack_numpy.unpackb(frame)
    assert msgpack_numpy.packb(theirs) == frame


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_every_dtype_travels(code):
    array = np.arange(-4, 4).astype(code).reshape(2, 4)
    assert same({"x": array}, unpack(msgpack_numpy.packb({"x": array})))


@pytest.mark.parametrize(
    "value",
    [np.array([{}]), np.array(["a"]), np.zeros(2, complex), np.zeros(2, "i4,f4"), np.datetime64(0, "s"), object(), {1}, 2**64],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)  # fmt: skip
def test_what_cannot_travel_is_refused_before_it_is_sent(value):
    with pytest.raises(InputError, match="message holds"):
        pack({"x": value})


def test_a_message_that_no_frame_holds_is_refused():
    with pytest.raises(InputError, match="smaller images"):
        pack(np.zeros(FRAME, np.uint8))
    with pytest.raises(InputError, match="cannot be sent"):
        pack("\ud800")


def array(dtype="<f4", shape=(2,), data=bytes(8), kind=b"__ndarray__"):
    return msgpack.packb({kind: True, b"data": data, b"dtype": dtype, b"shape": shape})


BAD = {
    "object": (array("|O"), "dtype"),
    "void": (array("|V4"), "dtype"),
    "record": (array("i4,i4"), "dtype"),
    "not text": (array([["a", "<f4"]]), "dtype"),
    "complex": (array("<c8"), "dtype"),
    "short": (array(shape=(3,)), "8 bytes of data"),
    "long": (array(shape=(1,)), "8 bytes of data"),
    "negative": (array(shape=(-2, -1)), "from 0 to"),
    "overflowing": (array(shape=(2**32, 2**32, 2**1)), "from 0 to"),
    "product wraps": (array(shape=(2**22,) * 3), "8 bytes of data"),
    "fraction": (array(shape=(2.0,)), "from 0 to"),
    "truth": (array(shape=(True, 2)), "from 0 to"),
    "many dimensions": (array(shape=(1,) * (DIMENSIONS + 1)), "dimensions"),
    "no shape": (array(shape=None), "dimensions"),
    "text as data": (array(data="x" * 8), "in bytes"),
    "text as scalar": (array(kind=b"__npgeneric__", data="x"), "without a number"),
    "too large a scalar": (array("|i1", kind=b"__npgeneric__", data=1000), "not msgpack"),
    "extension": (msgpack.packb(msgpack.ExtType(5, b"x")), "extension 5"),
    "truncated": (pack(MESSAGES[0])[:-1], "not msgpack"),
    "more behind it": (pack(1) * 2, "not msgpack"),
    "empty": (b"", "not msgpack"),
    "no utf-8": (b"\xa2\xff\xff", "not msgpack"),
    "number as a key": (msgpack.packb({1: 2}), "not msgpack"),
    "deep": (b"\x91" * 2000 + b"\xc0", "not msgpack"),
    "many in one": (msgpack.packb([None] * (LONGEST + 1)), "not msgpack"),
    "many in all": (msgpack.packb([[None] * LONGEST] * (ITEMS // LONGEST)), "more than"),
    "nested empty maps": (b"\xdc\x0f\xff" + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 4000, "more than"),
    "announced only": (b"\xdd\xff\xff\xff\xff", "not msgpack"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_frame_is_one_line(name):
    frame, words = BAD[name]
    with pytest.raises(InputError, match=words) as error:
        unpack(frame)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_memory_is_not_what_a_frame_announces():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frames = [
        b"\xdd" + struct.pack(">I", FRAME - 5) + b"\x80" * (FRAME - 5),  # 16 million empty maps: 1 GiB of them
        (b"\xdc" + struct.pack(">H", LONGEST)) * 500,  # lists within lists, each announced in full
        b"\xdf\xff\xff\xff\xff" + bytes(100),
        b"\xc6\xff\xff\xff\xff" + bytes(100),
    ]
    for frame in frames:
        with pytest.raises(InputError):
            unpack(frame)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * FRAME // 1024
