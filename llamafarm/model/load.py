"""Load a base model and its tokenizer: the embedded one, a folder, or one from the Hugging Face Hub.

`trust_remote_code` is False at every loader: a model file is data. So is `local_files_only` True: what `hub`
has fetched and looked at is what is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llamafarm.data.encoding.tokenization import TextEncoder, Tokenize, WholeTexts, panics_as_errors
from llamafarm.data.encoding.words import encoder_of
from llamafarm.errors import ModelError
from llamafarm.model.hub import fetch_settings, fetch_weights
from llamafarm.model.tokenizer_file import check_tokenizer

EMBEDDED_BASE = "cria-5m"
_EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / EMBEDDED_BASE

# A model's id on the Hub: "owner/model" or "model".
_SHOWN_CHARACTERS = 200
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}")

# Loading is announced, measured and reported here; a bar per shard on stderr would say it again.
transformers_logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class Base:
    """Where a base model comes from. `name` is what the user called it, `source` what is loaded."""

    name: str
    source: str
    cache_dir: str | None = None

    @property
    def is_embedded(self) -> bool:
        """Return whether this is the model that comes with the package."""
        return self.name == EMBEDDED_BASE

    @property
    def reference(self) -> str:
        """Return what finds this model again from any working directory."""
        return self.name if self.is_embedded else self.source


def find_base(name: str | None, cache_dir: str | None = None) -> Base:
    """Return where the base model `name` lies: a folder, else an id on the Hub; None is the embedded one.

    Raises `ModelError` for a path that is not there.
    """
    if name is None or name == EMBEDDED_BASE:
        return Base(EMBEDDED_BASE, str(_EMBEDDED_FOLDER))
    if (folder := _folder_named(name)) is not None:
        return Base(name, str(folder.resolve()), cache_dir)
    # Anything else can only have been meant as a path.
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"there is no model folder {name[:_SHOWN_CHARACTERS]!r}",
            where="base_model.huggingface_id",
            remedy="Check the path, or leave base_model out to use the embedded model.",
        )
    return Base(name, name, cache_dir)


def _folder_named(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a home folder that cannot be told
        return None


def load_tokenizer(base: Base) -> Any:
    """Return the tokenizer of a base model.

    Raises `ModelError` if it cannot be had, `MachineError` if the Hub would have it and cannot be reached.
    """
    check_tokenizer(fetch_settings(base.source, base.cache_dir))
    try:
        with panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(
                base.source, cache_dir=base.cache_dir, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of damaged files: whatever class, from four libraries
        raise _not_loaded(base, "tokenizer", error) from error
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {base.name!r} has no end-of-text token, so that no answer could end",
            where="base_model.huggingface_id",
            remedy="Use a model whose tokenizer_config.json names an eos_token.",
        )
    return tokenizer


def load_config(base: Base) -> Any:
    """Return a base model's configuration.

    Raises `ModelError` if it cannot be had, `MachineError` if the Hub would have it and cannot be reached.
    """
    fetch_settings(base.source, base.cache_dir)
    try:
        return AutoConfig.from_pretrained(
            base.source, cache_dir=base.cache_dir, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its values are checked by many, each with a class of its own
        raise _not_loaded(base, "configuration", error) from error


def load_model(
    base: Base, *, dtype: torch.dtype, device: torch.device, quantization_config: Any = None
) -> PreTrainedModel:
    """Return a base model on `device` with weights in `dtype`, in evaluation mode.

    With transformers' `quantization_config`, its linear layers are held in fewer bits. Raises `ModelError` if
    it cannot be had, `MachineError` if the Hub would have it and cannot be reached.
    """
    # Quantised weights must be put on their device while they are loaded.
    placed = {} if quantization_config is None else {"device_map": {"": device}}
    config = _without_dropout(load_config(base))
    fetch_weights(base.source, base.cache_dir)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.source,
            config=config,
            dtype=dtype,
            use_safetensors=True,  # else pickled weights would be read where there are no others
            quantization_config=quantization_config,
            cache_dir=base.cache_dir,
            local_files_only=True,
            trust_remote_code=False,
            **placed,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError) as error:
        raise _not_loaded(base, "weights", error) from error
    except (ArithmeticError, AssertionError, SafetensorError) as error:  # shapes that nobody meant
        raise _not_loaded(base, "weights", error) from error
    loaded: PreTrainedModel = (model if placed else model.to(device)).eval()
    return loaded


def count_parameters(base: Base) -> int:
    """Return how many weights a base model has, tied ones once, from its configuration alone.

    Raises `ModelError` if that cannot be had.
    """
    config = load_config(base)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _not_loaded(base, "configuration", error) from error
    num_parameters: int = model.num_parameters()
    return num_parameters


def tokenize_with(tokenizer: Any) -> Tokenize:
    """Return a function from texts to token ids that adds no special token of its own."""

    def tokenize(texts: Sequence[str]) -> Sequence[Sequence[int]]:
        if not texts:
            return []
        with panics_as_errors():
            encoded = tokenizer(
                list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
            )
        token_ids: list[list[int]] = encoded["input_ids"]
        return token_ids

    return tokenize


def text_encoder(tokenizer: Any) -> TextEncoder:
    """Return the fastest exact encoder of a tokenizer, which adds no special token of its own."""
    described = tokenizer_json(tokenizer)
    if described is None:
        return WholeTexts(tokenize_with(tokenizer))
    return encoder_of(Tokenizer.from_str(described))


def tokenizer_json(tokenizer: Any) -> str | None:
    """Return all that token ids follow from, as `tokenizers` writes it; None for one in Python alone."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str())


def use_tokenizer_threads(num_threads: int) -> None:
    """Let fast tokenizers work on a batch with so many threads; 0 is only the one that asks.

    Their pool is made once in a process, by whoever tokenizes first: later numbers above 0 change nothing.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads else "false"
    if num_threads:
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)


def adds_bos(tokenizer: Any) -> bool:
    """Return whether this tokenizer begins every text with its beginning-of-text token."""
    token_ids = tokenizer("x")["input_ids"]
    return tokenizer.bos_token_id is not None and token_ids[:1] == [tokenizer.bos_token_id]


def special_token_texts(tokenizer: Any) -> dict[str, str]:
    """Return the named special tokens of a tokenizer (`bos_token`, `eos_token`, …) as texts."""
    return {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def control_token_texts(tokenizer: Any) -> list[str]:
    """Return the texts of all tokens that the tokenizer treats as one special token."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *tokenizer.all_special_tokens})


def _without_dropout(config: Any) -> Any:
    """Return the configuration with every dropout of the base itself at 0.

    It would follow from the order of calls and not from seed, step and row, as the adapter's does.
    """
    for part in (config, *(getattr(config, name) for name in config.sub_configs if hasattr(config, name))):
        for name, value in vars(part).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(part, name, 0.0)
    return config


def _not_loaded(base: Base, part: str, error: Exception) -> ModelError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ModelError(
        f"the {part} of {base.name!r} cannot be loaded: {reason[:200]}",
        where="base_model.huggingface_id",
        remedy="Check the name and the network (HF_TOKEN for gated models), or name a local folder.",
    )
