"""The LoRA adapter: attach a new one, save it, load a saved one. The format is PEFT's own.

Which modules it goes to is settled by `targets`; what PiSSA changes of it is in `principal`.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from llamafarm.errors import ModelError
from llamafarm.kernels.dropout import DropoutPlan, RowDropout
from llamafarm.model.files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, check_adapter_folder
from llamafarm.model.principal import (
    as_plain_adapter,
    as_plain_config,
    from_plain_adapter,
    start_from_principal_part,
)
from llamafarm.model.targets import check_target_modules, linear_layers

__all__ = ["ADAPTER_CONFIG_FILE"]


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What a LoRA adapter is made of. `target_modules` are names of modules, or `all-linear`.

    `uses_rslora` divides by the root of r (Kalajdzievski, 2023, arXiv:2312.03732), `uses_dora` trains
    direction and magnitude apart (Liu et al., 2024, arXiv:2402.09353), `starts_principal` begins as PiSSA
    does (see `principal`).
    """

    r: int
    alpha: int
    dropout: float
    target_modules: Sequence[str] | str
    bias: str = "none"
    uses_rslora: bool = False
    uses_dora: bool = False
    starts_principal: bool = False


def attach_adapter(
    model: PreTrainedModel, settings: AdapterSettings, *, base_name: str, seed: int
) -> tuple[PeftModel, DropoutPlan]:
    """Attach a new adapter in fp32 to `model`, in place, and return the PEFT model and its dropout's plan.

    Its first weights follow from `seed`. Raises `ModelError` if the model lacks a target module.
    """
    targets = settings.target_modules
    if isinstance(targets, str):  # PEFT's own all-linear takes the experts of some models as well
        targets = list(linear_layers(model))
    check_target_modules(model, targets)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        bias=settings.bias,
        use_rslora=settings.uses_rslora,
        use_dora=settings.uses_dora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT asks transformers for a property under the name that it had before.
        warnings.simplefilter("ignore", FutureWarning)
        # It corrects fan_in_fan_out for GPT-2's layers by itself, and says so.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                f"no adapter can be attached there: {str(error).partition(chr(10))[0][:200]}",
                where="method.target_modules",
                remedy="Name linear layers, such as q_proj and v_proj, or write all-linear.",
            ) from error
        if settings.starts_principal:
            start_from_principal_part(adapted)
    plan = DropoutPlan(seed)
    if settings.dropout > 0:
        _replace_dropout(adapted, plan)
    return adapted, plan


def adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return a copy of the adapter's weights on the CPU, under the names that PEFT saves them with."""
    state: Mapping[str, torch.Tensor] = as_plain_adapter(model, get_peft_model_state_dict(model))
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def restore_adapter(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put weights that `adapter_tensors` returned back into `model`."""
    set_peft_model_state_dict(model, from_plain_adapter(model, tensors))


def write_adapter(folder: Path, model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write an adapter's weights and its configuration into `folder` as stock PEFT reads them."""
    try:
        save_file(dict(tensors), folder / ADAPTER_FILE, metadata={"format": "pt"})
    except SafetensorError as error:  # its word for a full disk
        raise OSError(errno.EIO, str(error)) from error
    config = as_plain_config(model)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that `write_adapter` wrote. Raises `ModelError` if they cannot be read."""
    check_adapter_folder(folder)
    try:
        tensors: dict[str, torch.Tensor] = load_file(folder / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, str(error)) from error
    return tensors


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Return `model` with the saved adapter of `folder` on it, in evaluation mode."""
    check_adapter_folder(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            loaded = PeftModel.from_pretrained(model, str(folder))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a configuration that is none: whatever class it is
        raise _unreadable(folder, str(error)) from error
    loaded.eval()
    return loaded


def is_removable(model: PeftModel) -> bool:
    """Return whether the base is what it was once the adapter is off: not where its biases were trained."""
    return bool(model.peft_config["default"].bias == "none")


def _replace_dropout(model: nn.Module, plan: DropoutPlan) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and ".lora_dropout." in name:
            parent_name, _, child_name = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child_name, RowDropout(module.p, name, plan))


def _unreadable(folder: Path, reason: str) -> ModelError:
    first_line = next(iter(reason.splitlines()), "no reason given")
    return ModelError(
        f"the adapter cannot be loaded: {first_line[:200]}",
        where=str(folder),
        remedy="Name a folder with adapter_config.json and adapter_model.safetensors of this base model.",
    )
