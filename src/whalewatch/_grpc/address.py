"""The address of a gRPC engine, as users give it."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from whalewatch._adapter.unix import MAX_PATH
from whalewatch._core.errors import AddressError
from whalewatch._core.text import printable

__all__ = ["Endpoint", "endpoint"]


TTRPC = ".ttrpc"
"""What containerd appends to the path of its socket for the path of another one, which does not answer to gRPC."""


@attrs.frozen
class Endpoint:
    """Where to connect.

    Attributes:
        address: URL of the engine, as it is shown.
        path: path of the Unix socket.
    """

    address: str
    path: str


def endpoint(address: str, *, engine: str, example: str) -> Endpoint:
    """Read an address: a URL ``unix:///path``, or the path of a socket.

    Args:
        address: the address that the user gave.
        engine: kind of engine, for messages.
        example: a valid address, for messages.

    Raises:
        AddressError: the address is not valid; the message gives a valid one.
    """
    shown = printable(address)
    if address.startswith(("/", "./", "../")):
        try:
            address = f"unix://{Path(address).absolute()}"
        except OSError as error:
            msg = f"{shown!r} is not an address: this folder does not exist any more ({printable(error)})"
            raise AddressError(msg) from error
    if not address.isprintable():
        msg = f"{printable(address)!r} is not an address of a {engine} engine: it has characters that cannot be printed"
        raise AddressError(msg)
    scheme, found, path = address.partition("://")
    if not found:
        msg = f"{shown!r} is not an address of a {engine} engine: give a URL such as {example}, or the path of a socket"
        raise AddressError(msg)
    if scheme != "unix":
        msg = f"{shown!r} has the wrong scheme for a {engine} engine: use unix, as in {example}"
        raise AddressError(msg)
    if not path.startswith("/"):
        msg = f"{shown!r} has no absolute path of a socket: give an address such as {example}"
        raise AddressError(msg)
    if path.endswith(TTRPC):
        grpc = address.removesuffix(TTRPC)
        msg = f"{shown!r} is the socket at which containerd speaks ttrpc to its shims: use {grpc}, where it speaks gRPC"
        raise AddressError(msg)
    if len(os.fsencode(path)) > MAX_PATH:
        msg = f"{shown!r} is too long: the path of a socket has {MAX_PATH} bytes at most"
        raise AddressError(msg)
    return Endpoint(address, path)
