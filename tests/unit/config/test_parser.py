"""What a configuration file says, and what is said of one that is not in order: file, line, and what is allowed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kerntune import explained
from kerntune.config.content import Content
from kerntune.config.parser import lines, parse, says_nothing
from kerntune.config.schema import OPTIONS, Kind
from kerntune.engine.requests import sound
from kerntune.explained import config_table
from kerntune.model import Origin
from kerntune.tunables import REGISTRY
from kerntune.tunables.knobs import SYSCTL

TUNABLES = {tunable.name: tunable for tunable in REGISTRY}
FILE = "/etc/kerntune/kerntune.toml"


def read(text: str | bytes) -> Content:
    return parse(Path(FILE), text if isinstance(text, bytes) else text.encode(), TUNABLES)


def claims(content: Content) -> list[str]:
    return [f"{claim.id}={claim.value}" for claim in content.claims]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[hugepages]\n"2M" = 64', ["config:hugepages@2M=64"]),
        ('[hugepages]\n"2M" = "64"', ["config:hugepages@2M=64"]),
        ('[hugepages]\n2M = 64', ["config:hugepages@2M=64"]),
        ('[hugepages]\n2M = 0', ["config:hugepages@2M=0"]),
        ('[hugepages]\n"2M/0" = 1', ["config:hugepages@2M/node0=1"]),
        ('[io-scheduler]\n"/dev/nvme0n1" = "none"', ["config:io-scheduler@nvme0n1=none"]),
        ('[io-scheduler]\nsda-sdd = "none"', ["config:io-scheduler@sda-sdd=none"]),
        ('[sysctl]\nswappiness = 10', ["config:sysctl@vm.swappiness=10"]),
        ('[overcommit]\n"*" = 1', ["config:overcommit=always:95"]),
        ('[hugepages]\n2M = "0G"', ["config:hugepages@2M=0"]),
        ('[read-ahead]\n"nvme*" = "4M"\nsda = 2048\nsdb = "512K"', [
            "config:read-ahead@nvme*=4096", "config:read-ahead@sda=2048", "config:read-ahead@sdb=512",
        ]),
        ('[hugepages]\n"2M" = "64G"', ["config:hugepages@2M=32768"]),
        ('[hugepages]\n"2M" = "1GiB"', ["config:hugepages@2M=512"]),
        ('[hugepages]\n"1G/node1" = "3072M"', ["config:hugepages@1G/node1=3"]),
        ('[hugepages]\n"2048K/*" = 0x10', ["config:hugepages@2M/*=16"]),
        ('[cpu-governor]\n"*" = "performance"\n"8,0-3" = "powersave"', [
            "config:cpu-governor@*=performance", "config:cpu-governor@0-3,8=powersave",
        ]),
        ('[io-scheduler]\n"nvme*" = "none"\n"by-id/ata-*" = "bfq"', [
            "config:io-scheduler@nvme*=none", "config:io-scheduler@by-id/ata-*=bfq",
        ]),
        ('[io-scheduler]\nsda = "none"', ["config:io-scheduler@sda=none"]),
        ('io-scheduler."*" = "none"', ["config:io-scheduler@*=none"]),
        ('io-scheduler = {sda = "none"}', ["config:io-scheduler@sda=none"]),
        ('[overcommit]\n"*" = "always:95"', ["config:overcommit=always:95"]),
        ('[overcommit]\n"" = "heuristic"', ["config:overcommit=heuristic"]),
        ('\ufeff[overcommit]\r\n"*" = "always"\r\n', ["config:overcommit=always:95"]),
        ("", []),
        ("# [overcommit]\n\n[hugepages] # none yet\n", []),
    ],
)  # fmt: skip
def test_claims(text: str, expected: list[str]) -> None:
    found = read(text)
    assert (claims(found), found.problems) == (expected, ())


def test_a_claim_says_where_it_stands_and_may_be_partial_where_pages_are_counted() -> None:
    pool, drive = read('\n[hugepages]\n"2M" = 1\n[io-scheduler] # drives\n\n  "nvme*" = "none"').claims
    assert (pool.origin, pool.who, pool.why, pool.partial) == (Origin.CONFIG, "config", f"{FILE}:3", True)
    assert (drive.why, drive.partial) == (f"{FILE}:6", False)
    (told,) = read('[io-scheduler]\n"nvme*" = { value = "none", why = "its own queue" }').claims
    assert (pool.place, drive.place, told.place, told.why) == (f"{FILE}:3", f"{FILE}:6", f"{FILE}:2", "its own queue")


def test_options() -> None:
    found = read("[limits]\nhugepages-percent = 50\nclaims = 20")
    assert found.options == {("limits", "hugepages-percent"): 50, ("limits", "claims"): 20}
    assert not found.problems


PERCENT = "Give a whole number from 0 to 95 (percent of RAM); the default is 75"
POOLS = "The name before the = is a page size (2M), nodes of it (2M/node0, 2M/node0-3) or each node (2M/*)"
DRIVES = (
    "The name before the = is a device (nvme0n1), several (nvme0n1-nvme3n1, sda-sdd), a glob (nvme*) or by-id/NAME as "
    "in /dev/disk/by-id; loop, ram and zram devices are meant by a glob that begins with that word (loop*)"
)
COUNTS = "The value is a number of pages, or a size with K, M, G or T that is a whole number of pages (64G)"
REASON = 'Write { value = "none", why = "..." }'
WORD = 'Give a whole number, or a word in quotes: "none"'
QUOTES = 'Names with other signs than letters, digits, - and _ need quotes, and so do words: "nvme*" = "none"'
ONCE = "A file has each table once, and a table each name: put the lines of both together"
TABLES = "There are cpu-epp, cpu-governor, daemon, drift, guard, hugepages and 8 more"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        # what is not known
        ("[limit]\nclaims = 5", Kind.UNKNOWN, f":1: nothing here is called 'limit'. Did you mean 'limits'? {TABLES}"),
        ('profil = "balanced"', Kind.UNKNOWN, f":1: nothing here is called 'profil'. Did you mean 'profile'? {TABLES}"),
        ('[cpu_governor]\n"*" = "x"', Kind.UNKNOWN,
         f":1: nothing here is called 'cpu_governor'. Did you mean 'cpu-governor'? {TABLES}"),
        ("claims = 5", Kind.UNKNOWN, ":1: nothing here is called 'claims'. It is a setting of [limits]"),
        ("[limits]\ncliams = 5", Kind.UNKNOWN,
         ":2: [limits] has no setting 'cliams'. Did you mean 'claims'? There are claims, held-percent-per-user, holds, "
         "holds-per-user, hugepages-percent"),
        ("[guard]\ncap = 30", Kind.UNKNOWN, ":2: [guard] has no setting 'cap'. There are band, calm, enabled"),
        # options
        ("\n[limits]\nhugepages-percent = 96", Kind.OPTION, f":3: hugepages-percent is 96. {PERCENT}"),
        ("[limits]\nhugepages-percent = -1", Kind.OPTION, f":2: hugepages-percent is -1. {PERCENT}"),
        ("[limits]\nhugepages-percent = 50.0", Kind.OPTION, f":2: hugepages-percent is 50.0. {PERCENT}"),
        ("[limits]\nhugepages-percent = true", Kind.OPTION, f":2: hugepages-percent is true. {PERCENT}"),
        ('[limits]\nhugepages-percent = "75%"', Kind.OPTION, f":2: hugepages-percent is '75%'. {PERCENT}"),
        ("limits.hugepages-percent = []", Kind.OPTION, f":1: hugepages-percent is a list. {PERCENT}"),
        ("limits = 5", Kind.OPTION, ":1: limits is a table. Write [limits], and its settings below it"),
        # claims
        ('[hugepages]\n"2M" = 1.5', Kind.CLAIM, f":2: hugepages: 1.5 is no value. {WORD}"),
        ('[hugepages]\n"2M" = -1', Kind.CLAIM, f":2: hugepages: '-1' is not a number of huge pages. {COUNTS}"),
        ('[hugepages]\n"2M" = "64X"', Kind.CLAIM, f":2: hugepages: '64X' is not a number of huge pages. {COUNTS}"),
        ('[hugepages]\n"2M" = "3M"', Kind.CLAIM,
         ":2: hugepages: 3M is not a whole number of 2M pages. The nearest numbers of pages are 1 (2M) and 2 (4M)"),
        ('[hugepages]\n"2M" = "2M/node0"', Kind.CLAIM,
         f":2: hugepages: '2M/node0' is not a number of huge pages. {COUNTS}"),
        ('[hugepages]\n"*" = 5', Kind.CLAIM, f":2: hugepages: '*' is not a pool of huge pages. {POOLS}"),
        ('[hugepages]\n2M = true', Kind.CLAIM, f":2: hugepages: true is no value. {WORD}"),
        ("hugepages = 64", Kind.CLAIM,
         ':1: hugepages is a table. Write [hugepages], and below it a line for each pattern, such as "*" = "..."'),
        ("[[hugepages]]\n2M = 1", Kind.CLAIM,
         ':1: hugepages is a table. Write [hugepages], and below it a line for each pattern, such as "*" = "..."'),
        ("[io-scheduler]\na.b = 'none'", Kind.CLAIM,
         ':2: io-scheduler: there is a dot in the name. A name with a dot needs quotes: "a.b"'),
        ('[io-scheduler]\n"*" = { val = "none" }', Kind.CLAIM,
         f":2: io-scheduler: 'val' has no place here. Did you mean 'value'? {REASON}"),
        ('[io-scheduler."*"]\nvlaue = "none"', Kind.CLAIM,
         f":1: io-scheduler: 'vlaue' has no place here. Did you mean 'value'? {REASON}"),
        ('[io-scheduler]\n"*" = { value = "none", wy = "x" }', Kind.CLAIM,
         f":2: io-scheduler: 'wy' has no place here. Did you mean 'why'? {REASON}"),
        ('[io-scheduler]\n"*" = { is = "none" }', Kind.CLAIM,
         f":2: io-scheduler: 'is' has no place here. {REASON}"),
        ('[io-scheduler]\n"*" = { why = "x" }', Kind.CLAIM, f":2: io-scheduler: there is no value. {REASON}"),
        ('[sysctl]\n"vm.swappiness" = 300', Kind.CLAIM,
         ":2: sysctl: vm.swappiness is a whole number from 0 to 200, not 300. "
         f"The value is {config_table(SYSCTL).values}"),
        ('[thp]\nenabled = "sometimes"', Kind.CLAIM,
         ":2: thp: enabled is one of always, madvise, never, not sometimes. The value is the kernel's word: always, "
         "madvise or never, for defrag also defer or defer+madvise"),
        ('[hugepages]\n"3M" = 1', Kind.CLAIM,
         f":2: hugepages: '3M' is no page size: each is a power of two. {POOLS}"),
        ('[io-scheduler]\n"nvme*" = ["none"]', Kind.CLAIM, f":2: io-scheduler: a list is no value. {WORD}"),
        ('[io-scheduler]\n"../sda" = "none"', Kind.CLAIM,
         f":2: io-scheduler: '../sda' cannot name a block device. {DRIVES}"),
        ('[io-scheduler]\nsda = "no such"', Kind.CLAIM,
         ":2: io-scheduler: 'no such' cannot be the name of a scheduler. "
         "The value is the kernel's name of a scheduler"),
        ('[cpu-governor]\n"3-0" = "performance"', Kind.CLAIM,
         ":2: cpu-governor: '3-0' runs backwards. The name before the = is * (every CPU), a CPU list (0-3,8), "
         "policies (policy0, policy0-7) or a glob of these (policy?)"),
        ("[overcommit]\nvalue = 'always'", Kind.CLAIM,
         ":2: overcommit: 'value' names nothing: there is one setting of the host. "
         "The name before the = is * (it is one setting of the host)"),
        ("[overcommit]\n'*' = 95", Kind.CLAIM,
         ":2: overcommit: '95' is not an overcommit setting. The value is heuristic, always, always:RATIO or "
         "never:RATIO, with a RATIO from 1 to 100 percent of RAM (99 with always)"),
        ("[io-scheduler]\nsda = 2026-01-01", Kind.CLAIM, f":2: io-scheduler: 2026-01-01 is no value. {WORD}"),
        (f"[io-scheduler]\nsda = '{'x' * 300}'", Kind.CLAIM,
         ":2: io-scheduler: a value of 300 characters is too long. 256 are allowed"),
        (f"[io-scheduler]\n{'x' * 300} = 'none'", Kind.CLAIM,
         f":2: io-scheduler: a pattern of 300 characters is too long. {DRIVES}"),
        (f"[hugepages]\n2M = 0x{'f' * 10_000}", Kind.CLAIM, f":2: hugepages: a very long number is no value. {WORD}"),
        # whole files
        ('[io-scheduler]\nnvme* = "none"', Kind.FILE,
         f":2: this is not TOML: Expected '=' after a key in a key/value pair. {QUOTES}"),
        ("[io-scheduler]\nsda = none", Kind.FILE, f":2: this is not TOML: Invalid value. {QUOTES}"),
        ("[limits]\n\nclaims =", Kind.FILE, f":3: this is not TOML: Invalid value. {QUOTES}"),
        ("[limits]\nclaims = 5\nclaims = 6", Kind.FILE, f":3: this is not TOML: Cannot overwrite a value. {ONCE}"),
        ("[limits]\n[limits]\nclaims = 6", Kind.FILE,
         f":2: this is not TOML: Cannot declare ('limits',) twice. {ONCE}"),
        ("x = " + "[" * 100_000, Kind.FILE,
         f": this is not TOML: this is nested too deeply, or holds too long a number. {QUOTES}"),
        (f"x = {'9' * 10_000}", Kind.FILE,
         f": this is not TOML: this is nested too deeply, or holds too long a number. {QUOTES}"),
        (b"[limits]\n# caf\xe9\n", Kind.FILE, ":2: this is not UTF-8. TOML is written in UTF-8"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_said_of_a_mistake(text: str | bytes, kind: Kind, said: str) -> None:
    found = read(text)
    assert [(problem.kind, str(problem)) for problem in found.problems] == [(kind, FILE + said)]
    assert (found.claims, dict(found.options)) == ((), {})
    assert found.is_sound is (kind in (Kind.UNKNOWN, Kind.OPTION))
    assert all(problem.is_error for problem in found.problems)
    assert found.is_parsed is (kind is not Kind.FILE)


def test_what_is_good_stays_beside_what_is_bad_and_problems_are_in_the_order_of_the_file() -> None:
    text = (
        "[overcommit]\n'*' = 'always'\n[limits]\nclaims = 0\nhugepages-percent = 10\n[io-scheduler]\nsda = 5.5\n[new]"
    )
    found = read(text)
    assert claims(found) == ["config:overcommit=always:95"]
    assert found.options == {("limits", "hugepages-percent"): 10}
    assert [(problem.line, problem.kind) for problem in found.problems] == [
        (4, Kind.OPTION),
        (7, Kind.CLAIM),
        (8, Kind.UNKNOWN),
    ]


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\n[b]\na = 2", ("a",), 1),
        ("a = 1\n[b]\na = 2", ("b", "a"), 3),
        ('[b]\n  "a.b"   = 2', ("b", "a.b"), 2),
        ("[b]\n'#a' = 2", ("b", "#a"), 2),
        ('[b]\n"x=\\"y" = 2', ("b", 'x="y'), 2),
        ("b.c.d = 1", ("b", "c"), 1),
        ("\n[ b . 'c' ]\n\nd=1", ("b", "c"), 2),
        ("#[b]\n#a = 1\n[b]\n#a = 2\na = 3", ("b", "a"), 5),
        ("[b]\n[[c]]\nx = 1", ("c", "x"), 3),
        ("a = '[b]'\n[b]\nx = '''\n'''", ("b",), 2),
        ("\u2028a = 1\r\n[b]\r\na = 1", ("b", "a"), 3),
    ],
)
def test_the_line_of_a_key(text: str, path: tuple[str, ...], line: int) -> None:
    assert lines(text)[path] == line


TABLE_NAMES = {*TUNABLES, *(option.table for option in OPTIONS if option.table)}
SAYS_NOTHING = ["", "\n\n", "# [x]\n", "[limits]\n\n [io-scheduler] # none\r\n", "# caf\xe9\n"]
SAYS_SOMETHING = [
    "x",
    "[not-known]",
    "[profile]",
    "[limits]\nclaims = 5",
    "[limits]\n[limits]\n",
    "[[limits]]",
    "[a",
    '["a"]',
    "[a.b]",
    '"#" = 1',
    "\0",
]
# Comments that TOML does not allow: without a look at them a daemon would take what `config check` refuses.
NOT_ALLOWED = [b"# caf\xe9\n", b"# \0\n", b"# \x0c\n", b"#\r[limits]\n", b"[limits]\x0b\n", b"#\x7f"]


@pytest.mark.parametrize("text", [*SAYS_NOTHING, *SAYS_SOMETHING])
def test_what_says_nothing(text: str) -> None:
    assert says_nothing(text.encode(), TABLE_NAMES) is (text in SAYS_NOTHING)
    assert (read(text) == Content()) is (text in SAYS_NOTHING)


@pytest.mark.parametrize("data", NOT_ALLOWED)
def test_a_comment_that_toml_does_not_allow_is_an_error(data: bytes) -> None:
    (problem,) = read(data).problems
    assert problem.kind is Kind.FILE


# Texts that are almost in order, so that more than the first sign is looked at.
words = st.sampled_from(
    ["[limits]", "[hugepages]", "[io-scheduler]", "[overcommit]", "[[hugepages]]", "[new]", "claims", "2M",
     '"nvme*"', "'*'", '"../x"', "hugepages-percent", "=", " = ", "\n", "\r\n", ".", "5", "-1", "0x7", '"none"',
     "'64G'", '"""', "'''",
     "{", "}", "[", "]", ",", "#", "\\", "1979-05-27", "inf", "nan", "true", "\x00", "\ufeff", "\u2028", "é"]
)  # fmt: skip


