"""A reader that turns the lines people paste into boot scripts (rc.local) into assignments; it never runs any."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kerntune.doctor import boot_settings, guards, programs, words
from kerntune.doctor.files import Files
from kerntune.doctor.files import Line as Row
from kerntune.doctor.shell_reader import SUBSHELL, Command, Condition, Nesting
from kerntune.doctor.types import Assignment, Left, Line, Place, Stage

SCRIPTS: Final = ("etc/rc.local", "etc/rc.d/rc.local")
# A line that the reader does not understand is of interest only if it mentions one of these.
RELEVANT: Final = re.compile(
    r"/proc/sys/vm|/sys/(class/)?block|cpufreq|transparent_hugepage|hugepages|hugeadm|cpupower|tuned-adm|--setra"
    r"|powerprofilesctl|x86_energy_perf_policy|\bvm\.|numa_balancing"
)
# These read, test or wait; they do not set what they mention.
QUIET: Final = frozenset(
    {"[", "[[", "test", "cat", "grep", "ls", "exit", "return", "modprobe", "sleep", "for", "case", "logger", "export"}
    | {"chmod", "chown", "chgrp", "true", "false", ":", "set", "mkdir", "mount", "udevadm", "systemctl"}
)
PREFIXES: Final = frozenset({"sudo", "exec", "env", "command", "builtin", "nohup", "nice", "ionice", "doas"})
PRINTERS: Final = frozenset({"echo", "printf"})
SHELLS: Final = frozenset({"sh", "bash", "dash"})
NOT_RUN: Final = "/{} is not executable, so it is not run at boot (chmod +x would make it)"
IN_A_FUNCTION: Final = "it stands in a function, and whether that is called is not known"
CONDITIONAL: Final = "it stands under a condition ({}), and a claim would set it in any case"
MAY_END: Final = "{} may end the script before it, by a condition that a claim does not know"
ENDS: Final = frozenset({"exit", "return"})
SKIPS: Final = frozenset({"continue", "break"})
GLOB: Final = re.compile(r"[*?\[]")
NESTED: Final = 3  # levels of sh -c in sh -c


def read(files: Files) -> list[Line]:
    """Return what rc.local sets; if both names exist, they are one file."""
    for path in SCRIPTS:
        if files.text(path) is not None:
            idle = "" if files.runs(path) else NOT_RUN.format(path)
            return script(list(files.lines(path)), f"/{path}", files, idle=idle)
    return []


def script(rows: Sequence[Row], file: str, files: Files | None = None, *, idle: str = "") -> list[Line]:
    """Return what the lines of a script set, in their order; `files` are those that the script may read in turn."""
    reader = Script(file, files, idle)
    for row, tokens in words.logical(rows):
        if tokens is None:
            if RELEVANT.search(row.text):
                reader.leave(row, "its quotes do not match")
            continue
        reader.line(row, tokens)
    return reader.found


@dataclass(slots=True)
class Script:
    """A script on the way from its first line to its last: its known variables, and the blocks still open.

    `perhaps` has variables whose value depends on unknown things. `doubts` has the exits that may have ended the
    script.
    """

    file: str
    files: Files | None = None
    idle: str = ""
    found: list[Line] = field(default_factory=list)
    known: dict[str, Sequence[str]] = field(default_factory=dict)
    perhaps: dict[str, Sequence[str]] = field(default_factory=dict)
    nesting: Nesting = field(default_factory=Nesting)
    doubts: list[Condition] = field(default_factory=list)
    loaded: set[str] = field(default_factory=set)
    nested: int = 0

    def line(self, row: Row, tokens: Sequence[str]) -> None:
        """Read one line; commands of a pipeline stay together."""
        pipeline: list[Command] = []
        for command in self.nesting.commands(row, tokens):
            pipeline.append(command)
            if command.then not in ("|", "|&"):
                self.pipeline(pipeline)
                pipeline = []

    def leave(self, row: Row, why: str) -> None:
        self.found.append(Left(Place(self.file, row.number, row.text), why))

    def pipeline(self, commands: Sequence[Command]) -> None:
        """Read commands that feed one another; the reader knows only what an echo says."""
        said: str | None = None
        for command in commands:
            said = self.command(command, said)

    def command(self, command: Command, piped: str | None) -> str | None:
        """Read one command; return what it prints, or None if that is not known."""
        argv, targets = redirected(command.words)
        argv = bare(argv)
        if argv and all(words.ASSIGNED.fullmatch(word) for word in argv):
            for word in argv:
                self.bind(word, sure=not self.unsure(command, ()))
            return None
        name = argv[0].rsplit("/", 1)[-1] if argv else ""
        if name == "for":
            self.loop(argv)
        elif name in ENDS or name in SKIPS:
            self.ended(command, name)
        elif name in SHELLS and "-c" in argv[:-1] and self.nested < NESTED:
            self.inner(command, argv[argv.index("-c") + 1])
        else:
            return self.sets(command, name, argv, targets, piped)
        return None

    def sets(
        self, command: Command, name: str, argv: Sequence[str], targets: Sequence[str], piped: str | None
    ) -> str | None:
        """Read a command that may set something; return what it prints, or None if that is not known."""
        plain = [one for word in argv[1:] for one in words.expand(word, self.known) or [word]]
        if name == "sysctl" and (files := programs.loaded(plain)):
            self.load(command, files)
            return None
        said = printed(argv, self.known) if name in PRINTERS else None
        if name == "tee":
            said, targets = piped, [word for word in argv[1:] if not word.startswith("-")]
        pairs = programs.effects(name, plain)
        if pairs is None and (targets or name in PRINTERS):
            pairs = self.written(targets, said)
        if pairs and (why := self.unsure(command, [path for path, _ in pairs])):
            if any(RELEVANT.search(f"/{path}") for path, _ in pairs):
                self.leave(command.line, why)
            return said
        place = Place(self.file, command.line.number, command.line.text)
        for path, value in pairs or ():
            doubt = guards.unmet(self.doubts, [path], self.known)
            remark = MAY_END.format(doubt) if doubt else ""
            self.found.append(Assignment(place, Stage.RC_LOCAL, path, value, remark, self.idle))
        # A command that only reads is of interest only for the files that its output goes to.
        if pairs is None and self.concerns(targets if name in QUIET else [*argv, *targets]):
            self.leave(command.line, "it is not one of the lines that kerntune can read; translate it by hand")
        return said

    def unsure(self, command: Command, paths: Sequence[str]) -> str:
        """Return why the script may not run a command that sets these files, or "" if it certainly does."""
        if command.in_function:
            return IN_A_FUNCTION
        condition = guards.unmet(command.conditions, paths, self.known)
        return CONDITIONAL.format(condition) if condition else ""

    def ended(self, command: Command, name: str) -> None:
        """Note the end of the script, of a subshell or of a turn of a loop; under a condition the rest is in doubt."""
        if command.in_function or any(map(guards.never, command.conditions)):
            return
        number = command.line.number
        if name in ENDS and not command.conditions and not command.in_subshell:
            self.idle = self.idle or f"it stands behind the {name} in line {number}, so it is never reached"
            return
        # The script runs the lines after `test || exit` where the test succeeds.
        one = command.conditions[0] if len(command.conditions) == 1 else None
        tests = one.tests if one and one.negated else ()
        doubt = Condition(f"the {name} in line {number}", tests, plain=bool(tests))
        if name in SKIPS:
            self.nesting.skip(doubt)
        elif command.in_subshell:
            self.nesting.skip(doubt, SUBSHELL)
        else:
            self.doubts.append(doubt)

    def load(self, command: Command, files: Sequence[str]) -> None:
        """Read the files of `sysctl -p FILE`: they set their values here; the reader reads no file a second time."""
        for file in files:
            path = file.lstrip("/")
            why = self.unsure(command, [path]) or self.unreadable(file)
            if why:
                self.leave(command.line, why)
            elif self.files is not None and path not in self.loaded:
                self.loaded.add(path)
                real = self.files.leads_to(path) or path
                self.found += boot_settings.settings(self.files, real, idle=self.idle, stage=Stage.RC_LOCAL)

    def unreadable(self, file: str) -> str:
        """Return why the reader cannot read a file in place of the script, or "" if it can."""
        if not file.startswith("/") or words.expand(file, self.known) != [file] or GLOB.search(file):
            return f"which file {file!r} is, is not known here"
        path = file.lstrip("/")
        if self.files is not None and self.files.text(path) is not None:
            return ""
        there = self.files is not None and self.files.there(path)
        return f"{file} cannot be read" if there else f"it reads {file}, and there is no such file here"

    def concerns(self, argv: Sequence[str]) -> bool:
        """Return whether words are about values that kerntune tunes, with variables filled in."""
        known = {**self.perhaps, **self.known}
        return any(RELEVANT.search(one) for word in argv for one in words.expand(word, known) or [word])

    def written(self, targets: Sequence[str], said: str | None) -> list[tuple[str, str]] | None:
        """Return what goes to files of the kernel, or None if the values or the files are not known."""
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

    def bind(self, word: str, *, sure: bool) -> None:
        """Set a variable; if the script may not set it here (not `sure`), its value is not known from here on."""
        name, _, value = word.partition("=")
        values = words.expand(value, self.known)
        self.known.pop(name, None)
        if values is not None:
            (self.known if sure else self.perhaps)[name] = values

    def loop(self, argv: Sequence[str]) -> None:
        """Read `for NAME in WORDS`: inside the loop, the name stands for each of the words."""
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

    def inner(self, command: Command, text: str) -> None:
        """Read a script in a script, on the same line and under the same conditions."""
        inside = Script(self.file, self.files, self.idle, self.found, dict(self.known), dict(self.perhaps))
        inside.doubts, inside.loaded, inside.nested = list(self.doubts), self.loaded, self.nested + 1
        inside.nesting.inherit(command)
        for _, tokens in words.logical([Row(command.line.number, part) for part in text.split("\n")]):
            inside.line(command.line, tokens or ())


def redirected(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command without its redirections, and the files that its output goes to."""
    rest: list[str] = []
    targets: list[str] = []
    ahead = iter(argv)
    for word in ahead:
        if not words.is_operator(word):
            rest.append(word)
            continue
        target = next(ahead, "")
        # After the cut, the number of `2>/dev/null` looks like one more argument.
        if rest and rest[-1] in ("1", "2") and (target.startswith("/dev/") or word.endswith("&")):
            rest.pop()
        # The `)>` of `(...)>file` comes as one operator.
        if word.strip("()") in (">", ">>", ">|"):
            targets.append(target)
    return rest, targets


def bare(argv: Sequence[str]) -> list[str]:
    """Return a command without sudo and the like, and without variables that the script sets for it alone."""
    rest = list(argv)
    while rest and rest[0].rsplit("/", 1)[-1] in PREFIXES:
        rest.pop(0)
        while rest and (rest[0].startswith("-") or (words.ASSIGNED.fullmatch(rest[0]) and len(rest) > 1)):
            rest.pop(0)
    while len(rest) > 1 and words.ASSIGNED.fullmatch(rest[0]) and not words.ASSIGNED.fullmatch(rest[-1]):
        rest.pop(0)
    return rest


def printed(argv: Sequence[str], known: Mapping[str, Sequence[str]]) -> str | None:
    """Return what echo or printf says, or None if a variable in it is not known or stands for several values."""
    said = [word for word in argv[1:] if not re.fullmatch(r"-[neE]+", word)]
    if argv[0].endswith("printf") and len(said) > 1 and said[0].rstrip("\\n") in ("%s", "%d"):
        said = said[1:]
    text = " ".join(said).removesuffix("\\n")
    values = words.expand(text, known)
    return values[0].strip() if values and len(values) == 1 else None
