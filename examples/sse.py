"""Serve the containers as JSON, and what happens as server-sent events: uvicorn examples.sse:app.

DOCKER_HOST is the engine. uvicorn waits for streams that are open before it ends the application, so the watch is
closed at the first signal: that ends them.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from whalewatch import Watcher, moby


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Watch while the application runs."""
    async with moby.watch() as watcher:
        app.state.watcher = watcher
        close_at_signals(watcher)
        yield


def close_at_signals(watcher: Watcher[Any]) -> None:
    """Close the watch before uvicorn handles a signal."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        uvicorns: Any = signal.getsignal(number)

        def handle(number: int, frame: FrameType | None, then: Any = uvicorns) -> None:
            asyncio.run_coroutine_threadsafe(watcher.aclose(), loop)
            then(number, frame)

        signal.signal(number, handle)


app = FastAPI(lifespan=lifespan)


@app.get("/containers")
async def containers() -> dict[str, Any]:
    """Return the picture."""
    watcher: Watcher[Any] = app.state.watcher
    await watcher.ready(10)
    return watcher.portfolio.snapshot().to_dict()


@app.get("/events")
async def events() -> StreamingResponse:
    """Stream events, beginning with what is alive."""

    async def lines() -> AsyncIterator[str]:
        async with app.state.watcher.events() as events:
            async for event in events:
                yield f"data: {json.dumps(event.to_dict())}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")
