"""The nouns of kerntune, as frozen values; this module imports nothing of ours and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple


class Origin(IntEnum):
    """The source of a claim; a higher origin wins over a lower one.

    A profile is a preset, and the administrator's files override it.
    """

    BASELINE = 0
    PROFILE = 10
    CONFIG = 20
    PERSISTENT = 30
    RUNTIME = 40
    HOLD = 50
    GUARD = 60

    @property
    def word(self) -> str:
        """The origin as it is written in JSON and shown to people."""
        return self.name.lower()


class State(StrEnum):
    """The result for a desired state; the values are the strings on the wire."""

    SATISFIED = "satisfied"
    PLANNED = "planned"
    PARTIAL = "partial"
    OVERRIDDEN = "overridden"
    CONTESTED = "contested"
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    UNMANAGED = "unmanaged"


class Reason(StrEnum):
    """Why a target is in its state; every slug there is (kerntuned(8) lists them)."""

    OK = "ok"
    NO_SUCH_TARGET = "no-such-target"
    DEVICE_GONE = "device-gone"
    DEVICE_HANGS = "device-hangs"
    NO_KERNEL_SUPPORT = "no-kernel-support"
    CPU_OFFLINE = "cpu-offline"
    VALUE_NOT_OFFERED = "value-not-offered"
    OUT_OF_RANGE = "out-of-range"
    KERNEL_REJECTED = "kernel-rejected"
    READ_BACK_DIFFERS = "read-back-differs"
    PARTIALLY_ALLOCATED = "partially-allocated"
    PAGES_IN_USE = "pages-in-use"
    OVERRIDDEN = "overridden"
    CONFIG_WINS = "config-wins"
    GUARD_LIMIT = "guard-limit"
    OVER_LIMIT = "over-limit"
    BOOT_PARAMETER_WINS = "boot-parameter-wins"
    READ_ONLY = "read-only"
    GOVERNOR_DECIDES = "governor-decides"
    CHANGED_BY_OTHERS = "changed-by-others"
    INTERRUPTED = "interrupted"


class Lane(StrEnum):
    """A kernel subsystem with one worker of its own, so that a slow one delays no other."""

    MEMORY = "memory"
    CPU = "cpu"
    BLOCK = "block"


class Setting(NamedTuple):
    """What a caller asks for: `(sss)` on the wire."""

    tunable: str
    instances: str
    value: str


@dataclass(frozen=True, slots=True)
class Target:
    """One knob: a tunable and an instance of it.

    `key` tells two things of the same name apart, for a baseline belongs to the one that had it. It is the identity of
    a drive's queue (the inode of /sys/block/X/queue), and the driver of a cpufreq policy.
    `aliases` are other names a pattern may use (`by-id/...`), and do not make it another target.
    """

    tunable: str
    instance: str = ""
    key: str = ""
    aliases: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.tunable}@{self.instance}" if self.instance else self.tunable


class ClaimId(NamedTuple):
    """What makes two claims the same one: setting it again replaces it."""

    origin: Origin
    tunable: str
    instances: str
    hold: int = 0

    def __str__(self) -> str:
        at = f"@{self.instances}" if self.instances else ""
        of = f"/{self.hold}" if self.hold else ""
        return f"{self.origin.word}{of}:{self.tunable}{at}"


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody wants `value` on every instance that matches `instances`.

    `seq` is a saved counter (never a clock): of two claims of one origin the higher wins.
    `partial` accepts fewer huge pages than asked. `hold` is the number of the hold that it belongs to, or 0.
    `place` is the file and line that make the claim (FILE:LINE), or "" where no file does.
    `unit` is that of the size that was asked (`G` of 64G), or "" for a plain number. It is for messages, and not saved.
    """

    origin: Origin
    tunable: str
    instances: str
    value: str
    who: str = ""
    why: str = ""
    seq: int = 0
    partial: bool = False
    hold: int = 0
    place: str = ""
    unit: str = field(default="", compare=False)

    @property
    def id(self) -> ClaimId:
        return ClaimId(self.origin, self.tunable, self.instances, self.hold)


@dataclass(frozen=True, slots=True)
class Hold:
    """Claims that live as long as a client does: its unique name on the bus with that id, and its uid.

    Without a `client` the hold is detached: it ends when it is released or at its time. All times are in microseconds:
    `ttl` is how long it may last (0: for ever), `since` when it was granted, by CLOCK_REALTIME, for people.
    `ends_boottime` is when it ends by CLOCK_BOOTTIME, which no change of the clock moves.
    """

    number: int
    who: str
    why: str
    uid: int
    client: str = ""
    bus: str = ""
    ttl: int = 0
    since: int = 0
    ends_boottime: int = 0

    @property
    def expires(self) -> int:
        """When it ends by itself, as people read it; 0 for never."""
        return self.since + self.ttl if self.ttl else 0


@dataclass(frozen=True, slots=True)
class Baseline:
    """The value a target had before our first write to it."""

    target: Target
    value: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a target holds now; `value` is None when it cannot be read, and `reason` then says why: it is not written.

    A value that the kernel has no name for is a word that no claim can have (`unknown` of cpu-epp): it may be written.
    `restore` is the exact value to save as a baseline where `value` leaves something out.
    `figures` are numbers that belong to it (for a pool: total, free, reserved, surplus pages).
    """

    target: Target
    value: str | None
    choices: tuple[str, ...] = ()
    reason: Reason = Reason.OK
    detail: str = ""
    restore: str = ""
    figures: Mapping[str, int] = field(default_factory=dict)


class Verdict(NamedTuple):
    """A judgement on one target: its state, the reason's slug, and prose with figures."""

    state: State
    reason: Reason
    detail: str = ""


