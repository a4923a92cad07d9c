#!/usr/bin/python3
"""polkit-agent PASSWORD COMMAND...: runs the command in this session, and answers when polkit asks for root's password.

It says on standard error what it was asked, `asked: ACTION: MESSAGE`; with an empty password it cancels
(polkit's org.freedesktop.PolicyKit1.AuthenticationAgent, and what its polkit-agent-helper-1 reads).
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

HELPER = "/usr/lib/polkit-1/polkit-agent-helper-1"
# From polkit 127 on systemd starts it for who connects, and it is not setuid root any more.
SOCKET = "/run/polkit/agent-helper.socket"
POLKIT = "org.freedesktop.PolicyKit1"
HERE = "/org/kerntune/test/agent"


class Agent:
    def __init__(self, bus: Any, password: str) -> None:
        self._bus, self._password = bus, password
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, call: Message) -> bool:
        """Whether the message was for us."""
        if call.message_type is not MessageType.METHOD_CALL or call.path != HERE:
            return False
        self._tasks.add(asyncio.create_task(self._answer(call)))
        return True

    async def _answer(self, call: Message) -> None:
        if call.member == "BeginAuthentication":
            action, message, _icon, _details, cookie, _identities = call.body
            sys.stderr.write(f"asked: {action}: {message}\n")
            if not self._password:
                await self._bus.send(Message.new_error(call, f"{POLKIT}.Error.Cancelled", "not now"))
                return
            await asyncio.to_thread(self._identify, cookie)
        await self._bus.send(Message.new_method_return(call))

    def _identify(self, cookie: str) -> None:
        """The helper tells polkit whether the password was right."""
        said = f"{cookie}\n{self._password}\n"
        if os.path.exists(SOCKET):
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(30)
                line.connect(SOCKET)
                line.sendall(f"root\n{said}".encode())
                while line.recv(4096):
                    pass
            return
        subprocess.run([HELPER, "root"], input=said, text=True, stdout=subprocess.DEVNULL, timeout=30, check=False)


async def main() -> int:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(Agent(bus, sys.argv[1]).take)
    session = ["unix-session", {"session-id": Variant("s", os.environ["XDG_SESSION_ID"])}]
    path, authority = f"/{POLKIT.replace('.', '/')}/Authority", f"{POLKIT}.Authority"
    register = Message(POLKIT, path, authority, "RegisterAuthenticationAgent", signature="(sa{sv})ss")
    register.body = [session, "C", HERE]
    reply = await bus.call(register)
    if reply is None or reply.message_type is MessageType.ERROR:
        raise RuntimeError(f"polkit takes no agent: {reply and reply.body}")
    command = await asyncio.create_subprocess_exec(*sys.argv[2:])
    return await command.wait()


sys.exit(asyncio.run(main()))
