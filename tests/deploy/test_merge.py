"""Merged weights are what PEFT makes of them, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafarm.deploy.merge import MergedWeights, read_adapter_folder
from llamafarm.deploy.stored import StoredWeights, write_safetensors
from llamafarm.errors import ModelError

Make = Callable[..., tuple[Path, Any]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "r": 6},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"bias": "lora_only", "family": "llama-tied-with-biases"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["qkv_proj", "gate_up_proj"], "family": "phi3"},
        {"target_modules": ["q_proj", "embed_tokens"], "family": "llama"},
        {"target_modules": ["q_proj", "lm_head"], "family": "qwen2-tied"},
        {"target_modules": ["q_proj", "embed_tokens"], "family": "qwen2-tied"},
        {"modules_to_save": ["embed_tokens"], "family": "qwen2-tied"},
    ],
    ids=str,
)
def test_merged_weights_are_those_of_peft(
    make_adapter: Make, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder, adapted = make_adapter(settings.pop("family", "llama"), **settings)
    adapter = read_adapter_folder(folder)
    with StoredWeights(folder.parent / "base") as base:
        merged = MergedWeights(base, adapter, where="here")
        write_safetensors(tmp_path, merged, most_shard_bytes=200_000)
        unties = merged.unties_head
    config = json.loads((folder.parent / "base" / "config.json").read_text())
    config["tie_word_embeddings"] = config.get("tie_word_embeddings", False) and not unties
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1, "it is written in several files"
    ours = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        found = ours(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sums_are_rounded_once_to_the_numbers_of_the_base(make_adapter: Make, tmp_path: Path) -> None:
    folder, _ = make_adapter()
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "base", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    adapter = read_adapter_folder(folder)
    name = "model.layers.1.self_attn.q_proj.weight"
    change = adapter.changes[name]
    with StoredWeights(tmp_path / "half") as base:
        merged = MergedWeights(base, adapter, where="here")
        exact = base.read(name).float() + change.scaling * (change.up_Or @ change.down_rI)
        assert torch.equal(merged.read(name), exact.to(torch.bfloat16))
        assert torch.equal(merged.exact().read(name), exact)
        assert merged.exact().entries[name].dtype == torch.float32
        assert merged.exact().read("model.norm.weight").dtype == torch.bfloat16


def test_an_adapter_of_another_base_is_refused(make_adapter: Make) -> None:
    folder, _ = make_adapter()
    other, _ = make_adapter("llama-wide-heads")
    with StoredWeights(other.parent / "base") as base, pytest.raises(ModelError) as caught:
        MergedWeights(base, read_adapter_folder(folder), where="here")
    assert "k_proj" in caught.value.problem and "(64, 64) in this base" in caught.value.problem
    phi, _ = make_adapter("phi3", target_modules=["qkv_proj"])
    with StoredWeights(other.parent / "base") as base, pytest.raises(ModelError, match="is not in this base"):
        MergedWeights(base, read_adapter_folder(phi), where="here")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"trainable_token_indices": [3]}, "LoRA with trainable_token_indices"),
        ({"r": 5}, "at rank 5"),
    ],
)
def test_other_adapters_are_refused(make_adapter: Make, damage: dict[str, Any], problem: str) -> None:
    folder, _ = make_adapter()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | damage))
    with pytest.raises(ModelError, match=problem):
        read_adapter_folder(folder)


def test_half_an_adapter_and_none_are_refused(make_adapter: Make) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = make_adapter()
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "lora_B" not in name},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match="only lora_A is there"):
        read_adapter_folder(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="configuration cannot be read"):
        read_adapter_folder(folder)
