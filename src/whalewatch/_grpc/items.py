"""Read the messages of an engine within bounds: a few megabytes can be millions of objects once they are parsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

__all__ = ["MAX_FIELDS", "MAX_ITEM", "TooLarge", "fields", "parse"]

M = TypeVar("M", bound=Message)

MAX_ITEM = 4 * 1024 * 1024
"""Most bytes of one item of a listing, of one event, and of an answer about one container."""

MAX_FIELDS = 65_536
"""Most fields of such a message, with those of its parts: every field may become an object, of up to 200 bytes."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIDTHS = {FIXED64: 8, FIXED32: 4}
MORE = 0x80  # set in all bytes of a number except the last
LONGEST = 70  # bits of a number, of which each byte has seven


class TooLarge(ValueError):
    """A message is not parsed, because it is too large."""


def parse(type_: type[M], message: bytes, start: int = 0, end: int | None = None) -> M:
    """Parse a message, or a part of one, that is not too large.

    Raises:
        DecodeError: it is not of this type.
        TooLarge: it is too large.
    """
    end = len(message) if end is None else end
    size = end - start
    if size > MAX_ITEM:
        raise TooLarge(f"{size} bytes, and at most {MAX_ITEM} are taken")
    if size > 2 * MAX_FIELDS:  # a field takes two bytes or more
        _count(type_.DESCRIPTOR, message, start, end)
    return type_.FromString(message[start:end])


def fields(message: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of a message, or of a part of it, without those of its parts.

    Of each field: its number, and where its value begins and ends; of one that is neither bytes nor a message, 0 in
    place of its number.

    Raises:
        DecodeError: it is no message.
    """
    end = len(message) if end is None else end
    position = start
    try:
        while position < end:
            tag, position = message[position], position + 1
            if tag >= MORE:
                tag, position = _number(message, position, tag)
            kind, size = tag & 7, 0
            if kind == BYTES:
                size, position = message[position], position + 1
                if size >= MORE:
                    size, position = _number(message, position, size)
            elif kind == VARINT:
                _, position = _number(message, position + 1, message[position])
            else:
                size = WIDTHS[kind]
            if position + size > end:
                raise DecodeError("the message is cut off")
            yield tag >> 3 if kind == BYTES else 0, position, position + size
            position += size
    except LookupError:
        raise DecodeError("the message is cut off, or has a field of no known kind") from None


def _count(descriptor: Any, message: bytes, start: int, end: int) -> None:
    parts, left = [(descriptor, start, end)], MAX_FIELDS
    for part, begin, stop in parts:
        types = _types(part)
        for number, *span in fields(message, begin, stop):
            left -= 1
            if left < 0:
                raise TooLarge(f"more than {MAX_FIELDS} fields")
            if number in types:
                parts.append((types[number], *span))


@cache
def _types(descriptor: Any) -> Mapping[int, Any]:
    """Return the types of the fields that are messages, by number."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}


def _number(message: bytes, position: int, first: int) -> tuple[int, int]:
    """Return the number that begins with the byte `first`, and the position after it; `position` is that of the next.

    Raises:
        DecodeError: it has more than ten bytes.
        IndexError: it is cut off.
    """
    value, byte, shift = first & MORE - 1, first, 0
    while byte >= MORE:
        byte, position, shift = message[position], position + 1, shift + 7
        if shift == LONGEST:
            raise DecodeError("a number is too long")
        value |= (byte & MORE - 1) << shift
    return value, position
