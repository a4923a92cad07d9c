"""The linters, the type checker and the import layers find nothing, and what `make generated` makes is up to date."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools import completions, config_reference, dbus_manual

from tests.harness import CHECKOUT

TOOLS = Path(sys.executable).parent

# A first run of mypy, without its cache, on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("lint-imports --no-cache", id="layers"),
        pytest.param("ruff check --no-cache .", id="ruff"),
        pytest.param("ruff format --no-cache --check .", id="format"),
        pytest.param("mypy --strict src tests tools", id="mypy"),
    ],
)
def test_tool_finds_nothing(command: str) -> None:
    program, *options = command.split()
    done = subprocess.run(
        [str(TOOLS / program), *options], cwd=CHECKOUT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sources_are_modules_and_tables_and_no_leftovers() -> None:
    """The package takes whatever lies there."""
    found = {path.name for path in (CHECKOUT / "src/kerntune").rglob("*") if path.is_file()}
    assert [name for name in sorted(found) if not name.endswith((".py", ".pyc", ".toml", "py.typed"))] == []


GENERATED = (completions.BASH, completions.ZSH, config_reference.FILE, config_reference.MANUAL, dbus_manual.MANUAL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run it in a copy of the generators, beside files that are out of date; their environment is that of the tests."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(CHECKOUT / "Makefile", folder)
    shutil.copytree(CHECKOUT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for file in GENERATED:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("out of date\n")
    # The rest of this page is written by hand.
    page = (CHECKOUT / config_reference.MANUAL).read_text()
    (folder / config_reference.MANUAL).write_text(page.replace(config_reference.manual_lists(), "out of date\n"))
    command = ["make", "--assume-old=setup", f"VENV={Path(sys.executable).parents[1]}", "generated"]
    source = os.environ | {"PYTHONPATH": str(CHECKOUT / "src")}
    done = subprocess.run(command, cwd=folder, env=source, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.parametrize("file", GENERATED)
def test_it_is_up_to_date(made: Path, file: str) -> None:
    assert (made / file).read_text() == (CHECKOUT / file).read_text(), "make generated brings it up to date"


def test_setup_leaves_alone_what_a_link_points_at(tmp_path: Path) -> None:
    """As in a second work tree that shares the environment of the first; `--clear` of venv goes through a link."""
    shared, second = tmp_path / "shared", tmp_path / "second"
    shared.mkdir()
    (shared / "kept").touch()
    second.mkdir()
    (second / ".venv").symlink_to(shared)
    (second / "pyproject.toml").touch()
    shutil.copy(CHECKOUT / "Makefile", second)
    # `make test` has the make that it runs below it tell of its folder, and take what it was given.
    environment = {name: text for name, text in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "VENV"}}
    done = subprocess.run(
        ["make", "setup", "PYTHON=/bin/false"], cwd=second, env=environment, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == (
        f".venv is a link, and setup would clear {shared}: remove the link, or touch .venv/.ready if that will do\n"
    )
    assert [path.name for path in shared.iterdir()] == ["kept"]


def test_a_page_without_its_marks_is_told() -> None:
    with pytest.raises(ValueError, match="marks"):
        config_reference.inserted(".Dd\n")


@pytest.mark.parametrize(
    "command",
    [["bash", "-n", completions.BASH], ["zsh", "-n", completions.ZSH], ["shellcheck", "-s", "bash", completions.BASH]],
    ids=" ".join,
)
def test_the_shells_can_read_the_completions(command: list[str]) -> None:
    if command[0] == "shellcheck" and shutil.which("shellcheck") is None:
        return
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
