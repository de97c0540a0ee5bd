"""Where an object ends in a stream, whatever its texts are and wherever the stream is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whalewatch._http import documents
from whalewatch._http.documents import Documents

LIMIT = 1000

TEXTS = st.text(st.sampled_from('{}"\\[]:, \n\u20ac\U0001f433ab'), max_size=20)

EVENTS = st.builds(
    lambda first, rest: {"Type": first, **rest}, TEXTS, st.dictionaries(TEXTS, TEXTS | st.dictionaries(TEXTS, TEXTS))
)

ENDS = st.sampled_from([b"", b"", b"\n", b"\r\n", b"\n\n"])


def written(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def pieces(stream: bytes, data: st.DataObject) -> Iterator[bytes]:
    """The stream, cut somewhere."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    return (stream[begin:end] for begin, end in pairwise([0, *cuts, len(stream)]))


@given(st.lists(st.tuples(EVENTS, ENDS)), st.data())
def test_each_object_is_found_as_soon_as_it_is_complete(events: list[tuple[Any, bytes]], data: st.DataObject) -> None:
    stream, due = b"", []
    for event, end in events:
        stream += written(event)
        due.append(len(stream))
        stream += end
    reader, fed, found = Documents(10**6), 0, list[Any]()
    for piece in pieces(stream, data):
        found += reader.feed(piece)
        fed += len(piece)
        assert len(found) == sum(end <= fed for end in due)
    assert [json.loads(one) for one in found] == [event for event, _ in events]


@given(st.binary() | TEXTS.map(str.encode), st.lists(EVENTS, min_size=2, max_size=4), st.data())
def test_garbage_hides_at_most_the_next_object(garbage: bytes, events: list[Any], data: st.DataObject) -> None:
    reader = Documents(10**6)
    found = [one for piece in pieces(garbage + b"".join(map(written, events)), data) for one in reader.feed(piece)]
    assert found[1 - len(events) :] == [written(event) for event in events[1:]]


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["no newline", "newline"])
@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_object_over_the_limit_is_not_kept_and_hides_no_other(end: bytes, size: int) -> None:
    short, longest = written({"Type": "x"}), written({"Type": "x" * (LIMIT - 11)})
    assert len(longest) == LIMIT
    unfinished = b"" if end else short  # without a newline it hides the next, too
    for middle, expected in (
        (longest, longest),
        (written({"Type": "x" * LIMIT}), None),
        (written({"Type": [{"a": "}"}] * LIMIT}), None),
        (b'{"Type": "' + b"x" * 5 * LIMIT + unfinished, None),
        (b"x" * 5 * LIMIT + unfinished, None),
    ):
        reader, stream, found = Documents(LIMIT), end.join((short, middle, short, short, b"")), list[bytes | None]()
        for at in range(0, len(stream), size):
            found += reader.feed(stream[at : at + size])
            assert len(reader._line) <= LIMIT + size
        assert found == [short, expected, short, short], middle


def test_each_byte_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    class Counting:
        def finditer(self, line: bytearray, begin: int) -> Iterator[re.Match[bytes]]:
            nonlocal looked_at
            looked_at += len(line) - begin
            return token.finditer(line, begin)

    token = documents.TOKEN
    monkeypatch.setattr(documents, "TOKEN", Counting())
    stream, reader = written({"Type": '}{"' * 10_000}), Documents(10**6)
    assert [one for at in range(len(stream)) for one in reader.feed(stream[at : at + 1])] == [stream]
    assert looked_at < 2 * len(stream)
