"""The memory of a run: its numbers from the strategy, the model and the rows, settled by `planning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.errors import MachineError
from llamafarm.hardware.device import Device, available_memory_bytes
from llamafarm.hardware.process import can_return_freed_memory, resident_memory_bytes
from llamafarm.kernels.attention import keeps_weights
from llamafarm.model.hub import ModelSource
from llamafarm.model.load import Base, load_config
from llamafarm.model.quantized import may_quantize
from llamafarm.model.shape import build_without_weights, shape_of
from llamafarm.model.targets import choose_target_modules
from llamafarm.planning.changes import Cut, Freedom, Packing
from llamafarm.planning.fit import MemoryDecision, settle_memory
from llamafarm.planning.packs import choose_pack_tokens
from llamafarm.planning.request import QLORA, MemoryRequest, PackSize
from llamafarm.strategy.schema import Method, Strategy
from llamafarm.training.loop import LoopPlan
from llamafarm.training.preparation.method import prepare_method
from llamafarm.training.preparation.rows import Choice

# Steps whose packs are looked at; those of later steps are hardly fuller.
_NUM_SAMPLED_STEPS = 32

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """The rows of a run and which of them each step sees."""

    train_rows: EncodedRows
    eval_rows: EncodedRows
    plan: LoopPlan
    eval_rows_per_pack: int | None


def settle_method_and_memory(
    strategy: Strategy,
    method: Method,
    base: Base,
    source: ModelSource,
    device: Device,
    precision: str,
    rows: PreparedRows,
    choices: list[Choice],
) -> tuple[Method, MemoryDecision]:
    """Return the method and how it is made to fit the memory; what was chosen is added to `choices`.

    `method` has no `auto` in it. Where the strategy left its type to us and lora does not fit, it is settled
    again for a small memory.
    """
    decision = plan_memory(strategy, method, base, source, device, precision, rows)
    if strategy.method.type == "auto" and not decision.fits:
        chosen: list[Choice] = []
        method = prepare_method(strategy.method, base, device, chosen, memory_is_short=True)
        settled_anew = {choice.setting for choice in chosen}
        choices[:] = [choice for choice in choices if choice.setting not in settled_anew] + chosen
        decision = plan_memory(strategy, method, base, source, device, precision, rows)
    total, available = (show_gib(size) for size in (decision.plan.total_bytes, decision.available_bytes))
    limit = "hardware.memory_gb" if strategy.hardware.memory_gb is not None else "free on the device"
    choices.append(Choice("memory", f"{total} at the peak", f"predicted; {available} {limit}"))
    choices += [Choice(reason.setting, reason.value, reason.why) for reason in decision.reasons]
    return method, decision


def show_gib(num_bytes: int) -> str:
    """Return bytes in GiB, to a hundredth."""
    return f"{num_bytes / 2**30:.2f} GiB"


def plan_memory(
    strategy: Strategy,
    method: Method,
    base: Base,
    source: ModelSource,
    device: Device,
    precision: str,
    rows: PreparedRows,
) -> MemoryDecision:
    """Return how the run is cut into packs and what is switched on, so that it fits the memory.

    Whether it does is left to the caller to look at.
    """
    model = build_without_weights(load_config(base))
    shape = shape_of(model)
    targets = method.target_modules or choose_target_modules(model, shape.num_parameters)[0]
    assert method.r != "auto" and method.dropout != "auto" and method.type != "auto"
    is_full = method.type == "full_finetune"
    num_biases = 0
    if method.bias != "none":
        num_biases = shape.num_biases(None if method.bias == "all" else targets)
    on_cpu = device.kind == "cpu"
    resident = resident_memory_bytes() if on_cpu else 0
    checkpoints = strategy.hardware.optimization.gradient_checkpointing
    request = MemoryRequest(
        shape=shape,
        device_kind=device.kind,
        method=method.type,
        rank=method.r,
        targets=targets,
        precision=precision,
        weight_bytes=_weight_bytes(strategy, method, precision),
        training_packs=(),
        checkpointed_blocks=shape.num_layers if checkpoints else 0,
        has_dropout=method.dropout > 0 and not is_full,
        uses_dora=method.use_dora,
        num_trained_biases=num_biases,
        stored_bytes=source.num_bytes,
        process_bytes=resident,
        keeps_attention_weights=keeps_weights(device.kind, shape.head_dim),
    )
    limit_gb = strategy.hardware.memory_gb
    # What this process holds already is in the plan, and no longer free.
    available = available_memory_bytes(device) + resident if limit_gb is None else int(limit_gb * 2**30)
    return settle_memory(
        _cut(request, rows, choose_pack_tokens(device.kind)),
        available,
        Freedom(
            half_precision=_half_precision(device),
            may_quantize=may_quantize(device.kind) and not is_full,
            may_checkpoint=checkpoints is None,
        ),
        may_checkpoint=checkpoints is None,
        may_return_memory=on_cpu and can_return_freed_memory(),
    )


def refuse_what_does_not_fit(decision: MemoryDecision, details: Mapping[str, Any] | None = None) -> None:
    """Raise `MachineError`, with the changes that would help, if a run needs more memory than there is."""
    if decision.fits:
        return
    raise MachineError(
        f"training needs {show_gib(decision.plan.total_bytes)} at its peak, and there are "
        f"{show_gib(decision.available_bytes)}",
        where="hardware.memory_gb, or what is free on the device",
        remedy=describe_remedy(decision),
        details=details,
    )


def describe_remedy(decision: MemoryDecision) -> str:
    """Return what would make a run fit, as a sentence; empty where it does."""
    proposal, process = decision.proposal, decision.plan.process
    if proposal is None:
        return ""
    if process >= decision.available_bytes:
        return f"Find more memory: Python and its libraries alone take {show_gib(process)}."
    settings = " and ".join(f"{change.setting}: {change.value}" for change in proposal.changes)
    if proposal.fits:
        return f"Set {settings}; `plan` shows what each saves."
    even_with = f" even with {settings}" if settings else ""
    return f"Use a smaller base model: {show_gib(proposal.missing_bytes)} are missing{even_with}."


def _cut(request: MemoryRequest, rows: PreparedRows, pack_tokens: int) -> Cut:
    """Return the run with packs of the device's preferred size."""
    longest = int(rows.train_rows.lengths_N.max())

    def pack_with(pack_tokens: int, max_length: int) -> Packing:
        return _pack(rows, pack_tokens, max_length, shares_prefixes=not request.has_dropout)

    empty = Cut(request, Packing(pack_tokens, longest, longest, ()), pack_with)
    return empty.packed(pack_tokens)


