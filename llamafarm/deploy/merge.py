"""An adapter's weights added to those of its base, tensor by tensor.

Sums are formed in fp32 and rounded once, to the numbers of the base. The arithmetic is that of LoRA
(arXiv:2106.09685), rsLoRA (arXiv:2312.03732) and DoRA (arXiv:2402.09353), the file format PEFT's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llamafarm.deploy.stored import Entry, StoredWeights, Weights
from llamafarm.errors import ModelError

ADAPTER_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# One of an adapter's tensors: the module that it belongs to, and what it is there.
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.weight)?$"
)
# What changes what an adapter computes and is not written down in its tensors' sum.
_NOT_MERGED = ("alora_invocation_tokens", "layer_replication", "trainable_token_indices")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one weight: `scaling` times `up` times `down`; DoRA has `magnitude_O`, too."""

    down_rI: torch.Tensor
    up_Or: torch.Tensor
    scaling: float
    magnitude_O: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT adapter, read whole; `changes` and `replaced` are by the name of the base's tensor."""

    changes: Mapping[str, LowRank]
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    is_transposed: bool = False
    base_name: str | None = None

    @property
    def changes_head(self) -> bool:
        """Return whether the output layer is changed."""
        return _HEAD in self.changes or _HEAD in self.replaced

    @property
    def changes_embedding(self) -> bool:
        """Return whether the embedding is changed."""
        return _EMBEDDING in self.changes or _EMBEDDING in self.replaced


def read_adapter_folder(folder: Path) -> Adapter:
    """Return the adapter that PEFT saved in `folder`.

    Raises `ModelError` if it is damaged, of another kind than LoRA, or computes what no sum of weights does.
    """
    config = _read_config(folder / CONFIG_FILE)
    with StoredWeights(folder, [ADAPTER_FILE]) as stored:
        tensors = {name: stored.read(name) for name in stored.entries}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(_PREFIX)
        if matched := _PART.match(plain):
            parts.setdefault(matched["module"], {})[matched["part"]] = tensor
        else:
            replaced[plain.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = tensor
    changes = {
        f"{module}.weight": _low_rank(folder, module, found, config) for module, found in parts.items()
    }
    base_name = config.get("base_model_name_or_path")
    return Adapter(changes, replaced, bool(config.get("fan_in_fan_out")), base_name)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the adapter's configuration cannot be read: {error}",
            where=str(path),
            remedy="Name a folder that PEFT saved an adapter in.",
        ) from error
    unknown = [name for name in _NOT_MERGED if config.get(name)]
    if kind != "LORA" or unknown:
        shown = kind if kind != "LORA" else f"LoRA with {', '.join(unknown)}"
        raise ModelError(
            f"an adapter of the kind {shown} cannot be merged into its base",
            where=str(path),
            remedy="Export LoRA, rsLoRA or DoRA adapters.",
        )
    return config


def _low_rank(
    folder: Path, module: str, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> LowRank:
    if {"lora_embedding_A", "lora_embedding_B"} <= set(parts):
        # PEFT keeps those of an embedding (vocabulary, D) the other way round.
        down, up = parts["lora_embedding_B"].T, parts["lora_embedding_A"].T
    elif {"lora_A", "lora_B"} <= set(parts):
        down, up = parts["lora_A"], parts["lora_B"]
    else:
        raise ModelError(
            f"of the adapter of {module} only {', '.join(sorted(parts))} is there",
            where=str(folder / ADAPTER_FILE),
            remedy="Save the adapter again: it is not whole.",
        )
    rank = _setting_of(module, config.get("rank_pattern"), config.get("r", len(down)))
    alpha = _setting_of(module, config.get("alpha_pattern"), config.get("lora_alpha", rank))
    if down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1] or len(down) != rank:
        raise ModelError(
            f"the adapter of {module} is {tuple(up.shape)} by {tuple(down.shape)} at rank {rank}",
            where=str(folder / ADAPTER_FILE),
            remedy="Save the adapter again: its tensors do not belong together.",
        )
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LowRank(down, up, scaling, parts.get("lora_magnitude_vector"))


def _setting_of(module: str, patterns: Mapping[str, float] | None, default: float) -> float:
    """Return what a module's rank or alpha is: PEFT's patterns match the end of its name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class MergedWeights:
    """The weights of a base with an adapter in them, each read from the base when it is asked for.

    What the adapter changes is rounded to the numbers of the base, or left in fp32 if `is_exact`: for a file
    whose own type is the only rounding. Raises `ModelError` if the adapter belongs to another base.
    """

    def __init__(self, base: Weights, adapter: Adapter, *, where: str, is_exact: bool = False) -> None:
        self._base, self._adapter, self._where = base, adapter, where
        self.entries: dict[str, Entry] = dict(base.entries)
        is_changed = adapter.changes_head or adapter.changes_embedding
        if is_changed and _HEAD not in base.entries and _EMBEDDING in base.entries:
            # The base has one tensor for both; PEFT changes one of them, and from here on they are two.
            self.entries[_HEAD] = base.entries[_EMBEDDING]
        for name, tensor in adapter.replaced.items():
            self._check(name, tuple(tensor.shape), where)
        for name, change in adapter.changes.items():
            shape = (len(change.up_Or), change.down_rI.shape[1])
            self._check(name, shape[::-1] if adapter.is_transposed else shape, where)
        if is_exact:
            for name in (*adapter.replaced, *adapter.changes):
                self.entries[name] = replace(self.entries[name], dtype=torch.float32)

    def exact(self) -> MergedWeights:
        """Return the same with what the adapter changes in fp32."""
        return MergedWeights(self._base, self._adapter, where=self._where, is_exact=True)

    def _check(self, name: str, shape: tuple[int, ...], where: str) -> None:
        entry = self.entries.get(name)
        if entry is None or entry.shape != shape:
            found = "is not in this base" if entry is None else f"is {entry.shape} in this base"
            raise ModelError(
                f"the adapter changes {name}, which {found}; its own shape is {shape}",
                where=where,
                remedy="Name the base model that the adapter was trained on.",
            )

    @property
    def base(self) -> Weights:
        """Return the weights without the adapter."""
        return self._base

    @property
    def unties_head(self) -> bool:
        """Return whether embedding and output layer are one tensor in the base, and two here."""
        return _HEAD in self.entries and _HEAD not in self._base.entries

    def read(self, name: str) -> torch.Tensor:
        """Return a merged tensor, in the numbers of the base."""
        dtype = self.entries[name].dtype
        weight = self._adapter.replaced.get(name)
        if weight is None:
            weight = self._base.read(name if name in self._base.entries else _EMBEDDING)
        change = self._adapter.changes.get(name)
        merged = weight if change is None else _add(weight, change, self._adapter.is_transposed)
        return merged.to(dtype)


def _add(weight: torch.Tensor, change: LowRank, is_transposed: bool) -> torch.Tensor:
    """Return a weight with a change in it, in fp32."""
    added_OI = change.up_Or.float() @ change.down_rI.float()
    wide_OI = (weight.T if is_transposed else weight).float()
    merged_OI = wide_OI.add(added_OI, alpha=change.scaling)
    if change.magnitude_O is not None:
        norm_O = torch.linalg.vector_norm(merged_OI, dim=1)
        merged_OI *= (change.magnitude_O.float().flatten() / norm_O)[:, None]
    return merged_OI.T.contiguous() if is_transposed else merged_OI
