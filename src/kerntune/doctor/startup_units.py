"""The reader of what a boot runs beside rc.local: commands of enabled systemd units, and `@reboot` lines of cron."""

from __future__ import annotations

import itertools
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from kerntune.doctor.files import NOWHERE, Files, Line, drop_ins
from kerntune.doctor.relevant import RELEVANT
from kerntune.doctor.shell_reader import literal
from kerntune.doctor.shell_script import BY_HAND, GLOB, NOT_READ, NOT_RUN, SCRIPTS, SHELLS, Script, bare, covers
from kerntune.doctor.types import Assignment, Cause, Entry, Left, Place, Stage
from kerntune.tunables import REGISTRY

UNIT_FOLDERS: Final = (
    "etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system",
    "lib/systemd/system",
)  # fmt: skip
# A boot comes to these targets; a unit that only another target wants may never start.
BOOT_TARGETS: Final = frozenset(
    {"default", "graphical", "multi-user", "basic", "sysinit", "local-fs", "local-fs-pre", "remote-fs", "getty"}
    | {"network", "network-pre", "network-online", "sockets", "timers", "paths", "swap", "cryptsetup", "kerntune"}
)
# kerntuned starts after what these want.
EARLY_TARGETS: Final = frozenset({"basic", "sysinit", "local-fs", "local-fs-pre", "swap", "cryptsetup"})
# With these a command may not start, or may not write to files of the kernel.
HINDRANCES: Final = (
    "ExecCondition", "ProtectKernelTunables", "DynamicUser", "PrivateUsers", "RootDirectory", "RootImage",
    "ReadOnlyPaths", "InaccessiblePaths", "CapabilityBoundingSet", "SystemCallFilter",
)  # fmt: skip
FALSE: Final = frozenset({"", "0", "no", "n", "false", "f", "off"})
MAX_UNITS: Final = 1000
MAX_DROP_INS: Final = 100  # of one unit
MAX_COMMAND: Final = 1 << 14  # characters
MAX_CRONTABS: Final = 1000
MAX_CONDITIONS: Final = 10  # of one unit
CONDITION: Final = re.compile(r"(Condition|Assert)[A-Za-z0-9]+")
ROOT: Final = frozenset({"", "root", "0"})
RUN_AS: Final = BY_HAND.format("it runs as {}, who may not write there")
SUDO_AS: Final = BY_HAND.format("it runs as {}, and kerntune does not know what sudo lets that user do")
SUDO: Final = re.compile(r"\b(?:sudo|doas|su|pkexec)\b")
NOT_BY_BOOT: Final = BY_HAND.format("{} starts with {}, which a boot may not come to")
HINDERED: Final = BY_HAND.format("with {}={} its unit may not set it")
UNDONE: Final = BY_HAND.format("its unit sets something again when it ends")
NOT_ONESHOT: Final = BY_HAND.format("systemd starts a unit with several ExecStart= only if it has Type=oneshot")
MAY_FAIL: Final = BY_HAND.format("it does not run if the command at {} fails")
MANY_CONDITIONS: Final = BY_HAND.format("its unit has more conditions than kerntune reads")
NO_ORDER: Final = BY_HAND.format(
    "another unit or cron sets it to another value, and the order of units is not known here"
)
TOO_MANY: Final = BY_HAND.format("of {} files like this kerntune reads the first {} only")
NO_NEWLINE: Final = BY_HAND.format("the file does not end with a newline, and then cron may ignore it")
OTHER_SHELL: Final = BY_HAND.format("cron runs it with SHELL={}")
PRINTERS: Final = frozenset({"echo", "printf", "cat"})
NO_SHELL: Final = "systemd starts no shell, so what stands behind > or | is an argument"
DISABLE: Final = "sudo systemctl disable {} ends it, if the unit does nothing else"
PREFIXES: Final = re.compile(r"[-@:+!|]*")
SPECIFIER: Final = re.compile(r"%(.?)")
FOR_SHELL: Final = re.compile(r"[*?\[<>|]")
# systemd expands this, in a word or as a word of its own. It leaves `$NAME` inside a word to the shell.
EXPANDED: Final = re.compile(r"(?<!\$)(?:\$\$)*(?:\$\{|^\$[A-Za-z_])")
ESCAPE: Final = re.compile(r"\\(?![\"'\\])")  # an escape of C
BACKSLASHES: Final = re.compile(r"(?<!\\)(?:\\\\)*\\\Z")  # an odd number
INTERPRETER: Final = re.compile(r"(?:python|perl)[0-9.]*")
SHEBANG: Final = re.compile(r"#![ \t]*\S*?/(?:env[ \t]+)?(?:sh|dash|bash)\b")
TUNED_PATH: Final = re.compile(r"/proc/sys/vm/|/sys/\S{0,100}?(?:block|cpufreq|hugepage)")
PATTERNS: Final = tuple(
    (re.compile(pattern), tunable.name) for tunable in REGISTRY for pattern in tunable.import_patterns
)
CRONTAB: Final = "etc/crontab"
CRON_FOLDER: Final = "etc/cron.d"
USERS_CRONTABS: Final = "var/spool/cron/crontabs"
CRON_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")  # cron(8) of Debian reads no other files of /etc/cron.d
REBOOT: Final = re.compile(r"[ \t]*@reboot[ \t]+(\S.*)")
SHELL_SET: Final = re.compile(r"[ \t]*SHELL[ \t]*=(.*)")


