"""The address of a Docker engine: as users give it, or found by Docker's own rules if they give none."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from re import fullmatch, sub
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import attrs

from whalewatch._adapter.unix import MAX_PATH
from whalewatch._core.errors import AddressError
from whalewatch._core.text import printable
from whalewatch._http.dial import Endpoint

__all__ = ["default_endpoint", "endpoint"]

DEFAULT_PORT, DEFAULT_TLS_PORT = 2375, 2376
"""Ports of a Docker engine, without and with TLS (docs.docker.com, dockerd, daemon socket option)."""

DEFAULT_PATH = "/var/run/docker.sock"
"""Path that Docker's own client assumes."""

EXAMPLE = "unix:///run/docker.sock"

log: logging.Logger = logging.getLogger("whalewatch.moby")


def endpoint(address: str, tls: ssl.SSLContext | None = None, *, engine: str = "Docker") -> Endpoint:
    """Read an address: a URL (unix, tcp, http, https, ssh), ``host:port``, or the path of a socket.

    What is left out is as for Docker's own client (measured, 20.10): ``unix://`` is `DEFAULT_PATH`, the host of
    ``tcp://`` is localhost, and white space around an address does not count.

    Raises:
        AddressError: the address is not valid; the message gives a valid one.
    """
    address = address.strip()
    shown = printable(sub("(?s)^([a-z]+://)?.*@", r"\1…@", address))  # the text before the last @ may be a password
    if not address.isprintable():
        msg = f"{shown!r} is not an address of a {engine} engine: it has characters that cannot be printed"
        raise AddressError(msg)
    if address.startswith(("/", "./", "../")):
        address = "unix://" + str(Path(address).absolute())
    if fullmatch("[^/@]*:[0-9]*", address):
        address = f"tcp://{address}"
    elif address.startswith("@"):
        address = f"unix://{address}"
    scheme, found, rest = address.partition("://")
    if not found:
        msg = f"{shown!r} is not an address of a {engine} engine: give a URL such as {EXAMPLE} or tcp://host:2375"
        raise AddressError(msg)
    if scheme == "unix":
        return _local(rest or DEFAULT_PATH, shown)
    if scheme not in {"tcp", "http", "https", "ssh"}:
        msg = f"{shown!r} has the wrong scheme for a {engine} engine: use unix, tcp, http, https or ssh"
        raise AddressError(msg)
    if scheme == "tcp" and rest[:1] in {"", ":", "/"}:
        address = f"tcp://localhost{rest}"
    return _remote(scheme, address, shown, tls)


def _local(path: str, shown: str) -> Endpoint:
    """Read the path of a socket."""
    if not path.startswith("/"):
        what = "is an abstract socket, which cannot be used" if path[0] == "@" else "has no absolute path of a socket"
        msg = f"{shown!r} {what}: give an address such as {EXAMPLE}"
        raise AddressError(msg)
    if len(os.fsencode(path)) > MAX_PATH:
        msg = f"{shown!r} is too long: the path of a socket has {MAX_PATH} bytes at most"
        raise AddressError(msg)
    return Endpoint(address=f"unix://{path}", path=path)


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

    These variables count too: DOCKER_TLS_VERIFY, DOCKER_TLS (without verifying the engine's certificate) and
    DOCKER_CERT_PATH with DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CONFIG and XDG_RUNTIME_DIR (for a rootless engine).

    Raises:
        AddressError: the configured address cannot be used; the message says where it is configured.
    """
    config = _config(environ, home)
    if host := environ.get("DOCKER_HOST", "").strip():
        tls, verify = None, bool(environ.get("DOCKER_TLS_VERIFY"))
        if verify or environ.get("DOCKER_TLS"):
            tls = _tls(Path(environ.get("DOCKER_CERT_PATH") or config), verify=verify)
        return _configured(host, tls, "DOCKER_HOST")
    context = environ.get("DOCKER_CONTEXT") or _current_context(config / "config.json")
    if context and context != "default":
        return _of_context(context, config)
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
    except FileNotFoundError as error:
        msg = f"{where}: {meta} is missing: is the name of the context right?"
        raise AddressError(msg) from error
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{where}: {meta} cannot be read: {error}"
        raise AddressError(msg) from error
    try:
        docker = found["Endpoints"]["docker"]
        host, verify = str(docker["Host"]), not docker.get("SkipTLSVerify", False)
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{where}: {meta} has no Docker endpoint"
        raise AddressError(msg) from error
    certificates = config / "contexts" / "tls" / folder / "docker"
    tls = _tls(certificates, verify=verify) if certificates.is_dir() else None
    return _configured(host, tls, where)


def _configured(address: str, tls: ssl.SSLContext | None, where: str) -> Endpoint:
    try:
        return endpoint(address, tls)
    except AddressError as error:
        msg = f"{where}: {error}"
        raise AddressError(msg) from None  # it says the same


def _current_context(path: Path) -> str:
    """Return the name of the current context; "" if there is none, or, as for Docker's own client, it is unreadable."""
    try:
        return str(_read(path).get("currentContext") or "")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read, and does not count: %s", path, printable(error))
        return ""


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - as for other content that is not right
    return found


def _tls(folder: Path, *, verify: bool) -> ssl.SSLContext:
    """Make a TLS context from the files in one folder of Docker: ca.pem, cert.pem, key.pem, each optional."""
    try:
        ca, cert = folder / "ca.pem", folder / "cert.pem"
        context = ssl.create_default_context(cafile=str(ca) if ca.exists() else None)
        # From Python 3.13 on it is set, and refuses the certificates that Docker's documentation tells how to make:
        # their CA does not say what its key is for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if cert.exists():
            context.load_cert_chain(cert, folder / "key.pem", password="")  # never prompt for an encrypted key
    except OSError as error:  # includes ssl.SSLError
        msg = f"the TLS files in {folder} cannot be used: {error}"
        raise AddressError(msg) from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
