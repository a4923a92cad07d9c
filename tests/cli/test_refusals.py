"""What people read when they are refused, beside a daemon on the simulated host: short, and in their own words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import needs_root
from tests.harness.command import Shell, demo

pytestmark = needs_root


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with demo(tmp_path_factory.mktemp("programs")) as beside:
        yield beside


def refused(shell: Shell, words: str, code: int) -> str:
    """Return what a command that is refused with this exit code says."""
    done = shell.run(f"kerntune {words}")
    assert (done.returncode, done.stdout) == (code, ""), done
    return done.stderr


class TestNotThere:
    """One text, whichever verb is asked; it lists a handful, however much there is."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("cpu-governor@500", "performance"),
            ("cpu-governor@policy500", "performance"),
            ("hugepages@64K", "1"),
            ("hugepages@2M/node9", "1"),
            ("io-scheduler@sdzz", "none"),
            ("sysctl@vm.dirty_ratio", "5"),
            ("thp@shmem_enabled", "always"),
        ],
    )
    def test_get_and_set_say_the_same(self, name: str, value: str, shell: Shell) -> None:
        said = refused(shell, f"get {name}", 3)
        assert refused(shell, f"set {name}={value}", 3) == said
        assert len(said.splitlines()) == 2

    def test_a_cpu(self, shell: Shell) -> None:
        said = "kerntune: cpu-governor has no CPU 500\n  There are CPUs 0-7\n"
        assert refused(shell, "set cpu-governor@500=performance", 3) == said