@given(st.one_of(st.lists(words, max_size=30).map("".join).map(str.encode), st.binary(max_size=60)))
@example(b"[" * 5000)
@example(b"a" + b".a" * 5000 + b" = 1")
@example(b'[hugepages]\n"2M" = [' + b"[" * 400 + b"]" * 400 + b"]")
@example(b'"' * 4000 + b"=")
@example(b"[limits]\nclaims = 0x" + b"f" * 5000)
@example(b"# caf\xe9\n[limits]")
@example(b"#\r[limits]")
def test_no_text_raises_and_what_is_taken_could_have_been_asked_for(data: bytes) -> None:
    found = read(data)
    assert all(sound(claim, TUNABLES) for claim in found.claims)
    assert all(problem.what and str(problem).startswith(FILE) for problem in found.problems)
    assert found.is_parsed or len(found.problems) == 1
    if says_nothing(data, TABLE_NAMES):
        assert not any(tomllib.loads(data.decode()).values()), "it is passed over, and must mean nothing"
    assert all(0 <= problem.line <= data.count(b"\n") + 1 for problem in found.problems)


def test_without_the_explanations_the_tunable_itself_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while an upgrade replaces the package under a daemon that reads its files again."""
    text = '[io-scheduler]\n"sda" = "None"\n"../sda" = "none"\n'
    assert [problem.allowed for problem in read(text).problems] == [
        "The value is the kernel's name of a scheduler",
        DRIVES,
    ]
    monkeypatch.setattr(explained, "FILE", tmp_path / "explanations.toml")
    explained.load.cache_clear()
    assert [problem.allowed for problem in read(text).problems] == [
        "Examples: none, mq-deadline, bfq, kyber",
        "Give a name (nvme0n1), a glob (nvme*), a range (sda-sdd) or by-id/NAME as in /dev/disk/by-id",
    ]
