"""The report as JSON, format 1: only the measurements and the place, never the environment of the process."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from kerntune.bench.model import Change, Estimate, Leg, Looked, Report, Round, Sample

FORMAT: Final = 1
HIDDEN: Final = "a command"
TELLING: Final = 4  # characters; a word of a command that is so long may reveal something


def document(report: Report, *, command: bool = True) -> dict[str, Any]:
    """Return a report as strict JSON: null for numbers that are not finite. `command` False leaves the command out."""
    if not command:
        report = without_command(report)
    found = {
        "format": FORMAT,
        "date": report.date,
        "command": list(report.command),
        "after": _change(report.change),
        "legs": [_leg(leg) for leg in report.legs],
        "environment": report.environment,
        "notes": list(report.notes),
    }
    if not command:
        del found["command"]
    return {name: _strict(value) for name, value in found.items()}


def without_command(report: Report) -> Report:
    """Return a report that the user can give away: without the command everywhere, also without its words.

    Words of less than four characters stay in prose: it would not be readable without them.
    """
    whole = {shlex.join(report.command), " ".join(report.command)}
    words = sorted((*whole, *(word for word in report.command if len(word) >= TELLING)), key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(word) for word in words if word) or r"(?!)")

    def hide(text: str) -> str:
        return pattern.sub(HIDDEN, text)

    return replace(
        report,
        command=(),
        legs=tuple(_hidden(leg, hide) for leg in report.legs),
        environment={name: _each_text(value, hide) for name, value in report.environment.items()},
        notes=tuple(map(hide, report.notes)),
    )


def _hidden(leg: Leg, hide: Callable[[str], str]) -> Leg:
    def sample(given: Sample) -> Sample:
        return replace(given, cold=hide(given.cold), trouble=hide(given.trouble))

    rounds = tuple(
        Round(sample(each.before), sample(each.after), each.control and sample(each.control)) for each in leg.rounds
    )
    what = HIDDEN if leg.name == "cmd" else hide(leg.what)
    return replace(leg, what=what, rounds=rounds, reason=hide(leg.reason), notes=tuple(map(hide, leg.notes)))


def _change(change: Change) -> dict[str, Any]:
    return {
        "settings": list(change.settings),
        "profile": change.profile,
        "slice_us": change.shield.slice_us,
        "cpus": sorted(change.shield.cpus),
    }


def _leg(leg: Leg) -> dict[str, Any]:
    controls = [(each.before, each.control) for each in leg.rounds if each.control]
    return {
        "name": leg.name,
        "what": leg.what,
        "before": [_sample(each.before) for each in leg.rounds],
        "after": [_sample(each.after) for each in leg.rounds],
        "control": [_sample(control) for _, control in controls],
        "pairs": [[each.before.seconds, each.after.seconds] for each in leg.rounds],
        "aa": [[before.seconds, control.seconds] for before, control in controls],
        "looks": [_look(looked) for looked in leg.looks],
        "verdict": str(leg.verdict),
        "reason": leg.reason,
        "detectable": leg.detectable,
        "notes": list(leg.notes),
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "seconds": sample.seconds,
        "cold": sample.cold,
        "trouble": sample.trouble,
        "figures": dict(sample.figures),
    }


def _look(looked: Looked) -> dict[str, Any]:
    taken = {"pairs": looked.look.pairs, "alpha": looked.look.alpha}
    return taken | _estimate(looked.effect) | {"control": _estimate(looked.control) if looked.control else None}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"ratio": estimate.ratio, "low": estimate.low, "high": estimate.high}


def _each_text(value: object, change: Callable[[str], str]) -> object:
    """Return the same value with every text in it changed; the names of a mapping stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _each_text(one, change) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each_text(one, change) for one in value]
    return value


def _strict(value: object) -> Any:
    """Return a value that every reader of JSON takes: no NaN or infinity, no half surrogate pair, no other type."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        return {_strict(str(name)): _strict(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return [_strict(one) for one in sorted(value, key=str)]
    return str(value).encode(errors="replace").decode()
