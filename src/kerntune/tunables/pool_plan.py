"""The arithmetic of huge pages: one plan for all pools, inside what the host can bear. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kerntune.model import SATISFIED, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import unreadable
from kerntune.tunables.pool_room import Room, node_of
from kerntune.tunables.pool_writes import Pools, Work, carry_out, is_full, nodes_of, persistent


@dataclass(frozen=True, slots=True)
class Part:
    """A wish, the pages that it wants in each pool, and the pools it settles.

    `beaten` is what to say when the pools' number is not the wish's; with a `verdict` there is nothing to do.
    """

    wish: Wish
    wants: Mapping[Target, int]
    settles: tuple[Target, ...]
    beaten: Verdict | None = None
    verdict: Verdict | None = None


def plan_pools(
    pools: Pools,
    wishes: Mapping[Target, Wish],
    memory: Memory,
    limits: Limits,
    *,
    path_of: Callable[[Target], str],
) -> Sequence[Step]:
    """Return a step for every wish whose turn it is; who shrinks comes first, for all sizes share one memory."""
    known = {target: reading for target, reading in pools.items() if reading.value is not None}
    steps = [Step(wish, pools[t], verdict=unreadable(pools[t])) for t, wish in wishes.items() if t not in known]
    groups = by_size(known)
    parts: list[Part] = []
    for own in groups.values():
        parts += divide(own, {target: wish for target, wish in wishes.items() if target in own})
    room = Room.on(memory, limits, known)
    parts.sort(key=lambda part: growth(part.wants, known) * page_bytes(part, known))
    fitted = []
    for part in parts:
        done, room = fit(part, known, room)
        fitted.append(done)
    work: dict[Target, Work] = {}
    for own in groups.values():
        work |= carry_out({done.part.wish.target: done.wants for done in fitted if done.part.wish.target in own}, own)
    return steps + [done.step(known, work.get(done.part.wish.target, Work()), path_of) for done in fitted]


def by_size(pools: Pools) -> dict[str, dict[Target, Reading]]:
    """Return the pools of each page size."""
    sizes = sorted({target.instance.partition("/")[0] for target in pools})
    return {size: {t: r for t, r in pools.items() if t.instance.partition("/")[0] == size} for size in sizes}


def page_bytes(part: Part, pools: Pools) -> int:
    """Return the page size of a part, in bytes."""
    return pools[part.wish.target].figures["size"]


def divide(group: Pools, wishes: Mapping[Target, Wish]) -> list[Part]:
    """Say who settles which pool: nodes with claims get exactly theirs, the rest of a total goes to the other nodes.

    A total alone is the kernel's to spread: it tries the nodes in turn, and goes on where one has no memory. A node's
    own baseline counts only while no total is claimed.
    """
    nodes = nodes_of(group)
    alias = () if nodes else tuple(group)
    whole = next((wish for target, wish in wishes.items() if "/" not in target.instance), None)
    claimed = {t: wish for t, wish in wishes.items() if "/" in t.instance and not wish.is_baseline}
    also = (whole.target,) if whole else ()
    parts = [Part(wish, {t: int(wish.value)}, alias or (t, *also)) for t, wish in claimed.items()]
    if whole is None or whole.is_baseline:
        return parts + put_back([wish for wish in wishes.values() if wish.is_baseline], group, claimed)
    total, fixed = int(whole.value), sum(int(wish.value) for wish in claimed.values())
    if not claimed:
        return [Part(whole, {whole.target: total}, alias or (whole.target, *nodes))]
    others = {target: group[target] for target in nodes if target not in claimed}
    beaten = beaten_by_nodes(fixed) if total < fixed or (not others and total != fixed) else None
    wants = spread(max(0, total - fixed), others)
    return [*parts, Part(whole, wants, (whole.target, *wants) if nodes else (), beaten)]


def put_back(own: Sequence[Wish], group: Pools, claimed: Mapping[Target, Wish]) -> list[Part]:
    """Give pools that nobody claims their own numbers back.

    With several nodes the total's own number was saved while nodes had claims: what goes back is the sum of theirs.
    """
    nodes = nodes_of(group)
    if not nodes:
        # The one pool has two names, and the first of them is written.
        return [] if claimed else [Part(w, {w.target: int(w.value)} if w is own[0] else {}, tuple(group)) for w in own]
    whole = next((wish for wish in own if wish.target not in nodes), None)
    also = (whole.target,) if whole else ()
    parts = [Part(wish, {wish.target: int(wish.value)}, (wish.target, *also)) for wish in own if wish.target in nodes]
    if whole is None:
        return parts
    if claimed:
        return [*parts, Part(whole, {}, (), verdict=SATISFIED)]
    if not parts:
        return [Part(whole, {whole.target: int(whole.value)}, tuple(nodes))]
    goals = {node: persistent(group[node]) for node in nodes} | {w.target: int(w.value) for w in own if w is not whole}
    return [*parts, Part(replace(whole, value=str(sum(goals.values()))), {}, ())]


def beaten_by_nodes(fixed: int) -> Verdict:
    """The nodes' own claims make another total."""
    return Verdict(State.OVERRIDDEN, Reason.OVERRIDDEN, f"the claims on single nodes make {fixed} pages in all")


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
        wish = self.part.wish
        writes = tuple(Write(path_of(target), str(count)) for target, count in work.writes)
        touches = tuple(dict.fromkeys((*self.part.settles, *work.touches)))
        return Step(wish, pools[wish.target], writes, self.verdict, self.capped, touches, self.grows)


