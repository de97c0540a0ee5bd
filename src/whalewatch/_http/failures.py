"""What goes wrong with a request, as an `EngineError` that says what can be done about it."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable

import httptools

from whalewatch._adapter.recognition import GRPC
from whalewatch._adapter.unix import unreachable
from whalewatch._core.errors import EngineError, EngineTimeout, EngineUnavailable, ProtocolViolation, UnsupportedEngine
from whalewatch._core.text import printable
from whalewatch._http.dial import Endpoint, StrangerError
from whalewatch._http.tls import explained

__all__ = ["NOT_HTTP", "GrpcError", "ViolationError", "translated"]

NOT_HTTP = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class ViolationError(Exception):
    """What is wrong with an answer; it never leaves this package."""


class GrpcError(Exception):
    """The server speaks HTTP/2 without being asked to, as those of gRPC do; it never leaves this package."""


def translated(
    error: Exception, what: str, endpoint: Endpoint, *, message: Callable[[str], str], remedy: str
) -> EngineError:
    """Return the error for what went wrong with a request.

    Args:
        error: what went wrong.
        what: what was asked for.
        endpoint: where the server is.
        message: names the server and its address in front of a text.
        remedy: what to do if the permission to connect is missing.
    """
    shown = printable(error) or type(error).__name__
    if isinstance(error, ViolationError):
        return ProtocolViolation(message(f"the answer to {what} {shown}"))
    if isinstance(error, GrpcError):
        return UnsupportedEngine(message(GRPC))
    if isinstance(error, NOT_HTTP):
        return ProtocolViolation(message(f"the answer to {what} is not HTTP as expected ({shown})"))
    if endpoint.path and isinstance(error, BlockingIOError):
        return EngineTimeout(message("it does not accept connections, and too many wait for it: is it hung?"))
    reason = str(error) if isinstance(error, StrangerError) else _reason(error, endpoint, remedy)
    return EngineUnavailable(message(reason or f"connection lost during {what} ({shown})"))


def _reason(error: Exception, endpoint: Endpoint, remedy: str) -> str:
    """Return why the connection fails; "" if nothing is known about it."""
    if isinstance(error, ssl.SSLError):
        return explained(error)
    if endpoint.path and isinstance(error, OSError) and (known := unreachable(error, endpoint.path, remedy)):
        return known
    if isinstance(error, socket.gaierror):
        return f"the name {endpoint.host} does not resolve ({error.strerror}): correct the address, or DNS"
    if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
        return "connection refused: the engine is not running"
    if endpoint.command and isinstance(error, FileNotFoundError):
        return f"there is no program {endpoint.command[0]} here: install it"
    return ""
