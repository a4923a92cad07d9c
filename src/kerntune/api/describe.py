"""The JSON document with everything that the daemon knows, for Describe and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from kerntune import __version__
from kerntune.engine.claims import resolve
from kerntune.engine.edits import Edits
from kerntune.engine.observed import LOOK_SECONDS, Observed
from kerntune.engine.reconciler import Reconciler
from kerntune.engine.requests import World
from kerntune.guard.guard import MemoryGuard
from kerntune.kernel.files import KernelView
from kerntune.kernel.modules import loadable
from kerntune.model import Claim, DesiredState, Hold, Memory, Outcome, Reading, State, Target
from kerntune.tunables.base import Tunable

SMALL: Final = 1000  # targets, and comparisons with claims; with less the event loop makes a document, in milliseconds

LATE: Final = (
    f"the kernel has not answered for {LOOK_SECONDS:g} s, and what was read before it serves. Likely: devices hang, or "
    "the host is overloaded; see kerntune status, and the kernel's log (dmesg)"
)


@dataclass(frozen=True, slots=True)
class Host:
    """The facts that do not change while the daemon runs; the page size is in bytes.

    `loads` are the values of each tunable for which the kernel has a module that it loads when they are written.
    """

    kernel: str
    root: str
    simulated: bool
    default_page_size: int
    loads: Mapping[str, frozenset[str]] = field(default_factory=dict)


def loads_of(kernel: KernelView, tunables: Iterable[Tunable]) -> dict[str, frozenset[str]]:
    """Return the values of each tunable that this host has a module for."""
    return {tunable.name: loadable(kernel, tunable.modules) for tunable in tunables if tunable.modules}


async def document(engine: Reconciler, guard: MemoryGuard, host: Host, *, degraded: Sequence[str], profile: str) -> str:
    """Return the document of what is known now, as JSON; a long one is made in a thread."""
    head, rows = prepare(engine.observed, engine.edits, guard, host, degraded=degraded, profile=profile)
    if len(engine.observed.readings) * (1 + len(engine.edits.claims.by_id)) <= SMALL:
        return json.dumps(head | rows())
    return await engine.threads.open(in_parts, head, rows)


def prepare(
    observed: Observed, edits: Edits, guard: MemoryGuard, host: Host, *, degraded: Sequence[str], profile: str
) -> tuple[dict[str, Any], Callable[[], dict[str, Any]]]:
    """Return the beginning of the document, and a function that makes the rest from a copy of what is known.

    The function may run in any thread. The fields have the model's names; later versions only ever add fields.
    """
    world = replace(observed.world, readings=dict(observed.readings))
    claims, baselines = tuple(edits.claims.by_id.values()), dict(edits.store.baselines)
    rows = partial(rows_of, world, claims, baselines, dict(observed.outcomes_now()), host.loads)
    return head_of(observed, edits, guard, host, degraded=degraded, profile=profile), rows


def in_parts(head: Mapping[str, Any], rows: Callable[[], Mapping[str, Any]]) -> str:
    """Return the document as JSON. An encoder lets no other thread run, so it gets one row at a time."""
    begin = json.dumps(head)[:-1]
    parts = (f"{json.dumps(name)}: [{', '.join(json.dumps(row) for row in found)}]" for name, found in rows().items())
    return f"{begin}, {', '.join(parts)}}}"


def head_of(
    observed: Observed, edits: Edits, guard: MemoryGuard, host: Host, *, degraded: Sequence[str], profile: str
) -> dict[str, Any]:
    """Return the fields that do not grow with the targets and the claims."""
    return {
        "version": __version__,
        "generation": observed.generation,
        "degraded": list(degraded),
        "profile": profile,
        "host": {
            "kernel": host.kernel,
            "root": host.root,
            "simulated": host.simulated,
            "default_page_size": host.default_page_size,
            "memory": figures(observed.memory),
        },
        "guard": guard_row(guard, observed.memory),
        "counters": {**observed.counters, **guard.counters},
        "holds": [hold_row(hold) for hold in edits.committed.holds.values()],
        "tunables": [
            {
                "name": tunable.name,
                "summary": tunable.summary,
                "kind": tunable.kind,
                "unit": tunable.sizes,
                "supported": tunable.name not in observed.missing,
                "detail": observed.missing.get(tunable.name, "") or (LATE if observed.is_late(tunable.lane) else ""),
            }
            for tunable in observed.tunables.values()
        ],
    }


def rows_of(
    world: World,
    claims: Sequence[Claim],
    baselines: Mapping[Target, str],
    outcomes: Mapping[Target, Outcome],
    loads: Mapping[str, frozenset[str]],
) -> dict[str, Any]:
    """Return the rows of the targets and of the claims."""
    desired_states: dict[Target, DesiredState] = {}
    for tunable in world.tunables.values():
        desired_states |= resolve(tunable, claims, baselines, world.of(tunable), readings=world.readings)
    return {
        "targets": [
            target_row(target, reading, desired_states.get(target), outcomes.get(target), baselines.get(target))
            | {"choices": world.tunables[target.tunable].choices(reading, loads.get(target.tunable, ()))}
            for target, reading in world.readings.items()
        ],
        "claims": [claim_row(claim, world) for claim in claims],
    }


def figures(memory: Memory | None) -> dict[str, int]:
    """Return the memory of the host in bytes."""
    names = ("total", "available", "hugetlb", "swap_total", "swap_free", "committed", "commit_limit")
    return {name: getattr(memory, name) for name in names} if memory else {}


def guard_row(guard: MemoryGuard, memory: Memory | None) -> dict[str, Any]:
    """Return the row of the memory guard.

    It has the guard's state, and the culprit that has made memory short. In bytes it has what is left, what the guard
    keeps free, and what a cap still grants.
    """
    verdict = guard.verdict
    return {
        "state": verdict.state,
        "level": verdict.level,
        "reason": verdict.reason,
        "headroom": memory.headroom if memory else 0,
        "floor": guard.floor(memory),
        "room": max(0, memory.commit_limit - memory.committed) if memory and verdict.caps else 0,
        "culprit": guard.culprit,
    }


def target_row(
    target: Target, reading: Reading, desired: DesiredState | None, outcome: Outcome | None, baseline: str | None
) -> dict[str, Any]:
    """Return the row of a knob: its value, desired state and claims; without a claim, what is owed to the host."""
    claimed = desired if desired and not desired.is_baseline else None
    owed = outcome.requested if outcome and outcome.is_owed else ""
    return {
        "tunable": target.tunable,
        "instance": target.instance,
        "aliases": list(target.aliases),
        "value": reading.value,
        "requested": claimed.value if claimed else owed,
        "before": outcome.before if outcome else "",
        "state": outcome.state if outcome else State.UNMANAGED,
        "reason": outcome.reason if outcome else reading.reason,
        "detail": outcome.detail if outcome else reading.detail,
        "claim": str(claimed.winner.id) if claimed else None,
        "beaten": [str(claim.id) for claim in claimed.overridden] if claimed else [],
        "parts": [str(claim.id) for claim in claimed.sum.parts] if claimed and claimed.sum else [],
        "baseline": baseline,
    }


def hold_row(hold: Hold) -> dict[str, Any]:
    """Return the row of one hold; its claims have its number."""
    return {
        "hold": hold.number,
        "who": hold.who,
        "why": hold.why,
        "uid": hold.uid,
        "detached": not hold.client,
        "since_usec": hold.since,
        "expires_usec": hold.expires,
    }


def claim_row(claim: Claim, world: World) -> dict[str, Any]:
    """Return the row of one claim, with the instances that it covers now."""
    return {
        "id": str(claim.id),
        "origin": claim.origin.word,
        "tunable": claim.tunable,
        "instances": claim.instances,
        "value": claim.value,
        "who": claim.who,
        "why": claim.why,
        "seq": claim.seq,
        "partial": claim.partial,
        "hold": claim.hold,
        "place": claim.place,
        "matches": [t.instance for t in world.covered(world.tunables[claim.tunable], claim.instances)],
    }
