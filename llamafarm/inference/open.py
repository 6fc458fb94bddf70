"""Open a model to be asked: a `final_model/` folder, or a base model with a strategy's template."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import PreTrainedModel

from llamafarm import terminal
from llamafarm.data.conversation import Message
from llamafarm.data.encoding.template import EVERY_ANSWER, ChatTemplate, TrainedPart
from llamafarm.inference.generate import INTERRUPTED, Answer, Answerer, GenerationSettings
from llamafarm.model.adapter import ADAPTER_CONFIG_FILE, is_removable, load_adapter
from llamafarm.model.bundle import Bundle, open_bundle
from llamafarm.model.load import Base, find_base, load_model, load_tokenizer
from llamafarm.model.prompt import build_template
from llamafarm.model.quantized import load_quantized_model, may_quantize
from llamafarm.model.weights import ADAPTER, FULL, Trained, form_of, transformer_of


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded model with everything that asking or measuring it takes.

    `trained` is the part of a row that its loss is measured on. `separate_base` is the base of a trained
    model that is not had by taking an adapter off: all weights were trained, or biases too.
    """

    name: str
    base_name: str
    model: Trained
    tokenizer: Any
    template: ChatTemplate
    settings: GenerationSettings
    max_length: int
    separate_base: Base | None = None
    trained: TrainedPart = EVERY_ANSWER

    @property
    def answerer(self) -> Answerer:
        """Return the model, ready to answer."""
        return Answerer(self.model, self.tokenizer, self.template)

    @property
    def transformer(self) -> PreTrainedModel:
        """Return the transformers model, with or without an adapter in it."""
        return transformer_of(self.model)

    @property
    def is_tuned(self) -> bool:
        """Return whether the model is a trained one, and not a base."""
        return form_of(self.model) == ADAPTER or self.separate_base is not None

    def as_base(self) -> OpenModel:
        """Return the base of the model, in its place."""
        if self.separate_base is not None:
            base = load_model(self.separate_base, dtype=self.model.dtype, device=self.model.device)
        elif form_of(self.model) == ADAPTER:
            base = self.model.unload()
        else:
            return self
        return replace(self, model=base, name=self.base_name, separate_base=None)

    def with_settings(self, settings: GenerationSettings) -> OpenModel:
        """Return the same with other settings for its answers."""
        return replace(self, settings=settings)

    @contextmanager
    def base_beside(self) -> Iterator[OpenModel]:
        """Give the base meanwhile: this model with its adapter off, or the base loaded beside it."""
        if form_of(self.model) == ADAPTER and self.separate_base is None:
            with self.model.disable_adapter():
                yield self
        else:
            yield self.as_base()


class InterruptibleAnswerer:
    """An answerer that Ctrl-C stops after the token it is at; a second one raises KeyboardInterrupt at once.

    It is asked as the answerers of `served` are.
    """

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._is_over = False

    def stream(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings,
        write: Callable[[str], None],
        seed: int | None = None,
    ) -> Answer:
        """Answer `messages`, calling `write` with each piece of text."""
        _sow(seed)
        with _catching_interrupts() as is_interrupted:
            return self._answerer.stream(messages, settings, write, is_interrupted)

    def answer_all(
        self,
        conversations: Sequence[Sequence[Message]],
        settings: GenerationSettings,
        seed: int | None,
        on_batch: Callable[[int], None],
    ) -> list[Answer]:
        """Answer conversations in batches. After a Ctrl-C, later calls answer nothing more either."""
        if self._is_over:  # Ctrl-C came when all answers of that call had just ended by themselves
            return [Answer("", INTERRUPTED, 0)] * len(conversations)
        _sow(seed)
        with _catching_interrupts() as is_interrupted:
            answers = self._answerer.answer_all(
                conversations, settings, on_batch=on_batch, is_interrupted=is_interrupted
            )
            self._is_over = is_interrupted()
        return answers


def _sow(seed: int | None) -> None:
    if seed is not None:
        torch.manual_seed(seed)


