"""Values as JSON: what is written is read again, wrong documents are refused by name, and the docs name every key."""

from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whalewatch import (
    Container,
    ContainerEvent,
    EngineUnavailable,
    EventType,
    Health,
    Origin,
    Pod,
    Port,
    Project,
    Snapshot,
    Stats,
    Status,
    SubscriptionStats,
    WatchState,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
COMPOSE = {"com.docker.compose.service": "front", "com.docker.compose.container-number": "2"}
WEB = Container(
    id="c1",
    name="web",
    pid=7,
    labels=COMPOSE,
    project="shop",
    started_at=NOW,
    health=Health.HEALTHY,
    ports=(Port(80, "tcp", ip_address("::1"), 8080), Port(53, "udp")),
    addresses={"net": (ip_address("10.0.0.1"), ip_address("fd00::1"))},
    privileged=False,
    engine="unix:///run/docker.sock",
    rucksack=object(),
)
SNAPSHOT = Snapshot.from_dict(
    {
        "revision": 3,
        "as_of": NOW.isoformat(),
        "synced": True,
        "containers": [WEB.to_dict(), {**WEB.to_dict(), "id": "b"}],
    }
)
EVENT = ContainerEvent(
    type=EventType.UPDATED, container=WEB, previous=WEB, timestamp=NOW, origin=Origin.ENGINE, revision=3, last=True
)
VALUES = [
    WEB,
    WEB.ports[0],
    Project("shop", (WEB,)),
    Pod("pod", "prod", "uid", WEB, (WEB,)),
    SNAPSHOT,
    EVENT,
    Status(state=WatchState.DISCONNECTED, since=NOW, error=EngineUnavailable("gone")),
    Stats(calls={"list": 1}),
    SubscriptionStats(1, 2, 3, 4),
]

text = st.text(st.characters(codec="utf-8"))
times = st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - they get one
ports = st.builds(Port, st.integers(0, 65535), text, st.none() | st.ip_addresses(), st.none() | st.integers(0, 65535))
containers = st.builds(
    Container,
    id=text,
    name=text,
    pid=st.none() | st.integers(),
    labels=st.dictionaries(text, text),
    project=text,
    paused=st.booleans(),
    image=text,
    started_at=st.none() | times,
    health=st.none() | st.sampled_from(Health),
    ports=st.lists(ports, max_size=2).map(tuple),
    addresses=st.dictionaries(text, st.lists(st.ip_addresses(), max_size=2).map(tuple), max_size=2),
    privileged=st.none() | st.booleans(),
    engine=text,
)
events = st.builds(
    ContainerEvent,
    type=st.sampled_from(EventType),
    container=containers,
    previous=st.none() | containers,
    timestamp=times,
    origin=st.sampled_from(Origin),
    exit_code=st.none() | st.integers(),
    revision=st.integers(),
    last=st.booleans(),
)


@settings(max_examples=50)
@given(containers | events)
def test_what_is_written_is_read_again(value: Container | ContainerEvent) -> None:
    written = json.loads(json.dumps(value.to_dict()))
    assert type(value).from_dict(written) == value
    assert type(value).from_dict({**written, "colour": "of a later version"}) == value


@settings(max_examples=20)
@given(st.lists(containers, unique_by=lambda one: one.id, max_size=5))
def test_pictures_are_read_again_with_their_order_and_their_indexes(found: list[Container]) -> None:
    written = {"revision": 9, "as_of": NOW.isoformat(), "containers": [one.to_dict() for one in found]}
    snapshot = Snapshot.from_dict(written)
    again = Snapshot.from_dict(json.loads(json.dumps(snapshot.to_dict())))
    assert (again.revision, again.as_of, again.synced, [*again]) == (9, NOW, False, found)
    assert again.names() == tuple(sorted({one.project for one in found} - {""}))
    assert all(again.container(one.id) == one for one in found)


def test_rucksacks_are_left_out_and_times_keep_their_zone() -> None:
    assert "rucksack" not in WEB.to_dict()
    assert Container.from_dict(WEB.to_dict()).rucksack is None
    in_tokyo = {**WEB.to_dict(), "started_at": NOW.astimezone(timezone(timedelta(hours=9))).isoformat()}
    assert Container.from_dict(in_tokyo) == WEB
    assert Container.from_dict(in_tokyo).to_dict() == WEB.to_dict(), "times are in UTC"


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_value_is_plain_json_pickles_and_is_documented(value: Any) -> None:
    document = value.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert pickle.loads(pickle.dumps(value)).to_dict() == document  # noqa: S301 - our own
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    kind, _, keys = next(row for row in rows if row[1] == type(value).__name__)
    assert [*document] == ["schema", "type", *re.findall(r"`(\w+)`", keys)]
    assert (document["schema"], document["type"]) == (1, kind)
    for nested in ("container", "previous", "sandbox"):
        assert "schema" not in (document.get(nested) or {})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": None}, "id must be text, not None"),
        ({"pid": True}, "pid must be a whole number, not True"),
        ({"pid": 1.5}, "pid must be a whole number, not 1.5"),
        ({"paused": 1}, "paused must be true or false, not 1"),
        ({"labels": ["a"]}, "labels must be an object, not ['a']"),
        ({"labels": {"a": 1}}, "labels['a'] must be text, not 1"),
        ({"labels": {1: "a"}}, "labels must be an object, not {1: 'a'}"),
        ({"health": "ill"}, "health must be one of 'starting', 'healthy', 'unhealthy', not 'ill'"),
        ({"started_at": "2026-01-02T03:04:05"}, "started_at must be a time with its zone, as in ISO 8601, not '2026-"),
        ({"started_at": 7}, "started_at must be a time with its zone, as in ISO 8601, not 7"),
        ({"ports": {}}, "ports must be a list, not {}"),
        ({"ports": [{"port": 1}, {"port": "\x1b"}]}, "ports[1].port must be a whole number, not '\\x1b'"),
        ({"ports": [7]}, "ports[0] must be an object, not 7"),
        ({"ports": [{}]}, "ports[0].port is missing"),
        ({"addresses": {"net": ["10.0.0.1", "x"]}}, "addresses['net'][1] must be an IP address, not 'x'"),
        ({"schema": True}, "schema must be 1, the only one that is known here, not True"),
        ({"type": "event"}, "type must be 'container', not 'event'"),
        ({"schema": 2}, "schema must be 1, the only one that is known here, not 2"),
    ],
)
def test_wrong_field_is_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text follows
        Container.from_dict(WEB.to_dict() | change)
    assert str(raised.value).startswith(why)


