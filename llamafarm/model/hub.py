"""What is known of a base model's files before they are loaded: where they lie, their size, the licence gate.

`load` has the loading itself; a model that must come from the Hugging Face Hub is asked after here first,
because the loaders of transformers try for most of a minute before they give up.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from llamafarm.errors import LlamaFarmError, MachineError, ModelError

# What loading reads: weights, configuration, tokenizer. Pickled weights are not among them.
_LOADED_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_WHERE = "base_model.huggingface_id"
_TIMEOUT_SECONDS = 10
_HASHED_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a base model's files are, and how many bytes loading them reads.

    `place` is a folder, the local cache or the Hub. `licence` and `is_gated` are what the model's card says.
    """

    place: str
    num_bytes: int
    is_local: bool
    licence: str | None = None
    is_gated: bool = False


def find_source(source: str, cache_dir: str | None = None) -> ModelSource:
    """Return where the model `source`, a folder or an id on the Hub, comes from.

    Raises `ModelError` if the Hub has no such model, may not be asked, keeps it behind a gate that is shut to
    us, or has only pickled weights of it, and `MachineError` if it cannot be reached.
    """
    if (folder := local_folder(source, cache_dir)) is not None:
        place = "the local cache" if not Path(source).is_dir() else str(folder)
        return ModelSource(place, _num_bytes_in(folder), is_local=True)
    try:
        info = HfApi().model_info(source, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # which class it is depends on the HTTP library that the Hub's client uses
        raise _explain(source, error) from error
    files = [file for file in info.siblings or () if _is_loaded(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{source!r} has no weights in safetensors, and pickled ones are never read",
            where=_WHERE,
            remedy="Choose a model with .safetensors files, or convert it first.",
        )
    if info.gated:
        _check_gate(source)
    # Sizes are missing where the Hub lists a file without them.
    num_bytes = sum(file.size or 0 for file in files)
    return ModelSource("the Hugging Face Hub", num_bytes, False, _licence_of(info), bool(info.gated))


def local_folder(source: str, cache_dir: str | None = None) -> Path | None:
    """Return the folder on this machine that has the model `source`: itself, or one in the Hub's cache."""
    if Path(source).is_dir():
        return Path(source)
    cached = try_to_load_from_cache(source, "config.json", cache_dir=cache_dir)
    return Path(cached).parent if isinstance(cached, str) else None


def fingerprint_of(source: str, cache_dir: str | None = None) -> str | None:
    """Return a hash of the files of a model that is on this machine; None where it is not.

    Of a large file its size, beginning and end are hashed: a model of other weights has another one, unless
    somebody edits numbers in the middle of a file.
    """
    folder = local_folder(source, cache_dir)
    if folder is None:
        return None
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and _is_loaded(path.name)):
        num_bytes = path.stat().st_size
        found.update(f"{path.name} {num_bytes}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(_HASHED_BYTES))
            file.seek(max(num_bytes - _HASHED_BYTES, min(num_bytes, _HASHED_BYTES)))
            found.update(file.read(_HASHED_BYTES))
    return found.hexdigest()


def hub_cache(cache_dir: str | None = None) -> Path:
    """Return the folder that models from the Hub are kept in."""
    return Path(cache_dir or constants.HF_HUB_CACHE)


def _num_bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and _is_loaded(path.name))


def _is_loaded(name: str) -> bool:
    """Return whether a file of a model's repository is read; those in folders are other forms of it."""
    return "/" not in name and name.endswith(_LOADED_SUFFIXES)


def _check_gate(source: str) -> None:
    try:
        HfApi().auth_check(source)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise _explain(source, error) from error


def _licence_of(info: Any) -> str | None:
    card = info.card_data
    licence = card.get("license") if card is not None else None
    return licence if isinstance(licence, str) else None


def _explain(source: str, error: Exception) -> LlamaFarmError:
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"the Hub keeps {source!r} behind a licence that this account has not accepted",
            where=_WHERE,
            remedy=f"Accept it at https://huggingface.co/{source}, and set HF_TOKEN to that account's token.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"there is no model {source!r} on the Hub, or it is private",
            where=_WHERE,
            remedy="Check the name; set HF_TOKEN for a private model; or name a local folder.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(
            f"{source!r} is not on this machine, and HF_HUB_OFFLINE keeps it from being asked for",
            where=_WHERE,
            remedy="Name a local folder, or unset HF_HUB_OFFLINE.",
        )
    status = f" (HTTP {error.response.status_code})" if isinstance(error, HfHubHTTPError) else ""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return MachineError(
        f"the Hub cannot be asked for {source!r}{status}: {reason[:160]}",
        where=_WHERE,
        remedy="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or name a local folder.",
    )
