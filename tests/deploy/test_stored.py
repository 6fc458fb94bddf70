"""Weights in safetensors files: written as the library reads them, and read without trust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llamafarm.deploy.stored import Entry, StoredWeights, write_safetensors
from llamafarm.errors import ModelError


class Held:
    """Tensors in memory, as weights."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.entries = {name: Entry(tuple(one.shape), one.dtype) for name, one in tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor."""
        return self._tensors[name]


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    most=st.integers(1, 400),
)
def test_what_is_written_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype, most: int
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    tensors = {f"w{n}.weight": torch.randn(shape).to(dtype) for n, shape in enumerate(shapes)}
    write_safetensors(folder, Held(tensors), most_shard_bytes=most)
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with StoredWeights(folder) as stored:
        assert stored.entries == Held(tensors).entries
        assert all(torch.equal(stored.read(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path.parent / "outside.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="not a file of this folder"):
        StoredWeights(tmp_path)


def test_damaged_and_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is neither"):
        StoredWeights(tmp_path)
    save_file({"a": torch.zeros(9)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-3])
    with pytest.raises(ModelError, match="cannot be read"):
        StoredWeights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="the index is damaged"):
        StoredWeights(tmp_path)


def test_weights_in_fewer_bits_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(4, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="held as U8"):
        StoredWeights(tmp_path)
