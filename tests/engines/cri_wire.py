"""The messages of the CRI with which pods are run: what kubelets say, told by hand as the ones that are read are."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from tests.published_cri import ENUMS, PACKAGE, add, published

CONTAINER_STATES = tuple(name.removeprefix("CONTAINER_") for name in ENUMS["ContainerState"])
"""The names of a container's states, by number."""

SANDBOX_STATES = tuple(name.removeprefix("SANDBOX_") for name in ENUMS["PodSandboxState"])
"""The names of a sandbox's states, by number."""

EVENT_TYPES = tuple(name.removeprefix("CONTAINER_").removesuffix("_EVENT") for name in ENUMS["ContainerEventType"])
"""The names of the types of events, by number."""

_WRITING = """
RunPodSandboxRequest: 1 config PodSandboxConfig; 2 runtime_handler string
RunPodSandboxResponse: 1 pod_sandbox_id string
StopPodSandboxRequest: 1 pod_sandbox_id string
StopPodSandboxResponse:
RemovePodSandboxRequest: 1 pod_sandbox_id string
RemovePodSandboxResponse:
CreateContainerRequest: 1 pod_sandbox_id string; 2 config ContainerConfig; 3 sandbox_config PodSandboxConfig
CreateContainerResponse: 1 container_id string
StartContainerRequest: 1 container_id string
StartContainerResponse:
StopContainerRequest: 1 container_id string; 2 timeout int64
StopContainerResponse:
RemoveContainerRequest: 1 container_id string
RemoveContainerResponse:
PodSandboxConfig: 1 metadata PodSandboxMetadata; 6 labels map; 7 annotations map;
    8 linux LinuxPodSandboxConfig
LinuxPodSandboxConfig: 1 cgroup_parent string; 2 security_context LinuxSandboxSecurityContext
LinuxSandboxSecurityContext: 1 namespace_options NamespaceOption
ContainerConfig: 1 metadata ContainerMetadata; 2 image ImageSpec; 3 command repeated string; 9 labels map;
    10 annotations map; 15 linux LinuxContainerConfig
LinuxContainerConfig: 2 security_context LinuxContainerSecurityContext
LinuxContainerSecurityContext: 3 namespace_options NamespaceOption
NamespaceOption: 1 network int32; 2 pid int32; 3 ipc int32
"""
"""The messages of the CRI (runtime.v1) that change something; enumerations are numbers here."""


def message(name: str) -> Any:
    """Return the class of a message by its name, such as "ListContainersRequest"."""
    return GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@cache
def _pool() -> DescriptorPool:
    file = published()
    for line in _WRITING.strip().replace("\n    ", " ").splitlines():
        name, _, fields = line.partition(":")
        added = file.message_type.add(name=name)
        for field in filter(None, fields.strip().split(";")):
            number, own, *words = field.split()
            add(added, int(number), own, words)
    pool = DescriptorPool()
    pool.Add(file)
    return pool
