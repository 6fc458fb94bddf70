"""Whole runs on a tiny random model, from a strategy file to a final model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafarm import terminal
from llamafarm.errors import NonFiniteError, OutputError
from llamafarm.evaluation.loss import LossResult
from llamafarm.model.forward import PackedForward
from llamafarm.model.targets import choose_target_modules
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import run, session
from llamafarm.training.preparation import memory, prepare
from llamafarm.training.result import RunResult
from llamafarm.training.run import run_training

Load = Callable[..., LoadedStrategy]
MakeRows = Callable[..., list[dict[str, Any]]]


def weights_of(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(result.final_model / "adapter_model.safetensors")


def digest(result: RunResult) -> str:
    return hashlib.sha256((result.final_model / "adapter_model.safetensors").read_bytes()).hexdigest()


def metrics_of(result: RunResult) -> list[dict[str, Any]]:
    lines = (result.final_model.parent / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_weights(one: RunResult, other: RunResult) -> None:
    theirs = weights_of(other)
    for name, tensor in weights_of(one).items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=0)


@pytest.fixture
def train(load: Load, make_rows: MakeRows) -> Callable[..., RunResult]:
    """Train on twelve rows in steps of four, with dropout, unless told otherwise."""

    def train_rows(output: str = "run", *, num_eval_rows: int = 0, **settings: Any) -> RunResult:
        eval_rows = make_rows(num_eval_rows, seed=1) if num_eval_rows else None
        given = {"method__dropout": 0.2, "training_args__num_train_epochs": 2} | settings
        return run_training(load(make_rows(12), eval_rows, output=output, **given))

    return train_rows


@pytest.fixture
def eval_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let evaluations give these losses, one after the other."""

    def give(*losses: float) -> None:
        coming: Iterator[float] = iter((5.0, *losses))  # the first is of before training
        monkeypatch.setattr(session.Session, "evaluate", lambda _: LossResult(next(coming), 10))

    return give


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(train: Callable[..., RunResult]) -> None:
    one, again = train("one"), train("again")
    assert digest(one) == digest(again)
    assert digest(one) != digest(train("other", environment__seed=7))


