"""The arithmetic of huge pages: one plan for all pools, inside what the host can bear. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kerntune.model import Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import unreadable
from kerntune.tunables.overcommit import NEVER, needed_limit, predicted_limit

MODE_NEVER = 2


@dataclass(frozen=True, slots=True)
class Part:
    """A wish, the pages to write for each pool, and the pools it settles; `beaten` when that is not the wish."""

    wish: Wish
    wants: Mapping[Target, int]
    settles: tuple[Target, ...]
    beaten: Verdict | None = None


def plan_pools(
    pools: Mapping[Target, Reading],
    wishes: Mapping[Target, Wish],
    memory: Memory,
    limits: Limits,
    *,
    path_of: Callable[[Target], str],
) -> Sequence[Step]:
    """Steps for every wish on every pool; shrinking comes before growing, for all sizes share one memory."""
    known = {target: reading for target, reading in pools.items() if reading.value is not None}
    steps = [Step(wish, pools[t], verdict=unreadable(pools[t])) for t, wish in wishes.items() if t not in known]
    parts: list[Part] = []
    for size in sorted({target.instance.partition("/")[0] for target in known}):
        own = {t: reading for t, reading in known.items() if t.instance.partition("/")[0] == size}
        parts += divide(own, {target: wish for target, wish in wishes.items() if target in own})
    room = Room.on(memory, limits)
    for part in sorted(parts, key=lambda part: growth(part, known) * page_bytes(part, known)):
        step, room = fit(part, known, room, path_of)
        steps.append(step)
    return steps


def page_bytes(part: Part, pools: Mapping[Target, Reading]) -> int:
    """The page size of a part, in bytes."""
    return pools[part.wish.target].figures["size"]


def divide(group: Mapping[Target, Reading], wishes: Mapping[Target, Wish]) -> list[Part]:
    """Who settles which pool: nodes with claims get exactly theirs, the rest of a total goes to the other nodes.

    With several nodes only their files are written, but for pages in use that are more than asked: the kernel counts
    those of the other nodes in each node's file (set_max_huge_pages of mm/hugetlb.c), and only the total's is true.
    A node's own baseline counts only while no total is claimed.
    """
    nodes = [target for target in group if "/" in target.instance]
    if len(nodes) == 1:
        # One pool under two names: whoever sets it settles both.
        nodes, alias = [], tuple(group)
    else:
        alias = ()
    whole = next((wish for target, wish in wishes.items() if "/" not in target.instance), None)
    claimed = {t: wish for t, wish in wishes.items() if "/" in t.instance and not wish.is_baseline}
    parts = [Part(wish, {t: int(wish.value)}, alias or (t,)) for t, wish in claimed.items()]
    if whole is None or whole.is_baseline:
        settled = {target for part in parts for target in part.settles}
        own = [wish for target, wish in wishes.items() if wish.is_baseline and target not in settled]
        return parts + [restore(wish, written=(wish is whole) is not bool(nodes)) for wish in own]
    total, fixed = int(whole.value), sum(int(wish.value) for wish in claimed.values())
    others = {target: group[target] for target in nodes if target not in claimed}
    beaten = beaten_by_nodes(fixed) if claimed and (total < fixed or (not others and total != fixed)) else None
    if nodes and not claimed and strands(total, others):
        return [Part(whole, {whole.target: total}, (whole.target, *nodes))]
    if claimed or nodes:
        wants = spread(max(0, total - fixed), others)
        return [*parts, Part(whole, wants, tuple(wants), beaten)]
    return [Part(whole, {whole.target: total}, alias or (whole.target,))]


def restore(wish: Wish, *, written: bool) -> Part:
    """A pool gets its own number back; a total of several nodes follows from theirs."""
    return Part(wish, {wish.target: int(wish.value)} if written else {}, (wish.target,))


def beaten_by_nodes(fixed: int) -> Verdict:
    """The nodes' own claims make another total."""
    return Verdict(State.OVERRIDDEN, Reason.OVERRIDDEN, f"the claims on single nodes make {fixed} pages in all")


def strands(total: int, pools: Mapping[Target, Reading]) -> bool:
    """Whether pages in use stay beyond what is asked (surplus): some do now, or the total is less than those in use."""
    busy = sum(reading.figures["total"] - reading.figures["free"] for reading in pools.values())
    return total < busy or any(reading.figures["surplus"] for reading in pools.values())


