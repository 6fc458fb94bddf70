"""What was trained of a model, in whichever form its method trains: taken, put back, written, read.

Each form has a file of its own, `adapter` and `full`; checkpoints and final models ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llamafarm.model.adapter import (
    ADAPTER_CONFIG_FILE,
    adapter_tensors,
    read_adapter,
    restore_adapter,
    write_adapter,
)
from llamafarm.model.full import full_tensors, read_full, restore_full, write_full
from llamafarm.model.quantized import is_in_4_bits, numbers_of

Trained: TypeAlias = PeftModel | PreTrainedModel
Tensors = Mapping[str, torch.Tensor]

ADAPTER, FULL = "adapter", "full"


@dataclass(frozen=True, slots=True)
class _Form:
    take: Callable[[Any], dict[str, torch.Tensor]]
    restore: Callable[[Any, Tensors], None]
    write: Callable[[Path, Any, Tensors], None]
    read: Callable[[Path], dict[str, torch.Tensor]]


_FORMS = {
    ADAPTER: _Form(adapter_tensors, restore_adapter, write_adapter, read_adapter),
    FULL: _Form(full_tensors, restore_full, write_full, read_full),
}


def form_of(model: Trained) -> str:
    """Return what of `model` is trained: `adapter` or `full`."""
    return ADAPTER if isinstance(model, PeftModel) else FULL


def is_frozen_in(model: Trained, dtype: torch.dtype) -> bool:
    """Return whether an adapter is all that is trained, and everything under it is computed in `dtype`."""
    in_4_bits = [module for module in model.modules() if is_in_4_bits(module)]
    held = {id(layer.weight) for layer in in_4_bits}
    frozen = [one for one in model.parameters() if not one.requires_grad and id(one) not in held]
    return (
        form_of(model) == ADAPTER
        and all(parameter.dtype == dtype for parameter in frozen)
        and all(numbers_of(layer) == dtype for layer in in_4_bits)
    )


def transformer_of(model: Trained) -> PreTrainedModel:
    """Return the transformers model, with or without an adapter in it."""
    if isinstance(model, PeftModel):
        base: PreTrainedModel = model.get_base_model()
        return base
    return model


def trained_weights(model: Trained) -> dict[str, torch.Tensor]:
    """Return the trained weights of `model`; an adapter's are copies on the CPU, all of them are not."""
    return _FORMS[form_of(model)].take(model)


def restore_weights(model: Trained, weights: Tensors) -> None:
    """Put weights that `trained_weights` or `read_weights` returned back into `model`."""
    _FORMS[form_of(model)].restore(model, weights)


def write_weights(folder: Path, model: Trained, weights: Tensors) -> None:
    """Write trained weights into `folder`, so that stock PEFT or transformers loads it."""
    _FORMS[form_of(model)].write(folder, model, weights)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that `write_weights` wrote. Raises `ModelError` if they cannot be read."""
    return _FORMS[ADAPTER if (folder / ADAPTER_CONFIG_FILE).is_file() else FULL].read(folder)
