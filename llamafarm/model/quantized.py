"""A base model whose linear layers are held in 4 bits by bitsandbytes, for qlora (arXiv:2305.14314).

Only this room knows bitsandbytes, which is optional. `load` does the loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from llamafarm.errors import MachineError
from llamafarm.model.load import Base, load_model

_LIBRARY = "bitsandbytes"
_DEVICES = ("cuda", "cpu")


@dataclass(frozen=True, slots=True)
class Quantization:
    """How 4-bit weights are held: as nf4 or fp4, their scales quantised once more or not."""

    quant_type: str = "nf4"
    use_double_quant: bool = True


def may_quantize(device_kind: str) -> bool:
    """Return whether weights can be held in 4 bits here, without loading bitsandbytes."""
    return device_kind in _DEVICES and find_spec(_LIBRARY) is not None


def check_quantization(device_kind: str) -> None:
    """Raise `MachineError` if weights cannot be held in 4 bits here."""
    if device_kind not in _DEVICES:
        raise MachineError(
            f"4-bit weights are not supported on {device_kind}, only on {' and '.join(_DEVICES)}",
            where="method.type",
            remedy="Write type: lora.",
        )
    if find_spec(_LIBRARY) is None:
        raise MachineError(
            "method.type qlora needs bitsandbytes, which is not installed",
            where="method.type",
            remedy="Run `uv sync --extra qlora` or `pip install bitsandbytes`, or write type: lora.",
        )


def load_quantized_model(
    base: Base,
    quantization: Quantization,
    *,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """Return a base model with linear layers in 4 bits, multiplied in `compute_dtype`, all else in `dtype`.

    Raises `MachineError` as `check_quantization` does, `ModelError` if the model cannot be had.
    """
    check_quantization(device.type)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.use_double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )
    model = load_model(base, dtype=dtype, device=device, quantization_config=config)
    _keep_one_layout(model)
    return model


def is_in_4_bits(module: nn.Module) -> bool:
    """Return whether a module is a linear layer of bitsandbytes in 4 bits."""
    # peft's layer around one has the same name and shows its weight, but is no linear layer of torch.
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")


@dataclass(frozen=True, slots=True)
class Weight4Bit:
    """A weight in 4 bits as the kernels take it: made dense for each product, and let go."""

    packed: torch.Tensor
    state: Any
    dtype: torch.dtype

    @staticmethod
    def of(layer: Any) -> Weight4Bit:
        """Return the weight of a layer that `is_in_4_bits`."""
        return Weight4Bit(layer.weight.data, layer.weight.quant_state, numbers_of(layer))

    def dense(self) -> torch.Tensor:
        """Return the weight (O, I), in `dtype`."""
        from bitsandbytes.functional import dequantize_4bit

        weight_OI: torch.Tensor = dequantize_4bit(self.packed, self.state)
        return weight_OI.to(self.dtype)


def numbers_of(layer: Any) -> torch.dtype:
    """Return what a layer that `is_in_4_bits` is multiplied in."""
    dtype: torch.dtype = layer.compute_dtype or layer.weight.quant_state.dtype
    return dtype


def _keep_one_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from laying the weights out anew in evaluation on a CPU with AVX512_BF16.

    In that layout no gradient passes through them, which PyTorch only warns of, and they stay in it when
    training goes on after an evaluation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
