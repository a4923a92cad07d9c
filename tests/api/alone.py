"""A service that is on no bus, and the calls of the API on it: a made-up connection plays the bus and polkit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from kerntune import errors
from kerntune.api import names
from kerntune.api.calls import Calls
from kerntune.api.describe import Host
from kerntune.config.active import ActiveConfig
from kerntune.dbus import messages
from kerntune.dbus.introspection import Interface
from kerntune.dbus.messages import Message, Variant
from kerntune.dbus.name_watch import NameWatch
from kerntune.dbus.server import ServerConnection
from kerntune.dbus.service import Service
from kerntune.dbus.standard import BUS
from kerntune.engine.claims import Selection
from kerntune.engine.results import Answer
from kerntune.guard.guard import MemoryGuard
from kerntune.model import Setting
from tests.unit.lab import BOUND, Lab

POLKIT = ":1.2"
Answering = Callable[[Message], Awaitable[Message]]
Hearing = Callable[[Message], None]
Taking = Callable[[Message], bool]


class NoBus(ServerConnection):
    """The connection of a service to no bus.

    Every client is of the user `uid`, and stays until it `leaves`. Polkit permits the actions in `permitted`. The next
    watches on clients fail with the errors in `fails`.
    """

    def __init__(self, answer: Answering, heard: Hearing, takes: Taking, uid: int) -> None:
        super().__init__(answer, heard, takes, in_flight=32, address="unix:path=/nowhere")
        self.uid = uid
        self.permitted: Collection[str] = ()
        self.asked: list[str] = []  # the actions that polkit was asked for
        self.questions: list[str] = []  # the methods that were called
        self.sent: list[Message] = []
        self.logged: list[str] = []
        self.gone: set[str] = set()
        self.watched: asyncio.Queue[str] = asyncio.Queue()  # the rules of watches that have succeeded
        self.fails: list[Exception] = []

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float | None,
        interactive: bool = False,
        start: bool = True,
    ) -> list[Any]:
        self.questions.append(member)
        if member == "AddMatch":
            if self.fails:
                raise self.fails.pop()
            self.watched.put_nowait(args[0])
            return []
        if member == "CheckAuthorization":
            assert destination == POLKIT
            self.asked.append(args[1])
            return [[args[1] in self.permitted, False, {}]]
        if member == "GetConnectionCredentials":
            if args[0] in self.gone:
                raise errors.Unreachable(f"{args[0]} has no owner")
            return [{"UnixUserID": Variant("u", self.uid), "ProcessID": Variant("u", 1)}]
        answers = {"GetId": "this bus", "NameHasOwner": args[:1] and args[0] not in self.gone, "GetNameOwner": POLKIT}
        return [answers[member]]

    def post(self, data: bytes) -> None:
        self.sent.append(messages.parse(data))

    def log_ratelimited(self, kind: str, text: str) -> None:
        self.logged.append(f"{kind}: {text}")

    def receive(self, message: Message) -> None:
        """Take a message as if the bus had sent it."""
        self._handle(message, self.uid, len(messages.marshalled(message)))

    async def rest(self) -> None:
        """Wait until every call is answered."""
        while self._tasks:
            await asyncio.gather(*self._tasks)


class Alone(Service):
    """A service on no bus, for callers of the user `uid`."""

    connection: NoBus

    def __init__(self, interfaces: Mapping[str, Interface] | None = None, *, uid: int = 0) -> None:
        super().__init__(interfaces or {}, names.ROOT)
        self.connection = NoBus(self._answer, self._heard, self._takes, uid)
        self.clients = NameWatch(self.connection)
        self.connection.open()

    def leaves(self, name: str) -> None:
        """Have a client leave the bus."""
        self.connection.gone.add(name)
        self.clients.owner_changed(BUS, name, name, "")

    async def is_watched(self, name: str) -> None:
        """Wait until the bus is asked to tell when a client leaves."""
        async with asyncio.timeout(BOUND):
            while f"'{name}'" not in await self.connection.watched.get():
                pass


class NoFiles(ActiveConfig):
    """A configuration without files; it keeps the calls that would have changed it in `done`.

    A selection takes until `ready` is set.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.ready = asyncio.Event()
        self.ready.set()
        self.fails: errors.KerntuneError | None = None

    async def settings_of(self, profile: str) -> list[Setting]:
        return []

    async def check(self, selection: Selection) -> None:
        pass

    async def plan(self, selection: Selection) -> Answer:
        return Answer(False, ())

    async def plan_reload(self) -> Answer:
        return Answer(False, ())

    async def listing(self) -> list[tuple[str, str]]:
        return []

    async def choose(self, selection: Selection, cause: str, progress: object = None, **_: object) -> Answer:
        if self.fails:
            raise self.fails
        await self.ready.wait()
        self.done.append(cause)
        return Answer(True, ())

    async def reload(self) -> None:
        self.done.append("Reload")


def calls_on(service: Alone, lab: Lab, files: NoFiles) -> Calls:
    """Return the calls of a daemon with this engine."""
    guard = MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_told: None)
    return Calls(service, lab.engine, Host("6.1", "/", True, 2 << 20), set(), files, guard=guard)
