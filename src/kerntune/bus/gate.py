"""Who may do what: one table and one function; a member that is not in the table is refused to everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from kerntune.bus import names
from kerntune.bus.dispatch import Caller, Service
from kerntune.bus.polkit import authorise
from kerntune.errors import AccessDenied
from kerntune.tunables.base import Tunable

Needs = Callable[[Iterable[Tunable]], frozenset[str]]


def of_tunables(tunables: Iterable[Tunable]) -> frozenset[str]:
    """The polkit action of every tunable that is named."""
    return frozenset(f"{names.BUS_NAME}.{tunable.action}" for tunable in tunables)


def manage(tunables: Iterable[Tunable]) -> frozenset[str]:  # noqa: ARG001
    """What concerns everybody on the host is the administrator's."""
    return frozenset({names.ACTION_MANAGE})


# Member -> what it needs. `persist` adds nothing; reads, Plan, Verify and Describe never come here.
NEEDS: Final[Mapping[str, Needs]] = {
    "Set": of_tunables,
    "Unset": of_tunables,
    "SetCount": of_tunables,
    "SetGovernor": of_tunables,
    "SetScheduler": of_tunables,
    "SetOvercommit": of_tunables,
    "SetProfile": manage,
    "ClearProfile": manage,
    "Reset": manage,
    "Reload": manage,
}


async def pass_gate(service: Service, caller: Caller, member: str, tunables: Iterable[Tunable]) -> None:
    """Return when the caller may do this; AccessDenied or InteractiveAuthorizationRequired otherwise."""
    if member not in NEEDS:
        raise AccessDenied(f"nobody may call {member}", "It has no row in the table of authorisations")
    for action in sorted(NEEDS[member](tunables)):
        await authorise(service, caller, action)