SATISFIED = Verdict(State.SATISFIED, Reason.OK)


@dataclass(frozen=True, slots=True)
class Sum:
    """Of what a number is the sum, where holds add up.

    `parts` are the claims, in the order in which they are served. With `at_least` more is right too: what a node has
    of a total that others share. `asked` are the parts that this pass is for; `before` is what was asked for before it,
    of which `lacks` was missing, and may be missing still. `foreseen` is the number that a dry run comes to.
    """

    parts: tuple[Claim, ...]
    at_least: bool = False
    asked: tuple[Claim, ...] = ()
    before: int = 0
    lacks: int = 0
    foreseen: int | None = None

    @property
    def base(self) -> Claim | None:
        """The claim that holds add to; without one it is the host's own number."""
        return next((claim for claim in self.parts if claim.origin is not Origin.HOLD), None)

    @property
    def held(self) -> int:
        """What holds add."""
        return sum(int(claim.value) for claim in self.parts if claim.origin is Origin.HOLD)

    @property
    def newest(self) -> Claim | None:
        """Of the parts that callers want now, whole or not at all, the newest."""
        return max((claim for claim in self.asked if not claim.partial), key=lambda claim: claim.seq, default=None)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The value that a target should hold now: the claim that won, and those it overrides (the strongest first).

    `strict`: a caller waits for exactly this, so less than asked is an error, not a partial success.
    `sum`: where holds add to the number; the winner is the newest hold.
    """

    target: Target
    value: str
    winner: Claim
    overridden: tuple[Claim, ...] = ()
    strict: bool = False
    sum: Sum | None = None

    @property
    def is_baseline(self) -> bool:
        """Nobody claims the target any more: its own value is to be put back."""
        return self.winner.origin is Origin.BASELINE


@dataclass(frozen=True, slots=True)
class Write:
    """One text for one file below the kernel's root; `path` has no leading slash."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """A desired state, the reading before, and the writes that get there; with a `verdict` nothing is written.

    `capped`: the writes stop short of the desired value on purpose, and the verdict says why.
    `touches`: the targets whose value the writes settle, where it is not the step's own target (a pool's nodes).
    `grows`: the bytes of memory that the desired value takes (below 0: gives back), whichever step writes them.
    `comes_to`: the number that there should be after the writes.
    """

    desired: DesiredState
    before: Reading
    writes: tuple[Write, ...] = ()
    verdict: Verdict | None = None
    capped: Verdict | None = None
    touches: tuple[Target, ...] = ()
    grows: int = 0
    comes_to: int | None = None

    @property
    def touched(self) -> tuple[Target, ...]:
        return self.touches or (self.desired.target,)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the kernel really did with one target: `(ssssssss)` on the wire.

    `is_owed`: nobody claims the target, and the host's own value, which is `requested`, is not back yet.
    """

    target: Target
    requested: str
    before: str
    actual: str
    state: State
    reason: Reason = Reason.OK
    detail: str = ""
    is_owed: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """The outcomes that changed in one pass, with its cause and generation number."""

    generation: int
    cause: str
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What no request may go beyond: huge pages in percent of RAM, and claims of one origin made by callers.

    `planned` bounds the settings of a plan, which anybody may ask for.

    `holds` bounds the holds of all, and `holds_per_user` those of one; one user's may have `held_percent_per_user` of
    the memory that huge pages may have.

    `comparisons` bounds what one call makes us do, its settings times the targets each is compared with; `outcomes`
    what it is answered.
    """

    hugepages_percent: int = 75
    claims: int = 1000
    holds: int = 64
    holds_per_user: int = 16
    held_percent_per_user: int = 50
    planned: int = 128
    comparisons: int = 100_000
    outcomes: int = 5000


@dataclass(frozen=True, slots=True)
class Memory:
    """The host's memory in bytes: /proc/meminfo and the sysctls of Documentation/mm/overcommit-accounting.rst.

    `overcommit_mode` is None where the host has no such sysctl. `swap_total` is all swap, as the kernel adds all of it
    to the limit; `swap_free` is what could be had by it: zram takes RAM again. `short` is what `available` lacks
    of being 0: the kernel never shows less, but takes so much of the swap for itself. `arc` is what ZFS gives back when
    memory is short, and `available` has nothing of it.
    """

    total: int
    available: int
    free: int
    hugetlb: int
    swap_total: int
    committed: int
    commit_limit: int
    overcommit_mode: int | None
    overcommit_ratio: int
    overcommit_kbytes: int
    swap_free: int = 0
    short: int = 0
    arc: int = 0

    @property
    def base(self) -> int:
        """What huge pages leave, in bytes."""
        return max(1, self.total - self.hugetlb)

    @property
    def headroom(self) -> int:
        """What programs can still take before the OOM killer comes, in bytes."""
        return max(0, self.available + self.arc + self.swap_free - self.short)

    @property
    def reserve(self) -> int:
        """What is left to the rest of the host, in bytes."""
        return reserve_of(self.total)


def reserve_of(memory: int) -> int:
    """Return what is left to others of so much RAM, in bytes: 512 MiB or 5 %, whichever is more."""
    return max(512 << 20, memory // 20)


NO_MEMORY = Memory(0, 0, 0, 0, 0, 0, 0, None, 0, 0)


class Consumer(NamedTuple):
    """A process and bytes of memory: what it has, or what it has got lately."""

    pid: int
    command: str
    uid: int
    size: int


class GuardState(StrEnum):
    """The memory guard's state, with its word on the wire. OFF: no claim asks for `always`, or it is disabled."""

    OFF = "off"
    RELAXED = "relaxed"
    CAPPED = "capped"
    EXHAUSTED = "exhausted"
    OBSERVING = "observing"
