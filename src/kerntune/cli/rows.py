"""The rows of targets in tables: a mark, values with their units, and one line for targets that differ in the name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kerntune.api.document import Document, named
from kerntune.cli.tables import BAD, GOOD, MIXED, QUIET, Row, row
from kerntune.model import Reason, State
from kerntune.patterns import CPU, GLOB, HUGE_PAGES, POLICY, cpus_in, joined, parse_pool
from kerntune.results import CONTENT, Condition
from kerntune.units import gib, spell_cpus, spell_size

# Condition -> (mark, style). A newer daemon's state that is not here gets UNHEARD_OF.
MARKS: Final[Mapping[str, tuple[str, str]]] = {
    Condition.SATISFIED: ("✔", GOOD),
    Condition.PLANNED: ("→", GOOD),
    Condition.WAITING: ("○", QUIET),
    Condition.NOT_APPLICABLE: ("○", QUIET),
    Condition.OVERRIDDEN: ("≠", QUIET),
    Condition.PARTIAL: ("◐", MIXED),
    Condition.CONTESTED: ("!", BAD),
    Condition.OWED: ("◐", MIXED),
    Condition.REFUSED: ("✘", BAD),
    Condition.FAILED: ("✘", BAD),
    State.UNMANAGED: ("·", QUIET),
}
UNHEARD_OF: Final = ("?", MIXED)
NUMBER: Final = re.compile(r"([+>=]*)([0-9]{1,18})", re.ASCII)
CAP: Final = re.compile(r"never:([0-9]{1,15})k", re.ASCII)
KIB: Final = frozenset({"read-ahead"})  # tunables whose values are KiB
ALIKE: Final = 2  # from so many on, rows that differ only in the name share a line
SEVERAL: Final = re.compile(r"[*?\[,-]")  # in the name of what waits, which stands for several and cannot be joined
NAME: Final = "\0"  # stands for the instance in a note


def target_row(condition: str, name: str, *cells: str, notes: Iterable[str] = ()) -> Row:
    """Return the row of a target, or of a claim that waits for one, with its condition and other cells."""
    mark, style = MARKS.get(condition, UNHEARD_OF)
    return row(mark, (name, *cells), style, *notes)


def waiting_row(tunable: str, instances: str, value: str, *cells: str, notes: Iterable[str] = ()) -> Row:
    """Return the row of a setting that waits for a target: there is no value beside the requested one."""
    setting = f"{named(tunable, instances)}={value}"
    return target_row(Condition.WAITING, setting, "", "", Condition.WAITING, *cells, notes=notes)


def pair(tunable: str, instance: str, requested: str, actual: str) -> tuple[str, str]:
    """Return a requested and an actual value as people read them: equal texts where the values are equal."""
    there = shown(tunable, instance, actual)
    return (there if requested == actual else shown(tunable, instance, requested, brief=True)), there


def shown(tunable: str, instance: str, value: str, *, brief: bool = False) -> str:
    """Return a value with its unit: `64G (32768 x 2M)`, or `64G` where it is to be brief; `128 KiB`."""
    if tunable == "overcommit" and (cap := CAP.fullmatch(value)):
        return f"never:{gib(int(cap[1]) << 10)}"
    if not (found := NUMBER.fullmatch(value)):
        return value
    sign, number = found[1], int(found[2])
    if tunable in HUGE_PAGES and number:
        size = parse_pool(instance).size
        pages = "" if brief else f" ({number} x {spell_size(size)})"
        return f"{sign}{spell_size(number * size)}{pages}"
    return f"{value} KiB" if tunable in KIB else value


def why(state: str, reason: str, detail: str) -> str:
    """Return prose about a state: the detail, after the reason where something is not as it should be."""
    if reason == Reason.OK or state in CONTENT:
        return detail
    return f"{reason}: {detail}" if detail else reason


def cpus_of(document: Document) -> dict[str, Sequence[int]]:
    """Return the CPUs of each policy, by the policy's name."""
    found = [row for row in document["targets"] if row["instance"].startswith(POLICY)]
    return {row["instance"]: cpus_in(tuple(row["aliases"])) for row in found}


def together(rows: Iterable[Row], cpus: Mapping[str, Sequence[int]] | None = None) -> list[Row]:
    """Join rows that differ only in the instance into one, whose name covers these and no others.

    A note that names its own instance differs in nothing else by that. Policies become their CPUs, where these are
    known.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for one in rows:
        mark, name, *cells = one.cells
        tunable, instance, value = parts_of(name)
        alone = instance if (SEVERAL if value else GLOB).search(instance) else ""
        note = without_name(one.note, instance)
        groups.setdefault((mark, tunable, alone, value, *cells, one.style, note), []).append(one)
    found: list[Row] = []
    for key, alike in groups.items():
        if len(alike) < ALIKE:
            found += alike
            continue
        (tunable, _, value), note = parts_of(alike[0].cells[1]), key[-1]
        by_instance = {parts_of(one.cells[1])[1]: one for one in alike}
        for pattern, instances in joined(list(by_instance)):
            first = by_instance[instances[0]]
            if len(instances) == 1:
                found.append(first)
                continue
            name = as_cpus(instances, cpus or {}) or pattern
            joint = (first.cells[0], f"{named(tunable, name)}{value}", *first.cells[2:])
            found.append(Row(joint, first.style, note.replace(NAME, name)))
    return found


def parts_of(name: str) -> tuple[str, str, str]:
    """Return the tunable, the instance and the `=value` of a name in a table; only a setting that waits has a value."""
    tunable, _, rest = name.partition("@")
    instance, equals, value = rest.partition("=")
    return tunable, instance, equals + value


def without_name(note: str, instance: str) -> str:
    """Return a note with a sign in place of the instance that it is about."""
    return re.sub(rf"(?<![\w/-]){re.escape(instance)}(?![\w/-])", NAME, note) if instance in note and instance else note


def as_cpus(instances: Sequence[str], cpus: Mapping[str, Sequence[int]]) -> str:
    """Return the CPUs of policies as `cpu0-191`, "" where one is unknown."""
    if not all(cpus.get(instance) for instance in instances):
        return ""
    return CPU + spell_cpus(cpu for instance in instances for cpu in cpus[instance])
