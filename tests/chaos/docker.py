"""Chaos in a real Docker engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Self
from zlib import crc32

import aiohttp

from tests.chaos.connection import KILLING, connection_faults, during
from tests.chaos.private import PrivateWorld
from tests.chaos.world import Fault, Operation
from tests.support.checker import seen, told
from tests.support.engines.control import ControlError, DockerControl
from tests.support.engines.dockerd import Dockerd, Version
from tests.support.engines.process import EngineFailedError
from tests.support.engines.proxy import Event, passed_on
from whalewatch import Container, Watcher, moby

CROWD = 12
"""Containers at most: each costs the engine memory, and each look at the truth a call."""

SICK = {"Test": ["CMD-SHELL", "test ! -f /sick"], "Interval": 1_000_000_000, "Retries": 1}

GIGANTIC = 6_000_000
"""Bytes of a line that is too long."""

NOISE = (
    b"\x00\xff\xfe rubbish \x1b[31m\n",
    b'{"Type": "container", "Action": "start"}\n',
    b'{"Type": "container", "Action": "die", "Actor": {"ID": 7}, "timeNano": "soon"}\n',
    b"[" * 20_000 + b"\n",
)

GIGANTIC_LINE = b'{"Type": "' + b"x" * GIGANTIC + b'"}\n'


class DockerWorld(PrivateWorld):
    """A Docker engine that survives what is done to it."""

    refusals: tuple[type[Exception], ...] = (ControlError, aiohttp.ClientError, OSError, TimeoutError)
    watching: ClassVar[dict[str, Any]] = {**PrivateWorld.watching, "call_timeout": 2.0}
    proves_subscriptions = True
    dated = True

    def __init__(self, version: Version, dice: Random) -> None:
        self._engine = Dockerd(version, live_restore=True)
        self._control = DockerControl(self._engine.socket)
        self._ids: list[str] = []
        self._network = ""
        self._deaths: dict[str, datetime] = {}
        super().__init__(f"Docker {version}", self._engine, dice, self._control)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._network = await self._control.network_create("chaos")
        return self

    def watcher(self, *, proxied: bool) -> Watcher:
        return moby.watch((self._proxy if proxied else self._engine).address, **self.options(proxied=proxied))

    async def truth(self) -> dict[str, dict[str, Any]]:
        try:
            inspections = await self._control.truth()
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        return {id: told(inspection) for id, inspection in inspections.items()}

    async def _hear(self) -> None:
        """Take down what the engine tells, beside all watchers."""
        async with DockerControl(self._engine.socket) as control:
            while True:
                with suppress(*self.refusals):
                    async with control.events(filters={"type": ["container", "network"]}) as events:
                        self.heard.append("a stream begins")
                        with self._heard_of.hearing():
                            async for event in events:
                                self._take_down(event)
                self.heard.append("the stream has ended")
                await asyncio.sleep(0.1)

    def _take_down(self, event: Event) -> None:
        action, actor = event["Action"], event["Actor"]
        if event["Type"] == "network":
            self._heard_of.note(actor["Attributes"].get("container", ""), event["timeNano"])
        elif not action.startswith("exec_"):
            moment = datetime.fromtimestamp(event["timeNano"] / 1e9, UTC)
            self.heard.append(f"{moment:%H:%M:%S.%f} {action} {actor['ID']:.12}")
            died = action == "die"
            if died:
                self._deaths[actor["ID"]] = moment
            exit_code = actor["Attributes"].get("exitCode") if died else None
            self._heard_of.note(actor["ID"], event["timeNano"], None if exit_code is None else int(exit_code))

    def told_of_exit(self, container: Container) -> bool:
        """Whether the engine itself said that this run had exited.

        Docker 26 takes a late notice of containerd's, of the exit of an earlier run, for the exit of the present one,
        says so to an inspect too, and then finds it running again.
        """
        assert container.started_at is not None
        died = self._deaths.get(container.id)
        return died is not None and died >= container.started_at

    async def revive(self) -> None:
        """Kill the engine and start it again: after all that is done to it, dockerd may hold a lock for ever.

        Containers that it cannot even inspect are left alone from then on: whatever is done to one takes the lock.
        """
        for id in [*self._ids]:
            try:
                async with asyncio.timeout(1):
                    await self._control.inspect(id)
            except TimeoutError:
                self._ids.remove(id)
            except self.refusals:
                pass
        await asyncio.to_thread(self._engine.kill)
        await self._start()

    async def _start(self) -> None:
        """Start the engine again; one that will not even start begins anew, at the same place, without anything."""
        await self._control.aclose()
        try:
            await asyncio.to_thread(self._engine.start)
        except EngineFailedError:
            await asyncio.to_thread(self._engine.close)
            self._ids.clear()
            await asyncio.to_thread(self._engine.start)
            self._network = await self._control.network_create("chaos")
            self.heard.append("it would not start, and was made anew")

    def seen(self, container: Container) -> dict[str, Any]:
        return seen(container)

    # -- operations --------------------------------------------------------------------------------------------------

    @property
    def operations(self) -> Mapping[str, Operation]:
        control = self._control
        return {
            "run": self._run,
            "run for a moment": lambda: self._run(cmd=["/bin/true"]),
            "start": lambda: control.start(self._any()),
            "kill": lambda: control.kill(self._any()),
            "stop": lambda: control.stop(self._any()),
            "restart": lambda: control.restart(self._any()),
            "pause": lambda: control.pause(self._any()),
            "unpause": lambda: control.unpause(self._any()),
            "pause and unpause": self._blink,
            "rename": lambda: control.rename(self._any(), self._name()),
            "remove": self._remove,
            "remove, and run under the same name": self._replace,
            "exec": self._exec,
            "connect": lambda: control.network_connect(self._network, self._any()),
            "disconnect": lambda: control.network_disconnect(self._network, self._any()),
            "fall ill or recover": self._sicken,
            "kill the process": self._kill_process,
        }

    def _any(self) -> str:
        if not self._ids:
            raise ControlError("nothing", 0, "no container yet")
        return self._dice.choice(self._ids)

    def _name(self) -> str:
        self._number += 1
        return f"chaos-{self._number}"

    async def _run(self, name: str | None = None, cmd: list[str] | None = None) -> None:
        if len(self._ids) >= CROWD:
            await self._remove()
        options: dict[str, Any] = {"labels": {"com.docker.compose.project": self._dice.choice(("red", "blue"))}}
        if cmd is not None:
            options["cmd"] = cmd
        if self._dice.random() < 0.3:
            options["network"] = self._network
        if self._dice.random() < 0.2:
            options["restart"] = "on-failure:2"
        if self._dice.random() < 0.1:
            options["health"] = SICK
        id = await self._control.create(name or self._name(), stop_signal="SIGKILL", **options)
        self._ids.append(id)
        await self._control.start(id)

    async def _blink(self) -> None:
        id = self._any()
        await self._control.pause(id)
        await self._control.unpause(id)

    async def _remove(self, id: str | None = None) -> None:
        id = id or self._any()
        await self._control.remove(id)
        with suppress(ValueError):
            self._ids.remove(id)

    async def _replace(self) -> None:
        id = self._any()
        name = (await self._control.inspect(id))["Name"][1:]
        await self._remove(id)
        await self._run(name)

    async def _exec(self) -> None:
        await self._control.exec(self._any(), ["/bin/true"])

    async def _sicken(self) -> None:
        await self._control.exec(self._any(), ["/bin/sh", "-c", "test -f /sick && busybox rm /sick || touch /sick"])

    async def _kill_process(self) -> None:
        id = self._any()
        _kill((await self._control.inspect(id))["State"]["Pid"], id)

    # -- faults ------------------------------------------------------------------------------------------------------

    @property
    def faults(self) -> Mapping[str, Mapping[str, Fault]]:
        return {
            "engine": {
                "engine killed": lambda: self._away(self._engine.kill),
                KILLING: lambda: self._away(self._engine.kill, killing=True),
                "engine stopped": lambda: self._away(self._engine.stop),
                "engine frozen": lambda: during(self._engine.freeze, self._engine.thaw),
                "containerd frozen": lambda: during(self._engine.freeze_containerd, self._engine.thaw_containerd),
            },
            "connection": connection_faults(self._proxy)
            | {
                "event streams ended": self._streams_ended,
                "events swallowed": lambda: self._rewritten(self._swallowing()),
                "events doubled": lambda: self._rewritten(lambda event: [event, event]),
                "events shuffled and late": self._shuffled,
                "noise among the events": lambda: self._injected(*self._dice.sample(NOISE, k=3)),
                "a gigantic line among the events": lambda: self._injected(GIGANTIC_LINE),
            },
        }

    @asynccontextmanager
    async def _away(self, leave: Any, *, killing: bool = False) -> AsyncIterator[None]:
        """Take the engine away; it comes back with live-restore or without, as chance will have it."""
        pids = {id: one["pid"] for id, one in (await self.truth()).items()} if killing else {}
        await asyncio.to_thread(leave)
        try:
            for id in self._dice.sample(sorted(pids), k=min(len(pids), 3)):
                _kill(pids[id], id)
            yield
        finally:
            self._engine.live_restore = self._dice.random() < 0.8
            await self._start()

    @asynccontextmanager
    async def _streams_ended(self) -> AsyncIterator[None]:
        self._proxy.end_streams()
        yield
        self._proxy.end_streams()

    @asynccontextmanager
    async def _rewritten(self, rewrite: Any) -> AsyncIterator[None]:
        self._proxy.rewrite = rewrite
        try:
            yield
        finally:
            self._proxy.rewrite = passed_on

    def _swallowing(self) -> Any:
        """Swallow every third event or so, and the same ones on each stream."""
        salt = self._dice.random()
        return lambda event: [] if crc32(f"{salt}{event}".encode()) % 3 == 0 else [event]

    @asynccontextmanager
    async def _shuffled(self) -> AsyncIterator[None]:
        held: list[Event] = []

        def rewrite(event: Event) -> Iterable[Event]:
            held.append(event)
            if len(held) < 5:
                return []
            told = self._dice.sample(held, k=len(held))
            held.clear()
            return told

        async with self._rewritten(rewrite):
            yield
        for event in held:
            self._proxy.inject(json.dumps(event).encode() + b"\n")

    @asynccontextmanager
    async def _injected(self, *lines: bytes) -> AsyncIterator[None]:
        for line in lines:
            self._proxy.inject(line)
        yield


def _kill(pid: int, id: str) -> None:
    """Kill a container's process itself, if it is still the container's."""
    with suppress(OSError):
        if pid > 0 and id in Path(f"/proc/{pid}/cgroup").read_text():
            os.kill(pid, signal.SIGKILL)
