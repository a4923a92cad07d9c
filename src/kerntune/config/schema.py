"""The table of every setting that a file may have beside claims: what may stand there, its default, and what it means.

The parser, the shipped kerntune.toml and kerntune.toml(5) go by these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from kerntune.errors import InvalidValue
from kerntune.guard.policy import GuardLimits
from kerntune.model import Limits

LIMITS: Final = Limits()
GUARD: Final = GuardLimits()
MAX_SUMMARY: Final = 200  # characters
# The client of each hold is watched by a match rule, of which the bus lets a connection have 512
# (max_match_rules_per_connection in dbus-daemon(1)); calls that are under way need some too.
MAX_HOLDS: Final = 400

OptionPath = tuple[str, ...]  # table and name, or the name alone of an option that stands beside the tables
Options = Mapping[OptionPath, Any]


class Kind(StrEnum):
    """The kind of a problem, which decides what stays in force.

    With an `unknown` name of a table, a setting or a profile, earlier content that the file no longer has stays in
    force. A bad option gets its default. With a bad claim the file's claims stay as they were; with a bad file its
    options do too. Only a check reports a `warning`.
    """

    WARNING = "warning"
    UNKNOWN = "unknown"
    OPTION = "option"
    CLAIM = "claim"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Option:
    """One key of one table, or of none (""). `allowed` says in prose what may be written, and `example` shows it.

    `kind` is the kind of the problem when the value is bad.
    """

    table: str
    name: str
    default: Any
    about: str
    allowed: str
    accepts: Callable[[object], bool]
    example: str = ""
    kind: Kind = Kind.OPTION

    @property
    def path(self) -> OptionPath:
        return (self.table, self.name) if self.table else (self.name,)

    def checked(self, value: Any) -> Any:
        """Return the value. Raise InvalidValue, which says what is allowed."""
        if self.accepts(value):
            return value
        more = f": {self.example}" if self.example else f"; the default is {shown(self.default)}"
        raise InvalidValue(f"{self.name} is {shown(value)}", f"Give {self.allowed}{more}")


def number(table: str, name: str, default: int, about: str, *, least: int, most: int, unit: str = "") -> Option:
    """Return the row of a whole number from `least` to `most`, counted in `unit`."""
    allowed = f"a whole number from {least} to {most}" + (f" ({unit})" if unit else "")
    # True is no number here, though bool is an int in Python.
    return Option(table, name, default, about, allowed, lambda value: type(value) is int and least <= value <= most)


def switch(table: str, name: str, about: str, *, default: bool) -> Option:
    """Return the row of a switch."""
    return Option(table, name, default, about, "true or false", lambda value: type(value) is bool)


def is_names(value: object) -> bool:
    """Return whether a value is a list of names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_summary(value: object) -> bool:
    """Return whether a value is a text that fits into a line."""
    return isinstance(value, str) and len(value) <= MAX_SUMMARY


PROFILE: Final = Option(
    "", "profile", "",
    "The profile in force: claims for a purpose, under one name; those of these files win over them. One that was "
    "chosen with `kerntune profile set` takes its place until `kerntune profile clear`. `kerntune profile list` shows "
    "those there are.",
    "the name of a profile", lambda value: isinstance(value, str), '"balanced"',
    Kind.UNKNOWN,  # a typo in the name must not free pages in use
)  # fmt: skip
DRIFT_INTERVAL: Final = number(
    "drift", "interval", 60,
    "How often values are read again while something is managed, and put right where others have changed them. "
    "What is changed three times in ten minutes is left alone and shown as contested.",
    least=0, most=86_400, unit="seconds; 0 is never",
)  # fmt: skip
RESTORE_ON_STOP: Final = switch(
    "daemon", "restore-on-stop",
    "Whether the values that the host had by itself are put back when the daemon is stopped or restarted, which "
    "also takes huge pages from programs that are about to use them. Claims stay, and the next start applies them. "
    "After a crash, or when the bus is lost, values stay in place.",
    default=False,
)  # fmt: skip

