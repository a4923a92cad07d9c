"""Holds on the real kernel: whose they are, who may end them, and what a killed client leaves behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kerntune import errors
from kerntune.api.names import HOLD, MANAGER
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.live.users import LIMIT, RUNTIME, Options, User

COUNT = 64  # pages
AWAY = 0.05 + 0.01 * COUNT / 1000  # seconds after the end of a client, on a quiet host
MANY = 20
PROGRAM = f"""
import sys, kerntune
with kerntune.hold("hugepages={COUNT}", who="pytorch", why="serve") as held:
    print(held.outcomes[0].actual, flush=True)
    sys.stdin.read()
"""


def hold(user: User, options: Options = RUNTIME) -> str:
    settings = [["hugepages", host.pool(), str(COUNT)]]
    path, _ = user.call(MANAGER, "Hold", "a(sss)ssa{sv}", settings, "job", "", dict(options))
    return str(path)


def release(user: User, path: str) -> None:
    user.call(HOLD, "Release", "a{sv}", {}, path=path)


@contextmanager
def program(user: User) -> Iterator[subprocess.Popen[str]]:
    """Run a program that holds pages, as it stands in the documentation."""
    argv = user.argv(sys.executable, "-c", PROGRAM)
    with subprocess.Popen(
        argv, env=user.environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert int(running.stdout.readline()) >= COUNT
            yield running
        finally:
            running.kill()


def until_there_are(pages: int) -> float:
    """Wait until the pool has so many, and return the seconds."""
    began = time.monotonic()
    while host.pages() != pages:
        assert time.monotonic() - began < LIMIT
        time.sleep(0.001)
    return time.monotonic() - began


def test_a_member_holds_and_an_outsider_does_not(daemon: Daemon, member: User, other: User) -> None:
    before = host.pages()
    with pytest.raises(errors.InteractiveAuthorizationRequired):
        hold(other)
    assert host.pages() == before
    path = hold(member)
    assert host.pages() == before + COUNT
    release(member, path)
    assert host.pages() == before


def test_nobody_ends_what_is_anothers_but_who_manages(daemon: Daemon, root: User, member: User, other: User) -> None:
    before = host.pages()
    theirs, ours = hold(member), hold(root)
    for user, path in ((other, theirs), (member, ours)):
        with pytest.raises(errors.NotOwner, match="is not yours"):
            release(user, path)
    assert host.pages() == before + 2 * COUNT
    for path in (theirs, ours):
        release(root, path)
    assert host.pages() == before


def test_another_connection_of_the_same_user_may_end_it(daemon: Daemon, member: User) -> None:
    before = host.pages()
    path = hold(member)
    member.call(HOLD, "Release", "a{sv}", {}, path=path, client=1)
    assert host.pages() == before


def test_to_detach_a_hold_takes_an_administrator(daemon: Daemon, root: User, member: User) -> None:
    before = host.pages()
    options = {"detached": ["b", True], "ttl-usec": ["t", 500_000]}
    with pytest.raises(errors.InteractiveAuthorizationRequired):
        hold(member, options)
    hold(root, options)
    assert host.pages() == before + COUNT
    until_there_are(before)


def test_a_program_that_is_killed_leaves_nothing(daemon: Daemon, member: User) -> None:
    before, times = host.pages(), []
    for _ in range(MANY):
        with program(member) as running:
            assert host.pages() == before + COUNT
            running.kill()
            times.append(until_there_are(before))
            running.wait(LIMIT)
    times.sort()
    sys.stdout.write(f"back after {times[MANY // 2] * 1e3:.0f} ms, the slowest {times[-1] * 1e3:.0f} ms\n")
    # A busy machine delays most of them, but not a quarter.
    assert times[MANY // 4] < AWAY


def test_a_program_that_ends_in_order_releases_what_it_has(daemon: Daemon, member: User) -> None:
    before = host.pages()
    with program(member) as running:
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(LIMIT) == 0
    assert host.pages() == before