def spread(total: int, pools: Mapping[Target, Reading]) -> dict[Target, int]:
    """Pages for each node: as they are where the sum is right; else the difference in even shares.

    Growth goes where memory is free, shrinking takes free pages first (`room` and `free` in the figures).
    """
    asked = {target: reading.figures["asked"] for target, reading in pools.items()}
    more = total - sum(asked.values())
    if more >= 0:
        shares = share(more, {target: reading.figures["room"] for target, reading in pools.items()})
        return {target: asked[target] + shares[target] for target in pools}
    idle = {t: min(reading.figures["free"], asked[t]) for t, reading in pools.items()}
    shares = share(-more, idle, most=asked)
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


def growth(part: Part, group: Mapping[Target, Reading]) -> int:
    """Pages that would be taken from free memory (below 0: given back to it)."""
    change = 0
    for target, want in part.wants.items():
        figures = group[target].figures
        change += (
            want - figures["total"] if want >= figures["total"] else -min(figures["total"] - want, figures["free"])
        )
    return change


@dataclass(frozen=True, slots=True)
class Room:
    """How many bytes may still be taken (below 0: too many are taken already), and what the bound is."""

    spare: int
    why: str

    @classmethod
    def on(cls, memory: Memory, limits: Limits) -> Room:
        """The tightest of: memory that others need, the limit on all pools, the commit limit in mode never."""
        ceiling = memory.total * limits.hugepages_percent // 100
        bounds = [
            (
                memory.available - memory.reserve,
                f"{memory.available >> 20} MiB are available and {memory.reserve >> 20} MiB stay for the host",
            ),
            (
                ceiling - memory.hugetlb,
                f"huge pages may have {ceiling >> 20} MiB in all ({limits.hugepages_percent} % of RAM) "
                f"and have {memory.hugetlb >> 20} MiB",
            ),
        ]
        if memory.overcommit_mode == MODE_NEVER and not memory.overcommit_kbytes and memory.overcommit_ratio:
            over = predicted_limit(memory, ratio=memory.overcommit_ratio) - needed_limit(memory)
            bounds.append(
                (
                    over * 100 // memory.overcommit_ratio,
                    f"overcommit is {NEVER}:{memory.overcommit_ratio}, where huge pages lower the commit limit and "
                    f"{needed_limit(memory) >> 20} MiB of it are needed",
                )
            )
        return cls(*min(bounds))

    def pages(self, size: int) -> int:
        """How many pages of that many bytes."""
        return max(0, self.spare // size)


def fit(part: Part, group: Mapping[Target, Reading], room: Room, path_of: Callable[[Target], str]) -> tuple[Step, Room]:
    """The step for one part: refused, capped to what there is room for, or as asked; and the room left."""
    wish, before, grows = part.wish, group[part.wish.target], growth(part, group)
    size = page_bytes(part, group)
    pages = room.pages(size)
    # Beaten by the nodes' claims or not, a number that the host could never bear is refused.
    asked = max(grows, int(wish.value) - before.figures["total"]) if part.beaten else grows
    wants, capped = part.wants, part.beaten
    if asked > pages and asked > 0:
        now = before.figures["total"]
        verdict = over_limit(wish, now, now + pages, room.why)
        if wish.strict:
            return Step(wish, before, verdict=verdict), room
        capped = part.beaten or verdict._replace(state=State.PARTIAL)
        wants, grows = reduce(wants, group, pages), min(grows, pages)
    writes = [
        (want - group[target].figures["asked"], Write(path_of(target), str(want)))
        for target, want in wants.items()
        if want != group[target].figures["asked"]
    ]
    ordered = tuple(write for _, write in sorted(writes, key=lambda pair: pair[0]))
    step = Step(wish, before, ordered, capped=capped, touches=part.settles)
    return step, replace(room, spare=room.spare - grows * size)


def over_limit(wish: Wish, now: int, possible: int, why: str) -> Verdict:
    """The refusal, with what was asked, what is possible and what there is."""
    return Verdict(
        State.REFUSED,
        Reason.OVER_LIMIT,
        f"{wish.value} pages asked for {wish.target.instance}, {possible} possible, {now} there now: {why}",
    )


def reduce(wants: Mapping[Target, int], group: Mapping[Target, Reading], pages: int) -> dict[Target, int]:
    """The same parts with only so many pages of growth, in even shares."""
    over = {target: max(0, want - group[target].figures["total"]) for target, want in wants.items()}
    shares = share(pages, over, most=over)
    return {t: group[t].figures["total"] + shares[t] if over[t] else want for t, want in wants.items()}
