"""What of Docker's own configuration leads to an engine, and how."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import make_certificates
from tests.support.docker_contexts import context
from whalewatch import AddressError
from whalewatch.moby.address import MAX_CONFIGURATION, MAX_MESSAGE, default_endpoint, endpoint


def test_configuration_that_cannot_be_read_is_a_warning_and_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / ".docker" / "config.json"
    file.parent.mkdir()
    many = "9" * 5000
    broken = (
        *("", "{", "[]", "17", "null", "\xff", "[" * 100_000, " " * (MAX_CONFIGURATION + 1)),
        *('{"currentContext": 7}', '{"currentContext": ["a"]}', f'{{"a": {many}}}'),
    )
    for content in broken:
        file.write_text(content, "latin-1")
        assert default_endpoint({}, tmp_path).path is not None, "a well-known socket"
    file.unlink()
    file.mkdir()
    assert default_endpoint({}, tmp_path).path is not None
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == len(broken) + 1
    assert all(f"{file} cannot be read" in one and one.isprintable() for one in told)


NAMES = ("a\udcff", "\ud800", "\x1b[2J", "../../x", "a b", "", "é", "x\n", "n" * 2_000_000)


@pytest.mark.parametrize("name", [*NAMES[:-1], pytest.param(NAMES[-1], id="gigantic")])
@pytest.mark.parametrize("where", ["DOCKER_CONTEXT", "config.json"])
def test_name_that_no_context_can_have_is_refused(name: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": name if where == "config.json" else "other"}))
    environ = {"DOCKER_CONFIG": str(tmp_path), **({"DOCKER_CONTEXT": name} if where == "DOCKER_CONTEXT" else {})}
    if where == "config.json" and (not name.strip() or len(name) > MAX_CONFIGURATION):
        assert default_endpoint(environ).path is not None, "a well-known socket"
        return
    with pytest.raises(AddressError) as caught:
        default_endpoint(environ)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= MAX_MESSAGE


META = {
    "not UTF-8": b'{"Endpoints": {"docker": {"Host": "\xff"}}}',
    "lone surrogate": rb'{"Endpoints": {"docker": {"Host": "unix:///\ud800"}}}',
    "escapes": rb'{"Endpoints": {"docker": {"Host": "tcp://\u001b[2J\nforged"}}}',
    "deep": b'{"Endpoints": ' + b"[" * 100_000,
    "deep host": b'{"Endpoints": {"docker": {"Host": ' + b"[" * 900 + b"]" * 900 + b"}}}",
    "number": b'{"Endpoints": ' + b"9" * 5000 + b"}",
    "gigantic": b'{"Endpoints": {"docker": {"Host": "tcp://host"}}}' + b" " * MAX_CONFIGURATION,
}


@pytest.mark.parametrize("content", META.values(), ids=META)
def test_context_that_cannot_be_used_is_refused(content: bytes, tmp_path: Path) -> None:
    context(tmp_path, "odd", {"Host": "tcp://host"})
    environ = {"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "odd"}
    default_endpoint(environ)
    next(tmp_path.rglob("meta.json")).write_bytes(content)
    with pytest.raises(AddressError, match="Docker context 'odd'") as caught:
        default_endpoint(environ)
    assert str(caught.value).isprintable()


def test_variables_that_cannot_be_printed_raise_nothing_else_and_are_shown_escaped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "\x1b[2J\nforged"
    for name in ("config.json", "ca.pem"):
        (folder / name).mkdir(parents=True)
    tls = {"DOCKER_HOST": "tcp://host", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)}
    for odd in ("\udcff", "\ud800", "\x1b[2J\nforged"):
        for environ in ({"DOCKER_HOST": odd}, {"DOCKER_CONFIG": f"/{odd}", "DOCKER_CONTEXT": "x"}, tls):
            with pytest.raises(AddressError) as caught:
                default_endpoint(environ)
            assert str(caught.value).isprintable()
        for environ in ({"DOCKER_CONFIG": str(folder)}, {"XDG_RUNTIME_DIR": odd}, {"DOCKER_CONFIG": odd}):
            assert default_endpoint(environ, tmp_path).path is not None
    assert caplog.records
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_folder_that_is_gone_or_cannot_be_printed_is_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "\x1b[2J"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for there in (True, False):
        if not there:
            folder.rmdir()
        with pytest.raises(AddressError, match=r"characters|folder") as caught:
            endpoint("./docker.sock")
        assert str(caught.value).isprintable()


def test_tls_without_verification_is_what_docker_tls_says(tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls")
    environ = {"DOCKER_HOST": "tcp://host", "DOCKER_CERT_PATH": f"{tmp_path}/tls"}
    for more, mode in (({}, ssl.CERT_NONE), ({"DOCKER_TLS_VERIFY": "1"}, ssl.CERT_REQUIRED)):
        found = default_endpoint({**environ, "DOCKER_TLS": "1", **more})
        assert found.tls is not None
        assert (found.tls.verify_mode, found.address) == (mode, "tcp://host:2376")
    assert default_endpoint({**environ, "DOCKER_TLS": ""}).tls is None
