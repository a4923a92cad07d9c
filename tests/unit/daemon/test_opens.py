"""Each file of the configuration and of the profile is read once in a reload, also in the first one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.harness.polkitd import CHECKOUT

# In a process of its own: an audit hook cannot be removed again.
SCRIPT: Final = """
import asyncio, json, sys
from collections import Counter
from pathlib import Path

from kerntune.config.active import ActiveConfig
from tests.unit.lab import large_host, running

FOLDER = Path(sys.argv[1])
opened = Counter()


def count(event, arguments):
    if event == "open" and str(arguments[0]).startswith(str(FOLDER / "etc")):
        opened[str(Path(arguments[0]).relative_to(FOLDER / "etc"))] += 1


async def main():
    sys.addaudithook(count)
    async with running(large_host()) as lab:
        config = ActiveConfig(FOLDER / "etc", FOLDER / "run", lab.engine, set())
        config.start()
        config.booted()
        counts = [dict(opened)]
        for text in sys.argv[2:]:
            (FOLDER / "etc/kerntune.d/20.toml").write_text(text)
            opened.clear()
            await config.reload()
            counts.append(dict(opened))
        print(json.dumps(counts))


asyncio.run(main())
"""
FILES: Final = {
    "kerntune.toml": "# nothing\n[limits]\n",
    "kerntune.d/10.toml": "",
    "kerntune.d/20.toml": "",
    "profiles/base.toml": '[io-scheduler]\n"sd*" = "none"\n',
    "profiles/one.toml": 'include = ["base"]\n',
    "profiles/mine.toml": 'include = ["base", "one"]\n',
}
CONFIG: Final = sorted(name for name in FILES if name.startswith("kerntune"))


@pytest.mark.parametrize("text", ['profile = "mine"\n', 'profile = "mine"\n[limits]\nclaims = 5\n'])
def test_each_file_is_opened_once(folder: Path, text: str) -> None:
    for name, content in FILES.items():
        (folder / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "etc" / name).write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), "", text, text],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    silent, again, first, second = json.loads(done.stdout)
    assert silent == dict.fromkeys(CONFIG, 1)
    assert again == silent
    assert first == second == dict.fromkeys(FILES, 1)
