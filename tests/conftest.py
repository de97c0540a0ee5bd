"""Fixtures for all tests: the engines, one fake and some real, and the check that nothing leaks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import hypothesis
import pytest

from tests.support import processes as container_processes
from tests.support.blocking import blocking_calls
from tests.support.engines import containerd as containerd_engine
from tests.support.engines import install, leaks
from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import ContainerdControl
from tests.support.engines.control import DockerControl
from tests.support.engines.cri_control import CRIControl
from tests.support.engines.dockerd import Dockerd, Version
from tests.support.engines.podman import Podman
from tests.support.followed import eventually
from tests.support.processes import ContainerProcesses
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker

LIVE = os.environ.get("WHALEWATCH_LIVE", "auto")
"""What to do about real engines: "require" them, "auto" (leave out what cannot run here, and say so), or "off"."""

PATIENCE = 30.0
"""Seconds after which a test that uses `patience` has failed."""

VERSIONS: tuple[Version, ...] = ("20.10", "26.1")

CONTAINERD_VERSIONS: tuple[containerd_engine.Version, ...] = ("1.6", "1.7")

FAKE_CRIS: dict[str, dict[str, Any]] = {
    "fake-cri-o": {"runtime": "cri-o", "version": "1.33.0", "pod_events": "broadcast"},
    "fake-cri-o-mute": {"runtime": "cri-o", "version": "1.33.0", "pod_events": "ended"},
    "fake-1.6": {"runtime": "containerd", "version": "1.6.20", "pod_events": "unimplemented"},
}
"""The fakes of CRI engines: CRI-O with pod events and without, and a containerd without an API of its own."""

# gRPC keeps a thread and some descriptors for the whole process: they are not to look like a test's leak.
# One channel that is never used keeps those that gRPC would else close and open again at moments of its own.
grpc.aio.init_grpc_aio()
_KEPT = grpc.insecure_channel("unix:///nonexistent")

# The same examples each time, so that whoever changes something else is not told of what nobody has met before.
hypothesis.settings.register_profile("all", max_examples=100, deadline=None, derandomize=True)
hypothesis.settings.register_profile("unit", max_examples=20, deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", max_examples=3000, deadline=None)
hypothesis.settings.load_profile("all")

_left_out: dict[str, str] = {}


@dataclass(frozen=True)
class UnderTest:
    """An engine for one test, without any container, namespace or pod at its beginning.

    Attributes:
        address: what to give to `watch`.
        control: its driver.
        kind: "fake", or one of `FAKE_CRIS`, or the version.
        fake: the fake, or None for a real engine.
        engine: the real engine, shared with other tests, so that nobody stops it; None for a fake. Events of tests
            before may still wait in it.
    """

    address: str
    control: Any
    kind: str
    fake: Any
    engine: Any


class ContainerdUnderTest(UnderTest):
    """A containerd."""

    control: ContainerdControl
    fake: FakeContainerd | None
    engine: Containerd | None


class CRIUnderTest(UnderTest):
    """An engine that speaks the CRI."""

    control: CRIControl
    fake: FakeCRI | None
    engine: Containerd | None


class Docker(UnderTest):
    """A Docker engine."""

    control: DockerControl
    fake: FakeDocker | None
    engine: Dockerd | None

    @property
    def dockerd(self) -> Dockerd | None:
        return self.engine

    async def run_command(self, name: str) -> str:
        """Run a container, wait until its process has become the command, and return its id.

        When an engine says that a container was started, its process may still be the runtime, which other signals end.
        """
        container = await self.control.run(name)
        await self.become_command(container)
        return container

    async def become_command(self, container: str) -> None:
        """Wait until the process of a container that has been started has become the command."""
        if self.fake is None:
            pid = (await self.control.inspect(container))["State"]["Pid"]
            await eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")

    async def run_and_exit(self, name: str, code: int) -> str:
        """Run a container whose process soon ends by itself with this exit code, wait for that, and return its id."""
        if self.fake is None:
            container = await self.control.run(name, cmd=["/bin/sh", "-c", f"exit {code}"])
        else:
            container = await self.control.run(name)
            self.fake.exit(container, code)
        await self.control.wait(container)
        return container


def pytest_configure() -> None:
    if LIVE not in ("require", "auto", "off"):
        message = f"WHALEWATCH_LIVE is {LIVE!r}, but must be require, auto or off"
        raise pytest.UsageError(message)
    # What a shell runs in the background ignores SIGINT, and so would the programs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, why in _left_out.items():
        terminalreporter.write_line(f"live tests left out: {what}: {why}", yellow=True)
    for reports in terminalreporter.stats.values():
        for name, value in (pair for report in reports for pair in getattr(report, "user_properties", ())):
            if name == "to be told":  # such as the seed of what was left to chance
                terminalreporter.write_line(str(value))


@pytest.fixture(scope="session")
def all_blocking_calls() -> Iterator[list[str]]:
    with blocking_calls() as found:
        yield found


@pytest.fixture(autouse=True)
def no_blocking(all_blocking_calls: list[str]) -> Iterator[None]:
    """Fail a test in which the library blocks an event loop."""
    all_blocking_calls.clear()
    yield
    if all_blocking_calls:
        pytest.fail(f"the library has blocked an event loop: {all_blocking_calls[0]}", pytrace=False)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads, file descriptors or sockets behind, its event loop closed."""
    _start_shared_engines(request)
    before = leaks.Held.now()
    yield
    if left := before.leaked():
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
async def no_leaked_tasks(no_leaks: None) -> AsyncIterator[None]:
    """Fail a test that leaves tasks behind in its event loop."""
    yield
    if left := await leaks.leaked_tasks():
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture
async def patience(request: pytest.FixtureRequest, no_leaked_tasks: None) -> AsyncIterator[None]:
    """Fail a test that waits for what never comes: cancel it, and the tasks of its file's own.

    Tasks of gRPC's own are not to be cancelled: it crashes then.
    """

    def give_up() -> None:
        for task in asyncio.all_tasks():
            code = getattr(task.get_coro(), "cr_code", None)
            if code is not None and Path(code.co_filename) == request.path:
                task.cancel("it took too long")

    timer = asyncio.get_running_loop().call_later(PATIENCE, give_up)
    yield
    timer.cancel()


