"""The only writer of the picture: tracks the state of every container, and publishes what the ordering rules conclude.

Nothing here awaits, and only one thread calls it: each change of the picture is made by one call of one method. During
a synchronisation the states change, and only exits that the kernel tells are published; its end publishes all changes
as one revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import chain, islice

import attrs

from whalewatch._core.audit import Audit
from whalewatch._core.diff import Change, Difference, differences_of
from whalewatch._core.endings import Endings, Events
from whalewatch._core.engine import MAX_CONTAINERS, Dead, Listing, Signal, SignalType
from whalewatch._core.feed import Feed
from whalewatch._core.kernel import Kernel
from whalewatch._core.model import Container, Origin, same_process, same_run
from whalewatch._core.reconcile import (
    abandoned,
    apply_signal,
    inspect_failed,
    inspect_finished,
    inspect_started,
    is_ahead,
    process_exited,
)
from whalewatch._core.runs import Reading
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.state import ContainerState, InspectReason, request_inspect
from whalewatch._core.status import Counters
from whalewatch._core.turns import Turn

__all__ = ["MAX_UNRESOLVED", "Tracker"]

IDLE = ContainerState()

MAX_EXITED = 1024
"""Exited containers of which it is remembered what was told last: a later signal that is older than that is not about
the next run of the container."""

PART = 128
"""Containers that are added to the next picture at a time."""

MAX_UNRESOLVED = 10_000
"""Most containers that only signals have named, and that are still to be inspected. Signals about more of them count as
lost: audits find what is alive. An engine that starts so many within moments, or answers no inspect, is at fault."""


class Tracker:
    """The states of all containers. There is one for a watcher; each connection opens and closes it.

    What may be work on thousands of containers yields where other tasks should have their turn.

    Why a synchronisation is complete: the engine's stream is open before the listing begins, so everything that happens
    after the listing was made is reported. An inspect contains what is reported *before* it begins; what is reported
    *while* it is under way asks for another inspect. So when every container that was listed or reported has been
    inspected, any change that is not in the picture yet is still to come on the stream.

    Why the number of states is bounded, and the picture becomes right all the same: signals about a container that has
    a state are always applied. So nothing is lost of a container that is known: neither its exit nor what an inspect
    waits for. A signal about another one, if it would need a state, is refused once there are too many of them; then it
    counts as lost, and the audit that follows lists what is alive *after* that signal. If the container is alive, it is
    listed, differs from the picture, and is inspected; if not, nothing has to be done. What an audit cannot take in
    either, for lack of room, the next one finds. As soon as the engine answers inspects, each answer makes room.

    Args:
        feed: where to publish.
        now: clock, returns aware UTC.
        counters: counters of the watch.
        max_containers: most containers of a picture.
        kernel: watches the processes of containers; None does without it.

    Attributes:
        audit: which containers an audit must check.
        endings: the last exits.
        max_containers: most containers of a picture, and of a listing.
    """

    def __init__(
        self,
        feed: Feed,
        now: Callable[[], datetime],
        counters: Counters,
        max_containers: int = MAX_CONTAINERS,
        kernel: Kernel | None = None,
    ) -> None:
        self.audit = Audit(feed)
        self.max_containers = max_containers
        self._feed = feed
        self._now = now
        self._counters = counters
        self._kernel = kernel
        if kernel is not None:
            kernel.exited = self.process_exited
        self._request: Callable[[str, InspectReason], None] | None = None
        self._states: dict[str, ContainerState] = {}
        self._reported: set[str] = set()  # those of the states that only signals have named: nothing was read yet
        self._exited: dict[str, ContainerState] = {}
        self._endings = Endings()
        self.endings = self._endings.last
        self._exit_codes: dict[str, int | None] = {}  # read during a synchronisation, and published at its end
        self._synced = False
        self._stored: dict[str, None] = {}  # during a synchronisation: whose state may differ from the picture
        self._since: datetime | None = None

    def open(self, request: Callable[[str, InspectReason], None]) -> Iterator[None]:
        """Open the tracker for a new connection: nothing is certain until a synchronisation has ended.

        Args:
            request: called when a container is to be inspected; before the inspect, call `start_inspect`.
        """
        picture, states, turn = self._feed.snapshot, dict[str, ContainerState](), Turn()
        for container in picture:
            states[container.id] = ContainerState(container)
            if turn.is_over:
                yield
                turn = Turn()
        for id in states.keys() - self._feed.snapshot._by_id.keys():  # the kernel has told their exits meanwhile
            del states[id]
        self._states, self._request = states, request
        if self._kernel is not None:
            self._kernel.open()
        self.audit.reset(self._states)

    def close(self) -> None:
        """Close the tracker at the end of a connection: the picture stays, but is marked as not synced."""
        for state in self._states.values():
            if state.container is None:
                self._publish(abandoned(state, since=self._since))
        self._states, self._request = {}, None
        for kept in (self._stored, self._exited, self._exit_codes, self._reported, self._endings.unobserved):
            kept.clear()
        self._synced, self._since = False, None
        if (picture := self._feed.snapshot).synced:
            self._feed.publish(attrs.evolve(picture, synced=False, as_of=self._now()))

    def stream_opened(self, since: datetime | None) -> None:
        """Record that a stream is open.

        Args:
            since: engine time; all that happens after it is reported. What is replayed from before may be out of date.
        """
        if not self._synced:
            self._since = since

    def replay_finished(self) -> None:
        """Record that a stream replays nothing any more: from now on an earlier time means a clock was set back."""
        self._since = None

    # Signals and inspects

    def apply_signal(self, signal: Signal) -> bool:
        """Apply one signal from the engine's stream; return False if there is no room for another container."""
        id = signal.id
        known = self._state(id)
        if (heard := self._endings.hear(known, signal)) is None:
            return True
        signal = heard
        state, change = apply_signal(known, signal, synced=self._synced, since=self._since)
        if state is known and not self._synced:
            return True  # replayed, and no reason to doubt the listing
        if id not in self._states and not state.idle:
            if not self._has_room():
                return False
            self._reported.add(id)
        if state.origin is Origin.ENGINE:
            self.audit.suspects.discard(id)  # the inspect is now for the engine's signal, not for an audit
        if change or not state.at_rest:
            self.audit.touch(id)  # not for an ignored change of an untracked container: an audit must still check it
        self._store(id, state)
        self._publish((change,) if change else ())
        if self._synced and change is None and signal.container is not None and state.container is signal.container:
            self._repack(signal.container)
        return True

    def _has_room(self) -> bool:
        """Return whether there is room for a container that only a signal has named."""
        return (
            len(self._reported) < MAX_UNRESOLVED
            and len(self._states) < self.max_containers
            and len(self.audit.touched) < self.max_containers + MAX_UNRESOLVED
        )

    def start_inspect(self, id: str) -> bool:
        """Begin an inspect of a container; return False if none is wanted any more, or one is under way already."""
        state = self._state(id)
        if not state.wanted or state.inspecting is not None:
            return False
        self._states[id] = inspect_started(state)
        return True

    def found_unreported(self, id: str, reading: Reading) -> bool:
        """Return whether an inspect found a change that the engine is about to report, if it reports it at all.

        That is any change for an audit, and otherwise the end of a run whose start was reported.
        """
        state, reading = self._states[id], self._up_to_date(id, reading)
        if self._synced and is_ahead(state, reading, since=self._since):
            return True
        if id not in self.audit.suspects:
            return False
        if isinstance(reading, Container):
            return state.container != reading
        return state.container is not None and not any(s.type is SignalType.EXITED for s in state.kept or ())

    def inspect_finished(self, id: str, reading: Reading) -> bool:
        """Apply the reading of an inspect; the reading is None if the engine does not know the container.

        Return whether it is drift: a change that only an audit has found.
        """
        former, reading = self._states[id], self._up_to_date(id, reading)
        if isinstance(reading, Dead) and former.container is None:
            self.endings.amend(id, reading)
        state, changes = inspect_finished(former, reading, synced=self._synced, since=self._since)
        suspect = self.audit.finish_inspect(id)
        self._store(id, state)
        asked = former.inspecting.origin if former.inspecting else None
        drift = suspect and asked is Origin.RESYNC and any(change.origin is Origin.RESYNC for change in changes)
        self._counters.drift += drift
        published = self._feed.snapshot._get(id)
        ended = former.container if isinstance(reading, Dead) and not self._synced else None
        if ended is not None and published is not None and same_run(ended, published):
            self._exit_codes[id] = next((change.exit_code for change in changes), None)
        self._publish(changes)
        if self._synced and not changes and isinstance(reading, Container) and former.container == reading:
            self._repack(reading)
        return drift

    def inspect_failed(self, id: str) -> None:
        """Record that an inspect failed. It stays wanted: at once if a signal came meanwhile, else at the retry."""
        former = self._states[id]
        state, changes = inspect_failed(former, synced=self._synced, since=self._since)
        self._store(id, state, request=former.kept != ())
        self._publish(changes)

    def process_exited(self, run: Container, code: int | None, noticed: datetime) -> bool:
        """Apply an exit that the kernel tells, also between connections; return whether it was not known yet."""
        id, published, state = run.id, self._feed.snapshot._get(run.id), self._state(run.id)
        change = Change(published, None, Origin.KERNEL, noticed, code)
        if ends := state.container is not None and same_process(state.container, run):
            state, change = process_exited(state, code, noticed, synced=self._synced)
        if not self._synced:
            self._stored[id] = None
            self._endings.unobserved.add(id)  # and the listing of a synchronisation may contain the next run
        elif ends:
            self.audit.touch(id)
        if news := published is not None and same_process(published, run):
            read = self._exit_codes.pop(id, None) if change.exit_code is None else change.exit_code
            self._publish_one(attrs.evolve(change, before=published, exit_code=read))
        if ends:
            self._store(id, state if self._request is not None else IDLE)
        return news

    def _up_to_date(self, id: str, reading: Reading) -> Reading:
        """Return a reading; if it shows a run that has ended, and that is not known any more, as that of a dead one."""
        if isinstance(reading, Container) and self._states[id].container is None and self._is_stale(reading):
            return Dead(reading)
        return reading

    def _is_stale(self, reading: Container) -> bool:
        return self._kernel is not None and self._kernel.has_ended(reading)

    @property
    def unread(self) -> set[str]:
        """The containers that are to be inspected; after a listing, a synchronisation must wait for these."""
        return {id for id, state in self._states.items() if not state.at_rest}

    def apply_listing(self, listing: Listing) -> Iterator[None]:
        """Apply the listing of a synchronisation.

        A container that the stream has reported meanwhile is inspected, whatever the listing says.
        """
        known, turn = listing.containers, Turn()
        gone = (id for id in [id for id, state in self._states.items() if state.container] if id not in known)
        for id in chain(known, gone):
            listed = known.get(id)
            if self._may_be_newer(id) or (listed is None and listing.scope(id) in listing.failed):
                pass
            elif listed is None and listing.absence_is_death:
                self._store(id, IDLE)
            elif listed is not None and listed.container is not None and not self._is_stale(listed.container):
                self._store(id, ContainerState.of(listed.container))
            else:
                self._inspect(id, InspectReason.DECIDES, self._sync_origin)
            if turn.is_over:
                yield
                turn = Turn()

    def _may_be_newer(self, id: str) -> bool:
        """Return whether a container was reported or read since the listing began."""
        return id in self.audit.touched or not self._at_rest(id)

    def finish_sync(self) -> Iterator[None]:
        """End a synchronisation: publish all its changes as one revision.

        The next picture is made aside, while signals and the kernel may change states, and the kernel the picture.
        Those are looked at again, until no state is left that may differ.
        """
        picture, found, turn = self._feed.snapshot, dict[str, list[Difference]](), Turn()
        while self._stored:
            pairs = []
            for id in [*islice(self._stored, PART)]:
                del self._stored[id]
                before, drafted, after = self._feed.snapshot._get(id), picture._get(id), self._state(id).container
                if before is None and drafted and after:  # the kernel has told its exit: it comes last now
                    pairs += [(drafted, None), (None, after)]
                elif drafted is not after:
                    pairs.append((drafted, after))
                found[id] = differences_of(Change(before, after, self._sync_origin, None, self._exit_codes.get(id)))
            picture = picture._changed(pairs, revision=0, as_of=self._now(), synced=False)
            if self._stored and turn.is_over:
                yield
                turn = Turn()
        self._exit_codes.clear()
        self._synced, self._counters.syncs = True, self._counters.syncs + 1
        self._endings.unobserved.update(picture._by_id)
        self._commit(picture, chain.from_iterable(found.values()))

    def suspect(self, ids: Iterable[str], reason: InspectReason = InspectReason.DECIDES) -> bool:
        """Inspect containers for an audit; return False if there was no room for some, as others cannot be read."""
        room = True
        for id in ids:
            if id not in self._states and len(self._states) >= self.max_containers + MAX_UNRESOLVED:
                room = False
            elif self._at_rest(id):
                self.audit.suspects.add(id)
                self._inspect(id, reason, Origin.RESYNC)
        return room

    def longest_unread(self, among: Iterable[str]) -> list[str]:
        """Return some of these containers: those that were read longest ago and are not about to be read."""
        return self.audit.longest_unread({id for id in among if self._at_rest(id)})

    @property
    def _sync_origin(self) -> Origin:
        """The origin of the changes that a synchronisation finds."""
        return Origin.RESYNC if self._feed.was_synced else Origin.SYNC

    def _state(self, id: str) -> ContainerState:
        return self._states.get(id) or self._exited.get(id) or IDLE

    def _at_rest(self, id: str) -> bool:
        return self._state(id).at_rest

    def _inspect(self, id: str, reason: InspectReason, origin: Origin) -> None:
        self._store(id, request_inspect(self._state(id), reason, origin))

    def _store(self, id: str, state: ContainerState, *, request: bool = True) -> None:
        self._counters.lost += max(0, state.dropped - self._state(id).dropped)
        if not self._synced:
            self._stored[id] = None
        if state.idle:
            self._states.pop(id, None)
            self._reported.discard(id)
            self.audit.remove(id)
            ended = ContainerState(newest=state.newest, exit_due=state.exit_due, dropped=state.dropped)
            if ended != IDLE:
                self._exited.pop(id, None)  # the latest come last
                self._exited[id] = ended
                if len(self._exited) > MAX_EXITED:
                    del self._exited[next(iter(self._exited))]
            return
        former, self._states[id] = self._states.get(id, IDLE).container, state
        if state.container is not None:
            if self._kernel is not None and (former is None or not same_process(former, state.container)):
                self._kernel.watch(state.container)
            self._reported.discard(id)
            self.audit.add(id)
        if request and state.wanted and state.inspecting is None and self._request is not None:
            self._request(id, state.wanted)

    def _publish(self, changes: Iterable[Change]) -> None:
        """Publish changes, each as a revision; a subscription begins before all of them or after them."""
        if not self._synced:
            return
        with self._feed.lock:
            for change in changes:
                self._publish_one(change)

    def _publish_one(self, change: Change) -> None:
        self._commit(self._feed.snapshot._with(change.before, change.after), differences_of(change))

    def _commit(self, picture: Snapshot, found: Iterable[Difference]) -> None:
        """Publish a picture as one revision, with the events that lead to it."""
        former, now = self._feed.snapshot, self._now()
        events = Events(found, former.revision + 1, now, self._endings.take)
        self.endings.add(events)
        revision, as_of = former.revision + bool(events), now if self._synced else former.as_of
        self._feed.publish(attrs.evolve(picture, revision=revision, as_of=as_of, synced=self._synced), events)

    def _repack(self, reading: Container) -> None:
        """Put a new rucksack into the picture; this is neither an event nor a new revision."""
        known = (former := self._feed.snapshot)._get(reading.id)
        if known is not None and known.rucksack is not reading.rucksack:
            self._feed.publish(attrs.evolve(former._with(known, reading), as_of=self._now()))
