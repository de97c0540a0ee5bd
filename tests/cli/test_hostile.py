"""Nothing that an engine says reaches a terminal or a log as it is: no escape, no forged line, no endless line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.answering import saying
from tests.support.followed import AT_ONCE, eventually, followed
from tests.support.programs import child
from tests.support.scripted import ScriptedEngine, box
from tests.support.stepping import in_no_time
from whalewatch import (
    Container,
    ContainerEvent,
    EngineError,
    EngineUnavailable,
    EventType,
    Health,
    ListedContainer,
    Listing,
    Origin,
    Port,
    Signal,
    SignalType,
    Snapshot,
    Status,
    Watcher,
    WatchState,
    containerd,
    cri,
    moby,
)
from whalewatch._adapter.rucksack import Packer
from whalewatch._core import text
from whalewatch._core.text import logger, printable
from whalewatch.cli import command
from whalewatch.cli.command import follow, main
from whalewatch.cli.output import logging_to, printer
from whalewatch.cli.render import back, cells, event_line, lost, painted, picture
from whalewatch.testing import FakeContainerd, FakeCRI, FakeDocker

LINES = "\x1b]0;owned\x07\x1b[2J\n\r\x9b31m\x7f\u2028\u2029\x85forged: line"
BIDI = "\u202e\u2066\u2069\u200f\u061c\ufeff\u00ad"
EVIL = f"{LINES}{BIDI}\ud800e{chr(0x301) * 300}\U000e0041"
HUGE = EVIL + "x" * 1_000_000
HALVES = EVIL.encode("utf-8", "surrogatepass") + b"\xff"
"""What a gRPC message can hold where it promises text."""

NOW = datetime.now(UTC)


def clean(line: str) -> bool:
    """Whether a line can be shown: it moves nothing, has no heaps of marks, and ends."""
    return line.isprintable() and chr(0x301) * (text.MAX_MARKS + 1) not in line and len(line) <= text.MAX_LINE + 400


def hostile(evil: str, **more: Any) -> Container:
    return Container(
        **{
            "id": evil,
            "name": evil,
            "pid": 7,
            "labels": {evil: evil},
            "project": evil,
            "image": evil,
            "started_at": NOW,
            "health": Health.HEALTHY,
            "ports": (Port(80, evil, ip_address("::1"), 8080), *(Port(number) for number in range(10_000))),
            "addresses": {evil: (ip_address("10.0.0.1"),)},
            "engine": evil,
            **more,
        }
    )


# -- one text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "character", [*LINES[:7], *BIDI, "\n", "\x9b", "\x7f", "\u2028", "\x85", "\ud800", "\U000e0041"]
)
def test_what_cannot_be_shown_is_escaped(character: str) -> None:
    shown = printable(f"a{character}b")
    assert shown.isprintable()
    assert character.isprintable() or shown == f"a{character.encode('unicode_escape').decode()}b"
    assert str(EngineError(f"a{character}b")) == shown


def test_marks_on_one_letter_are_few_and_text_is_bounded() -> None:
    accented = "e\u0301\u0323 a\u0308"
    assert printable(accented) == accented
    assert printable("e" + "\u0301" * 300).count("\u0301") == text.MAX_MARKS
    assert printable("a\u1160\u3164b") == r"a\u1160\u3164b", "letters that show nothing"
    assert [len(printable(HUGE, 50)), len(str(EngineError(HUGE)))] == [50, text.MAX_ERROR]
    assert printable(printable(EVIL, 5000), 5000) == printable(EVIL, 5000)


@pytest.mark.parametrize("arguments", [(HUGE,), (), ({"id": EVIL},)])
def test_log_message_is_one_clean_line_and_keeps_its_arguments_if_it_is_one(
    arguments: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    log = logger("whalewatch.tests")
    log.warning("%s happened" if arguments else EVIL, *arguments)
    log.warning("%s happened", 1)
    forged, plain = caplog.records
    assert clean(forged.getMessage())
    assert (plain.msg, plain.args) == ("%s happened", (1,))


@pytest.mark.parametrize("raised", [GeneratorExit, asyncio.CancelledError, BaseException, ValueError])
def test_pack_that_raises_forges_no_line_and_ends_nothing(
    raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def pack(container: Container, _: None) -> None:
        raise raised(container.id)

    assert Packer(pack, logger("whalewatch.tests")).pack(hostile(LINES + BIDI), None).rucksack is None
    (record,) = caplog.records
    assert clean(record.getMessage())


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_pack_can_end_the_program(raised: type[BaseException]) -> None:
    def pack(container: Container, _: None) -> None:
        raise raised

    with pytest.raises(raised):
        Packer(pack, logger("whalewatch.tests")).pack(box("a"), None)


# -- the whole command line --------------------------------------------------------------------------------------------


class Rude(EngineError):
    """Shows itself as it likes."""

    def __str__(self) -> str:
        return HUGE


class Hostile(ScriptedEngine):
    """Says the worst in each field, fails in many ways, and then goes on to do so while in sync."""

    type = title = address = source = HUGE

    def __init__(self) -> None:
        super().__init__(hostile(HUGE), hostile(EVIL, name="other"), hostile("unread"))

    async def version(self) -> str:
        return HUGE

    async def connect(self) -> None:
        self.calls["connect"] += 1
        match self.calls["connect"]:
            case 1:
                raise EngineUnavailable(HUGE)
            case 2:
                raise ValueError(HUGE)
            case 3:
                raise Rude

    async def listing(self) -> Listing:
        self.calls["listing"] += 1
        if self.calls["listing"] == 1:
            raise LookupError(HUGE)
        if self.calls["listing"] == 2:
            return None  # type: ignore[return-value] # so that something fails within the watcher
        listed = {id: ListedContainer(one if id != "unread" else None) for id, one in self.alive.items()}
        return Listing(containers=listed, absence_is_death=True, failed={HUGE: Rude(), EVIL: EngineError(EVIL)})

    async def inspect(self, id: str, /) -> Container | None:
        self.calls["inspect"] += 1
        raise Rude if self.calls["inspect"] % 2 else ValueError(HUGE)

    async def signals(self) -> AsyncIterator[Signal]:
        self.opened += 1
        yield Signal(SignalType.SUBSCRIBED)
        if self.opened < 3:
            await asyncio.sleep(3600)
        await asyncio.sleep(0.2)
        if self.opened > 3:
            signal.raise_signal(signal.SIGINT)  # all of it has happened
        changed = hostile(HUGE, paused=True, project="", image="", addresses={}, health=None)
        for one in (changed, hostile(HUGE, name=EVIL * 2), hostile("\x1b[31m" * 50)):
            yield Signal(SignalType.CHANGED if one.id == HUGE else SignalType.STARTED, one.id, container=one)
        yield Signal(SignalType.EXITED, EVIL)
        yield Signal(SignalType.LOST)
        await asyncio.sleep(0.2)
        raise ValueError(HUGE)

    async def close(self) -> None:
        raise ValueError(HUGE)


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_hostile_engine_brings_nothing_raw_through_the_command_line(
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    engine = Hostile()
    monkeypatch.setattr(command, "_watcher", lambda _: Watcher(engine, retry=AT_ONCE, call_timeout=0.3))
    assert main(["watch", "x", "--seconds", "30", *(["--json"] if as_json else [])]) == 0
    out, err = capsys.readouterr()
    assert engine.opened >= 4
    lines = out.removesuffix("\n").split("\n")
    assert len(lines) >= 9
    if as_json:
        assert all(line.isascii() and line.isprintable() for line in lines)
        assert json.loads(lines[0])["containers"][0]["labels"] == {HUGE: HUGE}
        assert all(len(document.get("error") or "") <= text.MAX_ERROR for document in map(json.loads, lines))
    assert [line for line in lines * (not as_json) + err.split("\n") if not clean(line)] == []
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("whalewatch")]
    assert len(messages) > 5
    assert [message for message in messages if not clean(message)] == []


Seen = Callable[[str], Coroutine[Any, Any, None]]


async def use_docker(fake: FakeDocker, seen: Seen) -> None:
    web = fake.run("web", labels={EVIL: HUGE, "com.docker.compose.project": EVIL}, image=LINES)
    await seen("started")
    fake.faults.fail("inspect", message=HUGE)
    fake.run("failing", image=LINES)
    fake.emit_raw(HUGE.encode("utf-8", "surrogatepass") + b"\n")
    await eventually(lambda: fake.requests["inspect"] > 1)
    fake.kill(web)


async def use_containerd(fake: FakeContainerd, seen: Seen) -> None:
    fake.run("web", "shop", labels={b"evil": HALVES + b"x" * 1_000_000}, image=HALVES)
    await seen("started")
    fake.exit("web", namespace="shop")


async def use_cri(fake: FakeCRI, seen: Seen) -> None:
    pod = fake.run_pod(HALVES, HALVES, uid=HALVES, labels={b"evil": HALVES})
    web = fake.run(pod, "web", image=HALVES + b"x" * 1_000_000)
    await seen("web")
    fake.exit(web)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("make", "watch", "use"),
    [
        (FakeDocker, moby.watch, use_docker),
        (FakeContainerd, containerd.watch, use_containerd),
        (FakeCRI, cri.watch, use_cri),
    ],
    ids=["Docker", "containerd", "CRI"],
)
async def test_hostile_containers_bring_nothing_raw_through_the_command_line(
    make: Callable[[], Any],
    watch: Callable[[str], Watcher],
    use: Callable[[Any, Seen], Coroutine[Any, Any, None]],
    as_json: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "whalewatch")
    out, err = io.StringIO(), io.StringIO()
    async with make() as fake:
        with logging_to(err):
            task = asyncio.create_task(follow(watch(fake.address), printer(out, as_json=as_json), err))

            async def seen(word: str) -> None:
                await eventually(lambda: task.done() or word in out.getvalue())
                assert not task.done()

            try:
                await seen("snapshot" if as_json else "now following")
                await use(fake, seen)
                await seen("exited")
            finally:
                task.cancel()
                await asyncio.wait({task})
    lines = out.getvalue().removesuffix("\n").split("\n")
    if as_json:
        assert all(line.isascii() and line.isprintable() and json.loads(line) for line in lines)
    assert [line for line in lines * (not as_json) + err.getvalue().split("\n") if not clean(line)] == []
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("whalewatch")]
    assert [message for message in messages if not clean(message)] == []


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 2, 11])
async def test_what_a_grpc_server_says_as_it_goes_away_is_not_shown_raw(code: int, tmp_path: Path) -> None:
    def frame(type_: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([type_, 0, 0, 0, 0, 0]) + payload

    settings, away = 4, 7
    answer = frame(settings, b"") + frame(away, bytes(4) + code.to_bytes(4, "big") + LINES.encode())
    socket = tmp_path / "x.sock"
    async with (
        saying(socket, answer),
        child("-m", "whalewatch", "watch", f"containerd://{socket}", "--seconds", "1.5") as watch,
    ):
        ended, out, err = await watch.ended()
    assert (ended, out) == (1, "")
    assert [line for line in err.splitlines() if not (clean(line) and line.startswith("whalewatch: "))] == []
    assert "GOAWAY" in err or "connection lost" in err


EVILS = (LINES, BIDI, "\ud800", "e" + chr(0x301) * 300 + "\n", LINES + "x" * 1_000_000)
SCHEMES = ("", "unix:///", "tcp://", "ssh://", "containerd:///", "cri:///", "containerd:")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("evil", EVILS, ids=["lines", "directions", "half", "marks", "huge"])
def test_hostile_address_is_misuse_told_in_one_clean_line(
    scheme: str, evil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", scheme + evil]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert clean(err.removesuffix("\n"))
    assert err.startswith("whalewatch: ")


def test_hostile_arguments_are_misuse_told_in_clean_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["watch", "a", LINES], [LINES], ["watch", "--seconds", LINES]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert all(clean(line) for line in capsys.readouterr().err.splitlines())


# -- lines of text -----------------------------------------------------------------------------------------------------


def test_hostile_text_brings_no_control_characters_into_text() -> None:
    container, snapshot = hostile(EVIL), Snapshot(revision=0, as_of=NOW)
    snapshot = snapshot._changed([(None, container)], revision=1, as_of=NOW, synced=True)
    former = attrs.evolve(container, name=EVIL + "x", project="", image="", addresses={EVIL + "y": ()}, ports=())
    event = partial(ContainerEvent, timestamp=NOW, origin=Origin.RESYNC, revision=1, last=True, container=container)
    events = [event_line(event(type=type_, previous=former)) for type_ in EventType]
    status = Status(state=WatchState.DISCONNECTED, since=NOW, error=EngineUnavailable(EVIL))
    for line in [*picture(snapshot, EVIL), *events, lost(status), back(status, snapshot)]:
        assert clean(painted(line, colour=False))
        assert cells(painted(line, colour=False, width=40)) <= 40


# -- times -------------------------------------------------------------------------------------------------------------


FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
MOMENTS = [
    *(FIRST, LAST, FIRST.replace(tzinfo=None), LAST.replace(tzinfo=None)),
    *(FIRST.replace(tzinfo=EAST), LAST.replace(tzinfo=WEST)),
]


@pytest.fixture(params=["Asia/Tokyo", "America/Los_Angeles"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.usefixtures("zone")
@in_no_time
async def test_times_at_the_ends_of_the_calendar_and_without_a_zone_stop_nothing(as_json: bool) -> None:
    engine = ScriptedEngine(*(box(f"c{n}", start=None, name="same", started_at=at) for n, at in enumerate(MOMENTS)))
    moments = iter(MOMENTS * 1000)
    async with followed(Watcher(engine, retry=AT_ONCE, clock=lambda: next(moments))) as follow:
        out = io.StringIO()
        task = asyncio.create_task(command._print_events(follow.watcher.events(), printer(out, as_json=as_json)))
        for moment in MOMENTS:
            for stream in engine.streams:
                for id in ("c0", "c1", "new"):
                    stream.put_nowait(Signal(SignalType.CHANGED, id, moment, container=box(id, started_at=moment)))
                stream.put_nowait(Signal(SignalType.STARTED, "new", moment, container=box("new", started_at=moment)))
                stream.put_nowait(Signal(SignalType.EXITED, "new", moment))
        await asyncio.sleep(5)
        assert follow.stats.outages == 0
        assert follow.watcher.portfolio.snapshot().synced
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert out.getvalue().count("\n") >= len(MOMENTS)
