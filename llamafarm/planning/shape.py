"""The shape of a model as plain numbers: what the arithmetic of memory and time is done on.

`llamafarm.model.shape` reads one from a configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A linear layer that a model has `count` times; `path` is its place in a block, as `self_attn.q_proj`.

    `input_name` says which tensor it reads: layers of one block that read the same tensor have the same.
    """

    path: str
    in_features: int
    out_features: int
    count: int
    input_name: str
    has_bias: bool = False

    @property
    def num_weights(self) -> int:
        """Return the weights of all `count` matrices, without biases."""
        return self.in_features * self.out_features * self.count

    def is_named(self, targets: Sequence[str] | str) -> bool:
        """Return whether `targets` name this layer: by the end of its path, or as all-linear."""
        if isinstance(targets, str):
            return targets == ALL_LINEAR
        return any(self.path == target or self.path.endswith(f".{target}") for target in targets)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A causal language model of `num_layers` equal blocks.

    `linear_layers` are those of the blocks, without the output head; `num_parameters` counts tied weights
    once.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool
    has_gate: bool
    num_parameters: int
    linear_layers: tuple[LinearLayer, ...]

    @property
    def num_linear_weights(self) -> int:
        """Return the weights that a token is multiplied with in the blocks."""
        return sum(layer.num_weights for layer in self.linear_layers)

    @property
    def num_head_weights(self) -> int:
        """Return the weights of the output head, which may be the embedding's own."""
        return self.vocab_size * self.hidden_size

    def targeted(self, targets: Sequence[str] | str) -> tuple[LinearLayer, ...]:
        """Return the layers that get an adapter."""
        return tuple(layer for layer in self.linear_layers if layer.is_named(targets))

    def num_adapter_weights(self, rank: int, targets: Sequence[str] | str, *, uses_dora: bool = False) -> int:
        """Return how many weights LoRA trains: r·(d_in + d_out) a layer; DoRA d_out more."""
        return sum(
            layer.count
            * (rank * (layer.in_features + layer.out_features) + (layer.out_features if uses_dora else 0))
            for layer in self.targeted(targets)
        )

    def num_biases(self, targets: Sequence[str] | str | None = None) -> int:
        """Return how many biases the linear layers have, all of them or those of the targeted ones."""
        layers = self.linear_layers if targets is None else self.targeted(targets)
        return sum(layer.out_features * layer.count for layer in layers if layer.has_bias)
