"""Which modules of a model an adapter goes to: the guide's roles under the names that the model has for them.

The guide speaks of q_proj, v_proj, …; other architectures call them otherwise, or keep several in one matrix.
`adapter` attaches what is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from llamafarm.errors import ModelError
from llamafarm.planning.guide import lora_row

ALL_LINEAR = "all-linear"

# Matrices that hold queries, keys and values at once: Phi-3 and CodeGen; GPT-NeoX, Falcon and Bloom; GPT-2;
# MPT; Baichuan.
_FUSED_ATTENTION = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack")
_ATTENTION_ROLES = {
    "q_proj": ("q_proj", "q_b_proj", *_FUSED_ATTENTION),
    "k_proj": ("k_proj", "kv_b_proj", *_FUSED_ATTENTION),
    "v_proj": ("v_proj", "kv_b_proj", *_FUSED_ATTENTION),
    "o_proj": ("o_proj", "out_proj", "dense", "c_proj"),
}
# Layers without a gate have one matrix upwards and none for the gate.
_FEED_FORWARD_ROLES = {
    "gate_proj": ("gate_proj", "gate_up_proj", "w1"),
    "up_proj": ("up_proj", "gate_up_proj", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h"),
    "down_proj": ("down_proj", "w2", "fc2", "fc_out", "c_proj", "dense_4h_to_h"),
}


def choose_target_modules(model: nn.Module, num_parameters: float) -> tuple[Sequence[str] | str, str]:
    """Return the modules that the guide's table names for a model of this size, and why.

    Roles that the model has under other names are those; an architecture that has none of them gets all its
    linear layers.
    """
    row = lora_row(num_parameters)
    why = f"the guide's table for {row.size}"
    if isinstance(row.target_modules, str):
        return ALL_LINEAR, why
    found = {role: names_for_role(model, role) for role in row.target_modules}
    chosen = tuple(dict.fromkeys(name for names in found.values() for name in names))
    if not chosen:
        return ALL_LINEAR, f"{why}, but there are no modules called {', '.join(row.target_modules)} or alike"
    renamed = [f"{role} is {names[0]} here" for role, names in found.items() if names and names != (role,)]
    missing = [role for role, names in found.items() if not names]
    absent = [f"there is no linear layer for {', '.join(missing)}"] if missing else []
    return chosen, "; ".join([why, *renamed, *absent])


def check_target_modules(model: nn.Module, targets: Sequence[str]) -> None:
    """Raise `ModelError`, with the model's own names, if it lacks one of `targets`."""
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in targets if target.rpartition(".")[2] not in present]
    if not missing:
        return
    meant = {target: names_for_role(model, target) for target in missing}
    translated = [f"{target} is {names[0]} here" for target, names in meant.items() if names]
    own = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
    raise ModelError(
        f"the model has no modules called {', '.join(missing)}",
        where="method.target_modules",
        remedy="; ".join([f"Choose among {', '.join(own)}, or write all-linear", *translated]) + ".",
    )


def names_for_role(model: nn.Module, role: str) -> tuple[str, ...]:
    """Return what `model` calls the guide's `role`, q_proj to down_proj; nothing if it has no such layer.

    A name that the model uses for other layers too comes with that of the module around it.
    """
    is_attention = role in _ATTENTION_ROLES
    candidates = (_ATTENTION_ROLES if is_attention else _FEED_FORWARD_ROLES).get(role, ())
    places = [_split(name) for name in linear_layers(model)]
    for candidate in candidates:
        parents = {parent for parent, leaf in places if leaf == candidate}
        wanted = {parent for parent in parents if _is_attention(parent) == is_attention}
        if candidate == role and not wanted:  # unmistakable wherever it stands
            wanted = parents
        if wanted == parents and wanted:
            return (candidate,)
        if wanted:
            return tuple(f"{parent}.{candidate}" for parent in sorted(wanted))
    return ()


def linear_layers(model: nn.Module) -> Iterator[str]:
    """Yield the full names of the linear layers of `model`, but for the output head."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name


def _split(name: str) -> tuple[str, str]:
    """Return the name of the module around a layer, and the layer's own."""
    parents, _, leaf = name.rpartition(".")
    return parents.rpartition(".")[2], leaf


def _is_attention(parent: str) -> bool:
    return "attn" in parent or "attention" in parent