def test_with_dropout_the_size_of_packs_changes_nothing(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole")
    monkeypatch.setattr(memory, "choose_pack_tokens", lambda kind: 60)
    parts = train("parts")
    assert_same_weights(whole, parts)
    assert digest(whole) != digest(train("undropped", method__dropout=0.0))


def test_how_a_step_is_split_into_micro_batches_changes_nothing(train: Callable[..., RunResult]) -> None:
    batch = train("batch", training_args__per_device_train_batch_size=4)
    accumulated = train(
        "accumulated",
        training_args__per_device_train_batch_size=1,
        training_args__gradient_accumulation_steps=4,
    )
    assert digest(batch) == digest(accumulated)


def test_gradient_checkpointing_changes_nothing(train: Callable[..., RunResult]) -> None:
    kept = train("kept")
    recomputed = train("recomputed", hardware__optimization__gradient_checkpointing=True)
    assert_same_weights(kept, recomputed)


def test_gradient_checkpointing_computes_layers_again(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    calls = []
    forward = modeling_llama.LlamaMLP.forward

    def count(self: Any, hidden: Any) -> Any:
        if self.training:  # the probe of packs, before the first step, is in evaluation mode
            calls.append(0)
        return forward(self, hidden)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", count)
    train("kept", training_args__max_steps=1)
    num_kept = len(calls)
    train("recomputed", training_args__max_steps=1, hardware__optimization__gradient_checkpointing=True)
    assert len(calls) - num_kept == 2 * num_kept


def test_training_lowers_the_loss_on_what_it_trains_on(train: Callable[..., RunResult]) -> None:
    settings = {"method__target_modules": "all-linear", "training_args__learning_rate": 0.02}
    losses = [line["train_loss"] for line in metrics_of(train(training_args__num_train_epochs=8, **settings))]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_stock_peft_loads_the_final_model_with_the_trained_models_logits(
    train: Callable[..., RunResult], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[PeftModel] = []
    write_bundle = run.write_bundle

    def remember(folder: Path, bundle: Any, model: PeftModel, *rest: Any) -> None:
        trained.append(model)
        write_bundle(folder, bundle, model, *rest)

    monkeypatch.setattr(run, "write_bundle", remember)
    result = train(method__target_modules="all-linear")
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(result.final_model)
    ids = tokenizer("Question: what is pain?\nAnswer:", return_tensors="pt").input_ids
    with torch.inference_mode():
        of_base = base(ids).logits
        expected = trained[0].eval()(ids).logits
        loaded = PeftModel.from_pretrained(base, str(result.final_model))(ids).logits
    torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=1e-5)
    assert (of_base - expected).abs().max() > 0.01


def test_the_tokenizer_beside_the_final_model_renders_what_was_trained_on(
    train: Callable[..., RunResult],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(train(prompt_template__system="Be brief.").final_model)
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered == "Be brief.\n\nQuestion: why?\nAnswer: so.<|end|>"
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "Be brief.\n\nQuestion: why?\nAnswer:"


def test_the_best_evaluation_becomes_the_final_model(
    train: Callable[..., RunResult], eval_losses: Callable[..., None]
) -> None:
    settings = {"training_args__num_train_epochs": 4, "num_eval_rows": 2}
    eval_losses(3.0, 1.0, 2.0, 2.5)
    result = train("best", training_args__load_best_model_at_end=True, **settings)
    eval_losses(3.0, 1.0, 2.0, 2.5)
    last = train("last", **settings)
    assert (result.best_step, result.num_steps, result.eval_loss) == (6, 12, 1.0)
    checkpoints = result.final_model.parent / "checkpoints"
    best = load_file(checkpoints / "step-00000006" / "adapter_model.safetensors")
    newest = load_file(checkpoints / "step-00000012" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights_of(result).items())
    assert all(torch.equal(tensor, newest[name]) for name, tensor in weights_of(last).items())
    assert any(not torch.equal(tensor, best[name]) for name, tensor in newest.items())
    assert (last.best_step, last.eval_loss) == (6, 2.5)


def test_training_stops_early_where_asked(
    train: Callable[..., RunResult], eval_losses: Callable[..., None]
) -> None:
    eval_losses(3.0, 2.0, 2.5, 2.4, 1.0)
    result = train(
        num_eval_rows=2, training_args__num_train_epochs=5, training_args__early_stopping_patience=2
    )
    assert (result.stopped_early, result.num_steps, result.num_epochs, result.best_step) == (True, 12, 4.0, 6)


def test_a_range_of_epochs_ends_once_evaluation_gets_worse(
    train: Callable[..., RunResult], eval_losses: Callable[..., None]
) -> None:
    eval_losses(2.0, 1.0, 1.5, 0.5)
    result = train(num_eval_rows=2, training_args__num_train_epochs="3-10")
    assert (result.stopped_early, result.num_epochs) == (True, 3.0)


def test_as_many_checkpoints_are_kept_as_asked(
    train: Callable[..., RunResult], eval_losses: Callable[..., None]
) -> None:
    eval_losses(1.0, 2.0, 3.0, 4.0, 5.0)
    result = train(
        num_eval_rows=2,
        training_args__num_train_epochs=5,
        training_args__save_total_limit=1,
        training_args__load_best_model_at_end=True,
    )
    kept = sorted(path.name for path in (result.final_model.parent / "checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000015"]


def test_metrics_have_a_line_for_every_logged_step(train: Callable[..., RunResult], tmp_path: Path) -> None:
    result = train(num_eval_rows=2, training_args__logging_steps=2, monitoring__log_tensorboard=True)
    lines = metrics_of(result)
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 6]
    assert set(lines[0]) == set(lines[1]) == {
        "step", "epoch", "train_loss", "eval_loss", "eval_perplexity", "learning_rate", "grad_norm",
        "tokens", "supervised_tokens", "tokens_per_second", "memory_bytes", "gpu_utilization", "seconds",
    }  # fmt: skip
    assert [line["eval_loss"] is None for line in lines] == [False, True, False, True, False]
    assert lines[0]["train_loss"] is None
    assert sum(line["tokens"] for line in lines[1:]) == result.num_tokens
    assert sum(line["supervised_tokens"] for line in lines[1:]) == result.num_supervised_tokens
    assert lines[-1]["train_loss"] == result.train_loss
    assert lines[-1]["epoch"] == 2.0
    assert list((tmp_path / "run" / "logs").glob("events.out.tfevents.*"))


def test_without_wishes_there_are_no_tensorboard_logs_and_metrics_can_be_switched_off(
    train: Callable[..., RunResult], tmp_path: Path
) -> None:
    train(monitoring__track_training_metrics=False, training_args__save_strategy="no")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "final_model",
        "report.html",
        "run.json",
    ]


def test_run_json_says_what_was_asked_where_and_what_came_of_it(
    train: Callable[..., RunResult], tmp_path: Path
) -> None:
    result = train(num_eval_rows=2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["training_args"]["learning_rate"] == 0.005
    assert "strategies.yaml:" in record["origins"]["training_args.learning_rate"]
    assert record["origins"]["training_args.weight_decay"] == "default"
    assert record["data"] == [
        {
            "file": str(tmp_path / name),
            "rows": num_rows,
            "sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(),
        }
        for name, num_rows in (("train.jsonl", 12), ("eval.jsonl", 2))
    ]
    assert record["versions"]["torch"] == torch.__version__
    assert record["result"]["num_steps"] == result.num_steps == 6
    assert record["result"]["final_model"] == str(result.final_model)
    assert {choice["setting"] for choice in record["choices"]} >= {"device", "precision", "base model"}


def test_bf16_trains_an_adapter_in_fp32_to_about_the_same_losses(train: Callable[..., RunResult]) -> None:
    full = train("full")
    mixed = train("mixed", hardware__optimization__mixed_precision="bf16")
    assert {tensor.dtype for tensor in weights_of(mixed).values()} == {torch.float32}
    assert digest(full) != digest(mixed)
    losses = zip(metrics_of(full), metrics_of(mixed), strict=True)
    assert all(mine["train_loss"] == pytest.approx(other["train_loss"], rel=0.03) for mine, other in losses)


@pytest.mark.parametrize(
    ("billions", "expected"),
    [
        (0.6, {"q_proj", "v_proj"}),
        (1.5, {"q_proj", "v_proj", "k_proj", "o_proj"}),
        (3.2, {"q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj"}),
        (7.0, "all-linear"),
    ],
)
def test_target_modules_follow_the_guides_table(billions: float, expected: set[str] | str) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
    chosen, _ = choose_target_modules(model, int(billions * 1e9))
    assert (chosen if isinstance(chosen, str) else set(chosen)) == expected


def test_modules_of_other_names_get_adapters_everywhere() -> None:
    chosen, why = choose_target_modules(nn.ModuleDict({"c_attn": nn.Linear(2, 2)}), 10**8)
    assert chosen == "all-linear"
    assert "no modules called q_proj, v_proj" in why


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(None, {"q_proj", "v_proj"}), (["o_proj"], {"o_proj"})],
    ids=["by-the-table", "by-name"],
)
def test_the_adapter_sits_where_it_should(
    train: Callable[..., RunResult], wanted: list[str] | None, expected: set[str]
) -> None:
    result = train(method__target_modules=wanted, training_args__max_steps=1)
    config = json.loads((result.final_model / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == expected
    assert {name.split(".")[-3] for name in weights_of(result)} == expected


def test_a_folder_with_a_run_is_refused_untouched_and_overwritten_if_asked(
    train: Callable[..., RunResult], load: Load, make_rows: MakeRows, tmp_path: Path
) -> None:
    first = train(training_args__max_steps=1)
    before = digest(first)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="earlier run"):
        train(training_args__max_steps=2)
    assert digest(first) == before
    result = run_training(load(make_rows(12), training_args__max_steps=2), overwrite=True)
    assert result.num_steps == 2
    assert digest(first) != before
    assert len(metrics_of(result)) == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_run_that_breaks_leaves_no_final_model_but_its_checkpoints_and_metrics(
    train: Callable[..., RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sum_loss = PackedForward.sum_loss
    calls = []

    def spoil(*arguments: Any) -> torch.Tensor:
        calls.append(0)
        return sum_loss(*arguments) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(PackedForward, "sum_loss", spoil)
    with pytest.raises(NonFiniteError) as caught:
        train()
    assert caught.value.where.startswith("step 5, rows ")
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == ["checkpoints", "metrics.jsonl", "run.json"]
    assert "result" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_the_name_of_the_base_is_the_one_that_the_strategy_gives(
    train: Callable[..., RunResult], tmp_path: Path, tiny_base: Path
) -> None:
    shown = []
    for output, settings in (("plain", {}), ("named", {"base_model__name": "Tiny"})):
        train(output, training_args__max_steps=1, **settings)
        shown.append(json.loads((tmp_path / output / "run.json").read_text())["base_model"])
    assert shown == [str(tiny_base), "Tiny"]


def test_evaluation_packs_have_at_most_the_rows_they_may(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    measure = session.measure_losses
    monkeypatch.setattr(
        session,
        "measure_losses",
        lambda model, packs, *rest, **options: (
            seen.append(len(packs)) or measure(model, packs, *rest, **options)
        ),
    )
    for most in (None, 1):
        train(f"most-{most}", num_eval_rows=3, training_args__max_steps=1,
              training_args__per_device_eval_batch_size=most)  # fmt: skip
    assert seen == [1, 1, 3, 3]


@pytest.mark.parametrize(
    ("level", "is_shown"),
    [
        ("debug", (True, True)),
        ("info", (False, True)),
        ("warning", (False, False)),
        ("error", (False, False)),
    ],
)
def test_the_log_level_says_what_is_printed(
    train: Callable[..., RunResult],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    is_shown: tuple[bool, bool],
) -> None:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    train(training_args__max_steps=1, monitoring__log_level=level)
    said = capsys.readouterr().err
    assert (", rows " in said, "training rows" in said) == is_shown


def test_tokenizing_threads_are_as_many_as_the_strategy_says(
    train: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(prepare, "use_tokenizer_threads", asked.append)
    train("unset", training_args__max_steps=1)
    train("set", training_args__max_steps=1, training_args__dataloader_num_workers=3)
    assert asked == [3]


FULL = {"method__type": "full_finetune"} | dict.fromkeys(
    ("method__r", "method__alpha", "method__dropout", "method__target_modules")
)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "modules, the loss in chunks"),
        (FULL, "transformers' own"),
        ({"hardware__optimization__mixed_precision": "bf16", "method__bias": "all"}, "transformers' own"),
        ({"hardware__optimization__mixed_precision": "bf16"}, "modules, the loss in chunks"),
    ],
    ids=["lora", "full", "autocast", "bf16"],
)
def test_a_run_says_what_the_kernels_compute(
    train: Callable[..., RunResult], tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    result = train(training_args__max_steps=1, **settings)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (kernels,) = [choice for choice in record["choices"] if choice["setting"] == "kernels"]
    assert words in kernels["value"]
    assert 0 < result.part_of_peak < 2 and record["result"]["flops_per_second"] == result.flops_per_second
