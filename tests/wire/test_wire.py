"""Our own definitions of gRPC messages: current, the same on the wire as upstream's, and loadable beside them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError

from tests.support.engines import containerd_wire as upstream
from whalewatch._wire import containerd_pb2 as wire
from whalewatch._wire import cri_pb2

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"

OURS: dict[str, Descriptor] = dict(wire.DESCRIPTOR.message_types_by_name)

NAMES = {
    "Empty": "google.protobuf.Empty",
    "Timestamp": "google.protobuf.Timestamp",
    "Any": "google.protobuf.Any",
    "Label": "containerd.services.containers.v1.Container.LabelsEntry",
    "Extension": "containerd.services.containers.v1.Container.ExtensionsEntry",
    "ListNamespacesRequest": "containerd.services.namespaces.v1.ListNamespacesRequest",
    "ListNamespacesResponse": "containerd.services.namespaces.v1.ListNamespacesResponse",
    "Namespace": "containerd.services.namespaces.v1.Namespace",
    "GetContainerRequest": "containerd.services.containers.v1.GetContainerRequest",
    "GetContainerResponse": "containerd.services.containers.v1.GetContainerResponse",
    "ListContainersRequest": "containerd.services.containers.v1.ListContainersRequest",
    "ListContainersResponse": "containerd.services.containers.v1.ListContainersResponse",
    "ListContainerMessage": "containerd.services.containers.v1.ListContainerMessage",
    "Container": "containerd.services.containers.v1.Container",
    "Runtime": "containerd.services.containers.v1.Container.Runtime",
    "GetTaskRequest": "containerd.services.tasks.v1.GetRequest",
    "GetTaskResponse": "containerd.services.tasks.v1.GetResponse",
    "ListTasksRequest": "containerd.services.tasks.v1.ListTasksRequest",
    "ListTasksResponse": "containerd.services.tasks.v1.ListTasksResponse",
    "Task": "containerd.v1.types.Process",
    "ServerResponse": "containerd.services.introspection.v1.ServerResponse",
    "VersionResponse": "containerd.services.version.v1.VersionResponse",
    "SubscribeRequest": "containerd.services.events.v1.SubscribeRequest",
    "Envelope": "containerd.services.events.v1.Envelope",
    "TaskStart": "containerd.events.TaskStart",
    "TaskExit": "containerd.events.TaskExit",
    "TaskDelete": "containerd.events.TaskDelete",
    "TaskPaused": "containerd.events.TaskPaused",
    "TaskResumed": "containerd.events.TaskResumed",
    "ContainerUpdate": "containerd.events.ContainerUpdate",
    "ContainerDelete": "containerd.events.ContainerDelete",
}
"""Our names of messages, with those that containerd gives to the same."""

METHODS = {
    "namespaces.v1.Namespaces/List": ("ListNamespacesRequest", "ListNamespacesResponse"),
    "containers.v1.Containers/Get": ("GetContainerRequest", "GetContainerResponse"),
    "containers.v1.Containers/List": ("ListContainersRequest", "ListContainersResponse"),
    "containers.v1.Containers/ListStream": ("ListContainersRequest", "ListContainerMessage"),
    "tasks.v1.Tasks/Get": ("GetTaskRequest", "GetTaskResponse"),
    "tasks.v1.Tasks/List": ("ListTasksRequest", "ListTasksResponse"),
    "introspection.v1.Introspection/Server": ("Empty", "ServerResponse"),
    "version.v1.Version/Version": ("Empty", "VersionResponse"),
    "events.v1.Events/Subscribe": ("SubscribeRequest", "Envelope"),
}
"""The calls that are made, with our names of what is sent and what is answered."""

NEWER = {"Container.sandbox", "ServerResponse.pid"}
"""Fields of containerd 1.7, which the published package does not know yet."""


def repeated(field: FieldDescriptor) -> bool:
    message = DescriptorProto()
    assert field.containing_type is not None
    field.containing_type.CopyToProto(message)
    return message.field[field.index].label == FieldDescriptorProto.LABEL_REPEATED


def same_on_the_wire(ours: FieldDescriptor, theirs: FieldDescriptor) -> bool:
    if (repeated(ours), ours.number) != (repeated(theirs), theirs.number):
        return False
    if ours.message_type is not None:
        return theirs.message_type is not None and NAMES[ours.message_type.name] == theirs.message_type.full_name
    text = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}
    return ours.type == theirs.type or (ours.type == FieldDescriptor.TYPE_BYTES and theirs.type in text)


@pytest.mark.parametrize("name", OURS)
def test_message_is_the_same_on_the_wire_as_upstreams(name: str) -> None:
    theirs = upstream.message(NAMES[name]).DESCRIPTOR.fields_by_name
    for field in OURS[name].fields:
        if f"{name}.{field.name}" in NEWER:
            assert field.name not in theirs
            continue
        assert same_on_the_wire(field, theirs[field.name]), f"{name}.{field.name}"


def test_states_of_tasks_are_numbered_as_upstream_does() -> None:
    theirs = upstream.message("containerd.v1.types.Process").DESCRIPTOR.fields_by_name["status"].enum_type
    assert dict(wire.Status.items()) == {value.name: value.number for value in theirs.values}


@pytest.mark.parametrize("path", METHODS)
def test_method_takes_and_returns_these_messages(path: str) -> None:
    service, _, method = path.partition("/")
    request, answer = upstream.request_and_answer(f"containerd.services.{service}", method)
    assert (request.DESCRIPTOR.full_name, answer.DESCRIPTOR.full_name) == tuple(NAMES[n] for n in METHODS[path])
    assert f"{service}/{method}" in (ROOT / "src/whalewatch/containerd/calls.py").read_text()


def test_message_of_upstreams_is_understood() -> None:
    theirs = upstream.message("containerd.services.containers.v1.Container")(
        id="web", labels={"a": "1", "b": ""}, image="tiny", snapshotter="overlayfs"
    )
    theirs.spec.type_url, theirs.spec.value = "types.example/spec", b"{}"
    theirs.created_at.FromJsonString("2026-01-02T03:04:05.000000006Z")
    ours = wire.Container.FromString(theirs.SerializeToString())
    assert (ours.id, ours.image, ours.snapshotter) == (b"web", b"tiny", b"overlayfs")
    assert {label.key: label.value for label in ours.labels} == {b"a": b"1", b"b": b""}
    assert (ours.spec.type_url, ours.spec.value) == (b"types.example/spec", b"{}")
    assert (ours.created_at.seconds, ours.created_at.nanos) == (1767323045, 6)
    assert type(theirs).FromString(ours.SerializeToString()) == theirs


def test_no_text_can_make_a_message_unreadable() -> None:
    hostile = wire.Container(id=b"web", labels=[wire.Label(key=b"a", value=b"\xff")]).SerializeToString()
    with pytest.raises(DecodeError):
        upstream.message("containerd.services.containers.v1.Container").FromString(hostile)
    assert wire.Container.FromString(hostile).labels[0].value == b"\xff"
    for message in OURS.values():
        assert not [f.name for f in message.fields if f.type == FieldDescriptor.TYPE_STRING], message.name


# ---- the generated code


GENERATED = pytest.mark.parametrize("module", [wire, cri_pb2], ids=lambda module: module.__name__.rpartition(".")[2])


def defined(module: ModuleType) -> FileDescriptorProto:
    """What the definitions say, by whatever compiler is installed."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path", str(PROTOS)]
    compiled = subprocess.run(
        [*command, "--descriptor_set_out=/dev/stdout", module.DESCRIPTOR.name],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (file,) = FileDescriptorSet.FromString(compiled.stdout).file
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")  # which the code leaves out
    return file


def source(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)


@GENERATED
def test_generated_code_is_what_the_definitions_say(module: ModuleType) -> None:
    generated = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(generated)
    for message in generated.message_type:
        for field in message.field:
            field.ClearField("json_name")
    assert generated == defined(module), "run: make protos"


@GENERATED
def test_generated_types_are_what_the_definitions_say(module: ModuleType) -> None:
    stub = ast.parse(source(module).with_suffix(".pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    file = defined(module)
    assert classes.keys() == {message.name for message in file.message_type} | {enum.name for enum in file.enum_type}
    for message in file.message_type:
        annotated = [n.target.id for n in classes[message.name].body if isinstance(n, ast.AnnAssign)]  # type: ignore[union-attr]
        assert [n for n in annotated if not n.isupper()] == [field.name for field in message.field]


@GENERATED
def test_generated_code_asks_for_no_newer_runtime(module: ModuleType) -> None:
    """Compilers from 5.26 on write code that only runtimes of their own age or younger load."""
    assert "ValidateProtobufRuntimeVersion" not in source(module).read_text()


# ---- beside upstream's own definitions


def in_a_new_interpreter(program: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    return subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


OURS_LOADED = "from whalewatch._wire import containerd_pb2 as ours"
THEIRS_LOADED = """
from google.protobuf import descriptor_pool
from tests.support.engines import containerd_wire
for file in containerd_wire.files():
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
theirs = descriptor_pool.Default().FindMessageTypeByName("containerd.services.containers.v1.Container")
"""


@pytest.mark.parametrize("order", [(OURS_LOADED, THEIRS_LOADED), (THEIRS_LOADED, OURS_LOADED)])
def test_definitions_can_be_loaded_beside_upstreams(order: tuple[str, str]) -> None:
    checked = "assert theirs.file.pool is ours.DESCRIPTOR.pool; assert ours.Container(id=b'a').id == b'a'"
    done = in_a_new_interpreter("\n".join([*order, checked]))
    assert done.returncode == 0, done.stderr


def test_second_copy_of_the_same_definitions_could_not_be_loaded() -> None:
    """The danger is real: the pool refuses the same names in another file."""
    copied = """
from google.protobuf.descriptor_pb2 import FileDescriptorProto
copy = FileDescriptorProto()
theirs.file.CopyToProto(copy)
copy.name = "elsewhere.proto"
descriptor_pool.Default().AddSerializedFile(copy.SerializeToString())
"""
    done = in_a_new_interpreter(THEIRS_LOADED + copied)
    assert done.returncode != 0
    assert "duplicate symbol" in done.stderr or "already" in done.stderr, done.stderr
