"""Environment variables: which are shown, and what never is."""

from __future__ import annotations

import os
import subprocess
import sys

from llamafarm.hardware.environment import show_environment


def test_a_secret_is_only_set_or_not_set() -> None:
    shown = {name: value for name, value, _ in show_environment({"HF_TOKEN": "hf_secret"})}
    assert shown["HF_TOKEN"] == "set"
    assert "hf_secret" not in str(shown)
    assert {name: value for name, value, _ in show_environment({})}["HF_TOKEN"] == "not set"


def test_credentials_in_an_address_are_not_shown() -> None:
    rows = show_environment({"HF_ENDPOINT": "https://me:secret@hub.example/x"})
    assert {name: value for name, value, _ in rows}["HF_ENDPOINT"] == "https://hub.example/x"


def test_the_guides_variables_are_all_there() -> None:
    names = {name for name, _, _ in show_environment({})}
    assert names >= {
        "HF_TOKEN", "HF_HOME", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_VISIBLE_DEVICES", "TRANSFORMERS_VERBOSITY",
        "WANDB_MODE",
    }  # fmt: skip


def test_hf_home_and_verbosity_are_honoured() -> None:
    script = """
from llamafarm.model.hub import hub_cache
import llamafarm.model.load
from transformers.utils import logging
print(hub_cache(), logging.get_verbosity())
"""
    environment = {**os.environ, "HF_HOME": "/tmp/some-home", "TRANSFORMERS_VERBOSITY": "info"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["/tmp/some-home/hub", "20"]
