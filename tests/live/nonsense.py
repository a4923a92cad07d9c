"""Arguments that cannot be meant, and the error that each has to get."""

from __future__ import annotations

from typing import Final

from kerntune.api.names import HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY
from kerntune.errors import InvalidValue, NoSuchTarget, OverLimit, UnknownTunable

HUGE: Final = (1 << 64) - 1
LONG: Final = "a" * 5000
SET: Final = (MANAGER, "Set", "a(sss)a{sv}")
UNSET: Final = (MANAGER, "Unset", "a(ss)a{sv}")
PLAN: Final = (MANAGER, "Plan", "a(sss)a{sv}")
COUNT: Final = (HUGE_PAGES, "SetCount", "tta{sv}")
SCHEDULER: Final = (IO_SCHEDULER, "SetScheduler", "ssa{sv}")
OVERCOMMIT: Final = (MEMORY, "SetOvercommit", "sua{sv}")
# Names of devices that are none, wherever they are written.
NO_NAMES: Final = (
    "", ".", "..", "../loop0", "loop0/..", "loop0/queue", "/dev/loop0", "loop0\n", "\nloop0", "loop0 ", "loop0\t",
    "loop0;", "loop0\r", "\x7f", "lööp0", "by-id/..", "by-id/.", "by-id/../../sys", "by-id/", "by-path/x", LONG,
)  # fmt: skip
NO_POOLS: Final = (
    "*", "/", "2", "0M", "2X", "-2M", "2M/", "2M/node", "2M/node-1", "2M/node0/", "2M/node0\n", "2M\n", "2M/../..",
    "2M/**", "2M/node*", "../2M", "hugepages-2048kB", "99999999999T", LONG,
)  # fmt: skip
NO_COUNTS: Final = (
    "",
    " ",
    "-1",
    "+1",
    "1.5",
    "1e3",
    "0x10",
    "128\n",
    "128 ",
    "12 8",
    "many",
    "64X",
    "3M",
    "9" * 21,
    LONG,
)
NO_SCHEDULERS: Final = ("", "nonesuch", "none\n", "../none", "none mq-deadline", "[none]", "NONE", LONG)
NO_OVERCOMMITS: Final = (
    "", "sometimes", "never", "never:0", "never:101", "always:101", "always:0", "heuristic:50", "never:1k", "never:-1",
    "never:", "always:1.5", "never:50\n", "2", "ALWAYS", "never:999999999999", LONG,
)  # fmt: skip
NO_TUNABLES: Final = ("", "nonesuch", "hugepages\n", "../hugepages", "HugePages", "hugepages@2M", "sys/block", LONG)

# Member, its arguments before the options, the error.
TYPED: Final = [
    *((SCHEDULER, (name, "none"), InvalidValue) for name in NO_NAMES),
    *((SCHEDULER, ("loop0", name), InvalidValue) for name in NO_SCHEDULERS),
    *((SCHEDULER, (name, "none"), NoSuchTarget) for name in ("nosuchdisk", "loop0p1", "by-id/nosuch", "...")),
    (SCHEDULER, ("loop[0-1]", "nonesuch"), InvalidValue),
    (COUNT, (3, 1), InvalidValue),
    (COUNT, (4096, 1), NoSuchTarget),
    (COUNT, (12288, 1), NoSuchTarget),
    (COUNT, (HUGE, 1), InvalidValue),
    (COUNT, (1 << 63, 1), NoSuchTarget),
    (COUNT, (0, HUGE), OverLimit),
    (COUNT, (0, 1 << 63), OverLimit),
    (OVERCOMMIT, ("always", 101), InvalidValue),
    (OVERCOMMIT, ("always", (1 << 32) - 1), InvalidValue),
    (OVERCOMMIT, ("never", 0), InvalidValue),
    (OVERCOMMIT, ("never", 101), InvalidValue),
    (OVERCOMMIT, ("heuristic", 50), InvalidValue),
    (OVERCOMMIT, ("sometimes", 0), InvalidValue),
    (OVERCOMMIT, ("always:5", 0), InvalidValue),
    (OVERCOMMIT, ("", 0), InvalidValue),
]
GENERIC: Final = [
    *((("io-scheduler", name, "none"), InvalidValue) for name in NO_NAMES),
    *((("io-scheduler", "loop0", name), InvalidValue) for name in NO_SCHEDULERS),
    (("io-scheduler", "nosuchdisk", "none"), NoSuchTarget),
    *((("hugepages", name, "1"), InvalidValue) for name in NO_POOLS),
    *((("hugepages", "2M", name), InvalidValue) for name in NO_COUNTS),
    *((("hugepages", name, "1"), NoSuchTarget) for name in ("4K", "2M/node99", "3M", "512G/node0")),
    (("hugepages", "2M", "9" * 20), OverLimit),
    *((("overcommit", "", name), InvalidValue) for name in NO_OVERCOMMITS),
    *((("overcommit", name, "always"), InvalidValue) for name in ("x", "..", "\n", "loop0", LONG)),
    *(((name, "*", "1"), UnknownTunable) for name in NO_TUNABLES),
]
OPTIONS: Final = (
    {"nonesuch": ["b", True]},
    {"Persist": ["b", True]},
    {"": ["b", True]},
    {"persist": ["s", "yes"]},
    {"persist": ["u", 1]},
    {"persist": ["v", ["b", True]]},
    {"persist": ["b", True], "ttl-usec": ["t", 1]},
    {"baseline": ["b", True]},
)
