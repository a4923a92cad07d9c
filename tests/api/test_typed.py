"""Properties of the typed interfaces have values of their types, whatever the kernel holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from kerntune.api.calls import Calls
from kerntune.api.typed import Memory
from tests.unit.lab import running, small_host


@pytest.mark.parametrize(("ratio", "kbytes"), [(-5, 0), (0, (1 << 64) - 1)])
async def test_a_limit_that_nobody_would_set(ratio: int, kbytes: int) -> None:
    kernel = small_host()
    kernel.overcommit |= {"ratio": ratio, "kbytes": kbytes}
    async with running(kernel) as lab:
        memory = Memory(cast(Calls, SimpleNamespace(engine=lab.engine)))
        assert memory.overcommit_ratio == 0
        assert 0 < memory.commit_limit < 1 << 64
