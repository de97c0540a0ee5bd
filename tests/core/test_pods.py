"""Kubernetes pods in the picture: made of nothing but Kubernetes' own labels, whatever engine tells them."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.scripted import Publisher, ScriptedEngine, at, box
from whalewatch import Container, Pod, Portfolio, Snapshot, Watcher


def labels(uid: str, name: str = "shop", namespace: str = "prod") -> dict[str, str]:
    return {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid}


def member(id: str, uid: str, **attributes: Any) -> Container:
    return box(id, labels=labels(uid), **attributes)


def sandbox(id: str, uid: str, name: str = "shop", namespace: str = "prod") -> Container:
    return box(id, name=name, labels={**labels(uid, name, namespace), "io.kubernetes.sandbox": ""})


async def test_pod_holds_its_containers_by_name_and_its_sandbox_apart() -> None:
    publisher = Publisher(member("2", "u", name="web"), sandbox("s", "u"), member("1", "u", name="db"), box("alone"))
    asked = Portfolio(publisher.feed)
    pod = await asked.pod("u")
    assert pod is not None
    assert (pod.name, pod.namespace, pod.uid, pod.sandbox) == ("shop", "prod", "u", sandbox("s", "u"))
    assert (pod.container_names, [c.id for c in pod], len(pod)) == (("db", "web"), ["1", "2"], 2)
    assert pod.container("web") == pod.container("2") == member("2", "u", name="web")
    assert "web" in pod
    assert "alone" not in pod
    assert pod.container("s") is None
    assert await asked.pods() == (pod,)
    assert await asked.pod("shop") is None
    assert await asked.pod("") is None


async def test_pods_come_by_namespace_and_name() -> None:
    publisher = Publisher(
        sandbox("1", "u1", "b", "prod"), sandbox("2", "u2", "a", "prod"), sandbox("3", "u3", "z", "dev")
    )
    pods = await Portfolio(publisher.feed).pods()
    assert [(pod.namespace, pod.name, len(pod)) for pod in pods] == [
        ("dev", "z", 0),
        ("prod", "a", 0),
        ("prod", "b", 0),
    ]


async def test_pod_comes_with_its_first_container_and_goes_with_its_last() -> None:
    publisher = Publisher()
    asked = Portfolio(publisher.feed)
    assert await asked.pod("u") is None
    publisher.start(member("web", "u"))
    pod = await asked.pod("u")
    assert pod == Pod("shop", "prod", "u", None, (member("web", "u"),))
    publisher.start(sandbox("s", "u"))
    publisher.exit("web")
    assert await asked.pod("u") == Pod("shop", "prod", "u", sandbox("s", "u"))
    publisher.exit("s")
    assert await asked.pod("u") is None
    assert await asked.pods() == ()


def test_pod_of_which_a_second_sandbox_is_alive_loses_neither() -> None:
    publisher = Publisher(sandbox("s0", "u"), sandbox("s1", "u"))
    pod = publisher.snapshot.pod("u")
    assert pod is not None
    assert pod.sandbox is not None
    assert {pod.sandbox.id, *(c.id for c in pod)} == {"s0", "s1"}
    publisher.exit(pod.sandbox.id)
    left = publisher.snapshot.pod("u")
    assert left is not None
    assert (left.sandbox, left.containers) == (pod.containers[0], ())


def test_change_of_one_pod_leaves_the_others_as_they_are() -> None:
    publisher = Publisher(member("a", "u1"), member("b", "u2"))
    untouched = publisher.snapshot.pod("u2")
    publisher.exit("a")
    assert publisher.snapshot.pod("u2") is untouched


def test_pod_is_a_value() -> None:
    pod = Pod("shop", "prod", "u", sandbox("s", "u"), (member("web", "u"),))
    assert pickle.loads(pickle.dumps(pod)) == pod  # noqa: S301 - our own
    assert hash(pod) == hash(Pod("shop", "prod", "u", sandbox("s", "u"), (member("web", "u"),)))
    assert not hasattr(pod, "__dict__")


async def test_pods_are_those_of_any_engine() -> None:
    engine = ScriptedEngine(member("web", "u"), sandbox("s", "u"), complete=True)
    async with Watcher(engine) as watcher:
        pod = await watcher.portfolio.pod("u")
        assert pod is not None
        assert pod.container_names == ("web",)
        assert pod.sandbox is not None


@settings(max_examples=50)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abcdef"),
            st.none() | st.tuples(st.sampled_from("xyz"), st.sampled_from(["", "u", "v"]), st.booleans()),
            min_size=1,
        )
    )
)
def test_indexes_are_those_of_the_picture_whatever_changes(
    revisions: list[dict[str, tuple[str, str, bool] | None]],
) -> None:
    publisher = Publisher()
    for revision in revisions:
        publisher.publish(
            {
                id: None
                if told is None
                else box(
                    id,
                    name=told[0],
                    start=ord(id),
                    project=told[1],
                    labels=labels(told[1]) | ({"io.kubernetes.sandbox": ""} if told[2] else {}),
                )
                for id, told in revision.items()
            }
        )
        alive = publisher.snapshot.containers()
        rebuilt = Snapshot(revision=0, as_of=at(0))._changed(
            [(None, c) for c in alive], revision=0, as_of=at(0), synced=True
        )
        for name in "xyz":
            named = sorted((c for c in alive if c.name == name), key=lambda c: c.id)
            assert publisher.snapshot.container(name) == (named[0] if named else None)
        assert publisher.snapshot.projects() == rebuilt.projects()
        assert publisher.snapshot.pods() == rebuilt.pods()
        for uid in ("", "u", "v"):
            members = {c for c in alive if uid and c.labels["io.kubernetes.pod.uid"] == uid}
            pod = publisher.snapshot.pod(uid)
            assert members == (set() if pod is None else {*pod, *({pod.sandbox} if pod.sandbox else ())})


@pytest.mark.slow
def test_many_containers_of_one_name_are_no_burden() -> None:
    """Under Kubernetes all replicas of a deployment bear the same container name."""
    many = {str(n): member(str(n), f"u{n % 100}", name="app", start=n) for n in range(20_000)}
    began = time.process_time()
    publisher = Publisher(*many.values())
    publisher.publish(dict.fromkeys(many))
    assert time.process_time() - began < 20, "it should take a second"
    assert publisher.snapshot.total() == 0
