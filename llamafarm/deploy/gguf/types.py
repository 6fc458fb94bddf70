"""The types of a GGUF file's tensors: which names there are, and which tensor gets which.

A name such as q4_k_m stands for a mixture: tensors that suffer more from rounding get more bits. The rules
are those of llama.cpp's own quantiser (`llama_tensor_get_type`, build 11549), so that a file of ours has in
each tensor the type that its own has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from llamafarm.deploy.gguf.read import read_header
from llamafarm.errors import ModelError

_Type = GGMLQuantizationType
F32, F16, BF16 = _Type.F32, _Type.F16, _Type.BF16
_UNQUANTISED = (F32, F16, BF16)
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight stands: its name in the file, its layer, and what the model is like around it."""

    name: str
    num_layers: int
    num_groups: int
    is_tied: bool

    @property
    def layer(self) -> int:
        """Return the number of the block; 0 outside of one."""
        matched = _BLOCK.match(self.name)
        return int(matched[1]) if matched else 0

    @property
    def kind(self) -> str:
        """Return what the tensor is in its block, or its name outside of one."""
        matched = _BLOCK.match(self.name)
        return matched[2] if matched else self.name

    @property
    def is_head(self) -> bool:
        """Return whether logits are made with it."""
        return self.name == _HEAD or (self.is_tied and self.name == _EMBEDDING)

    @property
    def is_value(self) -> bool:
        """Return whether values are made with it, which suffer more than queries and keys."""
        return self.kind in ("attn_v", "attn_qkv")

    @property
    def wants_more_bits(self) -> bool:
        """Return whether the layer is among the first or last eighth, or every third between."""
        eighth = self.num_layers // 8
        return self.layer < eighth or self.layer >= 7 * self.num_layers // 8 or (self.layer - eighth) % 3 == 2


_Rule = Callable[[Place, bool], GGMLQuantizationType | None]
"""From a place, and whether there is an importance matrix, to a type other than the mixture's usual one."""


def _q2_k(place: Place, _: bool) -> GGMLQuantizationType | None:
    if place.is_value:
        return _Type.Q4_K if place.num_groups >= 4 else _Type.Q3_K
    return _Type.Q3_K if place.kind in ("ffn_down", "attn_output") else None


def _q3_k_m(place: Place, _: bool) -> GGMLQuantizationType | None:
    if place.is_value:
        return _Type.Q5_K if place.layer < 2 else _Type.Q4_K
    if place.kind == "ffn_down":
        return _Type.Q5_K if place.layer < place.num_layers // 16 else _Type.Q4_K
    return _Type.Q4_K if place.kind == "attn_output" else None


def _q3_k_l(place: Place, _: bool) -> GGMLQuantizationType | None:
    return _Type.Q5_K if place.is_value or place.kind in ("ffn_down", "attn_output") else None


def _q4_k_s(place: Place, _: bool) -> GGMLQuantizationType | None:
    if place.is_value:
        return _Type.Q5_K if place.layer < 4 else None
    first = place.layer < place.num_layers // 8
    return _Type.Q5_K if place.kind == "ffn_down" and first else None


def _more_bits(place: Place, _: bool) -> GGMLQuantizationType | None:
    is_sensitive = place.is_value or place.kind == "ffn_down"
    return _Type.Q6_K if is_sensitive and place.wants_more_bits else None


def _guarded(other: GGMLQuantizationType) -> _Rule:
    """Return the rule of the old types: with an importance matrix the first ffn_down have an offset, too."""

    def rule(place: Place, has_importance: bool) -> GGMLQuantizationType | None:
        first = place.layer < place.num_layers // 8
        return other if has_importance and place.kind == "ffn_down" and first else None

    return rule


def _none(place: Place, _: bool) -> GGMLQuantizationType | None:
    return None


@dataclass(frozen=True, slots=True)
class Mixture:
    """A quantisation by name: its number in a file, the usual type of its weights, and the exceptions."""

    file_type: LlamaFileType
    usual: GGMLQuantizationType
    rule: _Rule = _none


