"""Engines behind ssh: the real program, and the real server, which accepts every variable of the environment."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiodocker
import pytest
import uvloop

from tests.http.test_client import RELAY
from tests.support.engines import install
from tests.support.scripted import PATIENCE
from whalewatch import EngineUnavailable, moby
from whalewatch.testing import FakeDocker

uvloop.new_event_loop().close()  # the first one opens a pipe that all others share

PATH = os.pathsep.join(install.search_path(install.OUR_VERSION))

SERVER = """
env >> {home}/local
exec env -i PATH={path} LD_LIBRARY_PATH={libraries} unshare --mount sh -c '
mount --bind {home}/passwd /etc/passwd && mount --bind {home}/shadow /etc/shadow && mount -t tmpfs none /run &&
mkdir /run/sshd && exec {sshd} -i -e -f {home}/sshd_config'
"""
"""One login: root is a user who may log in, whatever the machine says, and the server has the user that it demands."""

SSHD_CONFIG = """
HostKey {home}/host
AuthorizedKeysFile {home}/user.pub
StrictModes no
PermitRootLogin yes
AcceptEnv *
SetEnv PATH={home}/far:/usr/bin:/bin
"""

SSH_CONFIG = """
Host far
    ProxyCommand {home}/server
Host *
    IdentityFile {home}/user
    UserKnownHostsFile {home}/known_hosts
    SendEnv LANG LANGUAGE LC_* COLORTERM NO_COLOR
    SendEnv WANTED
"""
"""What distributions send by default, and what this user wants to be sent."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[[str, str], None]) -> Path:
    """A user who reaches the host "far" by ssh, where the program docker leads to the engine at `engine.sock`."""
    need("ssh", install.OUR_VERSION)
    names = {name: shutil.which(name, path=PATH) for name in ("ssh", "sshd", "ssh-keygen")}
    libraries = install.ld_library_path()
    for key in ("host", "user"):
        command = [str(names["ssh-keygen"]), "-q", "-t", "ed25519", "-N", "", "-f", f"{tmp_path}/{key}"]
        subprocess.run(command, check=True, env={"LD_LIBRARY_PATH": libraries})
    (tmp_path / "far").mkdir()
    scripts = {
        "ssh": f'exec {names["ssh"]} -F {tmp_path}/ssh_config "$@"',
        "server": SERVER.format(home=tmp_path, path=PATH, libraries=libraries, sshd=names["sshd"]),
        "far/docker": f"env >> {tmp_path}/remote\nexec {sys.executable} -c '{RELAY}' {tmp_path}/engine.sock",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "passwd").write_text("root:x:0:0::/root:/bin/sh\nsshd:x:123:65534::/run/sshd:/usr/sbin/nologin\n")
    (tmp_path / "shadow").write_text("root:*:::::::\n")
    (tmp_path / "known_hosts").write_text(f"far {(tmp_path / 'host.pub').read_text()}")
    (tmp_path / "sshd_config").write_text(SSHD_CONFIG.format(home=tmp_path))
    (tmp_path / "ssh_config").write_text(SSH_CONFIG.format(home=tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.live
async def test_ssh_leads_to_the_engine_and_sends_nothing_of_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECRET", "LANG", "LANGUAGE", "LC_ALL", "LC_SECRET", "COLORTERM", "NO_COLOR", "WANTED"):
        monkeypatch.setenv(name, f"value of {name}")
    async with FakeDocker(home / "engine.sock") as fake, moby.watch("ssh://root@far") as watcher:
        await watcher.ready(PATIENCE)
        id = fake.run("far")
        assert (await watcher.portfolio.wait_for("far", PATIENCE)).id == id
        client = watcher.engine.client
        assert isinstance(client, aiodocker.Docker)
        assert [container.id for container in await client.containers.list()] == [id]
    local, remote = [(home / name).read_text() for name in ("local", "remote")]
    assert "SECRET=value of SECRET\n" in local, "what ssh itself has started may need it"
    assert "USER=root\n" in remote
    sent = {line for line in remote.splitlines() if "value of" in line}
    assert sent == {"WANTED=value of WANTED"}, "the user's own configuration has the last word"


@pytest.mark.live
async def test_ssh_that_does_not_connect_says_why(home: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"ssh://nobody@127\.0\.0\.1:1: connection lost .*refused"):
        async with moby.watch("ssh://nobody@127.0.0.1:1", retry=None) as watcher:
            await watcher.ready(PATIENCE)


@pytest.mark.live
def test_ssh_under_uvloop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_ssh_leads_to_the_engine_and_sends_nothing_of_the_environment(home, monkeypatch))
