"""Where engines are, and what is said when they are not there."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from tenacity import wait_fixed

from tests.support.answering import TO_TLS, answering, http
from tests.support.certificates import make_certificates
from tests.support.docker_contexts import context
from tests.support.followed import eventually
from tests.support.scripted import PATIENCE
from whalewatch import (
    AddressError,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ProtocolViolation,
    Retry,
    UnsupportedEngine,
    WatchState,
    WhalewatchError,
    moby,
)
from whalewatch.moby.address import default_endpoint, endpoint
from whalewatch.testing import FakeDocker

# ---- addresses as users give them


@pytest.mark.parametrize(
    ("address", "shown", "url", "path"),
    [
        ("unix:///run/docker.sock", "unix:///run/docker.sock", "http://localhost", "/run/docker.sock"),
        ("/run/docker.sock", "unix:///run/docker.sock", "http://localhost", "/run/docker.sock"),
        ("tcp://host", "tcp://host:2375", "http://host:2375", None),
        ("tcp://host:1234", "tcp://host:1234", "http://host:1234", None),
        ("http://host:1234/", "http://host:1234", "http://host:1234", None),
        ("http://host/docker/", "http://host:2375/docker", "http://host:2375/docker", None),
        ("https://host", "https://host:2376", "https://host:2376", None),
        ("tcp://[::1]:1234", "tcp://[::1]:1234", "http://[::1]:1234", None),
        ("tcp://[fe80::1%eth0.1]", "tcp://[fe80::1%eth0.1]:2375", "http://[fe80::1%eth0.1]:2375", None),
        ("http://host/a%20b", "http://host:2375/a%20b", "http://host:2375/a%20b", None),
        ("tcp://10.0.0.1", "tcp://10.0.0.1:2375", "http://10.0.0.1:2375", None),
        # What Docker's own client makes of it, 20.10
        ("unix://", "unix:///var/run/docker.sock", "http://localhost", "/var/run/docker.sock"),
        ("tcp://", "tcp://localhost:2375", "http://localhost:2375", None),
        ("tcp://:7", "tcp://localhost:7", "http://localhost:7", None),
        ("host:7", "tcp://host:7", "http://host:7", None),
        ("host:", "tcp://host:2375", "http://host:2375", None),
        (":7", "tcp://localhost:7", "http://localhost:7", None),
        ("[::1]:7", "tcp://[::1]:7", "http://[::1]:7", None),
        (" tcp://host:7 \r\n", "tcp://host:7", "http://host:7", None),
        (" /run/docker.sock\n", "unix:///run/docker.sock", "http://localhost", "/run/docker.sock"),
    ],
)
def test_address_is_understood(address: str, shown: str, url: str, path: str | None) -> None:
    found = endpoint(address)
    assert (found.address, found.url, found.path, found.command) == (shown, url, path, ())
    assert (found.tls is not None) is address.startswith("https")
    assert moby.MobyEngine(address).address == shown


def test_relative_path_and_tls_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = endpoint("./docker.sock")
    assert (found.path, found.address) == (f"{tmp_path}/docker.sock", f"unix://{tmp_path}/docker.sock")
    tls = ssl.create_default_context()
    for scheme in ("tcp", "https", "http"):
        found = endpoint(f"{scheme}://host", tls)
        assert (found.url, found.tls) == ("https://host:2376", tls)


@pytest.mark.parametrize(
    ("address", "arguments", "remote"),
    [
        ("ssh://host", [], "docker system dial-stdio"),
        ("ssh://me@Host:2222/", ["-l", "me", "-p", "2222"], "docker system dial-stdio"),
        ("ssh://[::1]:22/run/d.sock", ["-p", "22"], "docker --host unix:///run/d.sock system dial-stdio"),
        ("ssh://host/a;reboot", [], "docker --host 'unix:///a;reboot' system dial-stdio"),
        ("ssh://a%20b@host/%24(id)", ["-l", "a b"], "docker --host 'unix:///$(id)' system dial-stdio"),
    ],
)
def test_ssh_runs_dockers_own_client_on_the_other_host(address: str, arguments: list[str], remote: str) -> None:
    found = endpoint(address)
    host = "::1" if "::1" in address else "Host" if "Host" in address else "host"
    assert found.command == ["ssh", "-T", *arguments, "--", host, remote]
    assert (found.address, found.path, found.tls) == (address, None, None)


OPTION = "-oProxyCommand=touch$IFS/pwned"


@pytest.mark.parametrize(
    "address",
    [
        *("ssh://{}", "ssh://{}:22", "ssh://{}@host", "ssh://user@{}", "ssh://host:{}", "ssh://%2doX@host"),
        *("ssh://a%20{}@host", "ssh://a%09{}@host", "ssh://$(id)@host", "ssh://`id`@host", "ssh://a%22b@host"),
        *("ssh://a%3bid@host", "ssh://a|id@host", "ssh://a%5c@host", "ssh://'a'@host", "ssh://%0a{}@host"),
        *("ssh://[{}]", "ssh://[::1%25{}]", "ssh://[::1%{}]", "ssh://%2d{}", "ssh://`id`", "ssh://$(id)", "ssh://a;id"),
        *(
            "ssh://host {}",
            "ssh://host%20{}",
            "ssh://host\t{}",
            "ssh://\uff0doX",
            "ssh://host:22%20{}",
            "ssh://host:-1",
        ),
    ],
)
def test_address_passes_no_option_to_ssh_and_no_command_to_a_shell(address: str) -> None:
    with pytest.raises(AddressError, match=r"not an address|characters"):
        endpoint(address.replace("{}", OPTION))


@pytest.mark.parametrize("path", [OPTION, f"a {OPTION}", f"%20{OPTION}", "$(id)", "'", "a%22%3bid"])
def test_path_for_ssh_is_one_word_of_one_command_on_the_other_host(path: str) -> None:
    *own, remote = endpoint(f"ssh://user@host:22/{path}").command
    assert own == ["ssh", "-T", "-l", "user", "-p", "22", "--", "host"]
    assert shlex.split(remote) == ["docker", "--host", f"unix:///{unquote(path)}", "system", "dial-stdio"]


UNUSABLE = (
    *("", " ", "docker.sock", "host", "host:port", "unix://docker.sock", "tcp://host:port", "@name", "unix://@name"),
    *(f"/{'x' * 107}", f"unix:///{'x' * 107}", f"./{'x' * 107}", "someone:secret@host:1"),
    *("tcp://host:99999", "tcp://[::1", "ftp://host", "npipe:////./pipe/docker_engine", "fd://", "tcp://ho\nst"),
    *("/run/docker\x00.sock", "unix:///run/\x1b[31mdocker.sock"),
    *("ftp://someone:secret@host", "tcp://someone:secret@host:port", "tcp://someone:secret@"),
    *("http://someone:secret@[::1", "tcp://someone:very@secret@host:port", "tcp://someone:very/secret@host"),
    *("unix://someone:secret@host", "ssh://someone:secret@host", "ssh://-oProxyCommand=reboot", "ssh://%2dF@host"),
    *("ssh://u%00@host", "ssh://host/%00", "tcp://a..b", f"tcp://{'a' * 64}"),
    *(f"tcp://[fe80::1%{scope}]:1" for scope in ("", " ", "\x1b]0;x\n", "%1b", "eth0/", "é", "a;b", "a\udcff")),
    *(
        "ssh://\uff48\uff4fst",
        "ssh://[::1]x;id",
        "ssh://[::1]-oFoo$(touch /tmp/x)",
        "tcp://[::1]evil:5",
        "tcp://[fe80::1%a]b]:1",
    ),
    *("ssh://[fe80::1%$(id)]", "ssh://[fe80::1%\n-oX]", "tcp://host%eth0:1", "tcp://a%20b:1", "tcp://a b:1"),
    *("tcp://a\x7fb:1", "tcp://a\x00b", "http://a'b", "tcp://host:1/\u202e", "tcp://host\udcff", "a b:1"),
    *(
        f"{scheme}://host:1/{path}"
        for scheme in ("http", "ssh")
        for path in ("%0d%0aX:%20y", "a%00", "%1b[2J", "%C2%85")
    ),
)


@pytest.mark.parametrize("address", [*UNUSABLE, pytest.param("x" * 100_000, id="gigantic")])
def test_address_that_cannot_be_used_is_refused_at_once_by_what_it_is_without_its_password(address: str) -> None:
    for use in (endpoint, moby.watch, moby.MobyEngine):
        with pytest.raises(AddressError) as caught:
            use(address)
        assert isinstance(caught.value, ValueError)
        assert str(caught.value).isprintable()
        assert min(len(address), 100) < len(str(caught.value)) < 1000
        shown = "".join(traceback.format_exception(caught.value)).replace(repr(address), "")
        assert "secret" not in shown
        assert "very" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["tcp", "http", "https"])
def test_password_is_never_shown(scheme: str) -> None:
    address = f"{scheme}://someone:secret@host:1234"
    assert "secret" not in endpoint(address).address
    assert "secret" not in repr(endpoint(address))
    assert "secret" not in moby.watch(address).engine.address


# ---- where none is given


def config(home: Path, content: str, encoding: str = "utf-8") -> None:
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker" / "config.json").write_text(content, encoding)


def test_engine_is_where_the_environment_says_or_else_the_context(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    places = {"current": "tcp://current:1", "chosen": "unix:///chosen.sock", "there": "tcp://there:1"}
    for name, host in places.items():
        context(elsewhere if name == "there" else tmp_path / ".docker", name, {"Host": host})
    (elsewhere / "config.json").write_text('{"currentContext": "there"}')
    config(tmp_path, '{"currentContext": "current"}')
    for environ, address in (
        ({"DOCKER_HOST": "tcp://env:1", "DOCKER_CONTEXT": "chosen"}, "tcp://env:1"),
        ({"DOCKER_CONTEXT": "chosen"}, "unix:///chosen.sock"),
        ({}, "tcp://current:1"),
        ({"DOCKER_CONFIG": str(elsewhere)}, "tcp://there:1"),
    ):
        assert default_endpoint(environ, tmp_path).address == address
    for content in ("{}", '{"auths": {}}', '{"currentContext": ""}', '{"currentContext": "default"}'):
        config(tmp_path, content)
        for environ in ({}, {"DOCKER_CONTEXT": "default"}):
            assert default_endpoint(environ, tmp_path).path is not None, "a well-known socket"


def test_without_anything_it_is_a_well_known_socket_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: set[str] = set()
    monkeypatch.setattr(Path, "is_socket", lambda self: str(self) in there)
    environ = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert default_endpoint(environ, tmp_path).path == "/run/docker.sock", "for the message, if none is there"
    for path in (f"{tmp_path}/.docker/run/docker.sock", "/run/user/7/docker.sock", "/run/docker.sock"):
        there.add(path)
        assert default_endpoint(environ, tmp_path).path == path


def complaint(environ: dict[str, str], home: Path) -> str:
    """What is said of a configuration that cannot be used; a secret is never told."""
    with pytest.raises(AddressError) as caught:
        default_endpoint(environ, home)
    told = "".join(traceback.format_exception(caught.value))
    assert "secret" not in told
    assert told.count("AddressError: ") == 1, "it does not repeat itself as its cause"
    return str(caught.value)


def test_bad_configuration_says_where_it_is(tmp_path: Path) -> None:
    for environ, words in (
        ({"DOCKER_HOST": "nonsense"}, ["DOCKER_HOST", "nonsense"]),
        ({"DOCKER_HOST": "ftp://someone:secret@host"}, ["DOCKER_HOST", "ftp"]),
        ({"DOCKER_CONTEXT": "unknown"}, ["unknown", "context"]),
    ):
        assert [word for word in words if word not in complaint(environ, tmp_path)] == []
    odd: list[Any] = [{}, None, [], *({"Host": host} for host in (7, "nonsense", "", "tcp://someone:secret@host:x"))]
    for number, written in enumerate(odd):
        context(tmp_path / ".docker", f"odd{number}", written)
        assert f"odd{number}" in complaint({"DOCKER_CONTEXT": f"odd{number}"}, tmp_path)
    for content in ("{}", "[]", "", '{"Endpoints": null}'):
        for meta in (tmp_path / ".docker").rglob("meta.json"):
            meta.write_text(content)
        assert "meta.json" in complaint({"DOCKER_CONTEXT": "odd0"}, tmp_path)


def test_user_without_a_home_can_still_name_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert default_endpoint({"DOCKER_HOST": "tcp://env:1"}).address == "tcp://env:1"
    assert default_endpoint({}).path is not None


# ---- TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates: of a CA, of a server at 127.0.0.1, of a client; and of another CA that signed none of them."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("pki", "other"):
        make_certificates(folder / name)
    (folder / "other" / "ca.pem").rename(folder / "pki" / "other.pem")
    return folder / "pki"


def served(pki: Path, *, clients: bool = False) -> ssl.SSLContext:
    """The server's side; with `clients` it demands a certificate."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.pem") if clients else None)
    tls.load_cert_chain(pki / "server-cert.pem", pki / "server-key.pem")
    if clients:
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def test_tls_files_are_looked_for_beside_the_configuration_by_default(pki: Path) -> None:
    environ = {"DOCKER_HOST": "tcp://host", "DOCKER_TLS_VERIFY": "1", "DOCKER_CONFIG": str(pki)}
    found = default_endpoint(environ, Path("/nowhere"))
    assert found.tls is not None
    assert [one["subject"] for one in found.tls.get_ca_certs()] == [((("commonName", "ca"),),)]
    assert (found.tls.verify_mode, found.address) == (ssl.CERT_REQUIRED, "tcp://host:2376")


