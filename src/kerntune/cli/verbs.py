"""The verbs: each asks the daemon and returns an answer; a verb neither parses nor prints."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from kerntune import syntax
from kerntune.api.document import (
    Change,
    ClaimRow,
    Document,
    TargetRow,
    claims_behind,
    covered,
    left_out_of,
    managed,
    may_be_old,
    named,
    nothing_matches,
    resolve,
    select,
    waiting,
)
from kerntune.cli import output, suggest
from kerntune.cli import status as status_page
from kerntune.cli.commands import PROFILE_NAME, Namespace
from kerntune.cli.health import HostHealth, Judged, conditions_of, judged_outcome, of_document, of_host
from kerntune.cli.output import NOTHING_CHANGED, Advice, Answer, changed, outcome_data, target_data
from kerntune.cli.remote import Connect, Manager
from kerntune.errors import Exit, KerntuneError, NotSupported, Usage
from kerntune.model import Origin, Reason, Setting, State
from kerntune.patterns import EVERY, is_unstable
from kerntune.results import Condition, exit_code, get_exit_code, health_exit_code, profile_exit_code
from kerntune.suggest import listed

NO_CHANGE: Final = "Nothing would change."
CHOOSING: Final = frozenset({"set", "clear"})  # actions that change something
PUT_BACK: Final = frozenset({State.SATISFIED, State.UNMANAGED})  # states of what Repair has put right
NAMING: Final = frozenset(PROFILE_NAME.after)  # actions that take a name
MAX_LISTED_CLAIMS: Final = 3  # claims that the advice names; it counts the others


def status(connect: Connect, args: Namespace) -> Answer:
    """Show what is managed, and for whom; of named targets all that is known."""
    with connect() as manager:
        document = manager.describe()
    if args.targets:
        rows, waiting = _named(document, args.targets)
        health = HostHealth(conditions_of(document, rows, waiting))
        page = status_page.chosen_page(document, health, rows, waiting)
    else:
        rows = [row for row in document["targets"] if row["claim"] or row["state"] != State.UNMANAGED]
        health = of_document(document)
        page = status_page.page(document, health, rows)
    data = {**document, "targets": [target_data(row) for row in rows], "health": health.as_data()}
    return Answer(data, page, health_exit_code(well=health.is_well))


def list_(connect: Connect, args: Namespace) -> Answer:
    """Show every target, or those that are named."""
    with connect() as manager:
        document = manager.describe()
    rows = select(document, args.targets)
    names = {each.tunable for text in args.targets or (EVERY,) for each in resolve(document, text)}
    tunables = [row for row in document["tunables"] if row["name"] in names]
    hidden = left_out_of(document, args.targets, rows)
    data = {"tunables": tunables, "targets": [target_data(row) for row in rows], "left_out": hidden}
    return Answer(data, output.targets(document, tunables, rows, hidden))


def _named(document: Document, texts: Sequence[str]) -> tuple[list[TargetRow], list[ClaimRow]]:
    """Return the targets of these names, and the claims on such that wait for one. Raise as `select` does."""
    meant = [each for text in texts for each in resolve(document, text)]
    return select(document, texts), waiting(document, meant)


def get(connect: Connect, args: Namespace) -> Answer:
    """Show the values in force now."""
    for text in args.targets:
        syntax.what(text)
    with connect() as manager:
        document = manager.describe()
    for text in args.targets:
        if not select(document, [text]):
            raise nothing_matches(document, *resolve(document, text)[0])
    rows = select(document, args.targets)
    unreadable = [row for row in rows if row["value"] is None]
    if len(unreadable) == len(rows):
        raise NotSupported(f"{_listed(rows)} cannot be read", rows[0]["detail"])
    hanging = [row for row in rows if row["value"] is not None and row["reason"] == Reason.DEVICE_HANGS]
    said = [Advice(f"{_listed(hanging)}: the last value that is known", hanging[0]["detail"])] if hanging else []
    names = {row["tunable"] for row in rows}
    old = [row for row in document["tunables"] if row["name"] in names and may_be_old(row)]
    said += [Advice(f"{row['name']}: these values may be old", row["detail"]) for row in old]
    data = {"targets": [target_data(row) for row in rows]}
    return Answer(data, output.values(rows), get_exit_code(unread=len(unreadable) + len(hanging)), tuple(said))


def _listed(rows: Sequence[TargetRow]) -> str:
    """Return the names of targets as prose, those of each tunable together."""
    instances: dict[str, list[str]] = {}
    for row in rows:
        instances.setdefault(row["tunable"], []).append(row["instance"])
    return ", ".join(named(tunable, listed(found)) for tunable, found in instances.items())


def set_(connect: Connect, args: Namespace) -> Answer:
    """Claim values; the answer says what the kernel has afterwards."""
    settings, options = [syntax.setting(text) for text in args.settings], _options(args, "persist", "allow_partial")
    with connect() as manager:
        change = manager.plan(settings, options) if args.dry_run else manager.set(settings, options)
        advice = _stable_names(manager, settings) if args.persist else []
        foresees = args.dry_run and exit_code(change.outcomes) is not Exit.OK
        error = _foreseen(manager, settings, options) if foresees else None
    if error is None:
        return changed(change, advice, none=NO_CHANGE if args.dry_run else NOTHING_CHANGED)
    why, hint = suggest.parts(error)
    return changed(change, [*advice, Advice(f"set would fail: {why}", hint)], code=error.exit_code)


def _foreseen(manager: Manager, settings: Sequence[Setting], options: Mapping[str, bool]) -> KerntuneError | None:
    """Return the error with which set would end, or None."""
    try:
        manager.plan(settings, {**options, "strict": True})
    except KerntuneError as error:
        return error
    return None


def verify(connect: Connect, args: Namespace) -> Answer:
    """Show what is not in the desired state; change nothing, or with --repair put it right first."""
    if args.repair and args.targets:
        raise Usage("a repair is of all that is managed", "Leave the targets out, or set them again: kerntune set ...")
    with connect() as manager:
        found = manager.repair().outcomes if args.repair else manager.verify()
        document = manager.describe()
    back = [row for row in found if row.state in PUT_BACK]
    outcomes = [row for row in found if row.state not in PUT_BACK]
    there = managed(document)
    if args.targets:
        rows, waiting = _named(document, args.targets)
        named_ones = {(row["tunable"], row["instance"]) for row in rows}
        named_ones |= {(claim["tunable"], claim["instances"]) for claim in waiting}
        outcomes = [row for row in outcomes if (row.tunable, row.instance) in named_ones]
        there &= named_ones
    claims = claims_behind(document)
    judgements = dict.fromkeys(there, Judged(Condition.SATISFIED))
    judgements |= {(row.tunable, row.instance): judged_outcome(row, claims) for row in outcomes}
    counts = Counter(judgements.values())
    health = HostHealth(counts) if args.targets else of_host(document, counts)
    lacking = sum(each.condition in (Condition.WAITING, Condition.NOT_APPLICABLE) for each in judgements.values())
    data = {
        "managed": len(judgements),
        "satisfied": health.conditions[Condition.SATISFIED],
        "lacking": lacking,
        "degraded": document["degraded"],
        **health.as_data(),
        "outcomes": [outcome_data(row, owed=(row.tunable, row.instance) not in claims) for row in outcomes],
    }
    page = output.verified(outcomes, document, health, chosen=bool(args.targets))
    if args.repair:
        data["repaired"] = [outcome_data(row) for row in back]
        page = [*output.repaired(back), *page]
    return Answer(data, page, health_exit_code(well=health.is_well))


def unset(connect: Connect, args: Namespace) -> Answer:
    """Withdraw claims; the answer says what the kernel has afterwards."""
    what, options = [syntax.what(text) for text in args.targets], _options(args, "persist")
    with connect() as manager:
        if args.dry_run:
            change = manager.plan([Setting(*name, "") for name in what], {**options, "unset": True})
        else:
            change = manager.unset(what, options)
        document = None if change.changed else manager.describe()
    advice = [nothing_withdrawn(document, what, persist=args.persist)] if document else []
    return changed(change, advice, none=NO_CHANGE if args.dry_run else NOTHING_CHANGED)


def reload(connect: Connect, args: Namespace) -> Answer:
    """Have the daemon read the configuration files again; the answer says what is not in the desired state."""
    with connect() as manager:
        if args.dry_run:
            # A reload does not fail because a value is not in the desired state after it.
            return changed(manager.plan((), {"reload": True}), code=Exit.OK, none=NO_CHANGE)
        manager.reload()
        document = manager.describe()
    return Answer({"degraded": document["degraded"]}, output.reloaded(document))


def _options(args: Namespace, *names: str) -> dict[str, bool]:
    return {name.replace("_", "-"): True for name in names if getattr(args, name)}


def _stable_names(manager: Manager, settings: Iterable[Setting]) -> list[Advice]:
    """Return advice about names that may mean other drives after a reboot."""
    unstable = [each for each in settings if is_unstable(each.instances)]
    document = manager.describe() if unstable else None
    return [_stable_name(each, document) for each in unstable if document]


def _stable_name(setting: Setting, document: Document) -> Advice:
    """Return the advice that a persistent claim should follow the drive, and not the slot where it was found."""
    tunable, instance, value = setting
    rows = covered(document, tunable, instance)
    aliases = [alias for row in rows[:1] for alias in row["aliases"] if alias.startswith("by-id/")]
    what = f"{instance} may be {'other drives' if len(rows) > 1 else 'another drive'} after a reboot"
    if aliases and len(rows) == 1:
        return Advice(what, f"To follow the drive: kerntune set {tunable}@{aliases[0]}={value} --persist")
    return Advice(what, f"A name below /dev/disk/by-id would follow the drive: {tunable}@by-id/...={value}")


def profile(connect: Connect, args: Namespace) -> Answer:
    """Show, choose and end profiles."""
    if args.action in NAMING and args.name is None:
        raise Usage(f"profile {args.action} takes the name of a profile", "kerntune profile list shows those there are")
    if args.action not in NAMING and args.name is not None:
        raise Usage(
            f"profile {args.action} takes no name", "profile set NAME puts one in force, profile show NAME shows one"
        )
    if args.dry_run and args.action not in CHOOSING:
        raise Usage(f"profile {args.action} changes nothing", "--dry-run goes with profile set NAME and profile clear")
    if args.action == "show":
        from kerntune.cli import check  # noqa: PLC0415  # it knows the tunables, and what files may say

        return check.profile(args.name)
    with connect() as manager:
        if args.dry_run:
            return _foreseeing(manager, profile=args.name or "")
        if args.action == "set":
            return _chosen(manager.set_profile(args.name))
        if args.action == "clear":
            return _done(manager.clear_profile())
        found, active = manager.profiles(), manager.describe()["profile"]
    rows = [{"name": name, "summary": summary} for name, summary in found]
    return Answer({"active": active, "profiles": rows}, output.profiles(found, active))


def reset(connect: Connect, args: Namespace) -> Answer:
    """Put back the values of the files, or with --baseline the host's own values."""
    wider = {name: True for name in ("baseline", "holds") if getattr(args, name)}
    with connect() as manager:
        return _foreseeing(manager, reset=True, **wider) if args.dry_run else _done(manager.reset(wider))


