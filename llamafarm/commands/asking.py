"""What answers a prompt: the strategy's choice where that is there, else what is, saying which.

`complete` and `chat` share their options too. Whatever answers, Ctrl-C ends the answer and not the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.opening import generation_of, open_model
from llamafarm.commands.options import load_with_options

if TYPE_CHECKING:
    from llamafarm.data.conversation import Message
    from llamafarm.inference.generate import Answer, GenerationSettings
    from llamafarm.inference.open import OpenModel
    from llamafarm.strategy.load import LoadedStrategy

    Stream = Callable[[Sequence[Message], GenerationSettings, Callable[[str], None], int | None], Answer]
    AnswerAll = Callable[
        [Sequence[Sequence[Message]], GenerationSettings, int | None, Callable[[int], None]], list[Answer]
    ]

AskedModel = Annotated[
    Path | None,
    typer.Option("--model", help="A final_model, run folder or GGUF file; with it, no strategy is needed."),
]
UsesBase = Annotated[bool, typer.Option("--base", help="Ask the base model, as it was before.")]
System = Annotated[str | None, typer.Option("--system", help="System message instead of the strategy's.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-m", min=1, help="Most tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", min=0, max=2, help="0 takes the likeliest token.")
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", min=0.01, max=1, help="Sample from the likeliest that together have this chance."
    ),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=1, help="Sample from this many of the likeliest tokens.")
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", min=0.1, help="Above 1, tokens that occurred already become less likely."
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes a sampled answer repeatable.")]

# In tokens: memory grows with the context, and models have been trained for a hundred thousand and more.
_MOST_CONTEXT = 8192
# Prompts that transformers is given at a time: sorted by length they make four batches of little padding.
_NUM_TOGETHER = 128


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that is ready to answer, by whatever program.

    An answer that Ctrl-C ended is `interrupted`, and so are all that would have come after it in
    `answer_all`, which is best given `num_together` prompts. `context_tokens` and `count_tokens` are there
    where they can be known, `base` where the model's base can answer beside it.
    """

    name: str
    settings: GenerationSettings
    stream: Stream
    close: Callable[[], None] = lambda: None
    base_name: str | None = None
    context_tokens: int | None = None
    count_tokens: Callable[[Sequence[Message]], int] | None = None
    base: Callable[[], AbstractContextManager[Asked]] | None = None
    in_batches: AnswerAll | None = None

    @property
    def num_together(self) -> int:
        """Return how many prompts `answer_all` is best given at a time."""
        return _NUM_TOGETHER if self.in_batches else 1

    def answer_all(
        self,
        conversations: Sequence[Sequence[Message]],
        settings: GenerationSettings,
        seed: int | None,
        on_batch: Callable[[int], None],
    ) -> list[Answer]:
        """Answer conversations, in batches or one after the other; `on_batch` gets how many are done."""
        if self.in_batches is not None:
            return self.in_batches(conversations, settings, seed, on_batch)
        answers = []
        for messages in conversations:
            answers.append(self.stream(messages, settings, lambda piece: None, seed))
            on_batch(1)
        return answers


def open_asked(
    model: Path | None,
    strategy: str | None,
    strategy_file: Path | None,
    settings: Sequence[str] | None,
    *,
    uses_base: bool,
    is_compared: bool = False,
) -> Asked:
    """Open what the options mean, and what the strategy's `model_app` says.

    The base is always asked of transformers, and so is what is compared with it. Raises `ModelError` if
    there is nothing to ask, `MachineError` if it needs what is not here.
    """
    from llamafarm.errors import InputError

    if model is not None and model.suffix.lower() == ".gguf":
        if uses_base or is_compared:
            raise InputError(
                "a GGUF file does not have its base in it",
                where="--compare" if is_compared else "--base",
                remedy="Name the run folder with --model, or leave the option out.",
            )
        return _open_file(model, None)
    if model is None and not uses_base:
        loaded = load_with_options(strategy, strategy_file, settings)
        app = loaded.strategy.model_app.type
        if is_compared and app != "transformers":
            terminal.say(f"transformers answers, as --compare needs the base (model_app.type is {app})")
        served = None if is_compared else _OPENERS[app](loaded)
        if served is not None:
            return served
    return _asked_of(open_model(model, strategy, strategy_file, settings, uses_base=uses_base))


