"""The authorisation of calls: which polkit action each needs, and what polkit says.

The annotation org.kerntune.Action of a method in dbus/interfaces names the action (api/contract.py). This module itself
decides only that root may, and that silence means no. It follows the D-Bus reference of
org.freedesktop.PolicyKit1.Authority.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kerntune import errors
from kerntune.api import names
from kerntune.api.contract import ACTION
from kerntune.dbus.messages import Variant
from kerntune.dbus.service import Caller, Service
from kerntune.dbus.standard import THE_BUS
from kerntune.dbus.users import is_root
from kerntune.errors import InteractiveAuthorizationRequired, NotAuthorized, NotOwner
from kerntune.membership import JOIN
from kerntune.tunables.base import Tunable

log = logging.getLogger(__name__)

CALL_REFUSED: Final = "e1d6a0c94b7f4e0f9a25c3d871b6f054"  # MESSAGE_ID
LOGGED: Final = 5  # refusals of one user in a MINUTE that are logged; of further ones only the number is
MINUTE: Final = 60.0  # seconds
USERS: Final = 64  # users whose refusals are counted at a time

POLKIT: Final = "org.freedesktop.PolicyKit1"
PATH: Final = "/org/freedesktop/PolicyKit1/Authority"
ALLOW_INTERACTION: Final = 1
# polkitd runs its rules in a thread, and gives that 15 s (RUNAWAY_KILLER_TIMEOUT in its sources). Version 122 can miss
# the thread's signal. Then it answers nobody for these 15 s, and answers as usual after them. busctl waits 25 s.
ANSWER: Final = 20.0  # seconds
# The bus lets us have 128 calls without a reply (max_replies_per_connection in dbus-daemon(1)). Quick questions, and
# those that wait for a person, have separate places, so that neither kind waits for the other.
QUESTIONS: Final = 64
PROMPTS: Final = 32
# One user has at most so many of these places; and so many calls of one user may wait in all.
QUESTIONS_OF_USER: Final = 16
PROMPTS_OF_USER: Final = 4
WAITING: Final = 200

SUDO: Final = "This is for administrators: run it with sudo"
RUNNING: Final = "Is polkit running? systemctl status polkit; root may do it without"
INSTALLED: Final = "Is the policy file in /usr/share/polkit-1/actions? Reinstall kerntune"


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission for `caller` to do what it asks for. Only Authorization makes one; without it nothing changes."""

    caller: Caller


class Authorization:
    """The check of each call that changes something: it asks polkit, and logs the refusals."""

    def __init__(self, service: Service) -> None:
        self._service, self._polkit = service, Polkit(service)
        self._refused: dict[int, int] = {}  # uid -> its refused calls in the current minute

    async def permit(self, caller: Caller, tunables: Iterable[Tunable] = (), *, manage: bool = False) -> Permit:
        """Return a permit if the caller may do this with these tunables; with `manage` it needs that action too.

        Raise NotAuthorized or InteractiveAuthorizationRequired otherwise. A call that needs no polkit action is only
        for root and for the user that runs the daemon. No call that comes here is open to everybody.
        """
        try:
            actions = needed(caller.annotations.get(ACTION, ""), tunables) | (
                {names.ACTION_MANAGE} if manage else set()
            )
            if not actions and not is_root(caller.uid):
                why = "The contract names no polkit action for it"
                raise NotAuthorized(f"permission denied: only root may call {caller.member}", why)
            for action in sorted(actions):
                await self._polkit.authorise(caller, action)
        except (NotAuthorized, InteractiveAuthorizationRequired) as error:
            self._log_refusal(caller, error)
            raise
        self._service.connection.authorised()
        return Permit(caller)

    async def permit_owner(self, caller: Caller, owner: int, what: str) -> Permit:
        """Return a permit if the caller has the uid `owner`, or may do this. Raise NotOwner otherwise."""
        if caller.uid == owner:
            self._service.connection.authorised()
            return Permit(caller)
        try:
            return await self.permit(caller)
        except (NotAuthorized, InteractiveAuthorizationRequired) as error:
            hint = f"Its owner may, and whoever may do {names.ACTION_MANAGE} (sudo)"
            raise NotOwner(f"permission denied: {what} is not yours, uid {caller.uid}", hint) from error

    def _log_refusal(self, caller: Caller, error: NotAuthorized | InteractiveAuthorizationRequired) -> None:
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


class _Answer(NamedTuple):
    authorised: bool
    challenge: bool  # yes, after authenticating


@dataclass(slots=True)
class _User:
    """The number of one user's calls that wait for polkit, and the places of those that polkit was asked about."""

    waiting: int = 0
    questions: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(QUESTIONS_OF_USER))
    prompts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PROMPTS_OF_USER))