MIXTURES: Mapping[str, Mixture] = {
    "f32": Mixture(LlamaFileType.ALL_F32, F32),
    "f16": Mixture(LlamaFileType.MOSTLY_F16, F16),
    "bf16": Mixture(LlamaFileType.MOSTLY_BF16, BF16),
    "q8_0": Mixture(LlamaFileType.MOSTLY_Q8_0, _Type.Q8_0),
    "q6_k": Mixture(LlamaFileType.MOSTLY_Q6_K, _Type.Q6_K),
    "q5_k_m": Mixture(LlamaFileType.MOSTLY_Q5_K_M, _Type.Q5_K, _more_bits),
    "q5_k_s": Mixture(LlamaFileType.MOSTLY_Q5_K_S, _Type.Q5_K),
    "q5_1": Mixture(LlamaFileType.MOSTLY_Q5_1, _Type.Q5_1),
    "q5_0": Mixture(LlamaFileType.MOSTLY_Q5_0, _Type.Q5_0, _guarded(_Type.Q5_1)),
    "q4_k_m": Mixture(LlamaFileType.MOSTLY_Q4_K_M, _Type.Q4_K, _more_bits),
    "q4_k_s": Mixture(LlamaFileType.MOSTLY_Q4_K_S, _Type.Q4_K, _q4_k_s),
    "q4_1": Mixture(LlamaFileType.MOSTLY_Q4_1, _Type.Q4_1),
    "q4_0": Mixture(LlamaFileType.MOSTLY_Q4_0, _Type.Q4_0, _guarded(_Type.Q4_1)),
    "q3_k_l": Mixture(LlamaFileType.MOSTLY_Q3_K_L, _Type.Q3_K, _q3_k_l),
    "q3_k_m": Mixture(LlamaFileType.MOSTLY_Q3_K_M, _Type.Q3_K, _q3_k_m),
    "q3_k_s": Mixture(LlamaFileType.MOSTLY_Q3_K_S, _Type.Q3_K),
    "q2_k": Mixture(LlamaFileType.MOSTLY_Q2_K, _Type.Q2_K, _q2_k),
}
# What a type of blocks of 256 numbers becomes where rows are no multiple of that: one with blocks of 32.
_SMALLER_BLOCKS = {
    _Type.Q2_K: _Type.Q4_0,
    _Type.Q3_K: _Type.Q4_0,
    _Type.Q4_K: _Type.Q5_0,
    _Type.Q5_K: _Type.Q5_1,
    _Type.Q6_K: _Type.Q8_0,
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The type of a tensor, and the one that its shape did not allow, if so."""

    type: GGMLQuantizationType
    instead_of: GGMLQuantizationType | None = None


def choose_type(
    mixture: Mixture, place: Place, shape: tuple[int, ...], *, has_importance: bool = False
) -> Chosen:
    """Return the type of a tensor of `shape` (rows, numbers of a row)."""
    if len(shape) < 2 or not place.name.endswith(".weight") or place.name.endswith("_norm.weight"):
        return Chosen(F32)
    if mixture.usual in _UNQUANTISED:
        return Chosen(mixture.usual)
    wanted = _wanted(mixture, place, shape[-1], has_importance)
    found = wanted
    if shape[-1] % block_size(found):
        found = _SMALLER_BLOCKS.get(found, F16)
    if shape[-1] % block_size(found):
        found = F16
    return Chosen(found, wanted if found != wanted else None)


def _wanted(mixture: Mixture, place: Place, row: int, has_importance: bool) -> GGMLQuantizationType:
    if place.is_head:
        if row % block_size(mixture.usual) or mixture.usual == _Type.Q8_0:
            return _Type.Q8_0
        return _Type.Q6_K
    if place.name == _EMBEDDING:
        return mixture.usual
    return mixture.rule(place, has_importance) or mixture.usual


def quantization_in(path: Path) -> str:
    """Return the name of the quantization that a GGUF file says it has. Raises `ModelError`."""
    found = read_header(path).metadata.get("general.file_type")
    for name, mixture in MIXTURES.items():
        if mixture.file_type == found:
            return name
    raise ModelError(
        f"the file's type of weights is number {found}, which `convert` does not write",
        where=str(path),
        remedy="Name a file that `convert` wrote.",
    )


def block_size(type_: GGMLQuantizationType) -> int:
    """Return how many numbers of a row have one scale; a row is a multiple of that."""
    return int(GGML_QUANT_SIZES[type_][0])


def num_bytes(type_: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor of `shape` takes in a type."""
    _, held = GGML_QUANT_SIZES[type_]
    return math.prod(shape) // block_size(type_) * int(held)
