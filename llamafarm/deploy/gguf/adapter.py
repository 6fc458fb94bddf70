"""A LoRA adapter as a GGUF file of its own, for llama.cpp and Ollama to lay over its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch

from llamafarm.deploy.gguf.families import family_of
from llamafarm.deploy.merge import Adapter

_EMBEDDING = "model.embed_tokens.weight"


def why_not_carried(adapter: Adapter, config: Any) -> str | None:
    """Return what of an adapter such a file has no place for; None if it holds all of it."""
    if any(change.magnitude_O is not None for change in adapter.changes.values()):
        return "it is a DoRA, whose magnitudes the format does not have"
    if adapter.replaced:
        return f"it replaces {next(iter(adapter.replaced))}, beside its low-rank changes"
    if _EMBEDDING in adapter.changes or (config.tie_word_embeddings and adapter.changes_head):
        return "it changes the embedding, or an output layer that is the embedding too"
    return None


def adapter_tensors(adapter: Adapter, config: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Return the file's tensors in fp32, and the alpha that llama.cpp divides by each tensor's rank.

    There is one alpha for all: where scalings differ, the second factor makes up for it.
    """
    family = family_of(config)
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    first = next(iter(adapter.changes.values()))
    alpha = first.scaling * len(first.down_rI)
    tensors: dict[str, torch.Tensor] = {}
    for source, change in adapter.changes.items():
        name = names.get_name(source, try_suffixes=(".weight",))
        assert name is not None, source  # `plan_tensors` has seen that the base has it
        rank = len(change.down_rI)
        factor = change.scaling * rank / alpha
        # Its rows are the outputs of the weight, and stand in llama.cpp's order.
        up_Or = family.turn(source, change.up_Or.float(), config) * factor
        tensors[f"{name}.lora_a"] = change.down_rI.float().contiguous()
        tensors[f"{name}.lora_b"] = up_Or.contiguous()
    return tensors, alpha


def write_adapter_gguf(path: Path, adapter: Adapter, config: Any, name: str) -> None:
    """Write the adapter. Raises `OSError` if it cannot be written."""
    family = family_of(config)
    tensors, alpha = adapter_tensors(adapter, config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    _write(writer, tensors)


def _write(writer: gguf.GGUFWriter, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
