"""The containerd engines that other tests rely on: real ones do as they are told, and the fake does as they do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.engines.containerd import Containerd
from tests.support.engines.containerd_control import MARK, ContainerdControl
from tests.support.engines.process import EngineFailedError, alive, descendants, thread_states
from tests.support.followed import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import ContainerdUnderTest
    from tests.support.engines.containerd_control import Told

    Scenario = Callable[[ContainerdControl], Awaitable[None]]
    MakeContainerd = Callable[..., Containerd]

PATIENCE = 30.0  # seconds, after which a test has failed
SH = ["/bin/sh", "-c"]

live = pytest.mark.live
each_version = pytest.mark.parametrize("version", ["1.6", "1.7"])


# -- real engines do as they are told ----------------------------------------------------------------------------------


async def test_container_runs_until_it_is_removed(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("web", labels={"a": "b"}, image="some:1")
    ((key, found),) = (await control.truth()).items()
    assert key == ("default", "web")
    assert (found.pid, found.status, found.labels, found.image) == (pid, "RUNNING", {"a": "b"}, "some:1")
    await control.remove("web")
    assert await control.truth() == {}
    assert await control.containers() == {}


async def test_created_and_exited_tasks_are_not_alive(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    await control.create("bare")
    await control.create("created")
    await control.task_create("created")
    await control.run("exited", cmd=[*SH, "exit 3"])
    assert await control.wait("exited") == 3
    assert await control.truth() == {}
    assert {id: status for id, (status, _) in (await control.tasks()).items()} == {
        "created": "CREATED",
        "exited": "STOPPED",
    }
    assert set(await control.containers()) == {"bare", "created", "exited"}


async def test_one_id_in_two_namespaces_is_two_containers(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    first = await control.run("web")
    second = await control.run("web", "other")
    await control.pause("web", "other")
    truth = await control.truth()
    assert {key: (found.pid, found.status) for key, found in truth.items()} == {
        ("default", "web"): (first, "RUNNING"),
        ("other", "web"): (second, "PAUSED"),
    }


async def test_exited_task_keeps_its_pid_in_listings(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("web")
    await control.kill_and_wait("web")
    assert await control.tasks() == {"web": ("STOPPED", pid)}


async def test_container_runs_again_under_the_same_id_with_another_pid(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    first = await control.run("web")
    await control.kill_and_wait("web")
    second = await control.rerun("web")
    assert second != first
    assert await control.tasks() == {"web": ("RUNNING", second)}


async def test_exec_has_an_exit_code_of_its_own(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("web")
    assert await control.exec("web", "probe", [*SH, "exit 4"]) == 4
    assert await control.exec("web", "web", ["/bin/true"]) == 0
    assert await control.tasks() == {"web": ("RUNNING", pid)}


REFUSALS: dict[str, tuple[Callable[[ContainerdControl], Awaitable[object]], str]] = {
    "create twice": (lambda control: control.create("web"), "ALREADY_EXISTS"),
    "create a task twice": (lambda control: control.task_create("web"), "ALREADY_EXISTS"),
    "create a namespace twice": (lambda control: control.namespace_create("default"), "ALREADY_EXISTS"),
    "delete a namespace in use": (lambda control: control.namespace_delete("default"), "FAILED_PRECONDITION"),
    "delete an unknown namespace": (lambda control: control.namespace_delete("nowhere"), "NOT_FOUND"),
    "delete a running task": (lambda control: control.task_delete("web"), "UNKNOWN"),
    "delete an unknown container": (lambda control: control.container_delete("nobody"), "NOT_FOUND"),
    "kill an unknown container": (lambda control: control.kill("nobody"), "NOT_FOUND"),
    "kill an exited container": (lambda control: control.kill("exited"), "NOT_FOUND"),
    "resume a running container": (lambda control: control.resume("web"), "UNKNOWN"),
    "pause an exited container": (lambda control: control.pause("exited"), "UNKNOWN"),
    "exec in an exited container": (lambda control: control.exec("exited", "x"), "UNKNOWN"),
    "no namespace": (lambda control: control._call("Tasks", "List"), "FAILED_PRECONDITION"),
    "no namespace of a listing": (lambda control: control._call("Containers", "List"), "FAILED_PRECONDITION"),
    "a namespace that cannot be": (lambda control: control.create("web", "!!"), "INVALID_ARGUMENT"),
    "a filter that cannot be": (lambda control: _subscribe(control, "topic==/tasks/start"), "UNKNOWN"),
}


async def test_what_makes_no_sense_is_refused(containerd: ContainerdUnderTest) -> None:
    await containerd.control.run("web")
    await containerd.control.run("exited", cmd=["/bin/true"])
    await containerd.control.wait("exited")
    refused = {}
    for what, (call, _) in REFUSALS.items():
        try:
            await call(containerd.control)
        except grpc.aio.AioRpcError as error:
            refused[what] = error.code().name
    assert refused == {what: code for what, (_, code) in REFUSALS.items()}


@live
@each_version
async def test_frozen_engine_accepts_connections_and_answers_only_when_thawed(
    make_containerd: MakeContainerd, version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        engine.freeze()
        waiting = asyncio.create_task(control.namespaces())
        assert not (await asyncio.wait({waiting}, timeout=0.3))[0]
        assert engine.running
        engine.thaw()
        assert await waiting == []


@live
@each_version
async def test_containers_outlive_a_killed_engine(make_containerd: MakeContainerd, version: str) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        pid = await control.run("survivor")
        async with control.events() as events:
            await asyncio.to_thread(engine.kill)
            assert [told async for told in events] == []
        assert not engine.running
        with pytest.raises(grpc.aio.AioRpcError, match="refused"):
            await control.namespaces()
        await control.aclose()
        await asyncio.to_thread(engine.start)
        assert await control.tasks() == {"survivor": ("RUNNING", pid)}


@live
@each_version
async def test_closing_leaves_nothing_behind_even_of_a_killed_engine(
    make_containerd: MakeContainerd, version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        pids = [await control.run("orphan"), await control.run("frozen", "other")]
        await control.pause("frozen", "other")
    pids += engine.shims()
    sockets = engine.shim_sockets()
    assert len(sockets) == 2
    await asyncio.to_thread(engine.kill)
    assert all(alive(pid) for pid in pids)
    await asyncio.to_thread(engine.close)
    assert _traces(engine, pids, sockets) == []


@live
@each_version
async def test_what_has_ended_during_an_outage_is_stopped_or_forgotten_afterwards(
    make_containerd: MakeContainerd, version: str
) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    async with ContainerdControl(engine.socket) as control:
        pids = {id: await control.run(id) for id in ("survivor", "victim")}
        await asyncio.to_thread(engine.kill)
        os.kill(pids["victim"], signal.SIGKILL)
        await eventually(lambda: not Path(f"/proc/{pids['victim']}").exists())  # its shim has taken note
        await control.aclose()
        await asyncio.to_thread(engine.start)
        tasks = await control.tasks()
        stopped = {"victim": ("STOPPED", pids["victim"])} if version == "1.6" else {}
        assert tasks == {"survivor": ("RUNNING", pids["survivor"])} | stopped
        assert set(await control.containers()) == {"survivor", "victim"}


@live
@each_version
async def test_clients_can_run_containers_from_an_image(make_containerd: MakeContainerd, version: str) -> None:
    engine = await asyncio.to_thread(make_containerd, version)
    for namespace in ("default", "other"):
        await asyncio.to_thread(engine.import_image, namespace, "registry.local/tiny:1")
        run = ["run", "--detach", "--net-host", "--runc-root", f"{engine.root}/runc", "registry.local/tiny:1", "web"]
        await asyncio.to_thread(engine.ctr, *run, namespace=namespace)
    async with ContainerdControl(engine.socket) as control:
        truth = await control.truth()
        assert {(*key, found.status, found.image) for key, found in truth.items()} == {
            ("default", "web", "RUNNING", "registry.local/tiny:1"),
            ("other", "web", "RUNNING", "registry.local/tiny:1"),
        }


@live
def test_engine_that_cannot_start_tells_why(make_containerd: MakeContainerd, tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    (root / "containerd").write_text("not a folder")
    with pytest.raises(EngineFailedError, match="not a directory"):
        make_containerd("1.7", root=root)
    assert not root.exists()


def test_folder_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        Containerd("1.7", Path("/tmp") / ("x" * 100))  # noqa: S108 - nothing is written there


# -- the fake does as the real ones do ---------------------------------------------------------------------------------


async def _run(control: ContainerdControl) -> None:
    await control.run("it")


async def _kill(control: ContainerdControl) -> None:
    await control.run("it")
    await control.kill_and_wait("it")


async def _exit(control: ContainerdControl) -> None:
    await control.run("it", cmd=[*SH, "exit 3"])
    await control.wait("it")


async def _run_again(control: ContainerdControl) -> None:
    await control.run("it")
    await control.kill_and_wait("it")
    await control.rerun("it")


async def _pause(control: ContainerdControl) -> None:
    await control.run("it")
    await control.pause("it")
    await control.resume("it")


async def _kill_paused(control: ContainerdControl) -> None:
    await control.run("it")
    await control.pause("it")
    await control.kill_and_wait("it")


async def _exec(control: ContainerdControl) -> None:
    await control.run("it")
    await control.exec("it", "probe", [*SH, "exit 4"])


async def _exec_named_like_its_container(control: ContainerdControl) -> None:
    await control.run("it")
    await control.exec("it", "it", [*SH, "exit 4"])


async def _exec_outlived_by_none(control: ContainerdControl) -> None:
    await control.run("it")
    await control.exec_start("it", "long")
    await control.kill_and_wait("it")


async def _update(control: ContainerdControl) -> None:
    await control.run("it", labels={"a": "b"})
    await control.update_labels("it", {"c": "d"})


async def _update_image(control: ContainerdControl) -> None:
    await control.run("it", labels={"a": "b"})
    await control.update_image("it", "other:2")


async def _never_run(control: ContainerdControl) -> None:
    await control.create("it")


async def _never_started(control: ContainerdControl) -> None:
    await control.create("it")
    await control.task_create("it")


async def _record_deleted_first(control: ContainerdControl) -> None:
    await control.run("it", cmd=["/bin/true"])
    await control.wait("it")
    await control.task_delete("it")
    await control.container_delete("it")


# What each scenario, and the removal at its end, says on the event stream.
_BEGIN = ("/containers/create it", "/tasks/create it", "/tasks/start it")
_KILLED = ("/tasks/exit it 137", "/tasks/delete it 137", "/containers/delete it")

SCENARIOS: dict[Scenario, tuple[str, ...]] = {
    _run: (*_BEGIN, *_KILLED),
    _kill: (*_BEGIN, *_KILLED),
    _exit: (*_BEGIN, "/tasks/exit it 3", "/tasks/delete it 3", "/containers/delete it"),
    _run_again: (*_BEGIN, *_KILLED[:2], *_BEGIN[1:], *_KILLED),
    _pause: (*_BEGIN, "/tasks/paused it", "/tasks/resumed it", *_KILLED),
    _kill_paused: (*_BEGIN, "/tasks/paused it", *_KILLED),
    _exec: (*_BEGIN, "/tasks/exec-added it/probe", "/tasks/exec-started it/probe", "/tasks/exit it/probe 4", *_KILLED),
    # Only the PID tells this exit from the container's own.
    _exec_named_like_its_container: (
        *_BEGIN,
        "/tasks/exec-added it/it",
        "/tasks/exec-started it/it",
        "/tasks/exit it 4",
        *_KILLED,
    ),
    _exec_outlived_by_none: (
        *_BEGIN,
        "/tasks/exec-added it/long",
        "/tasks/exec-started it/long",
        "/tasks/exit it/long 137",
        *_KILLED,
    ),
    _update: (*_BEGIN, "/containers/update it c=d", *_KILLED),
    _update_image: (*_BEGIN, "/containers/update it a=b", *_KILLED),
    _never_run: ("/containers/create it", "/containers/delete it"),
    _never_started: (*_BEGIN[:2], *_KILLED),
    _record_deleted_first: (*_BEGIN, "/tasks/exit it 0", "/tasks/delete it", "/containers/delete it"),
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.strip("_"))
async def test_engine_tells_what_happens_to_a_container(containerd: ContainerdUnderTest, scenario: Scenario) -> None:
    told = await _watch(containerd.control, scenario)
    assert _spelled(told) == SCENARIOS[scenario]
    assert {event.namespace for event in told} == {"default"}


async def test_engine_tells_nothing_of_a_signal_that_ends_nothing(containerd: ContainerdUnderTest) -> None:
    async def harmless_signal(control: ContainerdControl) -> None:
        pid = await control.run("it")
        if containerd.fake is None:  # whose process may still be the runtime, which the signal would end
            await eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        await control.kill("it", signal=signal.SIGUSR1)
        assert (await control.tasks())["it"][0] == "RUNNING"

    assert _spelled(await _watch(containerd.control, harmless_signal)) == (*_BEGIN, *_KILLED)


async def test_engine_tells_of_namespaces_that_are_created_and_deleted_as_such(containerd: ContainerdUnderTest) -> None:
    async def namespaces(control: ContainerdControl) -> None:
        await control.namespace_create("told", {"a": "b"})
        await control.namespace_delete("told")
        await control.create("it", "untold")
        await control.container_delete("it", "untold")
        await control.namespace_delete("untold")

    told = await _watch(containerd.control, namespaces)
    assert [(event.namespace, event.topic) for event in told] == [
        ("told", "/namespaces/create"),
        ("told", "/namespaces/delete"),
        ("untold", "/containers/create"),
        ("untold", "/containers/delete"),
        ("untold", "/namespaces/delete"),
    ]
    assert told[0].event.name == "told"
    assert dict(told[0].event.labels) == {"a": "b"}


async def test_events_of_a_task_carry_its_pid_and_the_time_of_its_exit(containerd: ContainerdUnderTest) -> None:
    pids: list[int] = []

    async def two(control: ContainerdControl) -> None:
        pids.append(await control.run("it"))
        pids.append(await control.exec_start("it", "probe"))

    told = await _watch(containerd.control, two)
    assert [(event.topic, event.event.pid) for event in told if hasattr(event.event, "pid")] == [
        ("/tasks/create", pids[0]),
        ("/tasks/start", pids[0]),
        ("/tasks/exec-started", pids[1]),
        ("/tasks/exit", pids[1]),
        ("/tasks/exit", pids[0]),
        ("/tasks/delete", pids[0]),
    ]
    exited, deleted = told[-3], told[-2]
    assert exited.event.exited_at == deleted.event.exited_at
    assert 0 <= exited.timestamp - exited.event.exited_at.ToNanoseconds() < 10_000_000_000
    assert deleted.event.id == ""


@pytest.mark.parametrize(
    ("filters", "topics"),
    [
        (['topic=="/tasks/start"'], ["/tasks/start"]),
        (['topic~="^/tasks/"'], ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]),
        (['topic=="/tasks/start"', 'topic=="/tasks/exit"'], ["/tasks/start", "/tasks/exit"]),
        (["topic==/tasks/start/", 'topic=="/tasks/exit",namespace=="default"'], None),
        (['topic~="^/tasks/",namespace=="other"'], []),
        (['topic~="delete$",namespace!="other"'], ["/tasks/delete", "/containers/delete"]),
        (["nonsense==x"], []),
    ],
)
async def test_filters_choose_events(
    containerd: ContainerdUnderTest, filters: list[str], topics: list[str] | None
) -> None:
    if topics is None:
        with pytest.raises(grpc.aio.AioRpcError):
            await _subscribe(containerd.control, *filters)
        return
    told = await _watch(containerd.control, _run, *filters)
    assert [event.topic for event in told] == topics


async def test_listings_show_the_state(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    await control.create("bare", labels={"a": "b"}, image="some:1")
    await control.create("created")
    await control.task_create("created")
    await control.run("running")
    await control.run("paused")
    await control.pause("paused")
    await control.run("exited")
    await control.kill_and_wait("exited")
    assert {id: status for id, (status, _) in (await control.tasks()).items()} == {
        "created": "CREATED",
        "running": "RUNNING",
        "paused": "PAUSED",
        "exited": "STOPPED",
    }
    containers = await control.containers()
    assert set(containers) == {"bare", "created", "running", "paused", "exited"}
    assert (dict(containers["bare"].labels), containers["bare"].image) == ({"a": "b"}, "some:1")
    assert await control.tasks("nowhere") == await control.containers("nowhere") == {}


async def test_task_outlives_the_record_of_its_container(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("it")
    await control.container_delete("it")
    try:
        assert await control.tasks() == {"it": ("RUNNING", pid)}
        assert await control.truth() == {}
        with pytest.raises(grpc.aio.AioRpcError, match="not found"):
            await control.kill("it")
    finally:
        await control.create("it")


async def test_hung_shim_makes_a_task_unknown_without_a_pid(containerd: ContainerdUnderTest) -> None:
    control = containerd.control
    pid = await control.run("hung")
    other = await control.run("other")
    if containerd.fake is not None:
        with containerd.fake.faults.hang_shim("hung", timeout=0.01):
            hung = await control.tasks()
    else:
        shim = _shim(containerd.engine, pid)
        os.kill(shim, signal.SIGSTOP)
        try:
            await eventually(lambda: thread_states(shim) == {"T"})
            hung = await control.tasks()
        finally:
            os.kill(shim, signal.SIGCONT)
    assert hung == {"hung": ("UNKNOWN", 0), "other": ("RUNNING", other)}
    assert await control.tasks() == {"hung": ("RUNNING", pid), "other": ("RUNNING", other)}


async def test_killed_shim_takes_its_container_with_it_and_that_is_told(containerd: ContainerdUnderTest) -> None:
    async def killed(control: ContainerdControl) -> None:
        async with control.events('topic=="/tasks/delete"') as deleted, asyncio.timeout(PATIENCE):
            pid = await control.run("it")
            if containerd.fake is not None:
                containerd.fake.faults.kill_shim("it")
            else:
                os.kill(_shim(containerd.engine, pid), signal.SIGKILL)
            await anext(deleted)
        assert await control.tasks() == {}

    assert _spelled(await _watch(containerd.control, killed)) == (*_BEGIN, *_KILLED)


# -- helpers -----------------------------------------------------------------------------------------------------------


async def _watch(control: ContainerdControl, scenario: Scenario, *filters: str) -> list[Told]:
    """Return the events of a scenario and of the clean-up after it, those that pass the filters."""
    async with control.events() as everything, control.events(*filters) as wanted, asyncio.timeout(PATIENCE):
        await scenario(control)
        for id in {*await control.containers(), *await control.tasks()}:
            await control.remove(id)
        await control.mark()
        # Shims tell theirs later than the engine its own: all has been told when all that was created is deleted.
        topics: Counter[str] = Counter()
        while not (
            topics[MARK]
            and topics["/tasks/create"] == topics["/tasks/delete"]
            and topics["/containers/create"] == topics["/containers/delete"]
        ):
            topics[(await anext(everything)).topic] += 1
        await control.mark()
        found: list[Told] = []
        while [told.topic for told in found].count(MARK) < 2:
            found.append(await anext(wanted))
    return [told for told in found if told.topic != MARK]


def _spelled(told: list[Told]) -> tuple[str, ...]:
    return tuple(_spell(one) for one in told)


def _spell(told: Told) -> str:
    """Spell an event in short: its topic, whom it is about, its exit code, its labels."""
    event = told.event
    whom = getattr(event, "container_id", "") or event.id
    if exec_id := getattr(event, "exec_id", ""):
        whom += f"/{exec_id}"
    elif told.topic == "/tasks/exit" and event.id != whom:
        whom += f"/{event.id}"
    parts = [told.topic, whom]
    if getattr(event, "exit_status", 0) or told.topic == "/tasks/exit":
        parts.append(str(event.exit_status))
    parts += [f"{key}={value}" for key, value in getattr(event, "labels", {}).items()]
    return " ".join(parts)


def _traces(engine: Containerd, pids: list[int], sockets: list[Path]) -> list[str]:
    """Tell what is left of an engine."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(engine.root) in line]
    cgroups = Path("/sys/fs/cgroup").glob(f"*/{engine.root.name}-*")
    left = [path for path in (engine.root, *sockets, *cgroups) if path.exists()]
    return [f"process {pid}" for pid in pids if alive(pid)] + mounts + [str(path) for path in left]


async def _subscribe(control: ContainerdControl, *filters: str) -> None:
    async with control.events(*filters):
        pass


def _shim(engine: Containerd | None, pid: int) -> int:
    assert engine is not None
    (shim,) = (shim for shim in engine.shims() if pid in descendants(shim))
    return shim
