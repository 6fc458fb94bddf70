"""`auto` made into numbers, and settings that do not fit the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.errors import StrategyError
from llamafarm.hardware.device import Device
from llamafarm.model.load import Base
from llamafarm.planning.guide import LORA_BY_SIZE
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import Method
from llamafarm.training.preparation.method import check_method, prepare_method, settle_method

Load = Callable[..., LoadedStrategy]


def settle(method: Method, num_parameters: float = 1e9, *, short: bool = False, may: bool = True) -> Any:
    return settle_method(method, num_parameters, memory_is_short=short, may_quantize=may)


@pytest.mark.parametrize("row", LORA_BY_SIZE, ids=lambda row: row.size)
def test_auto_follows_the_guides_table(row: Any) -> None:
    method, choices = settle(Method(r="auto", alpha="auto", dropout="auto"), row.parameters.low)
    assert (method.r, method.alpha, method.dropout) == (row.r, row.alpha, row.dropout)
    assert [choice.setting for choice in choices] == ["method.r", "method.alpha", "method.dropout"]
    assert all(choice.why.startswith("auto: ") for choice in choices)
    assert row.size in choices[0].why


@given(r=st.integers(1, 512), num_parameters=st.floats(1, 1e12))
def test_auto_alpha_is_twice_the_rank_that_is_given(r: int, num_parameters: float) -> None:
    method, choices = settle(Method(r=r, alpha="auto"), num_parameters)
    assert (method.r, method.alpha, method.dropout) == (r, 2 * r, 0.1)
    assert len(choices) == 1


def test_without_auto_nothing_is_chosen() -> None:
    for kind in ("lora", "qlora", "full_finetune"):
        method = Method(type=kind)
        assert settle(method, short=True) == (method, [])


@pytest.mark.parametrize(
    ("short", "may", "start", "expected"),
    [
        (False, True, "default", "lora"),
        (False, False, "default", "lora"),
        (True, True, "default", "qlora"),
        (True, False, "default", "lora"),
        (True, True, "pissa", "lora"),
    ],
)
def test_auto_takes_qlora_only_where_lora_does_not_fit_and_qlora_can_be_had(
    short: bool, may: bool, start: Any, expected: str
) -> None:
    method, choices = settle(Method(type="auto", init_lora_weights=start), short=short, may=may)
    assert method.type == expected
    assert [choice.setting for choice in choices] == ["method.type"]


def test_auto_counts_the_models_weights(tiny_base: Any) -> None:
    base = Base("tiny", str(tiny_base))
    choices: list[Any] = []
    device = Device("cpu", "CPU", "")
    method = prepare_method(Method(r="auto"), base, device, choices, memory_is_short=False)
    assert method.r == 4
    assert "<1B" in choices[0].why


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 8),
        ("alpha", 16),
        ("dropout", 0.0),
        ("target_modules", ["q_proj"]),
        ("bias", "none"),
        ("use_rslora", False),
        ("use_dora", True),
        ("init_lora_weights", "pissa"),
        ("loraplus_lr_ratio", 4.0),
        ("bnb_4bit_quant_type", "nf4"),
        ("bnb_4bit_use_double_quant", True),
    ],
)
def test_a_setting_of_adapters_beside_full_finetune_is_refused(load: Load, key: str, value: Any) -> None:
    none = dict.fromkeys(("method__r", "method__alpha", "method__dropout", "method__target_modules"))
    loaded = load([], method__type="full_finetune", **{**none, f"method__{key}": value})
    with pytest.raises(StrategyError) as caught:
        check_method(loaded)
    assert caught.value.problem == f"method.{key} changes nothing with method.type full_finetune"
    assert "strategies.yaml:" in caught.value.where


def test_a_type_written_over_a_file_only_warns_of_the_files_settings(load: Load, tmp_path: Any) -> None:
    from llamafarm.strategy.load import load_strategy

    load([])
    file = tmp_path / "strategies.yaml"
    loaded = load_strategy("s", file=file, overrides=[("method.type", "full_finetune")])
    warnings = check_method(loaded)
    assert [w.split()[0] for w in warnings[:4]] == [
        "method.r",
        "method.alpha",
        "method.dropout",
        "method.target_modules",
    ]


@pytest.mark.parametrize("key", ["bnb_4bit_quant_type", "bnb_4bit_use_double_quant"])
def test_a_setting_of_4_bit_weights_beside_lora_is_refused(load: Load, key: str) -> None:
    value = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}[key]
    with pytest.raises(StrategyError, match=f"method.{key} changes nothing with method.type lora"):
        check_method(load([], **{f"method__{key}": value}))
    assert check_method(load([], method__type="qlora", **{f"method__{key}": value})) == []


def test_full_finetune_warns_of_a_learning_rate_for_adapters(load: Load) -> None:
    none = dict.fromkeys(("method__r", "method__alpha", "method__dropout", "method__target_modules"))
    high = check_method(load([], method__type="full_finetune", **none, training_args__learning_rate=2e-4))
    assert len(high) == 1 and "0.0002" in high[0] and "5e-5" in high[0]
    low = load([], method__type="full_finetune", **none, training_args__learning_rate=5e-5)
    assert check_method(low) == []
    assert check_method(load([], training_args__learning_rate=2e-4)) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_full_finetune_refuses_16_bit_weights(load: Load, dtype: str) -> None:
    none = dict.fromkeys(("method__r", "method__alpha", "method__dropout", "method__target_modules"))
    loaded = load([], method__type="full_finetune", **none, base_model__torch_dtype=dtype)
    with pytest.raises(StrategyError, match=f"base_model.torch_dtype {dtype}"):
        check_method(loaded)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_are_not_trained_in_16_bits(load: Load, bias: str) -> None:
    with pytest.raises(StrategyError, match=f"torch_dtype bfloat16 does not go with method.bias {bias}"):
        check_method(load([], method__bias=bias, base_model__torch_dtype="bfloat16"))
    assert check_method(load([], method__bias=bias)) == []


@pytest.mark.parametrize("settings", [{"method__use_dora": True}, {"method__type": "qlora"}])
def test_pissa_beside_what_it_does_not_go_with_is_refused(load: Load, settings: dict[str, Any]) -> None:
    with pytest.raises(StrategyError, match="init_lora_weights pissa together with") as caught:
        load([], method__init_lora_weights="pissa", **settings)
    assert caught.value.remedy == "Remove one of them."


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_are_not_trained_beside_4_bit_weights(load: Load, bias: str) -> None:
    with pytest.raises(StrategyError, match=f"method.bias {bias} does not go with qlora") as caught:
        check_method(load([], method__type="qlora", method__bias=bias))
    assert "strategies.yaml:" in caught.value.where
    assert check_method(load([], method__type="lora", method__bias=bias)) == []
