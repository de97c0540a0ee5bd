"""Faults of the connection to any engine, made by a proxy that understands nothing of what passes through."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.chaos.world import Fault
    from tests.support.engines.proxy import Proxy


def connection_faults(proxy: Proxy) -> dict[str, Fault]:
    """Return the faults by name."""

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
