"""What a boot runs beside rc.local: the commands of enabled systemd units, and the `@reboot` lines of cron."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from kerntune.doctor.files import NOWHERE, Files, drop_ins
from kerntune.doctor.shell_reader import literal
from kerntune.doctor.shell_script import GLOB, NOT_READ, SHELLS, Script, covers
from kerntune.doctor.types import RELEVANT, Assignment, Cause, Entry, Left, Place, Stage

UNIT_FOLDERS: Final = (
    "etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system",
    "lib/systemd/system",
)  # fmt: skip
# A boot comes to these targets; a unit that only another target wants may never start.
BOOT_TARGETS: Final = frozenset(
    {"default", "graphical", "multi-user", "basic", "sysinit", "local-fs", "local-fs-pre", "remote-fs", "getty"}
    | {"network", "network-pre", "network-online", "sockets", "timers", "paths", "swap", "cryptsetup", "kerntune"}
)
MAX_UNITS: Final = 1000
MAX_DROP_INS: Final = 100  # of one unit
MAX_COMMAND: Final = 1 << 14  # characters
MAX_CRONTABS: Final = 1000
CONDITION: Final = re.compile(r"(Condition|Assert)[A-Za-z0-9]+")
ROOT: Final = frozenset({"", "root", "0"})
RUN_AS: Final = "it runs as {}, who may not write there: translate it by hand"
NO_SHELL: Final = "systemd starts no shell, so what stands behind > or | is an argument"
DISABLE: Final = "sudo systemctl disable {} ends it, if the unit does nothing else"
PREFIXES: Final = re.compile(r"[-@:+!|]*")
SPECIFIER: Final = re.compile(r"%(.?)")
# What systemd would expand, in a word or as a word of its own; `$NAME` in a word is left to the shell.
EXPANDED: Final = re.compile(r"(?<!\$)(?:\$\$)*(?:\$\{|^\$[A-Za-z_])")
ESCAPE: Final = re.compile(r"\\(?![\"'\\])")  # an escape of C
CRONTAB: Final = "etc/crontab"
CRON_FOLDER: Final = "etc/cron.d"
USERS_CRONTABS: Final = "var/spool/cron/crontabs"
CRON_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")  # cron(8) of Debian reads no other files of /etc/cron.d
REBOOT: Final = re.compile(r"\s*@reboot\s+(.*\S)\s*")


class UnitSetting(NamedTuple):
    """A setting of a unit or its drop-ins, with its place; `section` is the section it stands in."""

    section: str
    name: str
    value: str
    place: Place


def read_units(files: Files) -> Iterator[Entry]:
    """Yield what the commands of enabled units set."""
    for unit, targets in enabled_units(files).items():
        yield from read_unit(files, unit, targets)


def enabled_units(files: Files) -> dict[str, list[str]]:
    """Return the services that a target or another unit wants, and which do; no more than MAX_UNITS."""
    links = (
        (name, wants.rpartition(".")[0])
        for folder in filter(None, dict.fromkeys(map(files.leads_to, UNIT_FOLDERS)))
        for suffix in (".wants", ".requires")
        for wants in files.names(folder, suffix)
        for name in files.names(f"{folder}/{wants}", ".service")
    )
    found: dict[str, list[str]] = {}
    for name, target in itertools.islice(links, MAX_UNITS):
        found.setdefault(name, []).append(target)
    return found


def read_unit(files: Files, unit: str, targets: Iterable[str]) -> Iterator[Entry]:
    """Yield what the commands of a unit set when it starts."""
    settings = list(unit_settings(files, unit))
    last = {setting.name: setting.value for setting in settings if setting.section == "Service"}
    why = ""
    if not any(target.removesuffix(".target") in BOOT_TARGETS for target in targets):
        why = f"{unit} starts with {' and '.join(targets)}, which a boot may not come to: translate it by hand"
    elif last.get("User", "") not in ROOT:
        why = RUN_AS.format(last["User"])
    conditions = [one for one in settings if one.section == "Unit" and CONDITION.fullmatch(one.name) and one.value]
    commands: dict[str, list[UnitSetting]] = {"ExecStartPre": [], "ExecStart": [], "ExecStartPost": []}
    for setting in settings:
        if setting.section == "Service" and setting.name in commands:
            if setting.value:
                commands[setting.name].append(setting)
            else:
                commands[setting.name].clear()
    for command in itertools.chain.from_iterable(commands.values()):
        for entry in exec_line(files, command):
            yield unless(entry, why or unmet(conditions, entry))


def unmet(conditions: Iterable[UnitSetting], entry: Entry) -> str:
    """Return which condition of a unit is more than that the file of an assignment exists, or ""."""
    for one in conditions:
        if isinstance(entry, Left):
            break
        if one.name != "ConditionPathExists" or not covers(one.value, entry.path):
            return f"a claim cannot say {one.name}={one.value}: translate it by hand"
    return ""


def unless(entry: Entry, why: str) -> Entry:
    """Return an assignment as a line that is left to people, if there is a reason why a boot may not do it."""
    left = why and isinstance(entry, Assignment) and RELEVANT.search(f"/{entry.path}")
    return Left(entry.place, why) if left else entry


def unit_settings(files: Files, unit: str) -> Iterator[UnitSetting]:
    """Yield the settings of a unit file and its drop-ins, in the order of reading (systemd.unit(5))."""
    name, at, _ = unit.partition("@")
    template = f"{name}@.service" if at else unit
    names = dict.fromkeys((unit, template))
    paths = [f"{folder}/{name}" for name in names for folder in UNIT_FOLDERS if files.there(f"{folder}/{name}")]
    if not paths or files.leads_to(paths[0]) == NOWHERE:
        return
    del paths[1:]
    for name in reversed(names):
        drops = drop_ins(files, [f"{folder}/{name}.d" for folder in UNIT_FOLDERS], ".conf")
        paths += [drop.path for drop in drops if not drop.masked_by][:MAX_DROP_INS]
    for one in paths:
        yield from settings_of(files, one, unit)


def settings_of(files: Files, path: str, unit: str) -> Iterator[UnitSetting]:
    """Yield the settings of one file; a backslash at the end continues a line, also over comments."""
    section, first = "", 0
    parts: list[str] = []
    for number, text in files.lines(path):
        line = text.strip()
        if line.startswith(("#", ";")):
            continue
        first = first if parts else number
        parts.append(line.removesuffix("\\"))
        if line.endswith("\\"):
            continue
        whole = " ".join(parts)
        parts = []
        name, equals, value = whole.partition("=")
        if whole.startswith("[") and whole.endswith("]"):
            section = whole[1:-1]
        elif equals:
            yield UnitSetting(section, name.strip(), value.strip(), Place(f"/{path}", first, whole, unit))


def exec_line(files: Files, command: UnitSetting) -> list[Entry]:
    """Return what one `ExecStart=` sets, or that it has to be translated by hand (systemd.service(5))."""
    place = command.place
    prefix = PREFIXES.match(command.value)
    flags = prefix[0] if prefix else ""
    words = words_of(command.value[len(flags) :], place.unit)
    if words is None or "@" in flags or ";" in words or (":" in flags and "$" in command.value):
        return [Left(place, NOT_READ)] if RELEVANT.search(command.value) else []
    in_shell = any(word.rsplit("/", 1)[-1] in SHELLS for word in words)
    if not in_shell and not {">", ">>", "|"}.isdisjoint(words) and RELEVANT.search(command.value):
        return [Left(place, NO_SHELL, Cause.NO_EFFECT)]
    if not in_shell and any(map(GLOB.search, words)):
        return [Left(place, NOT_READ)] if RELEVANT.search(command.value) else []
    script = Script(place.file, files, stage=Stage.SERVICE, place=place)
    remark = DISABLE.format(shlex.quote(place.unit))
    return [
        replace(entry, remark=remark) if isinstance(entry, Assignment) else entry
        for entry in script.execute([literal(word) for word in words])
    ]


def words_of(text: str, unit: str) -> list[str] | None:
    """Return the words of a command as systemd passes them to the program, or None if that is not known here."""
    instance = unit.partition("@")[2].removesuffix(".service")
    known = {"%": "%", "n": unit, "i": instance, "p": unit.partition("@")[0].removesuffix(".service")}
    if (
        len(text) > MAX_COMMAND
        or ESCAPE.search(text)
        or any(found[1] not in known for found in SPECIFIER.finditer(text))
    ):
        return None
    try:
        words = shlex.split(SPECIFIER.sub(lambda found: known[found[1]], text))
    except ValueError:
        return None
    return None if any(map(EXPANDED.search, words)) else [word.replace("$$", "$") for word in words]


def read_cron(files: Files) -> Iterator[Entry]:
    """Yield what cron runs after a boot: `@reboot` lines, with a column for the user outside of users' own files."""
    folder = [name for name in files.names(CRON_FOLDER) if CRON_NAME.fullmatch(name)]
    system = [CRONTAB, *(f"{CRON_FOLDER}/{name}" for name in folder[:MAX_CRONTABS])]
    for path in system:
        yield from crontab(files, path, "")
    for user in files.names(USERS_CRONTABS)[:MAX_CRONTABS]:
        yield from crontab(files, f"{USERS_CRONTABS}/{user}", user)


def crontab(files: Files, path: str, user: str) -> Iterator[Entry]:
    """Yield what the `@reboot` lines of one file set (crontab(5)); without a user each line names one."""
    for number, text in files.lines(path):
        found = REBOOT.fullmatch(text)
        if not found:
            continue
        place = Place(f"/{path}", number, text.strip())
        owner, command = (user, found[1]) if user else [*found[1].split(None, 1), ""][:2]
        if owner not in ROOT:
            if RELEVANT.search(command):
                yield Left(place, RUN_AS.format(owner))
            continue
        why = NOT_READ if re.search(r"(?<!\\)%", command) else ""  # an unescaped % ends the command
        script = Script(place.file, files, stage=Stage.CRON, place=place)
        for entry in script.read(command.replace("\\%", "%")):
            yield unless(entry, why)
