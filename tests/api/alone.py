"""A service that is on no bus: its connection plays the bus and polkit, and keeps what is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from kerntune import errors
from kerntune.api import names
from kerntune.dbus import messages
from kerntune.dbus.introspection import Interface
from kerntune.dbus.messages import Message, Variant
from kerntune.dbus.name_watch import NameWatch
from kerntune.dbus.server import ServerConnection
from kerntune.dbus.service import Service
from kerntune.dbus.standard import BUS

POLKIT = ":1.2"


class NoBus(ServerConnection):
    """The connection of a service to no bus.

    Every client is of the user `uid`, and there until it `leaves`. Polkit permits the actions in `permitted`. The next
    watches on clients fail with the errors in `fails`.
    """

    def __init__(self, service: Service, uid: int) -> None:
        super().__init__(service._answer, service._heard, service._takes, in_flight=32, address="unix:path=/nowhere")
        self.uid = uid
        self.permitted: Collection[str] = ()
        self.asked: list[str] = []  # the actions that polkit was asked for
        self.questions: list[str] = []  # the methods that were called
        self.sent: list[Message] = []
        self.logged: list[str] = []
        self.gone: set[str] = set()
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
        """Return when every call is answered."""
        while self._tasks:
            await asyncio.gather(*self._tasks)


class Alone(Service):
    """A service on no bus, for callers of the user `uid`."""

    connection: NoBus

    def __init__(self, interfaces: Mapping[str, Interface] | None = None, *, uid: int = 0) -> None:
        super().__init__(interfaces or {}, names.ROOT)
        self.connection = NoBus(self, uid)
        self.clients = NameWatch(self.connection)
        self.connection.open()

    def leaves(self, name: str) -> None:
        """Have a client leave the bus."""
        self.connection.gone.add(name)
        self.clients.owner_changed(BUS, name, name, "")
