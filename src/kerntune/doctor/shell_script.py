"""The reader of lines that people paste into boot scripts: it finds paths below the root, and values. It runs nothing.

It reads plain commands, `[ -e FILE ] &&` in front of them, and `for NAME in WORDS` around them. Every other line about
values that kerntune tunes is left, to be translated by hand: a wrong claim is worse.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from kerntune.doctor import boot_settings
from kerntune.doctor.files import Files, Line, whole
from kerntune.doctor.relevant import RELEVANT
from kerntune.doctor.shell_reader import UNREAD, Command, Loop, Statement, joined, literal, parse, unescape
from kerntune.doctor.types import Assignment, Cause, Entry, Left, Place, Stage
from kerntune.tunables.knobs import CPU_GOVERNOR, READ_AHEAD

SCRIPTS: Final = ("etc/rc.local", "etc/rc.d/rc.local")
START: Final = re.compile(r"#![ \t]*/(usr/)?bin/(env )?(ba|da)?sh( -[eux]+)?[ \t]*(\n|\Z)")
# A word, such as a substitution, in which another command writes.
WRITES: Final = re.compile(r">|\btee\b")
# These read, test, wait or print; they do not set what they mention.
QUIET: Final = frozenset(
    {"[", "[[", "test", "cat", "grep", "ls", "exit", "return", "modprobe", "sleep", "for", "case", "logger", "export"}
    | {"chmod", "chown", "chgrp", "true", "false", ":", "set", "mkdir", "mount", "udevadm", "systemctl"}
    | {"echo", "printf", "continue", "break"}
)
STARTERS: Final = frozenset({"sudo", "env", "nohup", "nice", "ionice", "doas"})
PREFIXES: Final = STARTERS | {"command", "builtin"}
PRINTERS: Final = frozenset({"echo", "printf"})
SUCCEEDING: Final = frozenset({"sleep", "true", ":", "sync", "echo", "printf"})
SHELLS: Final = frozenset({"sh", "bash", "dash"})
ENDS: Final = frozenset({"exit", "return", "exec"})
PIPES: Final = frozenset({"|", "|&"})
LEAVING: Final = frozenset({*ENDS, "continue", "break"})  # a turn of a loop
ASSIGNED: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
VARIABLE_USED: Final = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)")
# A shell would expand this in a word, or it stands for another line. Not every shell expands braces.
UNKNOWN: Final = re.compile(r"[$`\0-\4\n]|\{[^{}]*?(?:,|\.\.)")
GLOB: Final = re.compile(r"[*?\[]")
STDOUT: Final = frozenset({">", ">>", ">|", "1>", "1>>", "1>|", ">&", "1>&", "&>", "&>>"})
# These tests ask whether the file that a line writes exists, or can be written; -d asks for a folder above it.
FILE_TESTS: Final = frozenset({"-e", "-f", "-r", "-w", "-d"})
BRACKETS: Final = {"[": "]", "[[": "]]"}
# Short options of sysctl(8); the file may follow -p and -f in the same word.
LOADS: Final = re.compile(r"-[A-Za-z]*?[pf](.*)", re.DOTALL)
MAX_LOADED: Final = 100  # files of sysctl -p and --system
# Other options, such as --pattern, may make --system set less.
SYSTEM: Final = frozenset({"--system", "-q", "--quiet", "-e", "--ignore", "-w", "--write"})
MAX_TURNS: Final = 512  # commands in all turns of a loop

BY_HAND: Final = "{}: translate it by hand"
NOT_READ: Final = BY_HAND.format("kerntune cannot read it")
INSIDE: Final = BY_HAND.format("it stands inside {}, and a claim would set it in any case")
CONDITIONAL: Final = BY_HAND.format("it stands under a condition ({}), and a claim would set it in any case")
MAY_END: Final = BY_HAND.format("the {} in line {} may end the script before it")
LOOP_NOT_READ: Final = BY_HAND.format("it stands in the loop in line {}, which kerntune cannot read")
IN_LOOP: Final = "it stands in the loop from line {} to line {}: take out the whole loop, not only this line"
SPLIT: Final = "the statement goes from line {} to line {}: take out all of it, not only its first line"
NEVER_REACHED: Final = "it stands behind the {} in line {}, so it is never reached"
NO_SHELL: Final = BY_HAND.format("the first line of the script names no shell that would run it")
RETURNS: Final = BY_HAND.format("the script has carriage returns, which its shell takes as parts of words")
NOT_RUN: Final = "/{} is not executable, so it is not run at boot (chmod +x would make it)"

Effects = list[tuple[str, str]]  # paths below the root, and values


def read(files: Files) -> list[Entry]:
    """Return what rc.local sets; if both names exist, they are one file."""
    for path in SCRIPTS:
        if (text := files.text(path)) is not None:
            script = Script(f"/{path}", files, "" if files.runs(path) else NOT_RUN.format(path))
            script.doubt = RETURNS if "\r" in text else "" if START.match(text) else NO_SHELL
            return script.read(text)
    return []


@dataclass(frozen=True, slots=True)
class Scope:
    """The surroundings of a command: known variables, files that have to exist, and why people have to read it, or "".

    `remark` tells readers what has to be taken out with the command.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    why: str = ""
    remark: str = ""

    def expand(self, word: str) -> str:
        """Return a word with the known variables filled in."""
        return VARIABLE.sub(lambda found: self.variables.get(found[1], found[0]), word)

    def unmet(self, paths: Sequence[str]) -> str:
        """Return why a command that sets these paths may not run, or "" if it surely runs."""
        guard = next((guard for guard in self.guards if not all(met(guard, path) for path in paths)), "")
        return self.why or (CONDITIONAL.format(f"the test of {unescape(guard.split(' ', 1)[1])}") if guard else "")


