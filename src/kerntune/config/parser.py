"""One configuration file as text: its claims, its options and its mistakes, line by line. It reads no disk."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from kerntune.config import schema as settings
from kerntune.config.schema import shown
from kerntune.engine.requests import normal
from kerntune.errors import InvalidValue
from kerntune.explained import ConfigTable, config_table
from kerntune.model import Claim, Origin
from kerntune.suggest import closest, there_are
from kerntune.tunables.base import Tunable, as_number

LONGEST_VALUE: Final = 256  # characters
WHO: Final = "config"
PROFILE: Final = "profile"
REASONED: Final = ("value", "why")
WITH_REASON: Final = 'Write { value = "none", why = "..." }'
Path = tuple[str, ...]

# A key as it stands before `=` or between brackets; a quoted key may contain the characters that end other keys.
_KEY: Final = r"""((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'=\[\]#])+)"""
_ENTRY: Final = re.compile(rf"\s*{_KEY}=")
_HEADER: Final = re.compile(rf"\s*\[\[?{_KEY}\]")
_SIMPLE: Final = re.compile(r"""([A-Za-z0-9_-]+)|"([^"\\]*)"|'([^']*)'""")
_AT_LINE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class Kind(StrEnum):
    """The kind of a problem, which decides what stays in force.

    With an `unknown` name of a table or a setting, earlier content that the file no longer has stays in force. A bad
    option gets its default. With a bad claim the file's claims stay as they were; with a bad file its options do too.
    Only a check reports a `warning`.
    """

    WARNING = "warning"
    UNKNOWN = "unknown"
    OPTION = "option"
    CLAIM = "claim"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in a file, its line (0: the file as a whole), and what is allowed there."""

    file: str
    line: int
    kind: Kind
    what: str
    allowed: str = ""

    @property
    def is_error(self) -> bool:
        return self.kind is not Kind.WARNING

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        severity = "" if self.is_error else "warning: "
        return f"{where}: {severity}{self.what}" + (f". {self.allowed}" if self.allowed else "")


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file. The claims are in the order of the file; `why` of each is the given reason, or its place.

    `profile` is the one that the configuration names; `lines` has the line of each option.
    """

    claims: tuple[Claim, ...] = ()
    options: Mapping[Path, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    profile: str = ""
    lines: Mapping[Path, int] = field(default_factory=dict, compare=False)

    @property
    def empty(self) -> bool:
        return not (self.claims or self.options or self.profile)

    @property
    def sound(self) -> bool:
        """Return whether these claims may replace those that the file had before."""
        return all(problem.kind not in (Kind.CLAIM, Kind.FILE) for problem in self.problems)

    @property
    def parsed(self) -> bool:
        """Return whether anything could be read."""
        return all(problem.kind is not Kind.FILE for problem in self.problems)


def read(file: str, data: bytes, tunables: Mapping[str, Tunable]) -> Content:
    """Return the content of a file. Its mistakes are problems in a report, never an exception."""
    parsed = parse(file, data)
    if isinstance(parsed, Problem):
        return Content(problems=(parsed,))
    document, where = parsed
    reader = Reader(file, where, tunables, settings.by_path(), keys=(PROFILE,))
    chosen = document.pop(PROFILE, "")
    content = reader.read(document)
    if isinstance(chosen, str):
        return replace(content, profile=chosen)
    reader.complain((PROFILE,), Kind.OPTION, f"profile is {shown(chosen)}", 'Give the name of a profile: "balanced"')
    return replace(content, problems=reader.found)


def parse(file: str, data: bytes) -> tuple[dict[str, Any], dict[Path, int]] | Problem:
    """Return the document with the lines of its keys, or the problem that makes it unreadable."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Problem(file, line, Kind.FILE, "this is not UTF-8", "TOML is written in UTF-8")
    try:
        return tomllib.loads(text), lines(text)
    except (ValueError, RecursionError) as error:
        return unparseable(file, text, error)


def unparseable(file: str, text: str, error: Exception) -> Problem:
    """Return the parser's error as a problem; the parser gives the place in words."""
    found = _AT_LINE.search(str(error))
    what = str(error)[: found.start()] if found else "this is nested too deeply, or holds too long a number"
    line = 0 if not found else int(found[1] or text.count("\n") + (not text.endswith("\n")))
    hint = 'Names with other signs than letters, digits, - and _ need quotes, and so do words: "nvme*" = "none"'
    return Problem(file, line, Kind.FILE, f"this is not TOML: {what}", hint)


def lines(text: str) -> dict[Path, int]:
    """Return the line of each key and each table, counted from 1.

    The function looks at each line by itself. Inside a string of several lines, which no setting takes, it sees keys
    that are none.
    """
    found: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            path = table = parts(header[1])
        elif entry := _ENTRY.match(line):
            path = (*table, *parts(entry[1]))
        else:
            continue
        # Tables, the keys in them, and keys with a dot, which look one level deeper.
        for depth in (1, 2, 3):
            found.setdefault(path[:depth], number)
    return found


def parts(key: str) -> Path:
    """Return the names that make up a key with dots and quotes; () for a text that is no key."""
    if simple := _SIMPLE.fullmatch(key.strip()):
        return (simple[simple.lastindex or 0],)
    try:
        inner: Any = tomllib.loads(f"{key.strip()} = 0")
    except (ValueError, RecursionError):
        return ()
    path = []
    while isinstance(inner, dict):
        ((name, inner),) = inner.items()
        path.append(name)
    return tuple(path)


@dataclass(slots=True)
class Reader:
    """The reader of one parsed file, with the problems found in it so far.

    `who` is the author of the file's claims; `keys` are those that the file may have beside tables.
    """

    file: str
    lines: Mapping[Path, int]
    tunables: Mapping[str, Tunable]
    options: Mapping[Path, settings.Option] = field(default_factory=dict)
    origin: Origin = Origin.CONFIG
    who: str = WHO
    keys: Sequence[str] = ()
    problems: list[Problem] = field(default_factory=list)

    @property
    def found(self) -> tuple[Problem, ...]:
        """The problems, in the order of the lines."""
        return tuple(sorted(self.problems, key=lambda problem: problem.line))

    def read(self, document: Mapping[str, Any]) -> Content:
        """Return the claims and options in the tables."""
        tables = tables_of(self.tunables, self.options)
        claims: list[Claim] = []
        chosen: dict[Path, int] = {}
        for table, entries in document.items():
            if table in self.tunables:
                claims += self._claims(self.tunables[table], entries)
            elif table in tables:
                chosen |= self._options(table, entries)
            else:
                of = next((of for of, name in self.options if name == table), "")
                hint = f"It is a setting of [{of}]" if of else there_are({*tables, *self.keys}, table)
                self.complain((table,), Kind.UNKNOWN, f"nothing here is called {shown(table)}", hint)
        return Content(tuple(claims), chosen, self.found, lines={path: self._line(path) for path in chosen})

    def _options(self, table: str, entries: Any) -> Iterator[tuple[Path, int]]:
        """Yield the valid options of one table."""
        if not isinstance(entries, dict):
            self.complain((table,), Kind.OPTION, f"{table} is a table", f"Write [{table}], and its settings below it")
            return
        known = [name for other, name in self.options if other == table]
        for name, value in entries.items():
            path = (table, name)
            if path not in self.options:
                self.complain(path, Kind.UNKNOWN, f"[{table}] has no setting {shown(name)}", there_are(known, name))
                continue
            try:
                yield path, self.options[path].checked(value)
            except InvalidValue as error:
                self.complain(path, Kind.OPTION, error.what, error.hint)

    def _claims(self, tunable: Tunable, entries: Any) -> Iterator[Claim]:
        """Yield the valid claims of one tunable's table."""
        if not isinstance(entries, dict):
            how = f'Write [{tunable.name}], and below it a line for each pattern, such as "*" = "..."'
            self.complain((tunable.name,), Kind.CLAIM, f"{tunable.name} is a table", how)
            return
        for pattern, entry in entries.items():
            path = (tunable.name, pattern)
            try:
                dotted = isinstance(entry, dict) and any((*path, key) in self.lines for key in entry)
                value, reason = reasoned(entry, dotted=dotted)
                instances, text = normal_entry(tunable, pattern, plain(value))
            except InvalidValue as error:
                self.complain(path, Kind.CLAIM, f"{tunable.name}: {error.what}", error.hint)
            else:
                place = f"{self.file}:{self._line(path)}"
                # No caller waits for an answer: the pages that memory has are better than none.
                partial = tunable.has_progress
                yield Claim(
                    self.origin, tunable.name, instances, text, self.who, reason or place, partial=partial, place=place
                )

    def _line(self, path: Path) -> int:
        """Return the line of a key, or else of the table that contains it."""
        return self.lines.get(path) or self.lines.get(path[:1], 0)

    def complain(self, path: Path, kind: Kind, what: str, allowed: str) -> None:
        """Record a problem with a key."""
        self.problems.append(Problem(self.file, self._line(path), kind, what, allowed))


def reasoned(value: Any, *, dotted: bool) -> tuple[Any, str]:
    """Return a value and the reason given for it: from { value = "none", why = "..." }, or from the bare value.

    TOML also makes a table from a name with a dot; such a table is `dotted`.
    """
    if not isinstance(value, dict):
        return value, ""
    unknown = sorted(value.keys() - set(REASONED))
    meant = next(filter(None, (closest(name, REASONED) for name in unknown)), "")
    if dotted and "value" not in value and not meant:
        raise InvalidValue("there is a dot in the name", 'A name with a dot needs quotes: "a.b"')
    if unknown:
        suggestion = f"Did you mean '{meant}'? " if meant else ""
        raise InvalidValue(f"{shown(unknown[0])} has no place here", f"{suggestion}{WITH_REASON}")
    if "value" not in value:
        raise InvalidValue("there is no value", WITH_REASON)
    why = value.get("why", "")
    if not isinstance(why, str) or len(why) > LONGEST_VALUE:
        raise InvalidValue(f"{shown(why)} is no reason", f"Give a text of {LONGEST_VALUE} characters or less")
    return value["value"], why


def plain(value: object) -> str:
    """Return a text or a whole number as text. Raise InvalidValue for anything else."""
    if type(value) not in (str, int) or (isinstance(value, int) and value.bit_length() > LONGEST_VALUE):
        raise InvalidValue(f"{shown(value)} is no value", 'Give a whole number, or a word in quotes: "none"')
    text = str(value)
    if len(text) > LONGEST_VALUE:
        raise InvalidValue(f"a value of {len(text)} characters is too long", f"{LONGEST_VALUE} are allowed")
    return text


def normal_entry(tunable: Tunable, pattern: str, value: str) -> tuple[str, str]:
    """Return both sides of an entry in normal form. Raise InvalidValue, which says what the files may have there."""
    try:
        instances = normal(tunable, pattern)
    except InvalidValue as error:
        table = table_of(tunable)
        raise InvalidValue(error.what, f"The name before the = is {table.patterns}" if table else error.hint) from error
    counted = as_number(tunable, instances, value)
    try:
        normal_value = tunable.normal_value(counted)
        tunable.check(instances, normal_value)
    except InvalidValue as error:
        table = table_of(tunable)
        raise InvalidValue(error.what, f"The value is {table.values}" if table else error.hint) from error
    return instances, normal_value


def table_of(tunable: Tunable) -> ConfigTable | None:
    """Return what may stand in a tunable's table; None while an upgrade replaces the file that says so."""
    try:
        return config_table(tunable)
    except (OSError, ValueError, KeyError):
        return None


def tables_of(tunables: Iterable[str], options: Iterable[Path]) -> frozenset[str]:
    """Return the names of the tables that a file may have."""
    return frozenset((*tunables, *(table for table, _ in options)))
