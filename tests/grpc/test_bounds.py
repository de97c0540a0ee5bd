"""How much is taken from a gRPC engine: what is too large or too many is refused, and costs little."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from tests.support.cri_followed import bare
from tests.support.programs import child
from whalewatch import EngineError, ProtocolViolation, containerd, cri
from whalewatch._grpc.items import MAX_FIELDS, MAX_ITEM, TooLarge, fields, parse
from whalewatch._wire import cri_pb2 as wire
from whalewatch.containerd.calls import MAX_NAMESPACES
from whalewatch.containerd.namespaces import WORKERS
from whalewatch.testing import FakeContainerd, FakeCRI

MB = 1024 * 1024

MOST_MEMORY = 150.0  # megabytes

LONGEST_STALL = 1.0  # seconds


def field(number: int, value: bytes) -> bytes:
    size, encoded = len(value), bytearray([number << 3 | 2])
    while size >= 128:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes([*encoded, size]) + value


def empty(number: int, size: int = 32 * MB) -> bytes:
    """So many bytes of empty messages."""
    return field(number, b"") * (size // 2)


MANY = {
    "a million namespaces": ("namespace_list", empty(1, 2_000_000), "lists more than 10,000 namespaces"),
    "16 million namespaces": ("namespace_list", empty(1), "lists more than 10,000 namespaces"),
    "numbers": ("namespace_list", b"\x78\x00" * 16 * MB, "lists more than 10,000 namespaces"),
    "tasks": ("task_list", empty(1), "lists more than 100,000 tasks, .*: if that many are right, raise max_containers"),
    "labels": ("container_list_stream", field(1, field(1, b"c") + empty(2)), "answer to containers is too large: 335"),
    "few labels": ("container_list_stream", field(1, empty(2, 4 * MB - 8)), "is too large: more than 65536 fields"),
    "a field": ("container_list_stream", field(1, bytes(64 * MB - 8)), "RESOURCE_EXHAUSTED"),
    "a task": ("task_get", field(1, empty(13)), "answer to task is too large: 335"),
    "CRI containers": ("container_list", empty(1), "lists more than 100,000 containers"),
    "CRI sandboxes": ("pod_list", empty(1), "lists more than 100,000 sandboxes"),
    "annotations": ("container_list", field(1, field(1, b"c") + empty(9)), "answer to containers is too large: 335"),
    "information": ("container_status", empty(2), "answer to container-status is too large: 335"),
    "statuses": ("event", field(1, b"c1") + empty(5), "LOST"),
    "few statuses": ("event", field(1, b"c1") + empty(5, 4 * MB - 8), "LOST"),
}
"""What an engine answers by, in place of a call or as an event, and what is said about it."""


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY)
async def test_what_is_too_much_is_refused_at_little_cost(case: str) -> None:
    kind, answer, said = MANY[case]
    is_cri = kind in {"container_list", "pod_list", "container_status", "event"}
    fake: Any = FakeCRI() if is_cri else FakeContainerd()
    async with fake:
        id = fake.run(bare(fake), "web") if is_cri else "web"
        if not is_cri:
            fake.run(id)
        how = {"container_status": "inspect", "task_get": "inspect", "event": "event"}.get(kind, "listing")
        async with child("-m", "tests.grpc.refusing", how, fake.address, id) as asking:
            assert await asking.line() == "ready\n"
            if kind == "event":
                fake.publish(answer)
            else:
                fake.faults.garble(kind, answer)
            code, told, error = await asking.ended()
    assert code == 0, error
    memory, stall, found = told.split(" ", 2)
    assert float(memory) < MOST_MEMORY
    assert float(stall) < LONGEST_STALL
    assert re.search(said, found), found


def test_messages_are_read_as_protobuf_reads_them_and_bounded_before() -> None:
    labels = [wire.Entry(key=b"k" * size, value=b"v") for size in (0, 1, 127, 128, 20_000)]
    one = wire.Container(id=b"c", labels=labels, created_at=-1, state=wire.CONTAINER_UNKNOWN)
    message = wire.ListContainersResponse(containers=[one, wire.Container()]).SerializeToString()
    assert [parse(wire.Container, message, start, end) for _, start, end in fields(message)] == [one, wire.Container()]
    others = b"\x29" + bytes(8) + b"\x2d" + bytes(4) + b"\xf8\xff\x01\x05" + field(1, b"x")
    assert [(number, others[start:end]) for number, start, end in fields(others)][3:] == [(1, b"x")]
    for nonsense in (b"\x0a", b"\x0a\x05x", b"\x0b", b"\x29x", b"\x08", b"\x08" + b"\xff" * 10 + b"\x01", b"\xff"):
        with pytest.raises(DecodeError):
            list(fields(nonsense))
    parse(wire.Container, empty(8, 2 * MAX_FIELDS))
    for large in (bytes(MAX_ITEM + 1), empty(8, 2 * MAX_FIELDS + 2)):
        with pytest.raises(TooLarge):
            parse(wire.Container, large)
    within = wire.ContainerStatusResponse(status=wire.ContainerStatus(message=b"x")).SerializeToString()
    with pytest.raises(TooLarge, match="fields"):  # of a part
        parse(wire.ContainerStatusResponse, within + field(1, empty(12, 2 * MAX_FIELDS + 2)))
    text = empty(2, MB)  # not counted: it is text
    assert parse(wire.ContainerStatusResponse, field(1, field(11, text))).status.message == text


async def test_listing_takes_so_many_containers_of_all_namespaces_and_each_namespace_once() -> None:
    async with FakeContainerd() as fake:
        for number in range(3):
            fake.run("web", f"space{number}")
        names = b"".join(field(1, field(1, b"space%d" % (number % 3))) for number in range(9))
        fake.faults.garble("namespace_list", names)
        for most in (2, 3):
            engine = containerd.ContainerdEngine(fake.address, max_containers=most)
            await engine.connect()
            before = fake.requests["task_list"]
            if most == 2:
                with pytest.raises(ProtocolViolation, match=r"more than 2 tasks, .*raise max_containers"):
                    await engine.listing()
            else:
                assert len((await engine.listing()).containers) == engine.max_containers == 3
                assert fake.requests["task_list"] == before + 3
            await engine.close()
        fake.faults.clear()
        fake.faults.garble(
            "namespace_list", b"".join(field(1, field(1, b"n%d" % n)) for n in range(MAX_NAMESPACES + 1))
        )
        await engine.connect()
        with pytest.raises(ProtocolViolation, match=r"more than 10,000 namespaces, and no more are taken$"):
            await engine.listing()
        await engine.close()


async def test_containers_are_counted_as_they_are_streamed() -> None:
    async with FakeContainerd() as fake:
        for number in range(3):
            fake.run(f"web{number}")
        fake.faults.garble("task_list", b"")
        engine = containerd.ContainerdEngine(fake.address, max_containers=2)
        await engine.connect()
        with pytest.raises(ProtocolViolation, match="more than 2 containers"):
            await engine.listing()
        await engine.close()


async def test_containers_and_sandboxes_of_the_cri_are_counted_and_those_in_two_states_once() -> None:
    async with FakeCRI() as fake:
        fake.run(fake.run_pod("a"), "web")
        engine = cri.CRIEngine(fake.address, source="poll", max_containers=1)
        await engine.connect()
        both = wire.Container(id=b"c1", state=wire.CONTAINER_RUNNING)
        with fake.faults.garble("container_list", field(1, both.SerializeToString())):
            assert "c1" in (await engine.listing()).containers
        fake.run_pod("b")
        with pytest.raises(ProtocolViolation, match="more than 1 sandboxes"):
            await engine.listing()
        await engine.close()


def test_no_container_at_all_is_no_bound() -> None:
    for make in (containerd.watch, cri.watch):
        with pytest.raises(ValueError, match="max_containers must be at least 1, not 0"):
            make("/run/x.sock", max_containers=0)


async def test_so_many_namespaces_are_listed_at_the_same_time_though_all_hang() -> None:
    async with FakeContainerd() as fake:
        for number in range(WORKERS + 8):
            fake.namespace_create(f"space{number}")
        engine = containerd.ContainerdEngine(fake.address)
        await engine.connect()
        gate = fake.faults.pause_at("task_list")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("whalewatch.containerd.namespaces.LISTING_TIMEOUT", 0.8)
            with pytest.raises(EngineError, match="does not answer"):
                await engine.listing()
        assert fake.requests["task_list"] == WORKERS
        gate.release()
        await engine.close()