@dataclass(slots=True)
class Script:
    """A script on the way from its first line to its last.

    With a `place` the script is one line of another file. `doubt` says which exit may have ended the script; `relevant`
    has the variables that hold what kerntune tunes.
    """

    file: str
    files: Files | None = None
    idle: str = ""
    stage: Stage = Stage.RC_LOCAL
    place: Place | None = None
    guards: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    found: list[Entry] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    left: set[Place] = field(default_factory=set)
    relevant: set[str] = field(default_factory=set)
    doubt: str = ""
    remark: str = ""
    nested: bool = False

    def read(self, text: str) -> list[Entry]:
        """Return what a script sets, in its order."""
        for part in parse(text, self.place.line if self.place else 1):
            if isinstance(part, Loop):
                self._loop(part)
            else:
                self._statement(part, Scope(self.variables, self.guards, remark=self.remark))
        return self.found

    def execute(self, words: Sequence[str]) -> list[Entry]:
        """Return what one program sets that no shell starts."""
        self._statement(
            Statement((Command(Line(0, ""), tuple(words)),)), Scope(self.variables, self.guards, remark=self.remark)
        )
        return self.found

    def _loop(self, loop: Loop) -> None:
        """Read a loop once for each of its words, or leave all of it if a turn may be cut short."""
        guards = [required_file(statement) for statement in loop.body]
        body = list(zip(loop.body, guards, strict=True))
        commands = [command for statement, guard in body if not guard for command in statement.commands]
        sure = (
            loop.last is not None
            and not any(UNKNOWN.search(word) or " " in word for word in loop.words)
            and all(word.startswith("/") for word in loop.words if GLOB.search(word))
            and len(loop.words) * len(commands) <= MAX_TURNS
            and not any(program(command.words) in LEAVING for command in commands)
            and not any(word.partition("=")[0] == loop.name for command in commands for word in command.words)
        )
        self._note_variables([f"{loop.name}={' '.join(loop.words)}"])
        remark = self.remark
        if loop.last and loop.last.number > loop.line.number:
            remark = IN_LOOP.format(loop.line.number, loop.last.number)
        for word in loop.words if sure else ("",):
            scope = Scope({**self.variables, loop.name: word} if sure else {}, self.guards, remark=remark)
            if not sure:
                scope = replace(scope, why=LOOP_NOT_READ.format(loop.line.number))
            for statement, guard in body:
                if guard and sure:
                    scope = replace(scope, guards=(*scope.guards, scope.expand(guard)))
                else:
                    self._statement(statement, scope)

    def _statement(self, statement: Statement, scope: Scope) -> None:
        """Read the commands of a statement; behind && and || only those whose condition asks for their own file."""
        if statement.inside:
            why = NOT_READ if statement.inside == UNREAD else INSIDE.format(statement.inside)
            scope = replace(scope, why=why)
        elif self.doubt and not scope.why:
            scope = replace(scope, why=self.doubt)
        elif any(command.joiner in PIPES and program(command.words) != "tee" for command in statement.commands):
            scope = replace(scope, why=scope.why or NOT_READ)
        printed: str | None = None
        passed = False
        for command in statement.commands:
            if command.joiner not in PIPES:
                printed = None
                if (command.joiner == "||" or (command.joiner and not passed)) and not scope.why:
                    scope = replace(scope, why=CONDITIONAL.format(f"{command.joiner} in line {command.line.number}"))
            printed, passed = self._command(command, scope, printed)
            if ends(command.words) and not statement.detached:
                self._ended(program(command.words), command.line, scope)
            if guard := tested_file(command.words):
                scope = replace(scope, guards=(*scope.guards, scope.expand(guard)))
                passed = True

    def _command(self, command: Command, scope: Scope, piped: str | None) -> tuple[str | None, bool]:
        """Read one command; return what it prints, if known, and whether it sets something or always succeeds."""
        argv = bare([scope.expand(word) for word in command.words])
        name = program(argv)
        self._note_variables(argv)
        if not any(self._mentions(scope.expand(target)) for _, target in command.redirections):
            if name == "sysctl" and (files := self._loaded(argv[1:])):
                self._load(command.line, files, scope)
                return None, False
            if name in SHELLS and argv[-2:-1] == ["-c"] and self._inner(command.words[-1], command.line, scope):
                return None, False
        return self._set(command, scope, argv, piped)

    def _set(self, command: Command, scope: Scope, argv: Sequence[str], piped: str | None) -> tuple[str | None, bool]:
        """Read a command that may set something."""
        name = program(argv)
        redirections = [(operator, scope.expand(target)) for operator, target in command.redirections]
        outputs = [target for operator, target in redirections if operator in STDOUT]
        if name == "tee":
            printed = piped if not any("<" in operator for operator, _ in redirections) else None
            effects = written([word for word in argv[1:] if not word.startswith("-")], printed)
        elif name in PRINTERS:
            printed = text_of(argv)
            effects = written(outputs, printed) if len(outputs) < 2 else None
        else:
            printed, effects = None, program_effects(name, argv[1:])
        if name not in PRINTERS and any(map(kernel_path, outputs)):
            effects = None
        # A shell expands no glob behind >, and in the words of other programs than tee one may name more than meant.
        if any(GLOB.search(target) for _, target in command.redirections) or (
            name != "tee" and any(map(GLOB.search, command.words))
        ):
            effects = None
        if effects and (why := scope.unmet([path for path, _ in effects])):
            if any(RELEVANT.search(f"/{path}") for path, _ in effects):
                self._leave(command.line, why)
        elif effects:
            place = self._place(command.line)
            remark = scope.remark or several(command.line)
            self.found += [Assignment(place, self.stage, path, value, remark, self.idle) for path, value in effects]
        elif self._concerns(argv, redirections, unknown=effects is None):
            self._leave(command.line, scope.why or NOT_READ)
        return None if outputs else printed, bool(effects) or (name in SUCCEEDING and not redirections)

    def _concerns(self, argv: Sequence[str], redirections: Sequence[tuple[str, str]], *, unknown: bool) -> bool:
        """Return whether a command may set what kerntune tunes; `unknown` says that its effects are not known."""
        if any(
            self._mentions(target)
            for operator, target in redirections
            if ">" in operator and (unknown or operator not in STDOUT)
        ):
            return True
        name = program(argv)
        quiet = not unknown or name in QUIET or all(map(ASSIGNED.fullmatch, argv))
        # A command that only reads or prints matters if another one in its words may write.
        return any(map(self._mentions, argv)) and not (quiet and not WRITES.search(" ".join(argv)))

    def _mentions(self, word: str) -> bool:
        return bool(RELEVANT.search(word)) or not self.relevant.isdisjoint(VARIABLE_USED.findall(word))

    def _note_variables(self, argv: Sequence[str]) -> None:
        """Note which variables hold what kerntune tunes."""
        for word in argv:
            if (found := ASSIGNED.fullmatch(word)) and self._mentions(found[2]):
                self.relevant.add(found[1])
        if argv[:1] == ["for"] and any(map(self._mentions, argv[2:])):
            self.relevant.add(argv[1])

    def _leave(self, line: Line, why: str) -> None:
        """Leave a line to people."""
        place = self._place(line)
        if place not in self.left:
            self.left.add(place)
            cause = Cause.NO_EFFECT if self.idle else Cause.NOT_UNDERSTOOD
            self.found.append(Left(place, self.idle or why, cause))

    def _place(self, line: Line) -> Place:
        return self.place or Place(self.file, line.number, joined(line.text))

    def _ended(self, name: str, line: Line, scope: Scope) -> None:
        """Note the end of the script; under a condition all the rest is left."""
        if not scope.why and scope.guards == self.guards:
            self.idle = self.idle or NEVER_REACHED.format(name, line.number)
        else:
            self.doubt = self.doubt or MAY_END.format(name, line.number)

    def _loaded(self, argv: Sequence[str]) -> list[str]:
        """Return the files that a call of sysctl reads, or [] if it reads none."""
        if "--system" not in argv:
            return loaded(argv)
        if self.files is None or any(word.startswith("-") and word not in SYSTEM for word in argv):
            return ["--system"]
        return [f"/{path}" for path in boot_settings.system_files(self.files)]

    def _load(self, line: Line, files: Sequence[str], scope: Scope) -> None:
        """Read the files of `sysctl -p FILE`: they set their values here, also if they are read a second time."""
        for file in files:
            path = file.lstrip("/")
            if why := scope.unmet([path]) or self._unreadable(file):
                self._leave(line, why)
            elif self.files is not None:
                self.loaded.append(path)
                real = self.files.leads_to(path) or path
                self.found += boot_settings.settings(self.files, real, idle=self.idle, stage=self.stage)

    def _unreadable(self, file: str) -> str:
        """Return why the reader cannot read a file in place of the script, or "" if it can."""
        if file == "--system" or len(self.loaded) >= MAX_LOADED:
            return NOT_READ
        if not file.startswith("/") or UNKNOWN.search(file) or GLOB.search(file):
            return f"which file {unescape(file)!r} is, is not known here"
        path = file.lstrip("/")
        if self.files is not None and self.files.text(path) is not None:
            return ""
        exists = self.files is not None and self.files.there(path)
        return f"{file} cannot be read" if exists else f"it reads {file}, and there is no such file here"

    def _inner(self, text: str, line: Line, scope: Scope) -> bool:
        """Read the script of `sh -c`, as far as it is known here; return whether it is."""
        if self.nested or scope.why or re.search(r"[$`\n]", scope.expand(text)):
            return False
        variables = scope.variables if VARIABLE.search(text) else {}
        if variables and literal("$") in text:
            return False  # some are of this shell, and some of the inner one
        place = self._place(line)
        inner = replace(self, place=place, guards=scope.guards, variables=variables, relevant=set(), nested=True)
        inner.remark = scope.remark or several(line)
        inner.read(unescape(text))
        return True


