"""How far down the backward pass goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.forward import packed_forward
from llamafarm.training.methods import checkpoint_gradients


@pytest.mark.parametrize("checkpoints", [False, True])
def test_it_ends_where_the_lowest_adapter_is(checkpoints: bool) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    targets = [f"model.layers.{layer}.self_attn.q_proj" for layer in (1, 2)]
    adapted, _ = attach_adapter(model, AdapterSettings(2, 4, 0.0, targets), base_name="base", seed=0)
    if checkpoints:
        checkpoint_gradients(model)
    needs_gradient: list[bool] = []
    for layer in model.get_decoder().layers:
        layer.register_forward_hook(lambda _, __, output: needs_gradient.append(output.requires_grad))
    row = EncodedRow(np.arange(20, dtype=np.int32), np.arange(20) > 5, 1)
    (pack,) = pack_rows([row], [0], 100)
    with packed_forward(model) as packed:
        adapted.train()
        needs_gradient.clear()
        packed.sum_loss(pack).backward()  # type: ignore[no-untyped-call]
    assert needs_gradient[:3] == [False, True, True]
    gradients = [parameter.grad for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(gradients) == 4 and all(gradient is not None for gradient in gradients)
