"""Environment variables: which are shown, and what never is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.hardware.environment import VARIABLES, show_environment


def test_a_secret_is_only_set_or_not_set() -> None:
    shown = {name: value for name, value, _ in show_environment({"HF_TOKEN": "hf_secret"})}
    assert shown["HF_TOKEN"] == "set"
    assert "hf_secret" not in str(shown)
    assert {name: value for name, value, _ in show_environment({})}["HF_TOKEN"] == "not set"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HF_ENDPOINT", "https://me:secret@hub.example/x", "https://hub.example/x"),
        ("HF_ENDPOINT", "https://me:sec@ret@hub.example", "https://hub.example"),
        ("HF_ENDPOINT", "https://me:sec/ret@hub.example", "https://hub.example"),
        ("HF_ENDPOINT", "https://hub.example/?token=secret", "https://hub.example/?…"),
        ("OLLAMA_HOST", "me:secret@box:80", "box:80"),
        ("OLLAMA_HOST", "box:80", "box:80"),
        ("HF_HOME", "/home/me@work/models", "/home/me@work/models"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "expandable_segments:True"),
    ],
)
def test_values_are_shown_without_credentials(name: str, value: str, shown: str) -> None:
    assert {name: value for name, value, _ in show_environment({name: value})}[name] == shown


@given(st.text(st.sampled_from("ab:/@?.")), st.sampled_from(["", "https://"]))
def test_no_password_is_shown_whatever_stands_in_it(password: str, scheme: str) -> None:
    address = f"{scheme}me:{password}SECRET@box"
    assert "SECRET" not in str(show_environment({"HF_ENDPOINT": address, "OLLAMA_HOST": address}))


def test_the_guides_variables_are_all_there() -> None:
    names = {name for name, _, _ in show_environment({})}
    assert names >= {
        "HF_TOKEN", "HF_HOME", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_VISIBLE_DEVICES", "TRANSFORMERS_VERBOSITY",
        "WANDB_MODE",
    }  # fmt: skip


def test_what_others_read_reaches_them_through_our_loaders() -> None:
    script = """
from llamafarm.model.hub import hub_cache
import llamafarm.model.load
import torch, huggingface_hub
from huggingface_hub import constants
from transformers.utils import logging
print(hub_cache(), logging.get_verbosity(), huggingface_hub.get_token(), constants.HF_HUB_OFFLINE,
      constants.ENDPOINT, torch.get_num_threads())
"""
    wanted = {
        "HF_HOME": "/tmp/some-home", "TRANSFORMERS_VERBOSITY": "info", "HF_TOKEN": "hf_some",
        "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "https://hub.example", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment = {**os.environ, **wanted}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["/tmp/some-home/hub", "20", "hf_some", "True", "https://hub.example", "1"]


def test_nothing_of_ours_sets_a_variable_that_it_says_it_honours(repository: Path) -> None:
    set_by_us = {
        node.slice.value
        for path in (repository / "llamafarm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "os.environ" and isinstance(node.slice, ast.Constant)
    }  # fmt: skip
    assert set_by_us, "this way of looking sees nothing"
    assert set_by_us & {variable.name for variable in VARIABLES} == set()
