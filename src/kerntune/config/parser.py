"""The parser of one file: from TOML to claims, options and problems, each with its line. It reads no disk."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kerntune.config.content import Content, Problem
from kerntune.config.schema import CONFIG_OPTIONS, Kind, Option, OptionPath, shown
from kerntune.engine.requests import normal
from kerntune.errors import InvalidValue
from kerntune.explained import ConfigTable, config_table
from kerntune.model import Claim, Origin
from kerntune.suggest import closest, there_are
from kerntune.tunables.base import Tunable, as_number
from kerntune.units import unit_of

MAX_TEXT: Final = 256  # characters of a value or of a reason
CONFIG: Final = "config"  # who makes the claims of the configuration
WITH_REASON: Final = ("value", "why")
REASON_HINT: Final = 'Write { value = "none", why = "..." }'
Key = tuple[str, ...]  # the names that lead to a value: table, and key in the table

# A key as it stands before `=` or between brackets; a quoted key may contain the characters that end other keys.
_KEY: Final = r"""((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'=\[\]#])+)"""
_ENTRY: Final = re.compile(rf"\s*{_KEY}=")
_HEADER: Final = re.compile(rf"\s*\[\[?{_KEY}\]")
_SIMPLE: Final = re.compile(r"""([A-Za-z0-9_-]+)|"([^"\\]*)"|'([^']*)'""")
_AT_LINE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_HEADER_ALONE: Final = re.compile(rb"\[([a-z0-9-]+)\]")
# TOML allows none of these, in a comment neither: a carriage return only before the end of a line.
_NO_TEXT: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")


def parse(
    file: Path,
    data: bytes,
    tunables: Mapping[str, Tunable],
    options: Mapping[OptionPath, Option] = CONFIG_OPTIONS,
    *,
    origin: Origin = Origin.CONFIG,
    who: str = CONFIG,
) -> Content:
    """Return the content of a file that may have these options. Its mistakes are problems, never an exception.

    `who` is the author of the claims. A file that says nothing costs no parsing: on most hosts they all say nothing.
    """
    tables = frozenset((*tunables, *(table for table, *names in options if names)))
    if says_nothing(data, tables):
        return Content(files=(file,))
    document = load_toml(file, data)
    if isinstance(document, Problem):
        return Content(problems=(document,), files=(file,))
    return Reader(file, document.lines, tunables, options, origin, who, tables).read(document.values)


def says_nothing(data: bytes, tables: Collection[str]) -> bool:
    """Return True if `data` has only comments, blank lines and headers of known tables, as the shipped file.

    False is no more than a doubt, and the file is parsed.
    """
    left = [line for line in (line.partition(b"#")[0].strip() for line in data.split(b"\n")) if line]
    headers = [header for header in map(_HEADER_ALONE.fullmatch, left) if header and header[1].decode() in tables]
    if not len(set(left)) == len(left) == len(headers) or _NO_TEXT.search(data):
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a file by their keys, and the line of each key."""

    values: Mapping[str, Any]
    lines: Mapping[Key, int]


def load_toml(file: Path, data: bytes) -> Document | Problem:
    """Return the document in a file, or the problem that makes it unreadable."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Problem(str(file), line, Kind.FILE, "this is not UTF-8", "TOML is written in UTF-8")
    try:
        return Document(tomllib.loads(text), lines(text))
    except (ValueError, RecursionError) as error:
        return unparseable(file, text, error)


def unparseable(file: Path, text: str, error: Exception) -> Problem:
    """Return the parser's error as a problem; the parser gives the place in words."""
    found = _AT_LINE.search(str(error))
    what = str(error)[: found.start()] if found else "this is nested too deeply, or holds too long a number"
    line = 0 if not found else int(found[1] or text.count("\n") + (not text.endswith("\n")))
    hint = 'Names with other signs than letters, digits, - and _ need quotes, and so do words: "nvme*" = "none"'
    if what.startswith("Cannot "):  # declare twice, overwrite, redefine
        hint = "A file has each table once, and a table each name: put the lines of both together"
    return Problem(str(file), line, Kind.FILE, f"this is not TOML: {what}", hint)


def lines(text: str) -> dict[Key, int]:
    """Return the line of each key and each table, counted from 1.

    The function looks at each line by itself. Inside a string of several lines, which no setting takes, it sees keys
    that are none.
    """
    found: dict[Key, int] = {}
    table: Key = ()
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


def parts(key: str) -> Key:
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
    """The reader of one document, with the problems found in it so far. `tables` are the names of the known tables."""

    file: Path
    lines: Mapping[Key, int]
    tunables: Mapping[str, Tunable]
    options: Mapping[OptionPath, Option]
    origin: Origin
    who: str
    tables: Collection[str]
    problems: list[Problem] = field(default_factory=list)

    def read(self, values: Mapping[str, Any]) -> Content:
        """Return the content: what is good of it, and all problems in the order of the lines."""
        claims: list[Claim] = []
        options: dict[OptionPath, Any] = {}
        for name, value in values.items():
            if name in self.tunables:
                claims += self._claims(self.tunables[name], value)
            elif name in self.tables:
                options |= self._table(name, value)
            elif (name,) in self.options:
                options |= self._option((name,), value)
            else:
                table = next((path[0] for path in self.options if path[1:] == (name,)), "")
                known = {*self.tunables, *(path[0] for path in self.options)}
                hint = f"It is a setting of [{table}]" if table else there_are(known, name)
                self._add((name,), Kind.UNKNOWN, f"nothing here is called {shown(name)}", hint)
        problems = tuple(sorted(self.problems, key=lambda problem: problem.line))
        places = {path: (str(self.file), self._line(path)) for path in options}
        return Content(tuple(claims), options, problems, (self.file,), places)

    def _table(self, table: str, entries: Any) -> dict[OptionPath, Any]:
        """Return the valid options of one table."""
        if not isinstance(entries, dict):
            self._add((table,), Kind.OPTION, f"{table} is a table", f"Write [{table}], and its settings below it")
            return {}
        found: dict[OptionPath, Any] = {}
        for name, value in entries.items():
            path = (table, name)
            if path in self.options:
                found |= self._option(path, value)
                continue
            known = [other for of, *others in self.options for other in others if of == table]
            self._add(path, Kind.UNKNOWN, f"[{table}] has no setting {shown(name)}", there_are(known, name))
        return found

    def _option(self, path: OptionPath, value: Any) -> dict[OptionPath, Any]:
        """Return the option with its value, or nothing if the value is bad."""
        option = self.options[path]
        try:
            return {path: option.checked(value)}
        except InvalidValue as error:
            self._add(path, option.kind, error.what, error.hint)
        return {}

    def _claims(self, tunable: Tunable, entries: Any) -> Iterator[Claim]:
        """Yield the valid claims of one tunable's table."""
        if not isinstance(entries, dict):
            how = f'Write [{tunable.name}], and below it a line for each pattern, such as "*" = "..."'
            self._add((tunable.name,), Kind.CLAIM, f"{tunable.name} is a table", how)
            return
        for pattern, entry in entries.items():
            key = (tunable.name, pattern)
            try:
                dotted = isinstance(entry, dict) and any((*key, name) in self.lines for name in entry)
                value, reason = reasoned(entry, dotted=dotted)
                instances, text = normal_entry(tunable, pattern, plain(value))
            except InvalidValue as error:
                self._add(key, Kind.CLAIM, f"{tunable.name}: {error.what}", error.hint)
            else:
                place = f"{self.file}:{self._line(key)}"
                # No caller waits for an answer: the pages that memory has are better than none.
                partial, unit = tunable.has_progress, unit_of(plain(value)) if tunable.sizes else ""
                yield Claim(
                    self.origin,
                    tunable.name,
                    instances,
                    text,
                    self.who,
                    reason or place,
                    partial=partial,
                    place=place,
                    unit=unit,
                )

    def _line(self, key: Key) -> int:
        """Return the line of a key, or else of the table that contains it."""
        return self.lines.get(key) or self.lines.get(key[:1], 0)

    def _add(self, key: Key, kind: Kind, what: str, allowed: str) -> None:
        """Add a problem with a key."""
        self.problems.append(Problem(str(self.file), self._line(key), kind, what, allowed))


def reasoned(value: Any, *, dotted: bool) -> tuple[Any, str]:
    """Return a value and the reason given for it: from { value = "none", why = "..." }, or from the bare value.

    TOML also makes a table from a name with a dot; such a table is `dotted`.
    """
    if not isinstance(value, dict):
        return value, ""
    unknown = sorted(value.keys() - set(WITH_REASON))
    meant = next(filter(None, (closest(name, WITH_REASON) for name in unknown)), "")
    if dotted and "value" not in value and not meant:
        raise InvalidValue("there is a dot in the name", 'A name with a dot needs quotes: "a.b"')
    if unknown:
        suggestion = f"Did you mean '{meant}'? " if meant else ""
        raise InvalidValue(f"{shown(unknown[0])} has no place here", f"{suggestion}{REASON_HINT}")
    if "value" not in value:
        raise InvalidValue("there is no value", REASON_HINT)
    why = value.get("why", "")
    if not isinstance(why, str) or len(why) > MAX_TEXT:
        raise InvalidValue(f"{shown(why)} is no reason", f"Give a text of {MAX_TEXT} characters or less")
    return value["value"], why


def plain(value: object) -> str:
    """Return a text or a whole number as text. Raise InvalidValue for anything else."""
    if type(value) not in (str, int) or (isinstance(value, int) and value.bit_length() > MAX_TEXT):
        raise InvalidValue(f"{shown(value)} is no value", 'Give a whole number, or a word in quotes: "none"')
    text = str(value)
    if len(text) > MAX_TEXT:
        raise InvalidValue(f"a value of {len(text)} characters is too long", f"{MAX_TEXT} are allowed")
    return text


def normal_entry(tunable: Tunable, pattern: str, value: str) -> tuple[str, str]:
    """Return both sides of an entry in normal form. Raise InvalidValue, which says what the files may have there."""
    try:
        instances = normal(tunable, pattern)
    except InvalidValue as error:
        table = table_of(tunable)
        raise InvalidValue(error.what, f"The name before the = is {table.patterns}" if table else error.hint) from error
    counted, typed = as_number(tunable, instances, value), value if unit_of(value) and tunable.sizes else ""
    try:
        normal_value = tunable.normal_value(counted, typed)
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
