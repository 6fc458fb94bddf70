"""A model's shape is read from its configuration alone, and is that of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
)

from llamafarm.errors import ModelError
from llamafarm.model.shape import read_shape, shape_of

SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama untied": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, head_dim=16),
    "phi3": Phi3Config(**SMALL, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=100, n_embd=32, n_layer=3, n_head=4),
    "neox": GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shape_is_that_of_the_model(name: str) -> None:
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config)
    shape = read_shape(config)
    assert shape == shape_of(model)
    assert shape.num_parameters == model.num_parameters()
    assert shape.num_layers == 3
    assert shape.num_heads == 4
    assert shape.hidden_size == 32
    assert shape.vocab_size == 100
    assert shape.is_tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert all(layer.count == 3 for layer in shape.linear_layers)
    assert shape.has_gate == (name not in ("gpt2", "neox"))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["mlp.down_proj"], "all-linear"])
@pytest.mark.parametrize("uses_dora", [False, True])
def test_adapters_are_counted_as_peft_makes_them(targets: list[str] | str, uses_dora: bool) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen2"])
    shape = shape_of(model)
    adapted = get_peft_model(
        model, LoraConfig(r=5, target_modules=targets, task_type="CAUSAL_LM", use_dora=uses_dora)
    )
    num_trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.num_adapter_weights(5, targets, uses_dora=uses_dora) == num_trained


def test_biases_are_counted() -> None:
    shape = read_shape(CONFIGS["qwen2"])
    assert shape.num_biases() == 3 * (32 + 16 + 16)
    assert shape.num_biases(["q_proj"]) == 3 * 32
    assert read_shape(CONFIGS["llama"]).num_biases() == 0


def test_layers_that_read_the_same_tensor_have_the_same_input() -> None:
    inputs = {layer.path: layer.input_name for layer in read_shape(CONFIGS["llama"]).linear_layers}
    assert inputs["self_attn.q_proj"] == inputs["self_attn.v_proj"] != inputs["self_attn.o_proj"]
    assert inputs["mlp.gate_proj"] == inputs["mlp.up_proj"] != inputs["mlp.down_proj"]


def test_a_configuration_that_is_no_model_is_refused() -> None:
    from transformers import CLIPConfig

    with pytest.raises(ModelError, match="no model can be made"):
        read_shape(CLIPConfig())


def test_the_embedded_model_is_read_in_no_memory(
    repository: Path, fresh_model: Callable[[], PreTrainedModel]
) -> None:
    shape = read_shape(AutoConfig.from_pretrained(repository / "llamafarm" / "assets" / "cria-5m"))
    assert 5e6 < shape.num_parameters < 6e6
    assert shape_of(fresh_model()).num_layers == 2
