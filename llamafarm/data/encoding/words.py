"""Texts to token ids word by word: every word is tokenized once, and looked up from then on.

Exact, not nearly so. A text is cut at single blanks between two characters that are neither white space nor
part of an added token, and only for tokenizers of which it can be shown that no token and no rule ever
reaches across such a blank:

- byte-level ones with one of the patterns in `_PATTERNS`. Each of these ends a match before such a blank,
  whatever stands around it, and none looks back; what becomes of a piece depends on the piece alone.
- SentencePiece's BPE, where a blank is `▁`. Merges make tokens of the vocabulary: if none of these has `▁`
  after another character, nothing is ever merged across.

Every other tokenizer is asked for whole texts, as is one that gets one of `_PROBES` otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from llamafarm.data.encoding.tokenization import CutIds, CutText, TextEncoder, WholeTexts

_BLANK = "▁"
# Some 60 MB, after which they are forgotten.
_MOST_WORDS_KEPT = 300_000
# Any word stands before the one that is asked for, so that this is not the first of its text.
_BEFORE = "a"

# The pre-tokenizers of GPT-2; Llama 3 and GPT-4; Qwen 2 and 3; GPT-4o.
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

_PROBES = (
    "It's  a test. Don't they've\n\n we'LL  go? 12345 678 9,000.5 (x) [y] {z} <a> _b_ `c` -- !? ...",
    " leading, trailing \n\tand\ttabs \r\n mixed\u00a0blanks\u2003here \u3000 there   \n",
    "Ünïcödé e\u0301 \u0301x a \u0308 日本語 の 文 한국어 العربية עברית हिन्दी",
    "👩\u200d👩 🙂 ½ ² Ⅷ ٣ ',' ' s 's 'S",
    "snake_case camelCase HTTPServer x=1; if (a<b) {return a/b;} // c \\n \\ / | ~ ^ % $ # @ & * + =",
    "a▁b ▁ c ▁▁ d a ▁a a▁ a \x00 \x1c \x1f \x85 \ufeff \ufffd z",
)  # fmt: skip


class WordByWord:
    """The encoder of a tokenizer whose words can be told apart; see `encoder_of`."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        last = re.escape("".join(sorted({token[-1] for token in added} | {_BLANK})))
        first = re.escape("".join(sorted({token[0] for token in added} | {_BLANK})))
        self._boundary = re.compile(rf"(?<=[^\s{last}]) (?=[^\s{first}])")
        # A word whose blanks on both sides are boundaries, as far as it has a say in it.
        self._plain_word = re.compile(rf"(?=[^\s{first}])\S*[^\s{last}]")
        self._num_before = len(self._encode_all([_BEFORE])[0])
        # Of words after a blank, plain ones and others, and of those that begin a text.
        self._plain: dict[str, tuple[int, ...]] = {}
        self._inner: dict[str, tuple[int, ...]] = {}
        self._first: dict[str, tuple[int, ...]] = {}

    def encode(self, texts: Sequence[CutText]) -> list[CutIds]:
        """Return the token ids of each text and of its cuts."""
        if len(self._plain) + len(self._inner) + len(self._first) > _MOST_WORDS_KEPT:
            self._plain, self._inner, self._first = {}, {}, {}
        split = [self._split(text) for text in texts]
        self._learn(split)
        return [self._assemble(parts) for parts in split]

    def _split(self, cut_text: CutText) -> _SplitText:
        """Cut a text at the last boundary before each of its cuts, and what lies between into words."""
        text, cuts = cut_text
        starts, beginnings = [0], []
        for cut in cuts:
            # A blank just before the cut belongs to what follows it.
            start = self._boundary_before(text, max(cut - 1, 0), starts[-1])
            if start != starts[-1]:
                starts.append(start)
            beginnings.append((len(starts) - 1, text[start:cut]))
        ends = [*(start - 1 for start in starts[1:]), len(text)]
        parts = [self._words_of(text[start:end]) for start, end in zip(starts, ends, strict=True)]
        return _SplitText(parts, beginnings)

    def _boundary_before(self, text: str, end: int, least: int) -> int:
        """Return where the last word begins that has a boundary before it and begins before `end`."""
        place = end
        while (place := text.rfind(" ", least, place)) >= 0:
            if self._boundary.match(text, place):
                return place + 1
        return least

    def _words_of(self, part: str) -> list[str]:
        """Return what stands between the boundaries of a text, or of a part of one between two of them."""
        words = part.split(" ")
        unknown = set(words[1:-1]).difference(self._plain)
        is_plain = self._plain_word.fullmatch
        # The outer words have one blank each: what is beyond them is no matter.
        if all(map(is_plain, unknown)) and (
            len(words) == 1
            or (self._boundary.search(words[0] + " x") and self._boundary.search("x " + words[-1]))
        ):
            return words
        return self._boundary.split(part)

    def _learn(self, split: Sequence[_SplitText]) -> None:
        """Tokenize every word that is not known yet, all of them in one call."""
        first: set[str] = set()
        plain: set[str] = set()
        inner: set[str] = set()
        for parts, beginnings in split:
            first.add(parts[0][0])
            inner.update(part[0] for part in parts[1:])
            for part in parts:
                plain.update(part[1:])
            for place, beginning in beginnings:
                (inner if place else first).add(beginning)
        first.difference_update(self._first)
        plain.difference_update(self._plain)
        inner.difference_update(self._inner)
        others = {word for word in plain if not self._plain_word.fullmatch(word)}
        plain -= others
        after_blank = [*plain, *(inner | others)]
        found = self._encode_all([f"{_BEFORE} {word}" for word in after_blank])
        known = {word: ids[self._num_before :] for word, ids in zip(after_blank, found, strict=True)}
        self._plain.update((word, known[word]) for word in plain)
        self._inner.update((word, known[word]) for word in inner | others)
        beginning_ids = self._encode_all(list(first))
        self._first.update(zip(first, beginning_ids, strict=True))

    def _assemble(self, split: _SplitText) -> CutIds:
        token_ids: list[int] = []
        starts = []
        for place, part in enumerate(split.parts):
            starts.append(len(token_ids))
            token_ids += self._inner_ids(part[0]) if place else self._first[part[0]]
            middle, last = part[1:-1], part[1:][-1:]
            try:
                middle_ids = list(chain.from_iterable(map(self._plain.__getitem__, middle)))
            except KeyError:
                middle_ids = list(chain.from_iterable(map(self._inner_ids, middle)))
            token_ids += middle_ids
            token_ids += chain.from_iterable(map(self._inner_ids, last))
        num_before: list[int | None] = []
        for place, text in split.beginnings:
            ids = self._inner_ids(text) if place else self._first[text]
            end = starts[place] + len(ids)
            num_before.append(end if tuple(token_ids[starts[place] : end]) == ids else None)
        return CutIds(token_ids, tuple(num_before))

    def _inner_ids(self, word: str) -> tuple[int, ...]:
        ids = self._plain.get(word)
        return self._inner[word] if ids is None else ids

    def _encode_all(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in batch]


