"""The example programs run, end cleanly, and show what is so."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import runpy
import signal
import struct
import sys
import termios
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.programs import PATIENCE, Child, child, read_until
from whalewatch import Container, EngineUnavailable, Snapshot, Stats, Status, WatchState
from whalewatch.cli.render import cells, painted
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, *arguments: str, **options: Any) -> AbstractAsyncContextManager[Child]:
    return child(str(EXAMPLES / name), *arguments, **options)


async def test_docker_prints_what_is_alive_and_what_happens() -> None:
    async with FakeDocker() as fake:
        fake.run("web", project="shop")
        async with example("docker.py", DOCKER_HOST=fake.address, PYTHONUNBUFFERED="1") as program:
            assert await program.line() == "started 'web' 4001\n"
            fake.kill("web")
            assert await program.line() == "exited 'web' 4001\n"
            assert await program.interrupted(signal.SIGINT) == (0, "", "")


async def test_containerd_prints_what_is_alive_and_what_happens() -> None:
    async with FakeContainerd() as fake:
        fake.run("web", labels={"nerdctl/name": "shop"})
        fake.run("job", "batch")
        async with example("containerd.py", fake.address) as program:
            told = {await program.line() for _ in range(4)}
            assert told == {"'shop' 4001\n", "'batch/job' 4002\n", "started 'shop'\n", "started 'batch/job'\n"}
            fake.exit("job", namespace="batch")
            assert await program.line() == "exited 'batch/job'\n"
            assert await program.interrupted(signal.SIGINT) == (0, "", "")


async def test_cri_prints_the_pods_and_what_happens() -> None:
    async with FakeCRI() as fake:
        web = fake.run(fake.run_pod("shop", "prod"), "web")
        async with example("cri.py", fake.address) as program:
            assert await program.line() == "'prod' 'shop' ('web',)\n"
            started = {await program.line() for _ in range(2)}
            assert started == {"started 'shop' of 'shop'\n", "started 'web' of 'shop'\n"}
            fake.exit(web)
            assert await program.line() == "exited 'web' of 'shop'\n"
            assert await program.interrupted(signal.SIGINT) == (0, "", "")


async def test_script_prints_what_happens_and_ends_by_ctrl_c() -> None:
    async with FakeDocker() as fake:
        fake.run("web")
        async with example("script.py", fake.address) as program:
            assert await program.line() == "started 'web'\n"
            fake.kill("web")
            assert await program.line() == "exited 'web'\n"
            assert await program.interrupted(signal.SIGINT) == (0, "", "")
        assert fake.subscribers == 0


async def get(socket: Path) -> tuple[int, Any]:
    """Ask a server at a Unix socket for its page; return the status, and what the page contains as JSON."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "watching", "status", "told"),
    [({}, 2, 200, "{'web': 4001}"), ({"api_version": "1.40"}, 0, 503, "API version 1.40 is too old")],
    ids=["an engine", "one that is too old"],
)
async def test_web_application_watches_in_each_worker_of_gunicorn(
    tmp_path: Path, options: dict[str, Any], watching: int, status: int, told: str
) -> None:
    socket = tmp_path / "http.sock"
    arguments = ("-m", "gunicorn", "--config", "python:web", "--bind", f"unix:{socket}", "web:app")
    path = os.pathsep.join([str(EXAMPLES), *filter(None, sys.path)])
    async with FakeDocker(**options) as fake:
        fake.run("web")
        async with child(*arguments, DOCKER_HOST=fake.address, HOME=str(tmp_path), PYTHONPATH=path) as gunicorn:
            while "Listening at" not in (line := await gunicorn.error_line()):
                assert line, "it ended before"
            for code, page in await asyncio.gather(*(get(socket) for _ in range(8))):
                assert code == status
                assert told in str(page)
            await fake.until(lambda: fake.subscribers == watching)
            ended, _, log = await gunicorn.interrupted(signal.SIGTERM)
        assert (ended, fake.subscribers, "Traceback" in log) == (0, 0, False)


@pytest.mark.slow
async def test_demo_shows_the_engine_that_answers() -> None:
    async with FakeDocker() as fake:
        fake.run("web", project="shop")
        async with example("demo.py", DOCKER_HOST=fake.address) as program:
            first = f"Docker engine 26.1.5 at {fake.address}: 1 container in 1 project, revision 1\n"
            assert await program.line() == first
            while "web" not in await program.line():
                pass
            fake.pause("web")
            assert "paused" in await program.line()
            fake.faults.refuse()
            assert "engine lost: " in await program.line()
            await fake.faults.accept()
            assert "engine back: " in await program.line()
            code, out, err = await program.interrupted(signal.SIGINT)
        assert (code, err, out.count("\n")) == (0, "", 1)
        assert out.startswith("engine seen for ")


