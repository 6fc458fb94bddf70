"""The `final_model/` folder: written, opened again, and refused where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from llamafarm.data.conversation import Message
from llamafarm.errors import ModelError
from llamafarm.model.adapter import adapter_tensors, load_adapter
from llamafarm.model.bundle import BUNDLE_FILE, Bundle, final_model_in, open_bundle, read_bundle, write_bundle
from llamafarm.model.load import Base
from llamafarm.model.prompt import build_template

TURNS = Message("system", "Be nice"), Message("user", "What?", "some “input”"), Message("assistant", "That.")


@pytest.fixture
def bundle(base: Base) -> Bundle:
    """What a run over the tiny base would say about itself."""
    return Bundle(
        base_model=base.name,
        strategy="médical",
        end_of_turn="<|end|>",
        joiner=" | ",
        max_length=128,
        stop_sequences=("\nUser:", "„"),
        generation={
            "max_new_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": None,
            "repetition_penalty": 1.1,
        },
    )


@pytest.fixture
def folder(tmp_path: Path, bundle: Bundle, tuned: PeftModel, tokenizer: Any) -> Path:
    """A final model on disk, with a prompt template of its own."""
    template, _ = build_template(tokenizer, "{system}\nQ: {instruction} | {input}\nA: {output}", "Default.")
    tokenizer.chat_template = template.source
    folder = tmp_path / "run" / "final_model"
    folder.mkdir(parents=True)
    write_bundle(folder, bundle, tuned, adapter_tensors(tuned), tokenizer)
    return folder


def test_a_final_model_comes_back_as_it_was_written(
    folder: Path,
    bundle: Bundle,
    tuned: PeftModel,
    tokenizer: Any,
    fresh_model: Callable[[], PreTrainedModel],
    logits_of: Callable[[torch.nn.Module], torch.Tensor],
) -> None:
    opened, base, opened_tokenizer, template = open_bundle(folder)
    assert opened == bundle
    assert base.source == bundle.base_model
    assert opened_tokenizer.get_vocab() == tokenizer.get_vocab()
    expected, _ = build_template(tokenizer, "{system}\nQ: {instruction} | {input}\nA: {output}", "Default.")
    assert template.source == expected.source
    for messages in (TURNS, TURNS[1:]):
        assert template.render(messages) == expected.render(messages)
        assert "What? | some “input”" in template.render(messages)
    assert template.end_of_turn == expected.end_of_turn
    assert torch.equal(logits_of(load_adapter(fresh_model(), folder)), logits_of(tuned))


def test_stock_transformers_gets_the_template_with_the_tokenizer(folder: Path) -> None:
    stock = AutoTokenizer.from_pretrained(str(folder))
    _, _, _, template = open_bundle(folder)
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    expected = template.render([Message("user", "What?"), Message("assistant", "That.")])
    assert stock.apply_chat_template(messages, tokenize=False) == expected
    assert expected.startswith("Default.\n")


def test_a_final_model_is_found_in_its_run(folder: Path, tmp_path: Path) -> None:
    assert final_model_in(folder) == folder
    assert final_model_in(folder.parent) == folder
    assert final_model_in(tmp_path) == tmp_path / "final_model"


def test_nothing_that_is_written_is_a_pickle(folder: Path) -> None:
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jinja", ".safetensors", ".md", ".model", ".txt"}


def refusal(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        open_bundle(folder)
    error = caught.value
    assert all(part and "\n" not in part for part in (error.problem, error.where, error.remedy))
    return error


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        error = refusal(place)
        assert error.where == str(place / BUNDLE_FILE)
        assert "train" in error.remedy


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"stop_sequences": []}',
        b'{"stop_sequences": 5}',
        b'{"stop_sequences": [], "unknown": 1}',
    ],
)
def test_a_damaged_record_is_refused(folder: Path, content: bytes) -> None:
    (folder / BUNDLE_FILE).write_bytes(content)
    error = refusal(folder)
    assert "damaged" in error.problem
    assert error.where == str(folder / BUNDLE_FILE)


@pytest.mark.parametrize("key", ["base_model", "end_of_turn", "joiner", "max_length", "stop_sequences"])
def test_a_record_with_a_part_missing_is_refused(folder: Path, key: str) -> None:
    content = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    del content[key]
    (folder / BUNDLE_FILE).write_text(json.dumps(content))
    assert key in refusal(folder).problem


def test_a_record_of_a_later_version_is_refused_with_both_versions(folder: Path, bundle: Bundle) -> None:
    content = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    content["format_version"] = bundle.format_version + 1
    (folder / BUNDLE_FILE).write_text(json.dumps(content))
    error = refusal(folder)
    assert str(bundle.format_version + 1) in error.problem
    assert "pdate" in error.remedy


def test_a_base_that_is_gone_is_named(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    content = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    (folder / BUNDLE_FILE).write_text(json.dumps({**content, "base_model": gone}))
    assert read_bundle(folder) == replace(bundle, base_model=gone)
    assert gone in refusal(folder).problem


def test_a_tokenizer_that_is_gone_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(folder).problem


def test_a_disk_that_is_full_is_told_of_as_one_also_by_what_has_no_word_for_it(
    tmp_path: Path, bundle: Bundle, tuned: PeftModel
) -> None:
    class Tokenizer:
        def save_pretrained(self, _: str) -> None:
            raise Exception("No space left on device (os error 28)")  # as tokenizers has it

    with pytest.raises(OSError, match="No space left on device"):
        write_bundle(tmp_path, bundle, tuned, adapter_tensors(tuned), Tokenizer())
