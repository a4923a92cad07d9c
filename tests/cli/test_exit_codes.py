"""Every exit status of kerntune(1), each as a shell on the simulated host meets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import needs_root
from tests.harness import CHECKOUT
from tests.harness.command import Shell, demo

pytestmark = needs_root

PART: Final = "kerntune set hugepages@1G=1000 --allow-partial"  # more than there is: a part is had

# The rows of the man page: a line that ends so, and what is to be done before it.
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
    (2, "kerntune set hugepages", ""),
    (2, "kerntune set overcommit=sometimes", ""),
    (2, "kerntune status --nonsense", ""),
    (2, "kerntune nonsense", ""),
    (2, "kerntune set cpu-governor=nosuch", ""),
    (3, "kerntune get nosuch", ""),
    (3, "kerntune set nosuch=1", ""),
    (3, "kerntune unset nosuch", ""),
    (3, "kerntune hold nosuch=1 --ttl 1s", ""),
    (3, "kerntune list nosuch", ""),
    (3, "kerntune status nosuch", ""),
    (3, "kerntune verify nosuch", ""),
    (3, "kerntune explain nosuch", ""),
    (3, "kerntune get sysctl@vm.nosuch", ""),
    (3, "kerntune set sysctl@vm.nosuch=1", ""),
    (3, "kerntune get io-scheduler@nvme77n1", ""),
    (3, "kerntune set io-scheduler@nvme77n1=none", ""),
    (3, "kerntune status io-scheduler@nvme77n1", ""),
    (3, "kerntune profile set nosuch", ""),
    (3, "kerntune profile show nosuch", ""),
    (3, "kerntune release 77", ""),
    (5, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent kerntune status", ""),
    (6, PART, ""),
)
# These have tests of their own, with an ordinary user and with Ctrl-C.
ELSEWHERE: Final = {4: "tests/live/test_access.py", 130: "tests/cli/test_main.py"}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with demo(tmp_path) as running:
        yield running


@pytest.mark.parametrize(("code", "line", "before"), CASES)
def test_a_line_ends_with_its_code(code: int, line: str, before: str, shell: Shell) -> None:
    if before:
        shell.run(before)
    done = shell.run(line)
    assert done.returncode == code, f"{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr


def test_every_row_of_the_man_page_is_run() -> None:
    page = (CHECKOUT / "docs/man/kerntune.1").read_text(encoding="utf-8")
    table = page.partition(".Sh EXIT STATUS\n")[2].partition(".Sh EXAMPLES")[0]
    rows = {int(code) for code in re.findall(r"^\.It ([0-9]+)$", table, re.MULTILINE)}
    assert rows == {code for code, *_ in CASES} | ELSEWHERE.keys()
