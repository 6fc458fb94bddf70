"""A GGUF file, written tensor by tensor: memory stays near the largest one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from llamafarm.deploy.gguf.families import Family, add_parameters, family_of
from llamafarm.deploy.gguf.quantise import quantise
from llamafarm.deploy.gguf.types import Chosen, Mixture, Place, choose_type, num_bytes
from llamafarm.deploy.gguf.vocabulary import Vocabulary
from llamafarm.deploy.stored import Weights
from llamafarm.errors import ModelError

_HEAD = "lm_head.weight"
Importance = Mapping[str, np.ndarray[Any, Any]]
"""From a tensor's name in the file to how much each number of its rows matters."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a file says of the model for people: its name, what it came from, and its chat template."""

    name: str
    chat_template: str
    base_model: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the file: where it comes from, its shape (rows first) and its type."""

    name: str
    source: str
    shape: tuple[int, ...]
    chosen: Chosen
    read: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        """Return what it takes in the file."""
        return num_bytes(self.chosen.type, self.shape)


def plan_tensors(
    weights: Weights, config: Any, mixture: Mixture, *, has_importance: bool = False
) -> list[PlannedTensor]:
    """Return the tensors of a GGUF file in order, without reading any weight.

    Raises `ModelError` if the model's family is not known, or one of its tensors is not.
    """
    family = family_of(config)
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    num_groups = config.num_attention_heads // config.num_key_value_heads
    sources = _sources(weights, config, family)
    is_tied = _HEAD not in sources

    def plan(name: str, source: str, shape: tuple[int, ...], read: Callable[[], torch.Tensor]) -> None:
        place = Place(name, config.num_hidden_layers, num_groups, is_tied)
        chosen = choose_type(mixture, place, shape, has_importance=has_importance)
        planned.append(PlannedTensor(name, source, shape, chosen, read))

    planned: list[PlannedTensor] = []
    for source in sources:
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(
                f"llama.cpp has no place for {source} in a {config.model_type} model",
                where="the model's weights",
                remedy="Convert to safetensors, and serve it with transformers.",
            )
        plan(name, source, weights.entries[source].shape, _reader(weights, source, config, family))
    for name, tensor in family.extra_tensors(config).items():
        planned.append(
            PlannedTensor(
                name, name, tuple(tensor.shape), Chosen(gguf.GGMLQuantizationType.F32), tensor.clone
            )
        )
    return planned


def _sources(weights: Weights, config: Any, family: Family) -> list[str]:
    """Return the model's tensors that have a place in the file, in the order of its layers."""
    has_head = not family.ties_head and not config.tie_word_embeddings
    if _HEAD in weights.entries and family.ties_head and not config.tie_word_embeddings:
        raise ModelError(
            f"the output layer was trained apart from the embedding, which llama.cpp has no place for in "
            f"{config.model_type} models",
            where=_HEAD,
            remedy="Train without lm_head, or convert to safetensors.",
        )
    names = [name for name in weights.entries if not name.endswith(".rotary_emb.inv_freq")]
    return sorted((name for name in names if has_head or name != _HEAD), key=_by_layer)


def _by_layer(name: str) -> tuple[int, str]:
    number = next((int(part) for part in name.split(".") if part.isdigit()), -1)
    return number, name


def _reader(weights: Weights, source: str, config: Any, family: Family) -> Callable[[], torch.Tensor]:
    return lambda: family.turn(source, weights.read(source), config)


def write_gguf(
    path: Path,
    tensors: Sequence[PlannedTensor],
    config: Any,
    mixture: Mixture,
    vocabulary: Vocabulary,
    card: Card,
    *,
    importance: Importance | None = None,
    on_tensor: Callable[[PlannedTensor], None] = lambda tensor: None,
) -> None:
    """Write the file that `plan_tensors` planned; `on_tensor` is told of each tensor that is written.

    Raises `OSError` if it cannot be written.
    """
    family = family_of(config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    _add_card(writer, card)
    add_parameters(writer, config, family, vocab_size=len(vocabulary.tokens))
    writer.add_file_type(mixture.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.add_to(writer)
    writer.add_chat_template(card.chat_template)
    for tensor in tensors:
        # The writer takes shapes and dtypes of numpy; the type in the file is `raw_dtype`.
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, raw_dtype=tensor.chosen.type
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            weights = (importance or {}).get(tensor.name)
            writer.write_tensor_data(_Streamed(tensor, weights))
            on_tensor(tensor)
    finally:
        writer.close()


def _add_card(writer: gguf.GGUFWriter, card: Card) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(card.name)
    if card.base_model is not None:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, card.base_model)


class _Streamed:
    """A tensor's bytes as the writer takes an array: its size, and a way into a file."""

    def __init__(self, tensor: PlannedTensor, importance_C: np.ndarray[Any, Any] | None) -> None:
        self.nbytes = tensor.num_bytes
        self._tensor, self._importance_C = tensor, importance_C

    def _chunks(self) -> Iterator[np.ndarray[Any, Any]]:
        return quantise(self._tensor.read(), self._tensor.chosen.type, self._importance_C)

    def tofile(self, file: Any) -> None:
        """Write the bytes into an open file."""
        written = 0
        for chunk in self._chunks():
            file.write(chunk.data)
            written += chunk.nbytes
        assert written == self.nbytes, self._tensor.name
