"""What is exported: a run, its final model, an adapter that PEFT saved, or a folder with a whole model.

Weights are not loaded here: they are read tensor by tensor when they are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm.data.conversation import Message
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.deploy.merge import CONFIG_FILE, Adapter, MergedWeights, read_adapter_folder
from llamafarm.deploy.stored import StoredWeights, Weights
from llamafarm.errors import ModelError
from llamafarm.inference.open import OpenModel, open_final_model, open_folder
from llamafarm.model.bundle import Bundle, final_model_in, open_bundle
from llamafarm.model.hub import fetch_weights
from llamafarm.model.load import Base, find_base, load_config, load_tokenizer
from llamafarm.model.prompt import build_template
from llamafarm.model.weights import FULL


@dataclass(frozen=True, slots=True)
class Source:
    """A model to be exported.

    `folder` has the adapter or the whole model, `base` what an adapter belongs to (else the model itself),
    and `bundle` what the run wrote of it, if one did. `tokenizer`'s chat template is `template`'s.
    """

    folder: Path
    base: Base
    config: Any
    tokenizer: Any
    template: ChatTemplate
    weights: Weights
    adapter: Adapter | None = None
    bundle: Bundle | None = None

    @property
    def exact_weights(self) -> Weights:
        """Return the weights before they are rounded to the numbers of the base."""
        return self.weights.exact() if isinstance(self.weights, MergedWeights) else self.weights

    @property
    def begins_with_bos(self) -> bool:
        """Return whether every conversation begins with the beginning-of-text token."""
        bos = self.tokenizer.bos_token
        return bos is not None and self.template.render([Message("user", "x")]).startswith(bos)

    @property
    def num_embeddings(self) -> int:
        """Return how many tokens the model has a place for."""
        embedding = self.weights.entries.get("model.embed_tokens.weight")
        return embedding.shape[0] if embedding is not None else int(self.config.vocab_size)

    @property
    def num_bytes(self) -> int:
        """Return the size of all weights, in the numbers of the base."""
        return sum(entry.num_bytes for entry in self.weights.entries.values())


@contextmanager
def open_source(folder: Path) -> Iterator[Source]:
    """Open the model in `folder` for export, and close its files in the end.

    Raises `ModelError` if there is none, or if it or its base cannot be read.
    """
    found = final_model_in(folder)
    if not found.is_dir():
        found = folder
    if not found.is_dir():
        raise ModelError(
            f"there is no folder {str(folder)!r}",
            where="convert",
            remedy="Name a run's folder, its final_model, a PEFT adapter or a model with config.json.",
        )
    with ExitStack() as files:
        if (found / "llamafarm.json").is_file():
            yield _open_final_model(found, files)
        elif (found / CONFIG_FILE).is_file():
            yield _open_adapter(found, files)
        elif (found / "config.json").is_file():
            yield _open_whole(found, files)
        else:
            raise ModelError(
                f"there is neither an adapter nor a model in {str(found)!r}",
                where=str(found),
                remedy="Name a run's folder, its final_model, a PEFT adapter or a model with config.json.",
            )


def _open_final_model(folder: Path, files: ExitStack) -> Source:
    bundle, base, tokenizer, template = open_bundle(folder)
    if bundle.kind == FULL:
        own = Base(str(folder), str(folder))
        weights = files.enter_context(StoredWeights(folder))
        return Source(folder, own, load_config(own), tokenizer, template, weights, bundle=bundle)
    return _merge(folder, base, tokenizer, template, bundle, files)


def _open_adapter(folder: Path, files: ExitStack) -> Source:
    """Open an adapter that another tool saved: its base is the one that it names."""
    adapter = read_adapter_folder(folder)
    if not adapter.base_name:
        raise ModelError(
            "the adapter does not say which base model it belongs to",
            where=str(folder / CONFIG_FILE),
            remedy="Write the base's folder or id on the Hub there as base_model_name_or_path.",
        )
    base = find_base(str(adapter.base_name))
    has_tokenizer = (folder / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(Base(str(folder), str(folder)) if has_tokenizer else base)
    template, _ = build_template(tokenizer, None, None)
    return _merge(folder, base, tokenizer, template, None, files, adapter)


def _open_whole(folder: Path, files: ExitStack) -> Source:
    own = Base(str(folder), str(folder))
    tokenizer = load_tokenizer(own)
    template, _ = build_template(tokenizer, None, None)
    weights = files.enter_context(StoredWeights(folder))
    return Source(folder, own, load_config(own), tokenizer, template, weights)


def _merge(
    folder: Path,
    base: Base,
    tokenizer: Any,
    template: ChatTemplate,
    bundle: Bundle | None,
    files: ExitStack,
    adapter: Adapter | None = None,
) -> Source:
    adapter = adapter or read_adapter_folder(folder)
    stored = files.enter_context(StoredWeights(folder_of(base)))
    merged = MergedWeights(stored, adapter, where=str(folder))
    config = load_config(base)
    if merged.unties_head:
        config.tie_word_embeddings = False
    return Source(folder, base, config, tokenizer, template, merged, adapter, bundle)


def open_trained(source: Source) -> OpenModel:
    """Return a source's model as `complete` loads it, on the processor and in fp32.

    Raises `ModelError` if it cannot be loaded.
    """
    if source.bundle is not None:
        return open_final_model(source.folder, "cpu")
    return open_folder(source.folder, source.base, source.tokenizer, source.template, "cpu")


def folder_of(base: Base) -> Path:
    """Return the folder with a base's weights, fetched from the Hub if they are not here yet.

    Raises `ModelError` or `MachineError` if they cannot be had.
    """
    return fetch_weights(base.source, base.cache_dir)
