"""Users of the host as the tests meet them: what they run, and what they say to the daemon under their own uid.

`python -m tests.live.users ADDRESS` speaks for a user, and decides and checks nothing. It reads requests from standard
input and writes replies and signals to standard output, a line of JSON each. A request names a connection, made when
first used: several clients in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kerntune import errors
from kerntune.api.names import BUS_NAME, HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY, ROOT
from kerntune.dbus.client import Client, Signals, Variant, connect
from kerntune.errors import KerntuneError, Unreachable
from kerntune.tunables import REGISTRY
from tests.harness import CHECKOUT
from tests.harness.polkitd import Bus, as_user

LIMIT: Final = 20.0  # seconds that anything may take
BY_NAME: Final = errors.by_name()
RUNTIME: Final[Mapping[str, Any]] = {}
PERSIST: Final = {"persist": ["b", True]}
PARTIAL: Final = {"allow-partial": ["b", True]}
TUNABLES: Final = tuple(tunable.name for tunable in REGISTRY)

Options = Mapping[str, Any]


def until(holds: Callable[[], Any]) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def public_copy() -> Iterator[Path]:
    """Copy the project to where every user of the host can read it: a checkout may lie in somebody's home."""
    with tempfile.TemporaryDirectory(prefix="kerntune-public-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("src/kerntune", "dbus", "tests"):
            shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call came to: `value`, or the error's D-Bus name and text; and how long it took."""

    value: Any
    error: str
    message: str
    seconds: float

    def get(self) -> Any:
        """The value, or the error raised again."""
        if self.error:
            raise BY_NAME.get(self.error, errors.Failed)(self.message)
        return self.value


@dataclass(frozen=True, slots=True)
class Heard:
    """A signal, and which connection heard it."""

    client: int
    signal: str
    args: list[Any]


class User:
    """A user on a bus. `run` starts a program; the calls go through one process of the user's that keeps connections.

    Options are written as {"persist": ["b", True]}.
    """

    def __init__(self, name: str, bus: Bus, public: Path) -> None:
        self.name, self.bus, self._public = name, bus, public
        self._conversation: _Conversation | None = None
        self._ears = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._conversation is not None:
            self._conversation.close()

    @property
    def environment(self) -> dict[str, str]:
        # The interpreter of a virtual environment may lie out of reach too: its packages are a last resort only.
        places = (self._public / "src", self._public, sysconfig.get_path("purelib"))
        return {
            **os.environ,
            "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address,
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def argv(self, *argv: str) -> list[str]:
        return as_user(self.name, argv)

    def python(self, module: str, *args: str) -> list[str]:
        """Return the command line that runs a module of the project as this user."""
        return self.argv(str(Path(sys.executable).resolve()), "-m", module, *args)

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end, from a folder everybody may be in."""
        return subprocess.run(
            argv, env=env or self.environment, cwd="/", capture_output=True, text=True, timeout=LIMIT, check=False
        )

    def busctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.argv("busctl", *words))

    def kerntune(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.python("kerntune.cli", *words))

    # calls

    def send(
        self,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        path: str = ROOT,
        service: str = BUS_NAME,
        client: int = 0,
        interactive: bool = False,
    ) -> Future[Reply]:
        """Call a method and do not wait."""
        what = {"do": "call", "path": path, "interface": interface, "member": member, "signature": signature}
        return self._ask({**what, "args": args, "interactive": interactive, "service": service, "client": client})

    def reply(self, interface: str, member: str, signature: str = "", *args: Any, **where: Any) -> Reply:
        return self.send(interface, member, signature, *args, **where).result(LIMIT)

    def call(self, interface: str, member: str, signature: str = "", *args: Any, **where: Any) -> list[Any]:
        """Return what the method answers, or raise the typed error."""
        found: list[Any] = self.reply(interface, member, signature, *args, **where).get()
        return found

    def get(self, interface: str, name: str) -> Any:
        """A property."""
        return self.call("org.freedesktop.DBus.Properties", "Get", "ss", interface, name)[0]

    def bus_name(self, *, service: str = BUS_NAME, client: int = 0) -> str:
        """Return the unique name of one of our connections."""
        return str(self._ask({"do": "name", "service": service, "client": client}).result(LIMIT).get())

    def listen(self) -> int:
        """Hear every signal of the daemon from now on, with a connection of its own; its number, for `heard`."""
        self._ears += 1
        self._ask({"do": "listen", "path": ROOT, "service": BUS_NAME, "client": -self._ears}).result(LIMIT).get()
        return -self._ears

    def heard(self, ear: int, until: Callable[[Sequence[Heard]], bool]) -> list[Heard]:
        """Return all signals so far once `until` says that these are enough; AssertionError when that does not come."""
        assert self._conversation is not None, "nobody listens"
        return self._conversation.heard(ear, until)

    def _ask(self, request: dict[str, Any]) -> Future[Reply]:
        if self._conversation is None:
            argv = self.python("tests.live.users", self.bus.address)
            self._conversation = _Conversation(argv, self.environment)
        return self._conversation.ask(request)

    # the daemon's methods

    def set(self, *settings: tuple[str, str, str], options: Options = RUNTIME) -> tuple[bool, list[list[str]]]:
        changed, outcomes = self.call(MANAGER, "Set", "a(sss)a{sv}", [list(row) for row in settings], dict(options))
        return changed, outcomes

    def unset(self, *what: tuple[str, str], options: Options = RUNTIME) -> tuple[bool, list[list[str]]]:
        changed, outcomes = self.call(MANAGER, "Unset", "a(ss)a{sv}", [list(row) for row in what], dict(options))
        return changed, outcomes

    def set_count(self, count: int, options: Options = RUNTIME, *, size: int = 0) -> int:
        return int(self.call(HUGE_PAGES, "SetCount", "tta{sv}", size, count, dict(options))[0])

    def set_scheduler(self, devices: str, scheduler: str, options: Options = RUNTIME) -> list[list[str]]:
        rows: list[list[str]] = self.call(IO_SCHEDULER, "SetScheduler", "ssa{sv}", devices, scheduler, dict(options))[0]
        return rows

    def set_overcommit(self, mode: str, ratio: int = 0, options: Options = RUNTIME) -> list[list[str]]:
        rows: list[list[str]] = self.call(MEMORY, "SetOvercommit", "sua{sv}", mode, ratio, dict(options))[0]
        return rows

    def describe(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.call(MANAGER, "Describe")[0])
        return document

    def claims(self) -> dict[str, str]:
        """Return claim id -> value."""
        return {claim["id"]: claim["value"] for claim in self.describe()["claims"]}

    def release(self) -> None:
        """Withdraw every claim there is."""
        for options in (RUNTIME, PERSIST):
            self.unset(*((tunable, "*") for tunable in TUNABLES), options=options)


class _Conversation:
    """Runs a Speaker in a process of the user's; a thread sorts what that says."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            argv, env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._change = threading.Condition()
        self._waiting: dict[int, Future[Reply]] = {}
        self._heard: list[Heard] = []
        self._asked = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def ask(self, request: dict[str, Any]) -> Future[Reply]:
        assert self._process.stdin is not None
        reply: Future[Reply] = Future()
        with self._change:
            self._asked += 1
            self._waiting[self._asked] = reply
            self._process.stdin.write(json.dumps({"id": self._asked, **request}) + "\n")
            self._process.stdin.flush()
        return reply

    def heard(self, ear: int, until: Callable[[Sequence[Heard]], bool]) -> list[Heard]:
        deadline = time.monotonic() + LIMIT
        with self._change:
            while not until(own := [heard for heard in self._heard if heard.client == ear]):
                assert self._change.wait(deadline - time.monotonic()), f"heard only {own}"
            return own

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(LIMIT)
        self._thread.join(LIMIT)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._take(json.loads(line))
        with self._change:
            for reply in self._waiting.values():
                reply.set_exception(RuntimeError("the speaker ended"))

    def _take(self, said: dict[str, Any]) -> None:
        with self._change:
            if "signal" in said:
                self._heard.append(Heard(said["client"], said["signal"], said["args"]))
                self._change.notify_all()
                return
            reply = self._waiting.pop(said["id"])
        reply.set_result(Reply(said.get("value"), said.get("error", ""), said.get("message", ""), said["seconds"]))


# What runs as the user


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
