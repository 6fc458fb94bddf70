"""The tiny base, loaded afresh for each test that changes it, and adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.load import Base, load_model, load_tokenizer

TINY = AdapterSettings(r=4, alpha=8, dropout=0.0, target_modules=("q_proj", "v_proj"))


@pytest.fixture
def base(tiny_base: Path) -> Base:
    """The tiny base as the user would name it: by its folder."""
    return Base(str(tiny_base), str(tiny_base))


@pytest.fixture
def fresh_model(base: Base) -> Callable[[], PreTrainedModel]:
    """Return a function that loads the tiny base once more."""
    return lambda: load_model(base, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def tokenizer(base: Base) -> Any:
    """The tiny base's tokenizer."""
    return load_tokenizer(base)


@pytest.fixture
def tuned(fresh_model: Callable[[], PreTrainedModel], base: Base) -> PeftModel:
    """The tiny base with an adapter that changes what it says."""
    adapted, _ = attach_adapter(fresh_model(), TINY, base_name=base.name, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapted.eval()


@pytest.fixture
def logits_of() -> Callable[[torch.nn.Module], torch.Tensor]:
    """Return a function to a model's logits for some fixed tokens."""
    token_ids = torch.arange(3, 23)[None]

    def compute(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=token_ids).logits
        return logits

    return compute
