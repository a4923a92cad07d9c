"""The shipped kerntune.toml and the lists of kerntune.toml(5), made from config/schema.py and the tunables.

`python -m tools.config_reference` writes both into the checkout, and `make generated` runs it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from kerntune.config.schema import OPTIONS, PROFILE, Option, shown
from kerntune.explained import Line, config_table
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable

CHECKOUT: Final = Path(__file__).parents[1]
WIDTH: Final = 100
FILE: Final = "packaging/kerntune.toml"
MANUAL: Final = "docs/man/kerntune.toml.5"
BEGIN: Final = '.\\" From here to the end mark: written by python -m tools.config_reference\n'
END: Final = '.\\" The end mark\n'

PREAMBLE: Final = (
    "What kerntuned keeps in force on this host; kerntune.toml(5) explains it all.",
    "Every setting is commented out: nothing is changed on a host until somebody asks for it. Remove the # in front of "
    "a line and change its value, then run `kerntune config check` and `kerntune reload`.",
    "Files in kerntune.d beside this one (*.toml, in the order of their names) are read after it, and the later file "
    "and line wins. What is set with `kerntune set` wins over all of them.",
)
IN_TABLES: Final = [option for option in OPTIONS if option.table]


def shipped_file() -> str:
    """Return kerntune.toml with every setting commented out. Headers are not, so that each line has its table."""
    parts = ["#\n".join(comment(text) for text in PREAMBLE)]
    parts.append(comment(PROFILE.about) + f"#{PROFILE.name} = {PROFILE.example}\n")
    for table, options in groupby(IN_TABLES, key=lambda option: option.table):
        parts.append(f"[{table}]\n" + "\n".join(map(option_lines, options)))
    parts += map(claim_lines, REGISTRY)
    return "\n".join(parts)


def option_lines(option: Option) -> str:
    """Return an option with its default, commented out."""
    return comment(f"{option.about} {capital(option.allowed)}.") + f"#{option.name} = {shown(option.default)}\n"


def claim_lines(tunable: Tunable) -> str:
    """Return a tunable's table with its examples."""
    row = config_table(tunable)
    lines = [f"#{entry(example)}" for example in row.examples]
    width = max(map(len, lines)) + 2
    examples = "".join(f"{line:{width}}# {example.about}\n" for line, example in zip(lines, row.examples, strict=True))
    about = comment(row.about) + comment(f"Name: {row.patterns}.") + comment(f"Value: {row.values}.")
    return f"{about}[{tunable.name}]\n{examples}"


def entry(example: Line) -> str:
    """Return a pattern and its value in TOML."""
    value = example.value if isinstance(example.value, int) else f'"{example.value}"'
    return f'"{example.pattern}" = {value}'


def comment(text: str) -> str:
    """Return the text as lines of comment."""
    return "".join(f"{line}\n" for line in textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# "))


def manual_lists() -> str:
    """Return the tables in mdoc(7)."""
    lines = [f".Ss {PROFILE.name}", *sentences(PROFILE.about.replace("`", "")), ".Pp"]
    lines.append(f".Dl {PROFILE.name} = {PROFILE.example}".replace('"', "\\(dq"))
    for table, options in groupby(IN_TABLES, key=lambda option: option.table):
        lines += [f".Ss [{table}]", '.Bl -tag -width "hugepages-percent"']
        for option in options:
            lines += [f".It Ic {option.name}", *sentences(option.about.replace("`", ""))]
            lines += sentences(f"{capital(option.allowed)}; {shown(option.default)} if it is not given.")
        lines.append(".El")
    for tunable in REGISTRY:
        row = config_table(tunable)
        lines += [f".Ss [{tunable.name}]", *sentences(row.about), ".Pp"]
        lines += [f"The name is {row.patterns}.", f"The value is {row.values}."]
        for example in row.examples:
            lines += [".Pp", f".Dl {entry(example)}".replace('"', "\\(dq"), *sentences(capital(example.about))]
    return "\n".join(wrapped(lines)) + "\n"


def sentences(text: str) -> list[str]:
    """Split a text into sentences: mdoc(7) wants one to a line."""
    return [f"{part}." for part in text.removesuffix(".").split(". ")]


def wrapped(lines: list[str]) -> Iterator[str]:
    """Yield lines that are not too long; a macro keeps to its line."""
    for line in lines:
        yield from [line] if line.startswith(".") else textwrap.wrap(line, 120, break_on_hyphens=False)


def capital(text: str) -> str:
    """Return the text with a capital at its start."""
    return text[0].upper() + text[1:]


def inserted(page: str) -> str:
    """Return the manual page with its lists up to date; raise ValueError when it has lost its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{MANUAL} has lost the marks between which its lists stand")
    return before + begin + manual_lists() + end + after


def main() -> None:
    """Write both files into the checkout."""
    (CHECKOUT / FILE).write_text(shipped_file())
    page = CHECKOUT / MANUAL
    page.write_text(inserted(page.read_text()))


if __name__ == "__main__":
    main()
