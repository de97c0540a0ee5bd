"""What the kernel tells of processes: of the right ones only, of all of them, and within the bounds."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.followed import eventually
from tests.support.processes import TELLS_CODES, ContainerProcesses
from tests.support.scripted import Changing
from whalewatch._linux import processes as module
from whalewatch._linux.processes import Processes, Refusal, exit_code, is_local, names_container

live = pytest.mark.live

ID = "4f" * 32
OTHER = "a1" * 32


# ---- of what container a process is

DOCKER_V1 = f"12:pids:/docker/{ID}\n11:name=systemd:/system.slice/docker.service\n0::/\n"


@pytest.mark.parametrize(
    ("cgroups", "id", "named"),
    [
        (DOCKER_V1, ID, True),
        (DOCKER_V1, OTHER, False),
        (f"0::/system.slice/docker-{ID}.scope\n", ID, True),
        (f"0::/system.slice/docker-{ID}.scope/init.scope\n", ID, True),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n", ID, True),
        (f"0::/kubepods/besteffort/pod1/{ID}\n", ID, True),
        (f"0::/kubepods-pod1.slice:cri-containerd:{ID}\n", ID, True),
        (f"0::/crio-{ID}.scope\n", ID, True),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", ID, True),
        (f"0::/docker/{ID}/docker/{OTHER}\n", OTHER, True),
        ("0::/default/web\n", "web", True),
        ("0::/default/web-2\n", "web", False),
        ("0::/default/other-web\n", "web", True),
        ("0::/default/web/init.scope\n", "web", False),
        ("12:pids:/default/1\n", "1", True),
        ("12:pids:/default/11\n", "1", False),
        (f"0::/system.slice/docker-{ID}.scopes\n", ID, False),
        (f"0::/docker-{ID}.scope", ID, True),
        ("0::/system.slice/ssh.service\n", "system", False),
        (f"0::/docker/{ID}\n", "docker", False),
        ("0::/init.scope\n", "init", False),
        (f"0::/docker/{ID}0\n", ID, False),
        (f"0::/docker/0{ID}\n", ID, False),
        (f"0::/docker/{ID}/\n", ID, True),
        ("0::/\n", ID, False),
        ("", ID, False),
        ("0::/default/a.b\n", "a.b", True),
        ("0::/default/axb\n", "a.b", False),
    ],
)
def test_cgroups_name_the_container_in_all_ways_of_engines_and_in_no_other(cgroups: str, id: str, named: bool) -> None:
    assert names_container(cgroups.encode(), id) is named


@pytest.mark.parametrize(
    ("status", "code"), [(0, 0), (3 << 8, 3), (255 << 8, 255), (9, 137), (15, 143), (11 | 0x80, 139)]
)
def test_wait_status_is_an_exit_code_as_engines_tell_it(status: int, code: int) -> None:
    assert exit_code(status) == code


# ---- exits


class Deaths(Changing):
    """What is told of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int | None, bool]] = []

    def __call__(self, key: str, code: int | None, final: bool) -> None:
        self.told.append((key, code, final))
        self._changed.set()


@pytest.fixture
def deaths() -> Deaths:
    return Deaths()


@pytest.fixture
async def watched(deaths: Deaths) -> Any:
    watching: Processes[str] = Processes(deaths)
    yield watching
    watching.close()


