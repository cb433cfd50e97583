"""Pickled proposals: arrays come out as they were written, and whatever else is in a pickle is
refused, in little time and memory. The pickles are read in a process of their own, which must not
crash."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hiera_video.data.boxes.files import read_boxes
from hiera_video.data.boxes.pickled import read_arrays
from hiera_video.errors import AnnotationError

BOXES = np.array([[0, 0, 0.5, 0.5, 0.9], [0.25, 0.5, 0.75, 1, 0.5]])

# Reads the files of a folder; what they need beyond what is loaded already is limited.
READ = """
import resource, sys
from pathlib import Path
import numpy, pyarrow, pyarrow.compute
from hiera_video.data.boxes.files import read_boxes
from hiera_video.errors import UserError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, used + 2**32))
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, end=": ", flush=True)
    try:
        print(len(read_boxes("proposals", path)), "boxes")
    except UserError as error:
        assert len(str(error).splitlines()) == 1, str(error)
        print(ascii(str(error).replace(str(path), "FILE"))[1:-1])
"""


def read_all(folder: Path, timeout_sec: float = 60) -> dict[str, str]:
    """What became of each file of a folder."""
    command = [sys.executable, "-c", READ, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_sec)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]} {done.stderr[-3000:]}"
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


# ---- what is read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", "i1", "u1", "<i4", ">i8", "<u8"])
@pytest.mark.parametrize(
    "shape", [lambda a: a, np.asfortranarray, lambda a: np.repeat(a, 2, 0)[::2], lambda a: a[:0]]
)
def test_arrays(protocol: int, dtype: str, shape: Any) -> None:
    array = shape((BOXES * 100).astype(dtype))
    read = read_arrays(pickle.dumps({"a": array, "b": array.T}, protocol=protocol))
    for found, written in ((read["a"], array), (read["b"], array.T)):
        assert found.dtype == written.dtype
        np.testing.assert_array_equal(found, written)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(protocol: int) -> None:
    values = {
        "ü": [1, -1, 300, 70_000, 2**40, 0.5],
        "b": (None, True, False),
        "c": {"d": [(), "x"]},
    }
    assert read_arrays(pickle.dumps(values, protocol=protocol)) == values


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_python_pickler_writes_the_same(protocol: int) -> None:
    file = io.BytesIO()
    pickle._Pickler(file, protocol=protocol).dump({"a,1": BOXES})  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read_arrays(file.getvalue())["a,1"], BOXES)


def test_python_2(tmp_path: Path) -> None:
    """Whose texts are bytes, and whose flags are numbers."""
    data = np.array(BOXES, "<f8").tobytes()
    pickled = b"".join(
        [
            b"\x80\x02}q\x00U\x06a,0902q\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\n",
            b"ndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02K\x05\x86cnumpy\ndtype\nq\x05U\x02f8",
            b"K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T",
            struct.pack("<i", len(data)) + data + b"tbs.",
        ]
    )
    (tmp_path / "x.pkl").write_bytes(pickled)
    table = read_boxes("proposals", tmp_path / "x.pkl")
    np.testing.assert_allclose(table.boxes, BOXES[:, :4])
    assert table.score is not None
    assert table.score.tolist() == [0.9, 0.5]


def test_lists_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a,1": BOXES.tolist(), "b,2": []}))
    table = read_boxes("proposals", tmp_path / "x.pkl")
    np.testing.assert_allclose(table.boxes[:2], BOXES[:, :4])
    assert table.is_box.tolist() == [True, True, False]
    assert table.lines.tolist() == [1, 1, 2]


# ---- what is refused


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def plain(value: Any) -> bytes:
    """A value without the memo."""
    return pickletools.optimize(pickle.dumps(value, protocol=3))[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def get(place: int) -> bytes:
    return b"h" + bytes([place])


def put(place: int) -> bytes:
    return b"q" + bytes([place])


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


ENTRY = b"\x80\x03}" + text("a,1")
NDARRAY = name("numpy", "ndarray")
RECONSTRUCT = name("numpy._core.multiarray", "_reconstruct")
FROMBUFFER = name("numpy._core.numeric", "_frombuffer")
DTYPE = name("numpy", "dtype")
EMPTY = call(RECONSTRUCT, NDARRAY, plain((0,)), plain(b"b"))


def dtype(code: Any = "f8", flags: Any = (False, True), state: Any = ("<",)) -> bytes:
    if len(state) == 1:
        state = (3, *state, None, None, None, -1, -1, 0)
    return call(DTYPE, plain(code), *map(plain, flags)) + plain(state) + b"b"


def array(
    shape: Any = (1, 5), kind: bytes = dtype(), data: Any = bytes(40), fortran: Any = False
) -> bytes:
    parts = (plain(1), plain(shape), kind, plain(fortran), plain(data))
    return EMPTY + b"(" + b"".join(parts) + b"tb"


def buffered(
    data: Any = bytes(40), kind: bytes = dtype(), shape: Any = (1, 5), order: Any = "C"
) -> bytes:
    return call(FROMBUFFER, plain(data), kind, plain(shape), plain(order))


VALUES = {  # of one entry
    "calls os": name("os", "system") + plain(("touch ran",)) + b"R",
    "calls eval": name("builtins", "eval") + plain(("1",)) + b"R",
    "calls a part of numpy": name("numpy", "memmap") + plain(("/etc/passwd",)) + b"R",
    "calls ndarray": NDARRAY + plain(((2,), "O", b"A" * 16)) + b"R",
    "calls a text": text("numpy.dtype") + plain(("f8", False, True)) + b"R",
    "calls a dtype": dtype() + b")R",
    "new ndarray": NDARRAY + plain(((2,), "O")) + b"\x81",
    "new ndarray with keywords": NDARRAY + plain(((2,),)) + plain({"dtype": "O"}) + b"\x92",
    "instance": b"(" + plain("1") + b"ibuiltins\neval\n",
    "object": b"(" + name("builtins", "eval") + plain("1") + b"o",
    "persistent": plain("1") + b"Q",
    "extension": b"\x82\x01",
    "a subclass": call(RECONSTRUCT, name("numpy", "matrix"), plain((0,)), plain(b"b")),
    "reconstruct a dtype": call(RECONSTRUCT, DTYPE, plain((0,)), plain(b"b")),
    "reconstruct a size": call(RECONSTRUCT, NDARRAY, plain((2**40,)), plain(b"b")),
    "reconstruct objects": call(RECONSTRUCT, NDARRAY, plain((2,)), plain("O")),
    "objects": array((1,), dtype("O8"), [1]),
    "object pointers": array((1,), dtype("O8"), bytes(8)),
    "objects in a buffer": buffered(bytes(16), dtype("O8"), (2,)),
    "structure": array((5,), dtype("V8", state=(3, "|", None, ("a",), {"a": (1, 0)}, 8, 1, 16))),
    "flags": array(kind=dtype(state=(3, "<", None, None, None, -1, -1, 63))),
    "fields": array(kind=dtype(state=(3, "<", None, ("a",), {}, -1, -1, 0))),
    "subarray": array(kind=dtype(state=(3, "<", ("f8", (2,)), None, None, -1, -1, 0))),
    "size in the state": array(kind=dtype(state=(3, "<", None, None, None, 10**9, 1, 0))),
    "metadata": array(kind=dtype(state=(4, "<", None, None, None, -1, -1, 0, {"a": 1}))),
    "dates": array(kind=dtype("M8", state=(4, "<", None, None, None, -1, -1, 0, ({}, ("D", 1))))),
    "texts": array((1, 10), dtype("U1", state=(3, "<", None, None, None, 4, 4, 8))),
    "long doubles": array((1, 5), dtype("f16"), bytes(80)),
    "complex": array((1, 5), dtype("c8")),
    "bool": array((1, 5), dtype("b1", state=(3, "|", None, None, None, -1, -1, 0)), bytes(5)),
    "a dtype of nothing": array(kind=dtype("")),
    "a dtype of a list": array(kind=dtype([("a", "O")])),
    "a dtype of a number": array(kind=dtype(8)),
    "a dtype without flags": array(kind=dtype(flags=())),
    "a state of a dtype that is none": DTYPE + plain(("f8", False, True)) + b"RNb",
    "an order that is none": array(kind=dtype(state=("O",))),
    "an order that is a number": array(kind=dtype(state=(3.5,))),
    "negative shape": array((-1, -5)),
    "negative and empty": array((-1, 0), data=b""),
    "huge shape": array((2**62, 5)),
    "huge and empty": array((10**18, 10**18, 0), data=b""),
    "shape that overflows": array((2**63, 2**63)),
    "shape of 0 bytes": array((2**64,)),
    "many dimensions": array((1,) * 100, data=bytes(8)),
    "shape of floats": array((1.0, 5.0)),
    "shape of bools": array((True, 5)),
    "shape as a list": array([1, 5]),
    "shape as a number": array(5),
    "too little data": array(data=bytes(39)),
    "too much data": array(data=bytes(41)),
    "data as a list": array(data=[0.0] * 5),
    "data that is nothing": array(data=None),
    "data beyond latin1": array((1,), data="\u20ac" * 8),
    "order of a buffer": buffered(order="A"),
    "buffer of nothing": buffered(data=None),
    "buffer of another size": buffered(shape=(2, 5)),
    "buffer of a negative shape": buffered(shape=(-1, 5)),
    "no state": EMPTY,
    "a state of an array that is none": EMPTY + b"Nb",
    "a state for a list": b"]" + plain((None, {"append": 1})) + b"b",
    "a state for a function": RECONSTRUCT + plain((None, {"__defaults__": (1,)})) + b"b",
    "a state for a class": NDARRAY + plain({"__setstate__": 1}) + b"b",
    "a state for a dict": b"}" + plain({"x": 1}) + b"b",
    "items of an array": array() + plain(0) + plain(1) + b"s",
    "append to an array": array() + plain(0) + b"a",
    "append to a dtype": dtype() + plain(0) + b"a",
    "scalar": call(name("numpy._core.multiarray", "scalar"), dtype(), plain(bytes(8))),
    "set": b"\x8f(" + plain(1) + b"\x90",
    "frozenset": b"(" + plain(1) + b"\x91",
    "next buffer": b"\x97",
    "encode with another codec": name("_codecs", "encode") + plain(("a", "zip")) + b"R",
    "encode a number": name("_codecs", "encode") + plain((1, "latin1")) + b"R",
    "bytes of a size": name("builtins", "bytes") + plain((2**40,)) + b"R",
    "a name of several lines": plain("numpy\nndarray") + plain("dtype") + b"\x93",
    "a name that is no text": plain([1]) + plain("dtype") + b"\x93",
    "a name of bombs": b"]"
    + put(7)
    + b"".join(b"](" + 2 * get(7 + i) + b"e" + put(8 + i) for i in range(60))
    + plain("x")
    + b"\x93",
    "boxes of texts": plain([["a"] * 5]),
    "boxes of huge numbers": plain([[10**400] * 5]),
    "boxes of four numbers": plain([[0.1] * 4]),
    "nested lists": b"]" * 100_000 + b"a" * 99_999,
    "nested tuples": b")" + b"\x85" * 100_000,
    "nested dicts": (b"}" + text("a")) * 50_000 + b"N" + b"s" * 50_000,
    "a list of itself": b"]q\x07h\x07a",
    "a bomb of lists": b"]"
    + put(0)
    + b"".join(b"](" + 100 * get(i) + b"e" + put(i + 1) for i in range(100)),
}
PICKLES = {
    **{what: ENTRY + value + b"s." for what, value in VALUES.items()},
    "a huge place in the memo": b"\x80\x03]r\xff\xff\xff\xff.",
    "a huge place in the memo, as text": b"\x80\x03]p999999999999\n.",
    "a place in the memo that is empty": b"\x80\x03h\x05.",
    "a huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "a huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"a.",
    "a huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "a huge number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
    "a key of nested tuples": b"\x80\x03})"
    + put(0)
    + b"".join(2 * get(i) + b"\x86" + put(i + 1) for i in range(90))
    + b"Ns.",
    "keys that are no texts": pickle.dumps({1: BOXES}),
    "a key that is not hashable": b"\x80\x03}]Ns.",
    "no entry": b"\x80\x03}N.",
    "an entry too much": b"\x80\x03}(" + text("a") + b"u.",
    "an empty stack": b"\x80\x03.",
    "no mark": b"\x80\x03t.",
    "items of nothing": b"\x80\x03NNs.",
    "no end": b"\x80\x03}",
    "an unknown instruction": b"\x80\x03\xff.",
    "a list": pickle.dumps([BOXES]),
    "an array": pickle.dumps(BOXES),
    "an ordered dict": pickle.dumps(collections.OrderedDict({"a,1": BOXES})),
    "an array of objects": pickle.dumps({"a,1": np.array([None])}),
    "a masked array": pickle.dumps({"a,1": np.ma.masked_array(BOXES)}),
    "a structured array": pickle.dumps({"a,1": np.zeros(1, [("x", "f8"), ("y", "O")])}),
    "a scalar": pickle.dumps({"a,1": np.float64(1)}),
    "a NaN": pickle.dumps({"a,1": BOXES * np.nan}),
    "one dimension": pickle.dumps({"a,1": BOXES[0]}),
    "no dimension": pickle.dumps({"a,1": np.array(1.0)}),
    "three dimensions": pickle.dumps({"a,1": BOXES[None]}),
    "a million boxes in many places": pickle.dumps(
        dict.fromkeys([f"a,{i}" for i in range(2000)], np.full((1000, 5), 0.5))
    ),
    "a list of rows in many places": pickle.dumps(
        dict.fromkeys([f"a,{i}" for i in range(2000)], [[0.1, 0.1, 0.2, 0.2, 0.5]] * 1000)
    ),
}


def test_everything_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pickles"
    folder.mkdir()
    names = {f"{number:03}.pkl": what for number, what in enumerate(PICKLES)}
    for file, what in names.items():
        (folder / file).write_bytes(PICKLES[what])
    found = read_all(folder)
    assert found.keys() == names.keys()
    for file, result in found.items():
        assert result.startswith(("FILE: refused (", "FILE:1: ")), (names[file], result)
        assert len(result) < 500, names[file]
    assert [path.name for path in tmp_path.iterdir()] == ["pickles"]


def test_the_arrays_written_by_hand_are_right(tmp_path: Path) -> None:
    """What is refused above is refused for its fault alone."""
    for value in (array(), buffered(), array((0, 5), data=b""), array(fortran=True)):
        np.testing.assert_array_equal(read_arrays(ENTRY + value + b"s.")["a,1"].reshape(-1), 0.0)


def test_a_refusal_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(PICKLES["calls ndarray"])
    with pytest.raises(
        AnnotationError, match=r"x\.pkl: refused \(it asks for numpy\.ndarray\); all"
    ):
        read_boxes("proposals", tmp_path / "x.pkl")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed, inserted or moved."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        place, other = rng.randrange(len(content)), rng.randrange(len(content))
        length = rng.choice((1, 1, 2, 4, 16))
        match rng.randrange(5):
            case 0:
                content[place] = rng.randrange(256)
            case 1:
                content[place] = rng.choice(
                    b"(.)]}0NRbatsuejhqrcXKJTGU\x80\x81\x85\x87\x93\x94\x96"
                )
            case 2 if len(content) > 2 * length:
                del content[place : place + length]
            case 3:
                content[place:place] = content[other : other + length]
            case _:
                content[place : place + length] = rng.randbytes(length)
    return bytes(content)


def write_mutated(folder: Path, seed: int, number: int) -> None:
    rng = random.Random(seed)
    written = [
        pickle.dumps({"a,1": BOXES.astype(kind), "b,2": BOXES[:1].T, "c,3": [[0.5] * 5]}, protocol)
        for kind in ("f4", "f8", "i2")
        for protocol in (2, 3, 4, 5)
    ]
    written += [value for value in PICKLES.values() if len(value) < 1000]
    for i in range(number):
        (folder / f"{i:06}.pkl").write_bytes(mutated(rng.choice(written), rng))


def test_mutated_pickles(tmp_path: Path) -> None:
    write_mutated(tmp_path, seed=0, number=1500)
    results = read_all(tmp_path)
    assert len(results) == 1500
    assert max(map(len, results.values())) < 500