async def test_context_has_tls_files_of_its_own_and_may_skip_the_check(pki: Path, tmp_path: Path) -> None:
    for skip, mode in ((False, ssl.CERT_REQUIRED), (True, ssl.CERT_NONE)):
        files = context(tmp_path / ".docker", f"{skip}", {"Host": "tcp://host:1", "SkipTLSVerify": skip})
        files.mkdir(parents=True)
        shutil.copy(pki / "ca.pem", files)
        found = default_endpoint({"DOCKER_CONTEXT": f"{skip}"}, tmp_path)
        assert found.tls is not None
        assert (found.tls.verify_mode, found.tls.check_hostname, found.url) == (mode, not skip, "https://host:1")


def test_tls_files_that_cannot_be_used_are_refused_at_once(pki: Path, tmp_path: Path) -> None:
    environ = {"DOCKER_HOST": "tcp://host", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    anothers = (pki / "server-key.pem").read_text()
    for file, content in (("ca.pem", "garbage"), ("cert.pem", "garbage"), ("key.pem", anothers), ("key.pem", None)):
        for name in ("ca.pem", "cert.pem", "key.pem"):
            shutil.copy(pki / name, tmp_path)
        default_endpoint(environ, tmp_path)
        (tmp_path / file).unlink() if content is None else (tmp_path / file).write_text(content)
        assert str(tmp_path) in complaint(environ, tmp_path)


# ---- what is said when it is not there


async def refused(address: str, expected: type[EngineError], *words: str, **options: Any) -> EngineError:
    """Watch what cannot be watched: without retries the error comes at once, with them it shows in the status."""
    async with moby.watch(address, retry=None, **options) as watcher:
        with pytest.raises(EngineError) as caught:
            await watcher.ready(PATIENCE)
        assert watcher.status.state is WatchState.CLOSED
    error = caught.value
    told(error, address, expected, *words)
    async with moby.watch(address, retry=Retry(wait=wait_fixed(3600)), **options) as watcher:
        async with asyncio.timeout(PATIENCE):
            async for status in watcher.status_changes():
                if status.state is WatchState.DISCONNECTED:
                    told(status.error, address, expected, *words)
                    break
        assert watcher.engine.client is not None or watcher.status.error is not None
    return error


def told(error: WhalewatchError | None, address: str, expected: type[EngineError], *words: str) -> None:
    message = str(error)
    assert type(error) is expected, repr(error)
    assert f"Docker engine at {address}: " in message
    for word in words:
        assert word in message, message
    assert message.isprintable()
    assert len(message) < 600


async def test_path_at_which_there_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no socket")
    missing, wrong = ("no socket at", "start the engine", "address"), ("is no socket: correct the address",)
    for path, *words in (("/none.sock", *missing), ("/no/such/folder/docker.sock", "no socket"), ("/file", *wrong)):
        await refused(f"unix://{tmp_path}{path}", EngineUnavailable, *words)
    await refused(f"unix://{tmp_path}", EngineUnavailable, *wrong)
    await refused(f"unix://{tmp_path}/file/docker.sock", EngineUnavailable, "no socket")


async def test_connection_that_is_refused_and_host_that_does_not_exist(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    remedy = ("not running", "mounted here as a file", "mount its folder")
    await refused(f"unix://{tmp_path}/dead.sock", EngineUnavailable, "refused", *remedy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        await refused(f"tcp://127.0.0.1:{free.getsockname()[1]}", EngineUnavailable, "refused", "not running")
    unknown = ("the name no-such-host.invalid does not resolve", "correct the address, or DNS")
    await refused("tcp://no-such-host.invalid:2375", EngineUnavailable, *unknown)


async def test_ssh_that_is_missing_and_ssh_that_fails_which_is_logged_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    await refused("ssh://alias", EngineUnavailable, "there is no program ssh here: install it")
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\necho one >&2\necho 'kex: two\r' >&2\nexit 255\n")
    program.chmod(0o755)
    await refused("ssh://alias", EngineUnavailable, "(kex: two)")
    caplog.clear()
    async with moby.watch("ssh://alias", retry=Retry(wait=wait_fixed(0))) as watcher:
        await eventually(lambda: watcher.status.attempt > 3)
    ours = [record for record in caplog.records if record.name.startswith("whalewatch") and record.levelname != "DEBUG"]
    assert [record.getMessage().partition(" (")[2] for record in ours] == ["kex: two); trying again in 0.0 s"]


async def test_what_accepts_and_never_answers_or_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        await refused(f"tcp://127.0.0.1:{mute.getsockname()[1]}", EngineTimeout, "hung", call_timeout=0.2)
    async with answering(b"") as address:
        await refused(address, EngineUnavailable, "lost")


API = "Api-Version: 1.45"

INFO = {"ID": "an id", "ServerVersion": "26.1.5", "SystemTime": "2026-01-02T03:04:05Z"}

PAGE = b"<html>\r\n<h1>It works!</h1>\r\n</html>"


async def test_port_for_https() -> None:
    async with answering(http("400 Bad Request", TO_TLS)) as address:
        await refused(address, EngineUnavailable, "HTTPS", "tls=")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1\r\n", ["HTTP"], id="ssh"),
        pytest.param(b"\x00\xff\x1b[31m" * 50 + b"\r\n\r\n", ["HTTP"], id="garbage"),
        pytest.param(http("200 OK", PAGE, "Content-Type: text/html"), ["API version"], id="a page"),
        pytest.param(http("200 OK", PAGE, API), ["the answer to info is not JSON"], id="a page for a document"),
        pytest.param(http("200 OK", b"{}"), ["API version"], id="no version"),
        pytest.param(http("200 OK", b"[]", API), ["info"], id="a list"),
        pytest.param(http("200 OK", b'{"ID": 7, "ServerVersion": null, "SystemTime": "soon"}', API), [], id="types"),
        pytest.param(http("200 OK", b"{}", "Api-Version: nonsense"), ["nonsense"], id="version"),
        pytest.param(http("200 OK", b"[" * 100_000, API), ["JSON"], id="deep"),
        pytest.param(http("404 Not Found", PAGE), ["GET /_ping", "404", "in front of it"], id="404"),
        pytest.param(http("405 Method Not Allowed", b""), ["405"], id="405"),
        pytest.param(http("301 Moved Permanently", b"", "Location: https://elsewhere/"), ["301"], id="301"),
        pytest.param(http("307 Temporary Redirect", b"", "Location: /login"), ["307"], id="307"),
    ],
)
async def test_what_is_not_recognised_as_docker(answer: bytes, words: list[str]) -> None:
    async with answering(answer) as address:
        error = await refused(address, ProtocolViolation, *words)
    assert "<" not in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: minus one\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnonsense",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n{}",
        b"HTTP/1.1 9999 What\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
    ],
    ids=["chunk", "cut chunk", "cut", "length", "gzip", "deflate", "long header", "many headers", "status", "version"],
)
async def test_answer_that_breaks_the_rules_of_http(answer: bytes) -> None:
    async with answering(answer) as address, moby.watch(address, retry=None) as watcher:
        with pytest.raises(EngineError) as caught:
            await watcher.ready(PATIENCE)
        told(caught.value, address, type(caught.value))


