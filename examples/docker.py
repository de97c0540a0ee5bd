import asyncio, contextlib

from whalewatch import moby


async def main() -> None:
    async with moby.watch() as watcher:
        async for event in watcher.events():  # what is alive, then what happens
            print(event.type.value, repr(event.container.name), event.container.pid)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
