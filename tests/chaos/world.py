"""What chaos needs of an engine: operations on containers, faults, and the truth."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from tests.chaos.witness import Told
from whalewatch import Container, Watcher

Operation = Callable[[], Awaitable[None]]
"""Does one thing to one container; raises `World.refusals` if the engine will not, or cannot."""

Fault = Callable[[], AbstractAsyncContextManager[None]]
"""Entered, the fault is there; left, it is healed, and the engine answers again."""


class World(Protocol):
    """A real engine of our own, with a proxy in front of it, that chaos may do anything to.

    Attributes:
        name: of the engine, with its version.
        operations: by name.
        faults: by place (engine, connection), then by name; only one of a place at a time.
        heard: the last events that the engine told, in short.
        refusals: what operations raise while the engine is away, or when a container is not as they need it.
        proves_subscriptions: whether the engine says from when on it tells everything. If not, what happens while a
            subscription is made may be found by the listing that confirms a synchronisation.
        patience: seconds within which its watchers must notice that it answers no more.
        told: what the engine told, if it tells the watchers the same; else None.
        dated: whether it tells a time with everything.
        unknown: containers of whose state the engine said, with the last truth, that it does not know it.
        sole: whether the engine gives each event to one listener only, even to one that has gone. Then there is one
            watcher, behind the proxy, and only its audits find what others were given.
    """

    name: str
    heard: deque[str]
    refusals: tuple[type[Exception], ...]
    proves_subscriptions: bool
    patience: float
    dated: bool
    unknown: int
    sole: bool

    @property
    def told(self) -> Told | None: ...
    @property
    def operations(self) -> Mapping[str, Operation]: ...
    @property
    def faults(self) -> Mapping[str, Mapping[str, Fault]]: ...

    def watcher(self, *, proxied: bool) -> Watcher:
        """Make a watcher of the engine, through the proxy or not."""

    async def truth(self) -> Mapping[str, Mapping[str, Any]]:
        """Everything that is alive, by id, as the engine itself tells it."""

    def told_of_exit(self, container: Container) -> bool:
        """Whether the engine itself said that this run had exited, right or wrong."""

    async def revive(self) -> None:
        """Start an engine again that does not answer any more though nothing is broken."""

    def seen(self, container: Container) -> Mapping[str, Any]:
        """What a watcher says of a container, in the terms of `truth`."""