class UnitSetting(NamedTuple):
    """A setting of a unit or its drop-ins, with its place; `section` is the section it stands in."""

    section: str
    name: str
    value: str
    place: Place


class Enabled(NamedTuple):
    """An enabled unit: its file, all names it is known by here, and the targets and units that want it."""

    file: str
    names: dict[str, None]
    targets: dict[str, None]

    @property
    def starts_with(self) -> set[str]:
        return {target.removesuffix(".target") for target in self.targets}


def read(files: Files) -> tuple[list[Entry], list[Entry]]:
    """Return what the commands of enabled units set, and what cron sets; leave what two of them set differently."""
    enabled = list(enabled_units(files).items())
    units = {unit: list(read_unit(files, unit, one)) for unit, one in enabled[:MAX_UNITS]}
    cron = {str(number): line for number, line in enumerate(crontabs(files))}
    no_order = contested(units | cron)
    # Of equal values the last one counts: a person's and not a package's.
    by_person = sorted(units.values(), key=lambda entries: not all(entry.place.shipped for entry in entries))
    found, of_cron = (
        [unless(entry, NO_ORDER if file_key(entry) in no_order else "") for entries in some for entry in entries]
        for some in (by_person, cron.values())
    )
    return [*found, *too_many(UNIT_FOLDERS[0], [unit for unit, _ in enabled], MAX_UNITS)], of_cron


def contested(sources: Mapping[str, Sequence[Entry]]) -> set[tuple[str, str]]:
    """Return the keys that two sources set to different values; a glob is a key for all instances."""
    wrote: dict[str, dict[str, tuple[set[str], set[str]]]] = {}
    for source, entries in sources.items():
        for entry in entries:
            if isinstance(entry, Assignment) and (key := file_key(entry)):
                both = wrote.setdefault(key[0], {}).setdefault(key[1], (set(), set()))
                for known, new in zip(both, (source, entry.value.strip()), strict=True):
                    if len(known) < 2:
                        known.add(new)
    found = set()
    for name, of in wrote.items():
        everybody = of.get("*", (set(), set()))
        for instance, own in of.items():
            beside = list(of.values()) if instance == "*" else [own, everybody]
            if all(len(set().union(*kind)) > 1 for kind in zip(*beside, strict=True)):
                found.add((name, instance))
    return found


