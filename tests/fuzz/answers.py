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

MAX_SIZE = 8 * 1024 * 1024
"""Most bytes to which a repeated item grows."""


class Raw(bytes):
    """Put in as it is: text of JSON, or bytes of a text or message of protobuf."""


@attrs.frozen
class Copies:
    """An item many times over; where it has an id, each copy has another one."""

    item: Any
    count: int

    def of(self, encoded: bytes) -> bytes:
        count = min(self.count, MAX_SIZE // max(len(encoded), 1))
        ids = {*re.findall(rb"\b[0-9a-f]{64}\b", encoded)}
        if not ids:
            return encoded * count
        return b"".join(re.sub(b"|".join(ids), b"%064x" % number, encoded) for number in range(count))


MAX_PARTS = 20_000
"""Most messages or events to which one grows."""

BYTES = ("flip", "cut", "put", "again")
"""Mutations of bytes; the others are of trees, or of what follows an answer."""

VALUES: Mapping[str, Any] = {
    "null": Raw(b"null"),
    "true": True,
    "zero": 0,
    "minus one": -1,
    "one": 1,
    "70000": 70_000,
    "2**31": 2**31,
    "2**63": 2**63,
    "-2**63": -(2**63),
    "4200 digits": 10**4200,
    "9000 digits": Raw(b"9" * 9000),
    "infinity": Raw(b"Infinity"),
    "not a number": Raw(b"NaN"),
    "1e999": Raw(b"1e999"),
    "year 9999": "9999-12-31T23:59:59.999999999Z",
    "year 9999 in the west": "9999-12-31T23:59:59-14:00",
    "year 1": "0001-01-01T00:00:00+14:00",
    "year 0": "0000-00-00T00:00:00Z",
    "seconds of year 9999": 253402300799,
    "nanoseconds of year 9999": 253402300799999999999,
    "empty text": "",
    "dots": "..",
    "slash": "a/b",
    "running": "running",
    "text -1": "-1",
    "text 99999": "99999",
    "text of 5000 digits": "9" * 5000,
    "other digits": "\u0661\u0662",
    "forged": "x\nERROR forged \x1b]0;title\x07",
    "escape": "\x1b[31m",
    "nul": "\0",
    "to the left": "\u202egnp",
    "lone surrogate": Raw(b'"\\ud800"'),
    "no UTF-8": Raw(b"\xff\xfe\xc0"),
    "emoji": "\U0001f433",
    "scope": "fe80::1%\x1b]0;x\x07\nforged",
    "300 letters": "a" * 300,
    "a million letters": "a" * 1_000_000,
    "new id": "deadbeef" * 8,
    "list": Raw(b"[]"),
    "object": Raw(b"{}"),
    "list of all": Raw(b'[null,-1,"",[],{},true,1e999]'),
    "object of all": Raw(b'{"":null,"a":-1,"b\\u001b":[],"Id":{},"80/tcp":[{"HostPort":"-1"}]}'),
    "deep lists": Raw(b"[" * 50_000 + b"]" * 50_000),
    "deep objects": Raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "deep message": Raw(b"\n\x80\x08" * 1000 + b"\n"),
    "PID of 4200 digits": Raw(b'{"pid":' + b"9" * 4200 + b"}"),
    "negative PID": Raw(b'{"pid":-1}'),
    "garbage": Raw(b"\x80" * 40),
    "newlines": Raw(b"\n" * 1_000_000),
    "objects without newlines": Raw(b'{"a":1}' * 100_000),
}

LINES: Mapping[str, str] = {
    line[:30]: line
    for line in (
        *(f"HTTP/1.1 {status}" for status in ("100 Continue", "101 Switching Protocols", "204 No Content", "206 x")),
        *(f"HTTP/1.1 {status}" for status in ("301 Moved", "304 x", "400 Bad", "401 x", "404 Not", "500 x\x1b[31m", "999 ")),
        *("HTTP/1.0 200 OK", "HTTP/9.9 200 OK", "HTTP/1.1 0 x", "HTTP/2 200", "ICY 200 OK", "SSH-2.0-OpenSSH", "\x15\x03\x01"),
        *("Content-Length: 0", "Content-Length: 5", "Content-Length: 99999999", "Content-Length: -1", "Content-Length: 1e3"),
        *("Content-Length: " + "9" * 40, "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Transfer-Encoding: x, chunked"),
        *("Content-Encoding: gzip", "Content-Encoding: deflate", "Content-Encoding: \x1b[31m", "Connection: close"),
        *("Connection: upgrade\r\nUpgrade: h2c", "Location: http://x/", "Server: Libpod/\x1b[31m\u202e", "Server: Docker/1"),
        *("Libpod-API-Version: 9\x9b31m", "Api-Version: 1.20", "Api-Version: 1." + "9" * 5000, "Api-Version: -1.-1"),
        *("Api-Version: \u0661.\u0665\u0660", "Api-Version: 1.45.1", "Api-Version: 1_0.4_5", ": x", "x", " folded", "X:\0"),
        *("X: " + "a" * 300_000, "\r\n".join(["X: a"] * 50_000)),
    )
}

READERS = "".join(Path(module.__file__).read_text() for module in (moby.engine, moby.reading, cri.reading, cri.verbose))
"""Source that names what it reads of JSON."""

MAPPINGS = (["Labels"], ["Networks"], ["Ports"], ["ExposedPorts"], ["Attributes"])
"""Where the keys of JSON are anybody's."""

Place = tuple[Any, ...]
"""The way from the root of a tree, or how many bytes from the beginning of an answer."""

Mutation = tuple[str, str, Place, Any]
"""Of what, how, where, and with what: a name of `VALUES` or `LINES`, or a number."""


@cache
def recorded(name: str) -> Mapping[Key, Mapping[str, Any]]:
    """Read what was recorded of an engine, by what was asked."""
    text = (Path(__file__).parent / "recorded" / f"{name}.txt").read_text()
    found: dict[Key, Mapping[str, Any]] = {}
    for key, parts in map(ast.literal_eval, text.splitlines()):
        if not name.startswith("docker"):
            found[key] = {"body": [fields_of(part) for part in parts]}
            if key[0].endswith("/GetContainerEvents"):
                found[key]["body"][0].pop(3)  # an event without a time ends the backlog, in which the others would be
            continue
        head, *body = parts
        lines = re.sub(r"Content-Length: \d+", "Content-Length: *", head.decode().strip()).split("\r\n")
        found[key] = {"head": lines, "body": [_read(part) for part in body]}
    return found


def fields_of(data: bytes) -> dict[int, list[Any]]:
    return {number: [_read(v) if isinstance(v, bytes) else v for v in values] for number, values in fields(data).items()}


def _read(data: bytes) -> Any:
    if data[:1] in (b"{", b"["):
        return json.loads(data)
    if data and not (data.isascii() and data.decode().isprintable()):
        try:
            return fields_of(data)
        except ValueError:
            pass
    return data


def _json(node: Any) -> bytes:
    match node:
        case dict():
            return b"{%s}" % b",".join(json.dumps(str(key)).encode() + b":" + _json(value) for key, value in node.items())
        case list():
            return b"[%s]" % b",".join(map(_json, node))
        case Copies():
            return node.of(_json(node.item) + b",")[:-1]
        case bytes():
            return node
    return json.dumps(node).encode()


def _payload(node: Any) -> bytes:
    """Encode a document, or a value of protobuf that has a length."""
    match node:
        case bytes():
            return node
        case str():
            return node.encode()
        case dict() if all(isinstance(number, int) for number in node):
            return b"".join(_field(number, value) for number, values in node.items() for value in (values if isinstance(values, list) else [values]))
    return _json(node)


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, int):
        return message((number, value)) or message((number, 1 << 64))
    if isinstance(value, Copies):
        return value.of(_field(number, value.item))
    return repeated(number, [_payload(value)])


