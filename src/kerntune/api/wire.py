"""The conversion between the model and D-Bus values: outcomes as rows of strings, options with checked types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kerntune.dbus.messages import Variant
from kerntune.errors import InvalidArgs
from kerntune.model import Outcome, Setting

Row = list[str]


def outcome_row(outcome: Outcome) -> Row:
    """Return an outcome as (ssssssss)."""
    return [
        outcome.target.tunable,
        outcome.target.instance,
        outcome.requested,
        outcome.before,
        outcome.actual,
        outcome.state.value,
        outcome.reason.value,
        outcome.detail,
    ]


def outcome_rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """Return outcomes as a(ssssssss)."""
    return [outcome_row(outcome) for outcome in outcomes]


def settings_from(rows: Sequence[Sequence[str]]) -> tuple[Setting, ...]:
    """Return the settings in a(sss), or in a(ss) without values."""
    return tuple(Setting(*row, *[""] * (3 - len(row))) for row in rows)


def options_from(options: Mapping[str, Variant], allowed: Mapping[str, str]) -> dict[str, Any]:
    """Return the options as plain values. Raise InvalidArgs for a key or a type that the method does not take."""
    for key, value in options.items():
        if key not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise InvalidArgs(f"there is no option {key!r} here", f"This method takes: {known}")
        if value.signature != allowed[key]:
            raise InvalidArgs(f"option {key} has the type {value.signature!r}", f"It takes {allowed[key]!r}")
    return {key: value.value for key, value in options.items()}
