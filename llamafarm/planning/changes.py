"""What to change when a run does not fit the memory, in the order of the guide's out-of-memory table.

Each row of the table is a function that changes a request; `fit` takes what changes no result by itself and
asks here for what the user would have to allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from llamafarm.planning.guide import OUT_OF_MEMORY
from llamafarm.planning.memory import predict_memory
from llamafarm.planning.packs import pack_tokens_from
from llamafarm.planning.request import LORA, QLORA, MemoryRequest, PackSize

_FEWEST_TOKENS, _LOWEST_RANK = 32, 4
_CHECKPOINTING = "hardware.optimization.gradient_checkpointing"


@dataclass(frozen=True, slots=True)
class Packing:
    """How the rows of a run are cut: packs of at most `pack_tokens`, rows of at most `max_length` tokens."""

    pack_tokens: int
    max_length: int
    longest_row_tokens: int
    training_packs: tuple[PackSize, ...]
    evaluation_packs: tuple[PackSize, ...] = ()
    num_rows_left_out: int = 0


PackWith = Callable[[int, int], Packing]
"""From `pack_tokens` and `max_length` to how the rows of the run are then cut."""


@dataclass(frozen=True, slots=True)
class Freedom:
    """What a device could do otherwise: 16-bit numbers (bf16 or fp16), weights in 4 bits."""

    half_precision: str | None = None
    may_quantize: bool = False
    may_checkpoint: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one setting: what it saves, and at which cost, in the guide's words where it has some."""

    setting: str
    value: str
    saved_bytes: int
    solution: str
    performance_impact: str

    def __str__(self) -> str:
        saved = f"saves {self.saved_bytes / 2**20:,.0f} MiB"
        return f"{self.setting}: {self.value}  ({self.solution}: {saved}; {self.performance_impact})"


