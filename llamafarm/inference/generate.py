"""Answers from a model on transformers, streamed as they come, one at a time or in batches.

transformers' own `generate` does the sampling; what is ours is where an answer ends: at the end-of-turn
token, at a stop sequence, at `max_new_tokens`, or where somebody interrupts it, and which of them it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llamafarm.data.conversation import Message
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.errors import PromptTooLongError

# What a decoder gives for bytes that are not yet a whole character.
_UNFINISHED = "\ufffd"
# The functions that a conversation is told of, as JSON has them.
Tools = Sequence[Mapping[str, Any]]
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How answers are sampled. `temperature` 0 takes the likeliest token each time."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    repetition_penalty: float
    stop_sequences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without what ended it.

    `ended_by` is end-of-turn, stop-sequence, max-new-tokens or interrupted. `num_prompt_tokens` is how much a
    server says to have read, where it does.
    """

    text: str
    ended_by: str
    num_tokens: int
    num_prompt_tokens: int | None = field(default=None, compare=False)

    @property
    def stopped_by_itself(self) -> bool:
        """Return whether the model ended the answer with its end-of-turn token."""
        return self.ended_by == "end-of-turn"

    @property
    def is_interrupted(self) -> bool:
        """Return whether somebody ended the answer, or kept it from being begun."""
        return self.ended_by == INTERRUPTED


IsInterrupted = Callable[[], bool]


def _never() -> bool:
    return False


