"""Asks polkit whether a client may do something; decides nothing itself, but that root may and silence means no.

Rests on the D-Bus reference of org.freedesktop.PolicyKit1.Authority.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final, NamedTuple

from kerntune import errors
from kerntune.bus import names
from kerntune.bus.dispatch import Caller, Service
from kerntune.bus.messages import Variant

POLKIT: Final = "org.freedesktop.PolicyKit1"
TO_POLKIT: Final = (POLKIT, "/org/freedesktop/PolicyKit1/Authority", f"{POLKIT}.Authority")
ALLOW_INTERACTION: Final = 1
# Of one user's calls so many are asked about at once, so that slots are left for the others; and so many may wait.
OF_USER: Final = 16
WAITING: Final = 200

JOIN: Final = (
    "Members of the group kerntune may: sudo adduser $USER kerntune, then log in again (id shows it); "
    "or run it with sudo"
)
SUDO: Final = "This is for administrators: run it with sudo"
RUNNING: Final = "is polkit running? systemctl status polkit; root may do it without"
INSTALLED: Final = "is the policy file in /usr/share/polkit-1/actions? reinstall kerntune"


class _Answer(NamedTuple):
    authorised: bool
    challenge: bool  # yes, after authenticating


async def authorise(
    service: Service, caller: Caller, action: str, *, timeout: float = 5.0, interactive_timeout: float = 300.0
) -> None:
    """Return when `caller` may do `action`; timeouts in seconds.

    polkit is asked without interaction first, so that a silent one is found out in `timeout` and not only after the
    time a person may take for a password. Root, and whoever runs the daemon, may do everything without being asked
    about. Raises AccessDenied, InteractiveAuthorizationRequired or CallerGone; and LimitsExceeded when WAITING calls of
    the caller's user wait for polkit already.
    """
    if caller.uid in (0, os.geteuid()):
        return
    if service.asking[caller.uid] >= WAITING:
        what = f"{WAITING} calls of uid {caller.uid} wait for polkit already"
        raise errors.LimitsExceeded(what, "wait for the replies")
    service.asking[caller.uid] += 1
    service.at_polkit.setdefault(caller.uid, asyncio.Semaphore(OF_USER))
    try:
        await _decide(service, caller, action, timeout, interactive_timeout)
    finally:
        service.asking[caller.uid] -= 1
        if not service.asking[caller.uid]:
            del service.asking[caller.uid], service.at_polkit[caller.uid]


async def _decide(service: Service, caller: Caller, action: str, timeout: float, interactive_timeout: float) -> None:
    """Ask without interaction, then with it where that may help; raises as `authorise` does."""
    answer = await _check(service, caller, action, 0, timeout)
    if answer.challenge and not answer.authorised:
        if not caller.interactive:
            raise errors.InteractiveAuthorizationRequired(f"{action} needs authentication", _advice(action))
        asking = _check(service, caller, action, ALLOW_INTERACTION, interactive_timeout)
        answer = await service.while_present(caller, asking)
        if answer.challenge and not answer.authorised:
            what = f"permission denied: {action} needs authentication, and nobody was there to ask for the password"
            raise errors.AccessDenied(what, _advice(action))
    if not answer.authorised:
        raise errors.AccessDenied(
            f"permission denied: polkit does not let uid {caller.uid} do {action}", _advice(action)
        )


async def _check(service: Service, caller: Caller, action: str, flags: int, timeout: float) -> _Answer:
    """One CheckAuthorization, when its turn comes; `timeout` counts from now. Raises AccessDenied without an answer."""
    slots = service.prompts if flags & ALLOW_INTERACTION else service.questions
    try:
        async with asyncio.timeout(timeout), service.at_polkit[caller.uid], slots:
            return await _ask(service, caller, action, flags)
    except TimeoutError as error:
        if flags & ALLOW_INTERACTION:
            raise errors.AccessDenied(f"nobody authenticated for {action} in {timeout:g} s", _advice(action)) from error
        raise errors.AccessDenied(
            f"polkit did not say within {timeout:g} s whether {action} is allowed", RUNNING
        ) from error
    except errors.KerntuneError as error:
        hint = INSTALLED if "not registered" in str(error) else RUNNING
        raise errors.AccessDenied(f"polkit could not say whether {action} is allowed: {error}", hint) from error


async def _ask(service: Service, caller: Caller, action: str, flags: int) -> _Answer:
    """The call itself, withdrawn when it is cancelled."""
    subject = ["system-bus-name", {"name": Variant("s", caller.name)}]
    cancellation = os.urandom(16).hex()
    args: tuple[object, ...] = (subject, action, {}, flags, cancellation)
    try:
        ((authorised, challenge, _details),) = await service.call(
            *TO_POLKIT, "CheckAuthorization", "(sa{sv})sa{ss}us", *args, timeout=None
        )
    except asyncio.CancelledError:
        service.tell(*TO_POLKIT, "CancelCheckAuthorization", "s", cancellation)
        raise
    return _Answer(authorised, challenge)


def _advice(action: str) -> str:
    return SUDO if action == names.ACTION_MANAGE else JOIN
