"""The one writer: keeps a track of every container, and publishes what the ordering rules conclude.

Await-free and single-threaded: whatever happens to the picture happens in one call of one method here. During a
synchronisation the tracks move and nothing is published; its end publishes everything that came of it as one revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice

import attrs

from whalewatch._core.engine import Listing, Signal, SignalType
from whalewatch._core.feed import Feed
from whalewatch._core.model import Container, ContainerEvent, EventType, Origin
from whalewatch._core.reconcile import Change, Look, Track, begin, differences, failed, inspected, look, take

__all__ = ["Book"]

UNKNOWN = Track()


class Book:
    """Tracks of all containers, and the published picture.

    The ordering argument of a synchronisation: the engine's stream is open before the listing begins, so whatever
    happens after the listing was made is told. What is told *before* an inspect begins is contained in it; what is
    told *while* it is under way asks for another. So when every container that was listed or told of has been
    inspected, what is not in the picture yet is on the stream.
    """

    def __init__(self, feed: Feed, now: Callable[[], datetime], want: Callable[[str, Look], None]) -> None:
        """Make a book.

        Args:
            feed: where to publish.
            now: clock, in aware UTC.
            want: called when a container is to be inspected; `due` then tells whether it still is.
        """
        self._feed = feed
        self._now = now
        self._want = want
        self._tracks: dict[str, Track] = {}
        self._settled = False
        self._since: datetime | None = None
        self.noting = True
        self.touched: set[str] = set()
        """Containers of which something was told or read since the stream was opened, or the last audit began."""
        self.drift = 0
        self.suspects: set[str] = set()
        """Containers that are to be read for an audit."""
        self._unverified: dict[str, None] = {}  # every container alive, the longest unread first

    # Signals and readings

    def take(self, signal: Signal) -> None:
        """Take one signal from the engine's stream."""
        id = signal.id
        known = self._tracks.get(id, UNKNOWN)
        track, change = take(known, signal, settled=self._settled, since=self._since)
        if track is known and not self._settled:
            return  # stale, and no reason to doubt the listing
        if track.origin is Origin.ENGINE:
            self.suspects.discard(id)  # what the engine has told of is read for it, and no more for an audit
        if self.noting and (change or not track.at_rest):
            self.touched.add(id)  # what is told in passing of what is not known is no answer to an audit
        self._store(id, track)
        self._publish((change,) if change else ())

    def due(self, id: str) -> bool:
        """Begin to inspect a container, if that is still wanted and not under way already."""
        track = self._tracks.get(id, UNKNOWN)
        if not track.wanted or track.running is not None:
            return False
        self._tracks[id] = begin(track)
        return True

    def surprising(self, id: str, reading: Container | None) -> bool:
        """Whether an inspect for an audit has read what neither is in the picture nor was told meanwhile."""
        track = self._tracks[id]
        if id not in self.suspects or track.container == reading:
            return False
        return reading is not None or all(signal.type is not SignalType.EXITED for signal in track.kept or ())

    def inspected(self, id: str, reading: Container | None) -> None:
        """Take what an inspect has read; None if the container is gone."""
        if self.noting:
            self.touched.add(id)
        self._unverified.pop(id, None)
        track = self._tracks[id]
        audited = track.running is not None and track.running.origin is Origin.RESYNC and id in self.suspects
        self.suspects.discard(id)
        packed = track.container is not None and track.container == reading
        track, changes = inspected(track, reading, settled=self._settled, since=self._since)
        self._store(id, track)
        if audited and any(change.origin is Origin.RESYNC for change in changes):
            self.drift += 1
        self._publish(changes)
        if packed and not changes and self._settled and reading is not None:
            self._repack(reading)

    def failed(self, id: str) -> None:
        """An inspect failed; it stays wanted: at once if something was told meanwhile, else when the caller likes."""
        told = self._tracks[id].kept != ()
        track, changes = failed(self._tracks[id], settled=self._settled, since=self._since)
        self._store(id, track, ask=told)
        self._publish(changes)

    # Synchronisation and audit

    def open(self) -> None:
        """A connection is made anew: nothing is known for certain until a synchronisation has ended."""
        self._since = None
        self._settled = False
        self.suspects.clear()
        self.touched.clear()
        self.noting = True
        self._tracks = {container.id: Track(container) for container in self._feed.snapshot}

    def subscribed(self, since: datetime | None) -> None:
        """A stream is open.

        Args:
            since: engine time from which on it tells everything; what it replays from before may be stale.
        """
        if not self._settled:
            self._since = since

    def replayed(self) -> None:
        """All that a stream replays has been told: earlier times are those of a clock that was set back."""
        self._since = None

    def listed(self, listing: Listing) -> set[str]:
        """Take the listing of a synchronisation and return what must be inspected before its end.

        A container of which the stream told something meanwhile is inspected whatever the listing says.
        """
        origin = Origin.RESYNC if self._feed.was_synced else Origin.SYNC
        awaited = {id for id, track in self._tracks.items() if track.wanted or track.running is not None}
        told = self.touched | awaited
        for id, sighting in listing.sightings.items():
            if id in told:
                continue
            if (container := sighting.container) is not None:
                self._store(id, Track(container, checks_health=container.paused or container.health is not None))
            else:
                awaited.add(id)
                self._ask(id, Look.DECIDES, origin)
        for id in [id for id, t in self._tracks.items() if t.container and id not in listing.sightings]:
            if id in told or listing.scope(id) in listing.failed:
                continue
            if listing.absence_is_death:
                self._store(id, UNKNOWN)
            else:
                awaited.add(id)
                self._ask(id, Look.DECIDES, origin)
        return awaited

    def settle(self) -> None:
        """End a synchronisation: publish all that came of it as one revision."""
        origin = Origin.RESYNC if self._feed.was_synced else Origin.SYNC
        before = self._feed.snapshot
        self._settled = True
        changes = [
            Change(before._get(id), track.container, origin)
            for id, track in self._tracks.items()
            if track.container is not before._get(id)
        ]
        changes += [Change(c, None, origin) for c in before if c.id not in self._tracks]
        self._commit(changes)

    def compare(self, listing: Listing) -> set[str]:
        """Compare an audit's listing with the picture and return the containers about which they differ.

        Those of which the stream has told something since the listing began are left to it.
        """
        known = self._feed.snapshot
        differing = {
            id
            for id, sighting in listing.sightings.items()
            if (container := known._get(id)) is None or sighting.contradicts(container)
        }
        differing |= {
            c.id for c in known if c.id not in listing.sightings and listing.scope(c.id) not in listing.failed
        }
        return differing - self.touched

    def suspect(self, ids: Iterable[str], why: Look = Look.DECIDES) -> None:
        """Inspect containers for an audit: those that it found to differ, or some that it has no reason to doubt."""
        for id in ids:
            if self._tracks.get(id, UNKNOWN).at_rest:
                self.suspects.add(id)
                self._ask(id, why, Origin.RESYNC)

    def unverified(self, among: set[str], count: int) -> list[str]:
        """Of these containers, those that were not read for the longest time, and are not about to be read."""
        return list(islice((id for id in self._unverified if id in among and self._tracks[id].at_rest), count))

    def disconnected(self) -> None:
        """The picture stays, but is no longer known to be true."""
        self._settled = False
        former = self._feed.snapshot
        if former.synced:
            self._feed.publish(attrs.evolve(former, synced=False, as_of=self._now()))

    def _ask(self, id: str, why: Look, origin: Origin) -> None:
        self._store(id, look(self._tracks.get(id, UNKNOWN), why, origin))

    def _store(self, id: str, track: Track, *, ask: bool = True) -> None:
        if track.idle:
            self._tracks.pop(id, None)
            self._unverified.pop(id, None)
            self.suspects.discard(id)
            return
        self._tracks[id] = track
        if track.container is not None:
            self._unverified.setdefault(id)
        if ask and track.wanted and track.running is None:
            self._want(id, track.wanted)

    # Publishing

    def _publish(self, changes: Iterable[Change]) -> None:
        if not self._settled:
            return
        for change in changes:
            self._commit([change])

    def _commit(self, changes: list[Change]) -> None:
        """Publish changes as one revision: their events, EXITED first, and the picture to which they lead."""
        told = [(change, *event) for change in changes for event in differences(change.before, change.after)]
        told.sort(key=lambda one: one[1] is not EventType.EXITED)
        now = self._now()
        former = self._feed.snapshot
        revision = former.revision + bool(told)
        events = tuple(
            ContainerEvent(
                type=type_,
                container=container,
                previous=previous,
                timestamp=change.told_at or now,
                origin=change.origin,
                exit_code=change.exit_code if type_ is EventType.EXITED else None,
                revision=revision,
                last=position == len(told),
            )
            for position, (change, type_, container, previous) in enumerate(told, start=1)
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
