"""Tokens that a base model was never trained on: their embeddings give them away.

A base model's control tokens are often reserved: they stay as they were made, much shorter than those of the
tokens that were trained, or all alike. A template that is meant for the instruction-tuned sister then shows
the model tokens that mean nothing to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llamafarm.errors import ModelError

# How an embedding's weights are called, in the architectures that transformers has.
_EMBEDDING_ENDS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
# Of the rows that are compared with: those of plain tokens, spread over the vocabulary.
_NUM_COMPARED = 256
_SHORT = 0.25


def find_untrained_tokens(folder: Path, texts: Mapping[int, str]) -> dict[int, str]:
    """Return those of some tokens, ids to texts, that the model in `folder` was never trained on.

    Reads only the rows that are needed. Nothing is returned for a model whose embedding is not found, and
    none of a vocabulary that is too small to compare with. Raises `ModelError` for files that cannot be read.
    """
    found = _find_embedding(folder)
    if found is None or not texts:
        return {}
    file, name = found
    with safe_open(str(file), framework="pt") as weights:
        rows_VH = weights.get_slice(name)
        num_tokens = rows_VH.get_shape()[0]
        step = max(num_tokens // _NUM_COMPARED, 1)
        plain = [token_id for token_id in range(0, num_tokens, step) if token_id not in texts]
        if len(plain) < _NUM_COMPARED // 2:
            return {}
        usual = torch.stack([_row(rows_VH, token_id).norm() for token_id in plain]).median()
        rows = {token_id: _row(rows_VH, token_id) for token_id in texts if token_id < num_tokens}
    return {
        token_id: texts[token_id]
        for token_id, row_H in rows.items()
        if row_H.norm() < _SHORT * usual or _has_a_twin(token_id, rows)
    }


def _row(rows_VH: object, token_id: int) -> torch.Tensor:
    row_1H: torch.Tensor = rows_VH[token_id : token_id + 1]  # type: ignore[index]
    return row_1H[0].float()


def _has_a_twin(token_id: int, rows: Mapping[int, torch.Tensor]) -> bool:
    row_H = rows[token_id]
    return any(other != token_id and torch.equal(row_H, rows[other]) for other in rows)


def _find_embedding(folder: Path) -> tuple[Path, str] | None:
    files: Sequence[Path] = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as weights:
                names = [name for name in weights.keys() if name.endswith(_EMBEDDING_ENDS)]  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(
                f"the weights cannot be loaded: {error}", where=str(file), remedy="Fetch the model again."
            ) from None
        if names:
            return file, names[0]
    return None
