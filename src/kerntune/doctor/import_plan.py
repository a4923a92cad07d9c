"""Proposals of kerntune settings for what the files of a host set, where the last line wins; it changes nothing."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from kerntune.doctor import boot_settings, services, shell_script, startup_units, udev_rules
from kerntune.doctor.files import Files, whole
from kerntune.doctor.relevant import may_be_tuned
from kerntune.doctor.types import Assignment, Cause, Entry, Left, Place, Proposal, Survey
from kerntune.errors import InvalidValue
from kerntune.kernel.files import KernelView, read_int
from kerntune.kernel.memory import default_page_size
from kerntune.model import Setting
from kerntune.patterns import UNSTABLE, Kind
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable
from kerntune.tunables.knobs import REPORTED, only_reported
from kerntune.units import spell_cpus, spell_size

UNTUNED: Final = "kerntune does not tune it; leave the line as it is"
STAYS: Final = "Leave the line as it is: without it, or one in /etc/sysctl.d, the value is lost at the next boot"
OVERCOMMIT: Final = "overcommit"
MODES: Final = {"0": "heuristic", "1": "always", "2": "never"}
ANY_CPU: Final = frozenset({"*", "?", "[0-9]", "[0-9]*", "?*", "*[0-9]", "policy*", "policy[0-9]*", "policy?*"})
PATTERNS: Final = tuple((re.compile(pattern), tunable) for tunable in REGISTRY for pattern in tunable.import_patterns)
# The doctor mentions these sysctls if kerntune has no tunable for them; others do not concern kerntune.
SYSCTLS: Final = re.compile(r"proc/sys/(vm/[^*?\[]+|kernel/numa_balancing)")
OTHER_NAME: Final = "kerntune knows no file of the name /{}: translate it by hand"


def gather(files: Files, page_size: int) -> list[Entry]:
    """Return all lines about values of the kernel, in the order in which a boot reads them."""
    of_units, of_cron = startup_units.read(files)
    return [
        *boot_settings.read_cmdline(files, page_size),
        *udev_rules.read(files),
        *boot_settings.read_sysctls(files),
        *boot_settings.read_tmpfiles(files),
        *services.read(files),
        *of_units,
        *shell_script.read(files),
        *of_cron,
    ]


def survey(files: Files, kernel: KernelView, tunables: Sequence[Tunable] = REGISTRY) -> Survey:
    """Return the survey of a host's lines: one proposal for each setting, made from the last line that says it."""
    known = {tunable.name: tunable for tunable in tunables}
    page_size = default_page_size(kernel)
    left: list[Left] = []
    in_force: list[tuple[ClaimKey, Assignment]] = []
    lines = gather(files, page_size)
    read = {line.place for line in lines if isinstance(line, Assignment) and not line.idle}
    for line in lines:
        if isinstance(line, Left):
            left.append(line)
        elif line.idle and line.place in read:
            continue  # nothing but a script reads the file at boot
        elif key := tuned(line, page_size, known):
            if line.idle:
                left.append(Left(line.place, line.idle, Cause.NO_EFFECT))
            elif key.instances in REPORTED and not line.place.shipped:
                why = f"{only_reported(key.instances)}. {STAYS}"
                left.append(Left(line.place, why, Cause.NOT_OURS))
            elif key.instances not in REPORTED:
                in_force.append((key, line))
        elif SYSCTLS.fullmatch(line.path) and not line.place.shipped:
            left.append(Left(line.place, line.idle or UNTUNED, Cause.NO_EFFECT if line.idle else Cause.NOT_TUNED))
        elif may_be_tuned(line.path):
            why = line.idle or OTHER_NAME.format(line.path)
            left.append(Left(line.place, why, Cause.NO_EFFECT if line.idle else Cause.NOT_UNDERSTOOD))
    # A claim wins over the earlier ones for the same target, as a line does: claims have the order of their last lines.
    number = {line: index for index, line in enumerate(lines)}

    def latest(draft: Proposal) -> int:
        return max(number[line] for line in draft.assignments)

    drafts = sorted([*single(in_force), *combined(in_force, kernel, left)], key=latest)
    proposals: list[Proposal] = []
    for draft in merged(drafts, known):
        try:
            proposals.append(checked(draft, kernel, known))
        except InvalidValue as error:
            left += [Left(place, str(error), Cause.NOT_POSSIBLE) for place in draft.places]
    remaining = sorted(unique(left), key=lambda one: (one.place.file, one.place.line))
    return Survey(tuple(sorted(proposals, key=latest)), tuple(remaining))


