"""The live picture in a terminal: python examples/demo.py [--seconds N] [--simulated] [--seed N].

It shows the Docker engine that Docker's own rules find. If none answers, it shows a simulated one, whose containers
start, pause, fall ill, are renamed and die by themselves, and which is killed and started again now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from random import Random

import attrs

from whalewatch import (
    Container,
    ContainerEvent,
    Snapshot,
    Stats,
    Status,
    Watcher,
    WatchState,
    WhalewatchError,
    moby,
)
from whalewatch._core.text import printable
from whalewatch.cli.render import (
    BOLD,
    CYAN,
    DIM,
    GREEN,
    RED,
    YELLOW,
    Column,
    Line,
    Span,
    aligned,
    back,
    cells,
    counted,
    event_line,
    heading,
    health,
    local,
    lost,
    painted,
    picture,
    summary,
    widths,
)
from whalewatch.testing import FakeDocker, FakeDockerContainer

PATIENCE = 3.0
"""Seconds that a Docker engine has to answer before one is simulated."""

FRAMES = 0.1
"""Seconds between two frames at least."""

TICK = 1.0
"""Seconds between two frames at most: the ages grow."""


# -- the frame ---------------------------------------------------------------------------------------------------------

GLYPHS = {"running": ("●", "*"), "paused": ("‖", "="), "rule": ("─", "-"), "dot": ("·", "|")}

STATES = {
    WatchState.CONNECTING: ("connecting", YELLOW),
    WatchState.SYNCING: ("synchronising", YELLOW),
    WatchState.SYNCED: ("in sync", GREEN),
    WatchState.DISCONNECTED: ("engine lost", RED),
    WatchState.CLOSED: ("closed", DIM),
}

COLUMNS = (
    Column("  NAME", 20, 0),
    Column("STATE", 7, 1),
    Column("HEALTH", 8, 2),
    Column("PID", 4, 3),
    Column("IMAGE", 11, 6),
    Column("SINCE", 8, 4),
    Column("AGE", 3, 7),
    Column("ADDRESSES", 12, 5),
)


@attrs.frozen(kw_only=True)
class View:
    """All that one frame shows."""

    engine: str
    simulated: bool
    status: Status
    snapshot: Snapshot
    stats: Stats
    events: int
    latest: Sequence[Line]
    now: datetime
    unicode: bool = True

    def glyph(self, name: str) -> str:
        """One of the frame's signs, as the terminal can show it."""
        return GLYPHS[name][not self.unicode]


