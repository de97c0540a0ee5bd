"""The faults of the fake Docker engine, which a test can cause."""

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
    All methods must be called in the event loop of the fake.
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
            match: Returns whether an event, as it is sent, is to be lost. Default: every event is.
            count: The number of events to lose. Default: all, until the fault is undone.
            from_ring: Whether they are missing in a replay (``since``) too. Default: yes.
        """
        return self._keep(self._events.add_rule("forget" if from_ring else "drop", match, count=count))

    # ---- calls

    def hang(self, kind: str, id: str | None = None) -> Fault:
        """Do not answer calls of this kind; undoing it answers those that still wait."""
        return self._keep(self._calls.add(kind, id, seconds=math.inf))

    def fail(
        self,
        kind: str,
        status: int = 500,
        message: str = "the fake engine was told to fail",
        id: str | None = None,
        count: int | None = None,
    ) -> Fault:
        """Answer calls of this kind with an error, without executing them.

        Args:
            kind: The kind of call.
            status: The HTTP status.
            message: The engine's explanation.
            id: Only calls about this container. Default: any.
            count: The number of calls. Default: all, until the fault is undone.
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

        For event streams use `cut_streams`.
        """
        return self._keep(self._calls.add(kind, id, answer=Answer(200, half=True), count=count))

    def pause_at(self, kind: str, id: str | None = None) -> Gate:
        """Hold calls of this kind before they read or change anything.

        An event stream can also be held with kind "subscribe": then its header was sent, but the ring was not read yet,
        and the engine does not know the subscriber.
        """
        return self._keep(self._calls.add(kind, id, gated=True))

    def pause_after(self, kind: str, id: str | None = None) -> Gate:
        """Hold calls of this kind after they have read or changed the state, before they answer.

        An event stream is held after the engine knows the subscriber, before the first event is sent.
        """
        return self._keep(self._calls.add(kind, id, gated=True, after=True))

    def stale_list(self) -> Fault:
        """Answer all listings with the current containers, even if they change; inspects still show the changes."""
        self._handlers.stale = [container.copy() for container in self._state.containers.values()]

        def undo() -> None:
            self._handlers.stale = None

        return self._keep(Fault(undo))

    def shift_clock(self, seconds: float) -> Fault:
        """Set the engine's clock forward, or back with a negative number; undoing it reverses the step."""
        nanoseconds = round(seconds * 1_000_000_000)
        self._state.clock.shift(nanoseconds)
        return self._keep(Fault(lambda: self._state.clock.shift(-nanoseconds)))

    # ---- connections

    def cut_streams(self) -> None:
        """Cut all open event streams: they end in the middle of the answer, and unsent events are lost."""
        for subscriber in list(self._events.subscribers):
            subscriber.abort()

    def end_streams(self) -> None:
        """End all open event streams properly, after everything has been sent."""
        for subscriber in self._events.subscribers:
            subscriber.end()

    def refuse(self) -> None:
        """Kill the engine (as with SIGKILL), until `accept` or `restart`.

        Connections and streams are cut, new ones are refused, and the ring is lost. Containers stay alive; changes to
        them meanwhile cause no event.
        """
        self._server.refuse()
        self._handlers.stop()

    async def accept(self) -> None:
        """Start the engine again after `refuse`, at the same address, with the same containers and processes."""
        await self._server.listen()
        self._handlers.resume()

    async def restart(self, *, keep_containers: bool = True) -> None:
        """Kill the engine and start it again.

        Args:
            keep_containers: Whether the containers stay alive, as with Docker's live-restore. If not, they are dead
                afterwards, without an event, whatever their restart policy.
        """
        self.refuse()
        if not keep_containers:
            self._state.lose_containers()
        await self.accept()

    def freeze(self) -> Fault:
        """Stop the engine (as with SIGSTOP), until `thaw`.

        Connections are accepted, nothing is answered, streams stay open and silent. Events of changes meanwhile are
        sent after `thaw`.
        """
        self._handlers.freeze()
        return self._keep(Fault(self._handlers.thaw))

    def thaw(self) -> None:
        """Let a frozen engine continue."""
        self._handlers.thaw()
