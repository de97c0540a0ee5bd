"""Answers that are made to take all memory, or all the time of the event loop."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.test_client import served
from tests.http.test_documents import pieces
from tests.support.answering import answering, http
from tests.support.followed import eventually
from tests.support.scripted import within
from whalewatch._http.client import TURN_BYTES, TURN_ITEMS
from whalewatch._http.items import Items

MiB = 1024 * 1024

INFO = b'{"ID": "an id", "ServerVersion": "26.1.5", "SystemTime": "2026-01-02T03:04:05Z"}'

ONE_CALL = """
import asyncio, json, sys, time
from whalewatch import EngineError, moby

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM"))

async def main():
    engine, longest = moby.MobyEngine(sys.argv[1]), 0.0

    async def tick():
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    await engine.connect()
    ticking, begun = asyncio.create_task(tick()), peak()
    try:
        outcome = repr(await (engine.listing() if sys.argv[2] == "list" else engine.inspect("c")))[:100]
    except EngineError as error:
        outcome = f"{type(error).__name__}: {error}"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ticking.cancel()
    print(json.dumps([outcome, peak() - begun, longest]))
    await engine.close()

asyncio.run(main())
"""
"""A program that makes one call, and says what becomes of it, how many MiB it took, and how long the loop stood (s)."""


def listed(count: int) -> bytes:
    return b"[%b]" % b",".join(b'{"Id":"%064x","State":"running"}' % number for number in range(count))


def labelled(count: int, labels: int, size: int, more: str) -> bytes:
    one = {f"{number}": "x" * size + more for number in range(labels)}
    rest = b'","State":"running","Labels":%b}' % json.dumps(one, ensure_ascii=False).encode()
    return b"[%b" % b"".join(b'{"Id":"%064x%b,' % (number, rest) for number in range(count))


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "objects": ("list", lambda: b"[" + b"{}," * 22_000_000, "listing has more than 100,000 containers"),
    "containers": ("list", lambda: listed(100_001), "listing has more than 100,000 containers"),
    "text": ("list", lambda: b'[{"Id": "' + b"x" * 64 * MiB, "an item has more than 1,048,576 characters"),
    "objects in an item": ("list", lambda: b"[[" + b"{}," * 22_000_000, "an item has more than 1,048,576 characters"),
    "labels beyond ASCII": ("list", lambda: labelled(640, 1, 100_000, "\N{WHALE}") + b"x", "is not a JSON array"),
    "many labels": ("list", lambda: labelled(99_990, 5, 10, "") + b"x", "is not a JSON array"),
    "arrays": ("list", lambda: b"[" * 64 * MiB, "is not a JSON array"),
    "space": ("list", lambda: b" " * 65 * MiB, "the answer to list is larger than 64 MiB"),
    "inspect": ("inspect", lambda: b'{"Id": "' + b"x" * 64 * MiB, "the answer to inspect is larger than 4 MiB"),
    "objects in an inspect": ("inspect", lambda: b"[" + b"{}," * 1_398_000 + b"{}]", "makes no sense"),
    "small objects in an inspect": ("inspect", lambda: b"[" + b'{"":1},' * 599_000 + b"{}]", "makes no sense"),
    "arrays in an inspect": ("inspect", lambda: b"[" * 4 * MiB, "is not JSON"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
async def test_answer_that_is_refused_takes_little_memory_and_never_stops_the_loop_for_long(name: str) -> None:
    call, body, why = BOMBS[name]
    bomb = await asyncio.to_thread(lambda: http("200 OK", body()))
    answers = {b"/_ping": http("200 OK", b"OK", "Api-Version: 1.45"), b"/v1.45/info": http("200 OK", INFO)}
    async with answering(lambda request: answers.get(request.split()[1], bomb)) as address:
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", ONE_CALL, address, call, stdout=PIPE)
        told, _ = await within(program.communicate(), 60.0)
    outcome, grown, longest = json.loads(told)
    assert outcome.startswith("ProtocolViolation: Docker engine at tcp://")
    assert why in outcome
    assert grown < 150
    assert longest < 1.0


# ---- items of a listing


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def read(chunks: list[bytes], limit: int = 1000) -> Any:
    """All items; or ValueError, if that is raised."""
    items, found = Items(limit), list[Any]()
    try:
        for chunk in chunks:
            found += items.feed(chunk, final=False)
        return [*found, *items.feed(b"", final=True)]
    except ValueError:
        return ValueError


@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_array_is_read_wherever_it_is_cut(
    values: list[Any], indent: int | None, escaped: bool, data: st.DataObject
) -> None:
    written = json.dumps(values, indent=indent, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    assert read([*pieces(written, data)], len(written)) == json.loads(written.decode("utf-8", "replace"))


ARRAYS = (
    *(b"[]", b" [ ] \r\n", b"[\t1 , 2]", b"[1.5e3,-7]", rb'["\ud800"]', b'["\xff", "\xe2\x82"]', b"[Infinity, null]"),
    *(
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"[1",
        b"[",
        b"",
        b" ",
        b"null",
        b"{}",
        b"[1]]",
        b"[1],",
        b"[1]x",
        b"[1;2]",
        b"[nul]",
    ),
    *(b"\xef\xbb\xbf[]", b'{"a": [1]}', b"[[1]", b"1]", b"]", b"\x0b[]", b"[1v2]"),
)
"""Some that are arrays, and some that are none."""


@pytest.mark.parametrize("written", ARRAYS)
def test_what_is_an_array_is_as_for_json(written: bytes) -> None:
    try:
        expected = json.loads(written.decode("utf-8", "replace"))
    except ValueError:
        expected = None
    expected = expected if isinstance(expected, list) else ValueError
    for size in (1, 2, 100):
        assert read([written[at : at + size] for at in range(0, len(written), size)]) == expected


def test_item_is_tried_a_few_times_only_and_refused_as_soon_as_it_is_too_large() -> None:
    items, tried = Items(100_000), 0
    real = items._read

    def counting(text: str, at: int) -> tuple[Any, int]:
        nonlocal tried
        tried += 1
        return real(text, at)

    items._read = counting  # type: ignore[assignment]
    fed = [b"[", b'"', *[b"x"] * 99_999]
    assert [one for piece in fed for one in items.feed(piece, final=False)] == []
    with pytest.raises(ValueError, match="100,000"):
        next(items.feed(b"x", final=False))
    assert tried < 20


# ---- turns of other tasks


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"\n", b"{}", b'}{"', b"x\n", b'{"Type":"volume"}\n', b'"', b"{"])
async def test_other_tasks_have_their_turn_however_much_has_arrived(line: bytes) -> None:
    body = line * (MiB // len(line))
    answer = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body]
    turns = found = since = most = 0

    async def tick() -> None:
        nonlocal turns, since
        while True:
            turns, since = turns + 1, 0
            await asyncio.sleep(0)

    async with served(answer) as (_, client), client.get("thing", "/") as stream:
        await eventually(lambda: stream._buffered > MiB - TURN_BYTES)  # so that nothing is waited for
        ticking = asyncio.create_task(tick())
        async for _ in stream.lines(4 * MiB):
            found, since = found + 1, since + 1
            most = max(most, since)
        ticking.cancel()
    assert turns >= len(body) // TURN_BYTES - 1
    assert most <= TURN_ITEMS + 1