def _foreseeing(manager: Manager, **options: bool | str) -> Answer:
    """Return the answer of a dry run of a reset, or of a profile's choice or end."""
    change = manager.plan((), options)
    return _chosen(change, none="No target would be concerned." if change.changed else NO_CHANGE)


def _done(change: Change) -> Answer:
    """Return the answer to a profile's end or a reset; without outcomes its claims had no target."""
    return _chosen(change, none="Done; no target is concerned." if change.changed else NOTHING_CHANGED)


def _chosen(change: Change, *, none: str = NOTHING_CHANGED) -> Answer:
    """Return the answer for a profile that was chosen or is in force again: what this host lacks is no failure."""
    return changed(change, code=profile_exit_code(change.outcomes), none=none)


def nothing_withdrawn(document: Document, what: Sequence[tuple[str, str]], *, persist: bool) -> Advice:
    """Return the advice that there is no such claim, with the claims in force and how to withdraw them."""
    kind = Origin.PERSISTENT if persist else Origin.RUNTIME
    names = ", ".join(named(tunable, "" if at == EVERY else at) for tunable, at in what)
    sentence = f"there is no {kind.word} claim {names} to withdraw"
    found = list(in_force(document, what))
    if not found:
        return Advice(sentence, "Nobody claims it: kerntune status shows who wants what")
    parts = [f"{one['origin']} {_target(one)} = {one['value']} ({how(one)})" for one in found[:MAX_LISTED_CLAIMS]]
    more = [f"{len(found) - MAX_LISTED_CLAIMS} more (kerntune status)"] if len(found) > MAX_LISTED_CLAIMS else []
    return Advice(sentence, f"In force {'is' if len(found) == 1 else 'are'} {'; '.join([*parts, *more])}")


def in_force(document: Document, what: Iterable[tuple[str, str]]) -> Iterator[ClaimRow]:
    """Return the claims that won the targets of these names, and those that wait for such targets."""
    names = [syntax.What(*name) for name in what]
    concerned = {row["claim"] for name in names for row in covered(document, *name)}
    concerned |= {claim["id"] for claim in waiting(document, names)}
    return (claim for claim in document["claims"] if claim["id"] in concerned)


def how(claim: ClaimRow) -> str:
    """Return the way to end a claim."""
    name = shlex.quote(_target(claim))
    place = claim.get("place") or "the files in /etc/kerntune"
    ways = {
        Origin.RUNTIME.word: f"kerntune unset {name}",
        Origin.PERSISTENT.word: f"kerntune unset {name} --persist",
        Origin.PROFILE.word: "kerntune profile clear",
        Origin.CONFIG.word: f"take it out of {place}, then kerntune reload",
        Origin.HOLD.word: f"kerntune release {claim.get('hold', 'HOLD')}; it ends with its client too",
        Origin.GUARD.word: "it ends when there is memory again",
    }
    return ways.get(claim["origin"], "kerntune status shows whose it is")


def _target(claim: ClaimRow) -> str:
    return named(claim["tunable"], claim["instances"])