def _pack(rows: PreparedRows, pack_tokens: int, max_length: int, *, shares_prefixes: bool) -> Packing:
    plan, train_rows, eval_rows = rows.plan, rows.train_rows, rows.eval_rows
    fits_N = train_rows.lengths_N <= max_length
    stride = max(plan.num_steps // _NUM_SAMPLED_STEPS, 1)
    sizes: list[PackSize] = []
    for step in range(1, plan.num_steps + 1, stride):
        indices = [index for index in plan.rows_of_step(step) if fits_N[index]]
        packs = pack_rows(train_rows, indices, pack_tokens, shares_prefixes=shares_prefixes)
        sizes += [PackSize(*size, finds_gradients=place > 0) for place, size in enumerate(packs.sizes())]
    kept_eval = np.flatnonzero(eval_rows.lengths_N <= max_length)
    eval_packs = pack_rows(eval_rows, kept_eval, pack_tokens, rows.eval_rows_per_pack, shares_prefixes=True)
    # A row that no step looked at may be the longest.
    longest = int(train_rows.lengths_N[fits_N].max(initial=0))
    of_longest = train_rows.num_supervised_N[train_rows.lengths_N == longest]
    sizes += [PackSize(longest, int(of_longest.max()))] if longest else []
    return Packing(
        pack_tokens=pack_tokens,
        max_length=max_length,
        longest_row_tokens=longest,
        training_packs=_largest(sizes),
        evaluation_packs=_largest([PackSize(*size) for size in set(eval_packs.sizes())]),
        num_rows_left_out=int((~fits_N).sum()),
    )


def _largest(sizes: Sequence[PackSize]) -> tuple[PackSize, ...]:
    """Return the packs that no other covers."""
    kept: list[PackSize] = []
    for size in sizes:
        if not any(other.covers(size) for other in kept):
            kept = [other for other in kept if not size.covers(other)] + [size]
    return tuple(kept)


def _weight_bytes(strategy: Strategy, method: Method, precision: str) -> float:
    """Return what a weight of the base is held in, as `training.methods` loads it."""
    if method.type == QLORA:
        return 0.5
    if method.type == "full_finetune" or method.bias != "none":
        return 4
    return _DTYPE_BYTES.get(strategy.base_model.torch_dtype, 4 if precision == "fp32" else 2)


def _half_precision(device: Device) -> str | None:
    """Return the 16-bit numbers that the device can train in."""
    if device.gpu is None:
        return "bf16"
    if device.gpu.has_bf16:
        return "bf16"
    return "fp16" if device.kind == "cuda" else None
