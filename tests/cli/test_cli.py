"""The command line: what it prints, how it ends, and that nothing foreign reaches the terminal."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import socket
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Docker
from tests.support.followed import eventually
from tests.support.programs import Child, child, read_until
from whalewatch import (
    Container,
    Port,
    Snapshot,
    Stats,
    moby,
)
from whalewatch.cli.command import follow, main
from whalewatch.cli.output import printer
from whalewatch.cli.render import Column, aligned, painted, picture, summary, widths
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker

PROJECT = "com.docker.compose.project"

NOBODY = 65534


def documents(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@asynccontextmanager
async def following(address: str, *, as_json: bool = False) -> AsyncIterator[io.StringIO]:
    """Run `whalewatch watch` within this loop."""
    out, err = io.StringIO(), io.StringIO()
    task = asyncio.create_task(follow(moby.watch(address), printer(out, as_json=as_json), err))
    try:
        await eventually(lambda: task.done() or ("snapshot" if as_json else "now") in out.getvalue())
        yield out
        assert not err.getvalue()
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


def command(*arguments: str, **options: Any) -> AbstractAsyncContextManager[Child]:
    """The command in a process of its own."""
    return child("-m", "whalewatch", *arguments, **options)


async def until_following(watch: Child) -> None:
    while (line := await watch.line()) != "now following events\n":
        assert line, "it ended before it was in sync"


# -- what it prints ----------------------------------------------------------------------------------------------------


async def test_text_shows_the_picture_by_project_and_then_each_event(docker: Docker) -> None:
    control = docker.control
    web = await control.run("web", labels={PROJECT: "shop"})
    await control.run("alone")
    await control.run("plain", labels={PROJECT: "\x1b[31mred\nshop", "evil": "\x1b]0;owned\x07"})
    truth = await control.inspect(web)
    async with following(docker.address) as out:
        first, title, nobody, alone, red, plain, shop, shown, last = out.getvalue().splitlines()
        assert first.startswith("Docker engine ")
        assert first.endswith(f" at {docker.address}: 3 containers in 2 projects, revision 1")
        assert title.split() == ["NAME", "ID", "PID", "IMAGE", "STATE", "ADDRESSES", "PORTS"]
        headings = ("(no project)", "\\x1b[31mred\\nshop", "shop", "now following events")
        assert (nobody, red, shop, last) == headings
        assert (alone.split()[0], plain.split()[0]) == ("alone", "plain")
        assert shown.split()[:5] == ["web", web[:12], str(truth["State"]["Pid"]), "tiny:latest", "running"]
        assert shown.index(web[:12]) == title.index("ID")
        await control.pause(web)
        await control.unpause(web)
        await control.rename(web, "www")
        await eventually(lambda: "renamed" in out.getvalue())
        await control.kill(web)
        await eventually(lambda: "exit code" in out.getvalue())
        told = [line.split(maxsplit=4) for line in out.getvalue().splitlines()[9:]]
        # A real engine may tell of a pause twice if it is soon over: see `without_echoes`.
        pauses = [words[1:] for words in told if words[1] in {"paused", "unpaused"}]
        assert pauses[:2] == [["paused", "web", "shop"], ["unpaused", "web", "shop"]]
        assert len(pauses) == 2 or docker.fake is None
        said_why = "as asked for" in out.getvalue()
        assert [words[1:] for words in told if words[1] not in {"paused", "unpaused"}] == [
            ["updated", "www", "shop", "renamed from web"],
            ["exited", "www", "shop", f"exit code 137{', as asked for' * said_why}"],
        ]
        assert said_why or docker.fake is None
        assert all(datetime.strptime(words[0], "%H:%M:%S.%f") for words in told)  # noqa: DTZ007 - a local time of day
        assert all(line.isprintable() for line in out.getvalue().splitlines())


async def test_json_lines_hold_every_field(docker: Docker) -> None:
    control = docker.control
    web = await control.run("web", labels={PROJECT: "shop", "tier": "front"}, ports={"80/tcp": None})
    truth = await control.inspect(web)
    async with following(docker.address, as_json=True) as out:
        (snapshot,) = documents(out)
        assert snapshot.keys() == {"schema", "type", "engine", "revision", "as_of", "synced", "containers"}
        assert (snapshot["schema"], snapshot["type"], snapshot["revision"]) == (1, "snapshot", 1)
        assert snapshot["engine"].keys() == {"type", "address", "version"}
        assert snapshot["engine"]["address"] == docker.address
        (container,) = snapshot["containers"]
        assert container == {
            "id": web,
            "name": "web",
            "pid": truth["State"]["Pid"],
            "labels": {PROJECT: "shop", "tier": "front"},
            "project": "shop",
            "service": "",
            "replica": None,
            "paused": False,
            "image": "tiny:latest",
            "started_at": container["started_at"],
            "created_at": container["created_at"],
            "restarts": 0,
            "health": None,
            "ports": [{"port": 80, "protocol": "tcp", "host_ip": None, "host_port": None}],
            "addresses": {},
            "privileged": False,
            "engine": docker.address,
        }
        await control.rename(web, "www")
        await eventually(lambda: len(documents(out)) == 2)
        await control.kill(web)
        await eventually(lambda: len(documents(out)) == 3)
        updated, exited = documents(out)[1:]
        if docker.fake is None:  # the kernel may know before the engine has told why
            assert exited["requested"] in {True, None}
            exited |= {"requested": True, "origin": "engine"}
        moments = [snapshot["as_of"], container["started_at"], updated.pop("timestamp"), exited.pop("timestamp")]
        assert all(datetime.fromisoformat(moment).tzinfo is not None for moment in moments)
        both = {
            "schema": 1,
            "type": "event",
            "origin": "engine",
            "oom": None,
            "brief": False,
            "last": True,
            "container": container | {"name": "www"},
        }
        changed = {"revision": 2, "exit_code": None, "requested": None, "previous": container}
        assert updated == both | changed | {"event": "updated"}
        killed = {"revision": 3, "exit_code": 137, "requested": True, "previous": None}
        assert exited == both | killed | {"event": "exited"}


async def test_loss_of_the_engine_and_its_return_are_told() -> None:
    async with (
        FakeDocker() as fake,
        following(fake.address) as text,
        following(fake.address, as_json=True) as out,
    ):
        fake.faults.refuse()
        await eventually(lambda: "engine lost: Docker engine at" in text.getvalue())
        await eventually(lambda: documents(out)[-1].get("state") == "disconnected")
        fake.run("meanwhile")
        await fake.faults.accept()
        await eventually(lambda: "engine back: in sync again, 1 container, revision 1" in text.getvalue())
        await eventually(lambda: documents(out)[-1].get("state") == "synced")
        *_, started, back_again = text.getvalue().splitlines()
        assert "started" in started, "what is back is told before that it is back"
        assert started.endswith("(found afterwards)")
        assert "engine back" in back_again
        told = [document for document in documents(out) if document["type"] == "status"]
        for status in told:
            assert status.keys() == {
                *("schema", "type", "state", "since", "attempt", "error", "error_type", "source", "revision")
            }
            assert datetime.fromisoformat(status["since"]).tzinfo is not None
        assert (told[0]["state"], told[0]["error_type"]) == ("disconnected", "EngineUnavailable")
        assert told[0]["error"].startswith("Docker engine at ")
        assert (told[-1]["state"], told[-1]["error"]) == ("synced", None)


# -- rendering ---------------------------------------------------------------------------------------------------------


def test_wide_characters_keep_columns_aligned() -> None:
    rows = [(("鯨鯨", ""), ("x", "")), (("a", ""), ("x", ""))]
    columns = widths([Column("N"), Column("V")], rows, None)
    lines = [painted(aligned(row, columns), colour=False) for row in rows]
    assert lines == ["鯨鯨  x", "a     x"]
    assert painted((("鯨鯨鯨", ""),), colour=False, width=4) == "鯨…"


def test_columns_that_do_not_fit_are_cut_then_left_out_by_rank() -> None:
    columns = [Column("NAME", 6, 0), Column("IMAGE", 5, 2), Column("PID", 3, 1)]
    rows = [(("n" * 10, ""), ("i" * 10, ""), ("123", ""))]
    fitted = {width: widths(columns, rows, width) for width in (40, 20, 16, 9)}
    assert fitted == {40: [10, 10, 3], 20: [7, 6, 3], 16: [10, 0, 3], 9: [9, 0, 0]}


def test_published_ports_are_told_once_for_both_families() -> None:
    twice = (Port(80, "tcp", ip_address(host), 8080) for host in ("0.0.0.0", "::"))
    ports = (*twice, Port(443), Port(1, "udp", ip_address("::1"), 2))
    web, now = Container(id="1" * 64, name="web", pid=1, ports=ports), datetime.now(UTC)
    snapshot = Snapshot(revision=0, as_of=now)._changed([(None, web)], revision=1, as_of=now, synced=True)
    last = painted(list(picture(snapshot, "engine"))[-1], colour=False)
    assert last.endswith("8080->80/tcp, 443/tcp, [::1]:2->1/udp")


def test_summary_counts_what_was_seen() -> None:
    stats = Stats(calls={"list": 2, "events": 1}, revisions=1, outages=2)
    assert summary(2.4, 1, stats) == "2 s: 1 event, 1 revision, 2 outages; calls to the engine: 1 events, 2 list"


# -- how it ends -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "options", "frozen"),
    [
        (signal.SIGINT, [], False),
        (signal.SIGINT, ["--json"], False),
        (signal.SIGTERM, ["--json"], False),
        (signal.SIGTERM, [], True),
    ],
)
async def test_signals_end_a_watch_cleanly_even_of_a_frozen_engine(
    number: signal.Signals, options: list[str], frozen: bool
) -> None:
    async with FakeDocker() as fake, command("watch", fake.address, *options) as watch:
        await watch.line()
        await fake.until(lambda: fake.requests["events"])
        with fake.faults.freeze() if frozen else nullcontext():
            code, _, err = await watch.interrupted(number)
        assert (code, err) == (0, "")


@pytest.mark.slow
async def test_seconds_end_a_watch_that_was_in_sync_with_success() -> None:
    async with FakeDocker() as fake:
        fake.run("web", project="shop")
        async with command("watch", "--seconds", "3", DOCKER_HOST=fake.address) as watch:
            await until_following(watch)
            assert await watch.ended() == (0, "", "")


async def test_a_reader_that_goes_away_ends_the_watch_silently() -> None:
    reading, writing = os.pipe()
    async with FakeDocker() as fake, command("watch", fake.address, stdout=writing) as watch:
        os.close(writing)
        await read_until(reading, b"now following events\n")
        os.close(reading)
        fake.run("web")
        code, _, err = await watch.ended()
        assert (code, err) == (0, "")


async def test_output_that_cannot_be_written_is_told() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with FakeDocker() as fake, command("watch", fake.address, stdout=full) as watch:
            assert await watch.ended() == (1, "", "whalewatch: [Errno 28] No space left on device\n")
    finally:
        os.close(full)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["Docker", "containerd"])
@pytest.mark.parametrize("dead", [False, True], ids=["missing", "dead"])
async def test_engine_that_is_not_there_is_told_once_and_at_once_and_fails_when_the_time_is_over(
    engine: str, dead: bool, tmp_path: Path
) -> None:
    path = tmp_path / "none.sock"
    why = f"no socket at {path}: start the engine, or correct the address"
    if dead:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
        why = (
            "connection refused: the engine is not running; or it was restarted, and its socket is mounted here as a "
            "file: then mount its folder"
        )
    address = f"containerd://{path}" if engine == "containerd" else str(path)
    async with command("watch", address, "--seconds", "2") as watch:
        expected = f"whalewatch: {engine} engine at unix://{path}: {why}; trying again\n"
        assert await watch.error_line() == expected
        assert await watch.ended() == (1, "", ""), "and the same reason is told once"


async def follows(address: str, first: str, exit_: Callable[[], object], *words: str) -> None:
    """Watch an engine: the picture comes first, then that a container has exited, and an interrupt ends it cleanly."""
    async with command("watch", address) as watch:
        assert await watch.line() == first
        await until_following(watch)
        exit_()
        told = await watch.line()
        assert all(word in told for word in ("exited", *words))
        assert await watch.interrupted(signal.SIGINT) == (0, "", "")


async def test_containerd_is_shown_and_followed() -> None:
    async with FakeContainerd() as fake:
        fake.run("web", project="shop")
        fake.run("job", "batch")
        first = f"Containerd engine 1.7.24 at {fake.address}: 2 containers in 1 project, revision 1\n"
        await follows(f"containerd://{fake.path}", first, lambda: fake.exit("job", 3, namespace="batch"), "batch/job")


async def test_cri_engine_is_shown_and_followed() -> None:
    async with FakeCRI() as fake:
        job = fake.run(fake.run_pod("shop"), "job")
        first = f"CRI engine 1.33.0 at {fake.address}: 2 containers in 0 projects, revision 1\n"
        await follows(f"cri://{fake.path}", first, lambda: fake.exit(job, 3), "job")


async def test_an_engine_that_comes_later_is_found(tmp_path: Path) -> None:
    path = tmp_path / "later.sock"
    async with command("watch", str(path)) as watch:
        assert "no socket" in await watch.error_line()
        async with FakeDocker(path):
            await until_following(watch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "scheme", "engine", "remedy"),
    [(FakeDocker, "unix", "Docker", "group docker"), (FakeContainerd, "containerd", "containerd", ": run as root")],
    ids=["Docker", "containerd"],
)
async def test_missing_permission_is_told_with_its_remedy(
    make: type[FakeDocker | FakeContainerd], scheme: str, engine: str, remedy: str
) -> None:
    # Root may everything, so that it becomes somebody else, who need not be able to read this Python: all is loaded.
    program = textwrap.dedent(f"""\
        import os, sys, encodings.idna, whalewatch.moby, whalewatch.containerd, whalewatch.cri
        from whalewatch.cli.command import main
        if os.geteuid() == 0:
            os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
        sys.exit(main(sys.argv[1:]))
        """)
    async with make() as fake:
        fake.path.parent.chmod(0o755)
        fake.path.chmod(0)
        async with child("-c", program, "watch", f"{scheme}://{fake.path}", "--seconds", "3") as watch:
            code, out, err = await watch.ended()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"whalewatch: {engine} engine at {fake.address}: permission denied on {fake.path}: ")
    assert remedy in err


# -- arguments ---------------------------------------------------------------------------------------------------------


NO_PATH = "has no absolute path of a socket"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nonsense", "is not an address"),
        ("ftp://host", "wrong scheme"),
        ("unix://relative", "absolute"),
        ("\x1b[2J", ""),
        ("containerd://run/x.sock", f"{NO_PATH}: give an address such as containerd:///run/containerd/containerd.sock"),
        ("containerd:", NO_PATH),
        ("cri://run/x.sock", f"{NO_PATH}: give an address such as cri:///run/containerd/containerd.sock"),
        ("cri:", NO_PATH),
        ("containerd:///run/\x1b[2J", "cannot be printed"),
    ],
)
def test_an_address_that_cannot_be_used_is_misuse(address: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", address]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:12]) == ("", "whalewatch: ")
    assert why in err
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    "arguments", [[], ["what"], ["watch", "--seconds", "0"], ["watch", "--seconds", "nan"], ["watch", "a", "b"]]
)
def test_arguments_that_make_no_sense_are_misuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _ = main(arguments)
    assert ended.value.code == 2
    assert "usage: whalewatch" in capsys.readouterr().err


async def test_help_and_version_load_no_client() -> None:
    program = textwrap.dedent("""\
        import sys
        from whalewatch.cli.command import main
        for arguments in (["--help"], ["--version"], ["watch", "--help"]):
            try: code = main(arguments)
            except SystemExit as end: code = end.code
            print("ended", code)
        print(sorted({"aiohttp", "aiodocker", "grpc"} & sys.modules.keys()))
        """)
    async with child("-c", program) as asked:
        code, out, err = await asked.ended()
    assert (code, err) == (0, "")
    *told, loaded = out.split("ended 0\n")
    for text, expected in zip(told, ("usage: whalewatch", "whalewatch ", "ADDRESS"), strict=True):
        assert expected in text
    assert loaded == "[]\n"


@pytest.mark.parametrize("no_color", [False, True])
async def test_a_terminal_gets_colours_unless_asked_not_to(no_color: bool) -> None:
    main_end, child_end = pty.openpty()
    more = {"NO_COLOR": "1"} if no_color else {}
    try:
        async with FakeDocker() as fake:
            fake.run("web")
            async with command("watch", fake.address, stdout=child_end, **more) as watch:
                text = await read_until(main_end, b"now following events")
                code, _, err = await watch.interrupted(signal.SIGINT)
                assert (code, err) == (0, "")
    finally:
        os.close(main_end)
        os.close(child_end)
    assert (b"\x1b[32mrunning\x1b[0m" in text) is not no_color
    assert (b"\x1b" in text) is not no_color
