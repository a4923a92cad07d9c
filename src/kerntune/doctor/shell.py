"""Reads the lines that people paste into boot scripts (rc.local) as assignments; it never runs any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kerntune.doctor import words
from kerntune.doctor.files import Files, whole
from kerntune.doctor.files import Line as Row
from kerntune.doctor.nouns import Assignment, Left, Line, Place, Stage
from kerntune.doctor.sysctl import path_of
from kerntune.doctor.words import Command

SCRIPTS: Final = ("etc/rc.local", "etc/rc.d/rc.local")
CPUFREQ: Final = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
# What a line has to mention to be of interest when it is not understood.
RELEVANT: Final = re.compile(
    r"/proc/sys/vm|/sys/(class/)?block|cpufreq|transparent_hugepage|hugepages|hugeadm|cpupower|tuned-adm|--setra"
    r"|powerprofilesctl|x86_energy_perf_policy|\bvm\."
)
# They read, test or wait; what they mention they do not set.
QUIET: Final = frozenset(
    {"[", "[[", "test", "cat", "grep", "ls", "exit", "return", "modprobe", "sleep", "for", "case", "logger", "export"}
    | {"chmod", "chown", "chgrp", "true", "false", ":", "set", "mkdir", "mount", "udevadm", "systemctl"}
)
PREFIXES: Final = frozenset({"sudo", "exec", "env", "command", "builtin", "nohup", "nice", "ionice", "doas"})
PRINTERS: Final = frozenset({"echo", "printf"})
SHELLS: Final = frozenset({"sh", "bash", "dash"})
NOT_RUN: Final = "/{} is not executable, so it is not run at boot (chmod +x would make it)"
IN_AN_IF: Final = "it stands under a condition, which a claim does not know"
NESTED: Final = 3  # sh -c in sh -c


def read(files: Files) -> list[Line]:
    """What rc.local sets; where there are two names for it, it is one file."""
    for path in SCRIPTS:
        if files.text(path) is not None:
            idle = "" if files.runs(path) else NOT_RUN.format(path)
            return script(list(files.lines(path)), f"/{path}", idle=idle)
    return []


def script(rows: Sequence[Row], file: str, *, stage: Stage = Stage.RC_LOCAL, idle: str = "") -> list[Line]:
    """What the lines of a script set, in their order."""
    reader = Script(file, stage, idle)
    for row, tokens in words.logical(rows):
        if tokens is None:
            if RELEVANT.search(row.text):
                reader.leave(row, "its quotes do not match")
            continue
        reader.line(row, tokens)
    return reader.found


@dataclass(slots=True)
class Script:
    """A script on its way from the first line to the last: variables that are known, and what is still open."""

    file: str
    stage: Stage
    idle: str = ""
    found: list[Line] = field(default_factory=list)
    known: dict[str, Sequence[str]] = field(default_factory=dict)
    depth: list[str] = field(default_factory=list)
    nested: int = 0

    def line(self, row: Row, tokens: Sequence[str]) -> None:
        """One line: pipelines are kept together."""
        pipeline: list[Command] = []
        for command in words.commands(row, tokens, self.depth):
            pipeline.append(command)
            if command.then not in ("|", "|&"):
                self.pipeline(pipeline)
                pipeline = []

    def leave(self, row: Row, why: str) -> None:
        self.found.append(Left(Place(self.file, row.number, row.text), why))

    def pipeline(self, commands: Sequence[Command]) -> None:
        """Commands that feed one another; only what an echo says is known."""
        said: str | None = None
        for command in commands:
            said = self.command(command, said)

    def command(self, command: Command, piped: str | None) -> str | None:
        """One command; what it prints, where that is known."""
        argv, targets = redirected(command.words)
        argv = bare(argv)
        if argv and all(words.ASSIGNED.fullmatch(word) for word in argv):
            for word in argv:
                self.bind(word)
            return None
        name = argv[0].rsplit("/", 1)[-1] if argv else ""
        if name == "for":
            self.loop(argv)
            return None
        if name == "exit" and not command.conditional and not self.idle:
            self.idle = f"it stands behind the exit in line {command.line.number}, so it is never reached"
            return None
        if name in SHELLS and "-c" in argv[:-1] and self.nested < NESTED:
            self.inner(command.line, argv[argv.index("-c") + 1])
            return None
        said = printed(argv, self.known) if name in PRINTERS else None
        if name == "tee":
            said, targets = piped, [word for word in argv[1:] if not word.startswith("-")]
        pairs = effects(name, argv[1:], self.known)
        if pairs is None and (targets or name in PRINTERS):
            pairs = self.written(targets, said)
        for path, value in pairs or ():
            place = Place(self.file, command.line.number, command.line.text)
            remark = IN_AN_IF if command.conditional else ""
            self.found.append(Assignment(place, self.stage, path, value, remark, self.idle))
        # What only reads is of interest for where its output goes.
        if pairs is None and self.concerns(targets if name in QUIET else [*argv, *targets]):
            self.leave(command.line, "it is not one of the lines that kerntune can read; translate it by hand")
        return said

    def concerns(self, argv: Sequence[str]) -> bool:
        """Whether words are about values that are tuned here, variables filled in."""
        return any(RELEVANT.search(one) for word in argv for one in words.expand(word, self.known) or [word])

    def written(self, targets: Sequence[str], said: str | None) -> list[tuple[str, str]] | None:
        """What goes to files of the kernel; None where it is not known what, or to which."""
        found: list[tuple[str, str]] = []
        for target in targets:
            paths = words.expand(target, self.known)
            if paths is None:
                return None
            kernel = [path for path in paths if path.startswith(("/proc/", "/sys/"))]
            if kernel and said is None:
                return None
            found += [(path.lstrip("/"), said or "") for path in kernel]
        return found

    def bind(self, word: str) -> None:
        name, _, value = word.partition("=")
        values = words.expand(value, self.known)
        if values is None:
            self.known.pop(name, None)
        else:
            self.known[name] = values

    def loop(self, argv: Sequence[str]) -> None:
        """`for NAME in WORDS`: inside, the name stands for each of them."""
        if len(argv) < 3 or argv[2] != "in":
            return
        values: list[str] = []
        for word in argv[3:]:
            more = words.expand(word, self.known)
            if more is None:
                self.known.pop(argv[1], None)
                return
            values += more
        self.known[argv[1]] = values

    def inner(self, row: Row, text: str) -> None:
        """A script in a script, on the same line."""
        inside = Script(self.file, self.stage, self.idle, self.found, dict(self.known), nested=self.nested + 1)
        for _, tokens in words.logical([Row(row.number, part) for part in text.split("\n")]):
            inside.line(row, tokens or ())


def redirected(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command without its redirections, and the files its output goes to."""
    rest: list[str] = []
    targets: list[str] = []
    ahead = iter(argv)
    for word in ahead:
        if not words.is_operator(word):
            rest.append(word)
            continue
        target = next(ahead, "")
        # `2>/dev/null`: cut as it is, the number looks like one more argument.
        if rest and rest[-1] in ("1", "2") and (target.startswith("/dev/") or word.endswith("&")):
            rest.pop()
        # `(...) > file` is cut as one operator.
        if word.strip("()") in (">", ">>", ">|"):
            targets.append(target)
    return rest, targets


