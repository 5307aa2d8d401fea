"""Frames of JSON over a file descriptor, and Python values as JSON.

What arrives is untrusted: it is never unpickled or evaluated. A value that JSON has no form for
travels as `[tag, payload]` and is built anew from its content, so `==` and every other operation
on it is Python's own, whatever the object did on the other side.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from decimal import Decimal
from fractions import Fraction
from typing import Any

_HEADER = struct.Struct("!Q")
_PLAIN = (str, float, bool, type(None))
# Longer integers are beyond what int() of a decimal text accepts.
_LONG_INT_BITS = 14_000
# What `decode` builds, at most: digits of an integer or a decimal number (on longer ones a single
# operation in C may take the test's whole time), and members of a set or keys of one hash (adding
# one more compares it with all of them).
_MOST_DIGITS = 50_000
_MOST_OF_ONE_HASH = 200


class TooLargeError(ValueError):
    """A frame, or a value in it, is larger than the receiver allows."""


class Array(list):
    """A numpy array's items, with its comparison: true or false only of a single one."""

    def __eq__(self, other: object) -> bool:
        if len(self) != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous."
                " Use a.any() or a.all()"
            )
        return self[0] == other or list.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def take(*fds: int) -> None:
    """Give this process no descriptors but these, as 3, 4, ..., and what is 0 as 0 to 2."""
    for target, fd in enumerate([0, 0, *map(os.dup, fds)], start=1):
        os.dup2(fd, target)
    os.closerange(3 + len(fds), os.sysconf("SC_OPEN_MAX"))


def send(fd: int, message: Any) -> None:
    data = json.dumps(message).encode()
    view = memoryview(_HEADER.pack(len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int, max_bytes: int | None = None, timeout_s: float | None = None) -> Any:
    """The next message; None at the end of the stream, also in the middle of a frame.

    Raises:
        TooLargeError: the frame says it is larger than `max_bytes`.
        TimeoutError: it is not all there after `timeout_s` seconds.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    header = _read(fd, _HEADER.size, deadline)
    if header is None:
        return None
    (size,) = _HEADER.unpack(header)
    if max_bytes is not None and size > max_bytes:
        raise TooLargeError(f"a value of {size} bytes is over the limit of {max_bytes}")
    data = _read(fd, size, deadline)
    return None if data is None else json.loads(data)


def _read(fd: int, size: int, deadline: float | None) -> bytes | None:
    parts = []
    while size:
        if deadline is not None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("no answer in time")
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value: Any) -> Any:
    """A value as JSON. Subclasses of built-in types travel as the built-in; iterators are drawn.

    Anything else becomes an object that keeps its type's name and equals nothing but itself.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int.__pos__(value)
        return value if value.bit_length() < _LONG_INT_BITS else ["int", hex(value)]
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    for kind in (list, tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return [kind.__name__, [encode(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in value.items()]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [encode(part) for part in (value.start, value.stop, value.step)]]
    if isinstance(value, Fraction):
        return ["fraction", [encode(value.numerator), encode(value.denominator)]]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if isinstance(value, KeysView):
        return ["keys", [encode(item) for item in value]]
    if isinstance(value, (Iterator, ValuesView, ItemsView)):
        return ["iterator", [encode(item) for item in value]]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        if value.ndim:
            return ["array", [encode(item) for item in value]]
        plain = value.tolist()
        if not isinstance(plain, numpy.generic):
            return encode(plain)
    return ["object", type(value).__name__]


def decode(data: Any) -> Any:
    """The value that `encode` was given, of built-in types (and `Array`) only.

    Raises:
        TooLargeError: a value that only serves to exhaust whoever builds or uses it.
        ValueError, TypeError, KeyError: `encode` did not make this.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise ValueError("a malformed value")
        return data
    tag, content = data
    return _DECODERS[tag](content)


def _items(content: list) -> list:
    return [decode(item) for item in content]


def _distinct(items: list) -> list:
    """Items that a set or a dict can be built of in reasonable time."""
    alike = max(Counter(map(hash, items)).values(), default=0)
    if alike > _MOST_OF_ONE_HASH:
        raise TooLargeError(f"{alike} values of one hash are over the limit of {_MOST_OF_ONE_HASH}")
    return items


def _dict(content: list) -> dict:
    keys = _distinct([decode(key) for key, _ in content])
    return {key: decode(item) for key, (_, item) in zip(keys, content, strict=True)}


def _digits(text: str) -> str:
    if len(text) > _MOST_DIGITS:
        raise TooLargeError(f"a number of {len(text)} digits is over the limit of {_MOST_DIGITS}")
    return text


def _object(content: str) -> Any:
    return type(content[:100], (), {})()


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda content: int(_digits(content), 16),
    "list": _items,
    "tuple": lambda content: tuple(_items(content)),
    "set": lambda content: set(_distinct(_items(content))),
    "frozenset": lambda content: frozenset(_distinct(_items(content))),
    "deque": lambda content: deque(_items(content)),
    "dict": _dict,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda content: complex(*content),
    "range": lambda content: range(*_items(content)),
    "fraction": lambda content: Fraction(*_items(content)),
    "decimal": lambda content: Decimal(_digits(content)),
    "keys": lambda content: dict.fromkeys(_distinct(_items(content))).keys(),
    "iterator": lambda content: iter(_items(content)),
    "array": lambda content: Array(_items(content)),
    "object": _object,
}
