"""A program that uses every public name, for type checkers: each assertion of a type must hold, and it is never run."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, assert_type

import aiodocker
import grpc.aio

import whalewatch
from whalewatch import containerd, cri, moby


class OwnEngine:
    """An adapter of one's own: the protocols need no base class."""

    type = "own"
    address = "own://engine"
    source = "events"
    pid: int | None = None
    client: object = None
    calls: Mapping[str, int] = {}
    progress = 0

    async def id(self) -> str:
        return "own"

    async def version(self) -> str:
        return "1"

    async def connect(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def signals(self) -> AsyncIterator[whalewatch.Signal]:
        yield whalewatch.Signal(whalewatch.SignalType.SUBSCRIBED)
        container = whalewatch.Container(id="a", name="a", pid=1)
        yield whalewatch.Signal(whalewatch.SignalType.STARTED, "a", pid=1, container=container, facts=container)

    async def listing(self) -> whalewatch.Listing:
        listed = whalewatch.ListedContainer(whalewatch.Container(id="a", name="a", pid=1))
        return whalewatch.Listing(containers={"a": listed}, absence_is_death=True)

    async def inspect(self, id: str, /) -> whalewatch.Container | whalewatch.Dead | None:
        return whalewatch.Dead(whalewatch.Container(id=id, name=id, pid=None), exit_code=0, oom=False)


def watchers(options: whalewatch.WatcherOptions, tls: ssl.SSLContext) -> None:
    assert_type(moby.watch("unix:///run/docker.sock", tls=tls, **options), whalewatch.Watcher[moby.MobyEngine])
    assert_type(moby.watch().engine.client, aiodocker.Docker | None)
    assert_type(containerd.watch(ignore=["moby"], max_containers=9).engine.client, grpc.aio.Channel | None)
    assert_type(cri.watch("unix:///run/crio.sock", source="poll", poll=1.0).engine.without_pid, int)
    assert_type(cri.watch("unix:///run/crio.sock", max_containers=9).engine.items_left_out, int)
    assert_type(whalewatch.moby.watch(retry=None), whalewatch.Watcher[moby.MobyEngine])
    assert_type(whalewatch.__version__, str)
    source: cri.SourceName = "native"
    engines: list[whalewatch.Engine] = [
        moby.MobyEngine(pack=docker_facts),
        containerd.ContainerdEngine(pack=containerd_facts),
        cri.CRIEngine("unix:///run/crio.sock", source=source, pack=cri_facts),
        OwnEngine(),
    ]
    progress: whalewatch.ReportsProgress = OwnEngine()
    assert_type(progress.progress, int)
    identities: list[whalewatch.ChecksIdentity] = [moby.MobyEngine(), containerd.ContainerdEngine()]
    assert len(identities) == 2
    retry = whalewatch.Retry(stable_after=5.0)
    watched: list[whalewatch.Watcher] = [whalewatch.Watcher(engine, retry=retry) for engine in engines]
    assert_type(watched[0].engine, whalewatch.Engine)


def docker_facts(container: whalewatch.Container, inspection: Mapping[str, Any]) -> object:
    return inspection["HostConfig"], container.id


def containerd_facts(container: whalewatch.Container, inspection: containerd.Inspection) -> bytes:
    assert_type(inspection.labels, Mapping[str, str])
    return inspection.spec


def cri_facts(container: whalewatch.Container, inspection: cri.Inspection) -> str:
    return inspection.runtime_handler


packs: tuple[moby.Pack, containerd.Pack, cri.Pack] = (docker_facts, containerd_facts, cri_facts)


async def values(portfolio: whalewatch.Portfolio) -> None:
    snapshot = portfolio.snapshot()
    assert_type(snapshot, whalewatch.Snapshot)
    assert_type(await portfolio.projects(), tuple[whalewatch.Project, ...])
    assert_type(await portfolio.pods(), tuple[whalewatch.Pod, ...])
    for container in snapshot:
        assert_type(container.labels, whalewatch.FrozenMapping[str])
        assert_type(container.addresses, whalewatch.FrozenMapping[tuple[whalewatch.IPAddress, ...]])
        assert_type(container.ports, tuple[whalewatch.Port, ...])
        assert_type(container.health, whalewatch.Health | None)
        assert_type(container.started_at, datetime | None)
        assert_type((container.key, container.service, container.replica), tuple[tuple[str, str], str, int | None])
        assert_type(container.to_dict(), dict[str, Any])
        assert_type(whalewatch.Container.from_dict(container.to_dict()), whalewatch.Container)
    assert_type(whalewatch.Snapshot.from_dict(snapshot.to_dict()), whalewatch.Snapshot)
    assert_type(await portfolio.wait_for(lambda container: container.name == "web", timeout=1.0), whalewatch.Container)
    assert_type(await portfolio.container("web"), whalewatch.Container | None)
    assert_type(await portfolio.wait_gone("web"), whalewatch.ContainerEvent | None)
    async for picture in portfolio.changes(debounce=0.1):
        assert_type(picture, whalewatch.Snapshot)
    try:
        assert_type(await portfolio.wait_healthy("web"), whalewatch.Container)
    except whalewatch.NotHealthy as error:
        assert_type(error.container, whalewatch.Container | None)
        assert_type(error.event, whalewatch.ContainerEvent | None)


async def events(watcher: whalewatch.Watcher) -> None:
    def last(event: whalewatch.ContainerEvent) -> bool:
        return event.last

    async with watcher.events(types=[whalewatch.EventType.EXITED], where=last, brief=False) as subscription:
        assert_type(subscription, whalewatch.Subscription)
        assert_type(subscription.stats, whalewatch.SubscriptionStats)
        async for event in subscription:
            assert_type(event, whalewatch.ContainerEvent)
            assert_type(whalewatch.ContainerEvent.from_dict(event.to_dict()), whalewatch.ContainerEvent)
            assert_type(event.exit_code, int | None)
            assert_type((event.oom, event.requested), tuple[bool | None, bool | None])
            assert_type(event.brief, bool)
            assert_type(event.origin, whalewatch.Origin)
    async for status in watcher.status_changes():
        assert_type(status, whalewatch.Status)
        assert_type(status.state, whalewatch.WatchState)
        assert_type(status.error, whalewatch.WhalewatchError | None)
    assert_type(watcher.stats, whalewatch.Stats)
    assert_type(watcher.stats.calls, Mapping[str, int])
    assert_type(watcher.stats.kernel, whalewatch.KernelStats)
    assert_type(watcher.stats.kernel.refused, Mapping[str, int])
    assert_type(watcher.endings, tuple[whalewatch.ContainerEvent, ...])


def without_a_loop() -> None:
    with whalewatch.in_thread(moby.watch()) as watcher:
        assert_type(watcher, whalewatch.BlockingWatcher[moby.MobyEngine])
        assert_type(watcher.ready(timeout=1.0), None)
        assert_type(watcher.engine, moby.MobyEngine)
        assert_type(watcher.portfolio.snapshot(), whalewatch.Snapshot)
        assert_type(watcher.container("web"), whalewatch.Container | None)
        assert_type(watcher.wait_for(lambda container: container.name == "web"), whalewatch.Container)
        with watcher.events(where=lambda event: event.last) as events:
            assert_type(events, whalewatch.BlockingSubscription)
            for event in events:
                assert_type(event, whalewatch.ContainerEvent)
        for status in watcher.status_changes():
            assert_type(status, whalewatch.Status)
        assert_type(watcher.endings, tuple[whalewatch.ContainerEvent, ...])


async def errors(watcher: whalewatch.Watcher) -> str:
    try:
        await watcher.ready(1.0)
    except whalewatch.NotSynced as error:
        assert_type(error.__cause__, BaseException | None)
        return "late"
    except (whalewatch.EngineUnavailable, whalewatch.EngineTimeout) as error:
        lost: whalewatch.EngineError = error
        return str(lost)
    except (whalewatch.UnsupportedEngine, whalewatch.ProtocolViolation) as error:
        unusable: whalewatch.EngineError = error
        return str(unusable)
    except (whalewatch.AddressError, whalewatch.WatchEnded) as error:
        base: whalewatch.WhalewatchError = error
        return str(base)
    return ""
