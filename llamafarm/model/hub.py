"""A base model's files before they are loaded: where they lie, their size, the licence gate; and fetched.

`load` has the loading itself, from what is on this machine. A model that must come from the Hugging Face Hub
is fetched here: what the Hub lists is looked at first, only what loading reads is taken, never a pickle or
code, and the settings are looked at before the weights are asked for.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from llamafarm.errors import LlamaFarmError, MachineError, ModelError
from llamafarm.model.files import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    TEMPLATES_FOLDER,
    check_base_folder,
    check_folder,
    weight_files,
)

# What loading reads: weights, configuration, tokenizer. Pickled weights are not among them.
_WEIGHTS = ".safetensors"
_LOADED_SUFFIXES = (_WEIGHTS, ".json", ".jinja", ".model", ".txt")
_TEMPLATE = re.compile(rf"{TEMPLATES_FOLDER}/[^/]+\.jinja")
# A tokenizer has one of them, but for a few in which every byte is a token.
_TOKENIZER = re.compile(r"(tokenizer|tekken|vocab)\.json|vocab\.txt|.*\.model")
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
    us, or has only pickled weights or an adapter of it, and `MachineError` if it cannot be reached.
    """
    if (folder := local_folder(source, cache_dir)) is not None:
        place = "the local cache" if not Path(source).is_dir() else str(folder)
        return ModelSource(place, _num_bytes_in(folder), is_local=True)
    info = _ask(source)
    if info.gated:
        _check_gate(source)
    # Sizes are missing where the Hub lists a file without them.
    num_bytes = sum(file.size or 0 for file in info.siblings if _is_loaded(file.rfilename))
    return ModelSource("the Hugging Face Hub", num_bytes, False, _licence_of(info), bool(info.gated))


def fetch_settings(source: str, cache_dir: str | None = None) -> Path:
    """Return the folder of the model `source` with its configuration and tokenizer in it, both looked at.

    They are fetched from the Hub where they are not on this machine. Raises as `find_source` and
    `check_folder` do.
    """
    folder = local_folder(source, cache_dir)
    if folder is None or not (Path(source).is_dir() or _has_tokenizer(folder)):
        folder = _fetch_settings(source, cache_dir, folder)
    check_folder(folder)
    return folder


def fetch_weights(source: str, cache_dir: str | None = None) -> Path:
    """Return the folder of the model `source` with all in it, looked at before the weights are asked for.

    These are fetched from the Hub where they are not on this machine. Raises as `find_source` and
    `check_base_folder` do.
    """
    folder = fetch_settings(source, cache_dir)
    if not Path(source).is_dir() and not _has_weights(folder):
        # Another tool may have left the index of the shards out.
        folder = _fetch_settings(source, cache_dir, folder)
        check_folder(folder)
        folder = _download(source, cache_dir, weight_files(folder))
    check_base_folder(folder)
    return folder


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


def _has_tokenizer(folder: Path) -> bool:
    return any(_TOKENIZER.fullmatch(path.name) for path in folder.iterdir())


def _has_weights(folder: Path) -> bool:
    return all((folder / name).is_file() for name in weight_files(folder))


def _fetch_settings(source: str, cache_dir: str | None, known: Path | None) -> Path:
    """Fetch all but the weights; the configuration last, by which a model in the cache is known.

    Where the Hub cannot be asked, `known` is returned, if it is one: the loader says what is missing there.
    """
    try:
        info = _ask(source)
    except LlamaFarmError:
        if known is None:
            raise
        return known
    listed = (file.rfilename for file in info.siblings)
    names = [name for name in listed if _is_loaded(name) or _TEMPLATE.fullmatch(name)]
    if first := [name for name in names if not name.endswith(_WEIGHTS) and name != CONFIG_FILE]:
        _download(source, cache_dir, first)
    return _download(source, cache_dir, [CONFIG_FILE])


def _download(source: str, cache_dir: str | None, names: Sequence[str]) -> Path:
    """Fetch these files of a model, those that it has, into the cache; return their folder there."""
    try:
        return Path(snapshot_download(source, cache_dir=cache_dir, allow_patterns=list(map(escape, names))))
    except Exception as error:  # as in `_ask`, and what the disk has to say
        raise _explain(source, error) from error


def _ask(source: str) -> Any:
    """Return what the Hub says of a model, its files in `siblings`; refuse what their names tell."""
    try:
        info = HfApi().model_info(source, files_metadata=True, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # which class it is depends on the HTTP library that the Hub's client uses
        raise _explain(source, error) from error
    info.siblings = info.siblings or []
    names = {file.rfilename for file in info.siblings if _is_loaded(file.rfilename)}
    if ADAPTER_CONFIG_FILE in names:
        raise ModelError(
            f"{source!r} is an adapter, and not a base model",
            where=_WHERE,
            remedy="Choose the model that it was trained on.",
        )
    if not any(name.endswith(_WEIGHTS) for name in names):
        raise ModelError(
            f"{source!r} has no weights in safetensors, and pickled ones are never read",
            where=_WHERE,
            remedy="Choose a model with .safetensors files, or convert it first.",
        )
    return info


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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"there is no room for the files of {source!r}",
            where="base_model.cache_dir",
            remedy="Make room on the disk, or name a folder on another one there; what is fetched stays.",
        )
    status = f" (HTTP {error.response.status_code})" if isinstance(error, HfHubHTTPError) else ""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return MachineError(
        f"the Hub cannot be asked for {source!r}{status}: {reason[:160]}",
        where=_WHERE,
        remedy="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or name a local folder.",
    )
