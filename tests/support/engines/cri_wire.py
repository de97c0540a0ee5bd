"""The messages of the CRI (runtime.v1) as published, told by hand, to drive engines independently of the library's own.

Nothing of the library is imported here, so that the two can be loaded in either order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "runtime.v1"

_MAP = "map"

_MESSAGES = """
VersionRequest: 1 version string
VersionResponse: 1 version string; 2 runtime_name string; 3 runtime_version string; 4 runtime_api_version string
StatusRequest: 1 verbose bool
StatusResponse: 1 status RuntimeStatus; 2 info map
RuntimeStatus: 1 conditions repeated RuntimeCondition
RuntimeCondition: 1 type string; 2 status bool; 3 reason string; 4 message string
ListContainersRequest: 1 filter ContainerFilter
ContainerFilter: 1 id string; 2 state ContainerStateValue; 3 pod_sandbox_id string; 4 label_selector map
ContainerStateValue: 1 state ContainerState
ListContainersResponse: 1 containers repeated Container
Container: 1 id string; 2 pod_sandbox_id string; 3 metadata ContainerMetadata; 4 image ImageSpec; 5 image_ref string;
    6 state ContainerState; 7 created_at int64; 8 labels map; 9 annotations map; 10 image_id string
ContainerMetadata: 1 name string; 2 attempt uint32
ImageSpec: 1 image string; 2 annotations map; 18 user_specified_image string; 19 runtime_handler string
ListPodSandboxRequest: 1 filter PodSandboxFilter
PodSandboxFilter: 1 id string; 2 state PodSandboxStateValue; 3 label_selector map
PodSandboxStateValue: 1 state PodSandboxState
ListPodSandboxResponse: 1 items repeated PodSandbox
PodSandbox: 1 id string; 2 metadata PodSandboxMetadata; 3 state PodSandboxState; 4 created_at int64; 5 labels map;
    6 annotations map; 7 runtime_handler string
PodSandboxMetadata: 1 name string; 2 uid string; 3 namespace string; 4 attempt uint32
ContainerStatusRequest: 1 container_id string; 2 verbose bool
ContainerStatusResponse: 1 status ContainerStatus; 2 info map
ContainerStatus: 1 id string; 2 metadata ContainerMetadata; 3 state ContainerState; 4 created_at int64;
    5 started_at int64; 6 finished_at int64; 7 exit_code int32; 8 image ImageSpec; 9 image_ref string; 10 reason string;
    11 message string; 12 labels map; 13 annotations map; 15 log_path string; 17 image_id string
PodSandboxStatusRequest: 1 pod_sandbox_id string; 2 verbose bool
PodSandboxStatusResponse: 1 status PodSandboxStatus; 2 info map; 3 containers_statuses repeated ContainerStatus;
    4 timestamp int64
PodSandboxStatus: 1 id string; 2 metadata PodSandboxMetadata; 3 state PodSandboxState; 4 created_at int64; 7 labels map;
    8 annotations map; 9 runtime_handler string
ContainerEventResponse: 1 container_id string; 2 container_event_type ContainerEventType; 3 created_at int64;
    4 pod_sandbox_status PodSandboxStatus; 5 containers_statuses repeated ContainerStatus
RunPodSandboxRequest: 1 config PodSandboxConfig; 2 runtime_handler string
RunPodSandboxResponse StopPodSandboxRequest RemovePodSandboxRequest: 1 pod_sandbox_id string
CreateContainerRequest: 1 pod_sandbox_id string; 2 config ContainerConfig; 3 sandbox_config PodSandboxConfig
CreateContainerResponse StartContainerRequest RemoveContainerRequest: 1 container_id string
StopContainerRequest: 1 container_id string; 2 timeout int64
GetEventsRequest StopPodSandboxResponse RemovePodSandboxResponse:
StartContainerResponse StopContainerResponse RemoveContainerResponse:
PodSandboxConfig: 1 metadata PodSandboxMetadata; 6 labels map; 7 annotations map; 8 linux LinuxPodSandboxConfig
LinuxPodSandboxConfig: 1 cgroup_parent string; 2 security_context LinuxSandboxSecurityContext
LinuxSandboxSecurityContext: 1 namespace_options NamespaceOption
ContainerConfig: 1 metadata ContainerMetadata; 2 image ImageSpec; 3 command repeated string; 9 labels map;
    10 annotations map; 15 linux LinuxContainerConfig
LinuxContainerConfig: 2 security_context LinuxContainerSecurityContext
LinuxContainerSecurityContext: 3 namespace_options NamespaceOption
NamespaceOption: 1 network int32; 2 pid int32; 3 ipc int32
"""
"""The messages as far as they matter here; a map has text as keys and values.

With the first, engines are asked; with those from RunPodSandboxRequest on kubelets run pods, and enumerations in them
are numbers here.
"""

# The names of states and types, by number.
CONTAINER_STATES = ("CREATED", "RUNNING", "EXITED", "UNKNOWN")
SANDBOX_STATES = ("READY", "NOTREADY")
EVENT_TYPES = ("CREATED", "STARTED", "STOPPED", "DELETED")

ENUMS = {
    "ContainerState": [f"CONTAINER_{name}" for name in CONTAINER_STATES],
    "PodSandboxState": [f"SANDBOX_{name}" for name in SANDBOX_STATES],
    "ContainerEventType": [f"CONTAINER_{name}_EVENT" for name in EVENT_TYPES],
}
"""The enumerations of the CRI, numbered from 0 in this order."""

_SCALARS: dict[str, FieldDescriptorProto.Type.ValueType] = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
}


def message(name: str) -> Any:
    """Return the class of a message by its name, such as "ListContainersRequest"."""
    return GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    pool.Add(published())
    return pool


def published() -> FileDescriptorProto:
    """The definitions of the CRI, made of the tables above."""
    file = FileDescriptorProto(name="k8s.io/cri-api/pkg/apis/runtime/v1/api.proto", package=PACKAGE, syntax="proto3")
    for line in _MESSAGES.strip().replace("\n    ", " ").splitlines():
        names, _, fields = line.partition(":")
        for message in [file.message_type.add(name=name) for name in names.split()]:
            for field in filter(None, fields.strip().split(";")):
                number, own, *words = field.split()
                _add(message, int(number), own, words)
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for place, value in enumerate(values):
            enum.value.add(name=value, number=place)
    return file


def _add(message: DescriptorProto, number: int, name: str, words: list[str]) -> None:
    *repeated, kind = words
    field = message.field.add(name=name, number=number)
    field.label = (
        FieldDescriptorProto.LABEL_REPEATED if repeated or kind == _MAP else FieldDescriptorProto.LABEL_OPTIONAL
    )
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind == _MAP:
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for place, part in ((1, "key"), (2, "value")):
            entry.field.add(name=part, number=place, label=FieldDescriptorProto.LABEL_OPTIONAL, type=_SCALARS["string"])
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    else:
        enum = kind in ENUMS
        field.type = FieldDescriptorProto.TYPE_ENUM if enum else FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
