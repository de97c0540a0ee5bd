"""The published definitions of the CRI (runtime.v1), told by hand: what ours are held against.

Nothing of the library is imported here, so that the two can be loaded in either order.
"""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

MAP = "map"

PUBLISHED = """
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
GetEventsRequest:
ContainerEventResponse: 1 container_id string; 2 container_event_type ContainerEventType; 3 created_at int64;
    4 pod_sandbox_status PodSandboxStatus; 5 containers_statuses repeated ContainerStatus
"""
"""The messages of the CRI (runtime.v1) as far as they matter here; a map has text as keys and values."""

ENUMS = {
    "ContainerState": ["CONTAINER_CREATED", "CONTAINER_RUNNING", "CONTAINER_EXITED", "CONTAINER_UNKNOWN"],
    "PodSandboxState": ["SANDBOX_READY", "SANDBOX_NOTREADY"],
    "ContainerEventType": [
        "CONTAINER_CREATED_EVENT",
        "CONTAINER_STARTED_EVENT",
        "CONTAINER_STOPPED_EVENT",
        "CONTAINER_DELETED_EVENT",
    ],
}
"""The enumerations of the CRI, numbered from 0 in this order."""

SCALARS: dict[str, FieldDescriptorProto.Type.ValueType] = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
}

PACKAGE = "runtime.v1"


def published() -> FileDescriptorProto:
    """The definitions of the CRI, made of the table above."""
    file = FileDescriptorProto(name="k8s.io/cri-api/pkg/apis/runtime/v1/api.proto", package=PACKAGE, syntax="proto3")
    for line in PUBLISHED.strip().replace("\n    ", " ").splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for field in filter(None, fields.strip().split(";")):
            number, own, *words = field.split()
            add(message, int(number), own, words)
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for place, value in enumerate(values):
            enum.value.add(name=value, number=place)
    return file


def add(message: DescriptorProto, number: int, name: str, words: list[str]) -> None:
    """Add a field to a message."""
    *repeated, kind = words
    field = message.field.add(name=name, number=number)
    field.label = (
        FieldDescriptorProto.LABEL_REPEATED if repeated or kind == MAP else FieldDescriptorProto.LABEL_OPTIONAL
    )
    if kind in SCALARS:
        field.type = SCALARS[kind]
    elif kind == MAP:
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for place, part in ((1, "key"), (2, "value")):
            entry.field.add(name=part, number=place, label=FieldDescriptorProto.LABEL_OPTIONAL, type=SCALARS["string"])
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    else:
        enum = kind in ENUMS
        field.type = FieldDescriptorProto.TYPE_ENUM if enum else FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
