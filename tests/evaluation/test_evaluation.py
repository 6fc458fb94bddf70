"""Losses, perplexity and scores of answers, and a base beside its tuned model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.data.encoding.template import TrainedPart
from llamafarm.errors import DataError
from llamafarm.evaluation import evaluate
from llamafarm.evaluation.answers import score_answers
from llamafarm.evaluation.evaluate import evaluate_model
from llamafarm.evaluation.loss import LossResult, measure_loss
from llamafarm.inference.generate import Answer, GenerationSettings
from llamafarm.inference.open import OpenModel
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.model.forward import packed_forward
from llamafarm.model.prompt import build_template

CPU = torch.device("cpu")
SETTINGS = GenerationSettings(
    max_new_tokens=4, temperature=1.0, top_p=1.0, top_k=None, repetition_penalty=1.0
)
TURNS = [("what is pain?", "it is pain."), ("why?", "so."), ("how can fever start in a person?", "it can.")]
CONVERSATIONS = [
    Conversation((Message("user", question), Message("assistant", answer)), number)
    for number, (question, answer) in enumerate(TURNS, start=1)
]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_base).eval()


@pytest.fixture
def opened(tiny_base: Path) -> OpenModel:
    """A base with an adapter that changes its answers, asked through a plain template."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    settings = AdapterSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
    adapted, _ = attach_adapter(base, settings, base_name=str(tiny_base), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    adapted.eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    template, _ = build_template(tokenizer, "Q: {input}\nA: {output}", None)
    return OpenModel("tuned", "base", adapted, tokenizer, template, SETTINGS, 256)


def make_rows(lengths: Sequence[int]) -> list[EncodedRow]:
    """Return rows of random tokens, part of them trained on, the last one always."""
    draw = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(lengths):
        is_supervised_T = draw.random(length) < 0.6
        is_supervised_T[-1] = True
        rows.append(EncodedRow(draw.integers(3, 3000, length).astype(np.int32), is_supervised_T, number))
    return rows


def loss_of_transformers(model: PreTrainedModel, row: EncodedRow) -> float:
    """Return the mean loss that transformers itself computes for a row with labels."""
    ids = torch.tensor(row.token_ids_T, dtype=torch.long)[None]
    labels = ids.masked_fill(~torch.tensor(row.is_supervised_T)[None], -100)
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=labels).loss)


def test_the_loss_of_a_row_is_the_one_that_transformers_computes(model: PreTrainedModel) -> None:
    for row in make_rows([5, 17, 30]):
        expected = loss_of_transformers(model, row)
        with packed_forward(model) as packed:
            measured = measure_loss(packed, pack_rows([row], [0], 1000), CPU, nullcontext)
        assert measured.loss == pytest.approx(expected, abs=1e-4)
        assert measured.num_supervised_tokens == row.num_supervised_tokens


