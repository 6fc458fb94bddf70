"""A GGUF file of an opened source: planned without reading a weight, then written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafarm.deploy.gguf.families import family_of, trained_context
from llamafarm.deploy.gguf.types import MIXTURES, Mixture
from llamafarm.deploy.gguf.vocabulary import Vocabulary, read_vocabulary
from llamafarm.deploy.gguf.write import Card, Importance, PlannedTensor, plan_tensors, write_gguf
from llamafarm.deploy.source import Source


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """What a file will hold, and what its reader should know of that."""

    source: Source
    tensors: Sequence[PlannedTensor]
    mixture: Mixture
    vocabulary: Vocabulary
    notes: Sequence[str]
    importance: Importance | None = None

    @property
    def num_bytes(self) -> int:
        """Return how many bytes its weights take."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def write(
        self, path: Path, name: str, on_tensor: Callable[[PlannedTensor], None] = lambda tensor: None
    ) -> None:
        """Write the file. Raises `OSError` if it cannot be written."""
        source = self.source
        card = Card(name, source.template.source, base_model=source.base.name)
        write_gguf(
            path,
            self.tensors,
            source.config,
            self.mixture,
            self.vocabulary,
            card,
            importance=self.importance,
            on_tensor=on_tensor,
        )


def plan_file(source: Source, quantization: str, importance: Importance | None = None) -> PlannedFile:
    """Return what a GGUF file of a source will hold; `importance` says what should be rounded least.

    Raises `ModelError` if llama.cpp does not know the model or its tokenizer.
    """
    mixture = MIXTURES[quantization]
    tensors = plan_tensors(
        source.exact_weights, source.config, mixture, has_importance=importance is not None
    )
    vocabulary = read_vocabulary(
        source.tokenizer,
        num_embeddings=source.num_embeddings,
        end_of_turn=source.template.end_of_turn,
        begins_with_bos=source.begins_with_bos,
    )
    _, why_shorter = trained_context(source.config, family_of(source.config))
    notes = [*_notes_on(tensors), *([why_shorter] if why_shorter else [])]
    return PlannedFile(source, tensors, mixture, vocabulary, notes, importance)


def _notes_on(tensors: Sequence[PlannedTensor]) -> list[str]:
    """Return which tensors' shapes did not allow the type that they should have had."""
    replaced: dict[tuple[str, str], list[PlannedTensor]] = {}
    for tensor in tensors:
        if tensor.chosen.instead_of is not None:
            kinds = tensor.chosen.instead_of.name, tensor.chosen.type.name
            replaced.setdefault(kinds, []).append(tensor)
    return [
        f"{len(found)} tensors are {used} instead of {wanted}: their rows ({found[0].name}: "
        f"{found[0].shape[-1]} numbers) are not whole blocks of it"
        for (wanted, used), found in replaced.items()
    ]
