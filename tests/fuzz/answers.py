"""The recorded answers as trees, and mutations of them. Pure.

A tree is {"head": [lines], "body": [documents]}, for gRPC without a head. A document is JSON, or a message of protobuf:
a dictionary from field numbers to lists of values; whatever within looks like a message or like JSON is a tree too.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import grpc
from hypothesis import strategies as st

from tests.fuzz.servers import ENDLESS, Answer, Key, kind
from whalewatch import cri, moby
from whalewatch.testing.shared.protobuf import fields, message, repeated

RECORDED = Path(__file__).parent / "recorded"
MAX_SIZE = 8 * 1024 * 1024  # bytes to which a repeated item grows
MAX_PARTS = 20_000  # messages or events to which one grows
BYTES = ("flip", "cut", "put", "again")  # mutations of bytes; the others are of trees, or of what follows an answer

READERS = "".join(Path(str(one.__file__)).read_text() for one in (moby.engine, moby.reading, cri.reading, cri.verbose))
"""Source that names what it reads of JSON."""

MAPPINGS = (["Labels"], ["Networks"], ["Ports"], ["ExposedPorts"], ["Attributes"])
"""Where the keys of JSON are anybody's."""


@attrs.frozen
class Copies:
    """An item many times over; where it has ids, each copy has others."""

    item: Any
    count: int

    def of(self, encoded: bytes) -> bytes:
        count = min(self.count, MAX_SIZE // max(len(encoded), 1))
        ids = b"|".join({*re.findall(rb"\b[0-9a-f]{64}\b", encoded)})
        return b"".join(re.sub(ids, b"%064x" % n, encoded) for n in range(count)) if ids else encoded * count


VALUES: Mapping[str, Any] = {
    # Bytes are put in as they are: text of JSON, or bytes of a text or message of protobuf.
    "null": b"null",
    "true": True,
    "zero": 0,
    "one": 1,
    "minus one": -1,
    "70000": 70_000,
    "2**31": 2**31,
    "2**63": 2**63,
    "-2**63": -(2**63),
    "4200 digits": 10**4200,
    "9000 digits": b"9" * 9000,
    "1e999": b"1e999",
    "infinity": b"Infinity",
    "not a number": b"NaN",
    "list": b"[]",
    "object": b"{}",
    "deep lists": b"[" * 50_000,
    "year 9999": "9999-12-31T23:59:59.999999999Z",
    "year 9999 in the west": "9999-12-31T23:59:59-14:00",
    "year 1": "0001-01-01T00:00:00+14:00",
    "year 0": "0000-00-00T00:00:00Z",
    "seconds of 9999": 253402300799,
    "nanoseconds of 9999": 253402300799999999999,
    "empty text": "",
    "dots": "..",
    "slash": "a/b",
    "nul": "\0",
    "running": "running",
    "text -1": "-1",
    "text 99999": "99999",
    "5000 digits": "9" * 5000,
    "digits": "\u0661",
    "forged": "x\nERROR forged \x1b]0;title\x07",
    "to the left": "\u202egnp",
    "lone surrogate": b'"\\ud800"',
    "scope": "fe80::1%\x1b]0;x\x07\nforged",
    "no UTF-8": b"\xff\xfe\xc0",
    "300 letters": "a" * 300,
    "a million letters": "a" * 1_000_000,
    "newlines": b"\n" * 1_000_000,
    "new id": "deadbeef" * 8,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep message": b"\n\x80\x08" * 1000 + b"\n",
    "PID of 4200 digits": b'{"pid":' + b"9" * 4200 + b"}",
    "negative PID": b'{"pid":-1}',
    "garbage": b"\x80" * 40,
    "list of all": b'[null,-1,"",[],{},true,1e999]',
    "objects without newlines": b'{"a":1}' * 100_000,
    "object of all": b'{"":null,"a":-1,"b\\u001b":[],"Id":{},"80/tcp":[{"HostPort":"-1"}]}',
}

LINES = """HTTP/1.1 100 Continue|HTTP/1.1 101 Switching|HTTP/1.1 204 x|HTTP/1.1 206 x|HTTP/1.1 301 x|HTTP/1.1 304 x|
HTTP/1.1 400 x|HTTP/1.1 401 x|HTTP/1.1 404 x|HTTP/1.1 500 \x1b[31m|HTTP/1.1 999 |HTTP/1.0 200 OK|HTTP/2 200|
HTTP/1.1 0 x|ICY 200 OK|SSH-2.0-OpenSSH|\x15\x03\x01|Content-Length: 0|Content-Length: 5|Content-Length: 99999999|
Content-Length: -1|Content-Length: 99999999999999999999999|Transfer-Encoding: chunked|Transfer-Encoding: gzip|
Transfer-Encoding: x, chunked|Content-Encoding: gzip|Content-Encoding: deflate|Content-Encoding: \x1b[31m|
Connection: close|Connection: upgrade|Upgrade: h2c|Location: http://x/|Server: Libpod/\x1b[31m\u202e|Server: Docker/1|
Libpod-API-Version: 9\x9b31m|Api-Version: 1.20|Api-Version: 1.45.1|Api-Version: -1.-1|Api-Version: 1_0.4_5|
Api-Version: \u0661.\u0665\u0660|Api-Version: 1.9999999999|: x|x| folded|X:\0""".replace("\n", "").split("|")

Place = tuple[Any, ...]
"""The way from the root of a tree, or how many bytes from the beginning of an answer."""

Mutation = tuple[str, str, Place, Any]
"""Of what, how, where, and with what: a name of `VALUES`, one of `LINES`, or a number."""


@cache
def recorded(name: str) -> Mapping[Key, Mapping[str, Any]]:
    """Read what was recorded of an engine, by what was asked."""
    found: dict[Key, Mapping[str, Any]] = {}
    for key, parts in map(ast.literal_eval, (RECORDED / f"{name}.txt").read_text().splitlines()):
        if name.startswith("docker"):
            lines = re.sub(r"Content-Length: \d+", "Content-Length: *", parts[0].decode()).split("\r\n")
            found[key] = {"head": lines, "body": [_read(part) for part in parts[1:]]}
            continue
        found[key] = {"body": [_fields(part) for part in parts]}
        if key[0].endswith("/GetContainerEvents"):
            found[key]["body"][0].pop(3)  # an event without a time ends the backlog, in which the others would be
    return found


def _fields(data: bytes) -> dict[int, list[Any]]:
    return {n: [_read(one) if isinstance(one, bytes) else one for one in values] for n, values in fields(data).items()}


def _read(data: bytes) -> Any:
    try:
        if data[:1] in (b"{", b"["):
            return json.loads(data)
        return data if data.isascii() and data.decode().isprintable() else _fields(data)
    except ValueError:
        return data


def _json(node: Any) -> bytes:
    if isinstance(node, dict):
        return b"{%s}" % b",".join(json.dumps(str(key)).encode() + b":" + _json(one) for key, one in node.items())
    if isinstance(node, list):
        return b"[%s]" % b",".join(map(_json, node))
    if isinstance(node, Copies):
        return node.of(_json(node.item) + b",")[:-1]
    return node if isinstance(node, bytes) else json.dumps(node).encode()


def _payload(node: Any) -> bytes:
    """Encode a document, or a value of protobuf that has a length."""
    if isinstance(node, str):
        return node.encode()
    if isinstance(node, dict) and all(isinstance(number, int) for number in node):
        each = ((n, one) for n, values in node.items() for one in (values if isinstance(values, list) else [values]))
        return b"".join(_field(n, one) for n, one in each)
    return _json(node)


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, Copies):
        return value.of(_field(number, value.item))
    return message((number, value)) if isinstance(value, int) else repeated(number, [_payload(value)])


