"""What is typed is taken, by a daemon on the simulated host; and each exit code, as kerntune(1) lists them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import needs_root
from tests.harness import CHECKOUT
from tests.harness.command import Shell, demo


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with demo(tmp_path_factory.mktemp("programs")) as running:
        yield running


@pytest.mark.parametrize(
    ("line", "targets"),
    [
        ("set vm.swappiness=11 --persist vm/zone_reclaim_mode=0", "sysctl@vm.swappiness sysctl@vm.zone_reclaim_mode"),
        ("set /proc/sys/vm/swappiness=12", "sysctl@vm.swappiness"),
        ("set sysctl@swappiness=13", "sysctl@vm.swappiness"),
        ("set io-scheduler@/dev/nvme0n1=none", "io-scheduler@nvme0n1"),
        ("--json set io-scheduler@nvme0n1-nvme9n1=none", "io-scheduler@nvme0n1 io-scheduler@nvme1n1"),
        ("set overcommit=1", "overcommit"),
        ("set hugepages@2M/0=4", "hugepages@2M/node0"),
        ("set hugepages@node0=5 hugepages@node1=6", "hugepages@2M/node0 hugepages@2M/node1"),
        ("set cpu-governor@cpu3=performance", "cpu-governor@policy3"),
    ],
)
@needs_root
def test_names_as_people_type_them(line: str, targets: str, shell: Shell) -> None:
    rows = json.loads(shell.check(f"kerntune {line} -j"))["outcomes"]
    assert [f"{row['tunable']}@{row['instance']}".rstrip("@") for row in rows] == targets.split()
    assert {row["state"] for row in rows} == {"satisfied"}
    # The same name withdraws the claim, whatever it is in normal form.
    names = [word.rpartition("=")[0] for word in line.split() if "=" in word]
    options = "--persist" if "--persist" in line else ""
    assert json.loads(shell.check(f"kerntune unset {' '.join(names)} {options} -j"))["changed"] is True


@needs_root
def test_what_is_printed_can_be_typed(shell: Shell) -> None:
    """The first word of each row of status, list and the answers of other verbs names its targets again."""
    shell.check("kerntune set cpu-governor=performance io-scheduler=none read-ahead@nvme*=2048 hugepages@2M/*=3")
    for line in ("status", "list"):
        rows = [row.split()[0] for row in shell.check(f"kerntune {line}").splitlines()]
        names = [
            name for name in rows if name.partition("@")[0] in {"cpu-governor", "io-scheduler", "hugepages", "sysctl"}
        ]
        assert len(names) > 3
        for name in names:
            shell.check(f"kerntune get '{name}'")
            shell.check(f"kerntune list '{name}'")
    shell.check("kerntune reset")


CODES = [
    (0, "kerntune get hugepages"),
    (0, "kerntune list 'cpu-*' overcommit"),
    (0, "kerntune get '*' -q"),
    (0, "kerntune explain vm.swappiness"),
    # What was named is not there: a tunable, a sysctl, an instance, a profile, a hold.
    *((3, f"kerntune {line}") for line in (
        "get nosuch", "status nosuch", "verify nosuch", "list nosuch", "list 'nosuch*'", "set nosuch=1", "unset nosuch",
        "hold nosuch=1 --detach --ttl 1h", "explain nosuch",
        "get vm.nosuch", "set vm.nosuch=1", "unset sysctl@vm.nosuch", "list vm.nosuch",
        "hold vm.nosuch=1 --detach --ttl 1h",
        "get cpu-governor@500", "set cpu-governor@500=performance", "unset cpu-governor@policy500",
        "set io-scheduler@/dev/sdz=none", "get io-scheduler@sdy-sdz", "list io-scheduler@sdz", "set hugepages@32M=1",
        "status io-scheduler@sdz",
        "set hugepages@2M/node7=1", "get hugepages@node7", "get thp@nosuch", "set thp@nosuch=always",
        "profile set nosuch", "profile show nosuch", "hold --profile nosuch --detach --ttl 1h",
        "release 4711",
    )),
    # What cannot be understood: a value, a name that is none, an option, an argument, a verb.
    *((2, f"kerntune {line}") for line in (
        "set overcommit=2", "set overcommit=sometimes", "set vm.swappiness=999", "set cpu-governor=none",
        "set hugepages=3M", "set hugepages", "set io-scheduler@/dev/mapper/x=none", "get hugepages@x",
        "list cpu-governor@x-y", "set hugepages@*=1", "set thp=always", "unset io-scheduler@sdz-sda", "get",
        "list --persist", "status --nonsense", "set -x overcommit=1", "profile nosuch", "nosuch", "get overcommit@x",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("code", "line"), CODES, ids=[line for _, line in CODES])
@needs_root
def test_the_exit_code_says_what_is_wrong(code: int, line: str, shell: Shell) -> None:
    done = shell.run(line)
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) is bool(code)


@needs_root
def test_a_sentence_goes_with_each_mode_of_overcommit(shell: Shell) -> None:
    done = shell.run("kerntune set overcommit=2")
    assert "the mode never needs a ratio of RAM, such as never:80" in done.stderr
    assert shell.check("kerntune set overcommit=2:100 -q") == ""
    assert shell.check("kerntune get overcommit") == "never:100"
    shell.check("kerntune set overcommit=0")
    assert shell.check("kerntune get overcommit") == "heuristic"
    shell.check("kerntune unset overcommit")


PART: Final = "kerntune set hugepages@1G=1000 --allow-partial"  # more than there is: a part is had

# The other rows of the man page: a line that ends so on a fresh host, and what is done there before it.
CASES: Final = (
    (0, "kerntune set hugepages=64 --persist", ""),
    (0, "kerntune set hugepages=64", "kerntune set hugepages=64"),
    (0, "kerntune set hugepages=64 --dry-run", ""),
    (0, "kerntune status", ""),
    (0, "kerntune status", "kerntune profile set balanced"),  # claims that wait for vd*
    (0, "kerntune verify", "kerntune profile set balanced"),
    (0, "kerntune verify overcommit", "kerntune set hugepages=64"),
    (1, "kerntune set hugepages=99999999", ""),
    (1, "kerntune set hugepages=64 > /dev/full", ""),
    (1, "kerntune status", PART),
    (1, "kerntune verify", PART),
    (0, "kerntune verify hugepages@2M", f"{PART}; kerntune set hugepages=64"),
    (5, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent kerntune status", ""),
    (6, PART, ""),
)
# These have tests of their own, with an ordinary user and with Ctrl-C.
ELSEWHERE: Final = {4: "tests/live/test_access.py", 130: "tests/cli/test_main.py"}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Shell]:
    with demo(tmp_path) as running:
        yield running


@pytest.mark.parametrize(("code", "line", "before"), CASES)
@needs_root
def test_a_line_ends_with_its_code(code: int, line: str, before: str, fresh: Shell) -> None:
    if before:
        fresh.run(before)
    done = fresh.run(line)
    assert done.returncode == code, f"{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr


def test_every_row_of_the_man_page_is_run() -> None:
    page = (CHECKOUT / "docs/man/kerntune.1").read_text(encoding="utf-8")
    table = page.partition(".Sh EXIT STATUS\n")[2].partition(".Sh EXAMPLES")[0]
    rows = {int(code) for code in re.findall(r"^\.It ([0-9]+)$", table, re.MULTILINE)}
    assert rows == {code for code, *_ in [*CASES, *CODES]} | ELSEWHERE.keys()
