"""The gate finds every way in which a file is not the model that was trained, and names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafarm.data.conversation import Conversation, Message
from llamafarm.deploy.files import plan_file
from llamafarm.deploy.gguf import families
from llamafarm.deploy.merge import MergedWeights
from llamafarm.deploy.rows import rows_to_verify_on
from llamafarm.deploy.source import Source, open_source
from llamafarm.deploy.verify import LIMITS, limit_of, verify_file
from llamafarm.errors import DataError, ModelError
from llamafarm.inference.llamacpp import has_llamacpp

pytestmark = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
ROWS = [
    Conversation((Message("user", f"Question {n}?"), Message("assistant", f"The answer is {n}.")), n)
    for n in range(1, 5)
]


@pytest.fixture
def source(final_model: Path) -> Any:
    """A final model, opened for export."""
    with open_source(final_model) as opened:
        yield opened


def write(source: Source, path: Path, quantization: str = "f16") -> Path:
    plan_file(source, quantization).write(path, "m")
    return path


def test_a_file_that_is_the_model_passes_with_every_step_measured(source: Source, tmp_path: Path) -> None:
    found = verify_file(source, write(source, tmp_path / "m.gguf", "q8_0"), "q8_0", ROWS)
    assert [step.name for step in found.steps] == ["merged weights", "f16", "q8_0"]
    merged, half, packed = (step.distance.divergence for step in found.steps)
    assert merged < 1e-6 and half < 1e-4 and packed < 0.02 < 10 * (found.base_divergence or 0)
    assert found.num_conversations >= len(ROWS) + 5
    assert found.num_answers == len(ROWS) and not found.is_lost_in_rounding
    assert json.dumps(found.as_record())


def test_a_merge_that_did_nothing_is_found(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MergedWeights, "read", lambda self, name: self.base.read(name))
    with pytest.raises(ModelError, match=r"merged weights (is the base|is not the trained model)"):
        verify_file(source, write(source, tmp_path / "m.gguf"), "f16", ROWS)


def test_the_base_in_the_place_of_the_model_is_found(source: Source, tmp_path: Path) -> None:
    assert isinstance(source.weights, MergedWeights)
    base = replace(source, weights=source.weights.base, adapter=None)
    with pytest.raises(ModelError, match=r"f16 is not the trained model.*; first after '.*': '.*' and not '"):
        verify_file(source, write(base, tmp_path / "m.gguf"), "f16", ROWS)


def test_heads_in_another_order_are_found(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = replace(families.FAMILIES["llama"], permutes_heads=False)
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, "llama": turned})
    with pytest.raises(ModelError, match="f16 is not the trained model"):
        verify_file(source, write(source, tmp_path / "m.gguf"), "f16", ROWS)


def test_another_template_in_the_file_is_found(source: Source, tmp_path: Path) -> None:
    planned = plan_file(source, "f16")
    other = replace(planned, source=replace(source, template=_Other(source.template)))
    other.write(tmp_path / "m.gguf", "m")
    with pytest.raises(ModelError, match=r"llama\.cpp renders a conversation otherwise than it was trained"):
        verify_file(source, tmp_path / "m.gguf", "f16", ROWS)


class _Other:
    """A template with another text before the answer."""

    def __init__(self, template: Any) -> None:
        self.source = template.source.replace("Assistant:", "Bot:")
        self.end_of_turn = template.end_of_turn


def test_other_tokens_are_found(source: Source, tmp_path: Path) -> None:
    planned = plan_file(source, "f16")
    # A name that llama.cpp knows, of a pattern that is not this tokenizer's.
    other = replace(planned, vocabulary=replace(planned.vocabulary, pre="qwen2"))
    other.write(tmp_path / "m.gguf", "m")
    with pytest.raises(ModelError, match=r"llama\.cpp cuts a conversation otherwise than it was trained"):
        verify_file(source, tmp_path / "m.gguf", "f16", ROWS)


def test_a_damaged_file_is_an_error_and_not_a_crash(source: Source, tmp_path: Path) -> None:
    path = write(source, tmp_path / "m.gguf")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"GGUF" + bytes(200), b"not a model"):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"cannot be loaded by llama\.cpp"):
            verify_file(source, path, "f16", ROWS)


def test_without_rows_the_models_own_answers_serve(source: Source, tmp_path: Path) -> None:
    found = verify_file(source, write(source, tmp_path / "m.gguf"), "f16")
    assert found.steps[-1].distance.num_positions > 20 and found.num_answers == 7


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"bias": "lora_only", "family": "llama-tied-with-biases"}], ids=str
)
def test_an_adapter_that_another_tool_saved_is_verified_too(
    make_adapter: Callable[..., Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder, _ = make_adapter(settings.pop("family", "llama"), **settings)
    with open_source(folder) as source:
        found = verify_file(source, write(source, tmp_path / "m.gguf"), "f16", ROWS)
    assert found.steps[0].name == "merged weights" and found.steps[0].distance.divergence < 1e-5


def test_every_type_has_its_limit() -> None:
    from llamafarm.deploy.gguf.types import MIXTURES

    limits = [
        limit_of(name).most_divergence for name in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_0", "q3_k_s", "q2_k")
    ]
    assert limits == sorted(limits)
    assert all(limit_of(name) in LIMITS.values() for name in MIXTURES)


def test_the_rows_are_those_that_are_named_or_the_runs_own(final_model: Path, tmp_path: Path) -> None:
    assert rows_to_verify_on(None, final_model) == []
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 40)
    (final_model.parent / "run.json").write_text(
        json.dumps({"data": [{"file": "gone"}, {"file": str(rows)}]})
    )
    assert len(rows_to_verify_on(None, final_model)) == 32
    assert len(rows_to_verify_on(None, final_model.parent)) == 32
    (final_model.parent / "run.json").write_text("{")
    assert rows_to_verify_on(None, final_model) == []
    with pytest.raises(DataError):
        rows_to_verify_on(tmp_path / "nothing.jsonl", final_model)


def test_rows_of_the_run_that_are_gone_are_told_of(
    final_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (final_model.parent / "run.json").write_text(json.dumps({"data": [{"file": "data/gone.jsonl"}]}))
    assert rows_to_verify_on(None, final_model) == []
    assert "the run's rows are not here (data/gone.jsonl)" in capsys.readouterr().err


def test_distances_are_what_the_formulas_say() -> None:
    from llamafarm.deploy.parity import Passage, measure_distance

    expected = torch.log_softmax(torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 0.0, 0.0]]), dim=-1)
    other = torch.log_softmax(torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.0, 3.0, 0.5, 0.0]]), dim=-1)

    class Fixed:
        def logprobs(self, _: Passage) -> Any:
            for row in other:
                yield dict(enumerate(row.tolist()))

    passage = Passage((9, 1, 1), (1, 2))
    found = measure_distance([expected], Fixed(), [passage])
    exact = torch.nn.functional.kl_div(other, expected, log_target=True, reduction="batchmean")
    assert found.divergence == pytest.approx(float(exact), abs=1e-6)
    assert (found.num_positions, found.agreement) == (2, 0.5)
    assert found.loss == pytest.approx(-float(other[:, 1].mean()), abs=1e-6)
    assert found.first_difference is not None and (
        found.first_difference.found,
        found.first_difference.place,
    ) == (1, 1)


def test_a_model_beyond_the_memory_has_its_tokens_compared_and_that_is_said(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafarm.deploy import verify

    monkeypatch.setattr(verify, "read_main_memory", lambda: (2**30, 1000))
    found = verify_file(source, write(source, tmp_path / "m.gguf"), "f16", ROWS)
    assert found.steps == () and found.num_conversations >= len(ROWS) + 5
    assert "GiB in fp32, and 0.0 GiB can be had" in str(found.why_not_compared)
    assert not found.is_lost_in_rounding and json.dumps(found.as_record())