def with_options(
    settings: GenerationSettings, options: Mapping[str, int | float | None]
) -> GenerationSettings:
    """Return settings with those of the command line, of which the ones left out are None."""
    return replace(settings, **{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]


def _asked_of(opened: OpenModel) -> Asked:
    """Return a model on transformers, ready to answer."""
    from llamafarm.inference.open import InterruptibleAnswerer
    from llamafarm.inference.served import ending_when_interrupted

    answerer = opened.answerer
    interruptible = InterruptibleAnswerer(answerer)
    return Asked(
        opened.name,
        opened.settings,
        # A second Ctrl-C does not wait for the next token.
        ending_when_interrupted(interruptible.stream),
        base_name=opened.base_name,
        context_tokens=answerer.context_length,
        count_tokens=answerer.count_tokens,
        base=_base_of(opened) if opened.is_tuned else None,
        in_batches=interruptible.answer_all,
    )


def _base_of(opened: OpenModel) -> Callable[[], AbstractContextManager[Asked]]:
    """Return a context in which the base answers; where it has to be loaded, that is done once."""
    separate_base = cache(opened.as_base)

    @contextmanager
    def beside() -> Iterator[Asked]:
        if opened.separate_base is not None:
            yield _asked_of(separate_base())
            return
        with opened.base_beside() as base:
            yield _asked_of(replace(base, name=opened.base_name))

    return beside


def _open_nothing(_: LoadedStrategy) -> Asked | None:
    """Leave it to transformers, and to what the run trained."""
    return None


def _open_file(path: Path, loaded: LoadedStrategy | None) -> Asked:
    """Open a GGUF file in llama.cpp."""
    from llamafarm.deploy.gguf.read import read_header
    from llamafarm.errors import ModelError
    from llamafarm.inference.generate import GenerationSettings
    from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer
    from llamafarm.inference.served import LlamaAnswerer, ending_when_interrupted

    if not path.is_file():
        raise ModelError(
            f"there is no file {str(path)!r}", where="--model", remedy="Name a .gguf file that is there."
        )
    header = read_header(path).metadata
    trained = header.get(f"{header.get('general.architecture')}.context_length")
    if isinstance(trained, bool) or not isinstance(trained, int) or trained <= 0:  # it is the file's to say
        trained = _MOST_CONTEXT
    options = LlamaOptions(min(trained, _MOST_CONTEXT))
    settings = GenerationSettings(512, 0.7, 0.9, None, 1.0)
    if loaded is not None:
        config = loaded.strategy.model_app.config
        options = replace(options, gpu_layers=config.gpu_layers, num_threads=config.num_thread)
        settings = generation_of(loaded)
    answerer = LlamaAnswerer(LlamaServer(path, options))
    terminal.say(f"answered by llama.cpp: {path}")
    return Asked(
        str(path),
        settings,
        ending_when_interrupted(answerer.stream),
        answerer.close,
        context_tokens=options.context_tokens,
        count_tokens=answerer.count_tokens,
    )


def _open_llamacpp(loaded: LoadedStrategy) -> Asked | None:
    """Open the file that the strategy names, or the newest that it exported."""
    from llamafarm.inference.llamacpp import has_llamacpp
    from llamafarm.training.export import EXPORT_FOLDER
    from llamafarm.training.preparation.prepare import output_dir_of

    named = loaded.strategy.model_app.config.default_model
    exported = sorted(
        (output_dir_of(loaded) / EXPORT_FOLDER).glob("*.gguf"), key=lambda path: path.stat().st_mtime
    )
    if not has_llamacpp() or not (named or exported):
        reason = "llama.cpp is not installed" if not has_llamacpp() else "the strategy has exported no file"
        terminal.warn(f"{reason}: transformers answers (model_app.type is llamacpp)")
        return None
    return _open_file(Path(named) if named else exported[-1], loaded)


def _open_ollama(loaded: LoadedStrategy) -> Asked | None:
    """Ask the model in Ollama, where both are there."""
    from llamafarm.inference.ollama import Ollama
    from llamafarm.inference.served import OllamaAnswerer, ending_when_interrupted

    config = loaded.strategy.model_app.config
    name = config.default_model or loaded.strategy.export.model_name or loaded.key
    server = Ollama(config.base_url, answer_seconds=config.timeout)
    if not server.is_there():
        terminal.warn(f"nothing answers at {server.address}: transformers answers (model_app.type is ollama)")
        server.close()
        return None
    server.check()
    names = server.names()
    if name not in names and f"{name}:latest" not in names:
        terminal.warn(f"Ollama has no model {name}: transformers answers (create it with `convert`)")
        server.close()
        return None
    options = {"num_gpu": config.gpu_layers, "num_thread": config.num_thread}
    answerer = OllamaAnswerer(
        server, name, {key: value for key, value in options.items() if value is not None}
    )
    terminal.say(f"answered by Ollama at {server.address}: {name}")
    stream = ending_when_interrupted(answerer.stream)
    return Asked(name, generation_of(loaded), stream, answerer.close)


def _open_url(loaded: LoadedStrategy) -> Asked | None:
    """Ask a server that speaks OpenAI's protocol."""
    from llamafarm.errors import StrategyError
    from llamafarm.inference.served import UrlAnswerer, ending_when_interrupted

    config = loaded.strategy.model_app.config
    if config.base_url is None or config.default_model is None:
        raise StrategyError(
            "model_app.type: openai needs the server's address and the model's name there",
            where="model_app.config",
            remedy="Write base_url: http://127.0.0.1:8000 and default_model: my-model.",
        )
    answerer = UrlAnswerer(config.base_url, config.default_model, config.timeout)
    terminal.say(f"answered by {config.base_url}: {config.default_model}")
    stream = ending_when_interrupted(answerer.stream)
    return Asked(config.default_model, generation_of(loaded), stream, answerer.close)


_OPENERS = {
    "transformers": _open_nothing,
    "llamacpp": _open_llamacpp,
    "ollama": _open_ollama,
    "openai": _open_url,
}
