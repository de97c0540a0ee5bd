"""Ids and names of namespaces are checked at the door: in listings, in events, and before something is asked."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.grpc.test_bounds import field
from tests.support.cri_followed import Containerd, connected
from tests.support.followed import eventually, followed
from whalewatch import Signal, SignalType, containerd, cri
from whalewatch._wire import containerd_pb2
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.members import Members
from whalewatch.containerd.reading import signal, split
from whalewatch.cri import pod_events
from whalewatch.testing import FakeContainerd, FakeCRI

BAD = ("", ".", "..", "../x", "a/b", "a\nb", "\x1b]0;x\x07", "x y", "é", "\udcff", "x" * 256)
"""What no engine has as an id, or as a part of one."""


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.getMessage() for r in caplog.records if "is not valid: left out" in r.getMessage()]
    assert all(text.isprintable() for text in found)
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


async def test_hostile_namespaces_and_ids_of_containerd_are_left_out_and_never_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FakeContainerd() as fake:
        fake.run("web", "good-1.x_y")
        names = [*map(raw, BAD), b"good-1.x_y"]
        listed = {
            "namespace_list": [field(1, field(1, name)) for name in names],
            "task_list": [field(1, field(2, name) + b"\x18\x07\x20\x02") for name in [*names, b"web"]],
            "container_list_stream": [field(1, field(1, raw(BAD[5])))],
        }
        async with followed(containerd.watch(fake.address)) as follow:
            adapter: Any = follow.watcher.engine
            for kind, answer in listed.items():
                before = adapter.items_left_out
                with fake.faults.garble(kind, b"".join(answer)):
                    assert (await adapter.listing()).containers.keys() <= {"good-1.x_y/web"}
                    await adapter.listing()  # they are counted once
                assert adapter.items_left_out - before == len(answer) - {"task_list": 2}.get(kind, kind[0] == "n")
            assert fake.requests["task_list"] == fake.requests["container_list_stream"] == 8
            for name in map(raw, BAD):
                start = containerd_pb2.TaskStart(container_id=name, pid=7).SerializeToString()
                fake.tell("/tasks/start", "containerd.events.TaskStart", start, "good-1.x_y")
            await eventually(lambda: follow.stats.lost == len(BAD))
            asked = fake.requests["task_get"]
            for bad in BAD:
                for id in (bad, f"{bad}/web", f"good-1.x_y/{bad}", f"../{bad}"):
                    if id != "a/b":
                        assert await adapter.inspect(id) is None, id
            assert fake.requests["task_get"] == asked
            assert await adapter.inspect("good-1.x_y/web") is not None
    assert len(warnings(caplog)) == 2, "one of a listing, one of an event"


@pytest.mark.parametrize("source", ["native", "pod-events", "poll"])
async def test_hostile_ids_of_the_cri_are_left_out_and_never_sent(
    source: Any, containerd_with_cri: Containerd, caplog: pytest.LogCaptureFixture
) -> None:
    fake = containerd_with_cri
    lost = wire.Container(id=b"lost", pod_sandbox_id=b"a\nb", state=wire.CONTAINER_RUNNING)
    listed: dict[str, list[Any]] = {
        "container_list": [*(wire.Container(id=raw(id)) for id in BAD), lost],
        "pod_list": [wire.PodSandbox(id=raw(id)) for id in BAD],
    }
    async with connected(fake, source) as adapter:
        for kind, items in listed.items():
            with fake.faults.garble(kind, b"".join(field(1, one.SerializeToString()) for one in items)):
                found = (await adapter.listing()).containers
                assert found.keys() == ({"lost", fake.pod} if kind == "container_list" else {fake.web}) | (
                    {fake.pod, fake.web} if source == "native" else set()
                )
        assert adapter.items_left_out == 2 * len(BAD)
        before = fake.requests + fake.native.requests
        for id in BAD:
            assert await adapter.inspect(id) is None
        assert fake.requests + fake.native.requests == before
    assert len(warnings(caplog)) == (1 if source != "pod-events" else 2), "pod events of containerd are told to harm"


@pytest.fixture
async def containerd_with_cri() -> Any:
    async with Containerd() as running:
        yield running


async def test_pod_event_with_a_hostile_id_is_lost() -> None:
    async with FakeCRI() as fake, followed(cri.watch(fake.address, source="pod-events")) as follow:
        for name in BAD:
            fake.publish(field(1, raw(name)) + b"\x10\x01")
        await eventually(lambda: follow.stats.lost == len(BAD))


def test_ids_that_containerd_allows_are_split_and_pids_that_are_none_are_not_taken() -> None:
    assert split("a.b-c_d/e.f-g_h") == ("a.b-c_d", "e.f-g_h")

    def told(topic: bytes, event: Any) -> Any:
        envelope = containerd_pb2.Envelope(topic=topic, namespace=b"default")
        envelope.event.type_url = f"containerd.events.{type(event).DESCRIPTOR.name}".encode()
        envelope.event.value = event.SerializeToString()
        return signal(envelope.SerializeToString(), "")

    for pid, read in ((1, 1), (2**31 - 1, 2**31 - 1), (2**31, None), (0, None)):
        assert told(b"/tasks/start", containerd_pb2.TaskStart(container_id=b"c", pid=pid)).pid == read
        exited = told(b"/tasks/exit", containerd_pb2.TaskExit(container_id=b"c", id=b"c", pid=pid))
        assert (exited.type, exited.pid) == (SignalType.EXITED if read else SignalType.CHANGED, read)


# ---- what an event costs


def test_containers_of_a_sandbox_are_known_without_a_look_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whalewatch.containerd.members.MAX_CONTAINERS", 3)
    members = Members()
    for id, sandbox in (("a", "s"), ("b", "s"), ("c", "t"), ("a", "t")):
        members.add(id, sandbox)
    assert (members.of("s"), members.of("t"), members.of("u")) == (["b"], ["c", "a"], [])
    members.remove("c")
    members.remove("c")
    for id in ("d", "e"):
        members.add(id, "s")
    assert (members.of("t"), members.of("s")) == (["a"], ["d", "e"]), "the oldest is forgotten"


class Untouched(dict[str, Any]):
    """All that is known, which nobody goes through."""

    def items(self) -> Any:
        raise AssertionError

    __iter__ = items


@pytest.mark.parametrize("source", ["native", "pod-events", "poll"])
async def test_event_costs_the_same_whatever_the_number_of_containers(
    source: Any, containerd_with_cri: Containerd
) -> None:
    fake = containerd_with_cri
    async with connected(fake, source) as adapter:
        await adapter.listing()
        link: Any = adapter._current_source._link  # type: ignore[attr-defined]
        link.records._entries = Untouched(link.records._entries)
        exited = Signal(SignalType.EXITED, fake.pod)
        assert [(one.type, one.id) for one in link.exited(exited)] == [
            (SignalType.EXITED, fake.pod),
            (SignalType.CHANGED, fake.web),
        ]
        assert link.exited(Signal(SignalType.EXITED, fake.web))[1:] == []
        assert link.records.members(fake.pod) == []
        assert await adapter.inspect(fake.web) is not None
        assert link.records.members(fake.pod) == [fake.web]
        if source == "poll":
            signals = adapter.signals()
            await anext(signals)
            adapter._current_source._refreshed = False  # type: ignore[attr-defined]
            adapter._current_source._report(exited)  # type: ignore[attr-defined]
            assert await anext(signals) == exited
            await signals.aclose()  # type: ignore[attr-defined]


async def test_pod_events_that_nobody_reads_are_replaced_by_their_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_events, "MAX_UNREAD", 8)
    async with FakeCRI() as fake, connected(fake, "pod-events") as adapter:
        signals = adapter.signals()
        await anext(signals)
        pod = fake.run_pod("shop")
        ids = [fake.run(pod, f"c{number}") for number in range(20)]
        stream: Any = adapter._current_source._streams[0]  # type: ignore[attr-defined]
        await eventually(lambda: [one.id for one in stream.signals._queue][-1:] == [ids[-1]])
        found = [await anext(signals)]
        while found[-1].id != ids[-1]:
            found.append(await anext(signals))
        assert found[0].type is SignalType.LOST
        assert [one.id for one in found[1:]] == ids[-len(found) + 1 :]
        await signals.aclose()  # type: ignore[attr-defined]