def several(line: Line) -> str:
    """Return the remark on a statement that goes on in further lines, or "" if it stands in one."""
    return SPLIT.format(line.number, line.number + line.text.count("\n")) if "\n" in line.text else ""


def required_file(statement: Statement) -> str:
    """Return the file that `[ -e FILE ] || continue` asks for, or "" for any other statement."""
    match statement.commands:
        case (test, Command(words=("continue",), joiner="||")) if not statement.inside:
            return tested_file(test.words)
    return ""


def tested_file(words: Sequence[str]) -> str:
    """Return the test of a command that only asks for one file (`-e FILE`), or "" for any other command."""
    rest = list(words)
    if rest and rest[0] == "test":
        rest.pop(0)
    elif len(rest) > 1 and BRACKETS.get(rest[0]) == rest[-1]:
        rest = rest[1:-1]
    return " ".join(rest) if len(rest) == 2 and rest[0] in FILE_TESTS and not GLOB.search(rest[1]) else ""


def met(test: str, path: str) -> bool:
    """Return whether a test is surely true if the path exists, as `-e` for itself and `-d` for a folder above it."""
    flag, _, file = test.partition(" ")
    return covers(file, path) and (flag == "-d") != (file == f"/{path}")


def covers(file: str, path: str) -> bool:
    """Return whether a file is the path, or a folder above it."""
    return f"/{path}/".startswith(f"{file.rstrip('/')}/")


