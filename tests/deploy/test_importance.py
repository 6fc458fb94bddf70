"""The importance of a layer's inputs is the mean of their squares, under the layer's name in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamafarm.data.conversation import Conversation, Message
from llamafarm.deploy.files import plan_file
from llamafarm.deploy.importance import measure_importance
from llamafarm.deploy.source import open_source
from llamafarm.errors import ModelError

ROWS = [
    Conversation((Message("user", f"Question {n}?"), Message("assistant", f"The answer is {n}.")), n)
    for n in range(1, 5)
]


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_it_is_the_mean_square_of_what_a_layer_reads(make_adapter: Callable[..., Any], family: str) -> None:
    targets = ["qkv_proj", "down_proj"] if family == "phi3" else ["q_proj", "down_proj"]
    folder, adapted = make_adapter(family, target_modules=targets)
    seen: list[torch.Tensor] = []
    layer = adapted.base_model.model.model.layers[1].mlp.down_proj
    with open_source(folder) as source:
        found = measure_importance(source, ROWS)
        planned = {tensor.name: tensor.shape for tensor in plan_file(source, "q4_k_m").tensors}
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
        with torch.no_grad():
            for row in ROWS:
                text = source.template.render(row.messages)
                ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
                adapted(input_ids=torch.tensor([ids]))
        handle.remove()
    expected = torch.cat(seen).double().square().mean(0).numpy()
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], expected, rtol=1e-4)
    assert all(planned[name][1] == len(weights) for name, weights in found.items())
    blocks = {name for name, shape in planned.items() if name.startswith("blk.") and len(shape) == 2}
    assert set(found) == blocks


def test_without_rows_there_is_none(make_adapter: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = make_adapter()
    with open_source(folder) as source, pytest.raises(ModelError, match="needs rows"):
        measure_importance(source, [])
