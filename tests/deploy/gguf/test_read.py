"""A file's own account of itself is read without trust: damage is an error of ours, at once."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFReader

from llamafarm.deploy.gguf.read import read_header
from llamafarm.deploy.gguf.types import quantization_in
from llamafarm.errors import ModelError

NUM_MUTATIONS = 400


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Any,
    random_model: Callable[..., Any],
    saved: Callable[..., Path],
    write_file: Callable[..., Path],
) -> Path:
    """A small file of ours."""
    return write_file(saved(random_model("llama"), tmp_path_factory.mktemp("m")), tokenizer, "q8_0")


def test_it_reads_what_the_gguf_library_reads(written: Path) -> None:
    ours, theirs = read_header(written), GGUFReader(written)
    assert {name: held.type for name, held in ours.tensors.items()} == {
        tensor.name: tensor.tensor_type for tensor in theirs.tensors
    }
    assert {name: held.shape for name, held in ours.tensors.items()} == {
        tensor.name: tuple(reversed([int(length) for length in tensor.shape])) for tensor in theirs.tensors
    }
    for name, value in ours.metadata.items():
        assert theirs.fields[name].contents() == pytest.approx(value), name
    assert ours.array_lengths["tokenizer.ggml.tokens"] == 3072
    assert ours.tensors["blk.0.attn_q.weight"].type == GGMLQuantizationType.Q8_0
    assert quantization_in(written) == "q8_0"


def mutate(whole: bytes, generator: random.Random) -> bytes:
    """Return a file with something wrong in its header: cut, flipped, or with an absurd number in it."""
    changed = bytearray(whole)
    kind = generator.randrange(4)
    place = generator.randrange(3000 if generator.random() < 0.7 else 90_000)
    if kind == 0:
        return bytes(changed[:place])
    if kind == 1:
        changed[place] ^= 1 << generator.randrange(8)
    elif kind == 2:
        changed[place : place + 8] = generator.choice([b"\xff" * 8, b"\xff" * 7 + b"\x7f", bytes(8)])
    else:
        changed[place : place + 4] = generator.randbytes(4)
    return bytes(changed)


def test_mutated_headers_are_read_or_refused_in_little_time_and_memory(written: Path, tmp_path: Path) -> None:
    whole, generator = written.read_bytes(), random.Random(0)
    path, num_refused = tmp_path / "m.gguf", 0
    tracemalloc.start()
    for _ in range(NUM_MUTATIONS):
        path.write_bytes(mutate(whole, generator))
        started = time.monotonic()
        try:
            read_header(path)
        except ModelError as error:
            num_refused += 1
            assert "not a whole GGUF file" in error.problem
        assert time.monotonic() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert num_refused > NUM_MUTATIONS // 3


def test_what_convert_does_not_write_is_refused(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    key = b"general.file_type"
    place = whole.index(key) + len(key) + 4
    (tmp_path / "m.gguf").write_bytes(whole[:place] + (24).to_bytes(4, "little") + whole[place + 4 :])
    with pytest.raises(ModelError, match="number 24, which `convert` does not write"):
        quantization_in(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        read_header(tmp_path / "nothing.gguf")
