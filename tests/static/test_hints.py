"""Hints of errors begin alike: with a capital, or with the name of what is to be run or looked at."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from kerntune import errors
from kerntune.config.schema import CONFIG_OPTIONS
from tests.harness import CHECKOUT

SOURCES = CHECKOUT / "src/kerntune"
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
# A sentence, or what begins one and is written as it is typed.
BEGINS = re.compile(r"[A-Z`\d-]|(kerntune|profile|systemctl|busctl|apt)\b")
EACH = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(SOURCES.rglob("*.py"))]
# The constants of all modules: a hint may be one of another module.
CONSTANTS = {
    target.id: node.value.value
    for _, tree in EACH
    for node in tree.body
    if isinstance(node, ast.AnnAssign | ast.Assign)
    and isinstance(node.value, ast.Constant)
    and isinstance(node.value.value, str)
    for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
    if isinstance(target, ast.Name)
}


def hints() -> Iterator[tuple[str, str]]:
    """Yield each hint that can be read off the sources: its place, and how it begins."""
    for path, tree in EACH:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            named = [keyword.value for keyword in node.keywords if keyword.arg in ("hint", "late")]
            for hint in (*named, *(node.args[1:2] if name in CLASSES or name == "Advice" else [])):
                if text := beginning(hint):
                    yield f"{path.relative_to(Path(CHECKOUT))}:{hint.lineno}", text


def beginning(node: ast.expr) -> str:
    """Return how the text of an expression begins, or "" where only a run shows it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[first, *_]):
            return beginning(first)
        case ast.BinOp(left=left):
            return beginning(left)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return CONSTANTS.get(name, "")
        case _:
            return ""


def test_hints_begin_with_a_capital() -> None:
    found = list(hints())
    assert len(found) > 100
    assert [(place, text) for place, text in found if not BEGINS.match(text)] == []


def test_settings_that_messages_name_are_there() -> None:
    named = [
        tuple(arg.value for arg in node.args if isinstance(arg, ast.Constant))
        for _, tree in EACH
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setting", "setting_named")
    ]
    of_options = [path for path in named if len(path) == 2]
    assert len(of_options) > 5
    assert set(of_options) <= set(CONFIG_OPTIONS)
