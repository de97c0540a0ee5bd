"""The one writer: tracks the state of every container, and publishes what the ordering rules conclude.

Await-free and single-threaded: whatever happens to the picture happens in one call of one method here. During a
synchronisation the states move and nothing is published; its end publishes everything that came of it as one revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

import attrs

from whalewatch._core.audit import Audit
from whalewatch._core.diff import Change, differences
from whalewatch._core.engine import Dead, Listing, Signal, SignalType
from whalewatch._core.feed import Feed
from whalewatch._core.model import Container, ContainerEvent, EventType, Origin
from whalewatch._core.reconcile import (
    ContainerState,
    InspectReason,
    apply_signal,
    inspect_failed,
    inspect_finished,
    inspect_started,
    request_inspect,
)
from whalewatch._core.status import Counters

__all__ = ["Tracker"]

UNKNOWN = ContainerState()

REMEMBERED = 1024
"""Containers that have exited of which the time of the newest signal is remembered: what comes later and is older than
that must not be taken for news of the next run."""


class Tracker:
    """States of all containers, and the published picture. It outlives connections: each opens and closes it.

    The ordering argument of a synchronisation: the engine's stream is open before the listing begins, so whatever
    happens after the listing was made is reported. What is reported *before* an inspect begins is contained in it; what
    is reported *while* it is under way asks for another. So when every container that was listed or reported has been
    inspected, what is not in the picture yet is on the stream.

    Args:
        feed: where to publish.
        now: clock, in aware UTC.
        counters: of the watch.

    Attributes:
        audit: what audits go by.
    """

    def __init__(self, feed: Feed, now: Callable[[], datetime], counters: Counters) -> None:
        self.audit = Audit(feed)
        self._feed = feed
        self._now = now
        self._counters = counters
        self._request: Callable[[str, InspectReason], None] | None = None
        self._states: dict[str, ContainerState] = {}
        self._exited: dict[str, datetime] = {}
        self._exit_codes: dict[str, int | None] = {}  # read during a synchronisation, which is still to publish them
        self._synced = False
        self._since: datetime | None = None

    # The connection

    def open(self, request: Callable[[str, InspectReason], None]) -> None:
        """A connection is made: nothing is known for certain until a synchronisation has ended.

        Args:
            request: called when a container is to be inspected; `start_inspect` then tells whether it still is.
        """
        self._request = request
        self.audit.reset(self._states)

    def close(self) -> None:
        """The connection has ended: the picture stays, but is no longer known to be true."""
        self._request = None
        self._exited.clear()
        self._exit_codes.clear()
        self._synced = False
        self._since = None
        picture = self._feed.snapshot
        self._states = {container.id: ContainerState(container) for container in picture}
        if picture.synced:
            self._feed.publish(attrs.evolve(picture, synced=False, as_of=self._now()))

    def subscribed(self, since: datetime | None) -> None:
        """A stream is open.

        Args:
            since: engine time from which on it reports everything; what it replays from before may be stale.
        """
        if not self._synced:
            self._since = since

    def replayed(self) -> None:
        """All that a stream replays has come: earlier times are those of a clock that was set back."""
        self._since = None

    # Signals and inspects

    def apply_signal(self, signal: Signal) -> None:
        """Apply one signal from the engine's stream."""
        id = signal.id
        known = self._state(id)
        state, change = apply_signal(known, signal, synced=self._synced, since=self._since)
        if state is known and not self._synced:
            return  # stale, and no reason to doubt the listing
        if state.origin is Origin.ENGINE:
            self.audit.suspects.discard(id)  # what the engine has reported is read for that, and no more for an audit
        if change or not state.at_rest:
            self.audit.touch(id)  # a change of an untracked container is ignored: an audit must still check it
        self._store(id, state)
        self._publish((change,) if change else ())

    def start_inspect(self, id: str) -> bool:
        """Begin to inspect a container; return False if that is not wanted any more, or under way already."""
        state = self._state(id)
        if not state.wanted or state.inspecting is not None:
            return False
        self._states[id] = inspect_started(state)
        return True

    def surprising(self, id: str, reading: Container | Dead | None) -> bool:
        """Whether an inspect for an audit has read what neither is in the picture nor was reported meanwhile."""
        state = self._states[id]
        if id not in self.audit.suspects:
            return False
        if isinstance(reading, Container):
            return state.container != reading
        exits = (signal.type is SignalType.EXITED for signal in state.kept or ())
        return state.container is not None and not any(exits)

    def inspect_finished(self, id: str, reading: Container | Dead | None) -> None:
        """Take what an inspect has read; None if nothing is known of the container."""
        former = self._states[id]
        state, changes = inspect_finished(former, reading, synced=self._synced, since=self._since)
        suspect = self.audit.inspected(id)
        self._store(id, state)
        asked = former.inspecting
        if suspect and asked is not None and asked.origin is Origin.RESYNC:
            self._counters.drift += any(change.origin is Origin.RESYNC for change in changes)
        if not self._synced and isinstance(reading, Dead) and former.container is self._feed.snapshot._get(id):
            self._exit_codes[id] = next((change.exit_code for change in changes), None)
        self._publish(changes)
        if self._synced and not changes and isinstance(reading, Container) and former.container == reading:
            self._repack(reading)

    def inspect_failed(self, id: str) -> None:
        """An inspect failed; it stays wanted: at once if something was reported meanwhile, else when it is retried."""
        former = self._states[id]
        state, changes = inspect_failed(former, synced=self._synced, since=self._since)
        self._store(id, state, request=former.kept != ())
        self._publish(changes)

    # Synchronisation and audit

    def listed(self, listing: Listing) -> set[str]:
        """Take the listing of a synchronisation and return what must be inspected before its end.

        A container of which the stream reported something meanwhile is inspected whatever the listing says.
        """
        awaited = {id for id, state in self._states.items() if not state.at_rest}
        reported = self.audit.touched | awaited
        for id, listed in listing.containers.items():
            if id in reported:
                continue
            if listed.container is not None:
                self._store(id, ContainerState.of(listed.container))
            else:
                awaited.add(id)
                self._inspect(id, InspectReason.DECIDES, self._found)
        for id in [id for id, state in self._states.items() if state.container and id not in listing.containers]:
            if id in reported or listing.scope(id) in listing.failed:
                continue
            if listing.absence_is_death:
                self._store(id, UNKNOWN)
            else:
                awaited.add(id)
                self._inspect(id, InspectReason.DECIDES, self._found)
        return awaited

    def finish_sync(self) -> None:
        """End a synchronisation: publish all that came of it as one revision."""
        before = self._feed.snapshot
        self._synced = True
        codes, self._exit_codes = self._exit_codes, {}
        changes = [
            Change(before._get(id), state.container, self._found, None, codes.get(id))
            for id, state in self._states.items()
            if state.container is not before._get(id)
        ]
        changes += [Change(c, None, self._found, None, codes.get(c.id)) for c in before if c.id not in self._states]
        self._commit(changes)

    def suspect(self, ids: Iterable[str], reason: InspectReason = InspectReason.DECIDES) -> None:
        """Inspect containers for an audit: those that it found to differ, or some that it has no reason to doubt."""
        for id in ids:
            if self._at_rest(id):
                self.audit.suspects.add(id)
                self._inspect(id, reason, Origin.RESYNC)

    def reread(self, among: Iterable[str]) -> None:
        """Inspect those of these containers that were not read for the longest time, and are not about to be read."""
        self.suspect(self.audit.longest_unread({id for id in among if self._at_rest(id)}), InspectReason.CHANGED)

    @property
    def _found(self) -> Origin:
        """How a synchronisation comes to know of a container."""
        return Origin.RESYNC if self._feed.was_synced else Origin.SYNC

    def _state(self, id: str) -> ContainerState:
        return self._states.get(id) or ContainerState(newest=self._exited.get(id))

    def _at_rest(self, id: str) -> bool:
        return self._state(id).at_rest

    def _inspect(self, id: str, reason: InspectReason, origin: Origin) -> None:
        self._store(id, request_inspect(self._state(id), reason, origin))

    def _store(self, id: str, state: ContainerState, *, request: bool = True) -> None:
        if state.idle:
            self._states.pop(id, None)
            self.audit.remove(id)
            if state.newest is not None:
                self._exited[id] = state.newest
                if len(self._exited) > REMEMBERED:
                    del self._exited[next(iter(self._exited))]
            return
        self._states[id] = state
        if state.container is not None:
            self.audit.add(id)
        if request and state.wanted and state.inspecting is None and self._request is not None:
            self._request(id, state.wanted)

    # Publishing

    def _publish(self, changes: Iterable[Change]) -> None:
        if not self._synced:
            return
        for change in changes:
            self._commit([change])

    def _commit(self, changes: list[Change]) -> None:
        """Publish changes as one revision: their events, EXITED first, and the picture to which they lead."""
        found = [(change, *event) for change in changes for event in differences(change.before, change.after)]
        found.sort(key=lambda one: one[1] is not EventType.EXITED)
        now = self._now()
        former = self._feed.snapshot
        revision = former.revision + bool(found)
        events = tuple(
            ContainerEvent(
                type=type_,
                container=container,
                previous=previous,
                timestamp=change.timestamp or now,
                origin=change.origin,
                exit_code=change.exit_code if type_ is EventType.EXITED else None,
                revision=revision,
                last=position == len(found),
            )
            for position, (change, type_, container, previous) in enumerate(found, start=1)
        )
        pairs = [(change.before, change.after) for change in changes]
        self._feed.publish(former._changed(pairs, revision=revision, as_of=now, synced=True), events)

    def _repack(self, reading: Container) -> None:
        """Carry a new rucksack into the picture: neither an event nor a revision."""
        former = self._feed.snapshot
        known = former._get(reading.id)
        if known is not None and known.rucksack is not reading.rucksack:
            pairs = [(known, reading)]
            self._feed.publish(former._changed(pairs, revision=former.revision, as_of=self._now(), synced=True))
