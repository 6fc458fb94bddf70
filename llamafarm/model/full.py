"""All weights of a model, trained and saved: the folder that transformers itself writes and reads.

The other form, an adapter beside untouched weights, is in `adapter`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from llamafarm.errors import ModelError
from llamafarm.model.files import check_base_folder

_MAX_SHARD_SIZE = "5GB"


def train_all_weights(model: PreTrainedModel) -> None:
    """Let every weight of `model` be trained, in place.

    The weights must be fp32: in 16 bits most updates would be too small to change them.
    """
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        parameter.requires_grad_(True)


def full_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return all weights of `model`, not copied: they change when it is trained on."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def restore_full(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put weights that `full_tensors` returned back into `model`."""
    model.load_state_dict(dict(tensors))


def write_full(folder: Path, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write all weights and the configuration into `folder`: safetensors in shards, tied weights once."""
    _make_saveable(model)
    try:
        model.save_pretrained(folder, state_dict=dict(tensors), max_shard_size=_MAX_SHARD_SIZE)
    except SafetensorError as error:  # its word for a full disk
        raise OSError(errno.EIO, str(error)) from error


def read_full(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that `write_full` wrote. Raises `ModelError` if they cannot be read."""
    check_base_folder(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"the weights cannot be read: {reason[:200]}",
            where=str(folder),
            remedy="Name a folder with config.json and the model's .safetensors files.",
        ) from error
    return full_tensors(model)


def _make_saveable(model: PreTrainedModel) -> None:
    """Replace generation settings that transformers loads but refuses to save, as some bases have them."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig.from_model_config(model.config)