@dataclass(frozen=True, slots=True)
class Proposal:
    """Changes that together make a run fit; `missing_bytes` is what is short even so."""

    changes: tuple[Change, ...]
    total_bytes: int
    missing_bytes: int

    @property
    def fits(self) -> bool:
        """Return whether the run fits with these changes."""
        return not self.missing_bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A request with the packing that it was made for, so that it can be packed anew."""

    request: MemoryRequest
    packing: Packing
    pack_with: PackWith

    def packed(self, pack_tokens: int, max_length: int | None = None) -> Cut:
        """Return the run with other packs, or with shorter rows."""
        packing = self.pack_with(pack_tokens, max_length or self.packing.max_length)
        request = replace(
            self.request,
            training_packs=packing.training_packs,
            evaluation_packs=packing.evaluation_packs,
        )
        return replace(self, request=request, packing=packing)

    def smaller(self) -> Iterator[Cut]:
        """Yield the run with packs from its own size down to its longest row."""
        for pack_tokens in pack_tokens_from(self.packing.pack_tokens, self.packing.longest_row_tokens):
            yield self if pack_tokens == self.packing.pack_tokens else self.packed(pack_tokens)

    def checkpointed(self, num_blocks: int) -> Cut:
        """Return the run with its first `num_blocks` blocks computed again in the backward pass."""
        return replace(self, request=replace(self.request, checkpointed_blocks=num_blocks))

    @property
    def total_bytes(self) -> int:
        """Return the predicted peak."""
        return predict_memory(self.request).total_bytes


# A run changed by one setting, and the setting's new value.
_Step = tuple[str, Cut]
_Lever = Callable[[Cut, Freedom], Iterator[_Step]]


def propose_changes(cut: Cut, available_bytes: int, freedom: Freedom) -> Proposal:
    """Return the first single change of the guide's table that makes a run fit, else as few as it takes.

    Packs have become as small as they may before: where a change lets them be larger, they stay small here.
    """
    for lever in _levers():
        changed, _, change = _pull(lever, cut, available_bytes, freedom)
        if change and changed.total_bytes <= available_bytes:
            return Proposal((change,), changed.total_bytes, 0)
    changes: list[Change] = []
    for lever in _levers():
        cut, freedom, change = _pull(lever, cut, available_bytes, freedom)
        changes += [change] if change else []
        if cut.total_bytes <= available_bytes:
            break
    return Proposal(tuple(changes), cut.total_bytes, max(cut.total_bytes - available_bytes, 0))


def _pull(
    lever: tuple[str, str, str, _Lever], cut: Cut, available_bytes: int, freedom: Freedom
) -> tuple[Cut, Freedom, Change | None]:
    """Return the run with one setting changed as far as it must be, or as it can be."""
    setting, solution, impact, steps = lever
    before, best = cut.total_bytes, None
    for value, changed in steps(cut, freedom):
        if changed.total_bytes < before and (best is None or changed.total_bytes < best[1].total_bytes):
            best = value, changed
        if changed.total_bytes <= available_bytes:
            break
    if best is None:
        return cut, freedom, None
    value, changed = best
    return changed, freedom, Change(setting, value, before - changed.total_bytes, solution, impact)


def _shrink_packs(cut: Cut, _: Freedom) -> Iterator[_Step]:
    for smaller in cut.smaller():
        yield "1", smaller


def _checkpoint(cut: Cut, freedom: Freedom) -> Iterator[_Step]:
    if freedom.may_checkpoint and cut.request.whole_blocks:
        yield "true", cut.checkpointed(cut.request.shape.num_layers)


def _shorten_rows(cut: Cut, _: Freedom) -> Iterator[_Step]:
    max_length = cut.packing.longest_row_tokens // 2
    while max_length >= _FEWEST_TOKENS:
        changed = cut.packed(min(cut.packing.pack_tokens, max_length), max_length)
        if not changed.packing.training_packs:
            return
        yield f"{max_length}, which leaves {changed.packing.num_rows_left_out} rows out", changed
        max_length //= 2


def _lower_rank(cut: Cut, _: Freedom) -> Iterator[_Step]:
    rank = cut.request.rank // 2
    while rank >= _LOWEST_RANK and not cut.request.is_full:
        yield str(rank), replace(cut, request=replace(cut.request, rank=rank))
        rank //= 2


def _halve_precision(cut: Cut, freedom: Freedom) -> Iterator[_Step]:
    request = cut.request
    if freedom.half_precision is None or request.precision != "fp32":
        return
    # Frozen weights follow the precision; trained ones stay in fp32.
    weight_bytes = request.weight_bytes if request.is_full else min(request.weight_bytes, 2)
    changed = replace(request, precision=freedom.half_precision, weight_bytes=weight_bytes)
    yield freedom.half_precision, replace(cut, request=changed)


def _quantize(cut: Cut, freedom: Freedom) -> Iterator[_Step]:
    if freedom.may_quantize and cut.request.method == LORA:
        yield QLORA, replace(cut, request=replace(cut.request, method=QLORA))


def _train_adapter(cut: Cut, _: Freedom) -> Iterator[_Step]:
    if cut.request.is_full:
        yield LORA, replace(cut, request=replace(cut.request, method=LORA))


# Accumulation has a row in the guide and saves nothing, as the guide says: there is nothing to pull.
_LEVERS: dict[str, _Lever] = {
    "training_args.per_device_train_batch_size": _shrink_packs,
    _CHECKPOINTING: _checkpoint,
    "data_preprocessing.max_length": _shorten_rows,
    "method.r": _lower_rank,
    "hardware.optimization.mixed_precision": _halve_precision,
}
_BEYOND_THE_GUIDE: Sequence[tuple[str, str, str, _Lever]] = (
    ("method.type", "Train an adapter", "Trains fewer weights", _train_adapter),
    ("method.type", "Hold the base in 4 bits", "Slower, and the base is rounded", _quantize),
)


def _levers() -> Iterator[tuple[str, str, str, _Lever]]:
    """Yield setting, solution, cost and change: the guide's rows, then what it does not have."""
    for row in OUT_OF_MEMORY:
        if lever := _LEVERS.get(row.setting):
            yield row.setting, row.solution, row.performance_impact, lever
    yield from _BEYOND_THE_GUIDE
