"""hugepages-overcommit: huge pages that a pool may borrow while somebody uses them, beyond those it keeps.

nr_overcommit_hugepages of Documentation/admin-guide/mm/hugetlbpage.rst. Nothing is taken when it is set; what is
borrowed later counts against the same limit as the pools.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kerntune.errors import InvalidValue
from kerntune.globs import natural_sort_key
from kerntune.kernel import kconfig
from kerntune.kernel.files import KernelView, read_int, read_or_none
from kerntune.model import DesiredState, Lane, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Write
from kerntune.paths import setting
from kerntune.patterns import Kind, parse_pool
from kerntune.tunables.amounts import Bound, refused
from kerntune.tunables.base import Tunable, unreadable
from kerntune.tunables.hugepages import IN_PATH, POOLS, HugePages, count_of
from kerntune.tunables.sums import refused_claim
from kerntune.units import spell_size

FILE = "nr_overcommit_hugepages"


class HugePagesOvercommit(Tunable):
    """One target per page size, of the whole host: the kernel has no such number for a node."""

    name = "hugepages-overcommit"
    summary = "huge pages to borrow"
    lane = Lane.MEMORY
    action = "set-memory"
    kind = Kind.POOLS
    sizes = "pages"
    adds = True
    files = (f"{POOLS}/hugepages-*kB/{FILE}",)
    import_patterns = (
        r"proc/sys/vm/nr_overcommit_hugepages",
        rf"sys/kernel/mm/hugepages/{IN_PATH}/nr_overcommit_hugepages",
    )

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        sizes = [
            int(path.split("/")[-2].removeprefix("hugepages-").removesuffix("kB")) << 10
            for path in kernel.glob(f"{POOLS}/hugepages-*kB/{FILE}")
        ]
        return [Target(self.name, instance) for instance in sorted(map(spell_size, sizes), key=natural_sort_key)]

    def missing(self, kernel: KernelView) -> str:
        return "" if self.targets(kernel) else kconfig.missing(kernel, POOLS, "HUGETLBFS")

    def normal(self, instances: str) -> str:
        pool = parse_pool(instances)
        if pool.node:
            raise InvalidValue(
                f"{instances} is the pool of one node, and only the whole host can borrow",
                f"Leave the node out: {spell_size(pool.size)}",
            )
        return str(pool)

    def read(self, kernel: KernelView, target: Target) -> Reading:
        folder = folder_of(target)
        text = read_or_none(kernel, f"{folder}/{FILE}")
        if text is None or not text.isdigit():
            return Reading(target, None, reason=Reason.NO_SUCH_TARGET, detail=f"/{folder} is not there any more")
        figures = {
            "size": parse_pool(target.instance).size,
            "surplus": read_int(kernel, f"{folder}/surplus_hugepages"),
        }
        return Reading(target, text, figures=figures)

    def normal_value(self, value: str, typed: str = "") -> str:
        return count_of(value, typed)

    def takes(self, target: Target, value: str) -> int:
        return parse_pool(target.instance).size * int(value)

    def plan(
        self,
        readings: Mapping[Target, Reading],
        desired_states: Mapping[Target, DesiredState],
        memory: Memory,
        limits: Limits,
    ) -> Sequence[Step]:
        """Sizes that give back come first, for all of them share one limit."""
        now = {target: int(reading.value) for target, reading in readings.items() if reading.value is not None}
        steps = []
        for target, desired in sorted(
            desired_states.items(), key=lambda pair: int(pair[1].value) - now.get(pair[0], 0)
        ):
            before = readings[target]
            if target not in now:
                steps.append(Step(desired, before, verdict=unreadable(before)))
                continue
            wanted = int(desired.value)
            lent = sum(to_lend(readings[t], n) for t, n in now.items() if t != target)
            possible = most(before, lent, memory, limits) // before.figures["size"]
            if wanted > now[target] and wanted > possible and not desired.is_baseline:
                # Of these nobody is given a part.
                newest = max(desired.sum.asked if desired.sum else (), key=lambda claim: claim.seq, default=None)
                size, bound = before.figures["size"], too_many(memory, limits)
                verdict = refused_claim(desired, newest, now[target], possible, bound, size=size)
                verdict = verdict or over_limit(desired, now[target], possible, bound, size)
                steps.append(Step(desired, before, verdict=verdict))
                continue
            writes = (Write(f"{folder_of(target)}/{FILE}", desired.value),) if wanted != now[target] else ()
            steps.append(Step(desired, before, writes))
            now[target] = wanted
        return steps

    def beside(
        self, readings: Mapping[Target, Reading], expected: Mapping[Target, Reading]
    ) -> Mapping[Target, Reading]:
        pools = {t.instance: pool.figures for t, pool in expected.items() if t.tunable == HugePages.name}
        return {
            target: replace(reading, figures={**reading.figures, "surplus": pools[target.instance]["surplus"]})
            if reading.value is not None and pools.get(target.instance)
            else reading
            for target, reading in readings.items()
        }

    def expected(self, steps: Sequence[Step], readings: Mapping[Target, Reading]) -> Mapping[Target, Reading]:
        written = {step.desired.target: replace(step.before, value=step.desired.value) for step in steps if step.writes}
        return {**readings, **written}

    def explain_errno(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EINVAL:
            size = reading.target.instance
            why = f"this kernel borrows no pages of {size}: they can only be kept, with hugepages@{size}={value}"
            return Verdict(State.UNSUPPORTED, Reason.NO_KERNEL_SUPPORT, why)
        return super().explain_errno(reading, value, code)


def folder_of(target: Target) -> str:
    """Return the sysfs folder of a page size."""
    return f"{POOLS}/hugepages-{parse_pool(target.instance).size >> 10}kB"


def to_lend(reading: Reading, count: int) -> int:
    """Return the bytes that a size may borrow beyond those it has borrowed, of `count` pages."""
    return max(0, count - reading.figures["surplus"]) * reading.figures["size"]


def most(reading: Reading, lent: int, memory: Memory, limits: Limits) -> int:
    """Return the bytes that one size may borrow; pages that are borrowed already are not counted twice."""
    kept = memory.hugetlb - reading.figures["surplus"] * reading.figures["size"]
    return max(0, memory.total * limits.hugepages_percent // 100 - kept - lent)


def over_limit(desired: DesiredState, now: int, possible: int, bound: Bound, size: int) -> Verdict:
    """Return the refusal, with what was asked, what is possible and what there is."""
    pages, name = (int(desired.value), possible, now), desired.target.instance
    said = refused(desired.winner.unit, size, pages, name, bound, noun="pages to borrow")
    return Verdict(State.REFUSED, Reason.OVER_LIMIT, said)


def too_many(memory: Memory, limits: Limits) -> Bound:
    """Return the limit on all huge pages."""
    ceiling, percent = memory.total * limits.hugepages_percent // 100, limits.hugepages_percent
    why = f"those kept and those borrowed may have {{}} together ({percent} % of RAM, "
    return Bound(ceiling, f"{why}{setting('limits', 'hugepages-percent')})", (ceiling,))
