"""Watch an engine under supervision: every revision is folded, and every settled picture is held against the engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from tests.support import scripted
from tests.support.engines.control import DockerControl
from tests.support.followed import Followed, following
from whalewatch import Container, ContainerEvent, EventType, Origin, Watcher, moby

PATIENCE = scripted.PATIENCE

TOLD = {Origin.ENGINE, Origin.KERNEL}
"""Origins of what was told, and did not have to be found."""


def told(inspection: dict[str, Any]) -> dict[str, Any]:
    """What the engine says of one container, read independently of the library's own reading."""
    state, config = inspection["State"], inspection["Config"]
    networks = inspection["NetworkSettings"]["Networks"]
    addresses = {name: [a for a in (n["IPAddress"], n["GlobalIPv6Address"]) if a] for name, n in networks.items()}
    return {
        "id": inspection["Id"],
        "name": inspection["Name"][1:],
        "pid": state["Pid"],
        "paused": state["Paused"],
        "labels": config["Labels"] or {},
        "project": project_of(config["Labels"] or {}),
        "image": config["Image"],
        "started_at": _moment(state["StartedAt"]),
        "created_at": _moment(inspection["Created"]),
        "restarts": inspection["RestartCount"],
        "health": None if state["Paused"] else state.get("Health", {}).get("Status"),
        "privileged": inspection["HostConfig"]["Privileged"],
        "addresses": {name: found for name, found in addresses.items() if found},
    }


def _moment(text: str) -> datetime:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC, microsecond=int(f"{fraction:0<6}"[:6]))


def project_of(labels: Mapping[str, str]) -> str:
    """The project by the labels of a container; a compose project wins over a stack."""
    return labels.get("com.docker.compose.project") or labels.get("com.docker.stack.namespace", "")


def facts(container: object, *names: str) -> dict[str, Any]:
    """Some attributes of a container, by name."""
    return {name: getattr(container, name) for name in names}


def seen(container: Container) -> dict[str, Any]:
    """What the library says of one container, in the terms of `told`."""
    return {
        **facts(container, "id", "name", "pid", "paused", "labels", "project", "image", "privileged"),
        **facts(container, "started_at", "created_at", "restarts"),
        "health": container.health.value if container.health else None,
        "addresses": {name: [str(a) for a in addresses] for name, addresses in container.addresses.items()},
    }


def without_echoes(events: Iterable[ContainerEvent]) -> Iterator[ContainerEvent]:
    """Leave out the echo of a pause that was soon ended.

    containerd too tells dockerd of each pause. If it does so after the container was thawed, dockerd believes for a
    moment that it is paused again, and says so, also to an inspect: a real engine under load does it now and then.
    """
    thawed = False
    for event in events:
        if thawed and event.type in {EventType.PAUSED, EventType.UNPAUSED}:
            continue
        thawed = event.type is EventType.UNPAUSED or (thawed and event.type is EventType.UPDATED)
        yield event


class Checked(Followed):
    """A watcher under supervision, with the fold of all that an unfiltered subscription with replay has delivered.

    Attributes:
        echoes: whether its engine may tell of a pause twice: see `without_echoes`.
    """

    echoes = True

    def __init__(self, watcher: Watcher, control: Any = None) -> None:
        super().__init__(watcher)
        self.control = control

    async def truth(self) -> dict[str, dict[str, Any]]:
        """What the engine says is alive, by id, in the terms of `seen`."""
        return {id: told(inspection) for id, inspection in (await self.control.truth()).items()}

    def seen(self, container: Container) -> dict[str, Any]:
        """What the library says of one container, in the terms of `truth`."""
        return seen(container)

    def of(self, id: str) -> list[ContainerEvent]:
        """The events of one container so far, without what was replayed or found by the synchronisation."""
        return self.news(id)

    def news(self, id: str | None = None) -> list[ContainerEvent]:
        fake = self.watcher.engine.pid == os.getpid()  # which has no echoes: there, two pauses are a fault of ours
        return list(without_echoes(super().news(id))) if self.echoes and not fake else super().news(id)

    async def expect(self, id: str, *types: str) -> list[ContainerEvent]:
        """Wait until the events of a container are these, and return them."""
        try:
            await self.until(lambda: len(self.types(id)) >= len(types))
        except TimeoutError:
            raise AssertionError(f"expected {types}, got {self.types(id)}") from None
        assert self.types(id) == list(types)
        return self.of(id)

    async def settled(self) -> None:
        """Wait until the picture is the engine's, and what was folded is the picture."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            truth = await self.truth()
            snapshot = self.watcher.portfolio.snapshot()
            picture = {c.id: self.seen(c) for c in snapshot}
            if picture == truth and snapshot.synced and self.fold.revision == snapshot.revision:
                break
            if asyncio.get_running_loop().time() > deadline:
                assert snapshot.synced, self.watcher.status
                assert (picture, self.fold.revision) == (truth, snapshot.revision)
            await asyncio.sleep(0.02)
        self.fold.check(snapshot)


C = TypeVar("C", bound=Checked)


@asynccontextmanager
async def supervised(check: C) -> AsyncIterator[C]:
    """Enter a watcher, read its events, and hold the picture against the engine at the end."""
    async with following(check):
        yield check
        await check.settled()
        assert check.stats.drift == 0, "the audit had to repair something"


def checked(address: str, control: DockerControl, **options: Any) -> AbstractAsyncContextManager[Checked]:
    """Watch an engine under supervision; at the end the picture must be the engine's."""
    return supervised(Checked(moby.watch(address, **options), control))
