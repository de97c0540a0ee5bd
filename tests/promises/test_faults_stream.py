"""Garbage on the event stream: the picture is right in the end, memory bounded, and each log record one clean line."""

from __future__ import annotations

import asyncio
import json
import logging
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from tests.support.followed import docker_followed, eventually, followed
from whalewatch import moby
from whalewatch.testing import FakeDocker

pytestmark = [pytest.mark.promise(3), pytest.mark.promise(9)]


def told(action: Any = "die", **changed: Any) -> bytes:
    """An event of a container that nobody knows, with something wrong in it."""
    event: dict[str, Any] = {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": "f" * 64, "Attributes": {"name": "x", "image": "x"}},
        "scope": "local",
        "time": 1_700_000_000,
        "timeNano": 1_700_000_000_000_000_000,
    }
    event.update(changed)
    return json.dumps({key: value for key, value in event.items() if value is not ...}).encode() + b"\n"


LOST = {
    "binary noise": Random(1).randbytes(5000).replace(b"\n", b"") + b"\n",
    "control characters": b"\x1b[31m\x07\r\x00\x1b]0;title\x07 \xe2\x80\xa8 \xc2\x85\n",
    "control characters in JSON": told("die", Actor="\x1b[31m\r\n\x00\u2028"),
    "no JSON": b"this is no JSON\n",
    "half a document": b'{"Type": "container", "Acti\n',
    "an array": b"[1, 2, 3]\n",
    "a number": b"17\n",
    "null": b"null\n",
    "nothing in it": b"{}\n",
    "no actor": told("start", Actor=...),
    "actor without id": told("start", Actor={}),
    "id that is no text": told("start", Actor={"ID": "\ud800", "Attributes": {}}),
    "id with control characters": told("start", Actor={"ID": "a\x1b", "Attributes": {}}),
    "endless id": told("start", Actor={"ID": "a" * 100_000, "Attributes": {}}),
    "text": b'"start"\n',
    "true": b"true\n",
    "NaN": b"NaN\n",
    "Type is null": told(Type="container", Action=None),
    "Action is a number": told(7),
    "Action is a list": told(["die"]),
    "Action is an object": told({"die": 1}),
    "Actor is text": told(Actor="x"),
    "Actor is null": told(Actor=None),
    "id is a list": told(Actor={"ID": ["x"], "Attributes": {}}),
    "attributes are null": told(Actor={"ID": "x", "Attributes": None}),
    "time is text": told(timeNano="1700000000000000000"),
    "time is a fraction": told(timeNano=1.7e18),
    "time is infinite": told(timeNano=float("inf")),
    "time is an object": told(timeNano={}),
    "time is null": told(timeNano=None),
    "number of many digits": b'{"Type": "container", "timeNano": ' + b"9" * 5000 + b"}\n",
    "no time at all": told(timeNano=..., time=...),
    "seconds are text": told(timeNano=..., time="1"),
    "deep arrays": b"[" * 200_000 + b"]" * 200_000 + b"\n",
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"\n",
    "5 MB of an event": told(Actor={"ID": "x", "Attributes": {"name": "y" * 5_000_000}}),
}

