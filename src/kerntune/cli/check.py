"""The report of `kerntuned --check` on configuration files, which the command line only shows; asks no daemon."""

from __future__ import annotations

import json
import sys
from typing import Any, Final, TypedDict, cast

from kerntune.errors import Failed, NoSuchProfile

SECONDS: Final = 30.0
OPINIONS: Final = frozenset({0, 1})


class Problem(TypedDict):
    """What is wrong, and what is allowed; line 0 is the file as a whole, severity `error` or `warning`."""

    file: str
    line: int
    severity: str
    what: str
    allowed: str


class Report(TypedDict):
    """What the files say together."""

    files: list[str]
    claims: list[dict[str, str]]
    problems: list[Problem]


class ProfilePage(TypedDict):
    """What a profile says with all it includes; `who` is the profile that a claim stands in."""

    name: str
    summary: str
    file: str
    claims: list[dict[str, str]]
    problems: list[Problem]


async def check(place: str | None) -> Report:
    """The report on a folder or a file (None: the folder the daemon reads); raises Failed when there is none."""
    return cast(Report, await _ask("--check", *([place] if place else [])))


async def profile(name: str) -> ProfilePage:
    """What a profile says; raises NoSuchProfile."""
    said = await _ask("--profile", name)
    if error := said.get("error"):
        raise NoSuchProfile(error["what"], error["hint"])
    return cast(ProfilePage, said)


async def _ask(*options: str) -> dict[str, Any]:
    """What the daemon's module answers, which runs in a process of its own: it knows the tunables, we must not."""
    import asyncio  # noqa: PLC0415  # help should not wait for it

    # -P: a folder of that name where the user happens to be is not meant.
    argv = [sys.executable, "-P", "-m", "kerntune.daemon", "--json", *options]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        said, complaint = await asyncio.wait_for(process.communicate(), SECONDS)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise Failed(f"kerntuned {options[0]} does not end", "Is one of the files a device or on a network?") from error
    if process.returncode not in OPINIONS:
        raise Failed(f"kerntuned {options[0]} failed", complaint.decode(errors="replace").strip())
    return cast(dict[str, Any], json.loads(said))


def line_of(problem: Problem) -> str:
    """A problem as the daemon logs it."""
    where = f"{problem['file']}:{problem['line']}" if problem["line"] else problem["file"]
    severity = "" if problem["severity"] == "error" else f"{problem['severity']}: "
    return f"{where}: {severity}{'. '.join(filter(None, (problem['what'], problem['allowed'])))}"