# The options of the configuration, in the order of the shipped file.
OPTIONS: Final = (
    PROFILE,
    number(
        "limits", "hugepages-percent", LIMITS.hugepages_percent,
        "How much of RAM all pools of huge pages may take together, with those that may be borrowed. Nobody can ask "
        "for more, root included, and only the host's own numbers go back beyond it; memory that other programs need "
        "stays free in any case.",
        least=0, most=95, unit="percent of RAM",
    ),
    number(
        "limits", "claims", LIMITS.claims,
        "How many runtime claims, how many persistent claims, and how many claims of holds callers may have made at "
        "a time. Claims of the configuration do not count.",
        least=1, most=100_000,
    ),
    number(
        "limits", "holds", LIMITS.holds,
        "How many holds there may be at a time. No more than `claims`, for each has one at least.",
        least=0, most=MAX_HOLDS,
    ),
    number(
        "limits", "holds-per-user", LIMITS.holds_per_user,
        "How many holds one user may have at a time, no more than `holds`. Root may have all there are.",
        least=0, most=MAX_HOLDS,
    ),
    number(
        "limits", "held-percent-per-user", LIMITS.held_percent_per_user,
        "The holds of one user may have this part of the huge pages that are held and that can still be had, so that "
        "others can have some too. Root is not bound by it.",
        least=0, most=100, unit="percent of what can be held",
    ),
    switch(
        "guard", "enabled",
        "Whether the memory guard makes the ratio of overcommit always real: it watches free memory, and has the "
        "kernel refuse more commits before it is gone. It never ends a process.",
        default=GUARD.enabled,
    ),
    number(
        "guard", "band", GUARD.band,
        "How far above the floor the guard caps. The floor is what the ratio leaves: 5 % of RAM with always:95. By "
        "itself the band is 7 % of RAM, but no more than 2 GiB, or RAM / 128 where that is more.",
        least=0, most=1 << 24, unit="MiB; 0 is by the size of the host",
    ),
    number(
        "guard", "calm", int(GUARD.calm),
        "How long headroom must have been at the floor and twice the band before a cap ends.",
        least=0, most=3600, unit="seconds",
    ),
    DRIFT_INTERVAL,
    RESTORE_ON_STOP,
)  # fmt: skip

# The options of a profile.
SUMMARY: Final = Option(
    "", "summary", "", "What the profile is for.",
    f"a line of {MAX_SUMMARY} characters or less", is_summary, 'summary = "..."',
)  # fmt: skip
INCLUDE: Final = Option(
    "", "include", (), "Profiles whose claims belong to this one, and are weaker.",
    "names", is_names, 'include = ["balanced"]',
    Kind.CLAIM,
)  # fmt: skip

# Of each pair the first may be no more than the second.
AT_MOST: Final = (
    (("limits", "holds"), ("limits", "claims")),
    (("limits", "holds-per-user"), ("limits", "holds")),
)


def by_path(options: Iterable[Option]) -> dict[OptionPath, Option]:
    """Return the options by table and name."""
    return {option.path: option for option in options}


CONFIG_OPTIONS: Final = by_path(OPTIONS)
PROFILE_OPTIONS: Final = by_path((SUMMARY, INCLUDE))


def contradictions(options: Options, *, is_part: bool = False) -> Iterator[tuple[OptionPath, str, str]]:
    """Yield each given option that is more than another lets it be, what is wrong, and what to do."""
    for path, other in AT_MOST:
        most = options.get(other, options.get(path, 0) if is_part else CONFIG_OPTIONS[other].default)
        if path in options and options[path] > most:
            what = f"{path[1]} is {options[path]}, and {other[1]} is {most}"
            yield path, what, f"{path[1]} may be no more than {other[1]} in [{other[0]}]: lower it, or raise that"


def limits_from(options: Options) -> Limits:
    """Return the limits of the configuration; an option that is not given has its default."""
    return Limits(**fields_of("limits", options))


def guard_from(options: Options) -> GuardLimits:
    """Return the guard's settings; an option that is not given has its default."""
    return GuardLimits(**fields_of("guard", options))


def fields_of(table: str, options: Options) -> dict[str, Any]:
    """Return the given options of one table, by the names of fields in the model."""
    return {path[-1].replace("-", "_"): value for path, value in options.items() if path[0] == table}


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
