"""The tiny base, ready to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llamafarm.data.conversation import Message
from llamafarm.inference.generate import Answerer, GenerationSettings
from llamafarm.inference.open import OpenModel, open_base

GREEDY = GenerationSettings(max_new_tokens=12, temperature=0.0, top_p=1.0, top_k=None, repetition_penalty=1.0)


@pytest.fixture(scope="session")
def opened(tiny_base: Path) -> OpenModel:
    """The tiny base behind a plain prompt format; not to be changed."""
    return open_base(
        str(tiny_base),
        None,
        "cpu",
        prompt_format="Question: {input}\nAnswer: {output}",
        system=None,
        settings=GREEDY,
    )


@pytest.fixture(scope="session")
def answerer(opened: OpenModel) -> Answerer:
    """The tiny base, to be asked."""
    return opened.answerer


@pytest.fixture
def question() -> tuple[Message, ...]:
    """One question to ask."""
    return (Message("user", "What is asthma?"),)


Forces = Callable[[PreTrainedModel, list[Any]], AbstractContextManager[None]]


@pytest.fixture
def forces() -> Forces:
    """Return a context in which a model says given tokens, one a step and None for its own choice."""

    @contextmanager
    def force(model: PreTrainedModel, token_ids: list[Any]) -> Iterator[None]:
        steps = iter(token_ids)

        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            token_id = next(steps, None)
            if token_id is not None:
                output.logits[:, -1, token_id] = 1e4

        handle = model.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    return force