class Answerer:
    """A model, its tokenizer and its template, ready to answer.

    `is_interrupted` is asked after every token; once it says so, answers end there.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, template: ChatTemplate) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._template = template
        self._end_token_ids = _end_token_ids(model, tokenizer, template)
        self.context_length = int(getattr(model.config, "max_position_embeddings", 0) or 10**9)

    def stream(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        is_interrupted: IsInterrupted = _never,
    ) -> Answer:
        """Answer `messages`, calling `write` with each piece of text that is surely part of the answer.

        Raises `PromptTooLongError`.
        """
        token_ids = self._encode(messages)
        streamer = _AnswerStreamer(self._tokenizer, settings.stop_sequences, write)
        (answer,) = self._generate([token_ids], settings, streamer, is_interrupted)
        streamer.write_rest(answer.text)
        return answer

    def answer_all(
        self,
        conversations: Sequence[Sequence[Message]],
        settings: GenerationSettings,
        *,
        tools: Sequence[Tools] = (),
        batch_size: int = 32,
        on_batch: Callable[[int], None] = lambda num_answers: None,
        is_interrupted: IsInterrupted = _never,
    ) -> list[Answer]:
        """Answer conversations in batches of similar length; the answers come in the order given.

        `tools` are the functions that each is told of, if any is. Once interrupted, what was not begun has an
        empty answer. Raises `PromptTooLongError`.
        """
        told = tools or [()] * len(conversations)
        encoded = [self._encode(messages, of) for messages, of in zip(conversations, told, strict=True)]
        by_length = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(by_length), batch_size):
            if is_interrupted():
                break
            batch = by_length[start : start + batch_size]
            answered = self._generate([encoded[index] for index in batch], settings, None, is_interrupted)
            answers.update(zip(batch, answered, strict=True))
            on_batch(len(batch))
        return [answers.get(index, Answer("", INTERRUPTED, 0)) for index in range(len(encoded))]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens `messages` are as a prompt."""
        return len(self._tokenize(messages))

    def _tokenize(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        prompt = self._template.render(messages, add_generation_prompt=True, tools=tools)
        token_ids: list[int] = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return token_ids

    def _encode(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        token_ids = self._tokenize(messages, tools)
        if len(token_ids) >= self.context_length:
            raise PromptTooLongError(
                f"the prompt has {len(token_ids)} tokens, and the model's context {self.context_length}",
                where="the prompt",
                remedy="Shorten it.",
            )
        return token_ids

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        streamer: BaseStreamer | None,
        is_interrupted: IsInterrupted,
    ) -> list[Answer]:
        longest = max(map(len, prompts))
        pad_id = self._end_token_ids[0]
        device = self.model.device
        # Padding stands on the left, so that every row's answer begins in the same column.
        token_ids_BT = torch.tensor(
            [[pad_id] * (longest - len(ids)) + list(ids) for ids in prompts], device=device
        )
        mask_BT = torch.tensor(
            [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device
        )
        stopping: list[StoppingCriteria] = [_Interruption(is_interrupted)]
        if settings.stop_sequences:
            stopping.append(_StopSequences(self._tokenizer, settings.stop_sequences, longest))
        with torch.inference_mode():
            output_BT = self.model.generate(
                input_ids=token_ids_BT,
                attention_mask=mask_BT,
                generation_config=self._generation_config(settings, pad_id, longest),
                stopping_criteria=StoppingCriteriaList(stopping),
                streamer=streamer,
            )
        is_cut_short = is_interrupted()
        return [self._read_answer(row[longest:].tolist(), settings, is_cut_short) for row in output_BT]

    def _generation_config(self, settings: GenerationSettings, pad_id: int, num_prompt_tokens: int) -> Any:
        is_sampled = settings.temperature > 0
        sampling = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k or 0,
        }
        return GenerationConfig(
            max_new_tokens=min(settings.max_new_tokens, self.context_length - num_prompt_tokens),
            do_sample=is_sampled,
            repetition_penalty=settings.repetition_penalty,
            eos_token_id=list(self._end_token_ids),
            pad_token_id=pad_id,
            **(sampling if is_sampled else {}),
        )

    def _read_answer(
        self, token_ids: Sequence[int], settings: GenerationSettings, is_cut_short: bool
    ) -> Answer:
        ends = [place for place, token_id in enumerate(token_ids) if token_id in self._end_token_ids]
        answered = token_ids[: ends[0]] if ends else token_ids
        text = self._tokenizer.decode(answered, skip_special_tokens=True)
        stop_at = find_stop(text, settings.stop_sequences)
        if stop_at is not None:
            return Answer(text[:stop_at].strip(), "stop-sequence", len(answered))
        if is_cut_short and not ends:
            # It may have been in the middle of a character.
            return Answer(text.rstrip(_UNFINISHED).strip(), INTERRUPTED, len(answered))
        return Answer(text.strip(), "end-of-turn" if ends else "max-new-tokens", len(answered))


def find_stop(text: str, stop_sequences: Sequence[str]) -> int | None:
    """Return where the first stop sequence in `text` begins, or None."""
    places = [place for stop in stop_sequences if (place := text.find(stop)) >= 0]
    return min(places, default=None)


def hold_back(text: str, stop_sequences: Sequence[str]) -> int:
    """Return how much of the end of `text` may be the beginning of a stop sequence, in characters."""
    longest = max((len(stop) - 1 for stop in stop_sequences), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_sequences):
            return length
    return 0


class _Interruption(StoppingCriteria):  # type: ignore[misc]
    """Ends all rows of a batch once somebody wants it."""

    def __init__(self, is_interrupted: IsInterrupted) -> None:
        self._is_interrupted = is_interrupted

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        is_done = torch.full((len(input_ids),), self._is_interrupted(), device=input_ids.device)
        return is_done  # type: ignore[return-value]


class _StopSequences(StoppingCriteria):  # type: ignore[misc]
    """Ends a row of a batch once its text has a stop sequence."""

    def __init__(self, tokenizer: Any, stop_sequences: Sequence[str], num_prompt_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._stop_sequences = stop_sequences
        self._num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        texts = self._tokenizer.batch_decode(
            input_ids[:, self._num_prompt_tokens :], skip_special_tokens=True
        )
        is_done = [find_stop(text, self._stop_sequences) is not None for text in texts]
        return torch.tensor(is_done, device=input_ids.device)  # type: ignore[return-value]


class _AnswerStreamer(BaseStreamer):  # type: ignore[misc]
    """Passes on the text of an answer, holding back what may yet turn out not to be part of it."""

    def __init__(self, tokenizer: Any, stop_sequences: Sequence[str], write: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._stop_sequences = stop_sequences
        self._write = write
        self._token_ids: list[int] = []
        self._written = ""
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:  # generate hands over the prompt first
            self._is_prompt = False
            return
        self._token_ids += value.flatten().tolist()
        # Blanks at either end are no part of an answer; those at the end may yet be followed by words.
        text = self._tokenizer.decode(self._token_ids, skip_special_tokens=True).lstrip()
        if text.endswith(_UNFINISHED):
            return
        stop_at = find_stop(text, self._stop_sequences)
        sure = (
            text[: len(text) - hold_back(text, self._stop_sequences)] if stop_at is None else text[:stop_at]
        )
        self._write_up_to(sure.rstrip())

    def end(self) -> None:
        """Do nothing: `write_rest` is called with the whole answer."""

    def write_rest(self, answer: str) -> None:
        self._write_up_to(answer)

    def _write_up_to(self, text: str) -> None:
        if len(text) > len(self._written):
            self._write(text[len(self._written) :])
            self._written = text


def _end_token_ids(model: PreTrainedModel, tokenizer: Any, template: ChatTemplate) -> tuple[int, ...]:
    """Return the ids that end an answer: the template's end of turn, then the model's and tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    wanted: Iterator[Any] = iter(
        [tokenizer.convert_tokens_to_ids(template.end_of_turn), tokenizer.eos_token_id, *listed]
    )
    return tuple(dict.fromkeys(int(token_id) for token_id in wanted if token_id is not None))
