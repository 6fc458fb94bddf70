"""Read a model's shape from its configuration, without its weights.

The model is built on torch's meta device: exact for every architecture that transformers has, in no memory.
`planning` does its arithmetic on what is read here.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llamafarm.errors import ModelError
from llamafarm.planning.shape import LinearLayer, ModelShape

# The number of a block in a module's name, as in `model.layers.3.self_attn.q_proj`.
_BLOCK = re.compile(r"\.\d+\.")
# Layers that only read what came out of the module before them, each its own tensor.
_OUTPUTS = ("o_proj", "out_proj", "down_proj", "c_proj", "w2", "fc2", "fc_out", "dense_4h_to_h", "dense")


def read_shape(config: Any) -> ModelShape:
    """Return the shape of the model that a transformers configuration describes. Raises `ModelError`."""
    return shape_of(build_without_weights(config))


def build_without_weights(config: Any) -> PreTrainedModel:
    """Return the model that a configuration describes, its weights without numbers or memory.

    Raises `ModelError` if transformers has no causal language model of that architecture.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"no model can be made of this configuration: {reason[:200]}",
            where="base_model.huggingface_id",
            remedy="Choose a causal language model that transformers knows.",
        ) from error
    return model


def shape_of(model: Any) -> ModelShape:
    """Return the shape of a transformers model, on whatever device its weights are."""
    text = model.config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linear_layers = _linear_layers(model, head)
    leaves = {layer.path.rpartition(".")[2] for layer in linear_layers}
    # A model of recurrent layers has no heads.
    hidden_size, num_heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", None) or 0)
    widest = max((layer.out_features for layer in linear_layers), default=hidden_size)
    return ModelShape(
        num_layers=int(text.num_hidden_layers),
        hidden_size=hidden_size,
        intermediate_size=_first_int(getattr(text, "intermediate_size", None)) or widest,
        num_heads=num_heads,
        num_key_value_heads=int(getattr(text, "num_key_value_heads", None) or num_heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden_size // max(num_heads, 1)),
        vocab_size=int(embedding.weight.shape[0]),
        is_tied=head is not None and head.weight is embedding.weight,
        has_gate=any("gate" in leaf or leaf in ("w1", "w3") for leaf in leaves),
        num_parameters=int(model.num_parameters()),
        linear_layers=linear_layers,
    )


def _linear_layers(model: nn.Module, head: nn.Module | None) -> tuple[LinearLayer, ...]:
    """Return the linear layers of the blocks; those alike in place and size are one, with their count."""
    found: Counter[tuple[str, int, int, bool]] = Counter()
    for name, module in model.named_modules():
        if module is head or not isinstance(module, nn.Linear | Conv1D):
            continue
        path = _BLOCK.split(name)[-1]
        inputs, outputs = _features(module)
        found[path, inputs, outputs, module.bias is not None] += 1
    return tuple(
        LinearLayer(path, inputs, outputs, count, _input_name(path), has_bias)
        for (path, inputs, outputs, has_bias), count in found.items()
    )


def _features(module: nn.Linear | Conv1D) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return int(module.weight.shape[0]), int(module.weight.shape[1])


def _input_name(path: str) -> str:
    """Return which tensor of a block the layer at `path` reads."""
    parents, _, leaf = path.rpartition(".")
    return path if leaf in _OUTPUTS else parents


def _first_int(value: Any) -> int | None:
    """Return the largest where a configuration gives one for each layer."""
    if isinstance(value, list | tuple):
        return max(map(int, value), default=None)
    return None if value is None else int(value)
