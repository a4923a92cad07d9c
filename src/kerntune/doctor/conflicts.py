"""Findings on lines that set what kerntune sets: lines that fight with claims, disagree, or have no effect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from kerntune.doctor.services import Seen
from kerntune.doctor.types import Assignment, Cause, Finding, Place, Proposal, Severity, Stage, Survey, Wanted
from kerntune.kernel.files import KernelView, read_or_none
from kerntune.model import Setting
from kerntune.tunables import REGISTRY

GLOB: Final = re.compile(r"[*?\[]")
CHOSEN: Final = re.compile(r"\[([^\]]+)\]")
SHOWN: Final = 3  # values of a pattern that a finding quotes
# These set their values after kerntuned has set its own, or again each time a drive comes.
LATER_STAGES: Final = frozenset({Stage.UDEV, Stage.SERVICE, Stage.RC_LOCAL, Stage.CRON})
TAKE_OVER: Final = "kerntune import shows it as a claim, kerntune import --apply takes it over"
LEAVE: Final = "nothing: a package ships it, and a claim of yours would win"
BY_HAND: Final = "leave it if it does what you want; kerntune list shows what kerntune can set in its place"


def named(setting: Setting) -> str:
    """Return a setting as the command line writes it: `hugepages@2M`."""
    return f"{setting.tunable}@{setting.instances}" if setting.instances else setting.tunable


def line_in(place: Place) -> str:
    return "a word on the kernel command line" if place.is_boot_parameter else f"a line in {place.file}"


def settings(survey: Survey, kernel: KernelView, claims: Sequence[Wanted]) -> Iterator[Finding]:
    """Yield the findings on each line; the strongest of `claims` come first."""
    for proposal in survey.proposals:
        ours = [claim for claim in claims if overlaps(proposal.setting, claim, kernel)]
        yield finding(proposal, kernel, ours)
    for left in survey.left:
        if left.cause is Cause.NO_EFFECT and not left.place.shipped:
            yield Finding(
                Severity.WARNING,
                "settings",
                f"{line_in(left.place)} has no effect: {left.why}",
                (left.place.quoted,),
                "remove it, so that nobody relies on it, or see to it that it is read",
            )
        elif left.cause is Cause.NOT_OURS:
            reason, _, stays = left.why.partition(". ")
            what = f"{line_in(left.place)} sets what kerntune cannot: {reason}"
            yield Finding(Severity.NOTE, "settings", what, (left.place.quoted,), f"{stays[0].lower()}{stays[1:]}")
        elif left.cause in (Cause.NOT_UNDERSTOOD, Cause.NOT_POSSIBLE) and not left.place.shipped:
            what = f"{line_in(left.place)} cannot become a claim: {left.why}"
            yield Finding(Severity.NOTE, "settings", what, (left.place.quoted,), BY_HAND)


def finding(proposal: Proposal, kernel: KernelView, claims: Sequence[Wanted]) -> Finding:
    """Return the finding on the lines behind one proposal."""
    setting, place = proposal.setting, proposal.assignments[-1].place
    evidence = [line.quoted for line in proposal.places] + now(proposal.assignments, kernel)
    overridden = [f"{earlier.quoted} (an earlier line, which loses)" for earlier in proposal.overridden]
    stage = max(line.stage for line in proposal.assignments)
    against = claims[0] if claims else None
    if against and against.value != setting.value:
        what = f"{place.file} sets {named(setting)} to {setting.value}, but kerntune keeps {against} at {against.value}"
        evidence.append(f"kerntune status: {against.origin} claim {against}={against.value}")
        severity = Severity.PROBLEM if stage in LATER_STAGES else Severity.WARNING
        return Finding(severity, setting.tunable, what, (*evidence, *overridden), undone(proposal, stage, against))
    if against:
        what = f"{place.file} sets {named(setting)} to {setting.value}, as kerntune does: the line is not needed"
        fix = disabling(proposal.assignments[-1])
        return Finding(Severity.NOTE, setting.tunable, what, (*evidence, *overridden), fix)
    differs = len(evidence) > len(proposal.places)
    what = f"{place.file} sets {named(setting)} to {setting.value}"
    if overridden:
        what += ", and other lines set it before: the last one wins"
    if differs:
        what += "; that is not what the kernel has now"
    severity = Severity.WARNING if overridden or differs else Severity.NOTE
    fix = LEAVE if proposal.shipped else TAKE_OVER
    return Finding(severity, setting.tunable, what, (*evidence, *overridden), fix)


def undone(proposal: Proposal, stage: Stage, claim: Wanted) -> str:
    """Return how the line or the claim can give way to the other."""
    where = proposal.assignments[-1].place
    ours = {
        "config": "change /etc/kerntune (kerntune status says which line)",
        "persistent": f"kerntune unset {claim} --persist",
        "runtime": f"kerntune unset {claim}",
        "profile": "kerntune profile clear, or change the value in the profile",
    }.get(claim.origin, f"kerntune status says who set {claim}")
    if where.shipped and stage is Stage.UDEV:
        mask = where.file.rpartition("/")[2]
        return f"have the rule ignored: sudo ln -s /dev/null /etc/udev/rules.d/{mask}; or let it win: {ours}"
    return f"{disabling(proposal.assignments[-1])}; or let it win: {ours}"


def disabling(line: Assignment) -> str:
    """Return what ends a line's effect; the remark on a line of a script says what has to go with it."""
    remark = f", but {line.remark}" if line.stage is Stage.RC_LOCAL and line.remark else ""
    return f"{line.place.how_to_disable} ({line.place}){remark}"


def now(lines: Sequence[Assignment], kernel: KernelView) -> list[str]:
    """Return the values in the kernel that differ from the lines, as evidence.

    Leave out the kernel command line: the findings on pools report pages that it did not get.
    """
    found: list[str] = []
    for line in (line for line in lines if line.stage is not Stage.KERNEL):
        paths = kernel.glob(line.path) if GLOB.search(line.path) else [line.path]
        for path in paths:
            text = read_or_none(kernel, path)
            if text is not None and value_in(text) != line.value.strip():
                found.append(f"/{path} reads {value_in(text)}")
    more = len(found) - SHOWN
    return [*found[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


def value_in(text: str) -> str:
    """Return the value of a file; in a list of choices it is the one in brackets."""
    chosen = CHOSEN.search(text)
    return chosen[1] if chosen else " ".join(text.split())


def overlaps(setting: Setting, claim: Wanted, kernel: KernelView) -> bool:
    """Return whether a claim and the setting would have a target in common."""
    if setting.tunable != claim.tunable:
        return False
    if setting.instances == claim.instances:
        return True
    tunable = next(tunable for tunable in REGISTRY if tunable.name == setting.tunable)
    ours = {target.instance for target in tunable.targets(kernel) if tunable.matches(setting.instances, target)}
    return bool(ours & set(claim.matches))


def rivals(seen: Iterable[Seen], claims: Sequence[Wanted]) -> Iterator[Finding]:
    """Yield a finding for each service that sets the same values."""
    for one in seen:
        shared = sorted(one.rival.tunables & {claim.tunable for claim in claims})
        if shared:
            what = f"{one.rival.name} sets {', '.join(shared)} too, which kerntune has claims on: they undo each other"
        else:
            what = f"{one.rival.name} sets values that kerntune can set: let only one of them have each value"
        severity = Severity.PROBLEM if shared else Severity.WARNING
        yield Finding(severity, "services", what, one.evidence, one.rival.stop)
