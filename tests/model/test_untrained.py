"""Tokens that a base was never trained on are told from their embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llamafarm.errors import ModelError
from llamafarm.model.load import EMBEDDED_BASE, control_token_texts, find_base, load_tokenizer
from llamafarm.model.untrained import find_untrained_tokens

TEXTS = {1990: "<a>", 1991: "<b>", 1992: "<c>", 1993: "<d>"}


def write_model(
    folder: Path, num_tokens: int = 2000, name: str = "model.embed_tokens.weight"
) -> torch.Tensor:
    torch.manual_seed(0)
    rows_VH = torch.randn(num_tokens, 16)
    if num_tokens > 1993:
        rows_VH[1990] *= 0.01
        rows_VH[1992] = rows_VH[1991]
    save_file({name: rows_VH, "model.norm.weight": torch.ones(16)}, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wte.weight"])
def test_short_embeddings_and_twins_were_never_trained(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, name=name)
    assert find_untrained_tokens(tmp_path, TEXTS) == {1990: "<a>", 1991: "<b>", 1992: "<c>"}
    assert find_untrained_tokens(tmp_path, {1993: "<d>", 1991: "<b>"}) == {}


def test_nothing_is_said_where_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    assert find_untrained_tokens(tmp_path, TEXTS) == {}
    write_model(tmp_path, num_tokens=60)
    assert find_untrained_tokens(tmp_path, {1: "<a>"}) == {}
    write_model(tmp_path, name="model.other.weight")
    assert find_untrained_tokens(tmp_path, TEXTS) == {}


def test_ids_beyond_the_embedding_are_left_to_others(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert find_untrained_tokens(tmp_path, {2001: "<e>"}) == {}


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        find_untrained_tokens(tmp_path, TEXTS)


def test_the_embedded_model_was_trained_on_the_token_that_ends_its_answers() -> None:
    base = find_base(EMBEDDED_BASE)
    tokenizer = load_tokenizer(base)
    texts = control_token_texts(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(texts)
    untrained = find_untrained_tokens(Path(base.source), dict(zip(ids, texts, strict=True)))
    assert tokenizer.eos_token not in untrained.values()
