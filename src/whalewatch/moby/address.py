"""The address of a Docker engine: as users give it, or found by Docker's own rules if they give none."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from re import sub
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import attrs

from whalewatch._core.errors import AddressError
from whalewatch._core.text import printable
from whalewatch._http.dial import Endpoint

__all__ = ["default_endpoint", "endpoint"]

DEFAULT_PORT, DEFAULT_TLS_PORT = 2375, 2376
"""Ports that Docker's own client assumes."""


def endpoint(address: str, tls: ssl.SSLContext | None = None, *, engine: str = "Docker") -> Endpoint:
    """Read an address: a URL (unix, tcp, http, https, ssh), or the path of a socket.

    Raises:
        AddressError: the address is not valid; the message gives a valid one.
    """
    shown = printable(sub("(?s)^([a-z]+://)?.*@", r"\1…@", address))  # the text before the last @ may be a password
    if not address.isprintable():
        msg = f"{shown!r} is not an address of a {engine} engine: it has characters that cannot be printed"
        raise AddressError(msg)
    if address.startswith(("/", "./", "../")):
        address = "unix://" + str(Path(address).absolute())
    scheme, found, rest = address.partition("://")
    if not found:
        example = "unix:///run/docker.sock or tcp://host:2375"
        msg = f"{shown!r} is not an address of a {engine} engine: give a URL such as {example}"
        raise AddressError(msg)
    if scheme == "unix":
        if not rest.startswith("/"):
            msg = f"{shown!r} has no absolute path of a socket: give an address such as unix:///run/docker.sock"
            raise AddressError(msg)
        return Endpoint(address=address, path=rest)
    if scheme not in {"tcp", "http", "https", "ssh"}:
        msg = f"{shown!r} has the wrong scheme for a {engine} engine: use unix, tcp, http, https or ssh"
        raise AddressError(msg)
    return _remote(scheme, address, shown, tls)


def _remote(scheme: str, address: str, shown: str, tls: ssl.SSLContext | None) -> Endpoint:
    """Read an address with a host."""
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:  # not chained: its text may quote a part of a password
        msg = f"{shown!r} is not an address: its host or its port is not valid"
        raise AddressError(msg) from None
    if not host:
        msg = f"{shown!r} has no host: give an address such as tcp://host:2375"
        raise AddressError(msg)
    path = quote(parts.path.rstrip("/"), safe="/%")
    if scheme == "ssh":
        return _ssh(parts, shown)
    if scheme == "https" and tls is None:
        tls = ssl.create_default_context()
    port = port or (DEFAULT_TLS_PORT if tls else DEFAULT_PORT)
    found = Endpoint(address="", host=host, port=port, prefix=path, tls=tls)
    return attrs.evolve(found, address=f"{scheme}://{found.netloc}{path}")


def _ssh(parts: SplitResult, shown: str) -> Endpoint:
    """Connect as Docker's own client does: run it on the other host, where it passes our bytes to the engine.

    The program ssh reads the user's configuration, as always. Nothing of the address can be taken for one of its
    options, or for a command of the other host's shell.
    """
    user = unquote(parts.username or "")
    host = sub(r":[0-9]*$", "", parts.netloc.rpartition("@")[2]).strip("[]")  # as it is written in ssh's configuration
    if parts.password is not None:
        msg = f"{shown!r} has a password, which ssh does not take: use a key"
        raise AddressError(msg)
    path = unquote(parts.path)
    if not f"{user}{path}".isprintable() or user.startswith("-") or host.startswith("-"):
        msg = f"{shown!r} is not an address: its user or its host begins with '-', or it cannot be printed"
        raise AddressError(msg)
    command = ["docker", *(["--host", f"unix://{path}"] if path.strip("/") else []), "system", "dial-stdio"]
    return Endpoint(
        address=parts.geturl(),
        command=[
            *("ssh", "-T"),
            *(("-l", user) if user else ()),
            *(("-p", str(parts.port)) if parts.port else ()),
            *("--", host, shlex.join(command)),
        ],
    )