@contextmanager
def _catching_interrupts() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C, for whoever asks whether it came; a second one raises KeyboardInterrupt."""
    is_interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        if is_interrupted:
            raise KeyboardInterrupt
        is_interrupted = True

    # Whoever starts us in the background may have had it ignored, and it stays so.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    is_ours = is_ours and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: is_interrupted
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def open_final_model(folder: Path, device_kind: str, weights: Path | None = None) -> OpenModel:
    """Return the trained model of a `final_model/` folder, with the `weights` of a checkpoint if given.

    Raises `ModelError` if it cannot be loaded.
    """
    weights = weights or folder
    bundle, base, tokenizer, template = open_bundle(folder)
    if bundle.kind == FULL:
        own = Base(str(weights), str(weights))
        model: Trained = load_model(own, dtype=_dtype(device_kind), device=torch.device(device_kind))
    else:
        model = load_adapter(_load_adapters_base(base, bundle, device_kind), weights)
    settings = GenerationSettings(**bundle.generation, stop_sequences=bundle.stop_sequences)  # type: ignore[arg-type]
    separate_base = None if bundle.kind == ADAPTER and is_removable(model) else base
    return OpenModel(
        name=str(weights),
        base_name=base.name,
        model=model,
        tokenizer=tokenizer,
        template=template,
        settings=settings,
        max_length=bundle.max_length,
        separate_base=separate_base,
        trained=bundle.trained,
    )


def _load_adapters_base(base: Base, bundle: Bundle, device_kind: str) -> PreTrainedModel:
    """Load the base that an adapter belongs to, in 4 bits where it was trained so and this machine can."""
    dtype, device = _dtype(device_kind), torch.device(device_kind)
    quantization = bundle.quantization
    if quantization is None:
        return load_model(base, dtype=dtype, device=device)
    if may_quantize(device_kind):
        terminal.say(f"the base is held in 4 bits ({quantization.quant_type}), as it was in training")
        return load_quantized_model(base, quantization, dtype=dtype, compute_dtype=dtype, device=device)
    terminal.warn(
        f"the adapter was trained on a base in 4 bits ({quantization.quant_type}), which this machine lacks "
        f"bitsandbytes or the device for: the base is loaded in {str(dtype).removeprefix('torch.')}, and "
        "answers may differ slightly"
    )
    return load_model(base, dtype=dtype, device=device)


def open_folder(
    folder: Path, base: Base, tokenizer: Any, template: ChatTemplate, device_kind: str
) -> OpenModel:
    """Return a model that another tool saved in `folder`: an adapter of `base`, or all weights."""
    model: Trained = load_model(base, dtype=_dtype(device_kind), device=torch.device(device_kind))
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        model = load_adapter(model, folder)
    settings = GenerationSettings(256, 0.7, 0.9, None, 1.0)
    max_length = int(getattr(model.config, "max_position_embeddings", 0) or 10**9)
    is_removable_adapter = form_of(model) == ADAPTER and is_removable(model)
    return OpenModel(
        str(folder),
        base.name,
        model,
        tokenizer,
        template,
        settings,
        max_length,
        separate_base=base if form_of(model) == ADAPTER and not is_removable_adapter else None,
    )


def open_base(
    name: str | None,
    cache_dir: str | None,
    device_kind: str,
    *,
    prompt_format: str | None,
    system: str | None,
    settings: GenerationSettings,
    trained: TrainedPart = EVERY_ANSWER,
) -> OpenModel:
    """Return a base model that is asked through a strategy's template, and measured on `trained` of a row."""
    base = find_base(name, cache_dir)
    tokenizer = load_tokenizer(base)
    template, _ = build_template(tokenizer, prompt_format, system)
    model = load_model(base, dtype=_dtype(device_kind), device=torch.device(device_kind))
    max_length = int(getattr(model.config, "max_position_embeddings", 0) or 10**9)
    return OpenModel(base.name, base.name, model, tokenizer, template, settings, max_length, trained=trained)


def _dtype(device_kind: str) -> torch.dtype:
    if device_kind != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