def frame(view: View, width: int, height: int) -> list[Line]:
    """Draw one frame: a title, the containers by project, and the latest events, in exactly this room."""
    title = _title(view, width)
    room = max(0, height - len(title))
    below = min(room // 2, 3 + room // 4, max(4, len(view.latest) + 1))
    table = _table(view, width, room - below)
    latest = list(view.latest)[-(room - len(table) - 1) :] if room - len(table) > 1 else []
    lines = [*title, *table]
    if latest or room - len(table) > 1:
        lines += [_rule(view, "latest events", width), *latest]
    return lines[:height]


def _rule(view: View, title: str, width: int) -> Line:
    rule = view.glyph("rule")
    return ((rule * 2 + " ", DIM), (title, BOLD), (" " + rule * max(0, width - cells(title) - 4), DIM))


def _title(view: View, width: int) -> list[Line]:
    dot = f" {view.glyph('dot')} "
    state, colour = STATES[view.status.state]
    kind: Span = ("SIMULATED ENGINE", f"{BOLD};{YELLOW}") if view.simulated else ("Docker engine", BOLD)
    calls = sum(view.stats.calls.values())
    counters = (
        counted(len(view.snapshot), "container"),
        counted(view.events, "event"),
        counted(view.stats.outages, "outage"),
        counted(calls, "engine call"),
    )
    known = "" if view.snapshot.synced else ", the last known picture"
    lines: list[Line] = [
        (("whalewatch", f"{BOLD};{CYAN}"), (dot, DIM), kind, (f" {view.engine}", "")),
        (
            (state, f"{BOLD};{colour}"),
            (f"{dot}revision {view.snapshot.revision}{known}", ""),
            (dot + dot.join(counters), DIM),
        ),
    ]
    if view.status.error is not None and not view.snapshot.synced:
        lines.append(((printable(view.status.error, 500), RED),))
    return [*lines, _rule(view, "alive", width)]


def _table(view: View, width: int, room: int) -> list[Line]:
    """The containers by project, each with its fair share of the lines there are."""
    projects = [project for project in view.snapshot.projects() if project]
    if not projects:
        return [(("no container is alive", DIM),)] if room else []
    rows = {project.name: [_row(view, container) for container in project] for project in projects}
    title = [(column.title, DIM) for column in COLUMNS]
    columns = widths(COLUMNS, [title, *(row for of_one in rows.values() for row in of_one)], width)
    shares = _shares([len(project) for project in projects], room - 1)
    lines: list[Line] = [aligned(title, columns)]
    for project, share in zip(projects, shares, strict=True):
        if not share:
            continue
        lines.append(((heading(project.name), CYAN), (f"  {len(project)}", DIM)))
        lines += [aligned(row, columns) for row in rows[project.name][:share]]
        if share < len(project):
            lines[-1] = ((f"  and {len(project) - share + 1} more", DIM),)
    hidden = [project for project, share in zip(projects, shares, strict=True) if not share]
    if hidden:
        count = sum(len(project) for project in hidden)
        lines = lines[: room - 1]
        lines.append(((f"and {counted(count, 'container')} in {counted(len(hidden), 'more project')}", DIM),))
    return lines[: max(0, room)]


def _shares(sizes: Sequence[int], room: int) -> list[int]:
    """Divide lines among projects; each that is shown takes one line for its name besides, and two more if it can."""
    shares, left = [0] * len(sizes), room
    for i, size in enumerate(sizes):
        reserved = i < len(sizes) - 1  # a line that tells how many projects are not shown
        if left - reserved < min(size, 2) + 1:
            left -= 1
            break
        shares[i] = min(size, 2)
        left -= shares[i] + 1
    while left > 0 and (hungry := [i for i, share in enumerate(shares) if 0 < share < sizes[i]]):
        for i in hungry[:left]:
            shares[i] += 1
            left -= 1
    return shares


def _row(view: View, container: Container) -> tuple[Span, ...]:
    state, colour = ("paused", YELLOW) if container.paused else ("running", GREEN)
    ill = health(container)
    started = container.started_at
    addresses = (str(address) for of_one in container.addresses.values() for address in of_one)
    return (
        (f"{view.glyph(state)} {printable(container.name, 40)}", ill[1] or colour),
        (state, colour),
        (ill[0] or "-", ill[1] or DIM),
        ("-" if container.pid is None else str(container.pid), ""),
        (printable(container.image, 40), DIM),
        ("-" if started is None else local(started)[:8], ""),
        ("-" if started is None else _age((view.now - started).total_seconds()), DIM),
        (", ".join(addresses) or "-", ""),
    )


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


# -- the screen --------------------------------------------------------------------------------------------------------


class Screen:
    """Draws frames onto a terminal, or prints plain lines where there is none."""

    def __init__(self, engine: str, *, simulated: bool) -> None:
        """Watch over standard output."""
        self.events = 0
        self.dirty = asyncio.Event()
        self._engine = engine
        self._simulated = simulated
        self._latest: deque[Line] = deque(maxlen=200)
        self._live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._unicode = "utf" in (sys.stdout.encoding or "").lower()
        self._last: list[str] = []

    def tell(self, line: Line) -> None:
        """Tell one line: it belongs to the latest ones of the frame."""
        if self._live:
            self._latest.append(line)
            self.dirty.set()
        else:
            print(painted(line, colour=self._colour), flush=True)

    def event(self, event: ContainerEvent) -> None:
        """Tell one event."""
        self.events += 1
        self.tell(event_line(event))

    def start(self, watcher: Watcher) -> None:
        """Show where the watch begins."""
        if self._live:
            return
        for line in picture(watcher.portfolio.snapshot(), self._title):
            self.tell(line)

    @property
    def _title(self) -> str:
        return f"{'Simulated' if self._simulated else 'Docker'} engine {self._engine}"

    def draw(self, watcher: Watcher) -> None:
        """Draw the picture as it is now."""
        if not self._live:
            return
        view = View(
            engine=self._engine,
            simulated=self._simulated,
            status=watcher.status,
            snapshot=watcher.portfolio.snapshot(),
            stats=watcher.stats,
            events=self.events,
            latest=self._latest,
            now=datetime.now(UTC),
            unicode=self._unicode,
        )
        width, height = shutil.get_terminal_size()
        self._last = [painted(line, colour=self._colour, width=width) for line in frame(view, width, height)]
        # Erase before writing: after the last column the cursor still stands on it.
        rest = "\r\n\x1b[J" if len(self._last) < height else ""
        sys.stdout.write("\x1b[H" + "\r\n".join(f"\x1b[K{line}" for line in self._last) + rest)
        sys.stdout.flush()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Use the terminal's other screen meanwhile, and leave the last frame on its own one."""
        if not self._live:
            yield
            return
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")  # other screen, no cursor, no wrapping
        try:
            yield
        finally:
            sys.stdout.write("\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l" + "".join(line + "\n" for line in self._last))
            sys.stdout.flush()


async def show(watcher: Watcher, screen: Screen) -> None:
    """Show the watch until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        # The same loop, and no await in between: the events begin where the picture ends.
        events = watcher.events(replay=False)
        screen.start(watcher)
        tasks.create_task(_tell_events(events, screen))
        tasks.create_task(_tell_status(watcher, screen))
        while True:
            screen.dirty.clear()
            screen.draw(watcher)
            await asyncio.sleep(FRAMES)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK - FRAMES):
                    await screen.dirty.wait()


async def _tell_events(events: AsyncIterator[ContainerEvent], screen: Screen) -> None:
    async for event in events:
        screen.event(event)


async def _tell_status(watcher: Watcher, screen: Screen) -> None:
    away = False
    async for status in watcher.status_changes():
        if status.state is WatchState.DISCONNECTED and not away:
            screen.tell(lost(status))
            away = True
        elif status.state is WatchState.SYNCED and away:
            screen.tell(back(status, watcher.portfolio.snapshot()))
            away = False
        screen.dirty.set()


# -- the simulated engine ----------------------------------------------------------------------------------------------


@attrs.frozen
class Service:
    """What a project is made of."""

    project: str
    name: str
    image: str
    replicas: int
    port: str = ""
    published: int | None = None
    checked: bool = False

    def replica(self, number: int) -> str:
        """The name of one of its containers."""
        return f"{self.project}-{self.name}-{number}"


SERVICES = (
    Service("shop", "web", "nginx:1.27", 4, "80/tcp", 8080, checked=True),
    Service("shop", "api", "shop/api:2.3", 3, "8000/tcp", checked=True),
    Service("shop", "db", "postgres:16", 1, "5432/tcp", checked=True),
    Service("shop", "worker", "shop/worker:2.3", 4),
    Service("blog", "front", "caddy:2", 2, "443/tcp", 8443),
    Service("blog", "ghost", "ghost:5", 2, "2368/tcp", checked=True),
    Service("blog", "mail", "mailhog:1", 1),
)

GROWTH = 0.3
"""How likely it is that a container is added rather than another thing done."""

PAUSES = (0.05, 0.35)
"""Seconds between two operations."""

OUTAGE = 45
"""Operations between two deaths of the engine."""


class Simulation:
    """Lets containers live and die in a fake engine: the same seed makes the same story."""

    def __init__(self, docker: FakeDocker, seed: int) -> None:
        """Start with one container of each service."""
        self._docker = docker
        self._random = Random(seed)  # noqa: S311 - a story, not a secret
        for service in SERVICES:
            self._start(service, 1)

    async def run(self) -> None:
        """Operate until cancelled."""
        done = 0
        while True:
            await asyncio.sleep(self._random.uniform(*PAUSES))
            self.step()
            done += 1
            if done % OUTAGE == 0:
                await self._outage()

    async def _outage(self) -> None:
        """Kill the engine; what happens while it is away can only be found afterwards."""
        self._docker.faults.refuse()
        await asyncio.sleep(self._random.uniform(1.0, 2.0))
        for _ in range(3):
            self.step()
        await self._docker.faults.accept()

    def step(self) -> None:
        """Do one thing to one container."""
        alive = [container for container in self._docker.containers.values() if container.alive]
        if len(alive) < len(SERVICES) or (len(alive) < 2 * len(SERVICES) and self._random.random() < GROWTH):
            self._grow()
            return
        container = self._random.choice(alive)
        self._random.choices(
            (self._end, self._restart, self._pause, self._check_health, self._rename, self._move),
            weights=(20, 12, 22, 26, 8, 12),
        )[0](container)

    def _grow(self) -> None:
        free = [
            (service, number)
            for service in SERVICES
            for number in range(1, service.replicas + 1)
            if service.replica(number) not in self._names
        ]
        if free:
            self._start(*self._random.choice(free))

    @property
    def _names(self) -> set[str]:
        return {container.name for container in self._docker.containers.values()}

    def _start(self, service: Service, number: int) -> None:
        self._docker.run(
            service.replica(number),
            project=service.project,
            image=service.image,
            labels={"com.docker.compose.service": service.name, "com.docker.compose.container-number": str(number)},
            networks=[f"{service.project}_default"],
            ports={service.port: service.published if number == 1 else None} if service.port else None,
            health="starting" if service.checked else None,
        )

    def _end(self, container: FakeDockerContainer) -> None:
        if container.status == "paused" or self._random.random() < 0.5:  # noqa: PLR2004 - a coin
            self._docker.remove(container.id, force=True)
        else:
            self._docker.exit(container.id, self._random.choice((0, 0, 1, 3, 143)))
            self._docker.remove(container.id)

    def _restart(self, container: FakeDockerContainer) -> None:
        self._docker.restart(container.id)

    def _pause(self, container: FakeDockerContainer) -> None:
        if container.status == "paused":
            self._docker.unpause(container.id)
        else:
            self._docker.pause(container.id)

    def _check_health(self, container: FakeDockerContainer) -> None:
        if container.status == "paused":
            self._docker.unpause(container.id)
        elif container.health is not None:
            self._docker.set_health(container.id, "unhealthy" if container.health == "healthy" else "healthy")

    def _rename(self, container: FakeDockerContainer) -> None:
        name = container.name.removesuffix("-old")
        name = name if name != container.name else f"{name}-old"
        if name not in self._names:
            self._docker.rename(container.id, name)

    def _move(self, container: FakeDockerContainer) -> None:
        if "edge" in container.endpoints:
            self._docker.disconnect("edge", container.id)
        else:
            self._docker.connect("edge", container.id)


# -- the program -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def found_engine(*, simulated: bool, seed: int) -> AsyncIterator[tuple[Watcher, str]]:
    """Watch the engine that Docker's own rules find, or else a simulated one; tell why it is simulated."""
    why = "you want it so"
    if not simulated:
        try:
            engine = await _answering()
        except (WhalewatchError, TimeoutError) as error:
            why = str(error) or f"no Docker engine answers within {PATIENCE:g} s"
        else:
            async with Watcher(engine) as watcher:
                yield watcher, ""
            return
    async with FakeDocker(seed=seed, version="26.1.5") as docker:
        story = Simulation(docker, seed)
        async with moby.watch(docker.address) as watcher:
            await watcher.ready()
            task = asyncio.create_task(story.run())
            try:
                yield watcher, why
            finally:
                task.cancel()
                await asyncio.wait({task})


async def _answering() -> moby.MobyEngine:
    engine = moby.MobyEngine()
    try:
        async with asyncio.timeout(PATIENCE):
            await engine.connect()
    except (WhalewatchError, TimeoutError):
        await engine.close()
        raise
    return engine


async def demo(options: argparse.Namespace) -> None:
    """Show an engine until cancelled, and tell at the end what was seen."""
    began = asyncio.get_running_loop().time()
    async with found_engine(simulated=options.simulated, seed=options.seed) as (watcher, why):
        await watcher.ready()
        version = printable(await watcher.engine.version(), 40)
        name = version if why else f"{version} at {watcher.engine.address}"
        screen = Screen(name, simulated=why != "")
        if why:
            screen.tell(((f"a simulated engine is shown: {printable(why, 500)}", YELLOW),))
        _on_resize(screen.dirty.set)
        try:
            with screen.shown():
                await show(watcher, screen)
        finally:
            seconds = asyncio.get_running_loop().time() - began
            kind = "simulated engine" if why else "engine"
            print(f"{kind} seen for {summary(seconds, screen.events, watcher.stats)}", flush=True)


def _on_resize(redraw: Callable[[], None]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, redraw)


async def run(options: argparse.Namespace) -> None:
    """Show an engine until Ctrl-C, or until the time is over."""
    task = asyncio.create_task(demo(options))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait({task}, timeout=options.seconds)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, help="end after so many seconds")
    parser.add_argument("--simulated", action="store_true", help="use the simulated engine even if Docker answers")
    parser.add_argument("--seed", type=int, default=1, help="of the simulated engine's story")
    options = parser.parse_args()
    logging.getLogger("whalewatch").addHandler(logging.NullHandler())  # it would write into the frame
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run(options))
    except* OSError:  # the reader or the terminal is gone; nor must the interpreter say so when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
