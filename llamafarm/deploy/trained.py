"""The trained model as others are compared with it: asked once, in fp32, on the processor.

Its passages are the user's rows, or its own answers to fixed prompts where there are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.encode import encode_separately
from llamafarm.deploy.parity import Distance, Form, Passage, TorchForm, measure_distance
from llamafarm.deploy.same_tokens import CONVERSATIONS, prompt_of
from llamafarm.deploy.source import Source, open_trained
from llamafarm.deploy.stored import Weights
from llamafarm.errors import ModelError, TemplateError
from llamafarm.inference.generate import GenerationSettings
from llamafarm.inference.open import OpenModel
from llamafarm.model.load import text_encoder
from llamafarm.model.weights import ADAPTER, form_of

# Positions of answers at which next tokens are compared, and answers that are written out.
_MOST_POSITIONS, _MOST_ANSWERS = 160, 8
ANSWER_TOKENS = 48
MOST_CONTEXT = 4096
_HEAD = "lm_head.weight"


class TrainedModel:
    """What was trained: its answers, and its chances of next tokens at the places of its passages.

    `base_divergence` is how far its base is from it, None where none is beside it. Raises `ModelError` if it
    cannot be loaded, or if no row leaves anything to compare.
    """

    def __init__(self, source: Source, conversations: Sequence[Conversation]) -> None:
        self.source = source
        self._opened: OpenModel = open_trained(source)
        asked = [one for one in conversations if not one.is_text][:_MOST_ANSWERS]
        self.prompts = [prompt_of(one) for one in asked] or [
            messages for messages in CONVERSATIONS if _is_renderable(source, messages)
        ]
        settings = GenerationSettings(ANSWER_TOKENS, 0.0, 1.0, None, 1.0)
        self.answers = self._opened.answerer.answer_all(self.prompts, settings)
        self.passages = self._find_passages(conversations)
        trained = TorchForm(self._opened.transformer)
        self._reference = [trained.all_logprobs(passage) for passage in self.passages]
        self.loss = self.distance_of(trained).loss
        self.base_divergence = self._measure_base()

    def distance_of(self, form: Form) -> Distance:
        """Return how far a form is from what was trained."""
        return measure_distance(self._reference, form, self.passages)

    @contextmanager
    def replaced_by(self, weights: Weights) -> Iterator[Form]:
        """Give a model with `weights` in place of base and adapter; the trained one is gone after that."""
        model = self._opened.as_base().transformer
        named = dict(model.named_parameters(remove_duplicate=False))
        if model.config.tie_word_embeddings and _HEAD in weights.entries:
            head = model.get_output_embeddings()
            head.weight = named[_HEAD] = torch.nn.Parameter(head.weight.detach().clone())
        with torch.no_grad():
            for name in weights.entries:
                if name in named:
                    named[name].copy_(weights.read(name))
        yield TorchForm(model)

    def _measure_base(self) -> float | None:
        if form_of(self._opened.model) != ADAPTER:
            return None
        with self._opened.base_beside() as base:
            return self.distance_of(TorchForm(base.transformer)).divergence

    def _find_passages(self, conversations: Sequence[Conversation]) -> list[Passage]:
        """Return rows as token ids, with the places of the tokens that are trained on."""
        rows = list(conversations) or [
            Conversation((*prompt, Message("assistant", answer.text)), number)
            for number, (prompt, answer) in enumerate(zip(self.prompts, self.answers, strict=True), 1)
        ]
        opened, source = self._opened, self.source
        longest = min(opened.max_length, MOST_CONTEXT)
        passages: list[Passage] = []
        num_left = _MOST_POSITIONS
        encoder = text_encoder(source.tokenizer)
        for encoded in encode_separately(rows, source.template, encoder, opened.trained):
            for row in encoded:
                ids = tuple(int(token) for token in row.token_ids_T[:longest])
                places = [place for place in range(1, len(ids)) if row.is_supervised_T[place]][:num_left]
                if places:
                    passages.append(Passage(ids[: places[-1] + 1], tuple(places)))
                    num_left -= len(places)
        if not passages:
            raise ModelError(
                "no row has a token that is trained on: there is nothing to verify",
                where=str(source.folder),
                remedy="Name other rows with --verify-dataset.",
            )
        return passages


def _is_renderable(source: Source, messages: Sequence[Message]) -> bool:
    try:
        source.template.render(messages)
    except TemplateError:
        return False
    return True
