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
from llamafarm.data.encoding.template import ChatTemplate, TrainedPart
from llamafarm.errors import DataError
from llamafarm.evaluation import measure
from llamafarm.evaluation.answers import PER_ANSWER, score_answers
from llamafarm.evaluation.evaluate import evaluate_model
from llamafarm.evaluation.general import read_general_text
from llamafarm.evaluation.loss import LossResult, measure_losses
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
            measured = measure_losses(packed, pack_rows([row], [0], 1000), 1, CPU, nullcontext).total
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
        of_rows = measure_losses(packed, packs, 4, CPU, nullcontext)
    measured = of_rows.total
    assert of_rows.loss_sum_N / counts == pytest.approx(losses, abs=1e-4)
    assert of_rows.num_tokens_N.tolist() == counts
    assert of_rows.per_row == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert measured.loss == pytest.approx(expected, abs=1e-4)
    assert measured.num_supervised_tokens == sum(counts)


@pytest.mark.parametrize("is_training", [True, False])
def test_measuring_leaves_the_models_mode_as_it_was(model: PreTrainedModel, is_training: bool) -> None:
    model.train(is_training)
    with packed_forward(model) as packed:
        measure_losses(packed, pack_rows(make_rows([8]), [0], 100), 1, CPU, nullcontext)
    assert model.training is is_training
    model.eval()


def test_perplexity_is_the_exponential_of_the_loss_and_infinite_where_that_overflows() -> None:
    assert LossResult(math.log(8), 1).perplexity == pytest.approx(8)
    assert LossResult(0.0, 1).perplexity == 1.0
    assert LossResult(5000.0, 1).perplexity == math.inf


def test_an_answer_matches_exactly_but_for_blanks_at_its_ends() -> None:
    answers = [Answer(text, "end-of-turn", 1) for text in (" yes\n", "Yes", "yes.", "no")]
    scores = score_answers(answers, ["yes", "yes", "yes", "no "], [1] * 4, 8)
    assert scores.per_answer["exact_match"].tolist() == [1, 0, 0, 1]
    assert scores.mean("exact_match") == 0.5
    assert scores.per_answer["token_f1"].tolist() == [1, 1, 1, 1]


def test_only_the_models_own_end_counts_as_stopping() -> None:
    ends = ["end-of-turn", "stop-sequence", "max-new-tokens", "end-of-turn"]
    scores = score_answers([Answer("a", end, 1) for end in ends], ["a"] * 4, [1] * 4, 8)
    assert (scores.num_answers, scores.mean("stop_rate")) == (4, 0.5)


def test_an_answer_is_cut_that_had_room_and_is_in_no_loop() -> None:
    loop = "the same words " * 20
    answers = [Answer(text, "max-new-tokens", 8) for text in ("on and on", loop, "long")]
    scores = score_answers(answers, ["short", "short", "long " * 20], [1, 1, 20], 8)
    assert (scores.num_cut, scores.num_fitting, scores.mean("loop_rate")) == (1, 2, pytest.approx(1 / 3))


def test_answers_and_expected_texts_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        score_answers([Answer("a", "end-of-turn", 1)], ["a", "b"], [1, 1], 8)


def test_no_answers_have_no_figures_but_zeros() -> None:
    scores = score_answers([], [], [], 8)
    assert (scores.num_answers, scores.mean("chrf"), scores.bleu, scores.num_cut) == (0, 0.0, 0.0, 0)


def test_the_base_is_measured_beside_the_tuned_model(opened: OpenModel) -> None:
    evaluation = evaluate_model(opened, CONVERSATIONS, "here")
    base, tuned = evaluation.measured
    assert (base.name, tuned.name) == ("base", "tuned")
    theirs, ours = base.losses.total, tuned.losses.total
    assert theirs.num_supervised_tokens == ours.num_supervised_tokens > 0
    assert abs(theirs.loss - ours.loss) > 0.01
    assert evaluation.changes["eval_loss"].estimate == pytest.approx(ours.loss - theirs.loss)
    (alone,) = evaluate_model(opened.as_base(), CONVERSATIONS, "here").measured
    assert alone.losses.total.loss == pytest.approx(theirs.loss, abs=1e-5)
    assert alone.answers == base.answers


def test_a_record_has_every_figure_and_the_answers_side_by_side(opened: OpenModel) -> None:
    general = [Conversation((Message("text", "Asthma affects the airways."),), 1)]
    record = evaluate_model(opened, CONVERSATIONS, "here", general).as_record(2)
    assert [model["name"] for model in record["models"]] == ["base", "tuned"]
    assert set(record["models"][0]) == {
        "name", "eval_loss", "eval_loss_per_row", "eval_perplexity", "supervised_tokens", "rows",
        "exact_match", "token_f1", "rouge_l", "chrf", "bleu", "stop_rate", "loop_rate", "distinct_1",
        "distinct_2", "mean_tokens", "mean_expected_tokens", "answer_tokens_per_second", "general_loss",
    }  # fmt: skip
    assert set(record["changes"]) == {"eval_loss", "general_loss", *PER_ANSWER}
    assert len(record["answers"]) == 2
    assert set(record["answers"][0]) == {"row", "prompt", "expected", "base", "tuned"}


