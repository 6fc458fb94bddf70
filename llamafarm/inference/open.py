"""Open a model to be asked: a `final_model/` folder, or a base model with a strategy's template."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llamafarm.data.template import ChatTemplate
from llamafarm.inference.generate import Answerer, GenerationSettings
from llamafarm.model.adapter import load_adapter
from llamafarm.model.bundle import open_bundle
from llamafarm.model.load import find_base, load_model, load_tokenizer
from llamafarm.model.prompt import build_template


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded model with everything that asking or measuring it takes."""

    name: str
    base_name: str
    model: PreTrainedModel | PeftModel
    tokenizer: Any
    template: ChatTemplate
    settings: GenerationSettings
    max_length: int

    @property
    def answerer(self) -> Answerer:
        """Return the model, ready to answer."""
        return Answerer(self.model, self.tokenizer, self.template)

    @property
    def transformer(self) -> PreTrainedModel:
        """Return the transformers model, with or without an adapter in it."""
        if isinstance(self.model, PeftModel):
            base: PreTrainedModel = self.model.get_base_model()
            return base
        return self.model

    @property
    def is_tuned(self) -> bool:
        """Return whether the model has an adapter."""
        return isinstance(self.model, PeftModel)

    def as_base(self) -> OpenModel:
        """Return the same without its adapter."""
        if not isinstance(self.model, PeftModel):
            return self
        base: PreTrainedModel = self.model.unload()
        return replace(self, model=base, name=self.base_name)

    def with_settings(self, settings: GenerationSettings) -> OpenModel:
        """Return the same with other settings for its answers."""
        return replace(self, settings=settings)

    def without_adapter(self) -> AbstractContextManager[Any]:
        """Let the model be its base meanwhile."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()


def open_final_model(folder: Path, device_kind: str) -> OpenModel:
    """Return the trained model of a `final_model/` folder. Raises `ModelError` if it cannot be loaded."""
    bundle, base, tokenizer, template = open_bundle(folder)
    model = load_adapter(
        load_model(base, dtype=_dtype(device_kind), device=torch.device(device_kind)), folder
    )
    settings = GenerationSettings(**bundle.generation, stop_sequences=bundle.stop_sequences)  # type: ignore[arg-type]
    return OpenModel(str(folder), base.name, model, tokenizer, template, settings, bundle.max_length)


def open_base(
    name: str | None,
    cache_dir: str | None,
    device_kind: str,
    *,
    prompt_format: str | None,
    system: str | None,
    settings: GenerationSettings,
) -> OpenModel:
    """Return a base model that is asked through a strategy's template."""
    base = find_base(name, cache_dir)
    tokenizer = load_tokenizer(base)
    template, _ = build_template(tokenizer, prompt_format, system)
    model = load_model(base, dtype=_dtype(device_kind), device=torch.device(device_kind))
    max_length = int(getattr(model.config, "max_position_embeddings", 0) or 10**9)
    return OpenModel(base.name, base.name, model, tokenizer, template, settings, max_length)


def _dtype(device_kind: str) -> torch.dtype:
    if device_kind != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
