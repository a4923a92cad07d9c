"""Other programs that set the same values: those that run or start at boot, and what their files tell them to set."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kerntune.doctor.files import Files
from kerntune.doctor.types import Assignment, Entry, Place, Stage
from kerntune.kernel.files import KernelView, read_or_none
from kerntune.patterns import Kind
from kerntune.tunables import REGISTRY
from kerntune.tunables.knobs import CPU_GOVERNOR

CPUFREQUTILS: Final = "etc/default/cpufrequtils"
INIT_SCRIPT: Final = "etc/init.d/cpufrequtils"
TUNED_PROFILE: Final = "etc/tuned/active_profile"
COMM: Final = 15  # characters of a program's name that the kernel keeps
WANTS: Final = ("etc/systemd/system/{}.wants/{}", "usr/lib/systemd/system/{}.wants/{}")
TARGETS: Final = ("multi-user.target", "graphical.target", "sysinit.target", "basic.target")
CPU: Final = frozenset(tunable.name for tunable in REGISTRY if tunable.kind is Kind.CPUS)


@dataclass(frozen=True, slots=True)
class Rival:
    """A service that sets values of these tunables; `process` is the name of its program."""

    name: str
    process: str
    unit: str
    tunables: frozenset[str]
    stop: str

    @property
    def comm(self) -> str:
        """The name of the program as /proc/PID/comm has it."""
        return self.process[:COMM]


EVERYTHING: Final = frozenset(tunable.name for tunable in REGISTRY)
RIVALS: Final = (
    Rival("TuneD", "tuned", "tuned.service", EVERYTHING, "sudo systemctl disable --now tuned"),
    Rival(
        "power-profiles-daemon",
        "power-profiles-daemon",
        "power-profiles-daemon.service",
        CPU,
        "sudo systemctl mask --now power-profiles-daemon",
    ),
    Rival("auto-cpufreq", "auto-cpufreq", "auto-cpufreq.service", CPU, "sudo auto-cpufreq --remove"),
    Rival("TLP", "tlp", "tlp.service", CPU | {"io-scheduler"}, "sudo systemctl disable --now tlp"),
    Rival("cpupower", "cpupower", "cpupower.service", CPU, "sudo systemctl disable --now cpupower"),
    Rival("ondemand", "ondemand", "ondemand.service", CPU, "sudo systemctl disable --now ondemand"),
)
# These end programs before memory runs out: overcommit `always` leaves that to them.
GUARDS: Final = {"earlyoom": "earlyoom", "systemd-oomd": "systemd-oomd", "nohang": "nohang", "oomd": "oomd"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A rival that runs or starts at boot, and the evidence for it."""

    rival: Rival
    evidence: tuple[str, ...]


def processes(kernel: KernelView) -> dict[str, str]:
    """Return the names of the programs that run -> the file that says so (the first of each)."""
    found: dict[str, str] = {}
    for path in kernel.glob("proc/[0-9]*/comm"):
        if name := read_or_none(kernel, path):
            found.setdefault(name, f"/{path}")
    return found


def rivals(files: Files, running: dict[str, str]) -> Iterator[Seen]:
    """Yield the rivals that run, or start at boot."""
    for rival in RIVALS:
        evidence = []
        if path := running.get(rival.comm):
            evidence.append(f"it is running: {path} reads {rival.comm}")
        if link := enabled(files, rival.unit):
            evidence.append(f"it starts at boot: /{link}")
        if evidence and rival.process == "tuned" and (profile := files.text(TUNED_PROFILE)):
            evidence.append(f"its profile: /{TUNED_PROFILE} reads {profile.strip()}")
        if evidence:
            yield Seen(rival, tuple(evidence))


def enabled(files: Files, unit: str) -> str:
    """Return the link that starts a unit at boot, or "" without one; a masked unit never starts."""
    if files.leads_to(f"etc/systemd/system/{unit}") == "dev/null":
        return ""
    links = (where.format(target, unit) for where in WANTS for target in TARGETS)
    return next((link for link in links if files.there(link)), "")


def guards(running: dict[str, str]) -> Sequence[str]:
    """Return the running programs that watch memory."""
    return [name for comm, name in GUARDS.items() if comm in running]


def read(files: Files) -> list[Entry]:
    """Return what cpufrequtils sets at boot, from the file that its init script reads."""
    settings: dict[str, tuple[str, Place]] = {}
    for number, text in files.lines(CPUFREQUTILS):
        try:
            parts = shlex.split(text, comments=True)
        except ValueError:
            continue
        for part in parts:
            name, equals, value = part.partition("=")
            if equals:
                settings[name] = value, Place(f"/{CPUFREQUTILS}", number, text.strip())
    governor, place = settings.get("GOVERNOR", ("", None))
    if not governor or place is None:
        return []
    idle = ""
    if not files.there(INIT_SCRIPT):
        idle = f"cpufrequtils is not installed (there is no /{INIT_SCRIPT}), so nothing reads the file"
    elif settings.get("ENABLE", ("true", place))[0] != "true":
        idle = f"ENABLE is not true in /{CPUFREQUTILS}"
    return [Assignment(place, Stage.SERVICE, CPU_GOVERNOR.scope.of_device("cpu*"), governor, idle=idle)]