@pytest.mark.parametrize("path", ["/_ping", "/v1.45/info", "/v1.45/events"])
async def test_engine_that_denies_access_or_fails_and_says_why_unless_it_is_a_page(path: str) -> None:
    def answer(request: bytes) -> bytes:
        refused = request.startswith(b"GET /docker" + path.encode())
        return refusal if refused else http("200 OK", json.dumps(INFO).encode(), API)

    for status, error, *words in (
        ("401 Unauthorized", EngineUnavailable, "denied", "401", "proxy"),
        ("403 Forbidden", EngineUnavailable, "denied", "403", "proxy"),
        ("500 Internal Server Error", EngineError, "500"),
        ("503 Service Unavailable", EngineError, "503"),
        *([("404 Not Found", EngineUnavailable, "denied", "404", "proxy")] if path != "/_ping" else ()),
    ):
        for body, why in ((rb'{"message": "not\n you"}', r"not\n you"), (PAGE, "")):
            refusal = http(status, body)
            async with answering(answer) as address:
                told = await refused(f"{address}/docker", error, f"GET /docker{path} ", why, *words)
            assert "<" not in str(told)
    async with answering(http("200 OK", b"hello", "Content-Encoding: gzip")) as address:
        await refused(address, ProtocolViolation, "to ping is compressed", "let nothing in front of it compress")


