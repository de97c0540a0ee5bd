"""Drive an engine that speaks the CRI, or a fake of one, the way a kubelet does."""

from __future__ import annotations

import asyncio
import json
import uuid as uuids
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any

from tests.support.engines.containerd import PAUSE_IMAGE
from tests.support.engines.control import SLEEP
from tests.support.engines.cri_wire import CONTAINER_STATES, EVENT_TYPES, SANDBOX_STATES, message
from tests.support.engines.grpc_control import TIMEOUT, GrpcControl, until_away

SERVICE = "/runtime.v1.RuntimeService"  # the service that runs pods; images have another one

_SECURITY = {"namespace_options": {"network": 2, "pid": 1}}  # the network is the machine's, the processes' its own


@dataclass(frozen=True)
class Pod:
    """A pod that this driver has run, by the id of its sandbox, with its configuration as the engine was told."""

    id: str
    name: str
    namespace: str
    uid: str
    config: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Listed:
    """What listings tell of one container, or of a sandbox, of which `sandbox` is the id, and `name` the pod's."""

    id: str
    sandbox: str
    name: str
    attempt: int
    state: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Told:
    """One event: "CREATED", "STARTED", "STOPPED" or "DELETED", and its time in nanoseconds since the epoch.

    The states of the pod's sandbox, "" if it is not told, and of its containers by id are such as "READY".
    """

    id: str
    type: str
    timestamp: int
    sandbox: str
    containers: Mapping[str, str]


class CRIControl(GrpcControl):
    """Asynchronous driver of one CRI engine."""

    async def run_pod(
        self, name: str, namespace: str = "default", *, uid: str = "", attempt: int = 0, **more: Any
    ) -> Pod:
        """Run a pod without containers, with labels and annotations too; its uid is made up if none is given."""
        uid = uid or str(uuids.uuid4())
        config = {
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "attempt": attempt},
            # Ours alone, so that what an engine leaves behind can be found.
            "linux": {"cgroup_parent": f"/{self.path.parent.name}-pods", "security_context": _SECURITY},
            **more,
        }
        answer = await self.call("RunPodSandbox", config=config)
        return Pod(answer.pod_sandbox_id, name, namespace, uid, config)

    async def _pod(self, method: str, pod: str) -> None:
        await self.call(method, pod_sandbox_id=pod)

    # By the id of the sandbox: to stop one a second time does nothing, and to remove one that is not there is no error.
    stop_pod, remove_pod = partialmethod(_pod, "StopPodSandbox"), partialmethod(_pod, "RemovePodSandbox")

    async def create(
        self,
        pod: Pod,
        name: str,
        *,
        attempt: int = 0,
        cmd: Sequence[str] = SLEEP,
        image: str = PAUSE_IMAGE,
        **more: Any,
    ) -> str:
        """Create a container, with labels and annotations too."""
        config = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": image},
            "command": cmd,
            "linux": {"security_context": _SECURITY},
            **more,
        }
        answer = await self.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        return str(answer.container_id)

    async def _container(self, method: str, id: str, **fields: Any) -> None:
        await self.call(method, container_id=id, **fields)

    start, remove = partialmethod(_container, "StartContainer"), partialmethod(_container, "RemoveContainer")
    stop = partialmethod(_container, "StopContainer", timeout=0)  # kills it, and waits for its exit

    async def run(self, pod: Pod, name: str, **options: Any) -> str:
        id = await self.create(pod, name, **options)
        await self.start(id)
        return id

    async def exited(self, id: str) -> int:
        """Wait until a container has exited by itself; return its exit code."""
        async with asyncio.timeout(TIMEOUT):
            while CONTAINER_STATES[(status := await self.container_status(id)).state] != "EXITED":  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the CRI can only be asked
        return int(status.exit_code)

    async def until_pod_is(self, state: str, pod: str) -> None:
        """Wait until a pod is "READY" or "NOTREADY", by the id of its sandbox."""
        async with asyncio.timeout(TIMEOUT):
            while (await self.sandboxes())[pod].state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def version(self) -> tuple[str, str]:
        answer = await self.call("Version")
        return answer.runtime_name, answer.runtime_version

    async def containers(self) -> dict[str, Listed]:
        """Return all containers, whatever their state, by id."""
        answer = await self.call("ListContainers")
        return {each.id: _listed(each, each.pod_sandbox_id, CONTAINER_STATES) for each in answer.containers}

    async def sandboxes(self) -> dict[str, Listed]:
        """Return all sandboxes, whatever their state, by id."""
        answer = await self.call("ListPodSandbox")
        return {each.id: _listed(each, each.id, SANDBOX_STATES) for each in answer.items}

    async def container_status(self, id: str) -> Any:
        """Return all that is told of a container, but for its verbose information."""
        return (await self.call("ContainerStatus", container_id=id)).status

    async def pid(self, id: str) -> int:
        """Return the PID of a container or sandbox, from its verbose status; 0 if there is none."""
        if id in await self.containers():
            answer = await self.call("ContainerStatus", container_id=id, verbose=True)
        else:
            answer = await self.call("PodSandboxStatus", pod_sandbox_id=id, verbose=True)
        return int(json.loads(answer.info["info"]).get("pid", 0))

    async def truth(self) -> dict[str, int]:
        """Return the PIDs of running containers and ready sandboxes, by id."""
        alive = [id for id, each in (await self.containers()).items() if each.state == "RUNNING"]
        alive += [id for id, each in (await self.sandboxes()).items() if each.state == "READY"]
        return {id: await self.pid(id) for id in alive}

    async def clean(self) -> None:
        for id in await self.sandboxes():
            await self.stop_pod(id)
            await self.remove_pod(id)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Told]]:
        """Ask for the pod events; the value is an iterator of them.

        It ends when the engine ends it or is gone, and raises TimeoutError when nothing is told for `TIMEOUT`. Nothing
        tells when an engine has begun to listen to us: containerd 1.7 and CRI-O keep what comes before.
        """
        path = f"{SERVICE}/GetContainerEvents"
        async with self._streamed(path, message("GetEventsRequest")(), message("ContainerEventResponse")) as responses:
            yield _told(responses)

    async def call(self, method: str, *, service: str = SERVICE, **fields: Any) -> Any:
        request, answer = message(f"{method}Request"), message(f"{method}Response")
        return await self._ask(f"{service}/{method}", request(**fields), answer)


def _listed(one: Any, sandbox: str, states: Sequence[str]) -> Listed:
    name, attempt = one.metadata.name, one.metadata.attempt
    return Listed(one.id, sandbox, name, attempt, states[one.state], dict(one.labels), dict(one.annotations))


async def _told(responses: AsyncIterator[Any]) -> AsyncIterator[Told]:
    async for response in until_away(responses):
        yield Told(
            response.container_id,
            EVENT_TYPES[response.container_event_type],
            response.created_at,
            SANDBOX_STATES[response.pod_sandbox_status.state] if response.HasField("pod_sandbox_status") else "",
            {status.id: CONTAINER_STATES[status.state] for status in response.containers_statuses},
        )
