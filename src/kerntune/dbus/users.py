"""The users of connections, as the bus knows them; only this module asks for them and remembers them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from kerntune import errors

REMEMBERED: Final = 1024  # connections
UNKNOWN: Final = -1  # the uid of a message that no user has sent, and of a client whose user the bus does not say


class User(NamedTuple):
    """The user at the other end; `pid` is 0 if the bus does not know it."""

    uid: int
    pid: int


class Users:
    """The users of connections. `ask`: unique name -> answer of GetConnectionCredentials; raises as Connection.call."""

    def __init__(self, ask: Callable[[str], Awaitable[dict[str, Any]]]) -> None:
        self._ask = ask
        self._known: dict[str, User] = {}

    def known(self, name: str) -> int | None:
        """Return the uid of a connection that the bus has been asked about, else None."""
        found = self._known.get(name)
        return found.uid if found else None

    async def of(self, name: str) -> User:
        """Return the user of a connection. Raise NotAuthorized if the bus does not say, Unreachable if it has ended."""
        return self._known.get(name) or await self._look(name)

    async def still(self, name: str) -> int | None:
        """Ask the bus again, and return the uid; None if the connection has ended.

        If the bus does not say, or is slow, return the uid that was known, or UNKNOWN.
        """
        try:
            return (await self._look(name)).uid
        except errors.Unreachable:
            return None
        except errors.KerntuneError:
            known = self.known(name)
            return UNKNOWN if known is None else known

    async def _look(self, name: str) -> User:
        found = await self._ask(name)
        if "UnixUserID" not in found:
            raise errors.NotAuthorized(f"the bus does not know the user of {name}")
        while len(self._known) >= REMEMBERED and name not in self._known:
            del self._known[next(iter(self._known))]
        pid = found["ProcessID"].value if "ProcessID" in found else 0
        user = self._known[name] = User(found["UnixUserID"].value, pid)
        return user


def is_root(uid: int) -> bool:
    """Return True for root, and for the user that runs the daemon: both may do everything."""
    return uid in (0, os.geteuid())
