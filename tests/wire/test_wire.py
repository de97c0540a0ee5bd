"""Our own definitions of gRPC messages: current, the same on the wire as those published, and loadable beside them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from tests.support.engines import containerd_wire, cri_wire
from whalewatch._wire import containerd_pb2, cri_pb2
from whalewatch.containerd import calls as containerd_calls
from whalewatch.cri import calls as cri_calls

ROOT = Path(__file__).parents[2]

SERVICES = "containerd.services"

PACKAGES = {
    "google.protobuf": "Empty Timestamp Any",
    f"{SERVICES}.namespaces.v1": "ListNamespacesRequest ListNamespacesResponse Namespace",
    f"{SERVICES}.containers.v1": """
        GetContainerRequest GetContainerResponse ListContainersRequest ListContainersResponse ListContainerMessage
        Container""",
    f"{SERVICES}.tasks.v1": "ListTasksRequest ListTasksResponse",
    f"{SERVICES}.introspection.v1": "ServerResponse",
    f"{SERVICES}.version.v1": "VersionResponse",
    f"{SERVICES}.events.v1": "SubscribeRequest Envelope",
    "containerd.events": "TaskStart TaskExit TaskDelete TaskPaused TaskResumed ContainerUpdate ContainerDelete",
}
"""The messages of containerd that have the same name with us."""

NAMES = {name: f"{package}.{name}" for package, names in PACKAGES.items() for name in names.split()} | {
    "Label": f"{SERVICES}.containers.v1.Container.LabelsEntry",
    "Extension": f"{SERVICES}.containers.v1.Container.ExtensionsEntry",
    "Runtime": f"{SERVICES}.containers.v1.Container.Runtime",
    "GetTaskRequest": f"{SERVICES}.tasks.v1.GetRequest",
    "GetTaskResponse": f"{SERVICES}.tasks.v1.GetResponse",
    "Task": "containerd.v1.types.Process",
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
"""The calls that are made to containerd, with our names of what is sent and what is answered."""

CRI_METHODS = {
    *("Version", "ListContainers", "ListPodSandbox"),
    *("ContainerStatus", "PodSandboxStatus", "GetContainerEvents"),
}

NEWER = {"Container.sandbox", "ServerResponse.pid"}
"""Fields of containerd 1.7, which the published package does not know yet."""

OURS: dict[str, tuple[ModuleType, Descriptor]] = {
    f"{module.__name__.rpartition('.')[2]}.{name}": (module, message)
    for module in (containerd_pb2, cri_pb2)
    for name, message in module.DESCRIPTOR.message_types_by_name.items()
}


def published(module: ModuleType, name: str) -> Any:
    """The message that is one of ours."""
    return containerd_wire.message(NAMES[name]) if module is containerd_pb2 else cri_wire.message(name)


def repeated(field: FieldDescriptor) -> bool:
    message = DescriptorProto()
    assert field.containing_type is not None
    field.containing_type.CopyToProto(message)
    return message.field[field.index].label == FieldDescriptorProto.LABEL_REPEATED


def same_on_the_wire(module: ModuleType, ours: FieldDescriptor, theirs: FieldDescriptor) -> bool:
    if ours.type == FieldDescriptor.TYPE_STRING:
        return False  # text that is not UTF-8 would make the message unreadable
    if (repeated(ours), ours.number) != (repeated(theirs), theirs.number):
        return False
    if ours.message_type is not None:
        other: Any = theirs.message_type
        if module is cri_pb2 and ours.message_type.name == "Entry":
            fields = {} if other is None else other.fields_by_name
            entry = all(same_on_the_wire(module, each, fields[each.name]) for each in ours.message_type.fields)
            return entry and other.GetOptions().map_entry
        expected = published(module, ours.message_type.name).DESCRIPTOR.full_name
        return other is not None and other.full_name == expected
    if module is cri_pb2 and ours.enum_type is not None:
        return theirs.enum_type is not None and theirs.enum_type.name == ours.enum_type.name
    same = {ours.type}
    if ours.type == FieldDescriptor.TYPE_BYTES:  # as text is, and with the CRI a message that is parsed apart
        same |= {FieldDescriptor.TYPE_STRING} | ({FieldDescriptor.TYPE_MESSAGE} if module is cri_pb2 else set())
    return theirs.type in same


@pytest.mark.parametrize("name", sorted(OURS.keys() - {"cri_pb2.Entry"}))
def test_message_is_the_same_on_the_wire_as_published(name: str) -> None:
    module, message = OURS[name]
    theirs = published(module, message.name).DESCRIPTOR.fields_by_name
    for field in message.fields:
        if f"{message.name}.{field.name}" in NEWER and module is containerd_pb2:
            assert field.name not in theirs
        else:
            assert same_on_the_wire(module, field, theirs[field.name]), field.name


def test_states_and_events_are_numbered_as_published() -> None:
    theirs = containerd_wire.message(NAMES["Task"]).DESCRIPTOR.fields_by_name["status"].enum_type
    assert dict(containerd_pb2.Status.items()) == {value.name: value.number for value in theirs.values}
    enums = cri_pb2.DESCRIPTOR.enum_types_by_name
    assert {name: [value.name for value in enum.values] for name, enum in enums.items()} == cri_wire.ENUMS
    for enum in enums.values():
        assert [value.number for value in enum.values] == list(range(len(enum.values)))


@pytest.mark.parametrize("path", METHODS)
def test_method_takes_and_returns_these_messages(path: str) -> None:
    service, _, method = path.partition("/")
    request, answer = containerd_wire.request_and_answer(f"{SERVICES}.{service}", method)
    assert (request.DESCRIPTOR.full_name, answer.DESCRIPTOR.full_name) == tuple(NAMES[n] for n in METHODS[path])
    assert f"{service}/{method}" in Path(containerd_calls.__file__).read_text()


def test_calls_of_the_cri_go_to_the_published_methods() -> None:
    assert cri_calls.SERVICE == "/runtime.v1.RuntimeService"
    assert set(re.findall(r"\{SERVICE\}/(\w+)", Path(cri_calls.__file__).read_text())) == CRI_METHODS


# ---- the generated code


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


# ---- beside the published definitions


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
    [("containerd_pb2", NAMES["Container"]), ("cri_pb2", "runtime.v1.Container")],
)
def test_definitions_can_be_loaded_beside_the_published(module: str, name: str, ours_first: bool) -> None:
    loaded = [f"from whalewatch._wire import {module} as ours", THEIRS_LOADED.format(name)]
    checked = "assert theirs.file.pool is ours.DESCRIPTOR.pool; assert ours.Container(id=b'a').id == b'a'"
    program = "\n".join([*(loaded if ours_first else reversed(loaded)), checked])
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    subprocess.run([sys.executable, "-c", program], env=environ, timeout=60, check=True)
