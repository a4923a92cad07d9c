"""Every name that crosses the bus, in one place."""

from __future__ import annotations

from typing import Final

BUS_NAME: Final = "org.kerntune.Tuner1"
ROOT: Final = "/org/kerntune/Tuner1"

MANAGER: Final = f"{BUS_NAME}.Manager"
HUGE_PAGES: Final = f"{BUS_NAME}.HugePages"
CPU_GOVERNOR: Final = f"{BUS_NAME}.CpuGovernor"
IO_SCHEDULER: Final = f"{BUS_NAME}.IoScheduler"
MEMORY: Final = f"{BUS_NAME}.Memory"
HOLD: Final = f"{BUS_NAME}.Hold"

FREEDESKTOP: Final = "org.freedesktop.DBus"
OBJECT_MANAGER: Final = f"{FREEDESKTOP}.ObjectManager"
FREEDESKTOP_PATH: Final = "/org/freedesktop/DBus"

ACTION_SET: Final = f"{BUS_NAME}.set"
ACTION_SET_MEMORY: Final = f"{BUS_NAME}.set-memory"
ACTION_HOLD: Final = f"{BUS_NAME}.hold"
ACTION_MANAGE: Final = f"{BUS_NAME}.manage"

SETTING: Final = "(sss)"
OUTCOME: Final = "(ssssssss)"


def hold_path(number: int) -> str:
    """Return the object path of a hold."""
    return f"{ROOT}/hold/{number}"


def signal_rules(service: str, path: str, interface: str | None, member: str | None) -> tuple[str, str]:
    """Return the match rules for signals of an object of a service, and for changes of the service's owner."""
    more = "".join(f",{key}='{name}'" for key, name in (("interface", interface), ("member", member)) if name)
    return f"type='signal',sender='{service}',path='{path}'{more}", owner_rule(service)


def owner_rule(name: str) -> str:
    """Return the match rule for changes of the owner of a name."""
    return (
        f"type='signal',sender='{FREEDESKTOP}',path='{FREEDESKTOP_PATH}',"
        f"interface='{FREEDESKTOP}',member='NameOwnerChanged',arg0='{name}'"
    )
