"""The health of the host in words: one that is true, and how many targets are in which condition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kerntune.api.document import ClaimRow, Document, Outcome, TargetRow, tunable_row, waiting_claims
from kerntune.model import GuardState, Reason, State
from kerntune.results import WELL, Condition, condition

CAPPING: Final = frozenset({GuardState.CAPPED, GuardState.EXHAUSTED})
# Slugs of Degraded that tell what the administrator has chosen, and what may become a trouble.
NOTES: Final = frozenset({"config-suspended", "rival-tuned", "rival-power-profiles-daemon"})
GUARD_CAPS: Final = "guard-capping"  # the slug of a trouble that has words of its own
WAITS_FOR: Final[Mapping[str, str]] = {
    Reason.CPU_OFFLINE: "waiting for a CPU",
    Reason.GOVERNOR_DECIDES: "waiting for another governor",
}
WORDS: Final[Mapping[str, str]] = {
    Condition.WAITING: "waiting for a device",
    Condition.NOT_APPLICABLE: "not applicable here",
    Condition.OWED: "owed to the host",
}


class Judged(NamedTuple):
    """The condition of a managed target, and the reason of its outcome."""

    condition: str
    reason: str = Reason.OK

    @property
    def is_well(self) -> bool:
        return self.condition in WELL

    @property
    def words(self) -> str:
        """The condition in a sentence."""
        usual = WORDS.get(self.condition, self.condition)
        return WAITS_FOR.get(self.reason, usual) if self.condition == Condition.WAITING else usual


WAITING: Final = Judged(Condition.WAITING, Reason.NO_SUCH_TARGET)
NOT_HERE: Final = Judged(Condition.NOT_APPLICABLE, Reason.NO_KERNEL_SUPPORT)


def judged(row: TargetRow) -> Judged:
    """Return the condition of a target; one with a requested value and without a claim is owed the host's own."""
    owed = row["claim"] is None and bool(row["requested"])
    return Judged(condition(row["state"], row["reason"], owed=owed), row["reason"])


def judged_outcome(row: Outcome, claims: Mapping[tuple[str, str], ClaimRow]) -> Judged:
    """Return the condition of an outcome of Verify; `claims` are those behind the targets."""
    return Judged(condition(row.state, row.reason, owed=(row.tunable, row.instance) not in claims), row.reason)


class HostHealth(NamedTuple):
    """How managed targets are; and what is wrong with the whole host, where not only some targets were asked about."""

    counts: Counter[Judged]
    host: tuple[str, ...] = ()

    @property
    def troubles(self) -> list[str]:
        return [*self._counted(lambda each: not each.is_well), *self.host]

    @property
    def is_well(self) -> bool:
        return not self.troubles

    @property
    def sentence(self) -> str:
        """One word that is true, how many targets are in the desired state, and what is with the others."""
        satisfied = self.conditions[Condition.SATISFIED]
        summary = [f"{satisfied} of {self.counts.total()} in the desired state"] if self.counts else []
        calm = self._counted(lambda each: each.is_well and each.condition != Condition.SATISFIED)
        parts = [*summary, *self.troubles, *calm]
        word = "All well" if self.is_well else "Not well"
        return f"{word}: {'; '.join(parts)}" if parts else word

    @property
    def conditions(self) -> Counter[str]:
        """How many targets are in each condition."""
        found = Counter[str]()
        for each, count in self.counts.items():
            found[each.condition] += count
        return found

    def as_data(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {"well": self.is_well, "conditions": dict(self.conditions), "troubles": self.troubles}

    def _counted(self, which: Callable[[Judged], bool]) -> list[str]:
        found = Counter[str]()
        for each, count in self.counts.items():
            if which(each):
                found[each.words] += count
        return [f"{count} {words}" for words, count in found.most_common()]


def of_document(document: Document) -> HostHealth:
    """Return the health of the whole host."""
    return of_host(document, conditions_of(document, document["targets"], waiting_claims(document)))


def of_host(document: Document, counts: Counter[Judged]) -> HostHealth:
    """Return the health of the whole host, whose managed targets are in these conditions.

    The memory guard has a trouble of its own. The slug of a target that no row tells of is a trouble too.
    """
    guard, told = document["guard"], {each.reason for each in counts if not each.is_well}
    found = [slug for slug in document["degraded"] if slug not in NOTES | told | {GUARD_CAPS}]
    if guard["state"] in CAPPING:
        found.append("the memory guard caps")
    elif guard["headroom"] < guard["floor"]:
        found.append("memory is below the floor")
    return HostHealth(counts, tuple(found))


def conditions_of(document: Document, rows: Iterable[TargetRow], waiting: Sequence[ClaimRow]) -> Counter[Judged]:
    """Return how many of these targets, and of what these claims wait for, are in each condition."""
    managed = [judged(row) for row in rows]
    patterns = {(claim["tunable"], claim["instances"]): judged_claim(document, claim) for claim in waiting}
    return Counter(each for each in managed if each.condition != State.UNMANAGED) + Counter(patterns.values())


def judged_claim(document: Document, claim: ClaimRow) -> Judged:
    """Return the condition of a claim that matches nothing: it waits in vain where the host has no such tunable."""
    return WAITING if tunable_row(document, claim["tunable"])["supported"] else NOT_HERE