@pytest.mark.slow
async def test_demo_simulates_an_engine_where_none_answers() -> None:
    async with example("demo.py", "--seconds", "3", DOCKER_HOST="unix:///nowhere") as program:
        code, out, err = await program.ended()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "a simulated engine is shown: Docker engine at unix:///nowhere: no socket at /nowhere: start the engine, or "
        "correct the address"
    )
    assert lines[1].startswith("Simulated engine 26.1.5: 7 containers in 2 projects")
    assert {"blog", "shop"} <= set(lines)
    assert lines[-1].startswith("simulated engine seen for ")


async def test_demo_ends_silently_when_nobody_reads_it() -> None:
    reading, writing = os.pipe()
    async with FakeDocker() as fake, example("demo.py", stdout=writing, DOCKER_HOST=fake.address) as program:
        os.close(writing)
        await fake.until(lambda: fake.subscribers)
        assert await asyncio.to_thread(os.read, reading, 1000)
        os.close(reading)
        fake.run("web")
        code, _, err = await program.ended()
    assert (code, err) == (0, "")


async def test_demo_draws_frames_on_a_terminal_and_leaves_it_sane() -> None:
    main_end, child_end = pty.openpty()
    fcntl.ioctl(child_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        async with example("demo.py", "--simulated", stdout=child_end) as program:
            text = await read_until(main_end, b"latest events")
            assert "SIMULATED ENGINE" in text.decode()
            assert b"\x1b[?1049h" in text
            program.process.send_signal(signal.SIGINT)
            text = await read_until(main_end, b"simulated engine seen for ", text)
            text = await read_until(main_end, b"engine: ", text)
            code, _, err = await program.ended()
    finally:
        os.close(main_end)
        os.close(child_end)
    assert (code, err) == (0, "")
    for on, off in ((b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?7l", b"\x1b[?7h")):
        assert 0 <= text.rfind(on) < text.rfind(off), "what was switched is switched back"


# -- the frame ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> Any:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "demo.py")))


def a_view(demo: Any, projects: dict[str, int], *, latest: int, **more: Any) -> Any:
    now = datetime.now(UTC)
    containers = [
        Container(id=f"{project}/{number}", name=f"{project}-{number}" * 3, pid=number, project=project, image="x" * 50)
        for project, count in projects.items()
        for number in range(count)
    ]
    synced = Snapshot(revision=0, as_of=now)._changed(
        [(None, container) for container in containers], revision=1, as_of=now, synced=True
    )
    defaults = {"status": Status(state=WatchState.SYNCED, since=now), "snapshot": synced, "stats": Stats(calls={})}
    told = {"events": latest, "latest": [((f"event {number} " + "y" * 300, ""),) for number in range(latest)]}
    return demo.View(**{"engine": "1.2.3", "simulated": True, "now": now} | defaults | told | more)


@pytest.mark.parametrize("projects", [{}, {"": 1}, {"shop": 3, "blog": 40}, {f"p{n}": 20 for n in range(30)}])
@pytest.mark.parametrize("latest", [0, 2, 200])
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (40, 10), (20, 3), (300, 100), (1, 1)])
def test_a_frame_fits_every_terminal(demo: Any, projects: dict[str, int], latest: int, size: tuple[int, int]) -> None:
    width, height = size
    lines = demo.frame(a_view(demo, projects, latest=latest), width, height)
    assert len(lines) <= height
    assert all(cells(painted(line, colour=False, width=width)) <= width for line in lines)


def shown(demo: Any, view: Any) -> list[str]:
    return [painted(line, colour=False, width=80).strip() for line in demo.frame(view, 80, 24)]


def test_a_frame_tells_how_many_containers_it_has_no_room_for(demo: Any) -> None:
    text = shown(demo, a_view(demo, {f"p{n}": 20 for n in range(10)}, latest=0))
    more = [int(line.split()[1]) for line in text if line.startswith("and ")]
    assert sum(line.startswith("●") for line in text) + sum(more) == 200


def test_a_frame_shows_why_the_engine_is_lost(demo: Any) -> None:
    now = datetime.now(UTC)
    lost = Status(state=WatchState.DISCONNECTED, since=now, error=EngineUnavailable("gone\x1b[2J"))
    text = shown(demo, a_view(demo, {}, latest=0, status=lost, snapshot=Snapshot(revision=3, as_of=now)))
    assert text[1].startswith("engine lost · revision 3, the last known picture")
    assert text[2] == "gone\\x1b[2J"


async def test_the_same_seed_simulates_the_same_story(demo: Any) -> None:
    stories = []
    for _ in range(2):
        async with FakeDocker(seed=5) as fake:
            simulation = demo.Simulation(fake, 5)
            for _ in range(2000):
                simulation.step()
            stories.append([(c.id, c.name, c.status, c.health, c.pid) for c in fake.containers.values()])
    assert stories[0] == stories[1]
    assert len(stories[0]) > len(demo.SERVICES) / 2
