"""How settings are written on the command line: what is split where, and what is no setting."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune import syntax
from kerntune.errors import Usage


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("hugepages=128", ("hugepages", "", "128")),
        ("hugepages=64G", ("hugepages", "", "64G")),
        ("hugepages@1024MiB/node1=1g", ("hugepages", "1024MiB/node1", "1g")),
        ("io-scheduler@nvme*=none", ("io-scheduler", "nvme*", "none")),
        ("io-scheduler@by-id/nvme-a=b@c=none", ("io-scheduler", "by-id/nvme-a=b@c", "none")),
        ("read-ahead=4.5M", ("read-ahead", "*", "4.5M")),
        ("overcommit=always:95", ("overcommit", "*", "always:95")),
        ("no-such-thing=5", ("no-such-thing", "*", "5")),
    ],
)
def test_a_setting_is_sent_as_it_is_typed(text: str, setting: tuple[str, str, str]) -> None:
    assert syntax.setting(text) == setting


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no value"),
        ("hugepages", "has no value"),
        ("hugepages=", "has no value"),
        ("hugepages@2M", "has no value"),
        ("=5", "names no tunable"),
        ("@2M=5", "names no tunable"),
        ("hugepages@=5", "no instances after the @"),
        ("io-scheduler=no\x1b[2Jne", "cannot be printed"),
        ("io-scheduler@\udcff=none", "cannot be printed"),
    ],
)
def test_a_setting_that_cannot_be_read(text: str, complaint: str) -> None:
    with pytest.raises(Usage, match=complaint):
        syntax.setting(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hugepages", ("hugepages", "*")),
        ("hugepages@2MiB/node0", ("hugepages", "2MiB/node0")),
        ("io-scheduler@nvme*", ("io-scheduler", "nvme*")),
        ("io-scheduler@by-id/a=b", ("io-scheduler", "by-id/a=b")),
    ],
)
def test_a_name(text: str, what: tuple[str, str]) -> None:
    assert syntax.what(text) == what


@pytest.mark.parametrize("text", ["", "@2M", "hugepages@", "hugepages=5", "sda\n"])
def test_no_name(text: str) -> None:
    with pytest.raises(Usage):
        syntax.what(text)


@given(st.text())
def test_any_text_is_a_setting_or_a_usage_error(text: str) -> None:
    with suppress(Usage):
        assert syntax.setting(text).value
