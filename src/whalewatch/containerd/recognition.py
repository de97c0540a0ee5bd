"""Recognise what answers in place of the engine that a gRPC adapter expects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from whalewatch._adapter.recognition import http_engine
from whalewatch._core.errors import EngineError, ProtocolViolation, UnsupportedEngine
from whalewatch._core.text import printable
from whalewatch._grpc.connection import Connection, unimplemented
from whalewatch._http.client import Client
from whalewatch._http.dial import Dialler, Endpoint
from whalewatch._wire import cri_pb2 as cri
from whalewatch.containerd.calls import Calls
from whalewatch.containerd.reading import text

__all__ = ["recognising"]

CRI = {"runtime.v1": "use whalewatch.cri", "runtime.v1alpha2": "its CRI (runtime.v1alpha2) is too old: upgrade it"}
"""What to do about an engine that speaks the CRI, by the version of the CRI."""


@asynccontextmanager
async def recognising(connection: Connection) -> AsyncIterator[None]:
    """Recognise an engine that does not understand the first call, which is made within the block.

    Raises:
        UnsupportedEngine: it is of another kind; the message names the module that serves it.
        ProtocolViolation: it is not known.
    """
    try:
        yield
    except ProtocolViolation as error:
        reason = await _http(connection)
        if unimplemented(error):
            reason = reason or await _cri(connection) or await _containerd(connection)
        if not reason:
            raise
        raise UnsupportedEngine(connection.message(reason)) from error.__cause__


async def _http(connection: Connection) -> str:
    endpoint = Endpoint(address=connection.endpoint.address, path=connection.endpoint.path)
    client = Client(Dialler(endpoint), message=connection.message, remedy="")
    try:
        async with client.get("ping", "/_ping") as answer:
            return http_engine(answer.headers)
    except EngineError:
        return ""
    finally:
        await client.close()


async def _cri(connection: Connection) -> str:
    for service, remedy in CRI.items():
        with suppress(EngineError):
            method, request = f"/{service}.RuntimeService/Version", cri.VersionRequest()
            told = await connection.get("version", method, request, cri.VersionResponse)
            name, version = (printable(text(one), 40) for one in (told.runtime_name, told.runtime_version))
            return f"this is {name} {version}: {remedy}"
    return ""


async def _containerd(connection: Connection) -> str:
    with suppress(EngineError):
        version = printable(await Calls(connection).version(), 40)
        return (
            f"this is containerd {version} without the CRI (runtime.v1): use whalewatch.containerd; or enable its CRI "
            "plugin (see disabled_plugins in its configuration), or upgrade one that is older than 1.6"
        )
    return ""
