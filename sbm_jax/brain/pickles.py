"""Pickled `.npy` files read as data: containers, numbers, texts and arrays of them are rebuilt here; nothing is executed.

Python's own unpickler is not used. The few instructions that such files need are followed one by one, and the six names
that NumPy writes (`numpy.ndarray`, `_reconstruct`, ...) stand for functions of this module, so that no bytes of a file reach
code of NumPy or of anybody else before they were checked. Every other instruction or name is refused.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sbm_jax.errors import UserError

# A few entries per label are expected; the limits bound memory and time (keys chosen to collide take the square).
MAX_PLAIN_BYTES = 16 << 20
MAX_STEPS = 100_000
_MAX_HEADER = 10_000
_HEADER = re.compile(r"\{'descr': '\|?O8?', 'fortran_order': (?:True|False), 'shape': \(([\d, ]{0,300})\), \}\s*")
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")
_TEXTS = re.compile(r"[SU][1-9]\d{0,4}")
_HAS_VALUE = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_WITHOUT_EFFECT = {"PROTO", "FRAME", "STOP"}


class _Refused(Exception):
    """What the file asks for and does not get."""


class _Mark:
    """Start of a group on the stack."""


class _Type:
    """A NumPy dtype under construction: `np.dtype(code)`, then its byte order."""

    def __init__(self, code: str):
        self.code, self.order = code, "="

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # pyright: ignore[reportArgumentType]


class _Array:
    """A NumPy array under construction: empty until its state came."""

    value: np.ndarray | None = None


class _Arguments(tuple):
    """A tuple that holds something unfinished or a name: good as arguments or state, not as content."""


class _Name:
    """A name the file may use, and what it does when called."""

    def __init__(self, call: Callable[..., Any] | None):
        self.call = call


def load_pickled_npy(path: Path, arrays: bool = False) -> Any:
    """What `np.save` pickled into a `.npy` of dtype object: of a 0-d array its content, else the object array.

    Admitted are dict, list, tuple, None, bool, int, float, str, bytes, NumPy scalars and object arrays of these; with
    `arrays` also arrays of bool, integers, float16 to float64 and complex numbers (GLMsingle's results). Keys of a dict are
    None, bool, int, float, str, bytes. Files of NumPy 1 (`numpy.core`) and 2 (`numpy._core`) read alike.

    Raises UserError: no such file, not a `.npy` of pickled objects, cut short, too large, or asking for anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected a .npy file of pickled Python objects")
    with path.open("rb") as handle:
        shape = _read_header(path, handle)
        size = path.stat().st_size
        if not arrays and size > MAX_PLAIN_BYTES:
            raise UserError(
                f"{path}: expected a small table of names (at most {MAX_PLAIN_BYTES:,} bytes), found {size:,}"
            )
        try:
            value = _Reader(arrays).read(_Bounded(handle, size))
        except _Refused as refusal:
            raise UserError(
                f"{path}: its pickle {refusal}; only plain containers, numbers, texts"
                f"{' and arrays of numbers' if arrays else ''} are read, nothing is executed. Save the content in "
                "another form if you trust the file"
            ) from None
        # what pickletools raises for damaged files: ValueError (also for bad UTF-8), and for cut numbers the rest
        except (ValueError, IndexError, TypeError, OverflowError, EOFError) as error:
            raise UserError(f"{path}: a damaged or cut pickle ({error}); copy or download it again") from None
    if not isinstance(value, np.ndarray) or value.dtype != object or value.shape != shape:
        raise UserError(f"{path}: expected a pickled object array of shape {shape} as its header says, found another")
    return value.item() if shape == () else value


def _read_header(path: Path, handle: BinaryIO) -> tuple[int, ...]:
    """The shape. The text of the header is matched, not evaluated: NumPy writes it in one way."""
    magic = handle.read(8)
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(magic[6:], 0)
    if magic[:6] != b"\x93NUMPY" or not width:
        raise UserError(f"{path}: not a readable .npy file; expected one that np.save wrote")
    text = handle.read(min(int.from_bytes(handle.read(width), "little"), _MAX_HEADER)).decode("latin1")
    match = _HEADER.fullmatch(text)
    if match is None:
        raise UserError(
            f"{path}: expected pickled Python objects (dtype object), found the header {text.strip()!r:.100}"
        )
    return tuple(int(n) for n in match[1].split(",") if n.strip())


class _Bounded:
    """A file that refuses to read further than its end, before memory is taken for it."""

    def __init__(self, handle: BinaryIO, size: int):
        self.handle, self.size, self.readline = handle, size, handle.readline

    def read(self, count: int) -> bytes:
        if count > self.size - self.handle.tell():
            raise ValueError(f"{count:,} bytes are announced where fewer are left")
        return self.handle.read(count)


class _Reader:
    """A stack, a memo, and one method or line per instruction (see Python's pickletools for their meaning)."""

    def __init__(self, arrays: bool):
        self.arrays = arrays
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, handle: Any) -> Any:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(handle)):
            if step >= MAX_STEPS:
                raise _Refused(f"has more than {MAX_STEPS:,} instructions")
            self.follow(opcode.name, argument)
        if len(self.stack) != 1:
            raise _Refused(f"leaves {len(self.stack)} objects instead of one")
        return _content(_finished(self.stack[0]))

    def follow(self, name: str, argument: Any) -> None:
        push, pop = self.stack.append, self.pop
        if name in _HAS_VALUE:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name == "MARK":
            push(_Mark())
        elif name == "EMPTY_LIST":
            push([])
        elif name == "EMPTY_DICT":
            push({})
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(_tuple([pop() for _ in range(int(name[-1]))][::-1]))
        elif name == "TUPLE":
            push(_tuple(self.pop_group()))
        elif name in ("APPEND", "APPENDS"):
            items = [pop()] if name == "APPEND" else self.pop_group()
            self.top(list).extend(_content(item) for item in items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [pop(), pop()][::-1] if name == "SETITEM" else self.pop_group()
            pairs = zip(items[::2], items[1::2], strict=True)
            self.top(dict).update({_key(key): _content(value) for key, value in pairs})
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top(object)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise _Refused("refers to an object that it does not hold")
            push(_finished(self.memo[argument]))
        elif name == "GLOBAL":
            push(self.name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            member, module = pop(), pop()
            push(self.name(module, member))
        elif name == "REDUCE":
            arguments, function = pop(), pop()
            if not isinstance(function, _Name) or function.call is None or not isinstance(arguments, tuple):
                raise _Refused("calls something that is no function of NumPy's pickles")
            push(_call(function.call, arguments))
        elif name == "BUILD":
            state = pop()
            push(self.build(pop(), state))
        elif name not in _WITHOUT_EFFECT:
            raise _Refused(f"uses the instruction {name}")

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise _Refused("takes from an empty stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind) or isinstance(self.stack[-1], _Mark):
            raise _Refused(f"needs a {kind.__name__} where there is none")
        return self.stack[-1]

    def pop_group(self) -> list[Any]:
        """Everything above the last mark."""
        group = []
        while self.stack and not isinstance(self.stack[-1], _Mark):
            group.append(self.stack.pop())
        if not self.stack:
            raise _Refused("closes a group that was not opened")
        self.stack.pop()
        return group[::-1]

    def name(self, module: Any, member: Any) -> _Name:
        """What stands for `module.member`. Raises _Refused naming it when it is not one of NumPy's six."""
        known: dict[tuple[Any, Any], Callable[..., Any] | None] = {
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): self.make_type,
            ("_codecs", "encode"): _latin1,
        }
        for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
            known |= {(core, "_reconstruct"): _empty_array, (core, "scalar"): _scalar}
        # texts only: a key of another type would be hashed, however deep it is
        if not (isinstance(module, str) and isinstance(member, str)) or (module, member) not in known:
            raise _Refused(f"asks for {module}.{member}" if isinstance(module, str) else "asks for a name that is none")
        return _Name(known[module, member])

    def make_type(self, code: Any, align: Any = False, copy: Any = True) -> _Type:
        code = "O" if code in ("O8", "O4") else code
        if not isinstance(code, str) or not (code == "O" or _NUMBERS.fullmatch(code) or _TEXTS.fullmatch(code)):
            raise _Refused(f"asks for the NumPy type {code!r:.40}")
        return _Type(code)

    def build(self, target: Any, state: Any) -> Any:
        """Give an unfinished NumPy object its state; what stands on the stack afterwards."""
        if not isinstance(state, tuple):
            raise _Refused("sets the state of an object in an unknown way")
        if isinstance(target, _Type):
            # (version, byte order, subarray, names, fields, ...): plain types have none of the three
            if (
                len(state) < 5
                or not isinstance(state[1], str)
                or state[1] not in set("<>|=")
                or any(s is not None for s in state[2:5])
            ):
                raise _Refused("asks for a compound NumPy type")
            target.order = state[1]
            return target
        if isinstance(target, _Array) and target.value is None:
            target.value = self.array(*state) if len(state) == 5 else None
        if not isinstance(target, _Array) or target.value is None:
            raise _Refused("sets the state of an object that has none")
        return target.value

    def array(self, version: Any, shape: Any, kind: Any, fortran: Any, data: Any) -> np.ndarray:
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
            raise _Refused("holds an array without a shape")
        if not isinstance(kind, _Type):
            raise _Refused("holds an array without a type")
        order, count = "F" if fortran is True else "C", math.prod(shape)
        if kind.code == "O":
            if not isinstance(data, list) or len(data) != count:
                raise _Refused(f"holds an object array of {count} entries with another number of them")
            value = np.empty(count, dtype=object)
            for i, item in enumerate(data):
                value[i] = item
            return value.reshape(shape, order=order)
        if not self.arrays or not _NUMBERS.fullmatch(kind.code):
            raise _Refused(f"holds an array of {kind.code}")
        if not isinstance(data, bytes) or len(data) != count * kind.dtype.itemsize:
            raise _Refused(f"holds an array of {count} numbers with another number of bytes")
        return np.ndarray(shape, dtype=kind.dtype, buffer=data, order=order)


def _call(function: Callable[..., Any], arguments: tuple) -> Any:
    try:
        return function(*arguments)
    except TypeError as error:
        raise _Refused(f"calls a function of NumPy wrongly ({error})") from None


def _empty_array(kind: Any, shape: Any, code: Any) -> _Array:
    """NumPy writes every array as an empty one whose state, shape and type follow; these three are of no use."""
    return _Array()


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Type) or kind.code == "O" or not isinstance(data, bytes):
        raise _Refused("holds a NumPy scalar that is neither number nor text")
    if len(data) != kind.dtype.itemsize:
        raise _Refused(f"holds a NumPy scalar of {len(data)} bytes for {kind.code}")
    return np.frombuffer(data, dtype=kind.dtype)[0]


def _latin1(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not (isinstance(text, str) and isinstance(encoding, str) and encoding in ("latin1", "latin-1")):
        raise _Refused("encodes a text in an unexpected way")
    return text.encode("latin1")


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, _Array) and value.value is not None else value


def _tuple(items: list[Any]) -> tuple:
    return _Arguments(items) if any(isinstance(i, _UNFINISHED) for i in items) else tuple(items)


def _content(value: Any) -> Any:
    if isinstance(value, _UNFINISHED):
        raise _Refused("holds a name or an unfinished array as content")
    return value


def _key(key: Any) -> Any:
    """Keys are scalars: nested tuples would take exponential time to hash."""
    if key is not None and not isinstance(key, (bool, int, float, str, bytes, np.generic)):
        raise _Refused(f"has a {type(key).__name__} as a key")
    return key


_UNFINISHED = (_Name, _Type, _Array, _Arguments, _Mark)