def test_answers_are_measured_without_chance(opened: OpenModel) -> None:
    runs = [evaluate_model(opened, CONVERSATIONS, "here") for _ in range(2)]
    records = [run.as_record() for run in runs]
    for record in records:
        for model in record["models"]:
            del model["answer_tokens_per_second"]
    assert records[0] == records[1]


def test_an_answer_that_is_the_expected_one_is_counted(opened: OpenModel) -> None:
    tuned = evaluate_model(opened, CONVERSATIONS, "here").measured[1]
    questions = [conversation.messages[0] for conversation in CONVERSATIONS]
    expected = [tuned.answers[0].text, "something else", tuned.answers[2].text]
    rows = [
        Conversation((question, Message("assistant", answer)), number)
        for number, (question, answer) in enumerate(zip(questions, expected, strict=True))
    ]
    scores = evaluate_model(opened, rows, "here").measured[1].scores
    assert scores.mean("exact_match") == pytest.approx(2 / 3)


def test_rows_that_do_not_fit_are_left_out_and_said_so(
    opened: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(measure.terminal, "warn", warnings.append)
    long = Conversation((Message("user", "pain " * 300), Message("assistant", "yes")), 4)
    evaluation = evaluate_model(opened, [*CONVERSATIONS, long], "here")
    assert [one.scores.num_answers for one in evaluation.measured] == [3, 3]
    assert warnings == ["1 rows are longer than 256 tokens: left out"]
    with pytest.raises(DataError, match="no row is left") as caught:
        evaluate_model(opened, [long], "here")
    assert caught.value.where == "here"


def num_supervised(opened: OpenModel, conversation: Conversation) -> int:
    return evaluate_model(opened, [conversation], "here").measured[1].losses.total.num_supervised_tokens


def test_the_loss_is_that_of_the_part_that_was_trained_on(opened: OpenModel) -> None:
    two_turns = Conversation((*CONVERSATIONS[0].messages, *CONVERSATIONS[1].messages), 1)
    last = replace(opened, trained=TrainedPart(is_last_answer_only=True))
    whole = replace(opened, trained=TrainedPart(includes_prompt=True))
    counts = [num_supervised(one, two_turns) for one in (last, opened, whole)]
    assert 0 < counts[0] < counts[1] < counts[2]


def test_text_is_measured_and_not_answered(opened: OpenModel) -> None:
    text = Conversation((Message("text", "Asthma affects the airways."),), 1)
    tuned = evaluate_model(opened, [text], "here").measured[1]
    assert tuned.losses.total.num_supervised_tokens > 3
    assert tuned.answers == ()
    both = evaluate_model(opened, [text, CONVERSATIONS[0]], "here").measured[1]
    assert both.scores.num_answers == 1
    assert len(both.losses.num_tokens_N) == 2


def test_the_base_may_be_left_out(opened: OpenModel) -> None:
    evaluation = evaluate_model(opened, CONVERSATIONS, "here", with_base=False, tuned_name="mine")
    assert [one.name for one in evaluation.measured] == ["mine"]
    assert evaluation.changes == {}


def test_general_text_is_read_from_a_file_or_comes_with_the_package(tmp_path: Path) -> None:
    built_in = read_general_text(None)
    assert len(built_in.paragraphs) >= 30
    record = built_in.as_record()
    assert record is not None and record["name"] == "the built-in text" and int(record["num_words"]) > 1000
    file = tmp_path / "general.txt"
    file.write_text("One paragraph.\n\nAnother one.\n", encoding="utf-8")
    paragraphs = read_general_text(file).paragraphs
    assert [row.messages[0].content for row in paragraphs] == ["One paragraph.", "Another one."]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Why?", "completion": "So."}\n', encoding="utf-8")
    assert read_general_text(rows).paragraphs[0].messages[0].content == "Why?\nSo."
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="empty"):
        read_general_text(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_general_text(tmp_path / "nowhere.txt")


def test_a_row_with_tools_is_asked_as_it_was_trained_on(
    opened: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    render = type(opened.template).render

    def watch(template: ChatTemplate, messages: object, **options: object) -> str:
        if options.get("add_generation_prompt"):
            asked.append(tuple(options["tools"]))  # type: ignore[arg-type]
        return render(template, messages, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ChatTemplate, "render", watch)
    tools = ({"type": "function", "function": {"name": "look", "parameters": {}}},)
    evaluate_model(opened, [replace(CONVERSATIONS[0], tools=tools), CONVERSATIONS[1]], "here")
    assert tools in asked and () in asked