def program(argv: Sequence[str]) -> str:
    """Return the name of the program that a command runs."""
    return next((word.rsplit("/", 1)[-1] for word in bare(argv)), "")


def ends(words: Sequence[str]) -> bool:
    """Return whether a command ends the script; without a program to run, exec only redirects."""
    first = next((word for word in words if not ASSIGNED.fullmatch(word)), "")
    return first not in STARTERS and program(words) in ENDS and bare(words) != ["exec"]


def bare(argv: Sequence[str]) -> list[str]:
    """Return a command without sudo and the like, and without variables that the script sets for it alone."""
    rest = list(argv)
    # An option may say another user, or that nothing is run.
    while rest and rest[0].rsplit("/", 1)[-1] in PREFIXES and not "".join(rest[1:2]).startswith("-"):
        rest.pop(0)
        while len(rest) > 1 and ASSIGNED.fullmatch(rest[0]):
            rest.pop(0)
    while len(rest) > 1 and ASSIGNED.fullmatch(rest[0]) and not ASSIGNED.fullmatch(rest[-1]):
        rest.pop(0)
    return rest


def text_of(argv: Sequence[str]) -> str | None:
    """Return what echo or printf prints, or None if that is not known."""
    words = [word for word in argv[1:] if not re.fullmatch(r"-[neE]+", word)]
    if argv[0].endswith("printf"):
        if len(words) == 2 and words[0].removesuffix("\\n") in ("%s", "%d"):
            words = words[1:]
        if len(words) != 1 or "%" in words[0]:
            return None
    text = " ".join(words).removesuffix("\\n").strip()
    return None if UNKNOWN.search(text) or GLOB.search(text) or "\\" in text else text


