"""The lexer and the parser of boot scripts: plain statements, `for` loops over words, and the blocks around the rest.

Nothing is run and nothing is guessed: where the reader loses track, all that follows counts as inside a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from kerntune.doctor.files import Line

BLANK: Final = re.compile(r"(?:[ \t\r]|\\\n)+|#[^\n]*")
OPERATOR: Final = re.compile(r"&&|\|\||\|&|;;&|;;|;&|&>>?|[0-9]*(?:<<|>>|>\||>&|<&|<>|>|<)|\([ \t]*\)|[;|&()\n]")
# The parts of a word. What none of them matches, such as a quotation in a quotation, is read no further.
PARENTHESES: Final = r"""\$\((?:[^()'"]|'[^'()]*'|"[^"()]*"|\((?:[^()'"]|\([^()'"]*\))*\))*\)"""
PART: Final = re.compile(
    r"""(?P<bare>[^ \t\r\n;|&()<>'"\\$`]+)|\\(?P<escaped>[\s\S])|'(?P<single>[^']*)'"""
    r"""|"(?P<double>(?:[^"\\$`]|\\[\s\S]|\$\((?:[^()"]|\([^()"]*\))*\)|\$(?!\()|`[^`"]*`)*)\""""
    rf"""|(?P<variable>{PARENTHESES}|\$\{{[^}}'"\\]*\}}|`[^`]*`|\$(?!['"({{])[A-Za-z0-9_]*)"""
)
# In double quotes: escapes, and variables.
ESCAPE: Final = re.compile(r'\\([$`"\\\n])|\$([A-Za-z_][A-Za-z0-9_]*)')
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_TEXT: Final = 1 << 16  # characters; nothing is read of a longer script
# Quoted characters that a shell would not expand; `unescape` gives them back.
LITERALS: Final = str.maketrans("$`*?[", "\0\1\2\3\4")
EXPANDED: Final = str.maketrans("\0\1\2\3\4", "$`*?[")
GLOBS: Final = {code: mark for code, mark in LITERALS.items() if chr(code) in "*?["}
JOINERS: Final = frozenset({"&&", "||", "|", "|&"})
# The words that begin a block, those that end it, and those inside.
OPENERS: Final = frozenset({"if", "while", "until", "{", "for", "case", "select"})
CLOSERS: Final = {
    "fi": frozenset({"if"}),
    "done": frozenset({"for", "while", "until", "select"}),
    "esac": frozenset({"case"}),
    "}": frozenset({"{"}),
    ")": frozenset({"("}),
}
# The reader puts this block around all lines behind a here-document or a quotation that it cannot read.
UNREAD: Final = "<<"
INNER: Final = frozenset({"then", "do", "else", "elif"})


class Operator(str):
    """A token that is not a word, such as `&&`, `>` or the end of a line."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A simple command: its words, its redirections (operator, target), and the operator in front of it."""

    line: Line
    words: tuple[str, ...]
    redirections: tuple[tuple[str, str], ...] = ()
    joiner: str = ""


@dataclass(frozen=True, slots=True)
class Statement:
    """Commands that &&, || and | join; `inside` names the block around them, which the reader does not understand.

    With `detached` an `exit` does not end the script: it stands in a function, in parentheses or in front of &.
    """

    commands: tuple[Command, ...]
    inside: str = ""
    detached: bool = False


@dataclass(slots=True)
class Loop:
    """A loop `for NAME in WORDS`, which no block surrounds; `last` is the line of its `done`, if that was found."""

    line: Line
    name: str
    words: tuple[str, ...]
    body: list[Statement] = field(default_factory=list)
    last: Line | None = None


def literal(text: str) -> str:
    """Return a text in which a shell expands nothing, as it expands nothing in single quotes."""
    return text.translate(LITERALS)


def unescape(text: str) -> str:
    """Return a word as a program gets it, after `literal`."""
    return text.translate(EXPANDED)


def unquote(part: re.Match[str]) -> str:
    """Return a part of a word without its quotes; `$NAME` becomes `${NAME}`."""
    if part["double"] is not None:
        text = part["double"].translate(GLOBS)
        return ESCAPE.sub(lambda found: f"${{{found[2]}}}" if found[2] else literal(found[1].strip("\n")), text)
    if variable := part["variable"]:
        return f"${{{variable[1:]}}}" if NAME.fullmatch(variable[1:]) else variable
    return part["bare"] or literal((part["escaped"] or "").strip("\n") + (part["single"] or ""))


def logical_lines(text: str, first: int) -> Iterator[tuple[Line, list[str] | None]]:
    """Yield each line with the lines that continue it, and its tokens; the script begins in the line `first`.

    The text of a line has all of them, as they are.
    Tokens are None for all lines from a here-document or an open quotation to the end, and in a longer script than
    MAX_TEXT.
    """
    at = begin = 0
    tokens: list[str] = []
    while at < len(text) <= MAX_TEXT:
        if found := BLANK.match(text, at):
            at = found.end()
        elif (found := OPERATOR.match(text, at)) and "<<" in found[0]:
            break
        elif found:
            at = found.end()
            if found[0] != "\n":
                tokens.append(Operator(found[0]))
            elif not (tokens and isinstance(tokens[-1], Operator) and tokens[-1] in JOINERS):
                yield Line(first, text[begin:at].strip()), tokens
                first += text.count("\n", begin, at)
                begin, tokens = at, []
        elif found := PART.match(text, at):
            word = ""
            while found:
                word += unquote(found)
                at = found.end()
                found = PART.match(text, at)
            tokens.append(word)
        else:
            break
    if at >= len(text):
        yield Line(first, text[begin:].strip()), tokens
        return
    for number, line in enumerate(text[begin:].split("\n"), first):
        if not line.lstrip().startswith("#"):
            yield Line(number, line.strip()), None


def joined(text: str) -> str:
    """Return several lines as one, without the backslashes of their continuation."""
    return " ".join(line.removesuffix("\\").strip() for line in text.strip().split("\n"))


def parse(text: str, first: int = 1) -> list[Statement | Loop]:
    """Return the statements and loops of a script, in their order."""
    parser = Parser()
    for line, tokens in logical_lines(text, first):
        parser.line(line, tokens)
    return [*parser.found, parser.loop] if parser.loop else parser.found


@dataclass(slots=True)
class Parser:
    """A script on the way from its first line to its last: the open blocks, and the statement that has begun."""

    found: list[Statement | Loop] = field(default_factory=list)
    blocks: list[tuple[str, int, bool]] = field(default_factory=list)  # opener, line, whether it is detached
    loop: Loop | None = None
    commands: list[Command] = field(default_factory=list)
    joiner: str = ""
    function: bool = False  # the next block is the body of a function

    def line(self, line: Line, tokens: Sequence[str] | None) -> None:
        """Read one line."""
        if tokens is None:
            self._add(Statement((Command(line, (UNREAD, line.text)),), UNREAD))
            return
        words: list[str] = []
        for token in (*tokens, Operator("\n")):
            if not isinstance(token, Operator) or {"<", ">"} & set(token):
                words.append(token)
                continue
            if token[0] == "(" and len(token) > 1 and len(words) == 1 + (words[:1] == ["function"]):
                self.function = True
                words = []
                continue
            self._command(words, line)
            words = []
            if token in JOINERS:
                self.joiner = token
            else:
                self._end_statement(detached=token == "&")
            if token == "(":
                self._open(token, line)
            elif token == ")":
                self._close(token, line)
                self.commands.append(Command(line, (token,)))

    def _command(self, words: Sequence[str], line: Line) -> None:
        """Read a simple command: open and close the blocks that the words in front of it begin and end."""
        rest = list(words)
        while rest and not isinstance(rest[0], Operator):
            word = rest[0]
            if word in OPENERS:
                plain = word == "for" and not (self.blocks or self.commands)
                self._open(word, line)
                if plain and len(rest) > 3 and NAME.fullmatch(rest[1]) and rest[2] == "in":
                    self.loop = Loop(line, rest[1], tuple(rest[3:]))
                    return
                if word in ("for", "case", "select"):
                    break
            elif word in CLOSERS:
                self._end_statement()
                self._close(word, line)
                break
            elif word == "function":
                self.function = True
                rest.pop(0)
            elif word not in INNER or not self.blocks:
                break
            del rest[:1]
        if rest:
            self.function = False
            ahead = iter(rest)
            redirections: list[tuple[str, str]] = []
            plain_words: list[str] = []
            for word in ahead:
                if isinstance(word, Operator):
                    redirections.append((word, next(ahead, "")))
                else:
                    plain_words.append(word)
            self.commands.append(Command(line, tuple(plain_words), tuple(redirections), self.joiner))
            self.joiner = ""

    def _open(self, opener: str, line: Line) -> None:
        self._end_statement()
        outer = bool(self.blocks) and self.blocks[-1][2]
        self.blocks.append((opener, line.number, outer or self.function or opener == "("))
        self.function = False

    def _close(self, closer: str, line: Line) -> None:
        """Close the innermost block; with a closer that does not fit, all the rest is inside a block."""
        if self.blocks and self.blocks[-1][0] in CLOSERS[closer]:
            self.blocks.pop()
            if self.loop and not self.blocks:
                self.loop.last = line
                self.found.append(self.loop)
                self.loop = None
        # A parenthesis after the pattern of a case closes nothing.
        elif not (closer == ")" and self.blocks and self.blocks[-1][0] == "case"):
            self.blocks.append((f"unexpected {closer}", line.number, False))

    def _end_statement(self, *, detached: bool = False) -> None:
        if self.commands:
            at = 1 if self.loop else 0
            inside = "the '{}' of line {}".format(*self.blocks[at]) if len(self.blocks) > at else ""
            detached = detached or (bool(self.blocks) and self.blocks[-1][2])
            self._add(Statement(tuple(self.commands), inside, detached))
        self.commands = []
        self.joiner = ""

    def _add(self, statement: Statement) -> None:
        if self.loop:
            self.loop.body.append(statement)
        else:
            self.found.append(statement)
