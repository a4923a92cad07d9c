"""Every name that crosses the bus, and how long clients wait for an answer."""

from __future__ import annotations

from typing import Final

BUS_NAME: Final = "org.kerntune.Tuner1"
ROOT: Final = "/org/kerntune/Tuner1"
HINT: Final = "Is kerntuned running? systemctl status kerntuned"
LATE: Final = "It may still be at work: journalctl -u kerntuned"

MANAGER: Final = f"{BUS_NAME}.Manager"
HUGE_PAGES: Final = f"{BUS_NAME}.HugePages"
CPU_GOVERNOR: Final = f"{BUS_NAME}.CpuGovernor"
IO_SCHEDULER: Final = f"{BUS_NAME}.IoScheduler"
MEMORY: Final = f"{BUS_NAME}.Memory"
HOLD: Final = f"{BUS_NAME}.Hold"

# The names of power-profiles-daemon and of tuned-ppd, which stands in for it: the first is there since 0.20.
POWER_PROFILES: Final = ("org.freedesktop.UPower.PowerProfiles", "net.hadess.PowerProfiles")

ACTION_SET: Final = f"{BUS_NAME}.set"
ACTION_SET_MEMORY: Final = f"{BUS_NAME}.set-memory"
ACTION_HOLD: Final = f"{BUS_NAME}.hold"
ACTION_MANAGE: Final = f"{BUS_NAME}.manage"

SETTING: Final = "(sss)"

# A user may have to type a password, and then the kernel may have to move a TiB of memory about. The daemon would take
# back a longer edit. The bus reports at once when the daemon is gone, and users can interrupt.
EDIT_SECONDS: Final = 3600.0
BACK_SECONDS: Final = 60.0  # seconds in which a restarted daemon has to be back
LOOK_SECONDS: Final = 0.2


def hold_path(number: int) -> str:
    """Return the object path of a hold."""
    return f"{ROOT}/hold/{number}"


def hold_number(path: str) -> int:
    """Return the number of a hold, by its object path."""
    return int(path.rpartition("/")[2])
