"""Chaos in a real Docker engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any, ClassVar, Self
from zlib import crc32

import aiohttp

from tests.chaos.world import Fault, Operation, World, during
from tests.support.checker import seen, told
from tests.support.engines.control import ControlError, DockerControl
from tests.support.engines.dockerd import Dockerd, Version
from tests.support.engines.process import EngineFailedError
from tests.support.engines.proxy import Event, passed_on
from whalewatch import Container, moby

CROWD = 12  # containers at most: each costs the engine memory, and each look at the truth a call

SICK = {"Test": ["CMD-SHELL", "test ! -f /sick"], "Interval": 1_000_000_000, "Retries": 1}

NOISE = (
    b"\x00\xff\xfe rubbish \x1b[31m\n",
    b'{"Type": "container", "Action": "start"}\n',
    b'{"Type": "container", "Action": "die", "Actor": {"ID": 7}, "timeNano": "soon"}\n',
    b"[" * 20_000 + b"\n",
)

GIGANTIC_LINE = b'{"Type": "' + b"x" * 6_000_000 + b'"}\n'


class DockerWorld(World):
    """A Docker engine that survives what is done to it."""

    refusals = (ControlError, aiohttp.ClientError, OSError, ExceptionGroup)
    watch = staticmethod(moby.watch)
    watching: ClassVar[dict[str, Any]] = {**World.watching, "call_timeout": 2.0}
    proves_subscriptions = dated = True

    def __init__(self, version: Version, dice: Random) -> None:
        self._engine = Dockerd(version, live_restore=True)
        self._control, self._ear = DockerControl(self._engine.socket), DockerControl(self._engine.socket)
        self._ids: list[str] = []
        self._network = ""
        self._deaths: dict[str, datetime] = {}
        super().__init__(self._engine, dice, self._control, self._ear)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._network = await self._control.network_create("chaos")
        return self

    async def truth(self) -> dict[str, dict[str, Any]]:
        return {id: told(inspection) for id, inspection in (await self._control.truth()).items()}

    def seen(self, container: Container) -> dict[str, Any]:
        return seen(container)

    def _events(self) -> AbstractAsyncContextManager[Any]:
        return self._ear.events(filters={"type": ["container", "network"]})

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
        await super().revive()

    async def _start(self) -> None:
        """Start the engine again, with live-restore or without, as chance will have it.

        One that will not even start begins anew, at the same place, without anything.
        """
        await self._control.aclose()
        self._engine.live_restore = self._dice.random() < 0.8
        try:
            await asyncio.to_thread(self._engine.start)
        except EngineFailedError:
            await asyncio.to_thread(self._engine.close)
            self._ids.clear()
            await asyncio.to_thread(self._engine.start)
            self._network = await self._control.network_create("chaos")
            self.heard.append("it would not start, and was made anew")

    @property
    def operations(self) -> Mapping[str, Operation]:
        control = self._control
        return {
            "run": self._run,
            "run for a moment": lambda: self._run(cmd=["/bin/true"]),
            "start": lambda: self._do(control.start),
            "kill": lambda: self._do(control.kill),
            "stop": lambda: self._do(control.stop),
            "restart": lambda: self._do(control.restart),
            "pause": lambda: self._do(control.pause),
            "unpause": lambda: self._do(control.unpause),
            "pause and unpause": lambda: self._do(control.pause, control.unpause),
            "rename": lambda: control.rename(self._any(), self._name()),
            "remove": self._remove,
            "remove, and run under the same name": self._replace,
            "exec": lambda: control.exec(self._any(), ["/bin/true"]),
            "connect": lambda: control.network_connect(self._network, self._any()),
            "disconnect": lambda: control.network_disconnect(self._network, self._any()),
            "fall ill or recover": lambda: control.exec(
                self._any(), ["/bin/sh", "-c", "test -f /sick && busybox rm /sick || touch /sick"]
            ),
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

    async def _do(self, *operations: Callable[[str], Awaitable[object]]) -> None:
        id = self._any()
        for operate in operations:
            await operate(id)

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

    async def _kill_process(self) -> None:
        id = self._any()
        self._kill([(id, (await self._control.inspect(id))["State"]["Pid"])], 1)

    @property
    def faults(self) -> dict[str, dict[str, Fault]]:
        engine, proxy, faults = self._engine, self._proxy, super().faults
        freeze = partial(asyncio.to_thread, engine.containerd.freeze)
        faults["engine"]["containerd frozen"] = lambda: during(freeze, engine.containerd.thaw)
        faults["connection"] |= {
            "event streams ended": lambda: during(proxy.end_streams, proxy.end_streams),
            "event streams cut whenever they are idle": lambda: proxy.idle_cuts(self._dice.uniform(0.05, 1.0)),
            "calls refused": self._refused,
            "events swallowed": self._swallowed,
            "events doubled": lambda: self._rewritten(lambda event: [event, event]),
            "events shuffled and late": self._shuffled,
            "noise among the events": lambda: during(partial(self._inject, *self._dice.sample(NOISE, k=3))),
            "newlines between events left out": lambda: during(
                partial(setattr, proxy, "newline", b""), partial(setattr, proxy, "newline", b"\n")
            ),
            "compression where it is allowed": lambda: during(
                partial(self._compress, True), partial(self._compress, False)
            ),
            "a gigantic line among the events": lambda: during(partial(self._inject, GIGANTIC_LINE)),
        }
        return faults

    def _inject(self, *lines: bytes) -> None:
        for line in lines:
            self._proxy.inject(line)

    def _refused(self) -> AbstractAsyncContextManager[None]:
        """Refuse calls of some kind, as a proxy does that does not allow their path."""
        path = self._dice.choice((rb"_ping", rb"info", rb"containers/json", rb"containers/\w+/json"))
        put = partial(setattr, self._proxy, "refused")
        return during(partial(put, re.compile(rb"GET (/v[\d.]+)?/" + path + rb" ")), partial(put, None))

    def _compress(self, compressing: bool) -> None:
        self._proxy.compressing = compressing
        self._proxy.end_streams()

    def _rewritten(self, rewrite: Callable[[Event], Iterable[Event]]) -> AbstractAsyncContextManager[None]:
        put = partial(setattr, self._proxy, "rewrite")
        return during(partial(put, rewrite), partial(put, passed_on))

    def _swallowed(self) -> AbstractAsyncContextManager[None]:
        """Swallow every third event or so, and the same ones on each stream."""
        salt = self._dice.random()
        return self._rewritten(lambda event: [] if crc32(f"{salt}{event}".encode()) % 3 == 0 else [event])

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
        self._inject(*(json.dumps(event).encode() + b"\n" for event in held))
