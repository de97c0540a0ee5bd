"""What the CRI's messages are read as, hostile and malformed ones among them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from whalewatch import FrozenMapping, Signal, SignalType
from whalewatch._adapter.times import moment
from whalewatch._wire import cri_pb2 as wire
from whalewatch.cri import reading
from whalewatch.cri.reading import (
    container,
    container_record,
    inspection,
    is_about_sandbox,
    pid,
    pod_labels,
    sandbox_record,
    signal,
    verbose,
)

SECOND = 1_000_000_000


def entries(**texts: str) -> list[wire.Entry]:
    return [wire.Entry(key=key.encode(), value=value.encode()) for key, value in texts.items()]


def info(value: bytes) -> list[wire.Entry]:
    return [wire.Entry(key=b"info", value=value)]


def listed(**more: Any) -> wire.Container:
    fields: dict[str, Any] = {
        "id": b"c1",
        "pod_sandbox_id": b"s1",
        "metadata": wire.ContainerMetadata(name=b"web", attempt=2),
        "state": wire.CONTAINER_RUNNING,
        "image": wire.ImageSpec(image=b"sha256:1234"),
        "created_at": 5 * SECOND,
    }
    return wire.Container(**(fields | more))


def pod(**more: Any) -> wire.PodSandbox:
    fields: dict[str, Any] = {
        "id": b"s1",
        "metadata": wire.PodSandboxMetadata(name=b"shop", uid=b"u1", namespace=b"prod"),
        "created_at": 4 * SECOND,
    }
    return wire.PodSandbox(**(fields | more))


# ---- verbose information


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (b'{"pid": 4711, "sandboxID": "s1"}', 4711),
        (b'{"pid": 1}', 1),
        (b'{"pid": 2147483647}', 2147483647),
        (json.dumps({"runtimeSpec": {"env": ["x" * 1000] * 1000}, "pid": 7}).encode(), 7),
        # Stopped, or without a process:
        *((told, None) for told in (b'{"pid": 0}', b"{}")),
        # Numbers that are none, or no PID:
        *((b'{"pid": %s}' % told, None) for told in (b"-1", b"2147483648", b"1e3", b"9" * 5000, b"NaN")),
        *((b'{"pid": %s}' % told, None) for told in (b"true", b'"4711"', b"null", b"[4711]")),
        # Told elsewhere, or not as JSON:
        *((told, None) for told in (b'{"Pid": 4711}', b'{"process": {"pid": 4711}}', b"[4711]", b"4711", b"null")),
        *((told, None) for told in (b'{"pid": 4711', b"", b"pid: 4711")),
        *((told, None) for told in (b'{"pid": 4711, "x": "\xff"}', b"\xff\xfe\x00")),
        # Too deep, or too long:
        (b"[" * 100_000, None),
        (b'{"pid": 4711, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b'{"pid": 4711, "x": "' + b"x" * reading.MAX_INFO + b'"}', None),
    ],
    ids=lambda told: repr(told)[:40],
)
def test_pid_is_read_from_sound_information_only(told: bytes, expected: int | None) -> None:
    assert pid(verbose(info(told))) == expected


def test_information_under_another_key_or_none_is_none() -> None:
    assert verbose([]) == verbose([wire.Entry(key=b"Info", value=b'{"pid": 1}')]) == {}
    assert pid(verbose([wire.Entry(key=b"config", value=b"{}"), *info(b'{"pid": 1}')])) == 1


# ---- containers and sandboxes

POD = {"io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.uid": "u1"}

WEB = {"io.kubernetes.container.name": "web"}

SANDBOX = {"io.kubernetes.sandbox": ""}


def test_container_cannot_pretend_to_be_in_another_pod_or_a_sandbox() -> None:
    own = {"io.kubernetes.pod.uid": "other", "io.kubernetes.container.name": "other"} | SANDBOX
    assert container_record(listed(labels=entries(**own)), POD).labels == POD | WEB
    assert sandbox_record(pod(labels=entries(**own))).labels == own | POD


def test_container_of_an_unknown_pod_keeps_what_it_says_of_itself_and_without_a_name_it_has_its_id() -> None:
    assert container_record(listed(labels=entries(**POD)), {}).labels == POD | WEB
    nameless = container_record(wire.Container(id=b"c1"), {})
    assert (nameless.name, dict(nameless.labels), sandbox_record(wire.PodSandbox(id=b"s1")).name) == ("c1", {}, "s1")


def test_labels_tell_what_metadata_leave_out() -> None:
    told = entries(**POD | WEB)
    of_container = container_record(wire.Container(id=b"c1", labels=told), {})
    assert (of_container.name, dict(of_container.labels)) == ("web", POD | WEB)
    of_pod = sandbox_record(wire.PodSandbox(id=b"s1", labels=told))
    assert (of_pod.name, pod_labels(of_pod.labels)) == ("shop", POD)
    partly = sandbox_record(wire.PodSandbox(metadata=wire.PodSandboxMetadata(uid=b"u2"), labels=told))
    assert partly.labels == POD | WEB | {"io.kubernetes.pod.uid": "u2"} | SANDBOX
    assert pod_labels(sandbox_record(wire.PodSandbox(id=b"s1")).labels) == dict.fromkeys(POD, "")


def test_only_what_runs_and_only_a_ready_sandbox_is_alive() -> None:
    states = {0: False, wire.CONTAINER_RUNNING: True, wire.CONTAINER_EXITED: False, wire.CONTAINER_UNKNOWN: None}
    states |= {9: False}
    assert {state: container_record(listed(state=state), {}).running for state in states} == states
    states = {0: True, wire.SANDBOX_NOTREADY: False, 9: False}
    assert {state: sandbox_record(pod(state=state)).running for state in states} == states


def test_image_is_the_one_that_the_user_named_whatever_it_is_named_now() -> None:
    spec = wire.ImageSpec(image=b"sha256:1234", user_specified_image=b"nginx:1")
    assert container_record(listed(image=spec), {}).image == "nginx:1"
    record = container_record(listed(), {})
    assert record.image == "sha256:1234"
    for now in (wire.ImageSpec(), wire.ImageSpec(image=b"other:2")):
        status = wire.ContainerStatus(id=b"c1", image=now, started_at=7 * SECOND)
        assert container(record, "", 1, status=status).image == "sha256:1234"


def test_times_are_read_to_the_microsecond_and_a_start_is_told_by_a_status_only() -> None:
    record = container_record(listed(), {})
    assert container(record, "", 1).started_at is None
    status = wire.ContainerStatus(started_at=7 * SECOND + 1999)
    assert container(record, "", 1, status=status).started_at == datetime(1970, 1, 1, 0, 0, 7, 1, tzinfo=UTC)
    assert {moment(nothing) for nothing in (0, -1, -6795364578871345152, -(2**63))} == {None}
    last = datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC)
    assert moment(2**63 - 1) == last, "the last one of the wire"


def test_hostile_text_is_read_with_replacements() -> None:
    named = wire.ContainerMetadata(name=b"w\xff")
    labels = [wire.Entry(key=b"\xffk", value=b"\xfe")]
    record = container_record(listed(metadata=named, labels=labels, image=wire.ImageSpec(image=b"\xff")), {})
    assert (record.name, record.image, record.labels["\ufffdk"]) == ("w\ufffd", "\ufffd", "\ufffd")


def test_inspection_tells_all_that_is_listed_and_the_information() -> None:
    record = container_record(listed(labels=entries(a="1"), annotations=entries(b="2"), image_ref=b"ref"), {})
    told = inspection(record, {"pid": 1})
    assert (told.id, told.name, told.attempt, told.sandbox_id, told.image_ref) == ("c1", "web", 2, "s1", "ref")
    assert (told.labels, told.annotations, told.info) == ({"a": "1"}, {"b": "2"}, {"pid": 1})
    assert told.created_at == datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
    of_sandbox = inspection(sandbox_record(pod(runtime_handler=b"kata")), {})
    assert (of_sandbox.sandbox_id, of_sandbox.runtime_handler, of_sandbox.image) == ("", "kata", "")


def test_records_differ_by_what_may_not_change() -> None:
    first = container_record(listed(), {})
    assert container_record(listed(), {}) == first
    assert container_record(listed(created_at=6 * SECOND), {}) != first
    assert container_record(listed(labels=entries(a="1")), {}) != first
    assert first.labels == FrozenMapping(WEB)


# ---- events


def event(kind: int, **more: Any) -> wire.ContainerEventResponse:
    fields: dict[str, Any] = {"container_id": b"c1", "container_event_type": kind, "created_at": 9 * SECOND}
    return wire.ContainerEventResponse(**(fields | more))


def test_events_are_signals() -> None:
    at = datetime(1970, 1, 1, 0, 0, 9, tzinfo=UTC)
    signals = {
        wire.CONTAINER_CREATED_EVENT: None,
        wire.CONTAINER_STARTED_EVENT: Signal(SignalType.STARTED, "c1", at),
        wire.CONTAINER_STOPPED_EVENT: Signal(SignalType.EXITED, "c1", at),
        wire.CONTAINER_DELETED_EVENT: Signal(SignalType.CHANGED, "c1", likely_exiting=True),
        9: None,
    }
    assert {kind: signal(event(kind), "") for kind in signals} == signals
    with pytest.raises(ValueError, match="no container"):
        signal(wire.ContainerEventResponse(), "")


def test_stop_tells_the_exit_code_of_this_container_if_it_has_exited() -> None:
    def status(id: bytes, code: int, state: wire.ContainerState = wire.CONTAINER_EXITED) -> wire.ContainerStatus:
        return wire.ContainerStatus(id=id, exit_code=code, state=state)

    def code(*statuses: wire.ContainerStatus) -> int | None:
        told = signal(event(wire.CONTAINER_STOPPED_EVENT, containers_statuses=statuses), "")
        assert told is not None
        return told.exit_code

    assert code(status(b"c0", 1), status(b"c1", 3)) == 3
    assert code(status(b"c1", 0)) == 0
    assert code(status(b"c1", -1)) is None, "the engine does not know it"
    assert code(status(b"c0", 1)) is None
    assert code(status(b"c1", 0, wire.CONTAINER_RUNNING)) is None


def test_event_tells_whether_it_is_about_a_sandbox() -> None:
    def told(status: bytes) -> bool:
        return is_about_sandbox(event(wire.CONTAINER_STARTED_EVENT, container_id=b"s1", pod_sandbox_status=status))

    assert told(wire.PodSandboxStatus(id=b"s1").SerializeToString())
    assert not told(wire.PodSandboxStatus(id=b"s2").SerializeToString())
    assert not told(b"")
    # Of the oldest engines it is the metadata, whose second field is text where a message is expected.
    assert not told(wire.PodSandboxMetadata(name=b"shop", uid=b"\xff\xff", namespace=b"prod").SerializeToString())
