"""Finding targets in what the daemon describes."""

from __future__ import annotations

import pytest

from kerntune.api import document as answers
from kerntune.errors import Failed, InvalidValue, NoSuchTarget, NotSupported, UnknownTunable
from tests.cli.scripted import DRIVES, OVERCOMMIT, POOLS, document

HOST = document([*DRIVES, *POOLS, OVERCOMMIT])


@pytest.mark.parametrize(
    ("tunable", "pattern", "instances"),
    [
        ("io-scheduler", "", ["nvme0n1", "nvme1n1", "sda"]),
        ("io-scheduler", "*", ["nvme0n1", "nvme1n1", "sda"]),
        ("io-scheduler", "nvme*", ["nvme0n1", "nvme1n1"]),
        ("io-scheduler", "nvme[1-9]n1", ["nvme1n1"]),
        ("io-scheduler", "by-id/nvme-Fast_2", ["nvme1n1"]),
        ("io-scheduler", "by-id/*", ["nvme0n1", "nvme1n1"]),
        ("hugepages", "*", ["2M", "2M/node0", "1G"]),
        ("hugepages", "2M", ["2M"]),
        ("hugepages", "2M/*", ["2M/node0"]),
        ("overcommit", "", [""]),
    ],
)
def test_find(tunable: str, pattern: str, instances: list[str]) -> None:
    assert [row["instance"] for row in answers.find(HOST, tunable, pattern)] == instances


def test_what_is_not_found_names_what_there_is() -> None:
    with pytest.raises(NoSuchTarget, match=r"nothing matches io-scheduler@vda\. There are nvme0n1, nvme1n1, sda"):
        answers.find(HOST, "io-scheduler", "vda")


@pytest.mark.parametrize(
    ("tunable", "pattern", "said"),
    [("overcommit", "x", "one setting of the host"), ("hugepages", "2*", "not a pool of huge pages")],
)
def test_what_is_no_pattern_is_told_as_set_tells_it(tunable: str, pattern: str, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        answers.find(HOST, tunable, pattern)


def test_a_supported_tunable_may_have_no_target_now() -> None:
    with pytest.raises(NoSuchTarget, match="This host has no io-scheduler now"):
        answers.find(document(), "io-scheduler", "*")


def test_an_unsupported_tunable_says_why() -> None:
    with pytest.raises(NotSupported, match="no cpufreq driver"):
        answers.find(HOST, "cpu-governor", "*")


def test_an_unknown_tunable_names_those_there_are() -> None:
    with pytest.raises(
        UnknownTunable, match=r"'governor'\. There are cpu-governor, hugepages, io-scheduler, overcommit"
    ):
        answers.find(HOST, "governor", "*")


def test_a_daemon_of_another_version_is_told() -> None:
    older = document([OVERCOMMIT])
    older["tunables"] = [{key: value for key, value in row.items() if key != "kind"} for row in older["tunables"]]  # type: ignore[misc]  # as it was before
    with pytest.raises(Failed, match=r"another version.*systemctl restart kerntuned"):
        answers.find(older, "overcommit", "")
