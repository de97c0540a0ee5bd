"""Show what is alive in a Docker engine on a web page: cd examples; gunicorn --config python:web web:app."""

from __future__ import annotations

from contextlib import ExitStack

import flask

import whalewatch
from whalewatch import moby

# gunicorn takes its settings and hooks from this module, too.
workers, threads = 2, 4

app = flask.Flask(__name__)
watcher = whalewatch.in_thread(moby.watch())
entered = ExitStack()


def post_fork(_server: object, _worker: object) -> None:
    """Watch in each worker: no thread survives a fork."""
    entered.enter_context(watcher)


def worker_exit(_server: object, _worker: object) -> None:
    """Leave when the worker ends."""
    entered.close()


@app.get("/")
def alive() -> dict[str, int | None]:
    """Answer from memory; only the first requests may have to wait for the engine."""
    watcher.ready(timeout=5)
    return {container.name: container.pid for container in watcher.containers()}


@app.errorhandler(whalewatch.WhalewatchError)
def unavailable(error: whalewatch.WhalewatchError) -> tuple[dict[str, str], int]:
    """Say why nothing is known yet."""
    return {"error": str(error)}, 503
