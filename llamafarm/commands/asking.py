"""What answers a prompt: the strategy's choice where that is there, else what is, saying which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llamafarm import terminal
from llamafarm.commands.opening import generation_of, open_model
from llamafarm.commands.options import load_with_options

if TYPE_CHECKING:
    from llamafarm.data.conversation import Message
    from llamafarm.inference.generate import Answer, GenerationSettings
    from llamafarm.inference.open import OpenModel
    from llamafarm.strategy.load import LoadedStrategy

    Stream = Callable[[Sequence[Message], GenerationSettings, Callable[[str], None], int | None], Answer]

# In tokens: memory grows with the context, and models have been trained for a hundred thousand and more.
_MOST_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that is ready to answer, by whatever program."""

    name: str
    settings: GenerationSettings
    stream: Stream
    close: Callable[[], None] = lambda: None
    base_name: str | None = None


def open_asked(
    model: Path | None,
    strategy: str | None,
    strategy_file: Path | None,
    settings: Sequence[str] | None,
    *,
    uses_base: bool,
) -> Asked:
    """Open what the options mean, and what the strategy's `model_app` says.

    Raises `ModelError` if there is nothing to ask, `MachineError` if it needs what is not here.
    """
    if model is not None and model.suffix.lower() == ".gguf":
        return _open_file(model, None)
    if model is None and not uses_base:
        loaded = load_with_options(strategy, strategy_file, settings)
        served = _OPENERS[loaded.strategy.model_app.type](loaded)
        if served is not None:
            return served
    opened = open_model(model, strategy, strategy_file, settings, uses_base=uses_base)
    return Asked(opened.name, opened.settings, _stream_of(opened), base_name=opened.base_name)


def _stream_of(opened: OpenModel) -> Stream:
    def stream(
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        seed: int | None,
    ) -> Answer:
        import torch

        if seed is not None:
            torch.manual_seed(seed)
        return opened.answerer.stream(messages, settings, write)

    return stream


def _open_nothing(_: LoadedStrategy) -> Asked | None:
    """Leave it to transformers, and to what the run trained."""
    return None


def _open_file(path: Path, loaded: LoadedStrategy | None) -> Asked:
    """Open a GGUF file in llama.cpp."""
    from llamafarm.deploy.gguf.read import read_header
    from llamafarm.errors import ModelError
    from llamafarm.inference.generate import GenerationSettings
    from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer
    from llamafarm.inference.served import LlamaAnswerer

    if not path.is_file():
        raise ModelError(
            f"there is no file {str(path)!r}", where="--model", remedy="Name a .gguf file that is there."
        )
    header = read_header(path).metadata
    trained = header.get(f"{header.get('general.architecture')}.context_length", _MOST_CONTEXT)
    options = LlamaOptions(min(trained, _MOST_CONTEXT))
    settings = GenerationSettings(512, 0.7, 0.9, None, 1.0)
    if loaded is not None:
        config = loaded.strategy.model_app.config
        options = replace(options, gpu_layers=config.gpu_layers, num_threads=config.num_thread)
        settings = generation_of(loaded)
    answerer = LlamaAnswerer(LlamaServer(path, options))
    terminal.say(f"answered by llama.cpp: {path}")
    return Asked(str(path), settings, answerer.stream, answerer.close)


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
    from llamafarm.inference.served import OllamaAnswerer

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
    return Asked(name, generation_of(loaded), answerer.stream, answerer.close)


def _open_url(loaded: LoadedStrategy) -> Asked | None:
    """Ask a server that speaks OpenAI's protocol."""
    from llamafarm.errors import StrategyError
    from llamafarm.inference.served import UrlAnswerer

    config = loaded.strategy.model_app.config
    if config.base_url is None or config.default_model is None:
        raise StrategyError(
            "model_app.type: openai needs the server's address and the model's name there",
            where="model_app.config",
            remedy="Write base_url: http://127.0.0.1:8000 and default_model: my-model.",
        )
    answerer = UrlAnswerer(config.base_url, config.default_model, config.timeout)
    terminal.say(f"answered by {config.base_url}: {config.default_model}")
    return Asked(config.default_model, generation_of(loaded), answerer.stream, answerer.close)


_OPENERS = {
    "transformers": _open_nothing,
    "llamacpp": _open_llamacpp,
    "ollama": _open_ollama,
    "openai": _open_url,
}