@pytest.fixture
def no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be an older kernel."""

    def refuse(_: int) -> int | None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(module, "wait_status", refuse)


@live
@pytest.mark.parametrize(
    "ending",
    [
        (("/bin/sh", "-c", "read line; exit 3"), None, 3),
        (("/bin/sh", "-c", "read line"), None, 0),
        (("/bin/sleep", "1000"), signal.SIGKILL, 137),
        (("/bin/sleep", "1000"), signal.SIGTERM, 143),
        (("/bin/sh", "-c", "read line; exec /bin/sh -c 'exit 4'"), None, 4),
    ],
    ids=["exit", "success", "SIGKILL", "SIGTERM", "becomes another program"],
)
@pytest.mark.parametrize("reaped_at_once", [True, False])
async def test_exit_is_told_at_death_and_its_code_once_it_was_reaped(
    processes: ContainerProcesses,
    deaths: Deaths,
    watched: Processes[str],
    ending: tuple[tuple[str, ...], int | None, int],
    reaped_at_once: bool,
) -> None:
    command, number, code = ending
    process = processes.start(ID, *command, stdin=subprocess.PIPE)
    assert watched.watch("a", process.pid, ID) is None
    assert watched.watch("a", process.pid, ID) is None, "once more"
    assert len(watched) == 1
    if number is not None:
        process.send_signal(number)
    else:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    if not reaped_at_once:
        await deaths.until(lambda: deaths.told)
        assert deaths.told == [("a", None, not TELLS_CODES)]
    await asyncio.to_thread(process.wait)
    await deaths.until(lambda: deaths.told[-1:] == [("a", code if TELLS_CODES else None, True)])
    assert len(watched) == 0


@live
async def test_older_kernel_tells_the_exit_and_nothing_more(
    no_codes: None, processes: ContainerProcesses, deaths: Deaths, watched: Processes[str]
) -> None:
    process = processes.start(ID)
    assert watched.watch("a", process.pid, ID) is None
    process.kill()
    process.wait()
    await deaths.until(lambda: deaths.told)
    assert (deaths.told, len(watched)) == ([("a", None, True)], 0)


@live
async def test_what_is_forgotten_or_closed_is_told_no_more(
    processes: ContainerProcesses, deaths: Deaths, watched: Processes[str]
) -> None:
    one, other, last = processes.start_all([ID] * 3)
    for key, process in {"one": one, "other": other, "last": last}.items():
        assert watched.watch(key, process.pid, ID) is None
    watched.forget("one")
    for process in (one, other):
        process.kill()
        process.wait()
    await deaths.until(lambda: deaths.told)
    assert {key for key, _, _ in deaths.told} == {"other"}
    watched.close()
    last.kill()
    await asyncio.sleep(0.05)
    assert {key for key, _, _ in deaths.told} == {"other"}
    again = processes.start(ID)
    assert watched.watch("again", again.pid, ID) is None, "it can be used again"


@live
async def test_five_hundred_that_die_at_once_are_all_told(
    processes: ContainerProcesses, deaths: Deaths, watched: Processes[str]
) -> None:
    started = {str(process.pid): process for process in processes.start_all([ID] * 500)}
    for key, process in started.items():
        assert watched.watch(key, process.pid, ID) is None
    for process in started.values():
        process.kill()
    await asyncio.to_thread(lambda: [process.wait() for process in started.values()])
    await deaths.until(lambda: len(watched) == 0)
    assert {(key, code) for key, code, final in deaths.told if final} == {
        (key, 137 if TELLS_CODES else None) for key in started
    }


# ---- what is not watched


@live
async def test_process_of_another_container_or_of_none_is_foreign_also_if_it_has_the_pid_now(
    processes: ContainerProcesses, deaths: Deaths, watched: Processes[str]
) -> None:
    mine, other = processes.start(ID), processes.start(OTHER)
    assert watched.watch("other", other.pid, ID) is Refusal.FOREIGN
    assert watched.watch("self", os.getpid(), ID) is Refusal.FOREIGN
    assert watched.watch("mine", mine.pid, ID) is None
    mine.kill()
    mine.wait()
    reused = processes.start_as(mine.pid, OTHER)
    assert watched.watch("next", reused.pid, ID) is Refusal.FOREIGN
    await deaths.until(lambda: deaths.told[-1:] == [("mine", 137 if TELLS_CODES else None, True)])
    reused.kill()
    reused.wait()
    again = processes.start_as(mine.pid, ID)
    assert watched.watch("again", again.pid, ID) is None, "the next run has the PID of the former one"
    assert len(watched) == 1


@live
async def test_dead_process_is_gone(processes: ContainerProcesses, watched: Processes[str]) -> None:
    process = processes.start(ID)
    process.kill()
    await eventually(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z")
    assert watched.watch("zombie", process.pid, ID) is Refusal.GONE
    process.wait()
    assert watched.watch("reaped", process.pid, ID) is Refusal.GONE
    assert len(watched) == 0


@pytest.mark.parametrize(
    ("number", "refusal"),
    [
        (errno.ESRCH, Refusal.GONE),
        (errno.EMFILE, Refusal.LIMIT),
        (errno.ENFILE, Refusal.LIMIT),
        (errno.EPERM, Refusal.DENIED),
        (errno.ENOSYS, Refusal.DENIED),
        (errno.ENODEV, Refusal.DENIED),
    ],
)
async def test_refusal_of_the_kernel_says_why(
    monkeypatch: pytest.MonkeyPatch, watched: Processes[str], number: int, refusal: Refusal
) -> None:
    def refuse(_: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    assert watched.watch("a", 1, ID) is refusal
    assert len(watched) == 0


@live
async def test_at_most_half_of_the_descriptors_that_are_left_is_used(
    processes: ContainerProcesses, watched: Processes[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = module._opened()
    assert opened == pytest.approx(len(os.listdir("/proc/self/fd")), abs=2)  # noqa: PTH208 - it is no path here
    monkeypatch.setattr(resource, "getrlimit", lambda _: (opened + 20, 1 << 20))
    started = processes.start_all([ID] * 15)
    refusals = [watched.watch(str(number), process.pid, ID) for number, process in enumerate(started)]
    assert refusals == [None] * len(watched) + [Refusal.LIMIT] * (15 - len(watched))
    assert 8 <= len(watched) <= 10
    for key in ("0", "1"):
        watched.forget(key)
    assert watched.watch("last", started[0].pid, ID) is None, "room is made"


# ---- whose PIDs an engine tells


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:2375", "ssh://host", "http://localhost", "scripted://engine"])
def test_engine_that_is_not_behind_a_unix_socket_is_not_local(address: str) -> None:
    assert is_local(address) is False


def test_engine_behind_a_unix_socket_is_local_if_its_process_is_one_of_ours(listening: Path, tmp_path: Path) -> None:
    assert is_local(f"unix://{listening}") is True
    assert is_local(f"unix://{tmp_path}/missing.sock") is None


@live
async def test_what_is_no_pid_or_no_id_is_refused(watched: Processes[str]) -> None:
    for pid, id in ((2**31, ID), (-1, ID), (os.getpid(), "\ud800")):
        assert watched.watch("a", pid, id) is Refusal.DENIED


@live
async def test_fault_of_one_is_reported_and_the_others_are_told(processes: ContainerProcesses) -> None:
    told, faults = [], []

    def died(key: str, code: int | None, final: bool) -> None:
        told.append(key)
        if key == "0":
            raise ZeroDivisionError

    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what["exception"]))
    watching: Processes[str] = Processes(died)
    started = processes.start_all([ID] * 3)
    for number, process in enumerate(started):
        watching.watch(str(number), process.pid, ID)
    for process in started:
        process.kill()
        process.wait()
    await eventually(lambda: len(watching) == 0)
    watching.close()
    assert set(told) == {"0", "1", "2"}
    assert {type(fault) for fault in faults} == {ZeroDivisionError}


LISTENS = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(s.accept())"


@live
async def test_engine_in_a_pid_namespace_of_its_own_is_not_local(processes: ContainerProcesses, tmp_path: Path) -> None:
    path = tmp_path / "inner.sock"
    processes.start(None, "unshare", "--pid", "--fork", "--kill-child", "python3", "-c", LISTENS, str(path))
    await eventually(path.exists)
    await eventually(lambda: is_local(f"unix://{path}") is not None)
    assert is_local(f"unix://{path}") is False
