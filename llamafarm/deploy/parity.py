"""How far one form of a model is from another, token by token, on the same passages.

Teacher-forced: each form is asked for the next token after the same beginnings. Axes: S positions, V
vocabulary; logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from llamafarm.inference.llamacpp import LlamaServer

# So many of the likeliest tokens are asked for; the rest counts as one.
MOST_TOKENS_SHOWN = 4096
# Tokens of which the reference hardly prefers one: either is the right choice.
_NEAR_TIE_NATS = 0.1


@dataclass(frozen=True, slots=True)
class Passage:
    """A text as token ids, and the places of those that are predicted."""

    token_ids: tuple[int, ...]
    places: tuple[int, ...]


class Form(Protocol):
    """One form of a model: trained, merged, or in a file."""

    def logprobs(self, passage: Passage) -> Iterator[dict[int, float]]:
        """Yield, for each place of a passage, the logarithms of the chances of the likeliest tokens."""


class TorchForm:
    """A model of transformers."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def all_logprobs(self, passage: Passage) -> torch.Tensor:
        """Return the logarithms of all chances (S, V) in fp32."""
        device = next(self._model.parameters()).device
        ids_1T = torch.tensor([passage.token_ids], device=device)
        with torch.inference_mode():
            logits_TV = self._model(input_ids=ids_1T, use_cache=False).logits[0]
        places_S = torch.tensor(passage.places, device=device) - 1
        return torch.log_softmax(logits_TV[places_S].float(), dim=-1).cpu()

    def logprobs(self, passage: Passage) -> Iterator[dict[int, float]]:
        """Yield, for each place of a passage, the logarithms of the chances of the likeliest tokens."""
        logprobs_SV = self.all_logprobs(passage)
        num_shown = min(MOST_TOKENS_SHOWN, logprobs_SV.shape[1])
        for values, tokens in zip(*logprobs_SV.topk(num_shown, dim=-1), strict=True):
            yield dict(zip(tokens.tolist(), values.tolist(), strict=True))


class FileForm:
    """A GGUF file in llama.cpp."""

    def __init__(self, server: LlamaServer, vocab_size: int) -> None:
        self._server = server
        self._num_shown = min(MOST_TOKENS_SHOWN, vocab_size)

    def logprobs(self, passage: Passage) -> Iterator[dict[int, float]]:
        """Yield, for each place of a passage, the logarithms of the chances of the likeliest tokens."""
        for place in passage.places:
            yield self._server.next_token_logprobs(passage.token_ids[:place], self._num_shown)


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """Where a form first chooses another token than the reference."""

    passage: int
    place: int
    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a form is from the reference.

    `agreement` is the part of positions at which it chooses the same token, or one that the reference hardly
    prefers less; `divergence` the mean Kullback-Leibler divergence from the reference in nats; `loss` the
    mean loss of the passages' own tokens in nats.
    """

    num_positions: int
    agreement: float
    divergence: float
    loss: float
    first_difference: FirstDifference | None = None


def measure_distance(reference: Sequence[torch.Tensor], form: Form, passages: Sequence[Passage]) -> Distance:
    """Return how far `form` is from the reference, whose logarithms (S, V) are given for each passage."""
    agreed, divergence, loss, num_positions = 0, 0.0, 0.0, 0
    first: FirstDifference | None = None
    for number, (passage, expected_SV) in enumerate(zip(passages, reference, strict=True)):
        for place, expected_V, found in zip(passage.places, expected_SV, form.logprobs(passage), strict=True):
            num_positions += 1
            chosen, wanted = max(found, key=lambda token: found[token]), int(expected_V.argmax())
            if expected_V[chosen] >= expected_V[wanted] - _NEAR_TIE_NATS:
                agreed += 1
            elif first is None:
                first = FirstDifference(number, place, wanted, chosen)
            divergence += _divergence(expected_V, found)
            loss -= _logprob(found, passage.token_ids[place], len(expected_V))
    if not num_positions:
        raise ValueError("no position to compare at")
    return Distance(
        num_positions, agreed / num_positions, divergence / num_positions, loss / num_positions, first
    )


def _divergence(expected_V: torch.Tensor, found: dict[int, float]) -> float:
    """Return the divergence of what was found from what is expected; tokens not shown count as one."""
    tokens = torch.tensor(list(found))
    found_S = torch.tensor(list(found.values()), dtype=torch.float64)
    expected_S = expected_V[tokens].double()
    divergence = float((expected_S.exp() * (expected_S - found_S)).sum())
    rest, found_rest = 1 - float(expected_S.exp().sum()), 1 - float(found_S.exp().sum())
    if rest > 1e-9 and len(tokens) < len(expected_V):
        divergence += rest * float(torch.tensor(rest / max(found_rest, 1e-12)).log())
    return max(divergence, 0.0)


def _logprob(found: dict[int, float], token: int, vocab_size: int) -> float:
    """Return the logarithm of a token's chance; of one that is not shown, its share of the rest."""
    if token in found:
        return found[token]
    rest = max(1 - float(torch.tensor(list(found.values())).double().exp().sum()), 1e-12)
    return float(torch.tensor(rest / max(vocab_size - len(found), 1)).log())
