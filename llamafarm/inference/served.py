"""Answers from a server that speaks OpenAI's chat protocol: llama.cpp's own beside us, or any at a URL."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, cast

import httpx2 as httpx

from llamafarm.data.conversation import Message
from llamafarm.errors import MachineError, ModelError, PromptTooLongError
from llamafarm.inference.generate import INTERRUPTED, Answer, GenerationSettings
from llamafarm.inference.llamacpp import LlamaServer
from llamafarm.inference.ollama import Ollama
from llamafarm.redaction import hide_users

_PATH = "/v1/chat/completions"
Events = Iterator[dict[str, Any]]
Write = Callable[[str], None]
Stream = Callable[[Sequence[Message], GenerationSettings, Write, int | None], Answer]
# How servers name what does not fit: OpenAI and vLLM, llama.cpp, and others in words like these.
_TOO_LONG = re.compile(r"context[ _](length|size|window)|maximum context|prompt is too long", re.IGNORECASE)


def as_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as JSON has them."""
    return [{"role": one.role, "content": one.content, **(one.extras or {})} for one in messages]


class LlamaAnswerer:
    """A GGUF file in llama.cpp, ready to answer through the template in the file.

    As with all servers here, an exception while an answer comes, of Ctrl-C too, closes its stream, and the
    server stops computing it.
    """

    def __init__(self, server: LlamaServer) -> None:
        self._server = server

    def stream(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        seed: int | None = None,
    ) -> Answer:
        """Answer `messages`, calling `write` with each piece of text."""
        content = _openai_request("model", messages, settings, seed)
        # What OpenAI has no name for, llama.cpp takes under its own.
        content |= {"top_k": settings.top_k or 0, "repeat_penalty": settings.repetition_penalty, "min_p": 0.0}
        return _read_openai(self._server.stream(_PATH, content), write)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens `messages` are as a prompt."""
        return len(self._server.tokenize(self._server.apply_template(as_turns(messages))))

    def close(self) -> None:
        """End the server."""
        self._server.__exit__(None, None, None)


class UrlAnswerer:
    """A model at the URL of a server that speaks OpenAI's protocol."""

    def __init__(self, base_url: str, model: str, timeout_seconds: float) -> None:
        address = base_url.rstrip("/").removesuffix("/v1")
        self._url = hide_users(address)
        self._model = model
        self._client = httpx.Client(base_url=address, timeout=timeout_seconds)

    def stream(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        seed: int | None = None,
    ) -> Answer:
        """Answer `messages`, calling `write` with each piece of text.

        Raises `MachineError` if the server cannot be reached or breaks off, `PromptTooLongError` if it says
        that `messages` are too long, `ModelError` if it refuses for another reason.
        """
        try:
            return _read_openai(self._events(_openai_request(self._model, messages, settings, seed)), write)
        except httpx.HTTPError as error:
            raise MachineError(
                f"the server at {self._url} cannot be asked: {error or type(error).__name__}",
                where="model_app.config.base_url",
                remedy="Check that it runs there, or write model_app.type: transformers.",
            ) from None

    def _events(self, content: Mapping[str, Any]) -> Events:
        with self._client.stream("POST", _PATH, json=content) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                if answer.status_code < 500 and _TOO_LONG.search(answer.text):
                    raise PromptTooLongError(
                        f"the conversation is too long for {self._model}: {answer.text[:200]}",
                        where=self._url,
                        remedy="Shorten it.",
                    )
                raise ModelError(
                    f"the server at {self._url} refuses (HTTP {answer.status_code}): {answer.text[:200]}",
                    where="model_app.config",
                    remedy="Check default_model, and what the server says in its log.",
                )
            for line in answer.iter_lines():
                text = line.removeprefix("data:").strip()
                if line.startswith("data:") and text != "[DONE]":
                    yield json.loads(text)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class OllamaAnswerer:
    """A model in Ollama."""

    def __init__(self, server: Ollama, model: str, options: Mapping[str, int]) -> None:
        self._server, self._model = server, model
        self._options = dict(options)

    def stream(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        seed: int | None = None,
    ) -> Answer:
        """Answer `messages`, calling `write` with each piece of text."""
        options: dict[str, Any] = {
            **self._options,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k or 0,
            "repeat_penalty": settings.repetition_penalty,
            "num_predict": settings.max_new_tokens,
        }
        if settings.stop_sequences:
            options["stop"] = list(settings.stop_sequences)
        if seed is not None:
            options["seed"] = seed
        pieces: list[str] = []
        last: dict[str, Any] = {}
        with _closing(self._server.chat(self._model, as_turns(messages), options)) as events:
            for event in events:
                piece = str(event.get("message", {}).get("content", ""))
                piece = piece if pieces else piece.lstrip()
                if piece:
                    pieces.append(piece)
                    write(piece)
                last = event if event.get("done") else last
        ended_by = "max-new-tokens" if last.get("done_reason") == "length" else "end-of-turn"
        num_tokens = int(last.get("eval_count", 0))
        return Answer("".join(pieces).strip(), ended_by, num_tokens, last.get("prompt_eval_count"))

    def close(self) -> None:
        """Close the connection."""
        self._server.close()


def _openai_request(
    model: str, messages: Sequence[Message], settings: GenerationSettings, seed: int | None
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "model": model,
        "messages": as_turns(messages),
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.stop_sequences:
        content["stop"] = list(settings.stop_sequences)
    return content if seed is None else {**content, "seed": seed}


def _closing(events: Events) -> closing[Generator[dict[str, Any], None, None]]:
    """Close the stream of an answer at the end of a context, whether or not it has been read to its own.

    A generator that an exception leaves unread is closed when it is collected, and the server computes on.
    """
    return closing(cast("Generator[dict[str, Any], None, None]", events))


def _read_openai(events: Events, write: Callable[[str], None]) -> Answer:
    """Return the answer of a stream of events, calling `write` with its pieces."""
    pieces: list[str] = []
    num_tokens, reason = 0, ""
    with _closing(events) as stream:
        for event in stream:
            num_tokens = int((event.get("usage") or {}).get("completion_tokens", num_tokens))
            for choice in event.get("choices", ()):
                reason = choice.get("finish_reason") or reason
                piece = choice.get("delta", {}).get("content") or ""
                # Blanks before the first word are no part of an answer.
                piece = piece if pieces else piece.lstrip()
                if piece:
                    pieces.append(piece)
                    write(piece)
    ended_by = "max-new-tokens" if reason == "length" else "end-of-turn"
    return Answer("".join(pieces).strip(), ended_by, num_tokens)


def ending_when_interrupted(stream: Stream) -> Stream:
    """Return `stream` with KeyboardInterrupt made into the end of an answer: it is what came until then."""

    def ending(
        messages: Sequence[Message], settings: GenerationSettings, write: Write, seed: int | None
    ) -> Answer:
        pieces: list[str] = []

        def note(piece: str) -> None:
            write(piece)
            pieces.append(piece)

        try:
            return stream(messages, settings, note, seed)
        except KeyboardInterrupt:
            # Servers say only at the end how many tokens there were; most send each as a piece.
            return Answer("".join(pieces).strip(), INTERRUPTED, len(pieces))

    return ending
