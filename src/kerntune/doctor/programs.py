"""The effects of programs that boot scripts call to set kernel values: paths below the root, and values. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from kerntune.doctor.boot_settings import CLASSIC, path_of
from kerntune.doctor.files import whole
from kerntune.tunables.knobs import CPU_GOVERNOR, READ_AHEAD

# Short options of sysctl(8); the file may follow -p and -f in the same word.
LOADS: Final = re.compile(r"-[A-Za-z]*?[pf](.*)", re.DOTALL)


def effects(name: str, argv: Sequence[str]) -> list[tuple[str, str]] | None:
    """Return what a program sets, by its name and its arguments, or None if it is no such program."""
    if any("$" in word or "`" in word for word in argv):
        return None
    match name:
        case "sysctl":
            return sysctls(argv)
        case "cpupower" if "frequency-set" in argv:
            return governors(argv, "-g", "--governor", everywhere="all")
        case "cpufreq-set":
            return governors(argv, "-g", "--governor", everywhere=None)
        case "blockdev":
            return list(read_ahead(argv)) or None
    return None


def sysctls(argv: Sequence[str]) -> list[tuple[str, str]] | None:
    """Return what `sysctl -w key=value ...` sets; another module reads the files of --system in their own place."""
    pairs = (word.partition("=") for word in argv if not word.startswith("-"))
    found = [(f"proc/sys/{path_of(key)}", " ".join(value.split())) for key, equals, value in pairs if key and equals]
    return found or ([] if "--system" in argv else None)


def loaded(argv: Sequence[str]) -> list[str]:
    """Return the files that `sysctl -p FILE ...` reads, which is /etc/sysctl.conf if it names none.

    The list is empty if the command reads no file.
    """
    files = [word for word in argv if not word.startswith("-")]
    for word in argv:
        if word.startswith("--load"):
            _, equals, file = word.partition("=")
            return [file, *files] if equals else files or [f"/{CLASSIC}"]
        if not word.startswith("--") and (found := LOADS.fullmatch(word)):
            return [found[1], *files] if found[1] else files or [f"/{CLASSIC}"]
    return []


def option(argv: Sequence[str], *names: str) -> str:
    """Return the value of an option in any spelling, or "" without it."""
    for index, word in enumerate(argv):
        for name in names:
            if word == name and index + 1 < len(argv):
                return argv[index + 1]
            if name.startswith("--") and word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return ""


def governors(argv: Sequence[str], *names: str, everywhere: str | None) -> list[tuple[str, str]] | None:
    """Return the governor that a command sets, with the path for its CPUs.

    cpupower sets all CPUs unless -c names some; cpufreq-set (`everywhere` is None) sets only CPU 0.
    """
    governor = option(argv, *names)
    cpus = option(argv, "-c", "--cpu") or everywhere or "0"
    return [(CPU_GOVERNOR.scope.of_device(f"cpu{'*' if cpus == 'all' else cpus}"), governor)] if governor else None


def read_ahead(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what `blockdev --setra N /dev/X` sets: N counts sectors of 512 bytes, read_ahead_kb counts KiB."""
    sectors = whole(option(argv, "--setra", "--setfra"))
    for word in argv:
        if word.startswith("/dev/") and sectors is not None:
            yield READ_AHEAD.scope.of_device(word.removeprefix("/dev/")), str(sectors // 2)
