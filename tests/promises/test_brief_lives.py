"""Containers that are dead before they can be read: each start that the engine tells is told, and then its exit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from typing import Any

import attrs
import pytest

from tests.conftest import FAKE_CRIS, ContainerdUnderTest, Docker
from tests.promises.conftest import CRIS, Subject
from tests.support import checker, containerd_checker, cri_checker
from tests.support.checker import TOLD, Checked
from tests.support.engines.containerd import PAUSE_IMAGE
from tests.support.engines.cri_control import CRIControl, Pod
from whalewatch import ContainerEvent, EventType
from whalewatch.testing import FakeCRI

pytestmark = pytest.mark.promise(2)

CODE = 3
ENDS = ["/bin/sh", "-c", f"exit {CODE}"]
COUNT, BURST = 30, 200

STARTED, EXITED = EventType.STARTED, EventType.EXITED

Run = Callable[[str], Awaitable[str]]
"""Runs what ends at once by itself, under this name, and returns its id when it has ended."""


@attrs.frozen
class Story:
    """What ends at once, and who watches.

    Attributes:
        run: runs it.
        checked: watches the engine under supervision.
        facts: what is told of each, besides its id; by default its name.
        burst: how many are run in a burst, as many at a time as the engine takes.
    """

    run: Run
    checked: AbstractAsyncContextManager[Checked]
    facts: Callable[[str], dict[str, Any]] = lambda name: {"name": name}
    burst: int = BURST


def told_whole(events: Sequence[ContainerEvent], code: int | None, facts: dict[str, Any]) -> None:
    """Of one container, starts and exits are told in turns, with all that is known of them."""
    assert [event.type for event in events] == [STARTED, EXITED] * (len(events) // 2)
    assert {event.origin for event in events} <= TOLD
    assert {event.exit_code for event in events if event.type is EXITED} == {code}
    assert all(one.timestamp <= other.timestamp for one, other in pairwise(events))
    for event in events:
        assert {name: getattr(event.container, name) for name in facts} == facts
        assert (event.container.pid is None) is event.brief
    assert all(one.revision < other.revision for one, other in pairwise(events))


async def thirty_are_told(story: Story) -> None:
    """One after another, so that the engine's clients, not its queue, are what is raced against."""
    async with story.checked as check:
        names = [f"brief-{number}" for number in range(COUNT)]
        ids = [await story.run(name) for name in names]
        await all_told(check, ids)
        for id, name in zip(ids, names, strict=True):
            told_whole(check.of(id), CODE, story.facts(name))
        calls = check.stats.calls
        assert sum(calls.get(kind, 0) for kind in ("inspect", "task")) <= 4 * COUNT // 3, (
            "hardly more than one inspect of each"
        )
        await nothing_is_told_twice(check, ids)


async def burst_is_told(story: Story) -> None:
    async with story.checked as check:
        names = [f"brief-{number}" for number in range(story.burst)]
        ids = await asyncio.gather(*map(story.run, names))
        await all_told(check, ids)
        for id, name in zip(ids, names, strict=True):
            told_whole(check.of(id), CODE, story.facts(name))


async def all_told(check: Checked, ids: Sequence[str]) -> None:
    try:
        await check.until(lambda: all(len(check.of(id)) == 2 for id in ids))
    except TimeoutError:
        counts = [sum(e.type is type_ for id in ids for e in check.of(id)) for type_ in (STARTED, EXITED)]
        raise AssertionError(f"of {len(ids)} these were told to start and to exit: {counts}") from None


async def nothing_is_told_twice(check: Checked, ids: Sequence[str]) -> None:
    """An audit, and the stream that it opens anew, on which the engine may repeat itself, do not tell of them again."""
    session = check.watcher._session
    assert session is not None
    audits = check.stats.audits
    session._audits.request()
    await check.until_stats(lambda stats: stats.audits > audits)
    await asyncio.sleep(0.1)
    assert [len(check.of(id)) for id in ids] == [2] * len(ids)


async def restarts_are_told(
    checked: AbstractAsyncContextManager[Checked], again: Callable[[], Awaitable[tuple[str, int]]]
) -> None:
    """Many runs of one id, one right after the other, are told in their order."""
    async with checked as check:
        id, count = await again()
        await check.until(lambda: len(check.of(id)) >= 2 * count)
        told_whole(check.of(id), CODE, {"name": "again"})
        assert len(check.of(id)) == 2 * count


# ---- Docker

LABELS = {"a": "1", "com.docker.compose.project": "shop"}


