"""What CRI engines leave out, report late or refuse to list, and what of it is found all the same."""

from __future__ import annotations

import pytest

from tests.support.cri_followed import NAMESPACE, Containerd, bare, connected, following, pids
from tests.support.followed import eventually
from whalewatch import Dead, cri
from whalewatch._wire import cri_pb2 as wire
from whalewatch.testing import FakeCRI

EACH = pytest.mark.parametrize("source", ["native", "pod-events", "poll"])

LARGEST = {"large": "x" * 255_000}
"""Annotations as large as Kubernetes allows them, 256 KiB, with some room for what engines add."""


@EACH
async def test_dead_pods_and_containers_with_large_annotations_do_not_hide_what_runs(
    containerd: Containerd, source: str
) -> None:
    for number in range(68):  # 17 MB; engines send 16 MiB at most
        pod = containerd.run_pod("dead", uid=f"d{number}", annotations=LARGEST)
        containerd.run(pod, "dead", annotations=LARGEST)
        containerd.stop_pod(pod)
    lost = containerd.run_task("lost")
    containerd.faults.unknown(lost)
    async with connected(containerd, source) as adapter:
        assert (await adapter.listing()).containers.keys() == {containerd.pod, containerd.web, lost}


@EACH
async def test_container_that_outlives_its_sandbox_is_in_its_pod(containerd: Containerd, source: str) -> None:
    containerd.native.exit(containerd.pod, namespace=NAMESPACE)
    containerd.exit_pod(containerd.pod)
    async with following(containerd, source=source, poll=60.0) as follow:
        found = await follow.watcher.portfolio.pod("u1")
        assert found is not None
        assert (found.name, found.sandbox, found.container_names) == ("shop", None, ("web",))
        await eventually(lambda: containerd.requests["pod_list"] == 3)  # two listings, and this sandbox once


@EACH
async def test_containers_that_exit_with_their_sandbox_are_found_though_only_its_exit_is_told(
    containerd: Containerd, source: str
) -> None:
    """As containerd 2.1 does when the shim of a pod is killed."""
    other = containerd.run_task("other")
    async with following(containerd, source=source, audit=None) as follow:
        await eventually(lambda: containerd.requests["pod_list"] >= 2)  # all is confirmed
        with containerd.native.faults.silently(), containerd.faults.silently():
            for id in (containerd.web, other):
                containerd.native.faults.kill_shim(id, NAMESPACE)
                containerd.exit(id, 255)
        containerd.native.faults.kill_shim(containerd.pod, NAMESPACE)
        containerd.exit_pod(containerd.pod)
        await follow.until(lambda: not pids(follow) and follow.types(other) == ["exited"])


@pytest.mark.parametrize("source", ["pod-events", "poll"])
async def test_pid_that_is_zero_after_a_start_is_read_again_until_it_is_told(engine: FakeCRI, source: str) -> None:
    async with following(engine, source=source, audit=None) as follow:
        await eventually(lambda: engine.requests["pod_list"] >= 2)  # all is confirmed
        late = engine.faults.tell_info(b'{"pid": 0}')
        pod = engine.run_pod("shop")
        c1 = engine.run(pod, "c1")
        await eventually(lambda: engine.requests["container_status"] >= 2 <= engine.requests["pod_status"])
        assert pids(follow) == {c1: None}
        late.undo()
        await follow.until(lambda: (follow.types(c1), follow.types(pod)) == (["started", "updated"], ["started"]))
        assert pids(follow) == {c1: engine.containers[c1].pid, pod: engine.pods[pod].pid}
        adapter = follow.watcher.engine
        assert isinstance(adapter, cri.CRIEngine)
        assert adapter.without_pid == 0


async def test_why_a_container_has_exited_is_read_with_its_status(engine: FakeCRI) -> None:
    c1 = engine.run(bare(engine), "c1")
    async with connected(engine, "pod-events") as adapter:
        await adapter.listing()
        engine.exit(c1)
        for code, reason, expected in ((137, b"OOMKilled", (137, True)), (-1, b"Error", (None, False))):
            status = wire.ContainerStatus(id=c1.encode(), state=wire.CONTAINER_EXITED, exit_code=code, reason=reason)
            answer = wire.ContainerStatusResponse(status=status)
            with engine.faults.garble("container_status", answer.SerializeToString()):
                dead = await adapter.inspect(c1)
            assert isinstance(dead, Dead)
            assert (dead.exit_code, dead.oom) == expected
