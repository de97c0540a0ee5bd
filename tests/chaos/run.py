"""The rounds: operations and faults at random, then peace, in which every picture must become the engine's."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random

from tests.chaos.crowd import Listener, Watched, crowd
from tests.chaos.world import Fault, Operation, World, during
from tests.support.stepping import Complaints
from whalewatch import WatchState

WORKERS = 3  # operations at a time
OPERATION = 15.0  # seconds it may take: while something is frozen, dockerd may hold a container's lock for ever
REFUSED = 0.03  # seconds until the next one after a refusal: most are refused, as they ask no one for leave
LONGEST_FAULT = 5.0  # seconds; the watchers' heartbeat and time-out together take three
SLACK = 3.0  # seconds that watchers may take longer than they promise to notice silence: the machine is busy
CONVERGENCE = 60.0  # seconds of peace after which a picture that is not the engine's counts as a divergence
BLOCKED = 0.5  # seconds for which the host program blocks the loop
LEAVING = 5.0  # seconds within which a watcher must have been left
POLL = 0.05

SILENT = {"engine frozen": False, "connections half open": True}
"""Faults in which nothing answers, and nothing fails: every other time they last until the watchers have noticed. The
value tells whether only those behind the proxy suffer it. If a stream is replaced meanwhile, what is still on its way
in the old one is lost with it, and the listing that follows finds it."""

SWALLOWED = "events swallowed"
HIDING = {SWALLOWED, "events shuffled and late", "a gigantic line among the events"}
"""Faults of the connection for which an audit may have to find what the engine did tell: what comes behind a gigantic
line is late, by some fifty turns of a loop that is busy."""


@dataclass
class Report:
    """What happened; there must be no divergences and no leaks.

    Attributes:
        counts: how often what happened, in words.
        converged: seconds from the end of the last fault and operation until all pictures were right; a list for rounds
            in which events were swallowed (True) and one for the others.
        drift: what only audits found, by watcher.
        divergences: pictures that were wrong in the end, impossible events, failures inside.
        heard: what the engine had told until then, if there are any.
    """

    seconds: float = 0.0
    rounds: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    converged: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    drift: Counter[str] = field(default_factory=Counter)
    outages: Counter[str] = field(default_factory=Counter)
    divergences: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)


class Chaos:
    """One run against one world."""

    def __init__(self, world: World, dice: Random, tell: Callable[[str], None], only: str = "") -> None:
        self._only = only
        self._world = world
        self._dice = dice
        self._tell = tell
        self.report = Report()

    async def run(self, seconds: float) -> Report:
        """Go on for a while; the round that is under way then is finished."""
        began = time.monotonic()
        report = self.report
        with _Alarms() as alarms:
            async with crowd(self._world, alarms.unread) as watched:
                while time.monotonic() - began < seconds and not report.divergences:
                    await self._round(watched)
                    report.rounds += 1
                    report.divergences += alarms.taken()
                    report.divergences += [failure for one in watched for failure in one.failures()]
                    if report.rounds == 10:
                        peak = _peak()
                if report.divergences:
                    report.heard = list(self._world.heard)
                if report.rounds >= 10:
                    report.counts["KiB more of memory after the tenth round"] = _peak() - peak
                for one in watched:
                    report.counts["calls"] += sum(one.watcher.stats.calls.values())
                    report.counts += one.witness.counts
            report.divergences += alarms.taken()
        report.seconds = time.monotonic() - began
        return report

    async def _round(self, watched: list[Watched]) -> None:
        chosen = self._chosen(watched)
        peace = asyncio.Event()
        workers = [asyncio.create_task(self._work(peace)) for _ in range(WORKERS)]
        passing = asyncio.create_task(self._pass_by(peace))
        try:
            async with asyncio.TaskGroup() as faults:
                for name, fault in chosen.items():
                    faults.create_task(self._break(name, fault, watched))
        finally:
            peace.set()
            await asyncio.gather(*workers)
        took = await self._converge(watched)
        await passing
        for one in watched:
            drift, outages = one.watcher.stats.drift, one.watcher.stats.outages
            hidden = SILENT.keys() & chosen or (one.hidden_from and (self._world.sole or HIDING & chosen.keys()))
            unproven = not self._world.proves_subscriptions and outages > self.report.outages[one.name]
            if drift > self.report.drift[one.name] and not hidden and not unproven:
                found = list(one.eager.found)
                self.report.divergences.append(f"{one.name}: an audit had to find what nothing had hidden: {found}")
            self.report.drift[one.name], self.report.outages[one.name] = drift, outages
            for listener in one.listeners:
                self._judge(listener)
            self.report.divergences += one.witness.judge()
        self.report.converged[SWALLOWED in chosen].append(took)
        self._tell(
            f"round {self.report.rounds + 1}: {', '.join(chosen)}; "
            f"{self.report.operations.total()} operations; converged in {took:.2f} s"
        )

    def _chosen(self, watched: list[Watched]) -> dict[str, Fault]:
        """Choose faults, at most one of each place, at least one in all."""
        attending = watched[0].attending  # it is that of all lazy listeners
        application: dict[str, Fault] = {
            "subscriptions unread": lambda: during(attending.clear, attending.set),
            "loop blocked": lambda: during(partial(time.sleep, BLOCKED), partial(time.sleep, BLOCKED)),
        }
        places = [
            faults
            for _, all_faults in sorted({**self._world.faults, "application": application}.items())
            if (faults := sorted((name, fault) for name, fault in all_faults.items() if self._only in name))
        ]
        some = [faults for faults in places if self._dice.random() < 0.5] or [self._dice.choice(places)]
        return dict(self._dice.choice(faults) for faults in some)

    async def _break(self, name: str, fault: Fault, watched: list[Watched]) -> None:
        await asyncio.sleep(self._dice.uniform(0, 1))
        long = name in SILENT and self.report.faults[name] % 2 == 0
        suffering = [one for one in watched if long and one.hidden_from >= SILENT[name]]
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(fault())
            except self._world.refusals:
                return  # it would have had to ask the engine first
            self.report.faults[name] += 1
            await asyncio.sleep(self._dice.uniform(0, LONGEST_FAULT) ** 2 / LONGEST_FAULT)
            for one in suffering:
                await self._notice(name, one)

    async def _notice(self, name: str, one: Watched) -> None:
        """Wait until a watcher shows that nothing answers; while that lasts, it cannot come back into sync."""
        patience = self._world.watching["heartbeat"] + self._world.watching["call_timeout"]
        for _ in range(int((patience + SLACK) / POLL)):  # a loop that is held up counts no faster
            if not one.watcher.portfolio.snapshot().synced and one.watcher.status.state is not WatchState.SYNCED:
                self.report.counts["times a watcher had to notice that nothing answered, and did"] += 1
                return
            await asyncio.sleep(POLL)
        self.report.divergences.append(f"{one.name}: {name}, and it has not noticed: {one.watcher.status}")

    async def _work(self, peace: asyncio.Event) -> None:
        operations: list[tuple[str, Operation]] = sorted(self._world.operations.items())
        while not peace.is_set():
            name, operate = self._dice.choice(operations)
            try:
                async with asyncio.timeout(OPERATION):
                    await operate()
            except self._world.refusals:
                self.report.counts["operations refused"] += 1
                await asyncio.sleep(REFUSED)
            else:
                self.report.operations[name] += 1
                await asyncio.sleep(self._dice.uniform(0, 0.1))

    async def _pass_by(self, peace: asyncio.Event) -> None:
        """Be a watcher that is left at a random moment, whatever it is doing then."""
        while not (peace.is_set() or self._world.sole):
            watcher = self._world.watcher(proxied=self._dice.random() < 0.5)
            async with watcher:
                with suppress(TimeoutError):
                    await asyncio.wait_for(peace.wait(), self._dice.uniform(0, 1.5))
                left = time.monotonic()
            if (took := time.monotonic() - left) > LEAVING:
                self.report.divergences.append(f"a watcher took {took:.1f} s to be left")
            self.report.counts["watchers that came and went"] += 1

    def _judge(self, listener: Listener) -> None:
        """A run that exited and started again: nobody but the engine may have said so."""
        while listener.risen:
            container, history = listener.risen.pop()
            if self._world.told_of_exit(container):
                self.report.counts["times the engine told one of six listeners of an exit that was none"] += 1
                self._tell(f"the engine itself took it for dead: {history}")
                self._tell(f"it told: {[line for line in self._world.heard if container.id[:12] in line]}")
            else:
                self.report.divergences.append(f"it had not exited: {history}")

    async def _converge(self, watched: list[Watched]) -> float:
        """Wait until every picture is the engine's and every listener's the picture; return the seconds it took."""
        began = answered = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(OPERATION):
                    truth = await self._world.truth()
            except self._world.refusals as error:
                if time.monotonic() - answered >= OPERATION:
                    self._tell(f"the engine itself does not answer ({error!r:.300}), and is started again")
                    await self._world.revive()
                    self.report.counts["times the engine got stuck by itself"] += 1
                    began = answered = time.monotonic()
                await asyncio.sleep(POLL)
                continue
            answered = time.monotonic()
            differences = [line for one in watched for line in one.differences(self._world, truth)]
            took = time.monotonic() - began
            if not differences:
                return took
            if took > CONVERGENCE or any(True for one in watched for _ in one.failures()):
                self.report.divergences += differences
                return took
            await asyncio.sleep(POLL)


class _Alarms(Complaints):
    """Collects also the containers that could not be read."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.DEBUG)
        logging.getLogger("whalewatch").setLevel(logging.DEBUG)
        self.unread: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("cannot read container") and isinstance(record.args, tuple):
            self.unread.add(str(record.args[0]))
        if record.levelno >= logging.ERROR:
            super().emit(record)

    def taken(self) -> list[str]:
        """What has come since the last time."""
        told, self.told = self.told, []
        return told


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
