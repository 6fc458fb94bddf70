"""What is recommended for which facts, and that each recommendation is a strategy that loads as it stands."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.errors import OutputError
from llamafarm.planning import guide
from llamafarm.planning.guide.numbers import is_size, read_num_parameters
from llamafarm.planning.recommend import (
    Facts,
    Recommendation,
    choose_use_case,
    doubts,
    recommend,
    save_strategy,
    write_strategy,
)
from llamafarm.strategy.load import load_strategy
from llamafarm.strategy.spelling import MOVED

RTX_3090 = {"device": "cuda", "memory_gb": 23.7, "device_name": "NVIDIA GeForce RTX 3090"}
CPU = {"device": "cpu", "memory_gb": 16.0}
ATTENTION = ("q_proj", "v_proj", "k_proj", "o_proj")


def values(**facts: Any) -> dict[str, Any]:
    """Return what is recommended by the last part of its path; those parts do not repeat."""
    found = {one.path.rpartition(".")[2]: one.value for one in recommend(Facts(**facts))}
    assert len(found) == len(recommend(Facts(**facts)))
    return found


def rules(**facts: Any) -> dict[str, str]:
    return {one.path.rpartition(".")[2]: one.rule for one in recommend(Facts(**facts))}


texts = st.text(min_size=1, max_size=20).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
any_facts = st.builds(
    Facts,
    num_parameters=st.floats(1e5, 2e11),
    device=st.sampled_from(["cuda", "mps", "cpu"]),
    memory_gb=st.floats(0.5, 200),
    device_name=st.sampled_from(["", "NVIDIA GeForce RTX 3070", "NVIDIA A100-SXM4-80GB", "Apple M3 Max"]),
    has_bf16=st.sampled_from([None, True, False]),
    num_examples=st.none() | st.integers(1, 200_000),
    longest_tokens=st.none() | st.integers(1, 100_000),
    use_case=st.none() | st.sampled_from([case.key for case in guide.USE_CASES]),
    model=st.none() | texts,
    train_file=st.none() | texts,
)


@settings(deadline=None, max_examples=60)
@given(any_facts)
def test_whatever_is_recommended_loads_as_it_was_meant(
    tmp_path_factory: pytest.TempPathFactory, facts: Facts
) -> None:
    recommendations = recommend(facts)
    file = tmp_path_factory.mktemp("recommended") / "strategies.yaml"
    text = write_strategy(facts, recommendations, {"model": "x\ny"}, file=file)
    save_strategy(file, text, may_overwrite=False)
    loaded = load_strategy("recommended", file=file)
    for one in recommendations:
        value = reduce(getattr, one.path.split("."), loaded.strategy)
        assert (str(value) if isinstance(one.value, str) else value) == one.value, one.path
        line = int(loaded.origins[one.path].where.rpartition(":")[2])
        written, _, rule = text.split("\n")[line - 1].rpartition(f"{one.path.rpartition('.')[2]}: ")
        assert written.strip() == "" and f"  # {one.rule}" in rule
    assert len({one.path for one in recommendations}) == len(recommendations)
    assert all(f"# note: {doubt}" in text for doubt in doubts(facts))


@given(any_facts)
def test_every_value_says_its_rule(facts: Facts) -> None:
    own = ("as given", "to be replaced", "the run has about", "the longest example has about")
    for one in recommend(facts):
        assert one.rule.startswith(("guide, ", *own)), one


@pytest.mark.parametrize(
    ("num_examples", "key"),
    [(1, "small"), (99, "small"), (100, "production"), (10_000, "production"), (10_001, "large"),
     (None, "production")],
)  # fmt: skip
def test_the_use_case_follows_from_the_number_of_examples(num_examples: int | None, key: str) -> None:
    assert choose_use_case(Facts(1e9, **CPU, num_examples=num_examples)).key == key
    assert choose_use_case(Facts(1e9, **CPU, num_examples=num_examples, use_case="domain")).key == "domain"


@pytest.mark.parametrize(
    ("billions", "use_case", "expected"),
    [
        (0.5, "production", (4, 8, 0.1, ATTENTION[:2])),
        (1.5, "production", (8, 16, 0.1, ATTENTION)),
        (1.5, "quick", (4, 8, 0.05, ATTENTION)),
        (1.5, "small", (4, 8, 0.15, ATTENTION)),
        (13, "large", (32, 64, 0.05, "all-linear")),
        (13, "domain", (8, 16, 0.1, ATTENTION)),
        (3, "conversational", (12, 24, 0.08, (*ATTENTION, "gate_proj", "up_proj"))),
    ],
)  # fmt: skip
def test_the_size_gives_the_adapter_and_the_use_case_makes_it_smaller(
    billions: float, use_case: str, expected: tuple[object, ...]
) -> None:
    found = values(num_parameters=billions * 1e9, **RTX_3090, use_case=use_case)
    assert tuple(found[name] for name in ("r", "alpha", "dropout", "target_modules")) == expected


def test_a_rule_names_the_row() -> None:
    found = rules(num_parameters=1.5e9, **RTX_3090, num_examples=50, use_case="production")
    assert found["r"] == "guide, LoRA by model size: 1-3B"
    assert found["use_bf16"] == "guide, CUDA GPU Recommendations: RTX 3090, BF16"
    assert found["eval_split"] == "guide, Train/Eval Split Strategies: 85/15, Important validation"
    assert found["eval_strategy"].startswith("the run has about 9 steps")


@pytest.mark.parametrize(
    ("billions", "device", "memory_gb", "method"),
    [(7, "cuda", 16, "lora"), (7, "cuda", 15.7, "lora"), (7, "cuda", 12, "qlora"), (3, "cuda", 7.8, "lora"),
     (13, "cuda", 16, "qlora"), (70, "cuda", 80, "qlora"), (7, "mps", 8, "lora"), (7, "cpu", 8, "lora")],
)  # fmt: skip
def test_a_base_in_4_bits_where_the_gpu_has_too_little_memory(
    billions: float, device: str, memory_gb: float, method: str
) -> None:
    assert values(num_parameters=billions * 1e9, device=device, memory_gb=memory_gb)["type"] == method


@pytest.mark.parametrize(
    ("name", "memory_gb", "has_bf16", "precision"),
    [
        ("NVIDIA GeForce RTX 3060", 11.8, True, "fp16"),  # the guide's row wins
        ("NVIDIA GeForce RTX 3090", 23.7, None, "bf16"),
        ("NVIDIA GeForce RTX 3090", 23.7, False, "fp16"),  # the device itself knows better
        ("NVIDIA H100 80GB HBM3", 79.1, True, "bf16"),
        ("Tesla T4", 14.6, False, "fp16"),
        ("", 16.0, None, "fp16"),
    ],
)
def test_the_precision_of_a_gpu(name: str, memory_gb: float, has_bf16: bool | None, precision: str) -> None:
    found = values(
        num_parameters=1e9, device="cuda", memory_gb=memory_gb, device_name=name, has_bf16=has_bf16
    )
    assert found["mixed_precision"] == precision
    assert (found["use_fp16"], found["use_bf16"]) == (precision == "fp16", precision == "bf16")


@pytest.mark.parametrize("device", ["mps", "cpu"])
def test_full_precision_elsewhere(device: str) -> None:
    found = values(num_parameters=1e9, device=device, memory_gb=16.0)
    assert (found["device"], found["mixed_precision"], found["use_fp16"]) == (device, "no", False)


@pytest.mark.parametrize(
    ("billions", "device", "memory_gb", "checkpoints"),
    [(1, "cuda", 8, True), (1, "cuda", 11.8, False), (7, "cuda", 80, True), (3, "mps", 16, False),
     (7, "mps", 32, True), (1, "cpu", 16, True)],
)  # fmt: skip
def test_checkpointing_below_12_gb_and_from_7b(
    billions: float, device: str, memory_gb: float, checkpoints: bool
) -> None:
    found = values(num_parameters=billions * 1e9, device=device, memory_gb=memory_gb)
    assert found["gradient_checkpointing"] is checkpoints


@pytest.mark.parametrize(
    ("facts", "batch", "accumulation"),
    [
        ({**RTX_3090, "num_parameters": 3e9, "use_case": "production"}, 4, 4),
        ({**RTX_3090, "num_parameters": 3e9, "use_case": "large"}, 8, 2),
        ({**RTX_3090, "num_parameters": 13e9, "use_case": "large"}, 4, 4),  # the least of 4-8
        ({"device": "cuda", "memory_gb": 7.8, "num_parameters": 3e9, "use_case": "production"}, 1, 16),
        ({"device": "cuda", "memory_gb": 4.0, "num_parameters": 1e9, "use_case": "production"}, 1, 16),
        ({"device": "mps", "memory_gb": 16, "device_name": "Apple M1", "num_parameters": 1e9,
          "use_case": "large"}, 2, 8),
        ({**CPU, "num_parameters": 1e9, "use_case": "production"}, 1, 16),
        ({**CPU, "num_parameters": 1e9, "use_case": "domain"}, 1, 8),  # the CPU-only configuration
    ],
)  # fmt: skip
def test_the_rows_of_a_step_are_the_use_cases_and_the_device_divides_them(
    facts: dict[str, Any], batch: int, accumulation: int
) -> None:
    found = values(**facts)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (
        batch,
        accumulation,
    )


@given(any_facts)
def test_a_step_never_sees_fewer_rows_than_the_use_case_asks_for(facts: Facts) -> None:
    case = choose_use_case(facts)
    wanted = (case.number("training_args.per_device_train_batch_size") or 1) * (
        case.number("training_args.gradient_accumulation_steps") or 1
    )
    found = {one.path: one.value for one in recommend(facts)}
    batch = found["training_args.per_device_train_batch_size"]
    accumulation = found["training_args.gradient_accumulation_steps"]
    assert isinstance(batch, int) and isinstance(accumulation, int)
    assert batch * accumulation >= wanted


@pytest.mark.parametrize(
    ("use_case", "num_examples", "expected"),
    [
        ("production", None, ("steps", 50, "steps", 100)),
        ("production", 2000, ("steps", 50, "steps", 100)),  # 3 epochs of 107 steps
        ("production", 600, ("epoch", None, "epoch", None)),
        ("small", 50, ("epoch", None, None, None)),
        ("large", 100_000, ("steps", 500, "steps", 1000)),
        ("domain", 2000, ("steps", 50, None, None)),
        ("quick", 2000, ("no", None, "no", None)),
    ],
)
def test_evaluation_is_as_often_as_the_run_is_long(
    use_case: str, num_examples: int | None, expected: tuple[object, ...]
) -> None:
    found = values(num_parameters=1e9, **RTX_3090, use_case=use_case, num_examples=num_examples)
    names = ("eval_strategy", "eval_steps", "save_strategy", "save_steps")
    assert tuple(found.get(name) for name in names) == expected
    assert found.get("load_best_model_at_end") is (None if use_case == "quick" else True)
    assert ("eval_split" in found) is (use_case != "quick")


@pytest.mark.parametrize(
    ("use_case", "eval_split"),
    [("small", 0.05), ("production", 0.15), ("large", 0.1), ("domain", 0.15), ("conversational", 0.1)],
)
def test_the_split(use_case: str, eval_split: float) -> None:
    assert values(num_parameters=1e9, **CPU, use_case=use_case)["eval_split"] == eval_split


def test_rows_that_the_guides_length_would_cut_off_get_more() -> None:
    facts = {"num_parameters": 1e9, **CPU, "use_case": "domain"}
    assert values(**facts)["max_length"] == 256
    assert values(**facts, longest_tokens=204)["max_length"] == 256
    assert values(**facts, longest_tokens=300)["max_length"] == 384
    assert "max_length" not in values(num_parameters=1e9, **CPU, use_case="small", longest_tokens=300)


@pytest.mark.parametrize("case", guide.USE_CASES, ids=lambda case: case.key)
def test_nothing_that_a_use_case_says_is_forgotten(case: guide.SettingGroup) -> None:
    paths = {one.path for one in recommend(Facts(3e9, **RTX_3090, use_case=case.key))}
    assert {MOVED.get(setting.path, setting.path) for setting in case.settings} <= paths


def test_schedule_and_generation_are_the_use_cases() -> None:
    found = values(num_parameters=3e9, **RTX_3090, use_case="conversational")
    assert (found["num_train_epochs"], found["learning_rate"], found["warmup_ratio"]) == (2, 1e-4, 0.03)
    assert (found["max_new_tokens"], found["temperature"], found["repetition_penalty"]) == (150, 0.7, 1.1)
    assert found["lr_scheduler_type"] == "cosine"
    assert values(num_parameters=3e9, **CPU, num_examples=50)["num_train_epochs"] == "5-10"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Facts(7e9, "mps", 16.0, "Apple M1", model="x"), "the M1 for models up to 3B"),
        (Facts(30e9, "cuda", 8.0, model="x"), "even with the base in 4 bits"),
        (Facts(7e9, "cpu", 8.0, model="x"), "16 GB for a model of 7B"),
        (Facts(7e9, "cpu", 64.0), "write one of about 7B"),
        (Facts(5e6, "cpu", 64.0, model="x"), "higher one"),
        (Facts(1e9, "cpu", 64.0, model="x", num_examples=1), "at least two"),
    ],
)
def test_what_speaks_against_a_recommendation_is_said(facts: Facts, words: str) -> None:
    assert any(words in doubt for doubt in doubts(facts))


def test_nothing_is_doubted_that_the_guide_has() -> None:
    assert doubts(Facts(13e9, **RTX_3090, model="x", num_examples=1000)) == []
    assert doubts(Facts(30e9, "cuda", 79.2, "NVIDIA A100 80GB PCIe", model="x")) == []


def test_a_file_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "new" / "strategies.yaml"
    save_strategy(file, "one", may_overwrite=False)
    with pytest.raises(OutputError, match=r"strategies\.yaml"):
        save_strategy(file, "two", may_overwrite=False)
    assert file.read_text() == "one"
    save_strategy(file, "two", may_overwrite=True)
    assert file.read_text() == "two"
    with pytest.raises(OutputError):
        save_strategy(tmp_path, "three", may_overwrite=True)


def test_words_that_yaml_1_1_takes_for_others_are_quoted() -> None:
    one = Recommendation("dataset.train_file", "no", "as given")
    text = write_strategy(Facts(1e9, **CPU), [one], {})
    assert 'train_file: "no"  # as given' in text


@pytest.mark.parametrize(
    ("name", "billions"),
    [("3B", 3), ("0.5B", 0.5), ("360M", 0.36), ("Qwen/Qwen2.5-0.5B-Instruct", 0.5), ("tinyllama-15k", 15e-6),
     ("meta-llama/Llama-2-7b-hf", 7), ("SmolLM2-135M", 0.135), ("Mixtral-8x7B-v0.1", 56), ("gpt2", None),
     ("gemma-3n-E2B", None), ("cria-5m", 0.005), ("7B/none", None), ("phi_1.5B", 1.5), ("0B", None)],
)  # fmt: skip
def test_the_size_in_a_name(name: str, billions: float | None) -> None:
    found = read_num_parameters(name)
    assert (found and found / 1e9) == pytest.approx(billions) if billions else found is None


def test_a_bare_size_is_no_name() -> None:
    assert [is_size(text) for text in ("3B", "0.5b", "360M", "8x7B", "Llama-3B", "3", "0B")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip
