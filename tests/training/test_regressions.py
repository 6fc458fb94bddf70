"""Faults that were found once in whole runs, and must not come back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, MambaConfig, OPTConfig

from llamafarm.errors import DataError, ModelError, OutputError, StrategyError
from llamafarm.model import adapter
from llamafarm.training.preparation.prepare import prepare
from llamafarm.training.run import run_training


@pytest.fixture
def base_of(tmp_path: Path, tiny_base: Path) -> Callable[[Any], str]:
    """Return the folder of a random model of a configuration."""

    def make(config: Any) -> str:
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return make


@pytest.mark.parametrize(
    ("config", "target"),
    [
        (MambaConfig(vocab_size=3072, hidden_size=32, num_hidden_layers=2, state_size=8), "in_proj"),
        (BloomConfig(vocab_size=3072, hidden_size=32, n_layer=2, n_head=4), "query_key_value"),
    ],
    ids=["recurrent", "attention-of-its-own"],
)
def test_a_base_that_carries_one_row_into_the_next_is_refused_and_nothing_written(
    load: Any, make_rows: Any, base_of: Callable[[Any], str], tmp_path: Path, config: Any, target: str
) -> None:
    loaded = load(make_rows(6), base_model__huggingface_id=base_of(config), method__target_modules=[target])
    with pytest.raises(ModelError, match="packed rows"):
        run_training(loaded)
    assert not (tmp_path / "run").exists()


def test_the_dropout_of_the_base_itself_is_off(
    load: Any, make_rows: Any, base_of: Callable[[Any], str]
) -> None:
    # OPT has a dropout of 0.1 of its own, which follows from the order of calls and not from the seed.
    config = OPTConfig(
        vocab_size=3072, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2,
        word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.1,
    )  # fmt: skip
    base = base_of(config)
    weights = []
    for output in ("one", "again"):
        result = run_training(load(make_rows(6), output=output, base_model__huggingface_id=base))
        weights.append((result.final_model / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_an_adapter_on_the_output_layer_trains_with_dropout(load: Any, make_rows: Any) -> None:
    run_training(load(make_rows(6), method__target_modules=["lm_head"], method__dropout=0.1))


@pytest.mark.parametrize("name", ["mlp", "input_layernorm"])
def test_a_target_that_is_no_linear_layer_is_the_users_error(load: Any, make_rows: Any, name: str) -> None:
    with pytest.raises(ModelError, match="no adapter can be attached"):
        run_training(load(make_rows(6), method__target_modules=[name]))


def test_a_disk_that_is_full_at_the_end_is_an_error_for_people(
    load: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(adapter, "save_file", fail)
    for strategy in ("epoch", "no"):
        with pytest.raises(OutputError, match="No space left on device"):
            run_training(load(make_rows(6), output=strategy, training_args__save_strategy=strategy))


def test_a_range_of_epochs_asks_for_evaluation(load: Any, make_rows: Any) -> None:
    prepared = prepare(load(make_rows(20), training_args__num_train_epochs="2-5"))
    assert (len(prepared.eval_rows), prepared.plan.patience) == (2, 1)


def test_evaluation_that_is_asked_for_and_has_no_row_left_is_refused(load: Any, make_rows: Any) -> None:
    rows = make_rows(6)
    with pytest.raises(DataError, match="no evaluation row is left"):
        prepare(load(rows, rows, data_preprocessing__remove_duplicates=True))


def test_the_best_cannot_be_chosen_without_evaluation(load: Any, make_rows: Any) -> None:
    with pytest.raises(StrategyError, match="eval_strategy no"):
        load(
            make_rows(6),
            training_args__eval_strategy="no",
            training_args__metric_for_best_model="train_loss",
            training_args__load_best_model_at_end=True,
        )


@pytest.mark.parametrize("limit", ["max_input_length", "max_output_length"])
def test_the_limit_that_a_row_broke_is_the_one_named(load: Any, limit: str) -> None:
    long, short = "pain in the heart " * 6, "pain"
    rows = [{"instruction": long, "output": short}, {"instruction": short, "output": long}]
    warnings = prepare(load(rows, **{f"data_preprocessing__{limit}": 20})).warnings
    (warning,) = [warning for warning in warnings if "too long" in warning]
    assert f"{limit} is 20" in warning


def test_half_of_a_character_is_the_rows_error(load: Any) -> None:
    with pytest.raises(DataError) as caught:
        prepare(load([{"instruction": "why \ud800?", "output": "so"}]))
    assert caught.value.where.endswith("train.jsonl:1")


def test_what_is_no_hub_id_is_the_users_error(load: Any, make_rows: Any) -> None:
    with pytest.raises(ModelError, match="not a model!"):
        prepare(load(make_rows(6), base_model__huggingface_id="not a model!"))


def test_cut_weights_are_the_users_error(load: Any, make_rows: Any, tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_base, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        run_training(load(make_rows(6), base_model__huggingface_id=str(tmp_path / "cut")))


def test_a_base_beside_the_strategy_file_is_found(
    load: Any, make_rows: Any, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "beside").symlink_to(tiny_base)
    prepare(load(make_rows(6), base_model__huggingface_id="./beside"))


def test_evaluate_reads_rows_as_training_did_and_shows_answers_to_their_own_questions(
    load: Any, make_rows: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llamafarm.cli import main

    long = {"instruction": "heart " * 300, "input": "", "output": "yes"}
    rows = [long, *make_rows(2, seed=1), {"instruction": "why?", "output": ""}]
    settings = {"training_args__max_steps": 1, "generation__max_new_tokens": 3}
    run_training(load(make_rows(6), rows, data_preprocessing__filter_empty=True, **settings))
    file = str(tmp_path / "strategies.yaml")
    monkeypatch.setattr(sys, "argv", ["cli.py", "evaluate", "--strategy", "s", "--strategy-file", file])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert not left.value.code, said.err
    assert "heart heart" not in said.err


def test_gradient_checkpointing_warns_of_nothing(load: Any, make_rows: Any, recwarn: Any) -> None:
    run_training(load(make_rows(6), hardware__optimization__gradient_checkpointing=True))
    assert [str(w.message) for w in recwarn if "checkpointing" in str(w.message)] == []


def test_run_json_is_json_where_a_loss_is_not_finite(tmp_path: Path) -> None:
    from llamafarm.training.record import write_json

    write_json(tmp_path / "x.json", {"result": {"eval_perplexity": float("inf")}, "list": [1.5]})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "result": {"eval_perplexity": None},
        "list": [1.5],
    }
