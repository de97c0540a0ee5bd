"""Our own definitions of gRPC messages: current, the same on the wire as those published, and loadable beside them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from tests.support.engines import containerd_wire, cri_wire
from whalewatch._wire import containerd_pb2, cri_pb2
from whalewatch.containerd import calls as containerd_calls
from whalewatch.cri import calls as cri_calls

ROOT = Path(__file__).parents[2]

SERVICES = "containerd.services"

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
"""The calls that are made to containerd, with our names of what is sent and what is answered."""

EVENTS = [
    "TaskStart",
    "TaskExit",
    "TaskDelete",
    "TaskOOM",
    "TaskPaused",
    "TaskResumed",
    "ContainerUpdate",
    "ContainerDelete",
]

CRI_METHODS = {
    *("Version", "ListContainers", "ListPodSandbox"),
    *("ContainerStatus", "PodSandboxStatus", "GetContainerEvents"),
}

NEWER = {"Container.sandbox", "ServerResponse.pid"}
"""Fields of containerd 1.7, which the published package does not know yet."""


def repeated(field: FieldDescriptor) -> bool:
    message = DescriptorProto()
    assert field.containing_type is not None
    field.containing_type.CopyToProto(message)
    return message.field[field.index].label == FieldDescriptorProto.LABEL_REPEATED


def compare(ours: Descriptor, theirs: Descriptor, compared: set[tuple[str, str]]) -> None:
    """Check that a message, and all that are in it, are the same on the wire as those published."""
    if (ours.name, theirs.full_name) in compared:
        return
    compared.add((ours.name, theirs.full_name))
    cri = ours.file is cri_pb2.DESCRIPTOR
    for field in ours.fields:
        assert field.type != FieldDescriptor.TYPE_STRING, "text that is not UTF-8 makes a message unreadable"
        if f"{ours.name}.{field.name}" in NEWER and not cri:
            assert field.name not in theirs.fields_by_name
            continue
        other = theirs.fields_by_name[field.name]
        assert (repeated(field), field.number) == (repeated(other), other.number), field.full_name
        if field.message_type is not None:
            assert other.message_type is not None, field.full_name
            compare(field.message_type, other.message_type, compared)
        elif cri and field.enum_type is not None:
            assert other.enum_type is not None, field.full_name
            assert other.enum_type.name == field.enum_type.name
        else:
            same = {field.type}
            if field.type == FieldDescriptor.TYPE_BYTES:  # as text is, and with the CRI a message that is parsed apart
                same |= {FieldDescriptor.TYPE_STRING, *([FieldDescriptor.TYPE_MESSAGE] if cri else [])}
            assert other.type in same, field.full_name


def test_messages_of_containerd_are_the_same_on_the_wire_as_published() -> None:
    ours = containerd_pb2.DESCRIPTOR.message_types_by_name
    compared: set[tuple[str, str]] = set()
    for path, names in METHODS.items():
        service, _, method = path.partition("/")
        published = containerd_wire.request_and_answer(f"{SERVICES}.{service}", method)
        for name, theirs in zip(names, published, strict=True):
            compare(ours[name], theirs.DESCRIPTOR, compared)
        assert f"{service}/{method}" in Path(containerd_calls.__file__).read_text()
    for name in EVENTS:
        compare(ours[name], containerd_wire.message(f"containerd.events.{name}").DESCRIPTOR, compared)
    assert {name for name, _ in compared} == set(ours)


def test_messages_of_the_cri_are_the_same_on_the_wire_as_published() -> None:
    ours = cri_pb2.DESCRIPTOR.message_types_by_name
    compared: set[tuple[str, str]] = set()
    for name in set(ours) - {"Entry"}:
        compare(ours[name], cri_wire.message(name).DESCRIPTOR, compared)
    assert {name for name, _ in compared} == set(ours)
    assert cri_calls.SERVICE == "/runtime.v1.RuntimeService"
    assert set(re.findall(r"\{SERVICE\}/(\w+)", Path(cri_calls.__file__).read_text())) == CRI_METHODS


def test_states_and_events_are_numbered_as_published() -> None:
    theirs = containerd_wire.message("containerd.v1.types.Process").DESCRIPTOR.fields_by_name["status"].enum_type
    assert dict(containerd_pb2.Status.items()) == {value.name: value.number for value in theirs.values}
    enums = cri_pb2.DESCRIPTOR.enum_types_by_name
    assert {name: [value.name for value in enum.values] for name, enum in enums.items()} == cri_wire.ENUMS
    for enum in enums.values():
        assert [value.number for value in enum.values] == list(range(len(enum.values)))


def without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    """Clear what the generated code leaves out."""
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return file


@pytest.mark.parametrize("module", [containerd_pb2, cri_pb2], ids=lambda module: module.__name__.rpartition(".")[2])
def test_generated_code_and_types_are_what_the_definitions_say(module: ModuleType) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path", str(ROOT / "protos")]
    command += ["--descriptor_set_out=/dev/stdout", module.DESCRIPTOR.name]
    compiled = subprocess.run(command, check=True, capture_output=True, timeout=60)
    (file,) = FileDescriptorSet.FromString(compiled.stdout).file
    generated = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(generated)
    assert without_json_names(generated) == without_json_names(file), "run: make protos"

    source = Path(str(module.__file__))
    # Compilers from 5.26 on write code that only runtimes of their own age or younger load.
    assert "ValidateProtobufRuntimeVersion" not in source.read_text()
    stub = ast.parse(source.with_suffix(".pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    assert classes.keys() == {message.name for message in file.message_type} | {enum.name for enum in file.enum_type}
    for message in file.message_type:
        annotated = [n.target.id for n in classes[message.name].body if isinstance(n, ast.AnnAssign)]  # type: ignore[union-attr]
        assert [n for n in annotated if not n.isupper()] == [field.name for field in message.field]


THEIRS_LOADED = """
from google.protobuf import descriptor_pool
from tests.support.engines import containerd_wire, cri_wire
for file in [*containerd_wire.files(), cri_wire.published()]:
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
theirs = descriptor_pool.Default().FindMessageTypeByName("{}")
"""


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    ("module", "name"),
    [("containerd_pb2", "containerd.services.containers.v1.Container"), ("cri_pb2", "runtime.v1.Container")],
)
def test_definitions_can_be_loaded_beside_the_published(module: str, name: str, ours_first: bool) -> None:
    loaded = [f"from whalewatch._wire import {module} as ours", THEIRS_LOADED.format(name)]
    checked = "assert theirs.file.pool is ours.DESCRIPTOR.pool; assert ours.Container(id=b'a').id == b'a'"
    program = "\n".join([*(loaded if ours_first else reversed(loaded)), checked])
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    subprocess.run([sys.executable, "-c", program], env=environ, timeout=60, check=True)
