"""Our own definitions of the CRI: the same on the wire as the published ones, which are told here by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from tests.support.engines.cri_wire import ENUMS
from tests.support.engines.cri_wire import message as upstream
from tests.wire.test_wire import in_a_new_interpreter, repeated
from whalewatch._wire import cri_pb2 as wire
from whalewatch.cri import calls

METHODS = {"Version", "ListContainers", "ListPodSandbox", "ContainerStatus", "PodSandboxStatus", "GetContainerEvents"}

OURS: dict[str, Descriptor] = dict(wire.DESCRIPTOR.message_types_by_name)


def same_on_the_wire(ours: FieldDescriptor, theirs: FieldDescriptor) -> bool:
    if (ours.number, repeated(ours)) != (theirs.number, repeated(theirs)):
        return False
    if ours.message_type is not None:
        other = theirs.message_type
        if ours.message_type.name == "Entry":
            return other is not None and other.GetOptions().map_entry
        return other is not None and other.name == ours.message_type.name
    if ours.enum_type is not None:
        return theirs.enum_type is not None and theirs.enum_type.name == ours.enum_type.name
    if ours.type == FieldDescriptor.TYPE_BYTES:  # as text is, and a message that is parsed apart
        return theirs.type in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE}
    return ours.type == theirs.type


@pytest.mark.parametrize("name", sorted(OURS.keys() - {"Entry"}))
def test_message_is_the_same_on_the_wire_as_published(name: str) -> None:
    theirs = upstream(name).DESCRIPTOR.fields_by_name
    for field in OURS[name].fields:
        assert same_on_the_wire(field, theirs[field.name]), f"{name}.{field.name}"


def test_states_and_events_are_numbered_as_published() -> None:
    ours = {name: [value.name for value in enum.values] for name, enum in wire.DESCRIPTOR.enum_types_by_name.items()}
    assert ours == ENUMS
    for enum in wire.DESCRIPTOR.enum_types_by_name.values():
        assert [value.number for value in enum.values] == list(range(len(enum.values)))


def test_calls_go_to_the_published_methods() -> None:
    assert calls.SERVICE == "/runtime.v1.RuntimeService"
    source = Path(calls.__file__).read_text()
    assert set(re.findall(r"\{SERVICE\}/(\w+)", source)) == METHODS


def test_published_message_is_understood() -> None:
    theirs = upstream("ListContainersResponse")()
    theirs.containers.add(id="c", pod_sandbox_id="s", state=1, created_at=5, labels={"a": "1"}, annotations={"b": ""})
    theirs.containers[0].metadata.name, theirs.containers[0].metadata.attempt = "web", 3
    theirs.containers[0].image.user_specified_image = "nginx"
    theirs.containers[0].image_id = "left out"
    (ours,) = wire.ListContainersResponse.FromString(theirs.SerializeToString()).containers
    assert (ours.id, ours.pod_sandbox_id, ours.created_at) == (b"c", b"s", 5)
    assert (ours.metadata.name, ours.metadata.attempt) == (b"web", 3)
    assert ours.state == wire.CONTAINER_RUNNING
    assert {entry.key: entry.value for entry in ours.labels} == {b"a": b"1"}
    assert {entry.key: entry.value for entry in ours.annotations} == {b"b": b""}
    assert ours.image.user_specified_image == b"nginx"


def test_event_and_the_status_in_it_are_understood() -> None:
    theirs = upstream("ContainerEventResponse")(container_id="s", container_event_type=1, created_at=7)
    theirs.pod_sandbox_status.id = "s"
    theirs.containers_statuses.add(id="c", state=2, exit_code=-1)
    ours = wire.ContainerEventResponse.FromString(theirs.SerializeToString())
    assert (ours.container_id, ours.created_at) == (b"s", 7)
    assert ours.container_event_type == wire.CONTAINER_STARTED_EVENT
    assert wire.PodSandboxStatus.FromString(ours.pod_sandbox_status).id == b"s"
    assert (ours.containers_statuses[0].state, ours.containers_statuses[0].exit_code) == (wire.CONTAINER_EXITED, -1)


def test_what_is_zero_is_left_out_on_the_wire_and_read_as_ready() -> None:
    """The trap of proto3: READY is what remains when nothing is said."""
    assert upstream("PodSandbox")(id="s", state=0).SerializeToString() == b"\x0a\x01s"
    assert wire.PodSandbox.FromString(b"\x0a\x01s").state == wire.SANDBOX_READY


def test_no_text_can_make_a_message_unreadable() -> None:
    hostile = wire.PodSandbox(id=b"s", annotations=[wire.Entry(key=b"a", value=b"\xff")]).SerializeToString()
    with pytest.raises(DecodeError):
        upstream("PodSandbox").FromString(hostile)
    assert wire.PodSandbox.FromString(hostile).annotations[0].value == b"\xff"
    for message in OURS.values():
        assert not [f.name for f in message.fields if f.type == FieldDescriptor.TYPE_STRING], message.name


OURS_LOADED = "from whalewatch._wire import cri_pb2 as ours"
THEIRS_LOADED = """
from google.protobuf import descriptor_pool
from tests.support.engines.cri_wire import published
descriptor_pool.Default().AddSerializedFile(published().SerializeToString())
theirs = descriptor_pool.Default().FindMessageTypeByName("runtime.v1.Container")
"""


@pytest.mark.parametrize("order", [(OURS_LOADED, THEIRS_LOADED), (THEIRS_LOADED, OURS_LOADED)])
def test_definitions_can_be_loaded_beside_the_published(order: tuple[str, str]) -> None:
    checked = "assert theirs.file.pool is ours.DESCRIPTOR.pool; assert ours.Container(id=b'a').id == b'a'"
    done = in_a_new_interpreter("\n".join([*order, checked]))
    assert done.returncode == 0, done.stderr