def _need(name: str, version: str) -> None:
    """Leave out the test, or fail it where engines are required, if this engine cannot run here."""
    _leave_out_without(f"{name} {version}", install.missing(version))


def _leave_out_without(what: str, why: str | None) -> None:
    why = "switched off by WHALEWATCH_LIVE" if LIVE == "off" else why
    if why is None:
        return
    if LIVE == "require":
        pytest.fail(f"{what} is required: {why}", pytrace=False)
    _left_out[what] = why
    pytest.skip(f"{what}: {why}")


@pytest.fixture
def need() -> Callable[[str, str], None]:
    """Leave out the test, or fail it where engines are required, if an engine cannot run here."""
    return _need


@pytest.fixture
def processes() -> Iterator[ContainerProcesses]:
    """Start real processes of made-up containers."""
    _leave_out_without("processes of containers", container_processes.missing())
    with ContainerProcesses() as started:
        yield started


_ENGINES: dict[str, tuple[str, Callable[..., Any]]] = {
    "docker": ("Docker", Dockerd),
    "containerd": ("containerd", Containerd),
    "cri": ("containerd", partial(Containerd, cri=True)),
    "podman": ("Podman", Podman),
}
"""How the real engines are called and made, by the fixture that offers them."""


@contextmanager
def _started(fixture: str) -> Iterator[Callable[..., Any]]:
    """Start real engines when they are asked for, by version and options, and close them all in the end."""
    name, make = _ENGINES[fixture]
    with ExitStack() as engines:

        def start(version: str, **options: Any) -> Any:
            _need(name, version)
            return engines.enter_context(make(version, **options))

        yield start


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Callable[[str, str], Any]]:
    """A real engine by fixture and version, for all tests; nobody stops it or leaves anything in it."""
    with ExitStack() as stack:
        start = {fixture: stack.enter_context(_started(fixture)) for fixture in _ENGINES}
        yield cache(lambda fixture, version: start[fixture](version))


def _start_shared_engines(request: pytest.FixtureRequest) -> None:
    """Start the real engine of the `docker`, `containerd` or `cri` fixture early, lest it look like a leak."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    for fixture in _ENGINES:
        if params.get(fixture) in (*VERSIONS, *CONTAINERD_VERSIONS):
            request.getfixturevalue("shared_engine")(fixture, params[fixture])


def _maker(fixture: str) -> Any:
    """Make a fixture that starts real engines for one test alone, to kill, freeze and restart: `make(version, **more)`.

    Starting blocks: on a running loop call it by `asyncio.to_thread`.
    """

    @pytest.fixture
    def make() -> Iterator[Callable[..., Any]]:
        with _started(fixture) as start:
            yield start

    return make


make_dockerd, make_containerd, make_cri, make_podman = map(_maker, _ENGINES)


def _fixture(
    under_test: Callable[..., Any],
    control: Callable[..., Any],
    make_fake: Callable[..., Any],
    versions: Iterable[str],
    fakes: Iterable[str] = ("fake",),
) -> Any:
    """Make a fixture that is the fake, or each of the fakes, and each of the real engines, with nothing in it."""
    live = (pytest.param(version, marks=pytest.mark.live) for version in versions)

    @pytest.fixture(params=[*fakes, *live])
    async def offer(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
        kind = request.param
        if kind in fakes:
            async with make_fake(**FAKE_CRIS.get(kind, {})) as fake, control(fake.path) as driver:
                yield under_test(fake.address, driver, kind, fake, None)
        else:
            engine = request.getfixturevalue("shared_engine")(request.fixturename, kind)
            async with control(engine.socket) as driver:
                await driver.clean()
                yield under_test(engine.address, driver, kind, None, engine)
                await driver.clean()

    return offer


docker = _fixture(Docker, DockerControl, FakeDocker, VERSIONS)
containerd = _fixture(ContainerdUnderTest, ContainerdControl, FakeContainerd, CONTAINERD_VERSIONS)
cri = _fixture(CRIUnderTest, CRIControl, FakeCRI, CONTAINERD_VERSIONS, FAKE_CRIS)
