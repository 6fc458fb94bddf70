"""The method of a run: `auto` made into numbers by the guide's table; settings that do not fit refused."""

from __future__ import annotations

from typing import Any

from llamafarm.errors import StrategyError
from llamafarm.hardware.device import Device
from llamafarm.model.load import Base, count_parameters
from llamafarm.model.quantized import check_quantization, may_quantize
from llamafarm.planning.guide import lora_row
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import Method
from llamafarm.training.preparation.rows import Choice

_ADAPTER_KEYS = (
    "r",
    "alpha",
    "dropout",
    "target_modules",
    "bias",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "loraplus_lr_ratio",
)
_QUANTIZATION_KEYS = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
# Settings of `method` that change nothing under a type.
_UNUSED_KEYS = {
    "lora": _QUANTIZATION_KEYS,
    "qlora": (),
    "full_finetune": (*_ADAPTER_KEYS, *_QUANTIZATION_KEYS),
    "auto": (),
}
# How near to the user a kind of source is: what is nearer is meant to win.
_NEARNESS = ("default", "preset", "strategy file", "command line")

# What is usual where all weights move; the guide's range is that of adapters.
_HIGHEST_FULL_LEARNING_RATE = 5e-5


def prepare_method(
    method: Method, base: Base, device: Device, choices: list[Choice], *, memory_is_short: bool
) -> Method:
    """Return the method without an `auto` in it, for a base model on a device; what was chosen is added.

    Raises `MachineError` for qlora where 4-bit weights cannot be had.
    """
    has_auto = "auto" in (method.type, method.r, method.alpha, method.dropout)
    settled, chosen = settle_method(
        method,
        count_parameters(base) if has_auto else 0,
        memory_is_short=memory_is_short,
        may_quantize=device.kind == "cuda" and may_quantize(device.kind),
    )
    if settled.type == "qlora":
        check_quantization(device.kind)
    choices += chosen
    return settled


def settle_method(
    method: Method, num_parameters: float, *, memory_is_short: bool, may_quantize: bool
) -> tuple[Method, list[Choice]]:
    """Return the method without an `auto` in it, and what was chosen.

    `memory_is_short` says that lora does not fit the device, `may_quantize` that 4-bit weights can be had.
    """
    row = lora_row(num_parameters)
    update: dict[str, Any] = {}
    choices = []
    if method.type == "auto":
        update["type"], why = _choose_type(method, memory_is_short, may_quantize)
        choices.append(Choice("method.type", str(update["type"]), f"auto: {why}"))
    if (update.get("type") or method.type) != "full_finetune":
        r = row.r if method.r == "auto" else method.r
        table = f"the guide's table for {row.size}"
        chosen: dict[str, tuple[int | float, str]] = {
            "r": (r, table),
            "alpha": (2 * r, "2*r, as in the guide's table"),
            "dropout": (row.dropout, table),
        }
        for key, (value, why) in chosen.items():
            if getattr(method, key) == "auto":
                update[key] = value
                choices.append(Choice(f"method.{key}", str(value), f"auto: {why}"))
    return method.model_copy(update=update), choices


def check_method(loaded: LoadedStrategy) -> list[str]:
    """Return warnings about settings that do not fit the method.

    One that would change nothing is an error where it was written beside the type or nearer to the user;
    where the type was written over it, as on the command line, it is a warning. Raises `StrategyError`.
    """
    method = loaded.strategy.method
    warnings = []
    type_origin = loaded.origins["method.type"]
    for key in _UNUSED_KEYS[method.type]:
        path = f"method.{key}"
        origin = loaded.origins[path]
        if origin.kind == "default":
            continue
        problem = f"{path} changes nothing with method.type {method.type}"
        if _NEARNESS.index(origin.kind) >= _NEARNESS.index(type_origin.kind):
            raise StrategyError(problem, where=str(origin), remedy=f"Remove {key}, or choose another type.")
        warnings.append(f"{problem} ({origin})")
    if method.type == "qlora" and method.bias != "none":
        raise StrategyError(
            f"method.bias {method.bias} does not go with qlora: the biases of 4-bit layers are held in the "
            "numbers that are computed with",
            where=str(loaded.origins["method.bias"]),
            remedy="Leave bias out, or write type: lora.",
        )
    if method.type == "full_finetune" or method.bias != "none":
        _check_dtype(loaded)
    if method.type == "full_finetune":
        warnings += _check_learning_rate(loaded)
    return warnings


def _check_dtype(loaded: LoadedStrategy) -> None:
    """Raise `StrategyError` where weights are to be trained in 16 bits; an adapter is in fp32 anyway."""
    dtype = loaded.strategy.base_model.torch_dtype
    if dtype in ("auto", "float32"):
        return
    method = loaded.strategy.method
    what = method.type if method.type == "full_finetune" else f"method.bias {method.bias}"
    raise StrategyError(
        f"base_model.torch_dtype {dtype} does not go with {what}: in 16 bits most updates are too small to "
        "change a weight",
        where=str(loaded.origins["base_model.torch_dtype"]),
        remedy="Leave torch_dtype out; mixed_precision decides what is computed with.",
    )


def _check_learning_rate(loaded: LoadedStrategy) -> list[str]:
    rate = loaded.strategy.training_args.learning_rate
    if rate <= _HIGHEST_FULL_LEARNING_RATE:
        return []
    return [
        f"learning_rate {rate:g} is high for full_finetune, where 1e-5 to 5e-5 is usual: the base may forget "
        f"what it knows ({loaded.origins['training_args.learning_rate']})"
    ]


def _choose_type(method: Method, memory_is_short: bool, may_quantize: bool) -> tuple[str, str]:
    if not memory_is_short:
        return "lora", "it fits the memory"
    if not may_quantize:
        return "lora", "the memory is small, but 4-bit weights need a CUDA device and bitsandbytes"
    if method.init_lora_weights == "pissa":
        return "lora", "the memory is small, but pissa does not go with 4-bit weights"
    return "qlora", "the memory is too small for lora"