def _parts(body: Sequence[Any], end: bytes = b"") -> list[bytes]:
    parts: list[bytes] = []
    for node in body:
        item = node.item if isinstance(node, Copies) else node
        part = _payload(item) + (b"" if isinstance(item, bytes) else end)
        copies = node.of(part)[: len(part) * MAX_PARTS] if isinstance(node, Copies) else part
        parts += [copies[at : at + len(part)] for at in range(0, len(copies), len(part) or 1)] or [part]
    return parts


def _http(tree: Mapping[str, Any], *, endless: bool) -> bytes:
    """Encode an HTTP answer, in chunks if its head says so."""
    lines = [line.decode("latin-1") if isinstance(line, bytes) else str(line) for line in tree["head"]]
    head, parts = "\r\n".join(lines), _parts(tree["body"], b"\n")
    if "\r\nContent-Encoding: gzip" in head:
        parts = [gzip.compress(b"".join(parts))]
    if "Transfer-Encoding: chunked" in head:
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part] + [b"0\r\n\r\n"] * (not endless)
    body = b"".join(parts)
    return head.replace("Content-Length: *", f"Content-Length: {len(body)}").encode() + b"\r\n\r\n" + body


def _change(tree: Any, how: str, path: Place, what: Any) -> None:
    """Change a tree in one place, if it has it."""
    *way, last = path
    try:
        for step in way:
            tree = tree[step]
        found = tree[last]
    except (LookupError, TypeError):
        return
    value = VALUES.get(what, what)
    if isinstance(tree, dict | list) and how == "drop":
        del tree[last]
    elif isinstance(tree, dict | list) and how == "set":
        tree[last] = value
    elif isinstance(tree, dict) and how == "rename":
        tree[str(value) if isinstance(last, str) else 15] = tree.pop(last)
    elif isinstance(tree, list) and how == "repeat":
        tree[last] = Copies(found, what)
    elif isinstance(tree, list) and how == "insert":
        tree.insert(last, value)