def kernel_path(target: str) -> str:
    """Return the path below the root of a file of the kernel, or "" for any other file."""
    path = posixpath.normpath(target).lstrip("/")
    return path if target.startswith("/") and path.startswith(("proc/", "sys/")) else ""


def written(targets: Sequence[str], text: str | None) -> Effects | None:
    """Return what goes to files of the kernel, or None if the text or the files are not known."""
    paths = [path for path in map(kernel_path, targets) if path]
    relative = any(RELEVANT.search(target) for target in targets if not target.startswith("/"))
    if relative or any(map(UNKNOWN.search, targets)) or (paths and not text):
        return None
    return [(path, text or "") for path in paths]


def program_effects(name: str, argv: Sequence[str]) -> Effects | None:
    """Return what a program sets, by its name and its arguments, or None if that is not known."""
    if any(map(UNKNOWN.search, argv)):
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


def sysctls(argv: Sequence[str]) -> Effects:
    """Return what `sysctl -w key=value ...` sets; blanks around the first = do not matter."""
    pairs = (word.partition("=") for word in argv if not word.startswith("-"))
    return [
        (f"proc/sys/{boot_settings.path_of(key.strip())}", " ".join(value.split()))
        for key, equals, value in pairs
        if key.strip() and equals
    ]


def loaded(argv: Sequence[str]) -> list[str]:
    """Return the files that `sysctl -p FILE ...` reads, which is /etc/sysctl.conf if it names none.

    The list is empty if the command reads no file.
    """
    files = [word for word in argv if not word.startswith("-") or word == "-"]
    for word in argv:
        if word.startswith("--load"):
            _, equals, file = word.partition("=")
            return [file, *files] if equals else files or [f"/{boot_settings.CLASSIC}"]
        if not word.startswith("--") and (found := LOADS.fullmatch(word)):
            return [found[1], *files] if found[1] else files or [f"/{boot_settings.CLASSIC}"]
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


def governors(argv: Sequence[str], *names: str, everywhere: str | None) -> Effects | None:
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