def default_endpoint(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Endpoint:
    """Find the engine as Docker's own client does: DOCKER_HOST, then the current context, then the well-known sockets.

    These variables count too: DOCKER_TLS_VERIFY and DOCKER_CERT_PATH with DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CONFIG
    and XDG_RUNTIME_DIR (for a rootless engine).

    Raises:
        AddressError: the configured address cannot be used; the message says where it is configured.
    """
    config = _config(environ, home)
    if host := environ.get("DOCKER_HOST"):
        tls = None
        if environ.get("DOCKER_TLS_VERIFY"):
            tls = _tls(Path(environ.get("DOCKER_CERT_PATH") or config), verify=True)
        try:
            return endpoint(host, tls)
        except AddressError as error:
            msg = f"DOCKER_HOST: {error}"
            raise AddressError(msg) from error
    context = environ.get("DOCKER_CONTEXT") or _read(config / "config.json", {}).get("currentContext")
    if context and context != "default":
        return _of_context(str(context), config)
    runtime = environ.get("XDG_RUNTIME_DIR")
    candidates = [Path("/run/docker.sock"), Path("/var/run/docker.sock")]
    if runtime:
        candidates.append(Path(runtime) / "docker.sock")
    return endpoint(str(_first_socket([*candidates, config / "run/docker.sock"])))


def _config(environ: Mapping[str, str], home: Path | None) -> Path:
    """Return the configuration folder of Docker's own client; for a user without a home, one that does not exist."""
    if configured := environ.get("DOCKER_CONFIG"):
        return Path(configured)
    try:
        return (home or Path.home()) / ".docker"
    except RuntimeError:
        return Path("/nonexistent/.docker")


def _first_socket(candidates: Sequence[Path]) -> Path:
    """Return the first socket that exists; if none does, the first candidate, for the error message."""
    for path in candidates:
        try:
            if path.is_socket():
                return path
        except OSError:
            continue
    return candidates[0]


def _of_context(context: str, config: Path) -> Endpoint:
    # The CLI stores a context in a folder named by the SHA-256 of the context's name.
    folder = hashlib.sha256(context.encode()).hexdigest()
    meta = config / "contexts" / "meta" / folder / "meta.json"
    where = f"Docker context {printable(context)!r}"
    try:
        found = _read(meta)
    except AddressError as error:
        msg = f"{where}: {error}"
        raise AddressError(msg) from error
    try:
        docker = found["Endpoints"]["docker"]
        host, verify = str(docker["Host"]), not docker.get("SkipTLSVerify", False)
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{where}: {meta} has no Docker endpoint"
        raise AddressError(msg) from error
    certificates = config / "contexts" / "tls" / folder / "docker"
    tls = _tls(certificates, verify=verify) if certificates.is_dir() else None
    try:
        return endpoint(host, tls)
    except AddressError as error:
        msg = f"{where}: {error}"
        raise AddressError(msg) from error


def _read(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if default is not None:
            return default
        msg = f"{path} is missing: is the name of the context right?"
        raise AddressError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise AddressError(msg) from error
    if not isinstance(found, dict):
        msg = f"{path} has no JSON object in it"
        raise AddressError(msg)
    return found


def _tls(folder: Path, *, verify: bool) -> ssl.SSLContext:
    """Make a TLS context from the files in one folder of Docker: ca.pem, cert.pem, key.pem, each optional."""
    try:
        ca, cert = folder / "ca.pem", folder / "cert.pem"
        context = ssl.create_default_context(cafile=str(ca) if ca.exists() else None)
        if cert.exists():
            context.load_cert_chain(cert, folder / "key.pem", password="")  # never prompt for an encrypted key
    except OSError as error:  # includes ssl.SSLError
        msg = f"the TLS files in {folder} cannot be used: {error}"
        raise AddressError(msg) from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