def file_key(entry: Entry) -> tuple[str, str] | None:
    """Return the tunable and the instance that a line sets, "*" for several, or None if it sets nothing tuned."""
    path = posixpath.normpath(entry.path) if isinstance(entry, Assignment) and not entry.idle else ""
    for pattern, name in PATTERNS:
        if found := pattern.fullmatch(path):
            of = found.groupdict()
            instance = of.get("kb") or of.get("cpus") or of.get("drive") or "*"
            return f"{name} {of.get('name')} {of.get('part')}", "*" if GLOB.search(instance) else instance
    return None


def too_many(folder: str, names: Sequence[str], most: int) -> list[Entry]:
    """Return that not all files were read, if so."""
    return [Left(Place(f"/{folder}", 1, names[most]), TOO_MANY.format(len(names), most))] if names[most:] else []


def enabled_units(files: Files) -> dict[str, Enabled]:
    """Return the services with a file that a target or another unit wants, by the name of their file."""
    folders = list(filter(None, dict.fromkeys(map(files.leads_to, UNIT_FOLDERS))))
    found: dict[str, Enabled] = {}
    for folder, suffix in itertools.product(folders, (".wants", ".requires")):
        for wants in files.names(folder, suffix):
            for name in files.names(f"{folder}/{wants}", ".service"):
                if not (file := unit_file(files, name)):
                    continue
                place, _, own = files.leads_to(file).rpartition("/")
                _, at, instance = name.partition("@")
                if place not in folders or not own.endswith(".service"):
                    own = name
                elif at and own.endswith("@.service"):
                    own = own.replace("@.service", f"@{instance}")
                one = found.setdefault(own, Enabled(file, {own: None}, {}))
                one.names[name] = None
                one.targets[wants.rpartition(".")[0]] = None
    return found


def unit_file(files: Files, unit: str) -> str:
    """Return the file of a unit or of its template, or "" if it is missing or masked."""
    names = dict.fromkeys((unit, template_of(unit)))
    paths = (f"{folder}/{name}" for name in names for folder in UNIT_FOLDERS)
    path = next(filter(files.there, paths), "")
    return "" if files.leads_to(path) == NOWHERE else path


def template_of(unit: str) -> str:
    """Return the template of an instance, or the unit itself."""
    name, at, _ = unit.partition("@")
    return f"{name}@.service" if at else unit


def read_unit(files: Files, unit: str, enabled: Enabled) -> Iterator[Entry]:
    """Yield what the commands of a unit set when it starts; a place has the unit if all of the unit is taken over."""
    settings = list(unit_settings(files, unit, enabled))
    last = {setting.name: setting.value for setting in settings if setting.section == "Service"}
    conditions = list(
        dict.fromkeys(
            (one.name, one.value)
            for one in settings
            if one.section == "Unit" and CONDITION.fullmatch(one.name) and one.value
        )
    )
    commands: dict[str, list[UnitSetting]] = {"ExecStartPre": [], "ExecStart": [], "ExecStartPost": []}
    for setting in settings:
        if setting.section == "Service" and setting.name in commands:
            if setting.value:
                commands[setting.name].append(setting)
            else:
                commands[setting.name].clear()
    why = hindrance(unit, enabled, last, len(commands["ExecStart"]))
    if not why and len(conditions) > MAX_CONDITIONS:
        why = MANY_CONDITIONS
    stage = Stage.TMPFILES if EARLY_TARGETS & enabled.starts_with else Stage.SERVICE
    found: list[Entry] = []
    whole = not any(name.startswith("Exec") and name not in commands for name in last)
    for command in itertools.chain.from_iterable(commands.values()):
        flags = flags_of(command.value)
        # With !! a command keeps its user wherever the kernel has ambient capabilities.
        user = "" if "+" in flags or flags.count("!") == 1 else last.get("User", "")
        entries = [
            unless(replace(entry, stage=stage), why or as_user(user, f"{command.value} {entry.place.text}"), conditions)
            if isinstance(entry, Assignment)
            else entry
            for entry in exec_line(files, command)
        ]
        taken = bool(entries) and all(map(file_key, entries))
        whole &= taken
        if not why and "-" not in flags and not (taken and all(entry.place == command.place for entry in entries)):
            why = MAY_FAIL.format(command.place)
        found += entries
    for entry in found:
        if not whole:
            yield replace(entry, place=replace(entry.place, unit=""))
        elif isinstance(entry, Assignment):
            yield replace(entry, remark=DISABLE.format(shlex.quote(unit)))