def bare(argv: Sequence[str]) -> list[str]:
    """A command without sudo and the like, and without variables that are set for it alone."""
    rest = list(argv)
    while rest and rest[0].rsplit("/", 1)[-1] in PREFIXES:
        rest.pop(0)
        while rest and (rest[0].startswith("-") or (words.ASSIGNED.fullmatch(rest[0]) and len(rest) > 1)):
            rest.pop(0)
    while len(rest) > 1 and words.ASSIGNED.fullmatch(rest[0]) and not words.ASSIGNED.fullmatch(rest[-1]):
        rest.pop(0)
    return rest


def printed(argv: Sequence[str], known: Mapping[str, Sequence[str]]) -> str | None:
    """What echo or printf says; None where a variable in it is not known, or stands for several values."""
    said = [word for word in argv[1:] if not re.fullmatch(r"-[neE]+", word)]
    if argv[0].endswith("printf") and len(said) > 1 and said[0].rstrip("\\n") in ("%s", "%d"):
        said = said[1:]
    text = " ".join(said).removesuffix("\\n")
    values = words.expand(text, known)
    return values[0].strip() if values and len(values) == 1 else None


def effects(name: str, argv: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[tuple[str, str]] | None:
    """What a program that sets kernel values sets: paths and values; None where it is no such program."""
    plain: list[str] = []
    for word in argv:
        plain += words.expand(word, known) or [word]
    if any("$" in word or "`" in word for word in plain):
        return None
    match name:
        case "sysctl":
            return sysctls(plain)
        case "cpupower" if "frequency-set" in plain:
            return governors(plain, "-g", "--governor", everywhere="all")
        case "cpufreq-set":
            return governors(plain, "-g", "--governor", everywhere=None)
        case "blockdev":
            return list(read_ahead(plain)) or None
    return None


def sysctls(argv: Sequence[str]) -> list[tuple[str, str]] | None:
    """`sysctl -w key=value ...`; -p and --system read files, which are looked at in their own place."""
    pairs = (word.partition("=") for word in argv if not word.startswith("-"))
    found = [(f"proc/sys/{path_of(key)}", " ".join(value.split())) for key, equals, value in pairs if key and equals]
    return found or ([] if {"-p", "--load", "--system"} & {word[:8] for word in argv} else None)


def option(argv: Sequence[str], *names: str) -> str:
    """The value of an option, however it is spelt; "" without it."""
    for index, word in enumerate(argv):
        for name in names:
            if word == name and index + 1 < len(argv):
                return argv[index + 1]
            if name.startswith("--") and word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return ""


def governors(argv: Sequence[str], *names: str, everywhere: str | None) -> list[tuple[str, str]] | None:
    """cpupower sets all CPUs unless -c names some, cpufreq-set (`everywhere` is None) only CPU 0."""
    governor = option(argv, *names)
    cpus = option(argv, "-c", "--cpu") or everywhere or "0"
    return [(CPUFREQ.format("*" if cpus == "all" else cpus), governor)] if governor else None


def read_ahead(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`blockdev --setra N /dev/X`: N counts sectors of 512 bytes, read_ahead_kb counts KiB."""
    sectors = whole(option(argv, "--setra", "--setfra"))
    for word in argv:
        if word.startswith("/dev/") and sectors is not None:
            yield f"sys/block/{word.removeprefix('/dev/')}/queue/read_ahead_kb", str(sectors // 2)
