"""Owns the options of the configuration, a row each: validation, the shipped file and kerntune.toml(5) go by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from kerntune.config.config_files import DEFAULT, DRIFT_INTERVAL, GUARD, RESTORE
from kerntune.errors import InvalidValue
from kerntune.guard.policy import GuardLimits
from kerntune.model import Limits


@dataclass(frozen=True, slots=True)
class Option:
    """One key of one table: a whole number from `least` to `most`, counted in `unit`; of a switch true or false."""

    table: str
    name: str
    least: int
    most: int
    default: int
    unit: str
    about: str
    switch: bool = False

    @property
    def path(self) -> tuple[str, str]:
        return self.table, self.name

    @property
    def allowed(self) -> str:
        """What may be written, in prose."""
        if self.switch:
            return "true or false"
        return f"a whole number from {self.least} to {self.most}" + (f" ({self.unit})" if self.unit else "")

    def checked(self, value: object) -> int:
        """Return the value. Raise InvalidValue, which says what is allowed; True is no number, and 1 no switch."""
        wanted = bool if self.switch else int
        if type(value) is not wanted or not self.least <= value <= self.most:
            hint = f"Give {self.allowed}; the default is {shown(self.default)}"
            raise InvalidValue(f"{self.name} is {shown(value)}", hint)
        return value


# The client of each hold is watched by a match rule, of which the bus lets a connection have 512
# (max_match_rules_per_connection in dbus-daemon(1)); calls that are under way need some too.
MOST_HOLDS: Final = 400
RESTORE_ON_STOP: Final = ("daemon", "restore-on-stop")

OPTIONS: Final = (
    Option(
        "limits", "hugepages-percent", 0, 95, DEFAULT.hugepages_percent, "percent of RAM",
        "How much of RAM all pools of huge pages may take together, with those that may be borrowed. Nobody can ask "
        "for more, root included, and only the host's own numbers go back beyond it; memory that other programs need "
        "stays free in any case.",
    ),
    Option(
        "limits", "claims", 1, 100_000, DEFAULT.claims, "",
        "How many runtime claims, how many persistent claims, and how many claims of holds callers may have made at "
        "a time. Claims of the configuration do not count.",
    ),
    Option(
        "limits", "holds", 0, MOST_HOLDS, DEFAULT.holds, "",
        "How many holds there may be at a time. No more than `claims`, for each has one at least.",
    ),
    Option(
        "limits", "holds-per-user", 0, MOST_HOLDS, DEFAULT.holds_per_user, "",
        "How many holds one user may have at a time, no more than `holds`. Root may have all there are.",
    ),
    Option(
        "limits", "held-percent-per-user", 0, 100, DEFAULT.held_percent_per_user, "percent of what can be held",
        "The holds of one user may have this part of the huge pages that are held and that can still be had, so that "
        "others can have some too. Root is not bound by it.",
    ),
    Option(
        "guard", "enabled", 0, 1, GUARD.enabled, "",
        "Whether the memory guard makes the ratio of overcommit always real: it watches free memory, and has the "
        "kernel refuse more commits before it is gone. It never ends a process.",
        switch=True,
    ),
    Option(
        "guard", "band", 0, 1 << 24, GUARD.band, "MiB; 0 is by the size of the host",
        "How far above the floor the guard caps. The floor is what the ratio leaves: 5 % of RAM with always:95. By "
        "itself the band is 7 % of RAM, but no more than 2 GiB, or RAM / 128 where that is more.",
    ),
    Option(
        "guard", "calm", 0, 3600, int(GUARD.calm), "seconds",
        "How long headroom must have been at the floor and twice the band before a cap ends.",
    ),
    Option(
        "drift", "interval", 0, 86_400, DRIFT_INTERVAL, "seconds; 0 is never",
        "How often values are read again while something is managed, and put right where others have changed them. "
        "What is changed three times in ten minutes is left alone and shown as contested.",
    ),
    Option(
        *RESTORE_ON_STOP, 0, 1, RESTORE, "",
        "Whether the values that the host had by itself are put back when the daemon is stopped or restarted, which "
        "also takes huge pages from programs that are about to use them. Claims stay, and the next start applies them. "
        "After a crash, or when the bus is lost, values stay in place.",
        switch=True,
    ),
)  # fmt: skip

# Of each pair the first may be no more than the second.
AT_MOST: Final = (
    (("limits", "holds"), ("limits", "claims")),
    (("limits", "holds-per-user"), ("limits", "holds")),
)


def by_path() -> dict[tuple[str, ...], Option]:
    """Return the options by table and name."""
    return {option.path: option for option in OPTIONS}


def contradictions(
    options: Mapping[tuple[str, ...], int], *, is_part: bool = False
) -> Iterator[tuple[tuple[str, str], str, str]]:
    """Yield each option that is said and is more than another lets it be, what is wrong, and what to do."""
    known = by_path()
    for path, other in AT_MOST:
        most = options.get(other, options.get(path, 0) if is_part else known[other].default)
        if path in options and options[path] > most:
            what = f"{path[1]} is {options[path]}, and {other[1]} is {most}"
            yield path, what, f"{path[1]} may be no more than {other[1]} in [{other[0]}]: lower it, or raise that"


def limits_from(options: Mapping[tuple[str, ...], int]) -> Limits:
    """Return the limits of the configuration; an option that is not given has its default."""
    said = {name.replace("-", "_"): value for (table, name), value in options.items() if table == "limits"}
    return Limits(**said)


def guard_from(options: Mapping[tuple[str, ...], int]) -> GuardLimits:
    """Return the guard's settings; an option that is not given has its default."""
    said = {name: value for (table, name), value in options.items() if table == "guard"}
    return GuardLimits(**said)  # type: ignore[arg-type]  # a switch is bool, as checked


def shown(value: object) -> str:
    """Return a value for a message: as it was written where that is short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very long number"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