def _corrupt(part: bytes, how: str, place: int, what: Any) -> bytes:
    """Change bytes; those before `place` stay."""
    at = place % (len(part) + 1)
    before, after = part[:at], part[at:]
    if how == "flip":
        after = bytes([(after or b"\0")[0] ^ 1 << what]) + after[1:]
    elif how == "cut":
        after = b""
    elif how == "put":
        after = _payload(VALUES[what]) + after
    else:
        after = after * min(what, MAX_SIZE // max(len(after), 1) + 1)
    return before + after


def answers(name: str, mutations: Sequence[Mutation]) -> tuple[dict[Key, Answer], dict[str, Answer]]:
    """Return the mutated answers of an engine, by what was asked, and by kind those for strangers."""
    prepared: dict[Key, Answer] = {}
    for key, tree in recorded(name).items():
        mine = [mutation for mutation in mutations if mutation[0] == kind(key)]
        tree = deepcopy(tree) if mine else tree  # noqa: PLW2901 - what was recorded is kept
        for _, how, path, what in mine:
            _change(tree, how, path, what)
        http = "head" in tree
        parts = [_http(tree, endless=key[0].endswith(ENDLESS))] if http else _parts(tree["body"])
        answer = prepared[key] = Answer(parts)
        for _, how, path, what in mine:
            if how in BYTES and parts:
                parts[-1] = _corrupt(parts[-1], how, path[0], what)
            elif how == "fail":
                answer.failure = (grpc.StatusCode[path[0]], str(VALUES[what]))
            elif how in {"hang", "end"}:
                setattr(answer, how, True)
    return prepared, {kind(key): answer for key, answer in prepared.items()} if mutations else {}


def _places(node: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Find the paths to all that is within a tree, and what is there."""
    if len(path) > 1:
        yield path, node
    for key, child in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
        yield from _places(child, (*path, key))


def _is_read(place: Place) -> bool:
    """Return whether the library reads what is there: its readers name it, or it is no JSON."""
    names = [step for step in place[1:] if isinstance(step, str)]
    return not names or f'"{names[-1]}"' in READERS or names[-2:-1] in MAPPINGS


@cache
def mutations(name: str) -> st.SearchStrategy[Mutation]:
    """Mutations of the answers of one engine; most are where the library reads."""
    known: dict[str, dict[Place, Any]] = {}
    for key, tree in recorded(name).items():
        known.setdefault(kind(key), {("body", 0): ""}).update(_places({"body": tree["body"]}))
    values, at, nothing = st.sampled_from([*VALUES]), st.tuples(st.integers(0, 20_000)), st.just("")
    codes = st.tuples(st.sampled_from([code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]))
    head, lines = st.tuples(st.just("head"), st.integers(0, 2)), st.sampled_from(LINES)

    def of(what: str) -> st.SearchStrategy[Mutation]:
        every = sorted(known[what], key=lambda path: (len(path), repr(path)))
        read = [*filter(_is_read, every)]
        place = st.sampled_from([read, read, read, every]).flatmap(st.sampled_from)
        ways: list[tuple[str, Any, Any]] = [
            *[("set", place, values)] * 6,
            *(("rename", place, values), ("insert", place, values), ("drop", place, nothing)),
            *[("repeat", place, st.sampled_from([2, 100, 10_000, 1_000_000]))] * 2,
            *(("flip", at, st.integers(0, 7)), ("put", at, values), ("again", at, st.sampled_from([2, 100]))),
            *(("cut", at, nothing), ("hang", st.just((0,)), nothing), ("end", st.just((0,)), nothing)),
            *(
                [("set", head, lines), ("insert", head, lines)] * 2
                if name.startswith("docker")
                else [("fail", codes, values)]
            ),
        ]
        return st.sampled_from(ways).flatmap(lambda way: st.tuples(st.just(what), st.just(way[0]), way[1], way[2]))

    return st.sampled_from(sorted(known)).flatmap(of)