def hindrance(unit: str, enabled: Enabled, service: Mapping[str, str], starts: int) -> str:
    """Return why a boot may not run a unit's commands as they stand, or ""; `starts` counts its `ExecStart=` lines."""
    if BOOT_TARGETS.isdisjoint(enabled.starts_with):
        return NOT_BY_BOOT.format(unit, " and ".join(enabled.targets))
    if name := next((name for name in HINDRANCES if service.get(name, "").lower() not in FALSE), ""):
        return HINDERED.format(name, service[name])
    ends = service.get("RemainAfterExit", "").lower() in FALSE
    if ends and RELEVANT.search(f"{service.get('ExecStop')} {service.get('ExecStopPost')}"):
        return UNDONE
    return NOT_ONESHOT if starts > 1 and service.get("Type") != "oneshot" else ""


def as_user(user: str, command: str) -> str:
    """Return why a user's command is left, or "" for root."""
    return "" if user in ROOT else (SUDO_AS if SUDO.search(command) else RUN_AS).format(user)


def flags_of(command: str) -> str:
    """Return the special characters in front of a command."""
    prefix = PREFIXES.match(command)
    return prefix[0] if prefix else ""


def unless(entry: Entry, why: str, conditions: Sequence[tuple[str, str]] = ()) -> Entry:
    """Return an assignment as a line that is left to people, if a boot may not do it for a reason or a condition.

    It is no condition that the file of the assignment exists.
    """
    if not isinstance(entry, Assignment) or not RELEVANT.search(f"/{entry.path}"):
        return entry
    for name, value in () if why else conditions:
        if name != "ConditionPathExists" or not covers(value, entry.path):
            why = BY_HAND.format(f"a claim cannot say {name}={value}")
            break
    return Left(entry.place, why) if why else entry


def unit_settings(files: Files, unit: str, enabled: Enabled) -> Iterator[UnitSetting]:
    """Yield the settings of a unit file and its drop-ins, in the order of reading (systemd.unit(5))."""
    names: list[str] = []
    for name in enabled.names:
        base = name.removesuffix(".service").partition("@")[0]
        dashes = [f"{base[: dash.end()]}.service" for dash in re.finditer("-", base)]
        names += [name, *reversed(dashes), template_of(name)]
    folders = [f"{folder}/{name}.d" for folder in UNIT_FOLDERS for name in dict.fromkeys(names)]
    drops = drop_ins(files, [*folders, *(f"{folder}/service.d" for folder in UNIT_FOLDERS)], ".conf")
    yield from settings_of(files, enabled.file, unit)
    for path in [drop.path for drop in drops if not drop.masked_by][:MAX_DROP_INS]:
        yield from settings_of(files, path, unit)


def settings_of(files: Files, path: str, unit: str) -> Iterator[UnitSetting]:
    """Yield the settings of one file; a backslash at the end continues a line, also over comments."""
    section, first = "", 0
    parts: list[str] = []
    for number, text in (*files.lines(path), Line(0, "")):  # the end of the file ends a line too
        line = text.lstrip()
        if line.startswith(("#", ";")):
            continue
        first = first if parts else number
        if BACKSLASHES.search(line):
            parts.append(line[:-1])
            continue
        parts.append(line)
        whole = " ".join(parts).strip()
        parts = []
        name, equals, value = whole.partition("=")
        if whole.startswith("[") and whole.endswith("]"):
            section = whole[1:-1]
        elif equals:
            yield UnitSetting(section, name.strip(), value.strip(), Place(f"/{path}", first, whole, unit))


