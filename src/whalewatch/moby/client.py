"""A client of aiodocker that reaches the engine as the watcher does. Only this module loads aiodocker and aiohttp."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import aiodocker
import aiohttp

from whalewatch._http.dial import Dialler, Program

__all__ = ["close", "make"]


def make(dialler: Dialler, version: str) -> aiodocker.Docker:
    """Make a client for this version of the Engine API, such as "v1.45". Must be called in a running event loop."""
    connector = Connector(dialler)
    session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
    return aiodocker.Docker(dialler.endpoint.url, connector, session, api_version=version)


async def close(client: aiodocker.Docker) -> None:
    """Close a client with all its connections."""
    await client.close()
    assert isinstance(client.connector, Connector)
    await client.connector.abort()
    await client.session.close()


class Connector(aiohttp.BaseConnector):
    """Makes connections of aiohttp's to one engine, as many as the application wants; all to the watcher's peer."""

    def __init__(self, dialler: Dialler) -> None:
        super().__init__(limit=0)
        self._dialler = dialler
        # The keys are the protocols, because not every event loop allows weak references to transports.
        self._made: WeakKeyDictionary[asyncio.BaseProtocol, tuple[asyncio.Transport, socket.socket]]
        self._made = WeakKeyDictionary()
        self._programs: set[Program] = set()

    async def _create_connection(self, *_: Any, **__: Any) -> Any:
        endpoint = self._dialler.endpoint
        try:
            peer, program = await self._dialler.dial()
            if program is not None:
                self._programs.add(program)
                program.exited.add_done_callback(lambda _: self._programs.discard(program))
            try:
                transport, protocol = await asyncio.get_running_loop().create_connection(
                    self._factory, sock=peer, ssl=endpoint.tls, server_hostname=endpoint.host if endpoint.tls else None
                )
            except BaseException:
                peer.close()
                if program is not None:
                    program.end()
                raise
        except OSError as error:
            raise aiohttp.ClientConnectionError(str(error)) from error
        self._made[protocol] = transport, peer
        return protocol

    async def abort(self) -> None:
        """Close all connections at once: over TLS, aiohttp would wait for the engine to agree, and it may hang."""
        for transport, peer in [*self._made.values()]:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)  # also for processes that have inherited it by a fork
            transport.abort()
        for program in (programs := [*self._programs]):
            program.end()
        for program in programs:
            await program.ended()
