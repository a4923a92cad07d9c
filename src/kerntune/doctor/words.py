"""The lexer of shell scripts: it cuts lines into tokens, runs none, and knows only the grammar of boot scripts."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kerntune.doctor.files import Line

OPERATORS: Final = frozenset(";|&()<>")
SEPARATORS: Final = frozenset(";|&()")
ASSIGNED: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
VARIABLE: Final = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
BRACES: Final = re.compile(r"(?<!\$)\{([^{}]*,[^{}]*|[0-9]{1,4}\.\.[0-9]{1,4})\}")
# A quotation may go on for some lines; a stray quote should not swallow the whole script.
QUOTED_LINES: Final = 12
MOST_WORDS: Final = 4096  # words that one word may expand to
MOST_BRACES: Final = 8


def logical(lines: Sequence[Line]) -> Iterator[tuple[Line, list[str] | None]]:
    """Yield each line with its continuation lines, and its tokens, or None if the quotes do not match.

    Leave out here-documents. `$(...)` is one word, or the beginning of one.
    """
    ahead = iter(range(len(lines)))
    for index in ahead:
        number, text = lines[index]
        last = index
        while last + 1 < len(lines) and last - index < QUOTED_LINES and continues(text):
            last = next(ahead)
            text = f"{text.removesuffix(chr(92))} {lines[last].text.strip()}"
        tokens = cut(text)
        for end in range(last + 1, min(len(lines), last + QUOTED_LINES) if tokens is None else 0):
            longer = "\n".join((text, *(line.text for line in lines[last + 1 : end + 1])))
            if (tokens := cut(longer)) is not None:
                text = longer
                for _ in range(end - last):
                    next(ahead)
                break
        if tokens and "<<" in tokens[:-1]:
            end_mark = tokens[tokens.index("<<") + 1].removeprefix("-")
            while (skipped := next(ahead, None)) is not None and lines[skipped].text.strip() != end_mark:
                pass
        yield Line(number, text.strip()), tokens


def continues(text: str) -> bool:
    """Return whether the next line belongs to this one."""
    return text.endswith("\\") or (not text.lstrip().startswith("#") and text.rstrip().endswith(("|", "&&")))


def cut(text: str) -> list[str] | None:
    """Return the tokens of a line, or None while a quotation is open."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="".join(OPERATORS))
    lexer.whitespace_split = True
    try:
        return substituted(list(lexer))
    except ValueError:
        return None


def substituted(tokens: Sequence[str]) -> list[str]:
    """Return the tokens with each `$(...)` in one piece; one that nothing closes goes on to the end."""
    found: list[str] = []
    depth = 0
    for token in tokens:
        begins = bool(found) and found[-1].endswith("$") and token.startswith("(") and is_operator(token)
        if not depth and not begins:
            found.append(token)
        elif not is_operator(token):
            found[-1] += token if found[-1].endswith("(") else f" {token}"
        else:
            for index, char in enumerate(token, 1):
                depth += (char == "(") - (char == ")")
                found[-1] += char
                if not depth:
                    found += [token[index:]] if token[index:] else []
                    break
    return found


def is_operator(token: str, among: frozenset[str] = OPERATORS) -> bool:
    """Return whether a token has no characters but those in `among`."""
    return bool(token) and set(token) <= among


def expand(word: str, known: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Return the words that one word stands for, by the known variables, or None if a part of it is not known."""
    found = [word]
    while any(VARIABLE.search(one) for one in found):
        longer: list[str] = []
        for one in found:
            variable = VARIABLE.search(one)
            if not variable:
                longer.append(one)
                continue
            values = known.get(variable[1] or variable[2])
            if values is None:
                return None
            longer += [f"{one[: variable.start()]}{value}{one[variable.end() :]}" for value in values]
        if len(longer) > MOST_WORDS:
            return None
        found = longer
    found = [short for one in itertools.islice(found, MOST_WORDS) for short in unbraced(one)]
    return None if len(found) > MOST_WORDS or any("$" in one or "`" in one for one in found) else found


def unbraced(word: str) -> list[str]:
    """Return the words that `cpu{0,1}` or `cpu{0..3}` stands for."""
    brace = BRACES.search(word)
    if not brace or word.count("{") > MOST_BRACES:
        return [word]
    first, dots, last = brace[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        span = range(int(first), min(int(last), int(first) + MOST_WORDS) + 1)
        parts = [str(number) for number in span]
    else:
        parts = brace[1].split(",")
    tails = unbraced(word[brace.end() :])
    if len(parts) * len(tails) > MOST_WORDS:
        return [word]
    return [f"{word[: brace.start()]}{part}{tail}" for part in parts for tail in tails]
