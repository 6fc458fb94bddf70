"""Random models of every family that is exported, and a final model that a run could have left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llamafarm.deploy.gguf.types import MIXTURES
from llamafarm.deploy.gguf.vocabulary import read_vocabulary
from llamafarm.deploy.gguf.write import Card, plan_tensors, write_gguf
from llamafarm.deploy.stored import StoredWeights

SIZES = {
    "vocab_size": 3072,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied-with-biases": (
        "LlamaConfig",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-3-rope": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear-rope": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2-tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 6}),
    "phi3": ("Phi3Config", {}),
}


def make_random_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """Return a random model of a family, its norms and biases not at their first values."""
    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**{**SIZES, **own, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:  # so that attention is not nearly the same to all tokens
                parameter.mul_(8.0 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 2.0)
    return model


def save(model: Any, folder: Path, tokenizer: Any | None = None) -> Path:
    """Save a model and return its folder."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """Return a function to a random model of a family, by its name here."""
    return make_random_model


@pytest.fixture(scope="session")
def saved() -> Callable[..., Path]:
    """Return a function that saves a model and returns its folder."""
    return save


@pytest.fixture(scope="session")
def family_names() -> set[str]:
    """The names of all families here."""
    return set(FAMILIES)


@pytest.fixture(scope="session")
def write_file() -> Callable[[Path, Any, str], Path]:
    """Return a function that writes the model of a folder as a GGUF file, and returns its path."""

    def write(folder: Path, tokenizer: Any, quantization: str) -> Path:
        config = AutoConfig.from_pretrained(folder)
        mixture = MIXTURES[quantization]
        path = folder / f"{quantization}.gguf"
        vocabulary = read_vocabulary(
            tokenizer, num_embeddings=3072, end_of_turn="<|end|>", begins_with_bos=False
        )
        with StoredWeights(folder) as weights:
            tensors = plan_tensors(weights, config, mixture)
            write_gguf(path, tensors, config, mixture, vocabulary, Card("x", "{{ messages }}"))
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer(repository: Path) -> Any:
    """The embedded model's tokenizer."""
    return AutoTokenizer.from_pretrained(repository / "llamafarm" / "assets" / "cria-5m")


@pytest.fixture(scope="session")
def make_adapter(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any
) -> Callable[..., tuple[Path, torch.nn.Module]]:
    """Return a function that saves a random base and an adapter on it, and gives the adapted model, too."""

    def make(family: str = "llama", seed: int = 0, **settings: Any) -> tuple[Path, torch.nn.Module]:
        folder = tmp_path_factory.mktemp("adapter")
        base = make_random_model(family, seed)
        save(base, folder / "base", tokenizer)
        chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "down_proj"], **settings}
        adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **chosen))
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad and "lora_A" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
        adapted.save_pretrained(str(folder / "adapter"))
        return folder / "adapter", adapted.eval()

    return make


@pytest.fixture
def final_model(make_adapter: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    """A final_model folder, with a template of its own and what the run wrote of it."""
    adapter, _ = make_adapter(target_modules=["q_proj", "v_proj", "down_proj"])
    folder = tmp_path / "run" / "final_model"
    folder.parent.mkdir()
    adapter.rename(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "base_model": str(adapter.parent / "base"),
        "strategy": "tiny",
        "end_of_turn": "<|end|>",
        "joiner": "\n\n",
        "max_length": 64,
        "stop_sequences": ["###"],
        "generation": {
            "max_new_tokens": 20,
            "temperature": 0.5,
            "top_p": 0.8,
            "top_k": 7,
            "repetition_penalty": 1.1,
        },
        "kind": "adapter",
        "quantization": None,
        "trained": {"is_last_answer_only": False, "includes_prompt": False},
        "format_version": 1,
    }
    (folder / "llamafarm.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
