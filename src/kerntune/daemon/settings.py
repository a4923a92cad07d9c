"""Every setting of the configuration as a row: its validation, the shipped file and kerntune.toml(5) come from here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from kerntune.daemon.config_files import DEFAULT, DRIFT_INTERVAL, GUARD, RESTORE
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
        """The value, or InvalidValue that says what is allowed. True is no number, and 1 no switch."""
        wanted = bool if self.switch else int
        if type(value) is not wanted or not self.least <= value <= self.most:
            hint = f"Give {self.allowed}; the default is {shown(self.default)}"
            raise InvalidValue(f"{self.name} is {shown(value)}", hint)
        return value


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a tunable's table, and what it means."""

    pattern: str
    value: str | int
    about: str


@dataclass(frozen=True, slots=True)
class ClaimTable:
    """The table of one tunable: patterns of instances as keys; the tunable itself validates both sides."""

    tunable: str
    about: str
    patterns: str
    values: str
    examples: tuple[Example, ...]


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

CLAIM_TABLES: Final = (
    ClaimTable(
        "hugepages",
        "Pools of huge pages. When memory has fewer, those are kept and the gap is shown; pages that the rest of the "
        "host needs are never taken.",
        "a page size (2M), one node of it (2M/node0) or each node (2M/*)",
        "a number of pages, or a size with K, M, G or T that is a whole number of pages (64G)",
        (
            Example("2M", "64G", "64 GiB in pages of 2 MiB, shared out over all nodes"),
            Example("1G/node0", 4, "four pages of 1 GiB on node 0"),
        ),
    ),
    ClaimTable(
        "hugepages-overcommit",
        "Huge pages that may be borrowed while a program uses them, beyond those of the pools. Nothing is reserved.",
        "a page size (2M)",
        "a number of pages, or a size with K, M, G or T that is a whole number of pages (64G)",
        (Example("2M", "16G", "up to 16 GiB in pages of 2 MiB for who asks"),),
    ),
    ClaimTable(
        "overcommit",
        "How much memory the kernel promises to programs. A limit that would lock the host out is refused. The kernel "
        "reads the ratio with never only; with always it is what the memory guard lets programs have (95 if none is "
        "named).",
        "* (it is one setting of the host)",
        "heuristic, always, always:RATIO or never:RATIO, with a RATIO from 1 to 100 percent of RAM (99 with always)",
        (Example("*", "always:95", "commit what is asked for, until the memory guard caps"),),
    ),
    ClaimTable(
        "thp",
        "Transparent huge pages: who gets them (enabled), and who waits while the kernel makes them (defrag).",
        "enabled or defrag",
        "the kernel's word: always, madvise or never, for defrag also defer or defer+madvise",
        (
            Example("enabled", "madvise", "programs that ask for them"),
            Example("defrag", "madvise", "only those wait for them"),
        ),
    ),
    ClaimTable(
        "sysctl",
        "The sysctls that matter to hosts of large models. kerntuned, which has no capability, cannot write "
        "kernel.numa_balancing: where it differs from what is wished here that is shown, and a line in /etc/sysctl.d "
        "(kernel.numa_balancing = 0) sets it at boot.",
        "vm.swappiness, vm.zone_reclaim_mode or kernel.numa_balancing",
        "a whole number: to 200, 7 and 3 in that order",
        (
            Example("vm.swappiness", 10, "keep programs in memory rather than page cache"),
            Example("vm.zone_reclaim_mode", 0, "take memory of another node before page cache is dropped"),
        ),
    ),
    ClaimTable(
        "cpu-governor",
        "CPU frequency governors.",
        "* (every CPU), a CPU list (0-3,8) or a policy (policy0)",
        "the kernel's name of a governor",
        (
            Example("*", "performance", "the highest frequency on every CPU"),
            Example("0-3", "powersave", "but not on the first four"),
        ),
    ),
    ClaimTable(
        "cpu-epp",
        "What CPUs that choose their own frequency prefer, speed or power. With the governor performance most drivers "
        "take nothing but performance.",
        "* (every CPU), a CPU list (0-3,8) or a policy (policy0)",
        "the kernel's name of a preference",
        (Example("*", "balance_performance", "speed, but not at any price"),),
    ),
    ClaimTable(
        "io-scheduler",
        "I/O schedulers of block devices, also of those plugged later.",
        "a device (nvme0n1), a glob (nvme*) or by-id/NAME as in /dev/disk/by-id",
        "the kernel's name of a scheduler",
        (
            Example("nvme*", "none", "every NVMe drive"),
            Example("by-id/ata-*", "mq-deadline", "every drive whose name in /dev/disk/by-id begins with ata-"),
        ),
    ),
    ClaimTable(
        "read-ahead",
        "How far block devices read ahead of files that are read in order, also those plugged later.",
        "a device (nvme0n1), a glob (nvme*) or by-id/NAME as in /dev/disk/by-id",
        "KiB, a whole number from 0 to 65536, or a size with K or M (2M); the kernel keeps whole pages of it, and at "
        "least one: 0 switches it off",
        (Example("nvme*", 2048, "mapped models are read in pages of 2 MiB"),),
    ),
)


def by_path() -> dict[tuple[str, ...], Option]:
    """The options by table and name."""
    return {option.path: option for option in OPTIONS}


def contradictions(options: Mapping[tuple[str, ...], int]) -> Iterator[tuple[tuple[str, str], str, str]]:
    """Yield each option that is said and is more than another lets it be, what is wrong, and what to do."""
    known = by_path()
    for path, other in AT_MOST:
        most = options.get(other, known[other].default)
        if path in options and options[path] > most:
            what = f"{path[1]} is {options[path]}, and {other[1]} is {most}"
            yield path, what, f"{path[1]} may be no more than {other[1]} in [{other[0]}]: lower it, or raise that"


def claim_table(tunable: str) -> ClaimTable | None:
    """The row of a tunable."""
    return next((row for row in CLAIM_TABLES if row.tunable == tunable), None)


def limits_from(options: Mapping[tuple[str, ...], int]) -> Limits:
    """The limits that the options make; what is not said keeps its default."""
    said = {name.replace("-", "_"): value for (table, name), value in options.items() if table == "limits"}
    return Limits(**said)


def guard_from(options: Mapping[tuple[str, ...], int]) -> GuardLimits:
    """The guard's settings; what is not said keeps its default."""
    said = {name: value for (table, name), value in options.items() if table == "guard"}
    return GuardLimits(**said)  # type: ignore[arg-type]  # a switch is bool, as checked


def shown(value: object) -> str:
    """A value for a message: as it was written where that is short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very long number"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
