"""How much the rounding of each input of a layer matters, from what flows there on the user's own rows.

The importance of an input is the mean of its square over all tokens (as llama.cpp's `imatrix` tool has it):
what is multiplied with large numbers should be rounded least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np
import torch
from torch import nn

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.encode import encode_separately
from llamafarm.deploy.gguf.families import family_of
from llamafarm.deploy.gguf.write import Importance
from llamafarm.deploy.source import Source, open_trained
from llamafarm.errors import ModelError
from llamafarm.model.load import text_encoder

_MOST_TOKENS = 20_000
_LONGEST = 4096


def measure_importance(source: Source, conversations: Sequence[Conversation]) -> Importance:
    """Return the importance of each input of every linear layer, by the layer's name in a GGUF file.

    The trained model reads the rows, prompts and answers, in fp32. Raises `ModelError` if there are none.
    """
    opened = open_trained(source)
    model = opened.transformer
    encoder = text_encoder(source.tokenizer)
    num_tokens = 0
    with _squares_of(model) as squares, torch.inference_mode():
        for encoded in encode_separately(conversations, source.template, encoder, opened.trained):
            for row in encoded:
                ids_1T = torch.tensor(row.token_ids_T[:_LONGEST].astype(np.int64))[None]
                model(input_ids=ids_1T.to(model.device), use_cache=False, logits_to_keep=1)
                num_tokens += ids_1T.shape[1]
            if num_tokens >= _MOST_TOKENS:
                break
    if not num_tokens:
        raise ModelError(
            "an importance matrix needs rows, and there are none",
            where="--importance",
            remedy="Name some with --verify-dataset, or leave --importance out.",
        )
    names = gguf.get_tensor_name_map(family_of(source.config).arch, source.config.num_hidden_layers)
    found = {
        names.get_name(f"{name}.weight", try_suffixes=(".weight",)): one for name, one in squares.items()
    }
    return {
        name: (square_I / num_tokens).float().cpu().numpy()
        for name, square_I in found.items()
        if name is not None
    }


@contextmanager
def _squares_of(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Add up the squares of what every linear layer of a block reads meanwhile, by the layer's name."""
    squares: dict[str, torch.Tensor] = {}
    handles = []

    def hook(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            square_I = inputs[0].flatten(0, -2).double().square().sum(0)
            squares[name] = squares[name] + square_I if name in squares else square_I

        return add

    for name, module in model.named_modules():
        # An adapter's own layers stand below the layer that they belong to, and that layer's base too.
        if ".layers." not in name or "lora_" in name or name.endswith(".base_layer"):
            continue
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 2:
            handles.append(module.register_forward_pre_hook(hook(name)))
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
