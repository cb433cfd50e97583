"""Pickles of NumPy arrays, read without pickle.

A pickle is a program. pickle runs any of it; an allow-list of functions still lets it build arrays
whose elements are pointers, and memory is allocated for any place that a program names. Here the
few instructions that plain values and arrays of numbers consist of are interpreted, in protocols 2
to 5, and nothing but these values can come out.
"""

import math
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

NAME = re.compile(r"[\w.]{1,100}")
NUMBERS = re.compile(r"f[248]|[iu][1248]")  # types of elements
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
WHOLE_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
VALUES = frozenset([*WHOLE_NUMBERS, "BINFLOAT", *TEXTS, *BYTES])  # with a value as argument
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
GETS = ("BINGET", "LONG_BINGET")
PUTS = ("BINPUT", "LONG_BINPUT")


@dataclass(frozen=True)
class _Global:
    """The name of a function or class."""

    name: str


@dataclass
class _Dtype:
    code: str


@dataclass
class _Array:
    values: np.ndarray | None = None  # None: the state is still to come


def read_arrays(data: bytes) -> dict[str, Any]:
    """The dict in a pickle, from texts to arrays or plain values; an array may occur repeatedly.

    Raises:
        ValueError: there is something else in it; says what.
        Exception: it is damaged; of many types.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # stacks under the marks
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in VALUES:
            stack.append(argument)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in PUTS:
            memo[argument] = stack[-1]
        elif name in GETS:
            stack.append(memo[argument])
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name == "TUPLE":
            stack, items = below.pop(), stack
            stack.append(tuple(items))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _set_state(stack[-1], state)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            stack, items = below.pop(), stack
            _set_items(stack[-1], items)
        elif name == "APPEND":
            value = stack.pop()
            _extend(stack[-1], [value])
        elif name == "APPENDS":
            stack, items = below.pop(), stack
            _extend(stack[-1], items)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "GLOBAL":
            stack.append(_global(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_global(module, attribute))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it has the instruction {name}")
    result = stack.pop()
    if not isinstance(result, dict):
        raise ValueError(f"it holds a {type(result).__name__}")
    return {key: v.values if isinstance(v, _Array) else v for key, v in result.items()}


def _global(module: Any, attribute: Any) -> _Global:
    if not all(isinstance(part, str) and NAME.fullmatch(part) for part in (module, attribute)):
        raise ValueError("it asks for something without a name")
    return _Global(f"{module.replace('numpy.core', 'numpy._core')}.{attribute}")  # of numpy 1


def _call(function: Any, arguments: Any) -> Any:
    """What the functions return by which NumPy and protocol 2 write arrays and bytes."""
    if not isinstance(function, _Global):
        raise ValueError("it calls a value")
    match function.name, arguments:
        case "numpy.dtype", (str() as code, _, _) if NUMBERS.fullmatch(code):
            return _Dtype(code)
        case "numpy._core.multiarray._reconstruct", (_Global("numpy.ndarray"), (0,), b"b" | "b"):
            return _Array()
        case "numpy._core.numeric._frombuffer", (data, dtype, shape, "C" | "F" as order):
            return _Array(_values(shape, dtype, order, data))
        case "_codecs.encode", (str() as text, "latin1"):
            return text.encode("latin1")
        case (("builtins.bytes" | "__builtin__.bytes"), ()):
            return b""
    raise ValueError(f"it asks for {function.name}")


def _set_state(target: Any, state: Any) -> None:
    match target, state:
        case _Dtype(), (3, "<" | ">" | "|" as order, None, None, None, -1, -1, 0):
            target.code = order + target.code
        case _Array(), (1, shape, dtype, bool() as is_fortran, data):
            target.values = _values(shape, dtype, "F" if is_fortran else "C", data)
        case _:
            raise ValueError("the state of an array or of its type is not one that NumPy writes")


def _values(shape: Any, dtype: Any, order: Any, data: Any) -> np.ndarray:
    """The array of these bytes, whose number fits."""
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not is_shape or not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array has no shape, type or data")
    kind = np.dtype(dtype.code)
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} has {len(data)} bytes")
    return np.ndarray(shape, kind, bytes(data), order=order)


def _set_items(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if type(target) is not dict or not all(type(key) is str for key in keys):
        raise ValueError("it sets an item of something else than a dict, or whose key is no text")
    target.update(zip(keys, values, strict=True))


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise ValueError("it appends to something else than a list")
    target.extend(items)