def unique(left: Iterable[Left]) -> list[Left]:
    """Return one reason for each line: a loop over CPUs would give one for each CPU."""
    first: dict[Place, Left] = {}
    for one in left:
        first.setdefault(one.place, one)
    return list(first.values())


def tuned(line: Assignment, page_size: int, known: dict[str, Tunable]) -> ClaimKey | None:
    """Return what a line sets, as kerntune calls it, or None for a sysctl that kerntune does not set."""
    found = claim_key(line.path, page_size)
    if found is None or found.tunable != "sysctl":
        return found
    try:
        return found if "sysctl" in known and known["sysctl"].normal(found.instances) else None
    except InvalidValue:
        return None


def single(lines: Iterable[tuple[ClaimKey, Assignment]]) -> list[Proposal]:
    """Return a draft for each setting that one line says in full; of several lines, the last one counts."""
    drafts: dict[tuple[str, str], Proposal] = {}
    for key, line in lines:
        if key.part:
            continue
        before = drafts.pop((key.tunable, key.instances), None)
        places = (*before.overridden, *before.places) if before else ()
        overridden = tuple(place for place in dict.fromkeys(places) if place != line.place)
        setting = Setting(key.tunable, key.instances, line.value.strip())
        drafts[key.tunable, key.instances] = Proposal(setting, (line,), line.remark, overridden)
    return list(drafts.values())


def combined(lines: Iterable[tuple[ClaimKey, Assignment]], kernel: KernelView, left: list[Left]) -> list[Proposal]:
    """Return the draft for overcommit, whose mode and ratio stand in lines of their own."""
    parts: dict[str, list[Assignment]] = {}
    for key, line in lines:
        if key.part:
            parts.setdefault(key.part, []).append(line)
    if not parts:
        return []
    last = {part: found[-1] for part, found in parts.items()}
    values = {part: last[part].value.strip() if part in last else "" for part in ("memory", "ratio", "kbytes")}
    ratio = read_int(kernel, "proc/sys/vm/overcommit_ratio")
    value, remark = overcommit_value(values["memory"], values["ratio"], values["kbytes"], current_ratio=ratio)
    if not value:
        left += [Left(line.place, remark, Cause.NOT_POSSIBLE) for line in last.values()]
        return []
    used = tuple(sorted(last.values(), key=lambda line: line.stage))
    earlier = dict.fromkeys(line.place for found in parts.values() for line in found[:-1])
    overridden = tuple(place for place in earlier if all(place != line.place for line in used))
    remarks = "; ".join(filter(None, (remark, *dict.fromkeys(line.remark for line in used))))
    return [Proposal(Setting(OVERCOMMIT, "", value), used, remarks, overridden)]


def merged(drafts: Iterable[Proposal], known: dict[str, Tunable]) -> list[Proposal]:
    """Merge the drafts for single CPUs: the same value for CPU 0, 1, 2 and 3 is one setting for 0-3.

    The drafts come in the order of their lines. None is merged over a draft for several CPUs, which it may override.
    """
    found: list[Proposal] = []
    groups: list[list[Proposal]] = []
    of_cpus: dict[tuple[str, str], list[Proposal]] = {}
    for draft in drafts:
        tunable = known.get(draft.setting.tunable)
        if tunable and tunable.kind is Kind.CPUS and whole(draft.setting.instances) is not None:
            group = of_cpus.setdefault((draft.setting.tunable, draft.setting.value), [])
            if not group:
                groups.append(group)
            group.append(draft)
        else:
            of_cpus = {key: group for key, group in of_cpus.items() if key[0] != draft.setting.tunable}
            found.append(draft)
    for group in groups:
        cpus = spell_cpus(int(draft.setting.instances) for draft in group)
        assignments = tuple(line for draft in group for line in draft.assignments)
        overridden = tuple(dict.fromkeys(place for draft in group for place in draft.overridden))
        setting = group[0].setting._replace(instances=cpus)
        found.append(Proposal(setting, assignments, group[0].remark, overridden))
    return found


