"""A model's folder looked at before any loader opens it: it comes from anywhere, and is data or refused.

What the loaders of transformers and PEFT would follow, wait for or run is not left to them: files that are
links out of the folder, or no files; shards elsewhere; settings that ask for code. `load`, `adapter` and
`full` ask here first. Pickles are nowhere opened, and `auto_map` is ignored by `trust_remote_code=False`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamafarm.confined import fault_of_name, is_special, leaves
from llamafarm.errors import ModelError

ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
TEMPLATES_FOLDER = "additional_chat_templates"
# Read by some loader, by their ends or beginnings.
_READ = re.compile(
    r".*\.(safetensors|json|jinja|model|txt|tiktoken|bpe)|(tokenizer|vocab|merges|spiece|tekken)\..*"
)
_CONFIGS = (CONFIG_FILE, "generation_config.json", "tokenizer_config.json")
_MOST_BYTES = 64 * 2**20
_MOST_LAYERS = 2000
# Names of classes and kinds: never more than these signs.
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]{0,128}")
_NAMES = ("model_type", "architectures", "tokenizer_class", "peft_type")
# Where a name with a slash is a kernel of the Hub, fetched and run.
_KERNELS = ("attn_implementation", "experts_implementation")
# What LoRA does not need, and what would load modules by their names or read files by their paths.
_OUTSIDE_LORA = ("megatron_config", "corda_config", "eva_config", "loraga_config")
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
_MOST_PATTERN, _MOST_REPEATS = 2000, 6
_REPEATED_GROUP = re.compile(r"\)\s*(?:[*+]|\{\d*,)")
_REPEAT = re.compile(r"(?<!\\)[*+]|\{\d*,\}")


def check_folder(folder: Path) -> None:
    """Raise `ModelError` for what a loader should not be given: see the module."""
    for path in _files_read(folder):
        if is_special(path):
            raise refused(path, "it is neither a file nor a folder")
        if leaves(path, _root_of(folder)):
            raise refused(path, "it is a link that leads out of the model's folder")
    for name in _CONFIGS:
        _check_settings(folder / name)
    for shard in weight_files(folder):
        if (fault := fault_of_name(shard)) is not None:
            named = f"it names {shard[:80]!r}, which is not a file of this folder"
            raise refused(folder / INDEX_FILE, f"{named}: {fault}")


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that a model's weights are read from: the shards, or the one file."""
    shards = read_object(folder / INDEX_FILE).get("weight_map")
    return sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else [WEIGHTS_FILE]


def check_base_folder(folder: Path) -> None:
    """Raise `ModelError` as `check_folder` does, and for an adapter in the place of a base.

    With an `adapter_config.json`, transformers takes the model that it names, and what is trained of it from
    a pickle if need be.
    """
    check_folder(folder)
    if (folder / ADAPTER_CONFIG_FILE).exists():
        raise refused(folder / ADAPTER_CONFIG_FILE, "the folder is an adapter's, and not a base model's")


def check_adapter_folder(folder: Path) -> None:
    """Raise `ModelError` for a folder that is not a LoRA adapter in safetensors, or asks for more."""
    check_folder(folder)
    if not (folder / ADAPTER_FILE).is_file():  # PEFT would take a pickle instead, or ask the Hub
        raise refused(folder, f"there is no {ADAPTER_FILE} in it, and pickled weights are never read")
    path = folder / ADAPTER_CONFIG_FILE
    config = read_object(path)
    _check_settings(path)
    if config and config.get("peft_type") != "LORA":
        raise refused(path, f"it is an adapter of the kind {str(config.get('peft_type'))[:40]!r}, not LORA")
    if asked := [name for name in _OUTSIDE_LORA if config.get(name)]:
        raise refused(path, f"it asks for {asked[0]}")
    for pattern in _patterns_in(config):
        if not _ends_soon(pattern):
            raise refused(path, f"the pattern {pattern[:80]!r} could take for ever to be matched")


def _files_read(folder: Path) -> Iterator[Path]:
    try:
        paths = sorted(folder.iterdir())
        paths += sorted((folder / TEMPLATES_FOLDER).glob("*.jinja"))
    except OSError as error:
        raise refused(folder, error.strerror or str(error)) from error
    return (path for path in paths if _READ.fullmatch(path.name) and not path.is_dir())


def _root_of(folder: Path) -> Path:
    """Return where links may lead: a snapshot in the Hub's cache is made of links to its blobs."""
    is_snapshot = folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir()
    return folder.parent.parent if is_snapshot else folder


def read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; an empty one where there is none: the loaders say what is wrong there.

    Raises `ModelError` for one that is too large or nested too deeply to be read.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > _MOST_BYTES:
        raise refused(path, f"it is larger than {_MOST_BYTES // 2**20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise refused(path, "it is nested too deeply") from error
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_settings(path: Path) -> None:
    for name, value in _walk(read_object(path)):
        values = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
        if name == "trust_remote_code" and value:
            raise refused(path, "it asks for code of its own to be run (trust_remote_code)")
        if name in _NAMES and not all(map(_PLAIN.fullmatch, values)):
            raise refused(path, f"{name} is {str(value)[:80]!r}")
        if name.removeprefix("_").removesuffix("_internal") in _KERNELS and any("/" in one for one in values):
            raise refused(path, f"{name} is {str(value)[:80]!r}, which would be fetched and run")
        if name == "num_hidden_layers" and isinstance(value, int) and value > _MOST_LAYERS:
            raise refused(path, f"it claims {value} layers")
        if name == "fast_tokenizer_files" and any(fault_of_name(one) for one in values):
            raise refused(path, f"{name} names {str(value)[:80]!r}")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a tree with its value."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _patterns_in(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what PEFT reads as regular expressions."""
    for name in _PATTERNS:
        value = config.get(name)
        # A list of modules is compared with as it stands; one of layers is matched.
        values = value if isinstance(value, list) and name == "layers_pattern" else [value]
        yield from (one for one in values if isinstance(one, str))
    for name in ("rank_pattern", "alpha_pattern"):
        value = config.get(name)
        yield from value if isinstance(value, dict) else ()


def _ends_soon(pattern: str) -> bool:
    """Return whether a regular expression is matched in little time: no group is repeated, and few signs."""
    is_short = len(pattern) <= _MOST_PATTERN and len(_REPEAT.findall(pattern)) <= _MOST_REPEATS
    return is_short and not _REPEATED_GROUP.search(pattern)


def refused(path: Path, reason: str) -> ModelError:
    """Return the error that refuses a model for what one of its files is."""
    return ModelError(
        f"the model is not loaded: {path.name}: {reason}",
        where=str(path),
        remedy="Look at where the folder comes from; name a model that is data and nothing else.",
    )
