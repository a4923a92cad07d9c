"""The arithmetic of huge pages: one plan for all pools, inside what the host can bear. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kerntune.model import (
    SATISFIED,
    DesiredState,
    Limits,
    Memory,
    Origin,
    Reading,
    Reason,
    State,
    Step,
    Target,
    Verdict,
    Write,
)
from kerntune.tunables.amounts import Bound, refused
from kerntune.tunables.base import unreadable
from kerntune.tunables.pool_room import Room, node_of
from kerntune.tunables.pool_writes import Pools, Work, carry_out, is_full, nodes_of, persistent
from kerntune.tunables.sums import refused_claim


@dataclass(frozen=True, slots=True)
class Part:
    """A desired state, the pages that it wants in each pool, and the pools it settles.

    `overridden` is the verdict where the pools' number is not the desired one; with a `verdict` there is nothing to
    do. `takes` are the pages that another part wants in a pool, for this one too.
    """

    desired: DesiredState
    wants: Mapping[Target, int]
    settles: tuple[Target, ...]
    overridden: Verdict | None = None
    verdict: Verdict | None = None
    takes: int | None = None


def plan_pools(
    pools: Pools,
    desired_states: Mapping[Target, DesiredState],
    memory: Memory,
    limits: Limits,
    *,
    path_of: Callable[[Target], str],
) -> Sequence[Step]:
    """Return a step for every desired state that is due; pools that shrink come first, for all share one memory."""
    known = {target: reading for target, reading in pools.items() if reading.value is not None}
    steps = [
        Step(desired, pools[t], verdict=unreadable(pools[t])) for t, desired in desired_states.items() if t not in known
    ]
    groups = by_size(known)
    parts: list[Part] = []
    for own in groups.values():
        parts += divide(own, {target: desired for target, desired in desired_states.items() if target in own})
    room = Room.on(memory, limits, known)
    parts.sort(key=lambda part: growth(part.wants, known) * page_bytes(part, known))
    fitted = []
    for part in parts:
        done, room = fit(part, known, room)
        fitted.append(done)
    work: dict[Target, Work] = {}
    for own in groups.values():
        work |= carry_out(
            {done.part.desired.target: done.wants for done in fitted if done.part.desired.target in own}, own
        )
    return steps + [done.step(known, work.get(done.part.desired.target, Work()), path_of) for done in fitted]


def by_size(pools: Pools) -> dict[str, dict[Target, Reading]]:
    """Return the pools of each page size."""
    sizes = sorted({target.instance.partition("/")[0] for target in pools})
    return {size: {t: r for t, r in pools.items() if t.instance.partition("/")[0] == size} for size in sizes}


def page_bytes(part: Part, pools: Pools) -> int:
    """Return the page size of a part, in bytes."""
    return pools[part.desired.target].figures["size"]


def divide(group: Pools, desired_states: Mapping[Target, DesiredState]) -> list[Part]:
    """Say who settles which pool: nodes with claims get exactly theirs, the rest of a total goes to the other nodes.

    A total alone is the kernel's to spread: it tries the nodes in turn, and goes on where one has no memory. A node's
    own baseline counts only while no total is claimed. Nodes that are to have at least so much of a total get it first.
    """
    nodes = nodes_of(group)
    alias = () if nodes else tuple(group)
    whole = next((desired for target, desired in desired_states.items() if "/" not in target.instance), None)
    claimed = {t: desired for t, desired in desired_states.items() if "/" in t.instance and not desired.is_baseline}
    also = (whole.target,) if whole else ()
    parts = [Part(desired, {t: int(desired.value)}, alias or (t, *also)) for t, desired in claimed.items()]
    if whole is None or whole.is_baseline:
        return parts + put_back([desired for desired in desired_states.values() if desired.is_baseline], group, claimed)
    total = int(whole.value)
    if not claimed:
        return [Part(whole, {whole.target: total}, alias or (whole.target, *nodes))]
    least = {t: int(desired.value) for t, desired in claimed.items() if desired.sum and desired.sum.at_least}
    fixed = sum(int(desired.value) for target, desired in claimed.items() if target not in least)
    others = {target: group[target] for target in nodes if target not in claimed or target in least}
    by_config = {desired.winner.origin for t, desired in claimed.items() if t not in least} == {Origin.CONFIG}
    wins = Reason.CONFIG_WINS if by_config and whole.winner.origin is Origin.PROFILE else Reason.OVERRIDDEN
    overridden = overridden_by_nodes(fixed, wins) if total < fixed or (not others and total != fixed) else None
    wants = at_least(spread(max(0, total - fixed), others), least)
    parts = [
        Part(part.desired, {}, (), takes=wants[part.desired.target]) if part.desired.target in least else part
        for part in parts
    ]
    return [*parts, Part(whole, wants, (whole.target, *wants) if nodes else (), overridden)]


def at_least(wants: Mapping[Target, int], least: Mapping[Target, int]) -> dict[Target, int]:
    """Return the same pages in all, of which each node that `least` names has so many, as far as they go."""
    found = dict(wants)
    for target, pages in least.items():
        spare = {other: max(0, found[other] - least.get(other, 0)) for other in found if other != target}
        given = share(min(max(0, pages - found[target]), sum(spare.values())), spare)
        found[target] += sum(given.values())
        for other, count in given.items():
            found[other] -= count
    return found


def put_back(own: Sequence[DesiredState], group: Pools, claimed: Mapping[Target, DesiredState]) -> list[Part]:
    """Give pools that nobody claims their own numbers back.

    With several nodes the total's own number was saved while nodes had claims: what goes back is the sum of theirs.
    """
    nodes = nodes_of(group)
    if not nodes:
        # The one pool has two names, and the first of them is written.
        return [] if claimed else [Part(w, {w.target: int(w.value)} if w is own[0] else {}, tuple(group)) for w in own]
    whole = next((desired for desired in own if desired.target not in nodes), None)
    also = (whole.target,) if whole else ()
    parts = [
        Part(desired, {desired.target: int(desired.value)}, (desired.target, *also))
        for desired in own
        if desired.target in nodes
    ]
    if whole is None:
        return parts
    if claimed:
        return [*parts, Part(whole, {}, (), verdict=SATISFIED)]
    if not parts:
        return [Part(whole, {whole.target: int(whole.value)}, tuple(nodes))]
    goals = {node: persistent(group[node]) for node in nodes} | {w.target: int(w.value) for w in own if w is not whole}
    return [*parts, Part(replace(whole, value=str(sum(goals.values()))), {}, ())]


def overridden_by_nodes(fixed: int, reason: Reason) -> Verdict:
    """Return the verdict on a total that the claims on single nodes override."""
    return Verdict(State.OVERRIDDEN, reason, f"the claims on single nodes make {fixed} pages in all")


def spread(total: int, pools: Pools) -> dict[Target, int]:
    """Return pages for each node: as they are where the sum is right; else the difference in even shares.

    Growth goes where memory is, shrinking takes free pages first (`room` and `free` in the figures).
    """
    asked = {target: reading.figures["asked"] for target, reading in pools.items()}
    more = total - sum(asked.values())
    if more >= 0:
        room = {target: reading.figures["room"] for target, reading in pools.items()}
        shares = share(more, room, {target: 0 if is_full(reading) else more for target, reading in pools.items()})
        return {target: asked[target] + shares[target] for target in pools}
    free = {t: min(reading.figures["free"], asked[t]) for t, reading in pools.items()}
    shares = share(-more, free, most=asked)
    return {target: asked[target] - shares[target] for target in pools}


def share(amount: int, room: Mapping[Target, int], most: Mapping[Target, int] | None = None) -> dict[Target, int]:
    """Divide an amount evenly, nobody beyond its room; what then is left goes to all (up to `most`) evenly."""
    shares = dict.fromkeys(room, 0)
    for bound in (room, most or dict.fromkeys(room, amount)):
        while amount and (open_ := [t for t in shares if shares[t] < bound[t]]):
            each = max(1, amount // len(open_))
            for target in open_:
                part = min(each, bound[target] - shares[target], amount)
                shares[target] += part
                amount -= part
    return shares


def growth(wants: Mapping[Target, int], group: Pools) -> int:
    """Return the pages that would be taken from free memory (below 0: given back to it)."""
    change = 0
    for target, want in wants.items():
        figures = group[target].figures
        change += (
            want - figures["total"] if want >= figures["total"] else -min(figures["total"] - want, figures["free"])
        )
    return change


def rise(wants: Mapping[Target, int], group: Pools) -> int:
    """Return by how many pages more is asked of the pools."""
    return sum(want - group[target].figures["asked"] for target, want in wants.items())


@dataclass(frozen=True, slots=True)
class Fitted:
    """A part as the host can bear it; `grows` are the bytes of memory that it takes."""

    part: Part
    wants: Mapping[Target, int]
    verdict: Verdict | None = None
    capped: Verdict | None = None
    grows: int = 0

    def step(self, pools: Pools, work: Work, path_of: Callable[[Target], str]) -> Step:
        """Return what the engine carries out."""
        desired = self.part.desired
        writes = tuple(Write(path_of(target), str(count)) for target, count in work.writes)
        touches = tuple(dict.fromkeys((*self.part.settles, *work.touches)))
        comes_to = sum(self.wants.values()) if self.wants else None
        return Step(desired, pools[desired.target], writes, self.verdict, self.capped, touches, self.grows, comes_to)


def fit(part: Part, group: Pools, room: Room) -> tuple[Fitted, Room]:
    """Refuse a part, cap it to what there is room for, or leave it as asked; return the room left too."""
    if part.verdict:
        return Fitted(part, {}, part.verdict), room
    desired, before, size = part.desired, group[part.desired.target], page_bytes(part, group)
    now = before.figures
    # Pages in use beyond what is asked and may be borrowed are counted with the pools already.
    stuck = max(0, now["surplus"] - now["borrow"])
    if verdict := among_those_in_use(desired, before, stuck):
        return Fitted(part, {}, verdict), room
    grows, more = growth(part.wants, group), rise(part.wants, group)
    if part.takes is not None:
        grows, more = growth({desired.target: part.takes}, group), part.takes - now["asked"]
    if part.overridden:
        # Overridden by the nodes' claims or not, a number that the host could never bear is refused.
        grows = more = max(grows, int(desired.value) - now["total"])
    bounds = [(room.for_memory(node_of(desired.target)), grows)]
    if not desired.is_baseline:
        bounds.append((room.for_pools, max(grows, more - stuck)))
    over = [(more - pages + bound.pages(size), bound) for bound, pages in bounds if pages > bound.pages(size)]
    wants, capped = part.wants, part.overridden
    if over and more > 0:
        possible, bound = min(over)
        most = now["asked"] + max(0, possible)
        verdict = over_limit(desired, now["total"], most, bound, size)
        if desired.sum is None and desired.strict:
            return Fitted(part, {}, verdict), room
        if refusal := refused_claim(
            desired, desired.sum.newest if desired.sum else None, now["asked"], most, bound, size=size
        ):
            return Fitted(part, {}, refusal), room
        if part.takes is None:
            capped = part.overridden or verdict._replace(state=State.PARTIAL)
        wants = reduce(part.wants, group, max(0, possible))
    grows = growth(wants, group)
    counted = max(grows, rise(wants, group) - stuck)
    nodes = {node_of(target): growth({target: want}, group) * size for target, want in wants.items()}
    return Fitted(part, wants, None, capped, grows * size), room.less(grows * size, counted * size, nodes)


def among_those_in_use(desired: DesiredState, pool: Reading, stuck: int) -> Verdict | None:
    """Refuse who asks to hold pages while pages that nobody claims are in use: some of his would be among them."""
    if not stuck or not desired.sum or not any(claim.origin is Origin.HOLD for claim in desired.sum.asked):
        return None
    return Verdict(
        State.REFUSED,
        Reason.PAGES_IN_USE,
        f"{stuck} pages of {desired.target} that nobody claims any more are still in use, and those asked for would be "
        f"among them{pool.detail and '; '}{pool.detail}",
    )


def over_limit(desired: DesiredState, now: int, possible: int, bound: Bound, size: int) -> Verdict:
    """Return the refusal, with what was asked, what is possible and what there is."""
    pages, name, unit = (int(desired.value), possible, now), desired.target.instance, desired.winner.unit
    if desired.sum and desired.sum.held:
        bound = bound._replace(why=f"{bound.why}; {{}} of what is asked are held")
        bound = bound._replace(figures=(*bound.figures, desired.sum.held * size))
    return Verdict(State.REFUSED, Reason.OVER_LIMIT, refused(unit, size, pages, name, bound))


def reduce(wants: Mapping[Target, int], group: Pools, pages: int) -> dict[Target, int]:
    """Return the same wants with only so many pages more than are asked now, in even shares."""
    asked = {target: group[target].figures["asked"] for target in wants}
    over = {target: max(0, want - asked[target]) for target, want in wants.items()}
    shares = share(pages, over, most=over)
    return {target: asked[target] + shares[target] if over[target] else want for target, want in wants.items()}
