"""Hosts where the service is not started at boot: a call starts it, unless an administrator has masked it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.host import UNIT, Host


@pytest.fixture
def disabled(host: Host) -> Iterator[Host]:
    """The machine with the service disabled and stopped; it runs again after the test."""
    host.vm.check(f"systemctl disable --now {UNIT}")
    yield host
    host.vm.check(f"systemctl unmask {UNIT}; systemctl enable --now {UNIT}")


def test_a_call_starts_it_and_the_configuration_is_in_force(disabled: Host) -> None:
    disabled.vm.write("/etc/kerntune/kerntune.d/test.toml", '[hugepages]\n"2M" = "64M"\n')
    assert disabled.unit("ActiveState") == "inactive"
    assert disabled.describe(user="alice")["claims"]
    disabled.vm.wait_for(f"systemctl is-active --quiet {UNIT}")
    assert disabled.pages() == 32
    assert disabled.unit("UnitFileState") == "disabled"
    disabled.vm.check("rm /etc/kerntune/kerntune.d/test.toml && kerntune reload")
    assert disabled.pages() == 0


def test_masked_it_stays_off(disabled: Host) -> None:
    disabled.vm.check(f"systemctl mask {UNIT}")
    refused = disabled.set(("hugepages", "2M", "16"))
    assert "masked" in refused.refusal
    assert disabled.vm.run("kerntune status").status == 5
    assert disabled.unit("ActiveState") == "inactive"
    assert disabled.pages() == 0
