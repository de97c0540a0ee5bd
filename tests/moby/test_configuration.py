"""What of Docker's own configuration leads to an engine, and how."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.support.certificates import make_certificates
from whalewatch.moby.address import default_endpoint


def test_configuration_that_cannot_be_read_is_a_warning_and_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / ".docker" / "config.json"
    file.parent.mkdir()
    broken = ("", "{", "[]", "17", "null", "\xff", "[" * 100_000)
    for content in broken:
        file.write_text(content, "latin-1")
        assert default_endpoint({}, tmp_path).path is not None, "a well-known socket"
    file.unlink()
    file.mkdir()
    assert default_endpoint({}, tmp_path).path is not None
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == len(broken) + 1
    assert all(f"{file} cannot be read" in one and one.isprintable() for one in told)


def test_tls_without_verification_is_what_docker_tls_says(tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls")
    environ = {"DOCKER_HOST": "tcp://host", "DOCKER_CERT_PATH": f"{tmp_path}/tls"}
    for more, mode in (({}, ssl.CERT_NONE), ({"DOCKER_TLS_VERIFY": "1"}, ssl.CERT_REQUIRED)):
        found = default_endpoint({**environ, "DOCKER_TLS": "1", **more})
        assert found.tls is not None
        assert (found.tls.verify_mode, found.address) == (mode, "tcp://host:2376")
    assert default_endpoint({**environ, "DOCKER_TLS": ""}).tls is None