def fit(part: Part, group: Pools, room: Room) -> tuple[Fitted, Room]:
    """Refuse a part, cap it to what there is room for, or leave it as asked; return the room left too."""
    wish, before, size = part.wish, group[part.wish.target], page_bytes(part, group)
    if part.verdict:
        return Fitted(part, {}, part.verdict), room
    grows, more = growth(part.wants, group), rise(part.wants, group)
    # Pages in use beyond what is asked and may be borrowed are counted with the pools already.
    stuck = max(0, before.figures["surplus"] - before.figures["borrow"])
    if part.beaten:
        # Beaten by the nodes' claims or not, a number that the host could never bear is refused.
        grows = more = max(grows, int(wish.value) - before.figures["total"])
    bounds = [(room.for_memory(wish), grows)]
    if not wish.is_baseline:
        bounds.append((room.for_pools, max(grows, more - stuck)))
    over = [(more - pages + bound.pages(size), bound.why) for bound, pages in bounds if pages > bound.pages(size)]
    wants, capped = part.wants, part.beaten
    if over and more > 0:
        possible, why = min(over)
        now = before.figures
        verdict = over_limit(wish, now["total"], now["asked"] + max(0, possible), why)
        if wish.strict:
            return Fitted(part, {}, verdict), room
        capped = part.beaten or verdict._replace(state=State.PARTIAL)
        wants = reduce(part.wants, group, max(0, possible))
    grows = growth(wants, group)
    counted = max(grows, rise(wants, group) - stuck)
    nodes = {node_of(target): growth({target: want}, group) * size for target, want in wants.items()}
    return Fitted(part, wants, None, capped, grows * size), room.less(grows * size, counted * size, nodes)


def over_limit(wish: Wish, now: int, possible: int, why: str) -> Verdict:
    """The refusal, with what was asked, what is possible and what there is."""
    return Verdict(
        State.REFUSED,
        Reason.OVER_LIMIT,
        f"{wish.value} pages asked for {wish.target.instance}, {possible} possible, {now} there now: {why}",
    )


def reduce(wants: Mapping[Target, int], group: Pools, pages: int) -> dict[Target, int]:
    """Return the same wants with only so many pages more than are asked now, in even shares."""
    asked = {target: group[target].figures["asked"] for target in wants}
    over = {target: max(0, want - asked[target]) for target, want in wants.items()}
    shares = share(pages, over, most=over)
    return {target: asked[target] + shares[target] if over[target] else want for target, want in wants.items()}
