"""The model card, as the library of the Hub reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from llamafarm.errors import OutputError
from llamafarm.report.card import write_card


def card_of(folder: Path) -> ModelCard:
    write_card(folder)
    return ModelCard.load(folder / "final_model" / "README.md")


def test_the_head_has_what_the_hub_reads(make_run: Any) -> None:
    data = card_of(make_run()).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "owner/base-1b",
        "peft",
        "text-generation",
    )
    assert data.tags == ["llamafarm-finetune", "sft", "lora"]
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results["loss"] == pytest.approx(0.42)
    assert results["exact_match"] == pytest.approx(0.31)
    assert {result.dataset_name for result in data.eval_results} == {"medical_eval.jsonl"}


def test_the_card_has_no_path_of_the_machine(make_run: Any) -> None:
    folder = make_run()
    write_card(folder)
    text = (folder / "final_model" / "README.md").read_text()
    assert "/home/somebody" not in text
    assert str(folder) not in text
    assert "medical_train.jsonl" in text
    assert "694a943a" * 8 in text
    assert "−2.710 … −2.240" in text
    assert "`<|end|>`" in text


def test_a_local_base_is_left_out(make_run: Any, tmp_path: Path) -> None:
    folder = make_run()
    bundle = {"base_model": str(tmp_path), "kind": "full"}
    (folder / "final_model" / "llamafarm.json").write_text(json.dumps(bundle))
    data = card_of(folder).data
    assert (data.base_model, data.library_name) == (None, "transformers")


def test_nasty_texts_stay_texts(make_run: Any, nasty_text: str) -> None:
    card = card_of(make_run(text=nasty_text))
    assert card.data.pipeline_tag == "text-generation"
    outside = "".join(part for number, part in enumerate(card.text.split("```")) if number % 2 == 0)
    titles = [line for line in outside.splitlines() if line.startswith("# ")]
    assert len(titles) == 1
    assert "&lt;script&gt;" in titles[0]


def test_figures_on_trained_rows_are_no_results(make_run: Any) -> None:
    folder = make_run()
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"is_held_out": False}))
    card = card_of(folder)
    assert not card.data.eval_results
    assert "rows that were trained on" in card.text


def test_without_a_final_model_there_is_no_card(make_run: Any) -> None:
    with pytest.raises(OutputError, match="no final_model/"):
        write_card(make_run(has_model=False))
