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
from re import fullmatch, search, sub
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import attrs

from whalewatch._adapter.unix import MAX_PATH
from whalewatch._core.errors import AddressError
from whalewatch._core.text import logger, printable
from whalewatch._http.dial import Endpoint

__all__ = ["default_endpoint", "endpoint"]

DEFAULT_PORT, DEFAULT_TLS_PORT = 2375, 2376
"""Ports of a Docker engine, without and with TLS (docs.docker.com, dockerd, daemon socket option)."""

DEFAULT_PATH = "/var/run/docker.sock"
"""Path that Docker's own client assumes."""

EXAMPLE = "unix:///run/docker.sock"

HOST, SCOPE = "[0-9A-Za-z_.:][0-9A-Za-z_.:-]*", "[0-9A-Za-z_.-]+"
"""What a host consists of, in ASCII, and the scope id of an IPv6 address after its %."""

NO_USER = r"""^-|\s-|\\$|['"`$;&<>|(){}]"""
"""What a user of ssh must not have: options, and what a shell takes for more than text, because ssh's configuration may
hand the user to one (as OpenSSH since 9.6)."""

CONTEXT = "[0-9A-Za-z][0-9A-Za-z_.+-]*"
"""A name of a context (docker/cli, cli/context/store)."""

MAX_CONFIGURATION = 1024 * 1024
"""Most bytes of a file of Docker's configuration."""

MAX_MESSAGE = 1000
"""Most characters of what is said of an address."""

log: logging.Logger = logger("whalewatch.moby")


def _wrong(why: str) -> AddressError:
    return AddressError(printable(why, MAX_MESSAGE))


def endpoint(address: str, tls: ssl.SSLContext | None = None, *, engine: str = "Docker") -> Endpoint:
    """Read an address: a URL (unix, tcp, http, https, ssh), ``host:port``, or the path of a socket.

    What is left out is as for Docker's own client (measured, 20.10): ``unix://`` is `DEFAULT_PATH`, the host of
    ``tcp://`` is localhost, and white space around an address does not count.

    Raises:
        AddressError: the address is not valid; the message gives a valid one.
    """
    address = address.strip()
    shown = printable(sub("(?s)^([a-z]+://)?.*@", r"\1…@", address))  # the text before the last @ may be a password
    if address.startswith(("/", "./", "../")):
        try:
            address = "unix://" + str(Path(address).absolute())
        except OSError as error:
            raise _wrong(f"{shown!r} is relative to a folder that is not there ({error})") from error
    if not address.isprintable():
        raise _wrong(f"{shown!r} is not an address of a {engine} engine: it has characters that cannot be printed")
    if fullmatch("[^/@]*:[0-9]*", address):
        address = f"tcp://{address}"
    elif address.startswith("@"):
        address = f"unix://{address}"
    scheme, found, rest = address.partition("://")
    if not found:
        example = f"{EXAMPLE} or tcp://host:2375"
        raise _wrong(f"{shown!r} is not an address of a {engine} engine: give a URL such as {example}")
    if scheme == "unix":
        return _local(rest or DEFAULT_PATH, shown)
    if scheme not in {"tcp", "http", "https", "ssh"}:
        raise _wrong(f"{shown!r} has the wrong scheme for a {engine} engine: use unix, tcp, http, https or ssh")
    if scheme == "tcp" and rest[:1] in {"", ":", "/"}:
        address = f"tcp://localhost{rest}"
    return _remote(scheme, address, shown, tls)


def _local(path: str, shown: str) -> Endpoint:
    """Read the path of a socket."""
    if not path.startswith("/"):
        what = "is an abstract socket, which cannot be used" if path[0] == "@" else "has no absolute path of a socket"
        raise _wrong(f"{shown!r} {what}: give an address such as {EXAMPLE}")
    if len(os.fsencode(path)) > MAX_PATH:
        raise _wrong(f"{shown!r} is too long: the path of a socket has {MAX_PATH} bytes at most")
    return Endpoint(address=f"unix://{path}", path=path)


