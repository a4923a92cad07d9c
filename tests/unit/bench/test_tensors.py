"""Which parts of a file are loaded into buffers of their own, whatever is in its header."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.bench import tensors
from kerntune.bench.file import LEAST, header
from kerntune.bench.tensors import Part, parts_of

Parts = Callable[[bytes], list[Part]]


@pytest.fixture
def parts() -> Iterator[Parts]:
    """The parts of a file that holds these bytes."""
    with tempfile.TemporaryFile() as file:

        def of(data: bytes) -> list[Part]:
            file.truncate(0)
            os.pwrite(file.fileno(), data, 0)
            return parts_of(file.fileno(), len(data))

        yield of


def safetensors(head: Any, data: int = 100) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def tensor(begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [1], "data_offsets": [begin, end]}


def test_each_tensor_has_its_part(parts: Parts) -> None:
    data = safetensors(
        {"__metadata__": {"format": "pt"}, "b": tensor(60, 100), "none": tensor(60, 60), "a": tensor(0, 60)}
    )
    start = len(data) - 100
    assert parts(data) == [Part(start + 60, 40), Part(start, 60)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        bytes(8),
        b"GGUF" + bytes(1000),
        safetensors(b"{}"),
        safetensors(b"[1, 2]"),
        safetensors(b"\xff\xfe"),
        safetensors(b"[" * 100_000),
        safetensors(b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}"),
        safetensors({"a": tensor(0, 101)}),
        safetensors({"a": tensor(150, 160)}),
        safetensors({"a": tensor(-1, 100)}),
        safetensors({"a": tensor(60, 40)}),
        safetensors({"a": tensor(0.0, 40)}),
        safetensors({"a": tensor("0", 40)}),
        safetensors({"a": {"data_offsets": [0, 1, 2]}}),
        safetensors({"a": tensor(0, 10), "b": "no tensor"}),
        safetensors({"a": tensor(0, 10), "b": {}}),
        safetensors({f"{number}": tensor(0, 100) for number in range(2)}),
        safetensors({"a": tensor(0, 100)})[:-1],
        (1 << 63).to_bytes(8, "little") + bytes(100),
    ],
)
def test_a_file_without_a_sound_header_is_one_part(data: bytes, parts: Parts) -> None:
    assert parts(data) == [Part(0, len(data))]


def test_a_header_may_have_32_mib(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    data = safetensors({"a": tensor(0, 100)})
    assert tensors.LONGEST_HEADER == 32 << 20
    monkeypatch.setattr(tensors, "LONGEST_HEADER", len(data) - 108)
    assert parts(data) == [Part(len(data) - 100, 100)]
    monkeypatch.setattr(tensors, "LONGEST_HEADER", len(data) - 109)
    assert parts(data) == [Part(0, len(data))]


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(-5, 120), max_size=3) | st.none(), max_size=6))
def test_never_more_than_the_file_has(offsets: dict[str, list[int] | None]) -> None:
    data = safetensors({name: {"data_offsets": pair} for name, pair in offsets.items()})
    with tempfile.TemporaryFile() as file:
        os.pwrite(file.fileno(), data, 0)
        found = parts_of(file.fileno(), len(data))
    assert sum(part.size for part in found) <= len(data)
    assert all(part.offset >= 0 and part.size > 0 and part.offset + part.size <= len(data) for part in found)


@pytest.mark.parametrize("size", [LEAST, LEAST + 1, (1 << 20) + 77, 3 << 40])
def test_a_made_up_model_has_32_equal_tensors_up_to_its_end(size: int) -> None:
    head = header(size)
    offsets = [each["data_offsets"] for each in json.loads(head[8:]).values()]
    assert len(offsets) == 32
    assert [begin for begin, _ in offsets] == [0, *(end for _, end in offsets[:-1])]
    assert offsets[-1][1] == size - len(head)
    sizes = [end - begin for begin, end in offsets]
    assert len(set(sizes[:-1])) == 1
    assert 0 <= sizes[-1] - sizes[0] < 32
    assert int.from_bytes(head[:8], "little") == len(head) - 8
