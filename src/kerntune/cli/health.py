"""The slugs of the daemon's Degraded: their meaning, the place to look and the remedy, in one line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from kerntune.cli.tables import Prose, clean
from kerntune.model import Reason

SUSPENDED: Final = "config-suspended"
NOTHING_MANAGED: Final = "Nothing is managed: no claim has been made (kerntune set makes one)"
NOTHING_IN_FORCE: Final = (
    "Nothing is managed now: the configuration and the profile are suspended until kerntune reload"
)

MEANINGS: Final[Mapping[str, str]] = {
    "config-invalid": (
        "a configuration file or profile is not in order, and what was last good of it is in force; kerntune config "
        "check names the lines, kerntune reload reads them again"
    ),
    SUSPENDED: (
        "configuration and profile are suspended by reset --baseline until kerntune reload, kerntune profile set or a "
        "reboot"
    ),
    "state-set-aside": (
        "a file of kerntuned's own could not be read and was set aside as NAME.bad, with what it held; journalctl -u "
        "kerntuned names it, and a restart clears this"
    ),
    "state-unread": (
        "a file of kerntuned's own cannot be read and is kept as NAME.unread; what it holds is not in force until a "
        "start can read it (journalctl -u kerntuned says why, systemctl restart kerntuned tries again)"
    ),
    "guard-observing": (
        "overcommit is always, and the memory guard may not cap, so that nothing makes the ratio real; the line of the "
        "memory guard says why"
    ),
    "rival-tuned": "TuneD runs too and may set the same values; kerntune doctor says more (systemctl stop tuned)",
    "rival-power-profiles-daemon": (
        "power-profiles-daemon runs too and may set the same values; kerntune doctor says more (systemctl stop "
        "power-profiles-daemon)"
    ),
    Reason.DEVICE_HANGS: (
        "the kernel does not return from a read or write of a device, which is left out until it does; its row says "
        "since when, dmesg may say why"
    ),
    Reason.PARTIALLY_ALLOCATED: (
        "there were fewer free huge pages than requested; kerntuned asks again when memory is free, or kerntune reload"
    ),
    Reason.PAGES_IN_USE: "huge pages in use cannot be given back; they go when the programs that hold them end",
    Reason.OVER_LIMIT: "a value would endanger the host and was not set, or in part; its row has the figures",
    Reason.CHANGED_BY_OTHERS: (
        "something else keeps changing a value, and kerntuned has stopped; kerntune doctor looks for it, kerntune "
        "reload tries again"
    ),
    Reason.KERNEL_REJECTED: "the kernel refused a value; its log (dmesg) may say why",
    Reason.READ_BACK_DIFFERS: "the kernel took a value and holds another; its row has both",
    Reason.READ_ONLY: "a setting cannot be written here; its row says who can",
}


def explained(slugs: Iterable[str]) -> Iterator[Prose]:
    """Yield a line for each slug; for a slug without a text here it points to the target's row."""
    for slug in slugs:
        yield Prose(f"! {clean(slug)}: {MEANINGS.get(slug, 'a value is not in the desired state; its row says more')}")


def nothing_managed(slugs: Iterable[str]) -> Prose:
    """Return the reason why nothing is in force."""
    return Prose(NOTHING_IN_FORCE if SUSPENDED in slugs else NOTHING_MANAGED)
