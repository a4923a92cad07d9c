"""`make generated` makes every generated file anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools import completions, config_reference, dbus_manual

CHECKOUT = Path(__file__).parents[2]
GENERATED = (completions.BASH, completions.ZSH, config_reference.FILE, config_reference.MANUAL, dbus_manual.MANUAL)


def test_one_command_makes_them_all(tmp_path: Path) -> None:
    """In a copy of the generators, beside files that are out of date; their environment is that of the tests."""
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    shutil.copytree(CHECKOUT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for file in GENERATED:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("out of date\n")
    # The rest of this page is written by hand.
    page = (CHECKOUT / config_reference.MANUAL).read_text()
    (tmp_path / config_reference.MANUAL).write_text(page.replace(config_reference.manual_lists(), "out of date\n"))
    command = ["make", "--assume-old=setup", f"VENV={Path(sys.executable).parents[1]}", "generated"]
    source = os.environ | {"PYTHONPATH": str(CHECKOUT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=source, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [file for file in GENERATED if (tmp_path / file).read_text() != (CHECKOUT / file).read_text()] == []
