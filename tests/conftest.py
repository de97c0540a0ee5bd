"""Fixtures for all tests: the engines, one fake and some real, and the check that nothing leaks."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines import install, leaks
from tests.engines.control import DockerControl
from tests.engines.dockerd import Dockerd, Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from whalewatch.testing import FakeDocker

LIVE = os.environ.get("WHALEWATCH_LIVE", "auto")
"""What to do about real engines: "require" them, "auto" (leave out what cannot run here, and say so), or "off"."""

VERSIONS: tuple[Version, ...] = ("20.10", "26.1")

_left_out: dict[str, str] = {}


@dataclass(frozen=True)
class Docker:
    """A Docker engine for one test, without any container at its beginning.

    Attributes:
        address: what to give to `whalewatch.moby.watch`.
        control: its driver.
        kind: "fake" or the version.
        fake: the fake, or None for a real engine.
        dockerd: the real engine, shared with other tests, so that nobody stops it; None for the fake.
    """

    address: str
    control: DockerControl
    kind: str
    fake: FakeDocker | None
    dockerd: Dockerd | None

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, why in _left_out.items():
        terminalreporter.write_line(f"live tests left out: {what}: {why}", yellow=True)


# -- nothing leaks ---------------------------------------------------------------------------------------------------


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


# -- engines -----------------------------------------------------------------------------------------------------------


def _need(version: Version) -> None:
    """Leave out the test, or fail it where engines are required, if this engine cannot run here."""
    why = "switched off by WHALEWATCH_LIVE" if LIVE == "off" else install.missing(version)
    if why is None:
        return
    if LIVE == "require":
        pytest.fail(f"Docker {version} is required: {why}", pytrace=False)
    _left_out[f"Docker {version}"] = why
    pytest.skip(f"Docker {version}: {why}")


@pytest.fixture
def need() -> Callable[[Version], None]:
    """Leave out the test, or fail it where engines are required, if an engine cannot run here."""
    return _need


def _shared(version: Version) -> Iterator[Dockerd]:
    _need(version)
    with Dockerd(version) as engine:
        yield engine


@pytest.fixture(scope="session")
def dockerd20() -> Iterator[Dockerd]:
    """A real Docker 20.10 for all tests; nobody stops it or leaves containers in it."""
    yield from _shared("20.10")


@pytest.fixture(scope="session")
def dockerd26() -> Iterator[Dockerd]:
    """A real Docker 26.1 for all tests; nobody stops it or leaves containers in it."""
    yield from _shared("26.1")


_SHARED = {"20.10": "dockerd20", "26.1": "dockerd26"}


def _start_shared_engines(request: pytest.FixtureRequest) -> None:
    """Start the real engine of the `docker` fixture early, so that it does not look like the test's leak."""
    kind = request.node.callspec.params.get("docker") if hasattr(request.node, "callspec") else None
    if kind in _SHARED:
        request.getfixturevalue(_SHARED[kind])


@pytest.fixture
def make_dockerd() -> Iterator[Callable[..., Dockerd]]:
    """Start real engines for one test alone, to kill, freeze and restart: `make_dockerd(version, **options)`.

    Starting blocks: on a running loop call it by `asyncio.to_thread`.
    """
    with ExitStack() as engines:

        def start(version: Version, **options: Any) -> Dockerd:
            _need(version)
            return engines.enter_context(Dockerd(version, **options))

        yield start


@pytest.fixture(params=["fake", *(pytest.param(version, marks=pytest.mark.live) for version in VERSIONS)])
async def docker(request: pytest.FixtureRequest) -> AsyncIterator[Docker]:
    """A Docker engine: the fake one, and each of the real ones."""
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            from whalewatch.testing import FakeDocker  # noqa: PLC0415 - it is not for the tests of the engines

            fake = await stack.enter_async_context(FakeDocker())
            control = await stack.enter_async_context(DockerControl(fake.path))
            yield Docker(fake.address, control, "fake", fake, None)
            return
        engine: Dockerd = request.getfixturevalue(_SHARED[request.param])
        control = await stack.enter_async_context(DockerControl(engine.socket))
        await control.clean()
        stack.push_async_callback(control.clean)
        yield Docker(engine.address, control, request.param, None, engine)
