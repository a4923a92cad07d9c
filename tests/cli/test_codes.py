"""Which exit code outcomes amount to: what was done, what set would do, what verify found."""

from __future__ import annotations

import pytest

from kerntune.cli.codes import exit_code, foreseen, is_lacking, verified
from kerntune.errors import Exit
from kerntune.model import State
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
        ([], Exit.OK),
        ([("a", "planned", "ok"), ("b", "satisfied", "ok")], Exit.OK),
        ([("a", "planned", "ok"), ("b", "refused", "over-limit")], Exit.FAILED),
        ([("a", "planned", "ok"), ("a", "refused", "over-limit")], Exit.FAILED),
        ([("a", "partial", "over-limit")], Exit.PARTLY),
        ([("a", "unsupported", "value-not-offered")], Exit.USAGE),
        ([("a", "unsupported", "value-not-offered"), ("b", "planned", "ok")], Exit.USAGE),
        ([("a", "unsupported", "value-not-offered"), ("a", "planned", "ok")], Exit.PARTLY),
        ([("a", "unsupported", "read-only")], Exit.FAILED),
        ([("a", "unsupported", "no-such-target")], Exit.NOT_FOUND),
        ([("a", "unsupported", "no-such-target"), ("b", "planned", "ok")], Exit.PARTLY),
        ([("a", "unsupported", "cpu-offline"), ("a", "planned", "ok")], Exit.PARTLY),
        ([("a", "unsupported", "device-gone"), ("b", "planned", "ok")], Exit.NOT_FOUND),
        ([("a", "overridden", "overridden")], Exit.FAILED),
        ([("a", "contested", "changed-by-others"), ("b", "planned", "ok")], Exit.FAILED),
    ],
)
def test_what_set_would_end_with(rows: list[tuple[str, str, str]], code: Exit) -> None:
    """Each row: the value of the setting it belongs to, state, reason."""
    assert foreseen([outcome("io-scheduler", state, requested=to, reason=why) for to, state, why in rows]) is code


@pytest.mark.parametrize(("wrong", "satisfied", "code"), [(0, 0, 0), (0, 3, 0), (2, 3, 6), (2, 0, 1)])
def test_verified(wrong: int, satisfied: int, code: int) -> None:
    assert verified(wrong=wrong, satisfied=satisfied) == code


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
    assert is_lacking(row, claim(name, "none", matches=matches)) is lacking
    assert not is_lacking(row._replace(state="failed"), claim(name, "none", matches=matches))
    assert not is_lacking(row, None)


def test_every_state_has_an_exit_code() -> None:
    assert {exit_code([outcome("overcommit", state)]) for state in State} == {0, 1, 3, 6}
