"""What the arithmetic of memory and time is asked about: a run, in plain numbers.

The caller takes them from a strategy, the model's configuration and the real lengths of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamafarm.planning.shape import LinearLayer, ModelShape

FULL_FINETUNE, LORA, QLORA = "full_finetune", "lora", "qlora"

_FP32_BYTES, _HALF_BYTES = 4, 2


@dataclass(frozen=True, slots=True)
class PackSize:
    """How large a pack is: its tokens and those of them that are trained on.

    `sum_of_squares` is over its documents' lengths; None stands for one document. `finds_gradients` says that
    another pack of its step came before.
    """

    num_tokens: int
    num_supervised_tokens: int
    sum_of_squares: int | None = None
    finds_gradients: bool = False

    @property
    def num_pairs(self) -> int:
        """Return the squared lengths of the documents, summed."""
        return self.num_tokens**2 if self.sum_of_squares is None else self.sum_of_squares

    def covers(self, other: PackSize) -> bool:
        """Return whether this pack takes at least the memory of another, whatever the model."""
        return (
            self.num_tokens >= other.num_tokens
            and self.num_supervised_tokens >= other.num_supervised_tokens
            and self.num_pairs >= other.num_pairs
            and self.finds_gradients >= other.finds_gradients
        )


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """A run, in the numbers that its memory follows from.

    `precision` is fp32, bf16 or fp16. `weight_bytes` is what a frozen weight is held in: 4, 2, or 0.5 for
    qlora, whose embeddings and norms are in the numbers that are computed with. `stored_bytes` is what all
    weights take in their files. `process_bytes` is what the process holds before it loads the model, 0 where
    the device has memory of its own. Of the packs the largest counts. The first `checkpointed_blocks` of the
    model keep their inputs only and are computed again in the backward pass. On a processor attention
    `keeps_attention_weights` where its kernels are not compiled.
    """

    shape: ModelShape
    device_kind: str
    method: str
    rank: int
    targets: Sequence[str] | str
    precision: str
    weight_bytes: float
    training_packs: tuple[PackSize, ...]
    evaluation_packs: tuple[PackSize, ...] = ()
    checkpointed_blocks: int = 0
    has_dropout: bool = False
    uses_dora: bool = False
    num_trained_biases: int = 0
    stored_bytes: int = 0
    process_bytes: int = 0
    returns_freed_memory: bool = False
    keeps_attention_weights: bool = True

    @property
    def is_full(self) -> bool:
        """Return whether every weight is trained."""
        return self.method == FULL_FINETUNE

    @property
    def whole_blocks(self) -> int:
        """Return how many blocks keep all that their backward pass needs."""
        return self.shape.num_layers - self.checkpointed_blocks

    @property
    def checkpointed_part(self) -> float:
        """Return the part of the blocks that is computed again."""
        return self.checkpointed_blocks / self.shape.num_layers

    @property
    def num_trained_weights(self) -> int:
        """Return how many weights the optimizer moves."""
        if self.is_full:
            return self.shape.num_parameters
        adapters = self.shape.num_adapter_weights(self.rank, self.targets, uses_dora=self.uses_dora)
        return adapters + self.num_trained_biases

    @property
    def is_fused(self) -> bool:
        """Return whether the kernels compute the blocks: adapters on weights as the run computes."""
        is_known = self.method == QLORA or (self.method == LORA and self.weight_bytes == self.compute_bytes)
        return is_known and not self.uses_dora

    @property
    def has_known_head(self) -> bool:
        """Return whether the kernels compute the loss chunk by chunk: the output layer is frozen."""
        return self.is_fused and "lm_head" not in self.targets

    @property
    def adapted_layers(self) -> tuple[LinearLayer, ...]:
        """Return the linear layers whose inputs are kept for a gradient of their own weights or adapters."""
        return self.shape.linear_layers if self.is_full else self.shape.targeted(self.targets)

    @property
    def compute_bytes(self) -> int:
        """Return what a number takes that matrix products give."""
        return _FP32_BYTES if self.precision == "fp32" else _HALF_BYTES

    @property
    def residual_bytes(self) -> int:
        """Return what a number takes that goes from block to block: as the embedding's weights."""
        if self.method == QLORA:
            return self.compute_bytes
        return _FP32_BYTES if self.weight_bytes == _FP32_BYTES else _HALF_BYTES

    @property
    def casts_weights(self) -> bool:
        """Return whether each step makes 16-bit copies of fp32 weights."""
        return self.compute_bytes < self.weight_bytes
