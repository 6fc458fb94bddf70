"""A model of the Hub is looked at before it is fetched, and nothing is fetched that loading does not read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import HubServer, serving_hub
from safetensors.torch import load_file, save

from llamafarm.deploy.source import folder_of
from llamafarm.errors import LlamaFarmError, ModelError
from llamafarm.model.load import Base, load_config, load_model, load_tokenizer

NEVER = {
    "pytorch_model.bin": b"\x80\x04N.",
    "model.pt": b"\x80\x04N.",
    "tokenizer.pkl": b"\x80\x04N.",
    "modeling_x.py": b"raise SystemExit",
    "consolidated.safetensors": b"not asked for",
    "onnx/config.json": b"{}",
    "original/model.safetensors": b"",
    "README.md": b"# x",
}


@pytest.fixture
def files(tiny_base: Path) -> dict[str, bytes]:
    """The files of a model, and others that stand beside them on the Hub."""
    return {path.name: path.read_bytes() for path in tiny_base.iterdir()} | NEVER


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving_hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base("o/model", "o/model", str(tmp_path / "cache"))


def load(base: Base) -> torch.nn.Module:
    load_tokenizer(base)
    load_config(base)
    return load_model(base, dtype=torch.float32, device=torch.device("cpu"))


def in_shards(files: Mapping[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """Return the same model with its weights in two files."""
    (tmp_path / "whole").write_bytes(files["model.safetensors"])
    tensors = load_file(tmp_path / "whole")
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    shards = {
        file: save({name: tensors[name] for name in names}, {"format": "pt"})
        for file, names in halves.items()
    }
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    rest = {name: content for name, content in files.items() if name != "model.safetensors"}
    return {**rest, **shards, "model.safetensors.index.json": json.dumps(index).encode()}


def test_only_what_loading_reads_is_fetched_and_the_weights_when_they_are_loaded(
    hub: HubServer, base: Base, files: dict[str, bytes]
) -> None:
    hub.models["o/model"] = files
    load_tokenizer(base)
    load_config(base)
    assert set(hub.fetched) == set(files) - set(NEVER) - {"model.safetensors"}
    load(base)
    assert set(hub.fetched) == set(files) - set(NEVER)


def test_shards_are_fetched_as_the_index_names_them(
    hub: HubServer, base: Base, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.models["o/model"] = in_shards(files, tmp_path)
    load(base)
    assert {"a.safetensors", "b.safetensors"} <= set(hub.fetched)
    assert not set(NEVER) & set(hub.fetched)
    assert folder_of(base).name == "1234567890" * 4


def test_what_is_cached_is_loaded_without_the_hub(
    hub: HubServer, base: Base, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["o/model"] = files
    load(base)
    hub.fetched.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load(base)
    hub.models["o/model"] = {**files, "config.json": b'{"model_type": "x\\nimport os"}'}
    load(base)
    assert hub.fetched == []


@pytest.mark.parametrize("gone", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_fetch_that_broke_off_goes_on(
    hub: HubServer, base: Base, files: dict[str, bytes], gone: str
) -> None:
    hub.models["o/model"] = files
    load(base)
    for path in Path(base.cache_dir or "").rglob(gone):
        path.resolve().unlink()
        path.unlink()
    hub.fetched.clear()
    load(base)
    assert set(hub.fetched) == {gone}


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ({"model.safetensors": None}, "pickled ones are never read"),
        ({"adapter_config.json": b"{}"}, "is an adapter"),
    ],
)
def test_what_names_tell_is_refused_before_anything_is_fetched(
    hub: HubServer, base: Base, files: dict[str, bytes], spoilt: dict[str, bytes | None], words: str
) -> None:
    changed = {**files, **spoilt, "consolidated.safetensors": None}
    hub.models["o/model"] = {name: content for name, content in changed.items() if content is not None}
    for act in (load_tokenizer, load_config, load, folder_of):
        with pytest.raises(ModelError, match=words):
            act(base)
    assert hub.fetched == []
    assert not list(Path(base.cache_dir or "").rglob("*.json"))


@pytest.mark.parametrize(
    "spoilt",
    [
        {"config.json": b'{"model_type": "x", "text_config": {"trust_remote_code": true}}'},
        {"model.safetensors.index.json": b'{"weight_map": {"w": "../../../../stolen.safetensors"}}'},
        {"tokenizer_config.json": b'{"tokenizer_class": "X; import os"}'},
    ],
    ids=["code", "a shard above", "a tokenizer of code"],
)
def test_what_settings_tell_is_refused_before_weights_are_fetched(
    hub: HubServer, base: Base, files: dict[str, bytes], spoilt: dict[str, bytes]
) -> None:
    hub.models["o/model"] = files | spoilt
    for act in (load_tokenizer, load_config, load, folder_of):
        with pytest.raises(LlamaFarmError, match="is not loaded"):
            act(base)
    assert not [name for name in hub.fetched if name.endswith((".safetensors", ".bin", ".py"))]