IGNORED = {
    "another type": told(Type="volume"),
    "type is a number": told(Type=7),
    "unknown action": told("levitate"),
    "of no container": told(Actor={"ID": "", "Attributes": {}}),
    "time before everything": told(timeNano=-1),
    "time is far ahead": told(timeNano=10**30),
    "time is far behind": told(timeNano=-(10**30)),
    "seconds far ahead": told(timeNano=..., time=10**18),
    "time is true": told(timeNano=True),
    "seconds only": told(timeNano=...),
    "exit code that is none": told(Actor={"ID": "x", "Attributes": {"exitCode": "\x1b[31m9" + "9" * 1000}}),
    "4 MB of an event": told(Actor={"ID": "x", "Attributes": {"name": "y" * 4_000_000}}),
    "invalid UTF-8 within": told().replace(b'"name": "x"', b'"name": "\xff\xfe"'),
    "lone surrogate": told().replace(b'"name": "x"', rb'"name": "\ud800"'),
    "blank": b" \t\r\n",
}


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """See that no more memory than this is taken within the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("line", "lost"),
    [(line, 1) for line in LOST.values()] + [(line, 0) for line in IGNORED.values()],
    ids=[*LOST, *IGNORED],
)
async def test_garbage_changes_nothing_and_is_told_in_one_clean_line(
    line: bytes, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    async with docker_followed("old") as (fake, follow, (old,)):
        fake.faults.stale_list()  # only events tell, however long they take
        with at_most(50_000_000):
            fake.emit_raw(line)
            fake.kill(old)
            new = fake.run("new")
            await follow.until_taken(new)
            await follow.until(lambda: follow.types(old))  # there is no order among containers
        assert (follow.types(old), follow.types(new)) == (["exited"], ["started"])
        assert (len(follow.types()), follow.stats.lost) == (2, lost)
        assert (follow.stats.outages, follow.stats.drift) == (0, 0)
        assert follow.shows(fake)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("whalewatch")]
    assert all(message.isprintable() and len(message) < 1000 for message in messages), messages
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == lost


@pytest.mark.parametrize("end", [b"\n", b""], ids=["newline", "no newline"])
async def test_event_that_comes_byte_by_byte_is_understood(end: bytes) -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None)) as follow:
        fake.faults.stale_list()  # only events tell
        with fake.faults.silently():
            id = fake.run("quiet")
        line = told("start", Actor={"ID": id, "Attributes": {"name": "?"}}).strip().replace(b"?", "€}".encode()) + end
        for position in range(len(line)):
            fake.emit_raw(line[position : position + 1])
            await fake.until(lambda: fake.unsent == 0)
        await follow.until_taken(id)
        assert (follow.stats.lost, follow.stats.signals, follow.stats.drift) == (0, 1, 0)


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"', b'{"a": "b', b'"', b"]}\\"])
async def test_garbage_among_events_without_newlines_hides_at_most_the_next_one(garbage: bytes) -> None:
    async with FakeDocker() as fake, followed(moby.watch(fake.address, audit=None)) as follow:
        fake.faults.stale_list()  # only events tell
        with fake.faults.silently():
            id = fake.run()
        fake.emit_raw(garbage + told("die").strip() + told("start", Actor={"ID": id, "Attributes": {}}).strip())
        await follow.until_taken(id)
        assert (follow.stats.lost > 0) is (garbage != b"")


@pytest.mark.slow
async def test_line_without_end_takes_no_memory_and_then_events_go_on() -> None:
    piece = b"x" * (1 << 20)
    async with FakeDocker() as fake, followed(moby.watch(fake.address)) as follow:
        with at_most(24 << 20):
            for _ in range(48):
                fake.emit_raw(piece)
                await fake.until(lambda: fake.unsent == 0)
                await asyncio.sleep(0)
        fake.emit_raw(b"\n")
        await follow.until_taken(fake.run())
        assert follow.stats.lost == 1


async def test_garbage_for_ever_is_warned_of_once_and_does_not_become_a_flood_of_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    short = [line for line in LOST.values() if len(line) < 100_000]  # the others take longer than until the next audit
    flood = [*short, *short, *[b"garbage\n"] * 1000]
    async with FakeDocker() as fake, followed(moby.watch(fake.address)) as follow:
        for line in flood:
            fake.emit_raw(line)
        await follow.until_taken(fake.run())
        await eventually(lambda: follow.stats.lost == len(flood))
        assert fake.requests["list"] <= 3
    levels = [record.levelno for record in caplog.records if "event" in record.getMessage()]
    assert levels == [logging.WARNING] + [logging.DEBUG] * (len(flood) - 1)
