"""Speaks to the daemon for the tests, as the user who runs it; decides and checks nothing.

`python -m tests.live.speaker ADDRESS` reads requests from standard input and writes replies and signals to standard
output, a line of JSON each. A request names a connection, made when first used: several clients in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

from kerntune.dbus.client import Client, Signals, Variant, connect
from kerntune.errors import KerntuneError, Unreachable

LINE = 1 << 20  # bytes
Request = dict[str, Any]


class Speaker:
    """The connections, each made once."""

    def __init__(self, address: str, stack: contextlib.AsyncExitStack) -> None:
        self._address, self._stack = address, stack
        self._clients: dict[tuple[str, int], asyncio.Task[Client]] = {}
        self._listening: set[asyncio.Task[None]] = set()

    async def serve(self, request: Request) -> None:
        """Carry out one request and say what came of it."""
        began = time.monotonic()
        try:
            reply: Request = {"value": await self._do(request)}
        except KerntuneError as error:
            reply = {"error": error.dbus_name, "message": str(error)}
        except Exception as error:  # noqa: BLE001  # the test that asked is told, and fails
            reply = {"error": type(error).__name__, "message": str(error)}
        say({"id": request["id"], "seconds": time.monotonic() - began, **reply})

    async def _do(self, request: Request) -> Any:
        key = request["service"], request["client"]
        if key not in self._clients:
            self._clients[key] = asyncio.create_task(self._connect(request["service"]))
        client = await self._clients[key]
        match request["do"]:
            case "name":
                return client.name
            case "listen":
                signals = client.listen(request["path"])
                await self._stack.enter_async_context(signals)
                self._listening.add(asyncio.create_task(forward(signals, request["client"])))
                return None
            case "call":
                return await client.call(
                    request["path"],
                    request["interface"],
                    request["member"],
                    request["signature"],
                    *arguments(request["signature"], request["args"]),
                    interactive=request["interactive"],
                )
        raise ValueError(f"no such request: {request['do']}")

    async def _connect(self, service: str) -> Client:
        return await self._stack.enter_async_context(connect(service, self._address))


async def forward(signals: Signals, client: int) -> None:
    """Say what is heard, until the bus is lost."""
    with contextlib.suppress(Unreachable):
        async for signal in signals:
            say({"client": client, "signal": signal.member, "args": signal.args})


def arguments(signature: str, values: list[Any]) -> list[Any]:
    """Return JSON as the arguments of a call; a lone variant at the end is written [signature, value]."""
    found = [variants(value) for value in values]
    return [*found[:-1], variant(*values[-1])] if signature.endswith("v") else found


def variants(value: Any) -> Any:
    """Return JSON as a D-Bus value: an object is an a{sv}, each of its values written [signature, value]."""
    if isinstance(value, dict):
        return {key: variant(*inner) for key, inner in value.items()}
    return [variants(inner) for inner in value] if isinstance(value, list) else value


def variant(signature: str, value: Any) -> Variant:
    return Variant(signature, variant(*value) if signature == "v" else variants(value))


def say(line: Request) -> None:
    # A variant in a signal is said as its value.
    sys.stdout.write(json.dumps(line, default=lambda variant: variant.value) + "\n")
    sys.stdout.flush()


async def main(address: str) -> None:
    requests = asyncio.StreamReader(LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    async with contextlib.AsyncExitStack() as stack:
        speaker = Speaker(address, stack)
        work: set[asyncio.Task[None]] = set()
        while line := await requests.readline():
            task = asyncio.create_task(speaker.serve(json.loads(line)))
            work.add(task)
            task.add_done_callback(work.discard)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
