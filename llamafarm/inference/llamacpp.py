"""GGUF files asked through llama.cpp: its own server, in a process beside ours.

The server listens on 127.0.0.1 only and wants a key that nobody else has. A model that cannot be loaded, or
that brings it down, is a `ModelError` with what it last said.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2 as httpx

from llamafarm.errors import MachineError, ModelError
from llamafarm.interpreter import command_of, environment_of_ours

_START_SECONDS = 600.0
# What is said of loading goes to stderr; this much of its end is worth showing.
_SHOWN_LINES = 3


def has_llamacpp() -> bool:
    """Return whether llama.cpp is installed."""
    return find_spec("xllamacpp") is not None


def check_llamacpp() -> None:
    """Raise `MachineError` if llama.cpp is not installed."""
    if not has_llamacpp():
        raise MachineError(
            "GGUF files are opened by llama.cpp, which is not installed",
            where="the package xllamacpp",
            remedy="Run `pip install xllamacpp`; it has wheels for Linux and macOS.",
        )


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """How a file is loaded.

    `is_exact` keeps keys and values in fp32, as a comparison needs. Unset, llama.cpp decides for itself how
    many layers go to a GPU and how many threads work. `adapter` is a GGUF file laid over the model.
    """

    context_tokens: int = 0
    is_exact: bool = False
    gpu_layers: int | None = None
    num_threads: int | None = None
    adapter: Path | None = None


class LlamaServer:
    """A GGUF file, loaded by llama.cpp; a context, at whose end it is gone.

    Raises `MachineError` where llama.cpp is not installed, `ModelError` for a file that it cannot load.
    """

    def __init__(self, model: Path, options: LlamaOptions = LlamaOptions()) -> None:
        check_llamacpp()
        self.model = model
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(  # noqa: S603 - a list, and nobody's input
            command_of("llamafarm.inference.llama_process"),
            env=environment_of_ours(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Ctrl-C in a terminal goes to its whole process group, and is for an answer, not for the server.
            start_new_session=True,
        )
        key = secrets.token_urlsafe(24)
        try:
            address = self._start(key, options)
        except BaseException:
            self.close()
            raise
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_START_SECONDS,
            trust_env=False,  # a proxy is for other machines
            # The server closes a connection after a number of requests, without saying so.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def _start(self, key: str, options: LlamaOptions) -> str:
        """Hand over what to load, and return the address that is served."""
        assert self._process.stdin is not None and self._process.stdout is not None
        wanted = {
            "model": str(self.model.resolve()),
            "api_key": key,
            "context_tokens": options.context_tokens,
            "is_exact": options.is_exact,
            "gpu_layers": options.gpu_layers,
            "num_threads": options.num_threads,
            "adapter": None if options.adapter is None else str(options.adapter.resolve()),
        }
        try:
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._fault("cannot be loaded by llama.cpp") from None
        # llama.cpp itself may write to stdout before the address is there.
        for line in self._process.stdout:
            if line.startswith(b'{"address"'):
                return str(json.loads(line)["address"])
        raise self._fault("cannot be loaded by llama.cpp")

    def _fault(self, problem: str) -> ModelError:
        """Return an error with what llama.cpp said last."""
        try:
            code: int | None = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        self._log.seek(0)
        said = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
        last = " / ".join([line for line in said if line][-_SHOWN_LINES:])[:400]
        ended = f" (it ended with code {code})" if code not in (None, 0) else ""
        return ModelError(
            f"the file {problem}{ended}: {last or 'it gave no reason'}",
            where=str(self.model),
            remedy="Convert the model again; the file is damaged, or of a kind that this llama.cpp lacks.",
        )

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):  # it may have ended before us
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _post(self, path: str, content: Mapping[str, Any]) -> Any:
        try:
            answer = self._client.post(path, json=content)
        except httpx.HTTPError:
            raise self._fault("brought llama.cpp down") from None
        if answer.status_code != httpx.codes.OK:
            raise ModelError(
                f"llama.cpp refuses {path}: {_message_of(answer)[:300]}",
                where=str(self.model),
                remedy="Convert the model again, or report it: what was asked for is what every model has.",
            )
        return answer.json()

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a rendered text; special tokens are read as such."""
        found = self._post("/tokenize", {"content": text, "add_special": False, "parse_special": True})
        token_ids: list[int] = found["tokens"]
        return token_ids

    def apply_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Return a conversation as the file's chat template renders it, up to where an answer begins."""
        content: dict[str, Any] = {"messages": list(messages)}
        if tools:
            content["tools"] = list(tools)
        return str(self._post("/apply-template", content)["prompt"])

    def next_token_logprobs(self, token_ids: Sequence[int], num_tokens: int) -> dict[int, float]:
        """Return the logarithms of the chances of the `num_tokens` likeliest next tokens, in nats."""
        # The server shows no chances with half of a character. They are those of the logits, whatever is
        # chosen: so a token of a whole one is.
        (*_, whole) = self.tokenize("a")
        found = self._post(
            "/completion",
            {
                "prompt": list(token_ids),
                "n_predict": 1,
                "n_probs": num_tokens,
                "temperature": 0.0,
                "samplers": [],
                "logit_bias": [[whole, 1000.0]],
                "cache_prompt": True,
            },
        )
        return {one["id"]: one["logprob"] for one in found["completion_probabilities"][0]["top_logprobs"]}

    def continue_greedily(self, token_ids: Sequence[int], most_tokens: int) -> tuple[list[int], bool]:
        """Return the likeliest continuation, without the token that ends it, and whether one did."""
        found = self._post(
            "/completion",
            {
                "prompt": list(token_ids),
                "n_predict": most_tokens,
                "temperature": 0.0,
                "samplers": ["temperature"],
                "return_tokens": True,
            },
        )
        tokens: list[int] = found["tokens"]
        return tokens, found["stop_type"] == "eos"

    def stream(self, path: str, content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of an answer that comes in pieces."""
        try:
            with self._client.stream("POST", path, json={**content, "stream": True}) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    raise ModelError(
                        f"llama.cpp refuses {path}: {_message_of(answer)[:300]}",
                        where=str(self.model),
                        remedy="Shorten the conversation, or convert the model again.",
                    )
                for line in answer.iter_lines():
                    text = line.removeprefix("data: ")
                    if line.startswith("data: ") and text != "[DONE]":
                        yield json.loads(text)
        except httpx.HTTPError:
            raise self._fault("brought llama.cpp down") from None


def _message_of(answer: httpx.Response) -> str:
    """Return what a refused request was refused for."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
