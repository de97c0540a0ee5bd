"""The faults of single calls to a fake engine: they hang, fail, are slow, garbled, or held."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from whalewatch.testing.shared.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


@frozen
class Answer:
    """A false answer to a call: a status of its protocol; with ``half``, the first half of the true answer."""

    status: int
    body: bytes | None = None
    message: str = ""
    half: bool = False


class Gate(Fault):
    """Holds calls until they are released; as a context manager, it releases them at the end of the block.

    Example::

        with docker.faults.pause_at("inspect") as gate:
            docker.run("web")
            await gate.reached()
            docker.exit("web")
    """

    def __init__(self, undo: Callable[[], None]) -> None:
        """Hold calls from now on."""
        super().__init__(undo)
        self._held: list[asyncio.Future[None]] = []
        self._arrivals: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def held(self) -> int:
        """The number of calls held at this moment."""
        return len(self._held)

    async def reached(self, count: int = 1) -> None:
        """Wait until at least ``count`` calls are held at the same moment."""
        if len(self._held) >= count:
            return
        arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals.append((count, arrival))
        await arrival

    def step(self, count: int = 1) -> None:
        """Release the first ``count`` calls that are held; other calls are held as before."""
        released, self._held = self._held[:count], self._held[count:]
        for call in released:
            if not call.done():
                call.set_result(None)

    def release(self) -> None:
        """Release all calls, and hold none from now on."""
        self.undo()

    def undo(self) -> None:
        """Release all calls, and hold none from now on."""
        super().undo()
        self.step(len(self._held))

    async def pass_through(self) -> None:
        """Hold one call until it is released; only the fake engine calls this."""
        call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append(call)
        for count, arrival in self._arrivals:
            if len(self._held) >= count and not arrival.done():
                arrival.set_result(None)
        self._arrivals = [(count, arrival) for count, arrival in self._arrivals if not arrival.done()]
        try:
            await call
        finally:
            with suppress(ValueError):
                self._held.remove(call)


@define(eq=False)
class _Rule:
    kind: str
    target: str | None
    gate: Gate | None = None
    after: bool = False
    seconds: float = 0.0
    answer: Answer | None = None
    left: int | None = None
    undone: asyncio.Event = field(factory=asyncio.Event)

    def applies_to(self, kind: str, targets: Collection[str], *, after: bool) -> bool:
        return (
            kind == self.kind
            and after == self.after
            and self.left != 0
            and (self.target is None or self.target in targets)
        )


class CallFaults:
    """The active faults of single calls, in the order in which they were made."""

    def __init__(self, kinds: Collection[str]) -> None:
        """Start without faults; ``kinds`` are all kinds of calls."""
        self._kinds = kinds
        self._rules: list[_Rule] = []

    def add(
        self,
        kind: str,
        target: str | None,
        *,
        after: bool = False,
        gated: bool = False,
        seconds: float = 0.0,
        answer: Answer | None = None,
        count: int | None = None,
    ) -> Gate:
        """Add a fault for calls of this kind; if a target is given, only for calls about it.

        Raises:
            ValueError: There is no such kind of call.
        """
        if kind not in self._kinds:
            raise ValueError(f"no kind of call is named {kind!r}: {', '.join(sorted(self._kinds))}")
        rule = _Rule(kind, target, None, after, seconds, answer, count)

        def undo() -> None:
            self._rules.remove(rule)
            rule.undone.set()

        gate = Gate(undo)
        if gated:
            rule.gate = gate
        self._rules.append(rule)
        return gate

    async def before(self, kind: str, targets: Collection[str]) -> Answer | None:
        """Apply the faults that come before the state is read; an answer that is returned replaces the true one."""
        return await self._apply(kind, targets, after=False)

    async def after(self, kind: str, targets: Collection[str]) -> None:
        """Apply the faults that come between reading the state and answering."""
        await self._apply(kind, targets, after=True)

    async def _apply(self, kind: str, targets: Collection[str], *, after: bool) -> Answer | None:
        for rule in list(self._rules):
            if rule not in self._rules or not rule.applies_to(kind, targets, after=after):
                continue
            if rule.left is not None:
                rule.left -= 1
            if rule.gate is not None:
                await rule.gate.pass_through()
            elif rule.answer is not None:
                return rule.answer
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if rule.seconds == math.inf else rule.seconds):
                        await rule.undone.wait()
        return None
