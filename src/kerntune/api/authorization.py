"""The authorisation of calls, by the annotation org.kerntune.Action of each method in dbus/interfaces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kerntune.api import names
from kerntune.api.contract import ACTION
from kerntune.api.polkit import Polkit
from kerntune.dbus.service import Caller, Service
from kerntune.dbus.users import is_root
from kerntune.errors import AccessDenied, InteractiveAuthorizationRequired, NotOwner
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)

CALL_REFUSED: Final = "e1d6a0c94b7f4e0f9a25c3d871b6f054"  # MESSAGE_ID
LOGGED: Final = 5  # refusals of one user in a MINUTE that are logged; of further ones only the number is
MINUTE: Final = 60.0  # seconds
USERS: Final = 64  # users whose refusals are counted at a time


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission for `caller` to do what it asks for. Only the gate makes one. Nothing is changed without one."""

    caller: Caller


class Gate:
    """The check of each call that changes something: it asks polkit, and logs the refusals."""

    def __init__(self, service: Service) -> None:
        self._service, self._polkit = service, Polkit(service)
        self._refused: dict[int, int] = {}  # uid -> its refused calls in the current minute

    async def let_pass(self, caller: Caller, tunables: Iterable[Tunable] = (), *, manage: bool = False) -> Permit:
        """Return a permit if the caller may do this with these tunables; with `manage` it needs that action too.

        Raise AccessDenied or InteractiveAuthorizationRequired otherwise. A call that needs no polkit action is only
        for root and for the user that runs the daemon. No call that comes here is open to everybody.
        """
        try:
            actions = needed(caller.annotations.get(ACTION, ""), tunables) | (
                {names.ACTION_MANAGE} if manage else set()
            )
            if not actions and not is_root(caller.uid):
                why = "The contract names no polkit action for it"
                raise AccessDenied(f"permission denied: only root may call {caller.member}", why)
            for action in sorted(actions):
                await self._polkit.authorise(caller, action)
        except (AccessDenied, InteractiveAuthorizationRequired) as error:
            self._note(caller, error)
            raise
        self._service.authorised()
        return Permit(caller)

    async def let_owner_pass(self, caller: Caller, owner: int, what: str) -> Permit:
        """Return a permit if the caller has the uid `owner`, or may do this. Raise NotOwner otherwise."""
        if caller.uid == owner:
            self._service.authorised()
            return Permit(caller)
        try:
            return await self.let_pass(caller)
        except (AccessDenied, InteractiveAuthorizationRequired) as error:
            hint = f"Its owner may, and whoever may do {names.ACTION_MANAGE} (sudo)"
            raise NotOwner(f"permission denied: {what} is not yours, uid {caller.uid}", hint) from error

    def _note(self, caller: Caller, error: AccessDenied | InteractiveAuthorizationRequired) -> None:
        """Log only the first refusals of a user, because anybody can cause any number."""
        uid = caller.uid
        if uid not in self._refused:
            if len(self._refused) >= USERS:
                return
            self._refused[uid] = 0
            asyncio.get_running_loop().call_later(MINUTE, self._sum_up, uid)
        self._refused[uid] += 1
        if self._refused[uid] <= LOGGED:
            log.warning("refused %s to uid %d, pid %d: %s", caller.member, uid, caller.pid, error, extra=fields(uid))

    def _sum_up(self, uid: int) -> None:
        if (more := self._refused.pop(uid) - LOGGED) > 0:
            log.warning("refused %d more calls to uid %d in %.0f s", more, uid, MINUTE, extra=fields(uid))


def fields(uid: int) -> dict[str, str]:
    """Return the fields of the journal entry."""
    return {"MESSAGE_ID": CALL_REFUSED, "KERNTUNE_UID": str(uid)}


def needed(action: str, tunables: Iterable[Tunable]) -> frozenset[str]:
    """Return the polkit actions for a method with this annotation; `persist` adds nothing."""
    if action in ("tunable", "hold"):
        own = {names.ACTION_HOLD} if action == "hold" else set()
        return frozenset(f"{names.BUS_NAME}.{tunable.action}" for tunable in tunables) | own
    return frozenset({names.ACTION_MANAGE}) if action == "manage" else frozenset()