def _parts(body: Sequence[Any], end: bytes = b"") -> list[bytes]:
    parts: list[bytes] = []
    for node in body:
        item = node.item if isinstance(node, Copies) else node
        part = bytes(_payload(item)) + (b"" if isinstance(item, bytes) else end)
        copies = node.of(part)[: len(part) * MAX_PARTS] if isinstance(node, Copies) else part
        parts += [copies[at : at + len(part)] for at in range(0, len(copies), len(part) or 1)] or [part]
    return parts


def _http(tree: Mapping[str, Any], *, endless: bool) -> bytes:
    """Encode an HTTP answer, in chunks if its head says so."""
    head, parts = "\r\n".join(map(_line, tree["head"])), _parts(tree["body"], b"\n")
    if "\r\nContent-Encoding: gzip" in head:
        parts = [gzip.compress(b"".join(parts))]
    if "Transfer-Encoding: chunked" in head:
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part]
        parts += [] if endless else [b"0\r\n\r\n"]
    body = b"".join(parts)
    head = head.replace("Content-Length: *", f"Content-Length: {len(body)}")
    return head.encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def _line(line: Any) -> str:
    return line.decode("latin-1") if isinstance(line, bytes) else str(line)


def _change(tree: Any, how: str, path: Place, what: Any) -> None:
    """Change a tree in one place, if it has it."""
    *way, last = path
    try:
        for step in way:
            tree = tree[step]
        found = tree[last]
    except (LookupError, TypeError):
        return
    if not isinstance(tree, dict | list):
        return
    value = LINES[what] if what in LINES else VALUES.get(what)
    if how == "drop":
        del tree[last]
    elif how == "set":
        tree[last] = value
    elif how == "rename" and isinstance(tree, dict):
        number = value % 2**29 if isinstance(value, int) else 15
        tree[(number or 1) if isinstance(last, int) else _line(value)] = tree.pop(last)
    elif how == "repeat" and isinstance(tree, list):
        tree[last] = Copies(found, what)
    elif how == "insert" and isinstance(tree, list):
        tree.insert(last, value)


