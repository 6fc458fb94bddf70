"""Scores of texts against the libraries that are the reference for each, and where they differ on purpose."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from torchmetrics.functional.text.squad import squad

from llamafarm.evaluation.texts import chrf, corpus_bleu, rouge_l, split_words, token_f1

_rouge = RougeScorer(["rougeL"], use_stemmer=False)

_words = st.sampled_from(
    ["a", "An", "THE", "the", "cat", "Cat's", "cats", "don't", "dog", "3.5", "1,000", "mid-day", "snake_case",
     "(the)", "a.", "'an'", "--", "...", "U.S.", "5%", "$10", "x=y", "\t", "\n", "the-end", "tHe_", "0"]
)  # fmt: skip
_texts = st.lists(_words, max_size=14).map(" ".join) | st.text(st.characters(max_codepoint=127), max_size=40)


def squad_f1(answer: str, expected: str) -> float:
    target = {"answers": {"answer_start": [0], "text": [expected]}, "id": "1"}
    return float(squad({"prediction_text": answer, "id": "1"}, target)["f1"]) / 100


def rouge_score(answer: str, expected: str) -> float:
    return float(_rouge.score(expected, answer)["rougeL"].fmeasure)


@pytest.fixture(scope="module")
def sentences(repository: Path) -> list[str]:
    """Sentences of the demo's data, in an order of chance, and each after one that is near it."""
    lines = [
        line
        for path in sorted((repository / "demos/datasets/medical").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    chosen = random.Random(0).sample(lines, 150)
    found = [
        text for line in chosen for text in (json.loads(line)["instruction"], json.loads(line)["output"])
    ]
    assert len(found) == 300 and all(found)
    return found


@settings(max_examples=300, deadline=None)
@given(answer=_texts, expected=_texts)
@example("", "")
@example("", "word")
@example("the", "a")
@example("the", "")
@example("the-cat a_the", "thecat athe")
@example("a.n. t.h.e.", "x")
def test_token_f1_is_that_of_squad(answer: str, expected: str) -> None:
    assert token_f1(answer, expected) == pytest.approx(squad_f1(answer, expected), abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(answer=_texts, expected=_texts)
@example("", "")
@example("snake_case", "snake case")
@example("Don't", "don t")
@example("b a b a", "a b a b")
def test_rouge_l_is_that_of_rouge_score(answer: str, expected: str) -> None:
    assert rouge_l(answer, expected) == pytest.approx(rouge_score(answer, expected), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(answer=_texts, expected=_texts)
@example("", "")
@example("", "word")
@example("same words", "same words")
def test_chrf_is_that_of_sacrebleu(answer: str, expected: str) -> None:
    assert chrf(answer, expected) == pytest.approx(sacrebleu.sentence_chrf(answer, [expected]).score / 100)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(_texts, _texts), min_size=1, max_size=5))
@example([("", "")])
@example([("yes", "yes")])
@example([("the cat", "the cat"), ("", "gone")])
def test_bleu_is_that_of_sacrebleu_with_as_many_orders_as_the_answers_have(
    pairs: list[tuple[str, str]],
) -> None:
    answers, expected = [one for one, _ in pairs], [one for _, one in pairs]
    theirs = BLEU(effective_order=True).corpus_score(answers, [expected])
    assert corpus_bleu(answers, expected) == pytest.approx(theirs.score / 100, abs=1e-9)
    if theirs.totals[-1]:
        plain = sacrebleu.corpus_bleu(answers, [expected]).score
        assert corpus_bleu(answers, expected) == pytest.approx(plain / 100, abs=1e-9)


def test_real_sentences_score_as_the_libraries_score_them(sentences: list[str]) -> None:
    seen = set()
    for answer, expected in pairwise(sentences):
        seen.add(round(token_f1(answer, expected), 3))
        assert token_f1(answer, expected) == pytest.approx(squad_f1(answer, expected), abs=1e-6)
        assert rouge_l(answer, expected) == pytest.approx(rouge_score(answer, expected), abs=1e-9)
        wanted = sacrebleu.sentence_chrf(answer, [expected]).score
        assert chrf(answer, expected) == pytest.approx(wanted / 100)
    assert len(seen) > 20
    shifted = sentences[1:] + sentences[:1]
    wanted = sacrebleu.corpus_bleu(sentences, [shifted]).score
    assert corpus_bleu(sentences, shifted) == pytest.approx(wanted / 100)


def test_equal_texts_score_one_and_none_scores_more(sentences: list[str]) -> None:
    for text in sentences[:40]:
        for score in (token_f1, rouge_l, chrf):
            assert 1 - 1e-9 < score(text, text) <= 1
    assert 1 - 1e-9 < corpus_bleu(sentences, sentences) <= 1
    assert corpus_bleu(["yes"], ["yes"]) == 1


def test_no_answers_have_no_bleu() -> None:
    assert corpus_bleu([], []) == 0


@pytest.mark.parametrize(
    ("answer", "expected", "share"),
    [
        ("Ο πόνος είναι ισχυρός", "Ο πόνος είναι ήπιος", 3 / 4),
        ("боль в спине", "боль в ноге", 2 / 3),
        ("我喜欢苹果。", "我喜欢梨", 2 * 3 / 9),
        ("ปวดหัว", "ปวดท้อง", 2 * 3 / 13),
        ("はい、そうです", "そうです", 2 * 4 / 10),
        ("머리가 아파요", "배가 아파요", 1 / 2),
        ("शब्द हिन्दी", "शब्द हिन्दा", 1 / 2),
    ],
    ids=["Greek", "Russian", "Chinese", "Thai", "Japanese", "Korean", "Hindi"],
)
def test_other_scripts_have_words_where_rouge_score_has_none(
    answer: str, expected: str, share: float
) -> None:
    assert rouge_score(answer, expected) == 0
    assert rouge_l(answer, expected) == pytest.approx(share)
    assert token_f1(answer, expected) == pytest.approx(share)


def test_scripts_without_blanks_have_words_where_squad_has_one() -> None:
    for answer, expected in (("我喜欢苹果。", "我喜欢苹果"), ("ปวดหัวมาก", "ปวดหัว")):
        assert squad_f1(answer, expected) == 0
        assert token_f1(answer, expected) > 0.75


def test_punctuation_beyond_ascii_counts_for_nothing_where_squad_counts_it() -> None:
    for answer, expected in (("«боль»", "боль"), ("It’s “pain”", "it's pain"), ("dolor…", "dolor")):
        assert token_f1(answer, expected) == 1
        assert squad_f1(answer, expected) < 1


def test_an_accent_is_part_of_its_word_however_it_is_written() -> None:
    assert rouge_l("un e\u0301lan", "un élan") == token_f1("un e\u0301lan", "un élan") == 1
    assert rouge_l("résumé", "rsum") == 0
    assert rouge_score("résumé", "r sum") == 1


def test_an_emoji_is_the_same_with_and_without_its_variant() -> None:
    assert rouge_l("❤\ufe0f yes", "❤ yes") == token_f1("❤\ufe0f", "❤") == 1


def test_words_stand_between_blanks_and_characters_of_unspaced_scripts_alone() -> None:
    assert split_words(" don't\n stop,  42 ") == ["don't", "stop,", "42"]
    assert split_words("GPU的内存 80GB") == ["GPU", "的", "内", "存", "80GB"]