@pytest.mark.parametrize("max_pack_tokens", [1, 40, 1000])
def test_the_loss_of_rows_is_the_mean_over_their_tokens_however_packed(
    model: PreTrainedModel, max_pack_tokens: int
) -> None:
    rows = make_rows([5, 17, 30, 11])
    counts = [row.num_supervised_tokens for row in rows]
    losses = [loss_of_transformers(model, row) for row in rows]
    expected = sum(count * loss for count, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert expected != pytest.approx(sum(losses) / len(losses), abs=1e-3)
    with packed_forward(model) as packed:
        packs = pack_rows(rows, range(4), max_pack_tokens)
        measured = measure_loss(packed, packs, CPU, nullcontext)
    assert measured.loss == pytest.approx(expected, abs=1e-4)
    assert measured.num_supervised_tokens == sum(counts)


@pytest.mark.parametrize("is_training", [True, False])
def test_measuring_leaves_the_models_mode_as_it_was(model: PreTrainedModel, is_training: bool) -> None:
    model.train(is_training)
    with packed_forward(model) as packed:
        measure_loss(packed, pack_rows(make_rows([8]), [0], 100), CPU, nullcontext)
    assert model.training is is_training
    model.eval()


def test_perplexity_is_the_exponential_of_the_loss_and_infinite_where_that_overflows() -> None:
    assert LossResult(math.log(8), 1).perplexity == pytest.approx(8)
    assert LossResult(0.0, 1).perplexity == 1.0
    assert LossResult(5000.0, 1).perplexity == math.inf


def test_an_answer_matches_exactly_but_for_blanks_at_its_ends() -> None:
    answers = [Answer(text, "end-of-turn", 1) for text in (" yes\n", "Yes", "yes.", "no")]
    assert score_answers(answers, ["yes", "yes", "yes", "no "]).exact_match == 0.5


def test_only_the_models_own_end_counts_as_stopping() -> None:
    ends = ["end-of-turn", "stop-sequence", "max-new-tokens", "end-of-turn"]
    scores = score_answers([Answer("a", end, 1) for end in ends], ["a"] * 4)
    assert (scores.num_answers, scores.stop_rate) == (4, 0.5)


def test_answers_and_expected_texts_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        score_answers([Answer("a", "end-of-turn", 1)], ["a", "b"])


def test_the_base_is_measured_beside_the_tuned_model(opened: OpenModel) -> None:
    base, tuned = evaluate_model(opened, CONVERSATIONS, "here")
    assert (base.which, tuned.which) == ("base", "tuned")
    assert base.loss.num_supervised_tokens == tuned.loss.num_supervised_tokens > 0
    assert abs(base.loss.loss - tuned.loss.loss) > 0.01
    (alone,) = evaluate_model(opened.as_base(), CONVERSATIONS, "here")
    assert alone.loss.loss == pytest.approx(base.loss.loss, abs=1e-5)
    assert alone.answers == base.answers
    assert set(base.as_record()) == {
        "eval_loss", "eval_perplexity", "supervised_tokens", "rows", "exact_match", "stop_rate",
    }  # fmt: skip


def test_answers_are_measured_without_chance(opened: OpenModel) -> None:
    runs = [evaluate_model(opened, CONVERSATIONS, "here") for _ in range(2)]
    assert runs[0] == runs[1]


def test_an_answer_that_is_the_expected_one_is_counted(opened: OpenModel) -> None:
    tuned = evaluate_model(opened, CONVERSATIONS, "here")[1]
    questions = [conversation.messages[0] for conversation in CONVERSATIONS]
    expected = [tuned.answers[0].text, "something else", tuned.answers[2].text]
    rows = [
        Conversation((question, Message("assistant", answer)), number)
        for number, (question, answer) in enumerate(zip(questions, expected, strict=True))
    ]
    scores = evaluate_model(opened, rows, "here")[1].scores
    assert scores.exact_match == pytest.approx(2 / 3)


def test_rows_that_do_not_fit_are_left_out_and_said_so(
    opened: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(evaluate.terminal, "warn", warnings.append)
    long = Conversation((Message("user", "pain " * 300), Message("assistant", "yes")), 4)
    measured = evaluate_model(opened, [*CONVERSATIONS, long], "here")
    assert [one.scores.num_answers for one in measured] == [3, 3]
    assert warnings == ["1 rows are longer than 256 tokens: left out"]
    with pytest.raises(DataError, match="no row is left") as caught:
        evaluate_model(opened, [long], "here")
    assert caught.value.where == "here"


def test_the_loss_is_that_of_the_part_that_was_trained_on(opened: OpenModel) -> None:
    two_turns = Conversation((*CONVERSATIONS[0].messages, *CONVERSATIONS[1].messages), 1)
    every = evaluate_model(opened, [two_turns], "here")[1].loss.num_supervised_tokens
    last = replace(opened, trained=TrainedPart(is_last_answer_only=True))
    whole = replace(opened, trained=TrainedPart(includes_prompt=True))
    counts = [evaluate_model(one, [two_turns], "here")[1].loss.num_supervised_tokens for one in (last, whole)]
    assert 0 < counts[0] < every < counts[1]


def test_text_is_measured_and_not_answered(opened: OpenModel) -> None:
    text = Conversation((Message("text", "Asthma affects the airways."),), 1)
    base, tuned = evaluate_model(opened, [text], "here")
    assert tuned.loss.num_supervised_tokens > 3
    assert (tuned.answers, tuned.conversations) == ((), ())
    assert "no answers" in base.as_line()
    both = evaluate_model(opened, [text, CONVERSATIONS[0]], "here")[1]
    assert both.scores.num_answers == 1
