"""Faults of any engine, and of the connection to it: a proxy that understands nothing of what passes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.chaos.world import Fault
from tests.support.engines.proxy import Proxy

KILLING = "engine killed, and processes of containers while it was"


@asynccontextmanager
async def during(begin: Callable[[], object], end: Callable[[], object]) -> AsyncIterator[None]:
    """A fault that is begun by one call, which may block, and ended by another."""
    await asyncio.to_thread(begin)
    try:
        yield
    finally:
        end()


def connection_faults(proxy: Proxy) -> dict[str, Fault]:

    @asynccontextmanager
    async def cut() -> AsyncIterator[None]:
        await proxy.cut()
        yield
        await proxy.cut()

    @asynccontextmanager
    async def stalled() -> AsyncIterator[None]:
        proxy.stall()
        try:
            yield
        finally:
            proxy.flow()

    @asynccontextmanager
    async def down(*, missing: bool) -> AsyncIterator[None]:
        await proxy.down(missing=missing)
        try:
            yield
        finally:
            await proxy.up()

    return {
        "connections cut": cut,
        "connections half open": stalled,
        "connections refused": lambda: down(missing=False),
        "socket gone and replaced": lambda: down(missing=True),
    }
