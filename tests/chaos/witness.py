"""What each revision says of its origin, its time and its exit codes, held against what the engine told."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from whalewatch import EventType, Origin, WatchState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tests.chaos.world import World
    from whalewatch import ContainerEvent, Snapshot, Watcher

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEPT = 20_000  # times that are kept of what an engine told: those of many rounds
# What was told so shortly before a stream ended, or after it began, one listener may have heard and another not.
MARGIN = timedelta(seconds=5)
LATE = timedelta(minutes=1)  # how long ago an event that is published now may have been found
# Events of which one at least bears the engine's time, and exits of which one at least bears its exit code.
ENOUGH = 20

DATED, UNDATED = "events bear the engine's times", "events were told by the engine without a time"
KERNEL = "exits that the kernel told"
CODE_PASSED_ON, CODE_LEFT_OUT = "exits bear the engine's codes", "exits bear no code though the engine told one"


class Told:
    """What an engine told of its containers, as it is heard beside all watchers, by time."""

    def __init__(self) -> None:
        self._exit_codes: dict[tuple[str, datetime], int | None] = {}
        self._deaf: deque[tuple[datetime, datetime]] = deque(maxlen=KEPT)
        self._deaf_since: datetime | None = datetime.now(UTC)

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Be told everything meanwhile."""
        assert self._deaf_since is not None
        self._deaf.append((self._deaf_since - MARGIN, datetime.now(UTC) + MARGIN))
        self._deaf_since = None
        try:
            yield
        finally:
            self._deaf_since = datetime.now(UTC)

    def note(self, id: str, nanoseconds: int, exit_code: int | None = None) -> None:
        """Take down that something was told of a container, and with which exit code if it was an exit."""
        key = (id, EPOCH + timedelta(microseconds=nanoseconds // 1000))
        self._exit_codes[key] = self._exit_codes.get(key) if exit_code is None else exit_code
        if len(self._exit_codes) > KEPT:
            del self._exit_codes[next(iter(self._exit_codes))]

    def exit_code(self, event: ContainerEvent) -> int | None:
        """The exit code that was told of this container at this time."""
        return self._exit_codes.get((event.container.id, event.timestamp))

    def confirms(self, event: ContainerEvent) -> bool | None:
        """Whether the engine did tell this, with this code; None if that might have been missed."""
        if (event.container.id, event.timestamp) in self._exit_codes:
            # What asked for an inspect dates an exit that the inspect read, with its code: that is told a little later.
            codes = {code for (id, _), code in self._exit_codes.items() if id == event.container.id}
            return event.exit_code in {None, *codes}
        deaf = self._deaf_since is not None and event.timestamp > self._deaf_since - MARGIN
        return None if deaf or any(began < event.timestamp < ended for began, ended in self._deaf) else False


class Witness:
    """Sees each revision of one watcher in the moment in which it is published.

    A revision that a synchronisation brings is the only one of it. Any other is what the engine told, or what an audit
    found, or one exit that the kernel told. What was found is dated now; what was told, by the engine, unless that gave
    no time.

    Attributes:
        counts: events by what became of their times and exit codes, in words. That a code was told at the time of an
            exit that bears none is no fault: the exit's order was in doubt, and an inspect decided.
    """

    def __init__(self, name: str, watcher: Watcher, world: World, unread: Collection[str]) -> None:
        """Join the feed of a watcher that is not entered yet.

        Of containers that an inspect has failed to read (`unread`), what is found once it can be may be found long
        after the synchronisation that asked for it.
        """
        self.counts: Counter[str] = Counter()
        self._name = name
        self._watcher = watcher
        self._world = world
        self._unread = unread
        self._syncs = self._drift = 0
        self._repaired = ""
        self._exited = ("", 0)
        self._wrong: list[str] = []
        self._new: list[ContainerEvent] = []
        self._unheard: list[ContainerEvent] = []
        watcher._feed.join(self)

    def _join(self, snapshot: Snapshot) -> None:
        """Begin."""

    def _wake(self) -> None:
        """Do nothing: all is done in the moment itself."""

    def _push(self, snapshot: Snapshot, events: Sequence[ContainerEvent]) -> None:
        """Look at one revision."""
        self._look_at_origins(events)
        for event in events:
            dated = event.timestamp != snapshot.as_of
            if event.origin is Origin.KERNEL:
                self.counts[KERNEL] += 1
            elif event.origin is not Origin.ENGINE:
                if dated or abs(datetime.now(UTC) - event.timestamp) > LATE:
                    self._object("what was found bears a time at which it was not found", event)
            elif dated or (event.exit_code is not None and not event.brief):
                self._new.append(event)
            elif not event.brief:  # the exit of a brief life may be read, and told long afterwards
                self.counts[UNDATED] += 1
                # That a former run exited and another began may be read by one inspect; nobody told when this began.
                reborn = event.type is EventType.STARTED and self._exited == (event.container.id, event.revision - 1)
                if self._world.dated and not reborn:
                    self._object("the engine did tell when", event)
            self._exited = (event.container.id if event.type is EventType.EXITED else "", event.revision)

    def _look_at_origins(self, events: Sequence[ContainerEvent]) -> None:
        state, stats = self._watcher.status.state, self._watcher.stats
        first, origins = events[0], {event.origin for event in events}
        if origins == {Origin.KERNEL}:
            if len(events) > 1 or first.type is not EventType.EXITED:
                self._object("the kernel tells one exit at a time", first)
            return
        if state is WatchState.SYNCING:
            if stats.syncs == self._syncs:
                self._object("a synchronisation brings a second revision", first)
            if origins != {Origin.RESYNC if stats.syncs > 1 else Origin.SYNC}:
                self._object("not found by this synchronisation", first)
            self._syncs = stats.syncs
            return
        if stats.drift > self._drift:
            self._drift, self._repaired = stats.drift, first.container.id
        audited = first.container.id == self._repaired or first.container.id in self._unread
        if state is not WatchState.SYNCED or not origins <= {Origin.ENGINE, *((Origin.RESYNC,) if audited else ())}:
            self._object(f"of no such origin while {state.value}, with {stats.drift} found by audits", first)

    def judge(self) -> list[str]:
        """Tell what was wrong; what the engine has not told a round later, it did not tell."""
        new, self._new = self._new, []
        unheard, self._unheard = self._unheard, []
        if (told := self._world.told) is not None:
            self._unheard = [event for event in new if self._confirmed(told, event) is False]
            for event in unheard:
                if self._confirmed(told, event) is False:
                    self._object("the engine told nothing like it", event)
            if self.counts[UNDATED] >= ENOUGH and not self.counts[DATED]:
                self._object(f"no event bears the engine's time: {self.counts}")
        if self.counts[CODE_LEFT_OUT] >= ENOUGH and not self.counts[CODE_PASSED_ON]:
            self._object(f"no exit bears the engine's exit code: {self.counts}")
        wrong, self._wrong = self._wrong, []
        return wrong

    def _confirmed(self, told: Told, event: ContainerEvent) -> bool | None:
        confirmed = told.confirms(event)
        if confirmed:
            self.counts[DATED] += 1
            if event.type is EventType.EXITED and told.exit_code(event) is not None:
                self.counts[CODE_LEFT_OUT if event.exit_code is None else CODE_PASSED_ON] += 1
        return confirmed

    def _object(self, why: str, event: ContainerEvent | None = None) -> None:
        self._wrong.append(f"{self._name}: {why}" + (f": {event}" if event else ""))