def of_docker(docker: Docker, *, removed: bool) -> Story:
    async def run(name: str) -> str:
        if docker.fake is None:
            id = await docker.control.create(name, cmd=ENDS, labels=LABELS, auto_remove=removed)
            await docker.control.start(id)
            if not removed:
                await docker.control.wait(id)
            return id
        id = docker.fake.run(name, labels=LABELS)
        docker.fake.exit(id, CODE)
        if removed:
            docker.fake.remove(id)
        return id

    def facts(name: str) -> dict[str, Any]:
        image = "tiny" if docker.fake else "tiny:latest"
        return {"name": name, "image": image, "labels": LABELS, "project": "shop", "engine": docker.address}

    watching = checker.checked(docker.address, docker.control)
    return Story(run, watching, facts, BURST if docker.fake else COUNT)


@pytest.mark.parametrize("removed", [False, True], ids=["kept", "removed"])
async def test_docker(docker: Docker, removed: bool) -> None:
    await thirty_are_told(of_docker(docker, removed=removed))


async def test_burst_of_docker(docker: Docker) -> None:
    await burst_is_told(of_docker(docker, removed=False))


async def test_restarts_of_docker(docker: Docker) -> None:
    async def again() -> tuple[str, int]:
        if docker.fake is None:
            starts = {"type": ["container"], "event": ["start"]}
            async with docker.control.events(filters=starts) as events:
                id = await docker.control.run("again", cmd=ENDS, restart="always")
                count = len([await anext(events) for _ in range(5)])
            await docker.control.stop(id)
            return id, count
        id = docker.fake.run("again")
        docker.fake.exit(id, CODE)
        for _ in range(COUNT // 2 - 1):  # each run has four events, and 64 are kept of one container
            docker.fake.start(id)
            docker.fake.exit(id, CODE)
        return id, COUNT // 2

    await restarts_are_told(checker.checked(docker.address, docker.control), again)


# ---- containerd


def of_containerd(containerd: ContainerdUnderTest, *, removed: bool) -> Story:
    async def run(name: str) -> str:
        await containerd.control.run(name, cmd=ENDS, labels=LABELS)
        await containerd.control.wait(name)
        if removed:
            await containerd.control.task_delete(name)
            await containerd.control.container_delete(name)
        return name

    def facts(name: str) -> dict[str, Any]:
        more = {} if removed else {"image": "tiny:latest", "labels": LABELS, "project": "shop"}
        return {"name": name, "engine": containerd.address, **more}

    return Story(run, containerd_checker.checked(containerd.address, containerd.control), facts)


@pytest.mark.parametrize("removed", [False, True], ids=["kept", "removed"])
async def test_containerd(containerd: ContainerdUnderTest, removed: bool) -> None:
    await thirty_are_told(of_containerd(containerd, removed=removed))


@pytest.mark.slow
async def test_burst_of_containerd(containerd: ContainerdUnderTest) -> None:
    await burst_is_told(of_containerd(containerd, removed=False))


async def test_restarts_of_containerd(containerd: ContainerdUnderTest) -> None:
    async def again() -> tuple[str, int]:
        await containerd.control.run("again", cmd=ENDS)
        for _ in range(COUNT - 1):
            await containerd.control.wait("again")
            await containerd.control.rerun("again")
        await containerd.control.wait("again")
        return "again", COUNT

    await restarts_are_told(containerd_checker.checked(containerd.address, containerd.control), again)


# ---- the CRI


def of_cri(control: CRIControl, pod: Pod, checked: AbstractAsyncContextManager[Checked]) -> Story:
    async def run(name: str) -> str:
        id = await control.run(pod, name, cmd=ENDS, labels={"a": "1"})
        await control.exited(id)
        return id

    return Story(run, checked, lambda name: {"name": name, "image": PAUSE_IMAGE})


@pytest.mark.live
@pytest.mark.parametrize("subject", [cri for cri in CRIS if "poll" not in cri], indirect=True)
async def test_cri(subject: Subject) -> None:
    pod = await subject.control.run_pod("home")
    await thirty_are_told(of_cri(subject.control, pod, subject.checked(heartbeat=10.0)))


async def test_cri_with_pod_events() -> None:
    async with FakeCRI(**FAKE_CRIS["fake-cri-o"]) as fake, CRIControl(fake.path) as control:
        pod = await control.run_pod("home")
        await thirty_are_told(of_cri(control, pod, cri_checker.checked(fake.address, control)))