def _remote(scheme: str, address: str, shown: str, tls: ssl.SSLContext | None) -> Endpoint:
    """Read an address with a host."""
    try:
        parts = urlsplit(address)
        name, percent, scope = (parts.hostname or "").partition("%")
        host, port = name.encode("idna").decode(), parts.port
        given = parts.netloc.rpartition("@")[2]
        if host and not fullmatch(r"(\[[^\[\]]*\]|[^\[\]:]*)(:[0-9]*)?", given):
            raise ValueError  # noqa: TRY301 - as the others
        if (host and not fullmatch(HOST, host)) or (percent and not (":" in host and fullmatch(SCOPE, scope))):
            raise ValueError  # noqa: TRY301 - as the others
    except ValueError:  # not chained: its text may quote a part of a password
        raise _wrong(f"{shown!r} is not an address: its host or its port is not valid") from None
    if not host:
        raise _wrong(f"{shown!r} has no host: give an address such as tcp://host:2375")
    if not unquote(parts.path).isprintable():
        raise _wrong(f"{shown!r} is not an address: its path has characters that cannot be printed")
    path = quote(parts.path.rstrip("/"), safe="/%")
    if scheme == "ssh":
        return _ssh(parts, shown)
    if scheme == "https" and tls is None:
        tls = ssl.create_default_context()
    port = port or (DEFAULT_TLS_PORT if tls else DEFAULT_PORT)
    found = Endpoint(address="", host=f"{host}{percent}{scope}", port=port, prefix=path, tls=tls)
    return attrs.evolve(found, address=f"{scheme}://{found.netloc}{path}")


def _ssh(parts: SplitResult, shown: str) -> Endpoint:
    """Connect as Docker's own client does: run it on the other host, where it passes our bytes to the engine.

    The program ssh reads the user's configuration, as always. Nothing of the address can be taken for one of its
    options, or for a command of the other host's shell.
    """
    user = unquote(parts.username or "")
    host = sub(r":[0-9]*$", "", parts.netloc.rpartition("@")[2]).strip("[]")  # as it is written in ssh's configuration
    if parts.password is not None:
        raise _wrong(f"{shown!r} has a password, which ssh does not take: use a key")
    path = unquote(parts.path)
    if not user.isprintable() or search(NO_USER, user) or not host.isascii():
        raise _wrong(f"{shown!r} is not an address: its user or host has what ssh or a shell could misread")
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
    where = f"Docker context {printable(context)!r}"
    if not fullmatch(CONTEXT, context):
        raise _wrong(f"{where}: that is not a name of a context: correct DOCKER_CONTEXT, or the configuration")
    folder = hashlib.sha256(context.encode()).hexdigest()
    meta = config / "contexts" / "meta" / folder / "meta.json"
    try:
        found = _read(meta)
    except FileNotFoundError as error:
        raise _wrong(f"{where}: {meta} is missing: is the name of the context right?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(f"{where}: {meta} cannot be read: {error}") from error
    try:
        docker = found["Endpoints"]["docker"]
        host, verify = docker["Host"].strip(), not docker.get("SkipTLSVerify", False)
    except (KeyError, TypeError, AttributeError) as error:
        raise _wrong(f"{where}: {meta} has no Docker endpoint") from error
    certificates = config / "contexts" / "tls" / folder / "docker"
    tls = _tls(certificates, verify=verify) if certificates.is_dir() else None
    return _configured(host, tls, where)


def _configured(address: str, tls: ssl.SSLContext | None, where: str) -> Endpoint:
    try:
        return endpoint(address, tls)
    except AddressError as error:
        raise _wrong(f"{where}: {error}") from None  # it says the same


def _current_context(path: Path) -> str:
    """Return the name of the current context; "" if there is none, or, as for Docker's own client, it is unreadable."""
    try:
        return (_read(path).get("currentContext") or "").strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be read, and does not count: %s", printable(path), printable(error))
        return ""


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(MAX_CONFIGURATION + 1)
    if len(content) > MAX_CONFIGURATION:
        raise ValueError(f"it is larger than {MAX_CONFIGURATION >> 20} MiB")
    found = json.loads(content)
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
    except (OSError, ValueError) as error:  # includes ssl.SSLError
        raise _wrong(f"the TLS files in {folder} cannot be used: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