@pytest.mark.parametrize("document", [[], None, "x", 5])
def test_document_is_an_object(document: Any) -> None:
    for kind in (Container, ContainerEvent, Snapshot):
        with pytest.raises(ValueError, match="the document must be an object"):
            kind.from_dict(document)


def test_field_that_is_missing_or_wrong_within_another_is_named() -> None:
    event = EVENT.to_dict()
    del event["container"]["name"], event["previous"]
    with pytest.raises(ValueError, match=r"^container\.name is missing$"):
        ContainerEvent.from_dict(event)
    with pytest.raises(ValueError, match=r"^event must be one of 'started', "):
        ContainerEvent.from_dict(EVENT.to_dict() | {"event": "born"})
    with pytest.raises(ValueError, match=r"^containers must be a list, not None$"):
        Snapshot.from_dict({"revision": 1, "as_of": NOW.isoformat()})
    with pytest.raises(ValueError, match=r"^containers has several with the same id$"):
        Snapshot.from_dict(SNAPSHOT.to_dict() | {"containers": [WEB.to_dict()] * 2})


@pytest.mark.parametrize(
    ("labels", "service", "replica"),
    [
        ({}, "", None),
        (COMPOSE, "front", 2),
        (COMPOSE | {"com.docker.compose.container-number": "two"}, "front", None),
        (COMPOSE | {"com.docker.compose.container-number": "9" * 5000}, "front", None),
        (COMPOSE | {"com.docker.compose.container-number": "-1"}, "front", None),
    ],
)
def test_service_and_replica_are_those_of_compose(labels: dict[str, str], service: str, replica: int | None) -> None:
    container = Container(id="a", name="b", pid=1, labels=labels, engine="unix:///x")
    assert (container.service, container.replica, container.key) == (service, replica, ("unix:///x", "a"))
