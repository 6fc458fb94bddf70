"""Word by word gives what the tokenizer gives for whole texts, cuts included, or is not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from llamafarm.data.encoding.tokenization import CutText, WholeTexts
from llamafarm.data.encoding.words import _PATTERNS, WordByWord, encoder_of

CORPUS = [
    "It's what we've known: don't stop 1234 times, or 5 6 7! HTTPServer camelCase snake_case (a, b) [c]",
    "Ünïcödé café e\u0301 日本語 の 文 العربية  two  blanks\n\n\tand tabs\r\n 's 't it'S  -- ... <a> </a>",
] * 4
SPECIAL = ["<|im_start|>", "<|im_end|>", "</s>"]


def byte_level(pattern: str | None, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])  # type: ignore[assignment]
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def sentence_piece(*, merges_across: bool = False) -> Tokenizer:
    """Return a BPE over whole texts, as Llama 2's, or with a merge that ends in a blank."""
    words = {word for text in CORPUS for word in text.split()}
    pieces = ["▁", *sorted({letter for word in words for letter in word}), "▁▁", "th", "▁t", "an", "'s"]
    merges = [("▁", "▁"), ("a", "n"), ("'", "s"), ("t", "i")]
    pieces += ["ti"]
    if merges_across:
        merges, pieces = [*merges, ("s", "▁")], [*pieces, "s▁"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(pieces)]
    vocab = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(None),
    **{f"pattern {number}": lambda p=pattern: byte_level(p) for number, pattern in enumerate(_PATTERNS)},
    "nfc": lambda: byte_level(_PATTERNS[2], normalizers.NFC()),
    "sentencepiece": sentence_piece,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


def whole(tokenizer: Tokenizer) -> WholeTexts:
    return WholeTexts(
        lambda texts: [
            encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
    )


PARTS = st.sampled_from(
    [
        *("    \n\t▁as'A7?></é_🙂"),
        *("  ", "\u00a0", "\u3000", "\x1c", "it", "'s", "don't", "the", "12", "..."),
        *("e\u0301", "\u0301", "日本", "HTTPServer", *SPECIAL),
    ]
)
TEXTS = st.one_of(st.lists(PARTS, max_size=14).map("".join), st.text(max_size=20))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_it_is_what_the_whole_text_gives(tokenizer: Tokenizer, data: st.DataObject) -> None:
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
    places = st.integers(0, 40)
    cut_texts = [
        CutText(
            text, tuple(sorted(min(place, len(text)) for place in data.draw(st.lists(places, max_size=4))))
        )
        for text in texts
    ]
    encoder = encoder_of(tokenizer)
    assert isinstance(encoder, WordByWord)
    expected = whole(tokenizer).encode(cut_texts)
    for _ in range(2):  # once learning the words, once knowing them
        found = encoder.encode(cut_texts)
        assert [list(ids) for ids, _ in found] == [list(ids) for ids, _ in expected]
        assert [num_before for _, num_before in found] == [num_before for _, num_before in expected]


_BYTES = {"trim_offsets": True, "use_regex": True}


def _changed(**changes: Any) -> Tokenizer:
    record = json.loads(byte_level(None).to_str())
    for path, value in changes.items():
        *parents, key = path.split("__")
        target = record
        for parent in parents:
            target = target[parent]
        target[key] = value
    return Tokenizer.from_str(json.dumps(record))


def _with_added(token: str) -> Tokenizer:
    tokenizer = byte_level(None)
    tokenizer.add_tokens([AddedToken(token)])
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: sentence_piece(merges_across=True),
        lambda: byte_level(r"\w+ \w+|\s+|[^\s\w]+"),
        lambda: byte_level(None, normalizers.NFKC()),
        lambda: _changed(model__dropout=0.1),
        lambda: _changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, **_BYTES}),
        lambda: _changed(pre_tokenizer=None),
        lambda: _with_added("New York"),
        lambda: _with_added(" the"),
    ],
)
def test_whoever_could_reach_across_a_blank_is_asked_for_whole_texts(make: Callable[[], Tokenizer]) -> None:
    assert isinstance(encoder_of(make()), WholeTexts)


def test_words_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level(None)
    encoder, texts = encoder_of(tokenizer), [CutText(f"word{n} and word{n + 1} again") for n in range(9)]
    monkeypatch.setattr("llamafarm.data.encoding.words._MOST_WORDS_KEPT", 5)
    for text in texts:
        (found,), (expected,) = encoder.encode([text]), whole(tokenizer).encode([text])
        assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert isinstance(encoder, WordByWord) and len(encoder._plain) < 12