def exec_line(files: Files, command: UnitSetting) -> list[Entry]:
    """Return what one `ExecStart=` sets, or that it has to be translated by hand (systemd.service(5))."""
    place, flags = command.place, flags_of(command.value)
    words = words_of(command.value[len(flags) :], place.unit)
    by_hand: list[Entry] = [Left(place, NOT_READ)] if RELEVANT.search(command.value) else []
    if not words or not {"@", "|"}.isdisjoint(flags) or ";" in words or (":" in flags and "$" in command.value):
        return by_hand
    if (entries := script_of(files, words, place)) is not None:
        return entries or by_hand
    if not any(word.rsplit("/", 1)[-1] in SHELLS for word in words):
        if by_hand and not {">", ">>", "|"}.isdisjoint(words) and words[0].rsplit("/", 1)[-1] in PRINTERS:
            return [Left(place, NO_SHELL, Cause.NO_EFFECT)]
        if any(map(FOR_SHELL.search, words)):
            return by_hand
    return Script(place.file, files, stage=Stage.SERVICE, place=place).execute([literal(word) for word in words])


def script_of(files: Files, words: Sequence[str], place: Place) -> list[Entry] | None:
    """Return what a script file sets that a command runs, or None if it runs no script."""
    program, *rest = bare(words) or words
    name = program.rsplit("/", 1)[-1]
    run_by = name in SHELLS or INTERPRETER.fullmatch(name)
    path = next((word for word in rest if not word.startswith("-")), "") if run_by else program
    file = files.leads_to(path)
    if not path.startswith("/") or file.startswith(("proc/", "sys/")) or (text := files.text(file)) is None:
        return None
    if not run_by and not text.startswith("#!"):
        return None
    if file in map(files.leads_to, SCRIPTS):
        return []  # which is read as rc.local
    if place.shipped or not (name in SHELLS or SHEBANG.match(text)):
        return [Left(place, NOT_READ)] if TUNED_PATH.search(text) else []
    idle = "" if run_by or files.runs(file) else NOT_RUN.format(path.lstrip("/"))
    found = Script(path, files, idle, Stage.SERVICE).read(text.replace("\r\n", "\n"))
    return [replace(entry, place=replace(entry.place, unit=place.unit)) for entry in found]


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


def crontabs(files: Files) -> Iterator[list[Entry]]:
    """Yield what each `@reboot` line sets; outside of users' own files a column names the user."""
    folder = [name for name in files.names(CRON_FOLDER) if CRON_NAME.fullmatch(name)]
    for path in (CRONTAB, *(f"{CRON_FOLDER}/{name}" for name in folder[:MAX_CRONTABS])):
        yield from crontab(files, path, "")
    yield too_many(CRON_FOLDER, folder, MAX_CRONTABS)
    users = files.names(USERS_CRONTABS)
    for user in users[:MAX_CRONTABS]:
        yield from crontab(files, f"{USERS_CRONTABS}/{user}", user)
    yield too_many(USERS_CRONTABS, users, MAX_CRONTABS)


def crontab(files: Files, path: str, user: str) -> Iterator[list[Entry]]:
    """Yield what each `@reboot` line of one file sets (crontab(5)); without a user each line names one."""
    lines = list(files.lines(path))
    why, broken = "", NO_NEWLINE if lines[-1].text else ""
    for number, text in lines:
        if found := SHELL_SET.fullmatch(text):
            shell = found[1].strip().strip("\"'")
            why = "" if shell.rpartition("/")[2] in SHELLS else OTHER_SHELL.format(shell)
        if not (found := REBOOT.fullmatch(text)):
            continue
        place, all_of_it = Place(f"/{path}", number, text.strip()), found[1].strip()
        owner, command = (user, all_of_it) if user else [*all_of_it.split(None, 1), ""][:2]
        if owner not in ROOT:
            yield [Left(place, as_user(owner, command))] if RELEVANT.search(command) else []
            continue
        percent = NOT_READ if re.search(r"(?<!\\)%", command) else ""  # an unescaped % ends the command
        script = Script(place.file, files, stage=Stage.CRON, place=place)
        yield [unless(entry, broken or why or percent) for entry in script.read(command.replace("\\%", "%"))]
