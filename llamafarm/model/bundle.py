"""The `final_model/` folder: what was trained, its tokenizer, and all else that it takes to use them.

Stock PEFT loads an adapter, transformers a whole model and the tokenizer, chat template included;
`llamafarm.json` says which base it belongs to, where answers end, and how the strategy generates.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llamafarm.data.encoding.template import EVERY_ANSWER, ChatTemplate, TrainedPart
from llamafarm.errors import ModelError
from llamafarm.model.load import Base, find_base, load_tokenizer
from llamafarm.model.prompt import template_from_source
from llamafarm.model.quantized import Quantization
from llamafarm.model.weights import ADAPTER, FULL, Trained, write_weights

BUNDLE_FILE = "llamafarm.json"
_FORMAT_VERSION = 1
_GENERATION_KEYS = {"max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"}


@dataclass(frozen=True, slots=True)
class Bundle:
    """What `llamafarm.json` holds.

    `joiner` stands between an Alpaca row's instruction and its input; `generation` has the strategy's
    defaults (max_new_tokens, temperature, top_p, top_k, repetition_penalty). `kind` is `adapter` or `full`,
    the whole model; `quantization` is how the base was held while the adapter was trained on it, `trained`
    which part of a row was.
    """

    base_model: str
    strategy: str
    end_of_turn: str
    joiner: str
    max_length: int
    stop_sequences: tuple[str, ...] = ()
    generation: Mapping[str, float | int | None] = field(default_factory=dict)
    kind: str = ADAPTER
    quantization: Quantization | None = None
    trained: TrainedPart = EVERY_ANSWER
    format_version: int = _FORMAT_VERSION


def write_bundle(
    folder: Path, bundle: Bundle, model: Trained, tensors: Mapping[str, torch.Tensor], tokenizer: Any
) -> None:
    """Write a final model into the empty folder `folder`. Raises `OSError` where that cannot be done."""
    write_weights(folder, model, tensors)
    try:
        tokenizer.save_pretrained(str(folder))
    except OSError:
        raise
    except Exception as error:  # what tokenizers raises for a full disk, of no class of its own
        raise OSError(errno.EIO, str(error)) from error
    text = json.dumps(asdict(bundle), indent=2, ensure_ascii=False)
    (folder / BUNDLE_FILE).write_text(text + "\n", encoding="utf-8")


def final_model_in(folder: Path) -> Path:
    """Return the final model that `folder` is, that a run left in it, or of whose run it is a checkpoint."""
    if weights_folder_of(folder) is not None:
        return folder.absolute().parent.parent / "final_model"
    return folder if (folder / BUNDLE_FILE).is_file() else folder / "final_model"


def weights_folder_of(folder: Path) -> Path | None:
    """Return `folder` if it is a run's checkpoint: trained weights, and nothing else to use them with."""
    is_checkpoint = (folder / "state.json").is_file() and not (folder / BUNDLE_FILE).is_file()
    return folder if is_checkpoint else None


def read_bundle(folder: Path) -> Bundle:
    """Return what `llamafarm.json` in `folder` says. Raises `ModelError` if it is not there or not whole."""
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise ModelError(
            f"there is no trained model in {str(folder)!r}",
            where=str(path),
            remedy="Train it first with `train`, or name a final_model folder.",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["stop_sequences"] = tuple(content["stop_sequences"])
        if content.get("quantization") is not None:
            content["quantization"] = Quantization(**content["quantization"])
        if "trained" in content:
            content["trained"] = TrainedPart(**content["trained"])
        bundle = Bundle(**content)
        _check_values(bundle)
        if bundle.kind not in (ADAPTER, FULL):
            raise ValueError(f"kind is {bundle.kind!r}")
        if unknown := set(bundle.generation) ^ _GENERATION_KEYS:
            raise ValueError(f"generation has other keys than it should: {', '.join(sorted(unknown))}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"the file is damaged: {error}", where=str(path), remedy="Train again, or restore the folder."
        ) from error
    if bundle.format_version != _FORMAT_VERSION:
        raise ModelError(
            f"the folder has format {bundle.format_version}, and this version reads {_FORMAT_VERSION}",
            where=str(path),
            remedy="Update llamafarm-finetune.",
        )
    return bundle


def _check_values(bundle: Bundle) -> None:
    """Raise `TypeError` for values of other kinds than a run writes."""
    texts = (bundle.base_model, bundle.strategy, bundle.end_of_turn, bundle.joiner, *bundle.stop_sequences)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("base_model, strategy, end_of_turn, joiner or a stop sequence is not a text")
    numbers = (bundle.max_length, *(value for value in bundle.generation.values() if value is not None))
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise TypeError("max_length or a setting of generation is not a number")


def open_bundle(folder: Path) -> tuple[Bundle, Base, Any, ChatTemplate]:
    """Return a final model's record, base, tokenizer and template; the weights are left for later."""
    bundle = read_bundle(folder)
    base = find_base(bundle.base_model)
    tokenizer = load_tokenizer(Base(str(folder), str(folder)))
    template = template_from_source(tokenizer, str(tokenizer.chat_template), bundle.joiner)
    return bundle, base, tokenizer, template