def checked(draft: Proposal, kernel: KernelView, known: dict[str, Tunable]) -> Proposal:
    """Return the draft in normal form; raise InvalidValue, with the reason, if this host cannot have the claim."""
    name, instances, value = draft.setting
    tunable = known.get(name)
    if tunable is None:
        raise InvalidValue(f"this kerntune has no tunable {name}")
    instances, value = tunable.normal(instances), tunable.normal_value(value)
    tunable.check(instances, value)
    if why := tunable.missing(kernel):
        raise InvalidValue(f"this host does not support {name}", why.partition(". ")[0])
    targets = [target for target in tunable.targets(kernel) if tunable.matches(instances, target)]
    if not targets and tunable.exact(instances):
        raise InvalidValue(f"{name}@{instances} is not there now", "Nothing to set; claim it when it has come")
    for target in targets:
        tunable.validate(tunable.read(kernel, target), value)
    remarks = [draft.remark] if draft.remark else []
    if tunable.kind is Kind.DRIVES and UNSTABLE.fullmatch(instances):
        stable = next((alias for target in targets for alias in target.aliases if alias.startswith("by-id/")), "")
        if stable:
            remarks.append(f"{instances} may be another drive after a reboot; this name follows the drive")
            instances = stable
        else:
            remarks.append(f"{instances} may be another drive after a reboot, and it has no name that stays")
    return replace(draft, setting=Setting(name, instances, value), remark="; ".join(remarks))


class ClaimKey(NamedTuple):
    """A tunable and its instances; with a `part`, the value is only one of several that make the setting."""

    tunable: str
    instances: str
    part: str = ""


def claim_key(path: str, default_page_size: int) -> ClaimKey | None:
    """Return what a path below the root is to kerntune, or None if it is nothing.

    `default_page_size` is in bytes, 0 for none. The function knows symbolic links that everybody uses
    (/sys/class/block). The path may be a glob.
    """
    path = posixpath.normpath(path.strip("/"))
    for pattern, tunable in PATTERNS:
        if found := pattern.fullmatch(path):
            return key_of(tunable, {key: text or "" for key, text in found.groupdict().items()}, default_page_size)
    return None


def key_of(tunable: Tunable, found: dict[str, str], default_page_size: int) -> ClaimKey | None:
    """Return a tunable and its instance, from what a path says of the instance."""
    match tunable.kind:
        case Kind.POOLS:
            instances = pool_name(found, default_page_size)
            return ClaimKey(tunable.name, instances) if instances else None
        case Kind.CPUS:
            where = found["cpus"] or found["policy"] or "*"
            return ClaimKey(tunable.name, "*" if where in ANY_CPU else where)
        case Kind.DRIVES:
            return ClaimKey(tunable.name, found["drive"])
        case Kind.NAMES:
            return ClaimKey(tunable.name, found["name"].replace("/", "."))
        case Kind.SINGLE:
            return ClaimKey(tunable.name, "", found.get("part", ""))


def pool_name(found: dict[str, str], default: int) -> str:
    """Return a pool of huge pages: without a size in the path the pool of the default size, "" without a default."""
    size = int(found["kb"]) << 10 if "kb" in found else default
    node = found.get("node", "")
    node = "*" if node in ("node*", "node[0-9]*") else node
    return spell_size(size) + (f"/{node}" if node else "") if size else ""


def overcommit_value(mode: str, ratio: str, kbytes: str, *, current_ratio: int) -> tuple[str, str]:
    """Return mode and ratio as one value, and what to know of it; return ("", why) if no value can say them.

    An empty text is a part that nobody sets. `current_ratio` is the kernel's ratio now, for a mode that needs one.
    """
    word = MODES.get(mode)
    if word is None:
        return "", f"vm.overcommit_memory is 0, 1 or 2, not {mode}" if mode else "a ratio is read in mode 2 only"
    if word == "heuristic":
        return word, "the ratio is not read in this mode" if ratio else ""
    if word == "never" and kbytes not in ("", "0"):
        return "", "kerntune takes the limit as a ratio, not in kilobytes: overcommit=never:RATIO"
    if word == "always":
        caps = "the kernel reads the ratio in mode 2 only; as a claim it is what the memory guard lets programs have"
        return (f"{word}:{ratio}", caps) if ratio else (word, "")
    return f"{word}:{ratio or current_ratio}", "" if ratio else "the ratio is the one the kernel has now"