def _corrupt(parts: list[bytes], how: str, place: int, what: Any) -> list[bytes]:
    """Change bytes: those before `place` stay."""
    part = parts[-1] if parts else b""
    at = place % (len(part) + 1)
    before, after = part[:at], part[at:]
    if how == "flip" and after:
        after = bytes([after[0] ^ 1 << what]) + after[1:]
    elif how == "cut":
        after = b""
    elif how == "put":
        after = _payload(VALUES[what]) + after
    elif how == "again":
        after = after * min(what, MAX_SIZE // max(len(after), 1) + 1)
    return [*parts[:-1], before + after]


def answers(name: str, mutations: Sequence[Mutation]) -> tuple[dict[Key, Answer], dict[str, Answer]]:
    """Return the mutated answers of an engine, by what was asked, and by kind those for strangers."""
    prepared: dict[Key, Answer] = {}
    strangers: dict[str, Answer] = {}
    for key, recorded_tree in recorded(name).items():
        mine = [mutation for mutation in mutations if mutation[0] == kind(key)]
        tree = deepcopy(recorded_tree) if mine else recorded_tree
        for _, how, path, what in mine:
            if path and path[0] in tree:
                _change(tree, how, path, what)
        endless = key[0].endswith(ENDLESS)
        parts = [_http(tree, endless=endless)] if "head" in tree else _parts(tree["body"])
        answer = prepared[key] = Answer(parts)
        for _, how, path, what in mine:
            if how in BYTES:
                answer.parts = _corrupt(answer.parts, how, path[0], what)
            elif how == "fail":
                answer.failure = (grpc.StatusCode[path[0]], _line(VALUES[what]))
            elif how in {"hang", "end"}:
                setattr(answer, how, True)
        if mutations:
            strangers.setdefault(kind(key), answer)
    return prepared, strangers


def _places(node: Any, path: Place = ()) -> Iterator[Place]:
    """Find the paths to all that is within a tree."""
    if len(path) > 1:
        yield path
    for key, child in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
        yield from _places(child, (*path, key))


def _is_read(place: Place) -> bool:
    """Return whether the library reads what is there: its readers name it, or it is no JSON."""
    names = [step for step in place[1:] if isinstance(step, str)]
    return not names or f'"{names[-1]}"' in READERS or names[-2:-1] in MAPPINGS


@cache
def mutations(name: str) -> st.SearchStrategy[Mutation]:
    """Mutations of the answers of one engine; most are where the library reads."""
    by_kind: dict[str, set[Place]] = {}
    for key, tree in recorded(name).items():
        by_kind.setdefault(kind(key), {("body", 0)}).update(_places(tree))
    values, lines = st.sampled_from([*VALUES]), st.sampled_from([*LINES])
    http = name.startswith("docker")

    def of(what: str) -> st.SearchStrategy[Mutation]:
        known = sorted(by_kind[what], key=lambda path: (len(path), repr(path)))
        read = st.sampled_from([*filter(_is_read, known)])
        place = st.sampled_from([read, read, read, st.sampled_from(known)]).flatmap(lambda places: places)
        at = st.tuples(st.integers(0, 20_000))
        codes = st.tuples(st.sampled_from([code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]))
        head = st.tuples(st.just("head"), st.integers(0, 2))

        def by(how: str) -> st.SearchStrategy[Mutation]:
            where, value = {
                "set": (place, values),
                "rename": (place, values),
                "insert": (place, values),
                "drop": (place, st.just("")),
                "repeat": (place, st.sampled_from([2, 100, 10_000, 1_000_000])),
                "flip": (at, st.integers(0, 7)),
                "cut": (at, st.just("")),
                "put": (at, values),
                "again": (at, st.sampled_from([2, 100])),
                "hang": (st.just((0,)), st.just("")),
                "end": (st.just((0,)), st.just("")),
                "fail": (codes, values),
                "set line": (head, lines),
                "insert line": (head, lines),
            }[how]
            return st.tuples(st.just(what), st.just(how.partition(" ")[0]), where, value)

        hows = ["set"] * 6 + ["rename", "insert", "drop", "repeat", "repeat", *BYTES, "hang", "end"]
        return st.sampled_from([*hows, *(["set line", "insert line"] * 2 if http else ["fail"])]).flatmap(by)

    return st.sampled_from(sorted(by_kind)).flatmap(of)
