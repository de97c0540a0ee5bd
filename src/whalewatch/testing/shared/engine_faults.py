"""The faults that all fake engines have: those of events; and the list of all active faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from whalewatch.testing.shared.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from whalewatch.testing.shared.event_bus import EventBus

_E = TypeVar("_E")
_F = TypeVar("_F", bound=Fault)


class EngineFaults(Generic[_E]):
    """The faults of events, and the list of all active faults."""

    def __init__(self, events: EventBus[_E, Any]) -> None:
        """Start without faults."""
        self._events = events
        self._faults: list[Fault] = []

    def _keep(self, fault: _F) -> _F:
        self._faults = [known for known in self._faults if known.active]
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Undo all active faults, the latest first. If the engine refuses connections, call `accept` as well."""
        for fault in reversed(self._faults):
            fault.undo()
        self._faults.clear()

    # ---- events

    def drop(self, match: Callable[[_E], bool] | None = None, count: int | None = None) -> Fault:
        """Lose events.

        Args:
            match: Returns whether an event is to be lost. Default: every event is.
            count: The number of events to lose. Default: all, until the fault is undone.
        """
        return self._keep(self._events.add_rule("drop", match, count=count))

    def duplicate(self, match: Callable[[_E], bool] | None = None, count: int | None = None) -> Fault:
        """Deliver events twice; arguments as for `drop`."""
        return self._keep(self._events.add_rule("duplicate", match, count=count))

    def delay(self, seconds: float, match: Callable[[_E], bool] | None = None, count: int | None = None) -> Fault:
        """Deliver events ``seconds`` late, with their true time stamps; other arguments as for `drop`.

        They come late only on streams that are open when they happen: if the engine has a replay, it has them at once.
        Undoing the fault delivers at once the events that are still held.
        """
        return self._keep(self._events.add_rule("delay", match, count=count, seconds=seconds))

    def reorder(self, window: int, match: Callable[[_E], bool] | None = None) -> Fault:
        """Deliver groups of ``window`` events, each in reversed order; undoing it also delivers an incomplete group."""
        return self._keep(self._events.add_rule("reorder", match, window=window))

    def silently(self) -> Fault:
        """Make operations change the state without any event, as if they had happened while the engine was down."""
        self._events.silent += 1

        def undo() -> None:
            self._events.silent -= 1

        return self._keep(Fault(undo))
