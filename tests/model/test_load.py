"""Finding and loading base models, and what is said when that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafarm.errors import ModelError
from llamafarm.model.load import (
    EMBEDDED_BASE,
    Base,
    adds_bos,
    control_token_texts,
    find_base,
    load_config,
    load_model,
    load_tokenizer,
    special_token_texts,
    tokenize_with,
)

Damage = Callable[[Path], object]


def refusal(load: Callable[[], object]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load()
    error = caught.value
    parts = error.problem, error.where, error.remedy
    assert all(part and "\n" not in part and "Traceback" not in part for part in parts)
    return error


def load_weights(base: Base) -> Any:
    return load_model(base, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("name", [None, EMBEDDED_BASE])
def test_the_embedded_model_is_the_default(name: str | None) -> None:
    base = find_base(name)
    assert base.is_embedded
    assert base.name == EMBEDDED_BASE
    assert (Path(base.source) / "config.json").is_file()


def test_a_folder_is_taken_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    base = find_base("owner/model", "cache")
    assert base.source == str(tmp_path / "owner" / "model")
    assert (base.name, base.cache_dir, base.is_embedded) == ("owner/model", "cache", False)
    assert find_base(str(tmp_path)).source == str(tmp_path)
    assert find_base("./owner/model").source == str(tmp_path / "owner" / "model")


def test_a_folder_in_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_base("~/model").source == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["owner/model", "model", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_another_name_is_one_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_base(name, "cache") == Base(name, name, "cache")


@pytest.mark.parametrize(
    "name", ["/no/where", "./model", "../model", "~/no/model", "a/b/c", "models/x/", "a model", "C:\\model"]
)
def test_a_path_that_is_not_there_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(lambda: find_base(name))
    assert repr(name) in error.problem
    assert error.where == "base_model.huggingface_id"


def test_a_model_is_loaded_ready_to_be_asked(base: Base) -> None:
    model = load_model(base, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert load_config(base).num_hidden_layers == 2


@pytest.mark.parametrize("load", [load_tokenizer, load_config, load_weights])
def test_a_name_that_cannot_be_had_is_named(load: Callable[[Base], object]) -> None:
    base = Base("no-such-owner/no-such-model", "no-such-owner/no-such-model")
    assert "'no-such-owner/no-such-model'" in refusal(lambda: load(base)).problem


def write_to(file: str, content: bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(content)


def without(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def with_settings(file: str, **changes: object) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))

    return damage


@pytest.mark.parametrize(
    ("load", "damage"),
    [
        (load_weights, without("config.json")),
        (load_weights, write_to("config.json", b"{")),
        (load_weights, write_to("config.json", b"\xff\xfe")),
        (load_weights, with_settings("config.json", model_type="no-such-type")),
        (load_weights, with_settings("config.json", vocab_size=7)),
        (load_weights, with_settings("config.json", hidden_act="no-such-function")),
        (load_weights, without("model.safetensors")),
        (load_weights, write_to("model.safetensors", b"")),
        (load_weights, lambda folder: os.truncate(folder / "model.safetensors", 5_000)),
        (load_config, write_to("config.json", b"")),
        (load_config, write_to("config.json", b"[]")),
        (load_config, with_settings("config.json", model_type="t", auto_map={"AutoConfig": "code.Config"})),
        (load_tokenizer, without("tokenizer.json")),
        (load_tokenizer, write_to("tokenizer.json", b"")),
        (load_tokenizer, write_to("tokenizer.json", b"{}")),
        (load_tokenizer, write_to("tokenizer.json", b"\xff")),
        (load_tokenizer, write_to("tokenizer_config.json", b"{")),
    ],
)
def test_a_damaged_folder_is_refused(
    tmp_path: Path, tiny_base: Path, load: Callable[[Base], object], damage: Damage
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_base, folder)
    damage(folder)
    error = refusal(lambda: load(Base(str(folder), str(folder))))
    assert str(folder) in error.problem


def test_the_bases_own_dropout_is_left_out(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "with-dropout"
    shutil.copytree(tiny_base, folder)
    with_settings("config.json", attention_dropout=0.4)(folder)
    model = load_weights(Base("with-dropout", str(folder)))
    token_ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        in_training, in_evaluation = (model.train(mode)(input_ids=token_ids).logits for mode in (True, False))
    assert torch.equal(in_training, in_evaluation)


def test_code_in_a_model_folder_never_runs(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "with-code"
    shutil.copytree(tiny_base, folder)
    with_settings(
        "config.json",
        model_type="their-own",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )(folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    for load in (load_config, load_weights):
        refusal(lambda load=load: load(Base("with-code", str(folder))))
    assert not (tmp_path / "canary").exists()


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(tiny_base, folder)
    with_settings("tokenizer_config.json", eos_token=None)(folder)
    assert "end-of-text" in refusal(lambda: load_tokenizer(Base("endless", str(folder)))).problem


def test_texts_are_tokenized_without_tokens_of_the_tokenizers_own(tokenizer: Any) -> None:
    tokenize = tokenize_with(tokenizer)
    texts = ["What is it?", "", f"{tokenizer.bos_token}x{tokenizer.eos_token}", "a" * 3000]
    ids = tokenize(texts)
    assert [tokenizer.decode(one) for one in ids] == texts
    assert ids[2][0] == tokenizer.bos_token_id
    assert ids[2][-1] == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in ids[0]
    assert list(tokenize([])) == []


def test_special_tokens_are_given_by_name_and_as_texts(tokenizer: Any) -> None:
    named = special_token_texts(tokenizer)
    assert named["eos_token"] == tokenizer.eos_token
    assert named["bos_token"] == tokenizer.bos_token
    texts = control_token_texts(tokenizer)
    assert set(named.values()) <= set(texts)
    for text in texts:
        assert len(tokenize_with(tokenizer)([text])[0]) == 1


def test_whether_a_tokenizer_begins_texts_is_seen_from_what_it_does() -> None:
    class Tokenizer:
        def __init__(self, bos_token_id: int | None, ids: list[int]) -> None:
            self.bos_token_id = bos_token_id
            self.ids = ids

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": self.ids}

    assert adds_bos(Tokenizer(1, [1, 5]))
    assert not adds_bos(Tokenizer(1, [5]))
    assert not adds_bos(Tokenizer(1, [5, 1]))
    assert not adds_bos(Tokenizer(None, [5]))
    assert not adds_bos(Tokenizer(1, []))


@pytest.mark.parametrize(("num_threads", "num_new"), [(0, 0), (3, 3)])
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where Linux lists them")
def test_tokenizers_use_as_many_threads_as_they_are_given(num_threads: int, num_new: int) -> None:
    script = f"""
import os
from llamafarm.model.load import find_base, load_tokenizer, tokenize_with, use_tokenizer_threads
use_tokenizer_threads({num_threads})
tokenize = tokenize_with(load_tokenizer(find_base(None)))
before = len(os.listdir("/proc/self/task"))
tokenize(["hello world"] * 1000)
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == num_new
