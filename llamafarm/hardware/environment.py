"""The environment variables that reach a run, and what each does here. Secrets are never shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that somebody here listens to; an address may have a password in it."""

    name: str
    effect: str
    is_secret: bool = False
    is_address: bool = False


VARIABLES: tuple[Variable, ...] = (
    Variable("HF_TOKEN", "account for gated and private models on the Hub", is_secret=True),
    Variable("HF_HOME", "folder of downloaded models, unless base_model.cache_dir is set"),
    Variable("HF_ENDPOINT", "another address of the Hub", is_address=True),
    Variable("HF_HUB_OFFLINE", "1 asks the Hub for nothing"),
    Variable(
        "PYTORCH_CUDA_ALLOC_CONF",
        "how PyTorch cuts the GPU's memory; expandable_segments:True against fragments of it",
    ),
    Variable("CUDA_VISIBLE_DEVICES", "the NVIDIA GPUs that are seen; the first is used"),
    Variable("HIP_VISIBLE_DEVICES", "the AMD GPUs that are seen; the first is used"),
    Variable("TRANSFORMERS_VERBOSITY", "how much transformers prints"),
    Variable("WANDB_MODE", "read by Weights & Biases; nothing is sent to it by this version"),
    Variable("OLLAMA_HOST", "address of the Ollama server", is_address=True),
    Variable("OMP_NUM_THREADS", "threads of a matrix product on the processor"),
)

# All up to the last @ after the scheme, if there is one: the password may itself have an @ or a /.
_CREDENTIALS = re.compile(r"^(\w[\w+.-]*://)?.*@", re.DOTALL)
_QUERY = re.compile(r"\?.*", re.DOTALL)


def show_environment(environment: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
    """Return name, value and effect of every variable; a secret is only set or not set."""
    values = os.environ if environment is None else environment
    return [
        (variable.name, _show(variable, values.get(variable.name)), variable.effect) for variable in VARIABLES
    ]


def _show(variable: Variable, value: str | None) -> str:
    if not value:
        return "not set"
    if variable.is_secret:
        return "set"
    if variable.is_address or "://" in value:
        return _QUERY.sub("?…", _CREDENTIALS.sub(r"\1", value))
    return value
