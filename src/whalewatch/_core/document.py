"""Values as JSON: what ``to_dict`` returns, and ``from_dict`` reads. Pure: it goes by the types of the fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, ip_address
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

import attrs

from whalewatch._core.text import printable

__all__ = ["SCHEMA", "Document", "ReadableDocument", "plain", "read"]

SCHEMA = 1
"""Version of the schema, which docs/json.md describes. It grows when a field gets another meaning or is removed. A new
field is no new version, because readers ignore what they do not know."""

NAMES = {str: "text", int: "a whole number", bool: "true or false"}


class Document:
    """A value that can be written as JSON. A field that comparisons ignore, such as a rucksack, is left out."""

    __slots__ = ()

    _document: ClassVar[str]
    """What the key "type" says. If the value has a field `type`, that has this word as its key."""

    def to_dict(self) -> dict[str, Any]:
        """Return the value in plain types of JSON, by the schema in docs/json.md."""
        return {"schema": SCHEMA, "type": self._document, **plain(self)}


class ReadableDocument(Document):
    """A value that can also be read from JSON."""

    __slots__ = ()

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_dict` has returned. Keys that are not known are ignored, and there is no rucksack.

        Raises:
            ValueError: a field is missing, or has a wrong value; the message names it.
        """
        if not isinstance(document, Mapping):
            raise _wrong("the document", document, "an object")
        schema, type_ = document.get("schema", SCHEMA), document.get("type", cls._document)
        if type(schema) is not int or schema != SCHEMA:
            raise _wrong("schema", schema, f"{SCHEMA}, the only one that is known here")
        if type_ != cls._document:
            raise _wrong("type", type_, repr(cls._document))
        found: Self = _value(cls, document, "")
        return found


@cache
def _fields(cls: Any) -> list[tuple[attrs.Attribute[Any], str, Any]]:
    """Return the fields of a class that are written: each with its key and its type."""
    hints = get_type_hints(cls)
    found = [field for field in attrs.fields(cls) if field.eq and not field.name.startswith("_")]
    return [(field, cls._document if field.name == "type" else field.name, hints[field.name]) for field in found]


def plain(value: Any) -> Any:
    """Return a value in plain types of JSON."""
    if isinstance(value, str | int | NoneType):
        return value
    if attrs.has(type(value)):
        return {key: plain(getattr(value, field.name)) for field, key, _ in _fields(value.__class__)}
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value.value if isinstance(value, Enum) else str(value)


def _value(cls: Any, document: Any, where: str) -> Any:
    if not isinstance(document, Mapping):
        raise _wrong(where, document, "an object")
    found = {}
    for field, key, kind in _fields(cls):
        place = f"{where}.{key}" if where else key
        if not field.init:
            continue
        if key in document:
            found[field.name] = read(kind, document[key], place)
        elif field.default is attrs.NOTHING:
            msg = f"{place} is missing"
            raise ValueError(msg)
    return cls(**found)


def read(kind: Any, found: Any, where: str) -> Any:
    """Read a value of a type.

    Args:
        kind: the type of a field: a plain type, an enumeration, a time, IP addresses, or a class of ours; or with None;
            or a tuple of any number, or a mapping from text.
        found: the value in plain types of JSON.
        where: its place in the document, for errors.

    Raises:
        ValueError: the value is not of this type.
    """
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if found is None and NoneType in kinds:
        return None
    if IPv4Address in kinds:
        return _parsed(ip_address, found, where, "an IP address")
    kind = kinds[0]
    of = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(found, list | tuple):
            raise _wrong(where, found, "a list")
        return tuple(read(of[0], one, f"{where}[{number}]") for number, one in enumerate(found))
    if of:
        if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
            raise _wrong(where, found, "an object")
        return {key: read(of[0], one, f"{where}[{printable(repr(key), 80)}]") for key, one in found.items()}
    return _read_one(kind, found, where)


def _read_one(kind: Any, found: Any, where: str) -> Any:
    if attrs.has(kind):
        return _value(kind, found, where)
    if kind is datetime:
        return _parsed(_moment, found, where, "a time with its zone, as in ISO 8601")
    if issubclass(kind, Enum):
        return _parsed(kind, found, where, f"one of {', '.join(repr(one.value) for one in kind)}")
    if type(found) is not kind:
        raise _wrong(where, found, NAMES[kind])
    return found


def _parsed(parse: Callable[[str], Any], found: Any, where: str, what: str) -> Any:
    try:
        if isinstance(found, str):
            return parse(found)
    except (ValueError, OverflowError):
        pass
    raise _wrong(where, found, what)


def _moment(found: str) -> datetime:
    moment = datetime.fromisoformat(found)
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


def _wrong(where: str, found: Any, what: str) -> ValueError:
    return ValueError(f"{where} must be {what}, not {printable(repr(found), 80)}")
