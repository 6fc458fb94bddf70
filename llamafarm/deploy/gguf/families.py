"""The families of models that a GGUF file can be written of: names, turned weights, and parameters.

llama.cpp has its own names for tensors (the `gguf` library knows them), and for some families its own order
of a weight's rows. One entry of `FAMILIES` for each; a test holds every one against llama.cpp's logits.
Axes: O outputs of a layer, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType

from llamafarm.errors import ModelError

_SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True)
class Family:
    """How the models of one `model_type` of transformers become a GGUF file.

    `permutes_heads`: llama.cpp turns neighbouring pairs of a head, transformers its halves. `norm_offset` is
    added to norms: Gemma's count from 1. `ties_head`: there is no output layer of its own. `has_windows`:
    llama.cpp attends within the model's sliding window. `add` writes what only this family has, `check`
    returns what of a configuration llama.cpp would compute otherwise.
    """

    arch: MODEL_ARCH
    permutes_heads: bool = False
    norm_offset: float = 0.0
    ties_head: bool = False
    has_windows: bool = False
    add: Callable[[GGUFWriter, Any], None] = lambda writer, config: None
    check: Callable[[Any], str | None] = lambda config: None
    extra_tensors: Callable[[Any], Mapping[str, torch.Tensor]] = field(default=lambda config: {})

    def turn(self, name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
        """Return a tensor of transformers as llama.cpp wants it, in fp32 where it is computed with."""
        if self.norm_offset and name.endswith("norm.weight"):
            return weight.float() + self.norm_offset
        if self.permutes_heads and name.endswith(("q_proj.weight", "q_proj.bias")):
            return _permute(weight, config.num_attention_heads)
        if self.permutes_heads and name.endswith(("k_proj.weight", "k_proj.bias")):
            return _permute(weight, config.num_key_value_heads)
        return weight


def _permute(weight_O: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return rows in the order of pairs: the first of each half of a head, the second of each, and so on."""
    halves = weight_O.reshape(num_heads, 2, len(weight_O) // num_heads // 2, *weight_O.shape[1:])
    return halves.transpose(1, 2).reshape(weight_O.shape)


def head_size(config: Any) -> int:
    """Return the size of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_of(config: Any) -> dict[str, Any]:
    """Return how positions are rotated, in the layers with full attention."""
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    return dict(rope.get("full_attention", rope))


def trained_context(config: Any, family: Family) -> tuple[int, str | None]:
    """Return in how many tokens of context llama.cpp computes the same model, and why they are fewer."""
    context = int(config.max_position_embeddings)
    window = int(getattr(config, "sliding_window", None) or context)
    is_windowed = getattr(config, "use_sliding_window", None) is not False and window < context
    if is_windowed and not family.has_windows:
        return window, (
            f"llama.cpp does not attend in this model's sliding window of {window} tokens: the context is "
            f"{window} tokens, in which both are the same"
        )
    return context, None


def _add_windows(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if (cap := getattr(config, name, None)) is not None:
            add(cap)


def _check_gemma(every: int, largest_layers: int) -> Callable[[Any], str | None]:
    """Return a check of what llama.cpp knows of a Gemma without being told.

    Every `every`-th layer attends to all; scores are divided by the root of a head's size, in the largest
    model (which it tells by its layers) by that of the hidden size a head.
    """

    def check(config: Any) -> str | None:
        types = list(config.layer_types or [])
        expected = ["full_attention" if (place + 1) % every == 0 else _SLIDING for place in range(len(types))]
        if types != expected:
            return f"its layers with full attention are not every {every}th"
        divisor = head_size(config)
        if config.num_hidden_layers == largest_layers:
            divisor = config.hidden_size // config.num_attention_heads
        if config.query_pre_attn_scalar != divisor:
            return f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, and llama.cpp takes {divisor}"
        return None

    return check


def _add_gemma3(writer: GGUFWriter, config: Any) -> None:
    _add_windows(writer, config)
    local = config.rope_parameters.get(_SLIDING) or {}
    writer.add_rope_freq_base_swa(float(local.get("rope_theta", 10_000.0)))


def _llama3_factors(config: Any) -> Mapping[str, torch.Tensor]:
    """Return what Llama 3.1 divides each frequency by, so that low ones reach a longer context."""
    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return {}
    size = head_size(config)
    frequencies = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    wavelengths = 2 * math.pi / frequencies
    original = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    share = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": (1 / ((1 - share) / factor + share)).float()}


def _long_factors(config: Any) -> Mapping[str, torch.Tensor]:
    """Return what Phi-3 divides frequencies by within its original context, and beyond it."""
    rope = rope_of(config)
    if rope.get("rope_type") not in ("longrope", "su"):
        return {}
    return {
        "rope_factors_long.weight": torch.tensor(rope["long_factor"], dtype=torch.float32),
        "rope_factors_short.weight": torch.tensor(rope["short_factor"], dtype=torch.float32),
    }


def _add_phi3(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(0)  # 0 tells llama.cpp that there is none
    rope = rope_of(config)
    original = int(
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
    )
    writer.add_rope_scaling_orig_ctx_len(original)
    if _long_factors(config):
        scale = config.max_position_embeddings / original
        spread = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(float(rope.get("attention_factor") or spread))


_LLAMA = Family(MODEL_ARCH.LLAMA, permutes_heads=True, extra_tensors=_llama3_factors)
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "gemma2": Family(
        MODEL_ARCH.GEMMA2,
        norm_offset=1.0,
        ties_head=True,
        has_windows=True,
        add=_add_windows,
        check=_check_gemma(2, 46),
    ),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3,
        norm_offset=1.0,
        ties_head=True,
        has_windows=True,
        add=_add_gemma3,
        check=_check_gemma(6, 62),
    ),
    "phi3": Family(MODEL_ARCH.PHI3, add=_add_phi3, extra_tensors=_long_factors),
}


def family_of(config: Any) -> Family:
    """Return how a model of this configuration is written.

    Raises `ModelError` if llama.cpp would not compute the same.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"GGUF files cannot be written of {config.model_type} models",
            where="config.json: model_type",
            remedy=f"Convert to safetensors, or use one of: {', '.join(sorted(FAMILIES))}.",
        )
    reason = family.check(config) or _check_rope(config, family)
    if reason is not None:
        raise ModelError(
            f"llama.cpp would not compute this {config.model_type} model as it was trained: {reason}",
            where="config.json",
            remedy="Convert to safetensors, and serve it with transformers.",
        )
    return family


# How positions are rotated, and what of it llama.cpp has.
_LINEAR, _YARN, _DYNAMIC = "linear", "yarn", "dynamic"


def _check_rope(config: Any, family: Family) -> str | None:
    kind = rope_of(config).get("rope_type", "default")
    if kind in ("default", _LINEAR, _YARN, _DYNAMIC):
        return None
    return None if family.extra_tensors(config) else f"its rotary positions are of the type {kind}"


def add_parameters(writer: GGUFWriter, config: Any, family: Family, *, vocab_size: int) -> None:
    """Write the numbers that llama.cpp builds the model by."""
    writer.add_context_length(trained_context(config, family)[0])
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_vocab_size(vocab_size)
    rope = rope_of(config)
    writer.add_rope_dimension_count(int(head_size(config) * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", "default")
    if kind == _LINEAR:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == _YARN:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))
    family.add(writer, config)