async def test_path_that_is_not_there_in_front_of_a_docker_is_refused_and_proves_no_death() -> None:
    answers = {b"/_ping": http("200 OK", b"OK", API), b"/v1.45/info": http("200 OK", json.dumps(INFO).encode())}
    page = http("404 Not Found", PAGE)
    async with answering(lambda request: answers.get(request.split()[1], page)) as address:
        engine = moby.MobyEngine(address)
        await engine.connect()
        try:
            for call, path in ((engine.listing, "json"), (partial(engine.inspect, "xy"), "xy/json")):
                with pytest.raises(EngineError) as caught:
                    await call()
                told(caught.value, address, EngineUnavailable, f"denied to GET /v1.45/containers/{path} (404)")
        finally:
            await engine.close()


async def test_engine_of_the_oldest_api_that_is_known_is_watched_and_none_that_is_older_or_too_new() -> None:
    async with FakeDocker(api_version="1.40", version="19.03.15") as fake:
        await refused(fake.address, UnsupportedEngine, "1.40", "1.41", "20.10")
    async with FakeDocker(api_version="1.99", min_api_version="1.90") as fake:
        await refused(fake.address, UnsupportedEngine, "1.90")
    async with FakeDocker(api_version="1.41", version="20.10.24") as fake:
        fake.run("alone")
        async with moby.watch(fake.address, retry=None) as watcher:
            assert (await watcher.portfolio.wait_for("alone", PATIENCE)).name == "alone"


