"""The recipes run, on a real engine where they need more of it than the fake has."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Docker
from tests.support.followed import eventually
from tests.support.programs import PATIENCE, child
from whalewatch import ContainerEvent, EventType, Snapshot
from whalewatch.testing import FakeDocker

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


async def test_routes_are_written_once_for_a_batch(tmp_path: Path) -> None:
    routes = tmp_path / "routes"
    async with FakeDocker() as fake:
        fake.run("web", ports={"80/tcp": 8080})
        fake.run("inner", ports={"80/tcp": None})
        async with child(str(EXAMPLES / "routes.py"), str(routes), fake.address) as program:
            assert await program.line() == "revision 1: 2 containers\n"
            assert routes.read_text() == "web 0.0.0.0 8080\nweb :: 8080\n"
            for number in range(3):
                fake.run(f"web{number}", ports={"80/tcp": 9000 + number})
            assert await program.line() == "revision 4: 5 containers\n"
            assert routes.read_text().count("\n") == 8
            assert await program.interrupted(signal.SIGINT) == (0, "", "")


@pytest.mark.live
@pytest.mark.parametrize("docker", ["26.1"], indirect=True)
async def test_logs_of_all_containers_are_shipped(docker: Docker) -> None:
    control = docker.control
    await control.run("before", cmd=["/bin/sh", "-c", "echo early; sleep 1000"])
    async with child(str(EXAMPLES / "logs.py"), docker.address) as program:
        assert await program.line() == "before: 'early'\n"
        await control.run("brief", cmd=["/bin/true"], auto_remove=True)
        later = await control.run("later", cmd=["/bin/sh", "-c", r"printf '\033[2Jlate\n'; sleep 1000"])
        assert await program.line() == r"later: '\x1b[2Jlate'" + "\n"
        await control.restart(later)
        assert await program.line() == r"later: '\x1b[2Jlate'" + "\n"
        await control.run("last", cmd=["/bin/sh", "-c", "echo last; sleep 1000"])
        assert await program.line() == "last: 'last'\n", "each run is read once"
        assert await program.interrupted(signal.SIGINT) == (0, "", "")


@pytest.mark.live
@pytest.mark.parametrize("docker", ["20.10", "26.1"], indirect=True)
async def test_health_is_told_with_its_reason(docker: Docker) -> None:
    async with child(str(EXAMPLES / "health.py"), docker.address) as program:
        await docker.control.run("web", health="echo it is ill; exit 1")
        assert await program.line() == r"'web' is unhealthy, checked every 0.1 s: 'it is ill\n'" + "\n"
        assert await program.interrupted(signal.SIGINT) == (0, "", "")


async def asked(path: Path, get: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Request a path; return the answer, from its body on."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(ConnectionRefusedError):  # it has made its socket, and does not listen yet
                reader, writer = await asyncio.open_unix_connection(str(path))
                break
            await asyncio.sleep(0.01)
    writer.write(f"GET {get} HTTP/1.0\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return reader, writer


@pytest.mark.live
@pytest.mark.parametrize("docker", ["26.1"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_web_application_serves_json_and_events_and_ends_although_a_stream_is_open(
    docker: Docker, number: int, tmp_path: Path
) -> None:
    path = tmp_path / "http"
    web = await docker.control.run("web")
    arguments = ("-m", "uvicorn", "--app-dir", str(EXAMPLES), "--uds", str(path), "--log-level", "error", "sse:app")
    async with child(*arguments, DOCKER_HOST=docker.address) as server:
        await eventually(path.exists)
        body, writer = await asked(path, "/containers")
        picture = Snapshot.from_dict(json.loads(await body.read()))
        writer.close()
        assert [container.id for container in picture] == [web]
        stream, writer = await asked(path, "/events")

        async def next_event() -> ContainerEvent:
            while not (line := await stream.readuntil(b"\n")).startswith(b"data: "):  # it comes in chunks
                pass
            return ContainerEvent.from_dict(json.loads(line.removeprefix(b"data: ")))

        assert (await next_event()).container == picture.container("web")
        await docker.control.kill(web)
        exited = await next_event()
        assert (exited.type, exited.exit_code) == (EventType.EXITED, 137)
        code, _, err = await server.interrupted(number)
        assert err == ""
        assert code in {0, -number, 128 + number}
        assert (await stream.read()).endswith(b"0\r\n\r\n"), "the stream has ended in good order"
        writer.close()
