"""A small implementation of Protobuf, as much as the fakes need.

The fakes do not use the definitions of the library, because a mistake in them would then stay unnoticed. And here text
may have bytes that are not UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Text: TypeAlias = str | bytes
"""Text to send; bytes if it should not be UTF-8."""

Labels: TypeAlias = Mapping[str, str] | Mapping[bytes, bytes] | Mapping[str | bytes, str | bytes]
"""Labels, as a caller gives them."""

Fields: TypeAlias = dict[int, list["int | bytes"]]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}
_MORE = 0x80  # set in all bytes of a number except the last
_SECOND = 1_000_000_000  # nanoseconds


def message(*fields: tuple[int, int | Text | None]) -> bytes:
    """Encode a message from field numbers and values: numbers, text, or encoded messages.

    None, 0 and empty values are left out, as proto3 does.
    """
    parts = []
    for number, value in fields:
        if not value:
            continue
        if isinstance(value, int):
            parts += [_varint(number << 3 | _VARINT), _varint(value)]
        else:
            data = raw(value)
            parts += [_varint(number << 3 | _BYTES), _varint(len(data)), data]
    return b"".join(parts)


def repeated(number: int, values: list[bytes]) -> bytes:
    """Encode a repeated field of messages; empty messages are encoded too."""
    tag = _varint(number << 3 | _BYTES)
    return b"".join(part for value in values for part in (tag, _varint(len(value)), value))


def mapping(number: int, items: Mapping[Text, Text]) -> bytes:
    """Encode a field that is a map."""
    return repeated(number, [message((1, key), (2, value)) for key, value in items.items()])


def copied(labels: Labels) -> dict[Text, Text]:
    """Copy labels."""
    return {key: value for key, value in labels.items()}  # noqa: C416 - the types do not allow dict() here


def moment(nanoseconds: int) -> bytes:
    """Encode a Timestamp, from nanoseconds since the epoch."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    return message((1, seconds), (2, rest))


def raw(text: Text) -> bytes:
    """Return the bytes of a text."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def fields(data: bytes) -> Fields:
    """Decode one level of a message: field numbers to their values in order.

    Raises:
        ValueError: It is not a message.
    """
    found: Fields = {}
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        value: int | bytes
        if tag & 7 == _VARINT:
            value, position = _read_varint(data, position)
        else:
            if tag & 7 == _BYTES:
                width, position = _read_varint(data, position)
            elif tag & 7 in _WIDTHS:
                width = _WIDTHS[tag & 7]
            else:
                raise ValueError(f"no such wire type: {tag & 7}")
            value = data[position : position + width]
            position += width
            if position > len(data):
                raise ValueError("the message is cut off")
        found.setdefault(tag >> 3, []).append(value)
    return found


def submessage(of: Fields, number: int) -> Fields:
    """Return a field that is a message; an empty one if it is not there."""
    (data,) = of.get(number, [b""])[-1:]
    return fields(data) if isinstance(data, bytes) else {}


def text(of: Fields, number: int) -> str:
    """Return a field that is a text; "" if it is not there."""
    (data,) = of.get(number, [b""])[-1:]
    return data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else ""


def integer(of: Fields, number: int) -> int:
    """Return a field that is a number; 0 if it is not there."""
    (value,) = of.get(number, [0])[-1:]
    return value if isinstance(value, int) else 0


def texts(of: Fields, number: int) -> list[str]:
    """Return a field that is repeated text."""
    return [value.decode("utf-8", "surrogateescape") for value in of.get(number, []) if isinstance(value, bytes)]


def dictionary(of: Fields, number: int) -> dict[Text, Text]:
    """Return a field that is a map."""
    entries = [fields(entry) for entry in of.get(number, []) if isinstance(entry, bytes)]
    return {text(entry, 1): text(entry, 2) for entry in entries}


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF  # negative numbers are encoded in two's complement of 64 bits
    out = bytearray()
    while value >= _MORE:
        out.append(value & (_MORE - 1) | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("the message is cut off")
        byte = data[position]
        position += 1
        value |= (byte & (_MORE - 1)) << shift
        if byte < _MORE:
            return value, position
        shift += 7
