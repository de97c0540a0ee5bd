"""Everything that can go wrong with the fake Docker engine, at a test's command."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from whalewatch.testing.docker.events import Event
from whalewatch.testing.shared.calls import Answer, Gate
from whalewatch.testing.shared.engine_faults import EngineFaults
from whalewatch.testing.shared.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from whalewatch.testing.docker.engine import EngineState
    from whalewatch.testing.docker.http_api import Handlers
    from whalewatch.testing.docker.server import Server
    from whalewatch.testing.shared.calls import CallFaults


class DockerFaults(EngineFaults[Event]):
    """Faults of a `FakeDocker`, as its attribute ``faults``.

    Most methods return a `Fault` (or `Gate`) with ``undo()``, also a context manager that undoes it at the end
    of its block. `clear` undoes all of them at once. ``kind`` is a key of ``FakeDocker.requests``, and ``id`` limits a
    fault to calls about one container, given by id or name. Faults of calls apply in the order in which they were made.
    All methods must be called on the fake's event loop.
    """

    def __init__(self, state: EngineState, calls: CallFaults, handlers: Handlers, server: Server) -> None:
        """Start without faults."""
        super().__init__(state.events)
        self._state = state
        self._calls = calls
        self._handlers = handlers
        self._server = server

    # ---- events

    def drop(
        self, match: Callable[[Event], bool] | None = None, count: int | None = None, *, from_ring: bool = True
    ) -> Fault:
        """Lose events.

        Args:
            match: Decides, from the event as sent, whether it is meant. Default: any is.
            count: How many. Default: all, until undone.
            from_ring: Whether a replay by ``since`` lacks them too. Default: yes.
        """
        return self._keep(self._events.add_rule("forget" if from_ring else "drop", match, count=count))

    # ---- calls

    def hang(self, kind: str, id: str | None = None) -> Fault:
        """Answer calls of this kind no more; undoing it answers those that still wait."""
        return self._keep(self._calls.add(kind, id, seconds=math.inf))

    def fail(
        self,
        kind: str,
        status: int = 500,
        message: str = "the fake engine was told to fail",
        id: str | None = None,
        count: int | None = None,
    ) -> Fault:
        """Answer calls of this kind with an error, without doing what they ask for.

        Args:
            kind: The kind of call.
            status: The HTTP status.
            message: The engine's explanation.
            id: The container meant. Default: any.
            count: How many calls. Default: all, until undone.
        """
        return self._keep(self._calls.add(kind, id, answer=Answer(status, message=message), count=count))

    def slow(self, kind: str, seconds: float, id: str | None = None) -> Fault:
        """Begin calls of this kind ``seconds`` late."""
        return self._keep(self._calls.add(kind, id, seconds=seconds))

    def garble(self, kind: str, body: bytes, id: str | None = None, count: int | None = None) -> Fault:
        """Answer calls of this kind with status 200 and this body; other arguments as for `fail`."""
        return self._keep(self._calls.add(kind, id, answer=Answer(200, body), count=count))

    def halve(self, kind: str, id: str | None = None, count: int | None = None) -> Fault:
        """Cut the connection in the middle of the answers to calls of this kind; other arguments as for `fail`.

        For event streams there is `cut_streams`.
        """
        return self._keep(self._calls.add(kind, id, answer=Answer(200, half=True), count=count))

    def pause_at(self, kind: str, id: str | None = None) -> Gate:
        """Hold calls of this kind before they read or change anything.

        An event stream has a second such place, of kind "subscribe": its header has been sent, and neither has the
        ring been read nor does the engine know the subscriber.
        """
        return self._keep(self._calls.add(kind, id, gated=True))

    def pause_after(self, kind: str, id: str | None = None) -> Gate:
        """Hold calls of this kind when they have read or changed the state, before they answer.

        An event stream is held when the engine knows the subscriber, before the first event is sent.
        """
        return self._keep(self._calls.add(kind, id, gated=True, after=True))

    def stale_list(self) -> Fault:
        """Freeze what listings say; inspection still tells the truth."""
        self._handlers.stale = [container.copy() for container in self._state.containers.values()]

        def undo() -> None:
            self._handlers.stale = None

        return self._keep(Fault(undo))

    def shift_clock(self, seconds: float) -> Fault:
        """Step the engine's clock, back with a negative number; undoing it steps it the other way."""
        nanoseconds = round(seconds * 1_000_000_000)
        self._state.clock.shift(nanoseconds)
        return self._keep(Fault(lambda: self._state.clock.shift(-nanoseconds)))

    # ---- connections

    def cut_streams(self) -> None:
        """Cut all open event streams: they end in the middle of the answer, unsent events are lost."""
        for subscriber in list(self._events.subscribers):
            subscriber.abort()

    def end_streams(self) -> None:
        """End all open event streams properly, once everything has been sent."""
        for subscriber in self._events.subscribers:
            subscriber.end()

    def refuse(self) -> None:
        """Kill the engine (as with SIGKILL), until `accept` or `restart`.

        Connections and streams are cut, further ones refused, the ring is lost. Containers live on; what is done to
        them meanwhile is told by no event.
        """
        self._server.refuse()
        self._handlers.stop()

    async def accept(self) -> None:
        """Start a refusing engine again, at the same address, with the same containers and processes."""
        await self._server.listen()
        self._handlers.resume()

    async def restart(self, *, keep_containers: bool = True) -> None:
        """Kill the engine and start it again.

        Args:
            keep_containers: Whether the containers outlive it, as with Docker's live-restore. If not they are dead
                afterwards, without an event, whatever their restart policy.
        """
        self.refuse()
        if not keep_containers:
            self._state.lose_containers()
        await self.accept()

    def freeze(self) -> Fault:
        """Stop the engine (as with SIGSTOP), until `thaw`.

        Connections are accepted, nothing is answered, streams stay open and silent. What is done to containers
        meanwhile is told when it thaws.
        """
        self._handlers.freeze()
        return self._keep(Fault(self._handlers.thaw))

    def thaw(self) -> None:
        """Let a frozen engine continue."""
        self._handlers.thaw()
