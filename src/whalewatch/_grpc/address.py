"""Where a gRPC engine is: addresses as users give them."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from whalewatch._core.errors import AddressError
from whalewatch._core.text import printable

__all__ = ["Endpoint", "endpoint"]


MAX_PATH = 107
"""Bytes of the path of a Unix socket on Linux."""


@attrs.frozen
class Endpoint:
    """Where to connect.

    Attributes:
        address: URL as it is shown.
        path: of the Unix socket.
    """

    address: str
    path: str


def endpoint(address: str, *, engine: str, example: str) -> Endpoint:
    """Understand an address: a URL ``unix:///path``, or a bare socket path.

    Args:
        address: as the user gave it.
        engine: kind of engine, for messages.
        example: an address that would be understood, for messages.

    Raises:
        AddressError: it cannot be understood; says what would be.
    """
    shown = printable(address)
    if not address.isprintable():
        msg = f"{shown!r} is no address of a {engine} engine: it has characters that cannot be printed"
        raise AddressError(msg)
    if address.startswith(("/", "./", "../")):
        address = "unix://" + str(Path(address).absolute())
    scheme, found, path = address.partition("://")
    if not found:
        msg = f"{shown!r} is no address of a {engine} engine: give a URL such as {example}, or the path of a socket"
        raise AddressError(msg)
    if scheme != "unix":
        msg = f"{shown!r} has the wrong scheme for a {engine} engine: use unix, as in {example}"
        raise AddressError(msg)
    if not path.startswith("/"):
        msg = f"{shown!r} names no absolute path of a socket: {example} is one"
        raise AddressError(msg)
    if len(os.fsencode(path)) > MAX_PATH:
        msg = f"{shown!r} is too long: the path of a socket has {MAX_PATH} bytes at most"
        raise AddressError(msg)
    return Endpoint(address, path)