class _SplitText(NamedTuple):
    """Words of each part of a text, and of each cut the part it lies in and that part's text up to it."""

    parts: list[list[str]]
    beginnings: list[tuple[int, str]]


def encoder_of(backend: Tokenizer) -> TextEncoder:
    """Return the fastest exact encoder of a fast tokenizer."""

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        batch = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    whole = WholeTexts(tokenize)
    if not _has_separate_words(json.loads(backend.to_str())):
        return whole
    by_word = WordByWord(backend)
    probes = [CutText(text, (len(text) // 3, len(text) // 2)) for text in _PROBES]
    return by_word if _are_same(by_word.encode(probes), whole.encode(probes)) else whole


def _are_same(some: Sequence[CutIds], others: Sequence[CutIds]) -> bool:
    return all(
        list(one.token_ids) == list(other.token_ids) and one.num_before == other.num_before
        for one, other in zip(some, others, strict=True)
    )


def _has_separate_words(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether nothing reaches across a blank between two words, by what the tokenizer is made of."""
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    if model.get("dropout") or tokenizer["truncation"] or tokenizer["padding"]:
        return False
    # White space of several characters lies never around a blank between two words.
    if any(" " in token["content"] and not re.fullmatch(r"\s{2,}", token["content"]) for token in added):
        return False
    return _cuts_bytes_at_blanks(tokenizer) or _merges_within_words(tokenizer)


def _cuts_bytes_at_blanks(tokenizer: Mapping[str, Any]) -> bool:
    normalizer, splitter = tokenizer["normalizer"], tokenizer["pre_tokenizer"]
    if (normalizer is not None and normalizer["type"] != "NFC") or splitter is None:
        return False
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    *splits, bytes_step = steps
    if bytes_step["type"] != "ByteLevel" or bytes_step["add_prefix_space"]:
        return False
    patterns = [step.get("pattern", {}).get("Regex") for step in splits if step["type"] == "Split"]
    if len(patterns) != len(splits) or any(pattern not in _PATTERNS for pattern in patterns):
        return False
    isolates = all(step["behavior"] == "Isolated" and not step["invert"] for step in splits)
    return isolates and bool(splits or bytes_step["use_regex"])


def _merges_within_words(tokenizer: Mapping[str, Any]) -> bool:
    if tokenizer["model"]["type"] != "BPE" or tokenizer["pre_tokenizer"] is not None:
        return False
    normalizer = tokenizer["normalizer"] or {"type": None}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    if replaces not in steps or any(
        step != replaces and step != {"type": "Prepend", "prepend": _BLANK} for step in steps
    ):
        return False
    return not any(_BLANK in token.lstrip(_BLANK) for token in tokenizer["model"]["vocab"])
