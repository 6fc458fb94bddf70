"""What each method loads and trains: the base model with an adapter on it, or all of its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from llamafarm.kernels.dropout import DropoutPlan
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.full import train_all_weights
from llamafarm.model.load import load_model
from llamafarm.model.quantized import Quantization, load_quantized_model
from llamafarm.model.targets import choose_target_modules
from llamafarm.model.weights import Trained, transformer_of
from llamafarm.strategy.schema import Method, Strategy
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.preparation.rows import Choice

# What transformers asks each block.
_FLAG = "gradient_checkpointing"
_NAMED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_COMPUTED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def open_for_training(preparation: Preparation, strategy: Strategy) -> tuple[Trained, DropoutPlan]:
    """Load the base model and make it ready to be trained by the method of the run; choices are added to.

    Raises `ModelError` if the model or its modules cannot be had, `MachineError` if bitsandbytes cannot.
    """
    open_with_method = _METHODS[preparation.method.type]
    model, dropout_plan = open_with_method(preparation, strategy)
    if num_blocks := preparation.memory.checkpointed_blocks:
        checkpoint_gradients(transformer_of(model), num_blocks)
    return model, dropout_plan


def quantization_of(method: Method) -> Quantization | None:
    """Return how a method holds its base model in 4 bits; None if it does not."""
    if method.type != "qlora":
        return None
    return Quantization(method.bnb_4bit_quant_type, method.bnb_4bit_use_double_quant)


def _open_lora(preparation: Preparation, strategy: Strategy) -> tuple[Trained, DropoutPlan]:
    base_model = load_model(
        preparation.base, dtype=_frozen_dtype(preparation, strategy), device=_device(preparation)
    )
    return _attach(base_model, preparation, strategy)


def _open_qlora(preparation: Preparation, strategy: Strategy) -> tuple[Trained, DropoutPlan]:
    quantization = quantization_of(preparation.method)
    assert quantization is not None
    base_model = load_quantized_model(
        preparation.base,
        quantization,
        dtype=_frozen_dtype(preparation, strategy),
        compute_dtype=_COMPUTED[preparation.precision.name],
        device=_device(preparation),
    )
    num_bytes = base_model.get_memory_footprint()
    shown = f"{quantization.quant_type}, {num_bytes / 2**20:,.1f} MiB"
    preparation.choices.append(Choice("base weights", shown, "qlora holds linear layers in 4 bits"))
    return _attach(base_model, preparation, strategy)


def _open_full(preparation: Preparation, _: Strategy) -> tuple[Trained, DropoutPlan]:
    model = load_model(preparation.base, dtype=torch.float32, device=_device(preparation))
    train_all_weights(model)
    shown = f"all {model.num_parameters():,} of them, in fp32"
    preparation.choices.append(Choice("trained weights", shown, "full_finetune; they are saved in fp32, too"))
    return model, DropoutPlan(preparation.plan.seed)  # an adapter's dropout has no layer to go to here


_METHODS: dict[str, Callable[[Preparation, Strategy], tuple[Trained, DropoutPlan]]] = {
    "lora": _open_lora,
    "qlora": _open_qlora,
    "full_finetune": _open_full,
}


def _attach(
    base_model: PreTrainedModel, preparation: Preparation, strategy: Strategy
) -> tuple[Trained, DropoutPlan]:
    """Attach the adapter that the method describes, and say what it is."""
    method = preparation.method
    assert method.r != "auto" and method.alpha != "auto" and method.dropout != "auto"
    num_parameters = base_model.num_parameters()
    targets: Sequence[str] | str | None = method.target_modules
    if targets is None:
        targets, why = choose_target_modules(base_model, num_parameters)
        shown = targets if isinstance(targets, str) else ", ".join(targets)
        preparation.choices.append(Choice("target modules", shown, why))
    model, dropout_plan = attach_adapter(
        base_model,
        AdapterSettings(
            r=method.r,
            alpha=method.alpha,
            dropout=method.dropout,
            target_modules=targets,
            bias=method.bias,
            uses_rslora=method.use_rslora,
            uses_dora=method.use_dora,
            starts_principal=method.init_lora_weights == "pissa",
        ),
        base_name=preparation.base.source,
        seed=strategy.environment.seed,
    )
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    preparation.choices.append(
        Choice("adapter", _name(method), f"{num_trained:,} of {num_parameters:,} weights trained")
    )
    return model, dropout_plan


def _name(method: Method) -> str:
    """Return what kind of adapter a method trains, in a few words."""
    variants = {
        "rsLoRA": method.use_rslora,
        "DoRA": method.use_dora,
        "PiSSA": method.init_lora_weights == "pissa",
        f"LoRA+ x{method.loraplus_lr_ratio}": method.loraplus_lr_ratio is not None,
    }
    chosen = [name for name, is_used in variants.items() if is_used]
    return f"{', '.join(chosen) or 'LoRA'} r={method.r}"


def _frozen_dtype(preparation: Preparation, strategy: Strategy) -> torch.dtype:
    if preparation.method.bias != "none":
        # What is trained is in fp32, and a layer's bias is what its weight is.
        preparation.choices.append(Choice("base weights", "fp32", "biases are trained beside them"))
        return torch.float32
    return _NAMED.get(strategy.base_model.torch_dtype, _COMPUTED[preparation.precision.name])


def _device(preparation: Preparation) -> torch.device:
    return torch.device(preparation.device.kind)


def start_checkpointing(model: Trained) -> bool:
    """Let all blocks be computed again from now on; return whether that is new for one, and the model can."""
    transformer = transformer_of(model)
    flags = [getattr(module, _FLAG) for module in transformer.modules() if hasattr(module, _FLAG)]
    if all(flags) or not transformer.supports_gradient_checkpointing:
        return False
    checkpoint_gradients(transformer)
    return True


def checkpoint_gradients(transformer: PreTrainedModel, num_blocks: int | None = None) -> None:
    """Let the first `num_blocks` blocks, or all, compute their activations again in the backward pass.

    The first, because the backward pass comes to them last: what the others saved is gone by then, and makes
    room for the one that is computed again. Were they the last, that one would come on top of all the rest.
    """
    with _old_names():
        transformer.gradient_checkpointing_enable({"use_reentrant": False})
    # It asks for a gradient of the embeddings, which only reentrant checkpointing needs; without one, it goes
    # down to the lowest adapter only.
    transformer.disable_input_require_grads()
    if num_blocks is not None:
        # Towers beside the decoder, for images or sound, have blocks too.
        modules = transformer.get_decoder().modules()
        blocks = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
        for block in blocks[num_blocks:]:
            setattr(block, _FLAG, False)


@contextmanager
def _old_names() -> Iterator[None]:
    """Let transformers be called by its older names in silence: 5.17 does not know the newer ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
