"""Loops that are planted are found, and good texts that repeat something are not taken for one."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.evaluation.repetition import distinct_share, is_loop

SENTENCE = "The doctor may ask about the pain, look at the swelling and order a test of the blood."
CHINESE = "医生建议患者多喝水并且好好休息，"

LOOPS = {
    "a word": "pain " * 30,
    "two words": "the pain " * 20,
    "a phrase": "and it is important to " * 8,
    "a sentence": f"{SENTENCE} " * 5,
    "a sentence on lines": f"{SENTENCE}\n\n" * 5,
    "a sentence that is cut": f"{SENTENCE} " * 4 + SENTENCE[:40],
    "a paragraph": " ".join(f"word{number}" for number in range(120)) + "\n",
    "list items": "- Drink water and rest well.\n" * 8,
    "numbered items": "\n".join(f"{number}. Drink water and rest." for number in range(1, 9)),
    "numbered items with brackets": "\n".join(f"{number}) Drink enough water." for number in range(1, 9)),
    "digits between blanks": "1 0 " * 20,
    "digits in a word": "0." + "3" * 300,
    "a period of digits": "1/7 = 0." + "142857" * 30,
    "syllables": "ha" * 80,
    "signs alone": "!" * 400,
    "signs between blanks": ". " * 60,
    "Chinese": CHINESE * 5,
    "one Chinese character": "的" * 60,
    "Thai": "ปวดหัวมาก" * 12,
    "Japanese lines": "はい、そうです。\n" * 10,
    "code": "    x = x + 1\n" * 10,
    "a control token": "<|im_end|>" * 20,
}
LOOPS["a paragraph"] *= 4

GOOD = {
    "nothing": "",
    "a word": "Yes.",
    "no, no, no": "No, no, no, no! You must never, never, never do that.",
    "a table": "| Drug | Dose | Morning | Noon | Evening |\n|---|---|---|---|---|\n"
    "| A | 10 mg | yes | no | no |\n| B | 10 mg | yes | no | yes |\n| C | 20 mg | no | no | no |\n"
    "| D | 20 mg | yes | yes | yes |\n| E | 5 mg | no | no | no |",
    "a wide table": "\n".join(
        ["| Name | January | February | March |", "|" + ("-" * 39 + "|") * 4]
        + [f"| Row {row} | {row * 7} | {row * 11} | {row * 13} |" for row in range(6)]
    ),
    "a drawn table": "\n".join(
        line
        for row in ("id | name ", " 1 | Ann  ", " 2 | Bob  ", "-1 | Cleo ")
        for line in ("+" + "-" * 110 + "+", row)
    )
    + "\n+"
    + "-" * 110
    + "+",
    "an empty form": "Name | Morning | Noon | Evening\n" + "____ | ____ | ____ | ____\n" * 6 + "Sign here.",
    "an identity": "\n".join(" ".join(str(int(x == y)) for x in range(8)) for y in range(8)),
    "a pyramid": "\n".join("* " * row for row in range(1, 11)),
    "columns": "\n".join(f"{name}{' ' * 120}{len(name)}" for name in ("Anna", "Bo", "Christopher")),
    "a list": "\n".join(
        f"- The signs of {name} are a cough and a fever."
        for name in ("asthma", "flu", "measles", "mumps", "croup")
    ),
    "steps": "\n".join(
        f"{number}. Press the {name} key and wait for the light."
        for number, name in enumerate(("first", "second", "third", "fourth", "fifth", "sixth"), 1)
    ),
    "numbers": " ".join(str(number) for number in range(1, 200)),
    "a refrain": "\n\n".join(
        f"{verse}\nAnd the river rolls, and the river rolls,\nAnd the river rolls to the sea."
        for verse in (
            "The miller has a wheel to turn,",
            "The smith has iron to beat,",
            "The baker has an oven to burn,",
            "The mower has his wheat,",
            "The sailor has a sail to mend,",
        )
    ),
    "a song": "What shall we do with a drunken sailor,\n" * 3
    + "Early in the morning?\n\n"
    + "Way hay and up she rises,\n" * 3
    + "Early in the morning.",
    "code": "def is_prime(n):\n    if n < 2:\n        return False\n    for k in range(2, n):\n"
    "        if n % k == 0:\n"
    "            return False\n    return True\n\n\nfor n in range(10):\n    print(n, is_prime(n))\n",
    "code in layers": "\n".join(" " * 4 * depth + f"if a{depth} {{" for depth in range(12))
    + "\n"
    + "\n".join(" " * 4 * depth + "}" for depth in reversed(range(12))),
    "JSON": json.dumps(
        {
            "rows": [
                {"id": number, "name": name, "tags": [], "active": True, "parent": None, "values": [0, 0, 0]}
                for number, name in enumerate("abcdefghij")
            ]
        },
        indent=2,
    ),
    "HTML": "\n".join(f"<li><a href='/{word}'>{word}</a></li>" for word in "abcdefgh"),
    "a rule": f"A heading\n{'=' * 150}\n{SENTENCE} It is most often harmless and passes by itself.",
    "a rule at the end": f"{SENTENCE}\n{'-' * 150}",
    "laughter": "哈哈哈哈！他说得对，我们明天再去看医生吧。",
    "DNA": "ATG" + "".join(random.Random(0).choices("ACGT", k=300)),
}  # fmt: skip


@pytest.fixture(scope="module")
def prose(repository: Path) -> str:
    """500 words of good answers."""
    path = repository / "demos/datasets/medical/medical_qa.jsonl"
    outputs = [json.loads(line)["output"] for line in path.read_text(encoding="utf-8").splitlines()]
    words = " ".join(random.Random(0).sample(outputs, 100)).split()[:500]
    assert len(words) == 500
    return " ".join(words)


def answers_of(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["output"]


@pytest.mark.parametrize("name", LOOPS)
def test_a_planted_loop_is_found(name: str) -> None:
    assert is_loop(LOOPS[name])


@pytest.mark.parametrize("name", [name for name in LOOPS if "sign" not in name])
def test_a_loop_is_found_after_a_sound_beginning_of_any_length(name: str, prose: str) -> None:
    for num_words in (5, 60, 500):
        beginning = " ".join(prose.split()[:num_words])
        for joint in (" ", "\n\n"):
            assert is_loop(beginning + joint + LOOPS[name]), (num_words, joint)


def test_a_loop_that_the_answer_leaves_again_counts_where_it_is_much_of_it(prose: str) -> None:
    loop, end = "the pain " * 20, "went away after two days of rest."
    assert is_loop(loop + end)
    assert not is_loop(prose + " " + loop + end)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_text_that_repeats_something_is_no_loop(name: str) -> None:
    assert not is_loop(GOOD[name])


def test_no_expected_answer_of_the_demo_is_a_loop(repository: Path, prose: str) -> None:
    answers = list(answers_of(repository / "demos/datasets/medical"))
    assert len(answers) > 2000
    assert [answer for answer in answers if is_loop(answer)] == []
    assert not is_loop(prose)
    assert not is_loop((repository / "llamafarm/assets/general_text.txt").read_text(encoding="utf-8"))


def test_the_source_of_this_package_is_no_loop(repository: Path) -> None:
    paths = sorted((repository / "llamafarm/evaluation").glob("*.py"))
    assert len(paths) > 5
    assert [path.name for path in paths if is_loop(path.read_text(encoding="utf-8"))] == []


@settings(max_examples=200, deadline=None)
@given(
    phrase=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=60),
    num_turns=st.integers(4, 9),
    begins=st.integers(0, 200),
    is_cut=st.booleans(),
)
def test_any_phrase_is_a_loop_when_it_comes_often_enough(
    phrase: list[str], num_turns: int, begins: int, is_cut: bool
) -> None:
    words = [f"w{number}" for number in range(begins)] + phrase * num_turns
    words += ["p..."] * is_cut
    if len(phrase) * num_turns >= 16:
        assert is_loop(" ".join(words))
    assert not is_loop(" ".join(words[:begins] + phrase * 1))


@settings(max_examples=100, deadline=None)
@given(words=st.permutations([f"w{number}" for number in range(60)]), num_turns=st.integers(1, 3))
def test_three_turns_are_no_loop(words: list[str], num_turns: int) -> None:
    assert not is_loop(" ".join(words * num_turns))


@pytest.mark.parametrize("letters", ["ab", "abcdefghij"])
def test_a_long_answer_is_judged_within_a_tenth_of_a_second(letters: str) -> None:
    text = " ".join(random.Random(0).choices(letters, k=4000))
    started = time.process_time()
    assert not is_loop(text)
    assert time.process_time() - started < 0.1


def test_blanks_and_lines_without_end_are_judged_quickly() -> None:
    started = time.process_time()
    assert not is_loop("word" + " \n" * 50_000 + "word" + " " * 100_000 + "end")
    assert time.process_time() - started < 1


@given(texts=st.lists(st.lists(st.sampled_from("abc")).map(" ".join), max_size=5), n=st.integers(1, 3))
def test_the_distinct_share_is_that_of_n_grams_counted_by_hand(texts: list[str], n: int) -> None:
    grams = [
        text.split()[start : start + n]
        for text in texts
        for start in range(len(text.split()))
        if start + n <= len(text.split())
    ]
    distinct = {" ".join(gram) for gram in grams}
    assert distinct_share(texts, n) == (len(distinct) / len(grams) if grams else 1)


def test_distinct_shares_of_a_known_text() -> None:
    texts = ["the cat and the dog", "the cat"]
    assert distinct_share(texts, 1) == 4 / 7
    assert distinct_share(texts, 2) == 4 / 5
    assert distinct_share(["我喜欢我"], 1) == 3 / 4
