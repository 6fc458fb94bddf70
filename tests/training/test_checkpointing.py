"""Blocks that are computed again: which, how often, and to the same bits."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from llamafarm.data.encoding.pack import Pack
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.forward import packed_forward
from llamafarm.training.methods import checkpoint_gradients, start_checkpointing

CONFIGS = [
    LlamaConfig, Qwen2Config, Qwen3Config, MistralConfig, Gemma2Config, Gemma3TextConfig, Phi3Config,
]  # fmt: skip
NUM_BLOCKS = 4


def a_model(config_class: Any = LlamaConfig) -> PreTrainedModel:
    """Return a model of four blocks on random weights, in fp32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = config_class(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=NUM_BLOCKS, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model


def a_pack() -> Pack:
    """Two documents of which the second half each is trained on."""
    lengths = (8, 12)
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    ids_T = torch.arange(20) * 7 % 64
    supervised_S = torch.tensor([*range(4, 8), *range(14, 20)])
    return Pack(ids_T, positions_T, supervised_S, ids_T[supervised_S], lengths, (0, 1))


def blocks_of(model: PreTrainedModel) -> list[Any]:
    """The blocks of a model, in their order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


class Trained:
    """One pass over a pack, forward and backward: loss, gradients, and how often each block was computed."""

    def __init__(
        self, num_blocks: int, *, fuses: bool = True, lowest: int = 0, config_class: Any = LlamaConfig
    ) -> None:
        model = a_model(config_class)
        is_phi = config_class is Phi3Config
        leaves = ["qkv_proj", "down_proj"] if is_phi else ["q_proj", "v_proj", "down_proj"]
        places = {leaf: "mlp" if leaf == "down_proj" else "self_attn" for leaf in leaves}
        targets = [
            f"model.layers.{place}.{places[leaf]}.{leaf}"
            for place in range(lowest, NUM_BLOCKS)
            for leaf in leaves
        ]
        settings = AdapterSettings(r=4, alpha=8, dropout=0.1, target_modules=targets)
        adapted, dropout = attach_adapter(model, settings, base_name="base", seed=0)
        with torch.no_grad():  # else the gradients of one half are all zero
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.01)
        if num_blocks:
            checkpoint_gradients(model, num_blocks)
        self.flags = [block.gradient_checkpointing for block in blocks_of(model)]
        adapted.train()
        pack = a_pack()
        counts: Counter[int] = Counter()
        with packed_forward(model, fuses=fuses) as packed:
            for place, block in enumerate(blocks_of(model)):
                block.mlp.register_forward_pre_hook(lambda *_, place=place: counts.update([place]))
            dropout.enter_pack(1, pack.row_indices, pack.document_lengths, pack.supervised_positions_S)
            self.loss = packed.sum_loss(pack)
            self.loss.backward()  # type: ignore[no-untyped-call]
        self.passes = [counts[place] for place in range(NUM_BLOCKS)]
        self.gradients = {
            name: weight.grad for name, weight in adapted.named_parameters() if weight.requires_grad
        }


@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("num_blocks", range(1, NUM_BLOCKS + 1))
def test_the_first_blocks_alone_are_computed_again_to_the_same_bits(num_blocks: int, fuses: bool) -> None:
    kept, again = Trained(0, fuses=fuses), Trained(num_blocks, fuses=fuses)
    assert kept.passes == [1] * NUM_BLOCKS
    assert again.passes == [2] * num_blocks + [1] * (NUM_BLOCKS - num_blocks)
    assert torch.equal(kept.loss, again.loss)
    assert kept.gradients.keys() == again.gradients.keys()
    for name, gradient in kept.gradients.items():
        assert gradient is not None and gradient.any(), name
        assert torch.equal(gradient, again.gradients[name]), name


@pytest.mark.parametrize("config_class", CONFIGS)
def test_the_blocks_of_every_architecture_are_found(config_class: Any) -> None:
    kept, again = (Trained(number, config_class=config_class) for number in (0, 2))
    assert again.flags == [True, True, False, False]
    assert again.passes == [2, 2, 1, 1]
    assert torch.equal(kept.loss, again.loss)
    assert all(
        torch.equal(*pair) for pair in zip(kept.gradients.values(), again.gradients.values(), strict=True)
    )


def test_nothing_below_the_lowest_adapter_is_computed_again() -> None:
    assert Trained(3, lowest=2).passes == [1, 1, 2, 1]


def test_the_remedy_takes_all_blocks_also_where_some_are_computed_again_already() -> None:
    model = a_model()
    checkpoint_gradients(model, 1)
    assert [block.gradient_checkpointing for block in blocks_of(model)] == [True, False, False, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert start_checkpointing(model)
        assert not start_checkpointing(model)
    assert all(block.gradient_checkpointing for block in blocks_of(model))
