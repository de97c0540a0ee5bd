"""TLS with Docker's own files, which newer Pythons are stricter about than Docker is."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_certificates
from tests.support.docker_contexts import context
from tests.support.scripted import PATIENCE
from whalewatch import EngineUnavailable, moby
from whalewatch.testing import FakeDocker


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python be as strict as it is from 3.13 on."""
    make = ssl.create_default_context

    def strictly(*arguments: Any, **options: Any) -> ssl.SSLContext:
        made = make(*arguments, **options)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    monkeypatch.setattr(ssl, "create_default_context", strictly)


@pytest.mark.usefixtures("strict")
async def test_certificates_made_as_docker_documents_it_are_good_for_its_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificates(tmp_path / "pki", strict=False)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(tmp_path / "pki" / "server-cert.pem", tmp_path / "pki" / "server-key.pem")
    async with FakeDocker(host="127.0.0.1", ssl_context=served) as fake:
        files = context(tmp_path / "config", "far", {"Host": fake.tcp_address})
        shutil.copytree(tmp_path / "pki", files)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "pki"))
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        for variable, value in (("DOCKER_HOST", fake.tcp_address), ("DOCKER_CONTEXT", "far")):
            monkeypatch.setenv(variable, value)
            async with moby.watch(retry=None) as watcher:
                await watcher.ready(PATIENCE)
            monkeypatch.delenv(variable)
        ours = ssl.create_default_context(cafile=str(tmp_path / "pki" / "ca.pem"))
        async with moby.watch(fake.tcp_address, tls=ours, retry=None) as watcher:
            with pytest.raises(EngineUnavailable, match=r"certificate of the engine .*VERIFY_X509_STRICT"):
                await watcher.ready(PATIENCE)
