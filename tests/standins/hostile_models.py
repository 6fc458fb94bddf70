"""Attacks on whoever loads a model: each changes the folder of a good one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile import AUTO_MAP

from llamafarm.model.load import find_base, load_model, load_tokenizer


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def save_adapter(base: Path, folder: Path) -> Path:
    """Save an adapter of `base` as PEFT does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(str(folder))
    return folder


def load(folder: Path) -> Any:
    """Load a base as every verb does, and return the model."""
    found = find_base(str(folder))
    load_tokenizer(found)
    return load_model(found, dtype=torch.float32, device=torch.device("cpu"))


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def become_shards(folder: Path, shard: Any) -> None:
    """Let an index say that the weights lie in `shard`."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(str(folder / "model-00001-of-00001.safetensors"), framework="pt") as weights:
        names = list(weights.keys())
    content = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def lead_out(name: str) -> Callable[[Path], None]:
    """Move a file out of the folder and leave a link to it."""

    def move(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return move


def become_fifo(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return replace


def with_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


def safetensors(header_bytes: int, header: bytes = b"") -> bytes:
    return struct.pack("<q", header_bytes) + header


def tensors(**entry: Any) -> bytes:
    header = json.dumps({"x": entry}).encode()
    return safetensors(len(header), header) + b"\0" * 16


REFUSED_BASES: dict[str, Callable[[Path], object]] = {
    "a config of unknown code": with_config(model_type="evil", auto_map=AUTO_MAP),
    "nested code": with_config(text_config={"model_type": "x", "trust_remote_code": True}),
    "nested code in a list": with_config(parts=[{"deeper": {"trust_remote_code": True}}]),
    "a newline in model_type": with_config(model_type="llama\nimport os"),
    "code in architectures": with_config(architectures=["X); import os; (Y"]),
    "a kernel of the Hub": with_config(attn_implementation="attacker/kernel"),
    "a kernel of the Hub inside": with_config(_attn_implementation_internal="paged|attacker/kernel:f"),
    "a billion layers": with_config(num_hidden_layers=10**9),
    "sizes that are texts": with_config(hidden_size="os.system('x')"),
    "negative sizes": with_config(vocab_size=-1),
    "huge sizes": with_config(hidden_size=2**62, intermediate_size=2**62),
    "a config that is a list": overwrite("config.json", b"[]"),
    "a config nested deeply": overwrite("config.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a config that is a pickle": overwrite("config.json", b"\x80\x04N."),
    "a shard above": lambda folder: become_shards(folder, "../model.safetensors"),
    "a shard at a path": lambda folder: become_shards(folder, "/etc/passwd"),
    "a shard that is a device": lambda folder: become_shards(folder, "/dev/zero"),
    "a shard in a folder": lambda folder: become_shards(folder, "x/model.safetensors"),
    "a shard with a NUL": lambda folder: become_shards(folder, "a\0b"),
    "an index of numbers": lambda folder: become_shards(folder, 1),
    "weights behind a link": lead_out("model.safetensors"),
    "a config behind a link": lead_out("config.json"),
    "a tokenizer behind a link": lead_out("tokenizer.json"),
    "weights that are a FIFO": become_fifo("model.safetensors"),
    "a config that is a FIFO": become_fifo("config.json"),
    "a tokenizer that is a FIFO": become_fifo("tokenizer.json"),
    "an index that is a FIFO": become_fifo("model.safetensors.index.json"),
    "a template that is a FIFO": become_fifo("chat_template.jinja"),
    "versions of a tokenizer above": lambda folder: change_json(
        folder / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.1.0.json"]
    ),
    "a tokenizer that is a pickle": overwrite("tokenizer.json", b"\x80\x04N."),
    "a tokenizer's class of code": lambda folder: change_json(
        folder / "tokenizer_config.json", tokenizer_class="X; import os"
    ),
    "a header of 2**62 bytes": overwrite("model.safetensors", safetensors(2**62, b"{}")),
    "a header of -1 bytes": overwrite("model.safetensors", safetensors(-1, b"{}")),
    "a header longer than the file": overwrite("model.safetensors", safetensors(90_000_000, b"{}")),
    "a header that is no JSON": overwrite("model.safetensors", safetensors(4, b"\x80\x04N.")),
    "no header": overwrite("model.safetensors", b""),
    "data beyond the end": overwrite(
        "model.safetensors", tensors(dtype="F32", shape=[2**40], data_offsets=[0, 2**42])
    ),
    "negative offsets": overwrite(
        "model.safetensors", tensors(dtype="F32", shape=[4], data_offsets=[-16, 0])
    ),
    "a shape that overflows": overwrite(
        "model.safetensors", tensors(dtype="F32", shape=[2**62, 2**62], data_offsets=[0, 16])
    ),
    "an adapter in the base's place": lambda folder: change_json(
        folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="attacker/model"
    ),
}  # fmt: skip


REFUSED_ADAPTERS: dict[str, dict[str, Any]] = {
    "another kind": {"peft_type": "XLORA"},
    "a kind that is code": {"peft_type": "LORA\nimport os"},
    "a module to be imported": {"megatron_config": {"x": 1}, "megatron_core": "os"},
    "a pickle to be read": {"corda_config": {"cache_file": "/tmp/x.pt"}},
    "targets that take for ever": {"target_modules": "(a+)+$"},
    "targets of many repeats": {"target_modules": ".*" * 30 + "x"},
    "exclusions that take for ever": {"exclude_modules": "(.*)*x"},
    "ranks that take for ever": {"rank_pattern": {"(q_proj|q_.*)+$": 2}},
    "layers that take for ever": {"layers_to_transform": [0], "layers_pattern": ["(a|a)*$"]},
    "a rank that is text": {"r": "__import__('os')"},
    "a rank below 0": {"r": -1},
    "code of its own": {"trust_remote_code": True},
}
