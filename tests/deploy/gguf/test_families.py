"""A file of each family computes in llama.cpp what the model does in transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafarm.deploy.gguf.families import FAMILIES as WRITTEN
from llamafarm.deploy.gguf.families import family_of, trained_context
from llamafarm.deploy.gguf.read import read_header
from llamafarm.errors import ModelError
from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer, has_llamacpp

needs_llamacpp = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
TOKENS = torch.randint(3, 3000, (40,), generator=torch.Generator().manual_seed(1)).tolist()


FAMILIES = [
    "llama",
    "llama-tied-with-biases",
    "llama-3-rope",
    "llama-linear-rope",
    "llama-wide-heads",
    "mistral",
    "qwen2-tied",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
]
Make = Callable[..., Any]


def logprobs_of(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Return the logarithms of a model's chances after each token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


@needs_llamacpp
@pytest.mark.parametrize(("quantization", "tolerance"), [("f32", 1e-3), ("f16", 2e-2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same(
    tmp_path: Path,
    tokenizer: Any,
    random_model: Make,
    saved: Make,
    write_file: Make,
    family: str,
    quantization: str,
    tolerance: float,
) -> None:
    model = random_model(family)
    path = write_file(saved(model, tmp_path), tokenizer, quantization)
    expected = logprobs_of(model, TOKENS)
    with LlamaServer(path, LlamaOptions(128, is_exact=True)) as server:
        for place in (0, 1, 7, 8, 9, 20, 39):
            found = server.next_token_logprobs(TOKENS[: place + 1], 3072)
            ours = torch.tensor([found[token] for token in range(3072)])
            torch.testing.assert_close(ours, expected[place], rtol=0, atol=tolerance)
        if quantization == "f32":
            tokens, _ = server.continue_greedily(TOKENS[:10], 12)
            with torch.no_grad():
                ids = torch.tensor([TOKENS[:10]])
                greedy = model.generate(ids, max_new_tokens=12, do_sample=False)[0, 10:].tolist()
            assert tokens == greedy[: len(tokens)] and len(tokens) >= len(greedy) - 1


def test_every_family_is_held_against_llama_cpp(random_model: Make, family_names: set[str]) -> None:
    assert set(FAMILIES) == family_names
    tested = {random_model(family).config.model_type for family in FAMILIES}
    assert tested == set(WRITTEN)


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("gemma2", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32, and llama.cpp takes 16"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "not every 6th"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    random_model: Make, family: str, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ModelError, match=problem):
        family_of(random_model(family, **changes).config)


def test_families_without_a_place_in_llama_cpp_are_refused_by_name() -> None:
    from transformers import GPT2Config

    with pytest.raises(ModelError, match="GGUF files cannot be written of gpt2 models") as caught:
        family_of(GPT2Config())
    assert "gemma2, gemma3_text, llama, mistral, phi3, qwen2, qwen3" in caught.value.remedy


def test_where_llama_cpp_has_no_window_the_context_is_what_both_see(random_model: Make) -> None:
    config = random_model("mistral", sliding_window=32).config
    assert trained_context(config, family_of(config)) == (32, trained_context(config, family_of(config))[1])
    assert "sliding window of 32 tokens" in str(trained_context(config, family_of(config))[1])
    for family, changes in (("gemma2", {}), ("mistral", {}), ("qwen2-tied", {"sliding_window": 9})):
        config = random_model(family, **changes).config
        assert trained_context(config, family_of(config)) == (128, None)


def test_tied_heads_are_left_out_and_others_are_there(
    tmp_path: Path, tokenizer: Any, random_model: Make, saved: Make, write_file: Make
) -> None:
    for family, is_there in (("llama", True), ("qwen2-tied", False), ("gemma2", False)):
        folder = saved(random_model(family), tmp_path / family)
        assert ("output.weight" in read_header(write_file(folder, tokenizer, "f16")).tensors) == is_there


@needs_llamacpp
def test_the_embedded_model_too(tmp_path: Path, repository: Path) -> None:
    from transformers import AutoModelForCausalLM

    from llamafarm.deploy.convert import ExportWishes, export

    folder = repository / "llamafarm" / "assets" / "cria-5m"
    export(folder, tmp_path / "m.gguf", ExportWishes("gguf", "f32", verifies=False))
    expected = logprobs_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), TOKENS)
    with LlamaServer(tmp_path / "m.gguf", LlamaOptions(128, is_exact=True)) as server:
        for place in (0, 10, 39):
            found = server.next_token_logprobs(TOKENS[: place + 1], 3072)
            ours = torch.tensor([found[token] for token in range(3072)])
            torch.testing.assert_close(ours, expected[place], rtol=0, atol=1e-3)
