"""Which exit code outcomes amount to: what was done, what set would do, what verify found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kerntune import cli
from kerntune.errors import Exit
from kerntune.model import State
from kerntune.results import exit_code, is_excused, profile_exit_code, verify_exit_code
from tests.cli.scripted import claim, outcome


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ("", Exit.OK),
        ("satisfied", Exit.OK),
        ("satisfied unmanaged", Exit.OK),
        ("planned", Exit.OK),
        ("failed", Exit.FAILED),
        ("refused", Exit.FAILED),
        ("overridden", Exit.FAILED),
        ("contested", Exit.FAILED),
        ("pondering", Exit.FAILED),
        ("failed unsupported", Exit.FAILED),
        ("unsupported", Exit.NOT_FOUND),
        ("unsupported unsupported", Exit.NOT_FOUND),
        ("satisfied failed", Exit.PARTLY),
        ("satisfied unsupported", Exit.PARTLY),
        ("unmanaged overridden", Exit.PARTLY),
        ("partial", Exit.PARTLY),
        ("partial failed", Exit.PARTLY),
        ("partial unsupported", Exit.PARTLY),
    ],
)
def test_exit_code(states: str, code: Exit) -> None:
    assert exit_code([outcome("overcommit", state) for state in states.split()]) is code


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ("", Exit.OK),
        ("overridden/config-wins", Exit.OK),
        ("satisfied/ok overridden/config-wins", Exit.OK),
        ("planned/ok overridden/config-wins unsupported/no-kernel-support", Exit.OK),
        ("overridden/overridden", Exit.FAILED),
        ("satisfied/ok overridden/overridden", Exit.PARTLY),
        ("satisfied/ok overridden/guard-limit", Exit.PARTLY),
        ("overridden/config-wins overridden/overridden", Exit.FAILED),
        ("overridden/config-wins failed/kernel-rejected", Exit.FAILED),
        ("overridden/config-wins unsupported/read-only", Exit.NOT_FOUND),
    ],
)
def test_what_a_profile_ends_with(rows: str, code: Exit) -> None:
    """The administrator's own file is no failure of it, nor is what the host lacks; what others claim is."""
    found = [row.split("/") for row in rows.split()]
    assert profile_exit_code([outcome("overcommit", state, reason=reason) for state, reason in found]) is code


@pytest.mark.parametrize(("wrong", "satisfied", "code"), [(0, 0, 0), (0, 3, 0), (2, 3, 6), (2, 0, 1)])
def test_verify_exit_code(wrong: int, satisfied: int, code: int) -> None:
    assert verify_exit_code(wrong=wrong, satisfied=satisfied) == code


@pytest.mark.parametrize(
    ("name", "matches", "reason", "lacking"),
    [
        ("profile:io-scheduler@vd*", [], "no-such-target", True),
        ("config:io-scheduler@sdz", [], "no-such-target", True),
        ("profile:cpu-governor@*", [], "no-kernel-support", True),
        ("config:io-scheduler@*", ["sda"], "value-not-offered", True),
        ("profile:sysctl@kernel.numa_balancing", ["kernel.numa_balancing"], "read-only", False),
        ("persistent:io-scheduler@vd*", [], "no-such-target", True),
        ("persistent:io-scheduler@by-id/nvme-Fast_1", [], "no-such-target", False),
        ("runtime:cpu-governor@*", ["policy1"], "cpu-offline", True),
        ("runtime:cpu-governor@1", ["policy1"], "cpu-offline", False),
        ("runtime:io-scheduler@*", ["sda"], "value-not-offered", False),
    ],
)
def test_what_the_host_lacks(name: str, matches: list[str], reason: str, lacking: bool) -> None:
    row = outcome("io-scheduler@sda", "unsupported", reason=reason)
    assert is_excused(row, claim(name, "none", matches=matches)) is lacking
    assert not is_excused(row._replace(state="failed"), claim(name, "none", matches=matches))
    assert not is_excused(row, None)


def test_every_state_has_an_exit_code() -> None:
    assert {exit_code([outcome("overcommit", state)]) for state in State} == {0, 1, 3, 6}


def test_what_the_configuration_overrides_is_excused() -> None:
    row = outcome("hugepages@2M", "overridden", reason="config-wins")
    assert is_excused(row, claim("profile:hugepages@2M", "40"))
    assert not is_excused(row._replace(reason="overridden"), claim("profile:hugepages@2M", "40"))


def test_no_other_module_of_the_command_line_chooses_an_exit_code() -> None:
    chosen = {
        (path.name, name)
        for path in Path(cli.__path__[0]).glob("*.py")
        for name in re.findall(r"\bExit\.([A-Z_]+)", path.read_text(encoding="utf-8"))
    }
    assert {name for _, name in chosen} == {"OK"}, chosen
