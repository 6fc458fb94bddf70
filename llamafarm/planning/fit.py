"""The largest packs that fit the memory, and what is switched on so that a run fits at all.

Only what changes no result is taken unasked: an allocator that gives memory back, smaller packs, then
checkpointing, of as few blocks as it takes. `changes` has what the user would have to allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamafarm.planning.changes import Cut, Freedom, Proposal, propose_changes
from llamafarm.planning.memory import MemoryPlan, predict_memory

# How much a heap keeps of what is freed follows from the order of packs and is known roughly only.
_ROOM_FOR_A_HEAP = 1.25


@dataclass(frozen=True, slots=True)
class Reason:
    """A setting that was settled by the memory: its value, and why."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class MemoryDecision:
    """How a run is cut so that it fits; where it does not, `proposal` has what would make it."""

    cut: Cut
    plan: MemoryPlan
    available_bytes: int
    reasons: tuple[Reason, ...]
    proposal: Proposal | None = None

    @property
    def fits(self) -> bool:
        """Return whether the predicted peak is within the memory."""
        return self.plan.total_bytes <= self.available_bytes

    @property
    def pack_tokens(self) -> int:
        """Return the most tokens of a pack."""
        return self.cut.packing.pack_tokens

    @property
    def checkpointed_blocks(self) -> int:
        """Return how many blocks, from the first on, are computed again in the backward pass."""
        return self.cut.request.checkpointed_blocks

    @property
    def shares_prefixes(self) -> bool:
        """Return whether what rows begin with is computed once: dropout differs from row to row."""
        return not self.cut.request.has_dropout

    @property
    def returns_freed_memory(self) -> bool:
        """Return whether the allocator has to give freed memory back at once."""
        return self.cut.request.returns_freed_memory


def settle_memory(
    cut: Cut,
    available_bytes: int,
    freedom: Freedom,
    *,
    may_checkpoint: bool,
    may_return_memory: bool = False,
) -> MemoryDecision:
    """Return the fastest way to run `cut`, which has the packs that the device prefers, within the memory.

    `may_checkpoint` lets as many blocks be checkpointed as it takes (it was left to us, and there are none in
    the request), `may_return_memory` an allocator that gives memory back.
    """
    if not may_return_memory or cut.total_bytes * _ROOM_FOR_A_HEAP <= available_bytes:
        returning, candidates = cut, [cut]
    else:
        returning, candidates = replace(cut, request=replace(cut.request, returns_freed_memory=True)), []
    sizes = list(returning.smaller())
    candidates += sizes
    if may_checkpoint and not cut.request.checkpointed_blocks:
        # A block that is computed again costs operations, smaller packs cost none: fewest blocks come first.
        numbers = range(1, cut.request.shape.num_layers + 1)
        candidates += [size.checkpointed(number) for number in numbers for size in sizes]
    for candidate in candidates:
        if candidate.total_bytes <= available_bytes:
            return _decide(cut, candidate, available_bytes)
    # Not the least of all: what was left to us stays off where it would not have been enough.
    proposal = propose_changes(sizes[-1], available_bytes, freedom)
    return replace(_decide(cut, sizes[-1], available_bytes), proposal=proposal)


def _decide(preferred: Cut, chosen: Cut, available_bytes: int) -> MemoryDecision:
    reasons = []
    available = f"{available_bytes / 2**30:.2f} GiB"
    if chosen.request.returns_freed_memory:
        why = f"freed memory goes back at once, for some time, so that {available} are kept"
        reasons.append(Reason("allocator", "compact", why))
    fewer = chosen.packing.pack_tokens
    if fewer < preferred.packing.pack_tokens:
        why = f"packs of {preferred.packing.pack_tokens} would not fit {available}; no result changes"
        reasons.append(Reason("pack", f"{fewer} tokens", why))
    again, before = chosen.request.checkpointed_blocks, preferred.request.checkpointed_blocks
    if again > before:
        value = f"{again} of {chosen.request.shape.num_layers} blocks are computed again"
        why = f"smaller packs alone would not fit {available}; no result changes"
        reasons.append(Reason("checkpointing", value, why))
    return MemoryDecision(chosen, predict_memory(chosen.request), available_bytes, tuple(reasons))