async def test_plain_port_and_tls_port_are_not_taken_for_each_other_nor_is_another_certificate(pki: Path) -> None:
    known, strange = (ssl.create_default_context(cafile=str(pki / name)) for name in ("ca.pem", "other.pem"))
    async with FakeDocker(host="127.0.0.1") as fake:
        await refused(fake.tcp_address, EngineUnavailable, "what answers does not speak TLS", "another port", tls=known)
    async with FakeDocker(host="127.0.0.1", ssl_context=served(pki)) as fake:
        await refused(fake.tcp_address, EngineUnavailable, "lost")
        certificate = "the certificate of the engine is not valid"
        await refused(fake.tcp_address, EngineUnavailable, certificate, "the CA that signed it", tls=strange)
        another_host = fake.tcp_address.replace("127.0.0.1", "localhost")
        await refused(another_host, EngineUnavailable, certificate, "localhost", "an address that it names", tls=known)


@contextmanager
def demanding(tls: ssl.SSLContext) -> Iterator[str]:
    """A server that says, as Docker's does and asyncio's does not, which certificate it misses before it hangs up."""

    def serve() -> None:
        with suppress(OSError):  # the listening socket is closed
            while True:
                connection, _ = listening.accept()
                secured = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                secured.settimeout(PATIENCE)
                with suppress(ssl.SSLError):
                    secured.do_handshake()
                with socket.socket(fileno=secured.detach()) as plain:
                    plain.settimeout(PATIENCE)
                    plain.shutdown(socket.SHUT_WR)
                    while plain.recv(4096):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_client_without_the_certificate_that_is_demanded(version: ssl.TLSVersion, pki: Path) -> None:
    demands = served(pki, clients=True)
    demands.maximum_version = version
    with demanding(demands) as address:
        tls = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        await refused(address, EngineUnavailable, "TLS refused", "client certificate", tls=tls)