class Polkit:
    """A client of polkit over `service`. One user's questions cannot take the places of all others."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._questions, self._prompts = asyncio.Semaphore(QUESTIONS), asyncio.Semaphore(PROMPTS)
        self.users: dict[int, _User] = {}
        self._owner = ""  # the unique name of polkit, when it was asked last

    async def authorise(
        self, caller: Caller, action: str, *, timeout: float = ANSWER, interactive_timeout: float = 300.0
    ) -> None:
        """Return only if `caller` may do `action`; timeouts in seconds.

        The first question to polkit is without interaction. So a silent polkit is noticed after `timeout`, and not
        only after the time that a person may take for a password. Root, and the user that runs the daemon, may do
        everything without a question. Raise NotAuthorized, InteractiveAuthorizationRequired or CallerGone; and
        LimitsExceeded if WAITING calls of the caller's user wait for polkit already.
        """
        if is_root(caller.uid):
            return
        user = self.users.setdefault(caller.uid, _User())
        if user.waiting >= WAITING:
            what = f"{WAITING} calls of uid {caller.uid} wait for polkit already"
            raise errors.LimitsExceeded(what, "Wait for the replies")
        user.waiting += 1
        try:
            with self._service.connection.aside():
                await self._decide(user, caller, action, timeout, interactive_timeout)
        finally:
            user.waiting -= 1
            if not user.waiting:
                del self.users[caller.uid]

    async def _decide(
        self, user: _User, caller: Caller, action: str, timeout: float, interactive_timeout: float
    ) -> None:
        """Ask without interaction, then with it where that may help. Raise as `authorise` does."""
        answer = await self._check(user, caller, action, 0, timeout)
        if answer.challenge and not answer.authorised:
            if not caller.interactive:
                raise errors.InteractiveAuthorizationRequired(f"{action} needs authentication", _advice(action))
            asking = self._check(user, caller, action, ALLOW_INTERACTION, interactive_timeout)
            answer = await self._service.clients.while_present(caller.name, asking)
            if answer.challenge and not answer.authorised:
                what = f"permission denied: {action} needs authentication, and nobody was there to ask for the password"
                raise errors.NotAuthorized(what, _advice(action))
        if not answer.authorised:
            raise errors.NotAuthorized(
                f"permission denied: polkit does not let uid {caller.uid} do {action}", _advice(action)
            )

    async def _check(self, user: _User, caller: Caller, action: str, flags: int, timeout: float) -> _Answer:
        """Call CheckAuthorization at its turn; `timeout` counts from now. Raise NotAuthorized without an answer."""
        prompts = bool(flags & ALLOW_INTERACTION)
        own, all_of_them = (user.prompts, self._prompts) if prompts else (user.questions, self._questions)
        try:
            async with asyncio.timeout(timeout), own, all_of_them:
                return await self._ask(caller, action, flags)
        except TimeoutError as error:
            if prompts:
                what = f"nobody authenticated for {action} in {timeout:g} s"
                raise errors.NotAuthorized(what, _advice(action)) from error
            raise errors.NotAuthorized(
                f"polkit did not say within {timeout:g} s whether {action} is allowed", RUNNING
            ) from error
        except errors.KerntuneError as error:
            hint = INSTALLED if "not registered" in str(error) else RUNNING
            raise errors.NotAuthorized(f"polkit could not say whether {action} is allowed: {error}", hint) from error

    async def _ask(self, caller: Caller, action: str, flags: int) -> _Answer:
        """Make the call itself, and withdraw it when cancelled. If the known polkit has gone, ask the next one."""
        try:
            return await self._ask_once(caller, action, flags)
        except errors.Unreachable:
            if not self._owner:
                raise
            self._owner = ""
            return await self._ask_once(caller, action, flags)

    async def _ask_once(self, caller: Caller, action: str, flags: int) -> _Answer:
        subject = ["system-bus-name", {"name": Variant("s", caller.name)}]
        cancellation = os.urandom(16).hex()
        args: tuple[object, ...] = (subject, action, {}, flags, cancellation)
        # The call goes to its unique name, so that no reply is taken but its own.
        where = (self._owner or await self._find(), PATH, f"{POLKIT}.Authority")
        try:
            ((authorised, challenge, _details),) = await self._service.connection.call(
                *where, "CheckAuthorization", "(sa{sv})sa{ss}us", *args, timeout=None
            )
        except asyncio.CancelledError:
            self._service.connection.call_oneway(*where, "CancelCheckAuthorization", "s", cancellation)
            raise
        return _Answer(authorised, challenge)

    async def _find(self) -> str:
        """Return the unique name of polkit. The bus starts polkit if it does not run."""
        try:
            (self._owner,) = await self._service.connection.call(*THE_BUS, "GetNameOwner", "s", POLKIT, timeout=None)
        except errors.Unreachable:
            await self._service.connection.call(*THE_BUS, "StartServiceByName", "su", POLKIT, 0, timeout=None)
            (self._owner,) = await self._service.connection.call(*THE_BUS, "GetNameOwner", "s", POLKIT, timeout=None)
        return self._owner


def fields(uid: int) -> dict[str, str]:
    """Return the fields of the journal entry."""
    return {"MESSAGE_ID": CALL_REFUSED, "KERNTUNE_UID": str(uid)}


def needed(action: str, tunables: Iterable[Tunable]) -> frozenset[str]:
    """Return the polkit actions for a method with this annotation; `persist` adds nothing."""
    if action in ("tunable", "hold"):
        own = {names.ACTION_HOLD} if action == "hold" else set()
        return frozenset(f"{names.BUS_NAME}.{tunable.action}" for tunable in tunables) | own
    return frozenset({names.ACTION_MANAGE}) if action == "manage" else frozenset()


def _advice(action: str) -> str:
    return SUDO if action == names.ACTION_MANAGE else JOIN
