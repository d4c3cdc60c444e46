"""The few instructions of a pickle that a dict of tensors needs, carried out on plain values.

A pickle is a program, and a general machine for it imports and calls whatever the file names. The
machine below knows only what `torch.save` writes for a state dict. The names in the file stay
strings: nothing is imported, and three of them stand for rules written out here. Anything else is
refused.
"""

import pickletools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_KNOWN = {_DICT, _TENSOR, _PARAMETER, *(f"torch {name}" for name in _DTYPES)}

_PUSH = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT, _GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


class _Name(str):
    """Something of Python's that the file names; never looked up."""


class Storage(NamedTuple):
    """A run of numbers that lies in a file of the archive."""

    dtype: torch.dtype
    """What the numbers are."""
    key: str
    """Name of the file."""
    numel: int
    """How many there are."""


class Laid(NamedTuple):
    """How a tensor lies in its storage."""

    storage: Storage
    """Where its numbers are."""
    offset: int
    """Which of them is the first."""
    size: tuple[int, ...]
    """Its shape."""
    stride: tuple[int, ...]
    """Steps through the storage along each axis."""


class Refused(Exception):
    """What the file asks for and does not get."""


_MARK = object()


class _Machine:
    """Runs the allowed instructions over plain values."""

    def __init__(self) -> None:
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def step(self, name: str, argument: object) -> None:
        """One instruction."""
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = tuple(self.stack[len(self.stack) - count :])
            self.stack[len(self.stack) - count :] = [items]
        elif name in _PUT:
            self.memo[int(str(argument))] = self.stack[-1]
        elif name in _GET:
            self.stack.append(self.memo[int(str(argument))])
        elif name == "GLOBAL":
            self.stack.append(_known(str(argument)))
        elif name in self._OTHERS:
            self._OTHERS[name](self)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"the instruction {name}")

    def _mark(self) -> None:
        self.stack.append(_MARK)

    def _since_mark(self) -> list:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _tuple(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _set_items(self) -> None:
        items = self._since_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put(key, value)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(key, value)

    def _put(self, key: object, value: object) -> None:
        # Tuples nested in tuples would take for ever to hash or to print.
        if not isinstance(key, str):
            raise Refused("a key that is not a name")
        _dict(self.stack[-1])[key] = value

    def _build(self) -> None:
        """An OrderedDict's attributes (a module's versions): of no use here."""
        self.stack.pop()
        _dict(self.stack[-1])

    def _memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_known(f"{module} {name}"))

    def _persistent(self) -> None:
        kind, storage, key, _, numel = self.stack.pop()
        if kind != "storage" or not isinstance(storage, _Name):
            raise Refused("an outside object that is no storage")
        dtype = _DTYPES[storage.removeprefix("torch ")]
        self.stack.append(Storage(dtype, str(key), int(numel)))

    def _reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name):
            raise Refused("a call of something that is not a name")
        if name == _DICT and arguments == ():
            self.stack.append({})
        elif name == _TENSOR:
            storage, offset, size, stride = arguments[:4]
            self.stack.append(Laid(storage, offset, tuple(size), tuple(stride)))
        elif name == _PARAMETER:
            self.stack.append(arguments[0])
        else:
            raise Refused(f"a call of {name}")

    _OTHERS: ClassVar[dict[str, Callable[["_Machine"], None]]] = {
        "MARK": _mark,
        "TUPLE": _tuple,
        "EMPTY_DICT": _empty_dict,
        "SETITEMS": _set_items,
        "SETITEM": _set_item,
        "BUILD": _build,
        "MEMOIZE": _memoize,
        "STACK_GLOBAL": _stack_global,
        "BINPERSID": _persistent,
        "REDUCE": _reduce,
    }


def laid_tensors(program: bytes) -> dict[str, Laid]:
    """Where the program puts the tensors of its one flat dict.

    Raises:
        Refused: it asks for anything else.
        ValueError, IndexError, KeyError, TypeError: it is damaged.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(program):
        machine.step(opcode.name, argument)
    (found,) = machine.stack
    if not isinstance(found, dict):
        raise Refused("one thing that is not a dict")
    for name, value in found.items():
        if not isinstance(value, Laid):
            raise Refused(f"{name!r}, which is not a tensor")
    return found


def _known(name: str) -> _Name:
    if name not in _KNOWN:
        raise Refused(f"the name {name.replace(' ', '.')}")
    return _Name(name)


def _dict(value: object) -> dict:
    if not isinstance(value, dict):
        raise Refused("items put into something that is not a dict")
    return value
