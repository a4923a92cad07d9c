"""The request of `kerntune run`: the settings to hold, the shield of the command, and what is wrong with either."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kerntune import syntax
from kerntune.api.document import Document
from kerntune.cli.commands import Namespace
from kerntune.cli.shield_options import cpus_of, nice_of, slice_of
from kerntune.errors import Failed, Usage
from kerntune.kernel.disk import disk_of
from kerntune.model import Setting
from kerntune.run import numa, ready, scheduling
from kerntune.run.scheduling import RealTime
from kerntune.run.shield import Shield
from kerntune.units import gib, spell_cpus

AUTO: Final = "auto"
BORROWED: Final = "hugepages-overcommit"
THP: Final = "thp"
ENABLED: Final = "enabled"
# Only the loading of a model needs these: after it nothing is read from the disk.
OF_LOADING: Final = frozenset({"io-scheduler", "read-ahead"})
WHOSE: Final = {RealTime.MAIN: "its main thread runs", RealTime.ALL: "it runs, with all that it starts,"}
EMPTY: Final = "Leave it out, or give it a value: is a variable of the shell not set?"


class Plan(NamedTuple):
    """The settings to hold while the command runs, and those while it loads. With `thp` the host's value decides."""

    settings: tuple[Setting, ...]
    loading: tuple[Setting, ...]
    governor: str
    profile: str
    thp: bool

    @property
    def needs_daemon(self) -> bool:
        """True if anything is to be held."""
        return bool(self.settings or self.loading or self.governor or self.profile or self.thp)


def plan_of(args: Namespace) -> Plan:
    """Return what is to be held. Raise Usage for arguments without a meaning, and Failed for a port that is open."""
    for name in ("profile", "hugepages", "governor", "overcommit", "numa", "cpus", "wait_ready", "output"):
        if getattr(args, name) == "":
            raise Usage(f"--{name.replace('_', '-')} is empty", EMPTY)
    if args.borrow and not args.hugepages:
        raise Usage("--borrow borrows nothing", "Say how much: --hugepages 64G --borrow")
    if args.thp and args.hugepages:
        raise Usage("--thp and --hugepages tell malloc two things", "Leave out one: --hugepages reserves memory")
    if args.wait_ready:
        ready.check(args.wait_ready)
    found = tuple(settings_of(args))
    loading = tuple(one for one in found if one.tunable in OF_LOADING) if args.wait_ready else ()
    settings = tuple(one for one in found if one not in loading)
    return Plan(settings, loading, args.governor or "", args.profile or "", args.thp)


def settings_of(args: Namespace) -> Iterator[Setting]:
    """Yield the settings that are asked for, but for the governor and transparent huge pages. Raise Usage."""
    if args.hugepages:
        yield syntax.setting(f"{BORROWED if args.borrow else 'hugepages'}={args.hugepages}")
    for text in args.scheduler or ():
        yield syntax.setting(f"io-scheduler@{pair_of('--scheduler', text, 'nvme0n1=none')}")
    for text in args.read_ahead or ():
        where, _, value = pair_of("--read-ahead", text, "/models=4M").rpartition("=")
        for drive in drives_of(where):
            yield syntax.setting(f"read-ahead@{drive}={value}")
    if args.overcommit:
        yield syntax.setting(f"overcommit={args.overcommit}")
    for text in args.set or ():
        yield syntax.setting(text)


def pair_of(option: str, text: str, example: str) -> str:
    """Return a text of the form NAME=VALUE as it is. Raise Usage for another one."""
    name, _, value = text.rpartition("=")
    if not name or not value:
        raise Usage(f"{option} {text} is not NAME=VALUE", f"For example {option} {example}")
    return text


def drives_of(where: str) -> Sequence[str]:
    """Return the drives below a file or a folder, or the name of a drive as it is. Raise Failed."""
    is_name = where.startswith(("/dev/", "by-")) and not (os.path.isfile(where) or os.path.isdir(where))
    if "/" not in where or is_name:
        return [where]
    try:
        fd = os.open(where, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Failed(f"{where} cannot be looked at ({reason})", "Name a file, a folder, or a drive") from error
    try:
        disk = disk_of(fd)
    finally:
        os.close(fd)
    if not disk.drives:
        kind = f" (its file system is {disk.file_system})" if disk.file_system else ""
        raise Failed(f"{where} lies on no drive of this host{kind}", "Read-ahead is a setting of drives: leave it out")
    return disk.drives


def transparent(described: Document) -> Setting:
    """Return the setting that keeps transparent huge pages usable: the present value, or madvise in place of never."""
    now = next(
        (row["value"] for row in described["targets"] if (row["tunable"], row["instance"]) == (THP, ENABLED)), ""
    )
    return Setting(THP, ENABLED, now if now in ("always", "madvise") else "madvise")


def shield_of(args: Namespace) -> tuple[Shield, list[str]]:
    """Return the shield of the command, but for --cpus auto, and sentences about it. Raise Usage, NotSupported."""
    cpus = frozenset[int]() if args.cpus == AUTO else cpus_of(args.cpus)
    slice_us, real_time = slice_of(args.slice), RealTime(args.rt or "")
    nice = nice_of(args.nice)
    words, place = [], None
    if slice_us and not scheduling.keeps_slices():
        slice_us = 0
        words.append("--slice is left out: this kernel keeps no slice of a process, which takes Linux 6.12")
    if slice_us:
        words.append(f"it gets a slice of {slice_us} us")
    if args.numa:
        place = numa.place(args.numa, cpus or frozenset(os.sched_getaffinity(0)))
        cpus = place.cpus or cpus
        words.append(f"--numa: {place.why}")
    if cpus and not (place and place.cpus):
        words.append(f"it stays on CPU {spell_cpus(cpus)}; others may run there too")
    if nice is not None:
        words.append(f"it runs with nice value {nice}")
    if real_time:
        words.append(f"{WHOSE[real_time]} under real time (SCHED_FIFO 1)")
        words.append(spinning())
    if args.memlock:
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        words.append(f"it may lock {'any amount' if hard == resource.RLIM_INFINITY else gib(hard)} of memory")
    return Shield(cpus, slice_us, nice, real_time, place.policy if place else None, args.memlock), words


def spinning() -> str:
    """Return what a process that spins under real time takes of its CPU."""
    part = scheduling.spinning_share()
    taken = "all" if part is None else f"{part:.0f} %"
    return f"a real-time thread that spins takes {taken} of its CPU, and leaves the rest to others"
