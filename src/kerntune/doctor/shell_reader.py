"""The simple commands of a shell script, and the conditions, functions and subshells around each; it runs none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from kerntune.doctor.files import Line
from kerntune.doctor.words import SEPARATORS, is_operator

CLOSERS: Final = {
    "fi": frozenset({"if"}),
    "done": frozenset({"for", "while", "until", "select"}),
    "esac": frozenset({"case"}),
    "}": frozenset({"{"}),
    ")": frozenset({"("}),
}
OPENERS: Final = frozenset({"if", "for", "while", "until", "case", "select", "{"})
# A name and words follow these, not a command.
HEADS: Final = frozenset({"for", "case", "select"})
LOOPS: Final = CLOSERS["done"]
SUBSHELL: Final = CLOSERS[")"]
FUNCTION: Final = "function"
SKIPPED: Final = frozenset({"time"})
PIECE: Final = re.compile(r"\(\)|[()]|&&|\|\||\|&|;;?&?|[|&]")
VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*")


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition under which a script runs a command: the commands in `tests` have to succeed.

    `plain` says that these commands are the whole condition; otherwise an else, a case or a loop adds to it. With
    `negated` the commands have to fail.
    """

    what: str
    tests: tuple[tuple[str, ...], ...] = ()
    plain: bool = True
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A simple command as the script has it, with its redirections; `then` is the operator after it."""

    line: Line
    words: tuple[str, ...]
    then: str = ""
    conditions: tuple[Condition, ...] = ()
    in_function: bool = False
    in_subshell: bool = False


@dataclass(slots=True)
class Block:
    """An open block; `chain` has the conditions that stood before it with && and ||.

    In the condition of an if or a while, `testing` is true, and `tests` gathers the commands of the condition.
    `otherwise` says that another condition has failed before.
    """

    opener: str
    line: int
    chain: list[Condition]
    testing: bool = False
    otherwise: bool = False
    plain: bool = True
    tests: list[tuple[str, ...]] = field(default_factory=list)
    skips: list[Condition] = field(default_factory=list)

    @property
    def conditions(self) -> Iterator[Condition]:
        """The conditions that the commands in the block depend on."""
        yield from self.chain
        what = f"{'else' if self.otherwise else self.opener} in line {self.line}"
        if self.opener == "if" and (self.otherwise or not self.testing):
            yield Condition(what, tuple(self.tests), plain=self.plain and not self.otherwise)
        elif self.opener in ("case", "select") or (self.opener in ("while", "until") and not self.testing):
            yield Condition(what, plain=False)
        yield from self.skips


@dataclass(slots=True)
class Nesting:
    """The blocks that are open at one place of a script, on the way from its first line to its last."""

    stack: list[Block] = field(default_factory=list)
    chain: list[Condition] = field(default_factory=list)

    def commands(self, line: Line, tokens: Sequence[str]) -> Iterator[Command]:
        """Yield the simple commands of a line."""
        words: list[str] = []
        negated = False
        for token in (*tokens, ";"):
            if not is_operator(token, SEPARATORS):
                words.append(token)
                if is_operator(token):
                    self._parentheses(token, line)  # as in `(...)>file`
                continue
            body, negates = self._enter(words, line)
            negated |= negates
            words = []
            first, *pieces = pieces_of(token)
            if first == "()" and self._defines(body, line):
                body = []
            else:
                pieces = [first, *pieces]
            if body:
                yield self._command(line, body, token)
            for piece in pieces:
                if piece not in ("|", "|&") and (body or piece != "("):
                    self._note(tuple(body), piece, line, negated=negated)
                    negated = False
                self._parentheses(piece, line)
                body = []

    def _defines(self, body: Sequence[str], line: Line) -> bool:
        """Return whether `()` after these words makes a function; its keyword may have opened one already."""
        if len(body) == 1 and VARIABLE_NAME.fullmatch(body[0]):
            self._open(FUNCTION, line)
            return True
        return not body and bool(self.stack) and self.stack[-1].opener == FUNCTION

    def inherit(self, command: Command) -> None:
        """Take the position of a command, to read a script that the command runs."""
        if command.in_function:
            self._open(FUNCTION, command.line)
        if command.in_function or command.conditions:
            self.chain = list(command.conditions)
            self._open("{", command.line)

    def skip(self, condition: Condition, openers: frozenset[str] = LOOPS) -> None:
        """Make the rest of the innermost loop (or other block) depend on this condition."""
        for block in reversed(self.stack):
            if block.opener in openers:
                block.skips.append(condition)
                return

    def _command(self, line: Line, words: Sequence[str], then: str) -> Command:
        if self.stack and self.stack[-1].opener == FUNCTION:
            self.chain = self.stack.pop().chain  # no body follows, so it was no function
        openers = {block.opener for block in self.stack}
        inherited = [condition for block in self.stack for condition in block.conditions]
        conditions = (*inherited, *self.chain)
        return Command(line, tuple(words), then, conditions, FUNCTION in openers, "(" in openers)

    def _note(self, words: tuple[str, ...], then: str, line: Line, *, negated: bool) -> None:
        """Note what a command that has ended means for the next ones; without words it was a block."""
        top = self.stack[-1] if self.stack else None
        if top and top.testing and (words or then in ("&&", "||")):
            # With || the command is one of several ways to meet the condition.
            top.plain &= not negated and then != "||" and bool(words)
            top.tests.append(words)
        if then == "&&":
            self.chain.append(Condition(f"&& in line {line.number}", (words,), plain=bool(words) and not negated))
        elif then == "||":
            self.chain.append(Condition(f"|| in line {line.number}", (words,), plain=False, negated=bool(words)))
        else:
            self.chain.clear()

    def _enter(self, words: Sequence[str], line: Line) -> tuple[list[str], bool]:
        """Open and close blocks by the grammar words in front of a command.

        Return the words after them, and whether a ! was there.
        """
        rest, negated = list(words), False
        while rest:
            word = rest[0]
            if word in OPENERS:
                self._open(word, line)
                if word in HEADS:
                    return rest, negated
            elif word == FUNCTION and len(rest) > 1:
                self._open(FUNCTION, line)
                rest.pop(0)
            elif word in CLOSERS:
                self._close(word)
            elif word in ("then", "do", "elif", "else"):
                self._turn(word)
            elif word == "!":
                negated = True
            elif word not in SKIPPED:
                return rest, negated
            rest.pop(0)
        return rest, negated

    def _open(self, opener: str, line: Line) -> None:
        if self.stack and self.stack[-1].testing:
            self.stack[-1].plain = False
        self.stack.append(Block(opener, line.number, self.chain, testing=opener in ("if", "while", "until")))
        self.chain = []

    def _turn(self, word: str) -> None:
        """Go from the condition of an if or a loop to the commands that depend on it, or to the next condition."""
        for block in reversed(self.stack):
            if block.opener in ("if", "while", "until"):
                block.testing = word == "elif"
                block.otherwise |= word in ("elif", "else")
                self.chain.clear()
                return
            if block.opener in LOOPS:
                return

    def _close(self, closer: str) -> None:
        """Close the innermost block that this word ends, and the blocks left open in it."""
        at = next((n for n in reversed(range(len(self.stack))) if self.stack[n].opener in CLOSERS[closer]), None)
        if at is None:
            return
        # A parenthesis after the pattern of a case closes nothing.
        if closer == ")" and any(block.opener == "case" for block in self.stack[at:]):
            return
        self.chain = self.stack[at].chain
        del self.stack[at:]
        while self.stack and self.stack[-1].opener == FUNCTION:
            self.chain = self.stack.pop().chain

    def _parentheses(self, operator: str, line: Line) -> None:
        for char in operator:
            if char == "(":
                self._open(char, line)
            elif char == ")":
                self._close(char)


def pieces_of(operator: str) -> list[str]:
    """Return one by one the operators that stand together; `()` is one."""
    return PIECE.findall(operator)
