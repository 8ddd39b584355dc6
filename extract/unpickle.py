"""Pickled checkpoints read without pickle: numpy arrays in plain containers, and nothing is ever called or imported.

Published checkpoints such as detectron2's model zoo (.pkl) are pickles, which can run any code when they are loaded.
This module interprets a small part of the format itself: literals, lists, tuples, dicts, and the handful of names that
arrays are written with. A name is only ever compared with these, never looked up. Any other name or opcode is refused.
"""

from __future__ import annotations

import mmap
import pickletools
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import UserError

__all__ = ["read_pickle"]

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Refused(Exception):
    """What the file holds that is not allowed."""


class _Name(NamedTuple):
    """A global as written in the file; it stands for itself and is never resolved."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Dtype:
    """A dtype under construction: its byte order follows in a BUILD."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


def read_pickle(path: str | Path) -> Any:
    """The value of a pickle of protocol 0 to 5 made of numpy arrays, numbers, strings, bytes, lists, tuples and dicts.

    Strings of Python 2 are read as latin-1. Memory stays within a small multiple of the file's size.

    Raises:
        UserError: the file is damaged, or holds anything else: what it is, and how to save it so that it can be read.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        size = Path(path).stat().st_size
        if size == 0:
            raise UserError(f"{path} is empty, not a checkpoint")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Machine(size).run(content)
            except _Refused as refused:
                raise UserError(
                    f"{path} holds {refused}, which this reader refuses: a .pkl may hold numpy arrays of numbers in "
                    "dicts and lists, nothing that runs code; save the arrays alone, or use .pth or .safetensors"
                ) from refused
            except (
                ArithmeticError, AttributeError, IndexError, KeyError, MemoryError, TypeError, UnicodeError, ValueError,
                struct.error,
            ) as error:  # fmt: skip
                raise UserError(f"{path} is not a pickle, or a damaged one: {str(error)[:200]}") from error


class _Machine:
    """The pickle machine with a stack and a memo, for the opcodes that data needs."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = 2 * size  # bytes that copies may take: honest files store each array once

    def run(self, content: mmap.mmap) -> Any:
        steps: dict[str, Callable[[Any], None]] = {
            name.removeprefix("op_").upper(): getattr(self, name) for name in dir(self) if name.startswith("op_")
        }
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self.stack.append(tuple(self.pop(_TUPLES[name])))
            elif name in steps:
                steps[name](argument)
            elif name == "STOP":
                return self.pop(1)[0]
            elif name not in ("PROTO", "FRAME"):
                raise _Refused(f"the instruction {name}")
        raise ValueError("it ends early")

    # -- stack ---------------------------------------------------------------------------------------------------

    def pop(self, n: int) -> list[Any]:
        """The last n values, in order."""
        values = [self.stack.pop() for _ in range(n)][::-1]
        if any(value is _MARK for value in values):
            raise ValueError("a value is missing")
        return values

    def pop_mark(self) -> list[Any]:
        """The values since the last mark, in order."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise _Refused("the same data many times over (a memory bomb)")

    def op_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_binget = op_long_binget = op_get

    # -- containers ----------------------------------------------------------------------------------------------

    def op_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def op_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def op_list(self, _: Any) -> None:
        self.stack.append(self.pop_mark())

    def op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def op_dict(self, _: Any) -> None:
        values = self.pop_mark()
        self.stack.append({})
        self.fill(values)

    def op_append(self, _: Any) -> None:
        self.extend(self.pop(1))

    def op_appends(self, _: Any) -> None:
        self.extend(self.pop_mark())

    def op_setitem(self, _: Any) -> None:
        self.fill(self.pop(2))

    def op_setitems(self, _: Any) -> None:
        self.fill(self.pop_mark())

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Refused(f"items appended to {_kind(self.stack[-1])}")
        self.stack[-1].extend(values)

    def fill(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _Refused(f"items set on {_kind(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise _Refused(f"a dict key that is {_kind(key)}")
            target[key] = value

    # -- names, and what they build ------------------------------------------------------------------------------

    def op_global(self, text: str) -> None:
        self.stack.append(_Name(*text.split(" ", 1)))

    def op_stack_global(self, _: Any) -> None:
        self.stack.append(_Name(*map(str, self.pop(2))))

    def op_reduce(self, _: Any) -> None:
        """Build one of the known things from its arguments."""
        name, arguments = self.pop(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise _Refused(f"a call of {_kind(name)}")
        module = name.module.replace("numpy._core", "numpy.core", 1)  # numpy 2 writes the first, numpy 1 the second
        match (module, name.name):
            case ("numpy.core.multiarray", "_reconstruct"):
                self.stack.append(np.ndarray((0,), np.int8))  # the array that BUILD fills
            case ("numpy", "dtype"):
                self.stack.append(_Dtype(_number_type(arguments[0])))
            case ("numpy.core.multiarray", "scalar"):
                dtype, data = arguments
                self.stack.append(self.array(dtype, (), data)[()])
            case ("numpy.core.numeric", "_frombuffer"):
                data, dtype, shape, order = arguments
                flat = self.array(dtype, (prod(shape),), data)
                self.stack.append(flat.reshape(shape, order="F" if order == "F" else "C"))
            case ("_codecs", "encode") if len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
                self.spend(len(arguments[0]))
                self.stack.append(arguments[0].encode("latin-1"))  # how protocols 0 to 2 write bytes
            case ("__builtin__" | "builtins", "bytes") if not arguments:
                self.stack.append(b"")
            case ("collections", "OrderedDict") if len(arguments) <= 1:
                pairs = arguments[0] if arguments else []
                self.spend(64 * len(pairs))
                self.stack.append(OrderedDict())
                self.fill([value for pair in pairs for value in pair])
            case _:
                raise _Refused(f"a call of {name}")

    def op_build(self, _: Any) -> None:
        """Give an array its contents, or a dtype its byte order."""
        target, state = self.pop(2)
        if isinstance(target, _Dtype):
            if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
                raise _Refused("a dtype that is no plain number")
            target.dtype = target.dtype.newbyteorder(state[1])
            self.stack.append(target)
            return
        if type(target) is not np.ndarray or target.shape != (0,) or target.dtype != np.int8:
            raise _Refused(f"a state set on {_kind(target)}")
        _, shape, dtype, fortran, data = state
        filled = self.array(dtype, tuple(shape), data)
        raw = filled.tobytes() if filled.size else b""
        target.__setstate__((1, filled.shape, filled.dtype, bool(fortran), raw))
        self.stack.append(target)

    def array(self, dtype: Any, shape: tuple[int, ...], data: Any) -> np.ndarray:
        """Bytes as an array; their number must be exactly what the shape asks for."""
        if not isinstance(dtype, _Dtype):
            raise _Refused(f"an array of {_kind(dtype)}")
        if isinstance(data, str):
            data = data.encode("latin-1")  # Python 2
        if not isinstance(data, (bytes, bytearray)):
            raise _Refused(f"an array made from {_kind(data)}")
        if not all(isinstance(n, int) and n >= 0 for n in shape) or prod(shape) * dtype.dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {str(shape)[:80]} has {len(data)} bytes")
        self.spend(len(data))
        return np.frombuffer(data, dtype.dtype).reshape(shape)


def _number_type(code: Any) -> np.dtype:
    """A dtype of numbers from its code, such as "f4"; never one of objects, records or text."""
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(\?|[biufc]\d{1,2})", code):
        raise _Refused(f"an array of dtype {str(code)[:40]!r}")
    return np.dtype(code)


def _kind(value: Any) -> str:
    return str(value) if isinstance(value, _Name) else type(value).__name__
