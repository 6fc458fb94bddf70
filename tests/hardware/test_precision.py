"""The guide's rules of precision, on machines that are described, with a probe whose result is given."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from llamafarm.errors import MachineError
from llamafarm.hardware import speed
from llamafarm.hardware.device import find_device
from llamafarm.hardware.machine import Machine
from llamafarm.hardware.precision import PrecisionWishes, choose_precision
from llamafarm.hardware.speed import measure_matmul_flops

Describe = Callable[..., Machine]
NO, YES = False, True


def probe(gain: float) -> Callable[[str, str], float]:
    """Return a measurement in which bf16 is so many times as fast as fp32."""
    return lambda kind, name: 1e11 * gain if name == "bf16" else 1e11


# GPU (None is the processor), what the strategy wishes, what is computed in, part of the reason
CHOICES = [
    ("RTX 3090", {}, "bf16", "has bfloat16"),
    ("RTX 3090", {"use_bf16": NO}, "fp16", "bf16 is switched off"),
    ("RTX 3090", {"use_bf16": NO, "use_fp16": NO}, "fp32", "products in TF32"),
    ("RTX 3090", {"use_fp16": YES}, "fp16", "hardware.precision.cuda.use_fp16"),
    ("RTX 3090", {"use_fp16": NO}, "bf16", "has bfloat16"),
    ("RTX 3090", {"mixed_precision": "no", "use_bf16": YES}, "fp32", "mixed_precision"),
    ("RTX 3090", {"mixed_precision": "bf16"}, "bf16", "mixed_precision"),
    ("RTX 2080", {}, "fp16", "no bfloat16; float16 with loss scaling"),
    ("RTX 2080", {"mixed_precision": "fp16"}, "fp16", "mixed_precision"),
    ("RTX 2080", {"use_fp16": NO}, "fp32", "switched off"),
    ("MI300X", {}, "bf16", "has bfloat16"),
    ("M1", {}, "fp32", "not stable on MPS"),
    ("M1", {"use_fp16": NO, "use_bf16": NO}, "fp32", "not stable on MPS"),
    ("M1", {"mixed_precision": "no"}, "fp32", "mixed_precision"),
    ("M1", {"use_bf16": YES}, "bf16", "hardware.precision.mps.use_bf16"),
    (None, {}, "bf16", "1.5 times as fast"),
    (None, {"use_fp16": NO}, "bf16", "1.5 times as fast"),
    (None, {"use_bf16": NO}, "fp32", "bf16 is switched off"),
    (None, {"mixed_precision": "bf16"}, "bf16", "mixed_precision"),
    (None, {"use_bf16": YES}, "bf16", "hardware.precision.cpu.use_bf16"),
]


@pytest.mark.parametrize(("gpu", "wishes", "name", "words"), CHOICES)
def test_the_guides_rules(
    described: Describe, gpu: str | None, wishes: dict[str, object], name: str, words: str
) -> None:
    device = find_device("auto", described(gpu) if gpu else described())
    chosen = choose_precision(device, PrecisionWishes(**wishes), probe(1.5))  # type: ignore[arg-type]
    assert chosen.name == name
    assert words in chosen.why


@pytest.mark.parametrize(
    ("gpu", "wishes", "remedy"),
    [
        ("RTX 2080", {"mixed_precision": "bf16"}, "mixed_precision: fp16"),
        ("RTX 2080", {"use_bf16": YES}, "mixed_precision: fp16"),
        ("RTX 2080", {"use_tf32": YES}, "use_tf32: false"),
        ("MI300X", {"use_tf32": YES}, "use_tf32: false"),
        ("M1", {"mixed_precision": "fp16"}, "mixed_precision: no"),
        ("M1", {"use_fp16": YES}, "mixed_precision: no"),
        ("M1 before macOS 14", {"use_bf16": YES}, "mixed_precision: no"),
        (None, {"mixed_precision": "fp16"}, "mixed_precision: no"),
        (None, {"use_fp16": YES}, "mixed_precision: no"),
    ],
)
def test_what_a_device_cannot_do_is_an_error_that_names_the_alternative(
    described: Describe, gpu: str | None, wishes: dict[str, object], remedy: str
) -> None:
    device = find_device("auto", described(gpu) if gpu else described())
    with pytest.raises(MachineError) as caught:
        choose_precision(device, PrecisionWishes(**wishes), probe(1.5))  # type: ignore[arg-type]
    assert remedy in caught.value.remedy
    assert caught.value.where.startswith("hardware.")


@pytest.mark.parametrize(
    ("gpu", "use_tf32", "expected"),
    [("RTX 3090", None, True), ("RTX 3090", NO, False), ("RTX 2080", None, False), ("MI300X", None, False)],
)
def test_tf32_is_used_from_ampere_on_unless_switched_off(
    described: Describe, gpu: str, use_tf32: bool | None, expected: bool
) -> None:
    device = find_device("auto", described(gpu))
    assert choose_precision(device, PrecisionWishes(use_tf32=use_tf32), probe(1)).uses_tf32 is expected


@pytest.mark.parametrize(
    ("gain", "name", "words"),
    [
        (1.9, "bf16", "1.9 times as fast as fp32 (190 against 100 GFLOP/s a core)"),
        (1.1, "fp32", "1.1 times as fast as fp32 (110 against 100 GFLOP/s a core)"),
        (0.5, "fp32", "0.5 times as fast as fp32 (50 against 100 GFLOP/s a core)"),
    ],
)
def test_a_processor_computes_in_bf16_where_the_probe_finds_it_clearly_faster(
    described: Describe, gain: float, name: str, words: str
) -> None:
    chosen = choose_precision(find_device("cpu", described()), PrecisionWishes(), probe(gain))
    assert chosen.name == name
    assert chosen.why.endswith(words)


def test_bf16_that_is_only_emulated_is_said_to_be_slow(described: Describe) -> None:
    wishes = PrecisionWishes(mixed_precision="bf16")
    chosen = choose_precision(find_device("cpu", described()), wishes, probe(0.02))
    assert "50.0 times slower" in chosen.why


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_probe_measures_this_processor_once(name: str) -> None:
    flops = measure_matmul_flops("cpu", name)
    assert math.isfinite(flops)
    assert flops > 1e6
    assert measure_matmul_flops("cpu", name) == flops


def test_the_probe_leaves_threads_and_seeds_as_they_were() -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    seeds = torch.get_rng_state()
    try:
        speed._measure.cache_clear()
        measure_matmul_flops("cpu", "bf16")
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), seeds)
    finally:
        torch.set_num_threads(num_threads)
