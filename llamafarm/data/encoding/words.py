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
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from llamafarm.data.encoding.patterns import GPT2, GPT4O, LLAMA3, QWEN2
from llamafarm.data.encoding.tokenization import CutIds, CutText, TextEncoder, WholeTexts, panics_as_errors

_BLANK = "▁"
# Some 60 MB, after which they are forgotten.
_MOST_WORDS_KEPT = 300_000
# Any word stands before the one that is asked for, so that this is not the first of its text.
_BEFORE = "a"

_PATTERNS = (GPT2, LLAMA3, QWEN2, GPT4O)

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
        self._plain_word = re.compile(rf"(?=[^\s{first}])[^ ]*[^\s{last}]")
        self._num_before = len(self._encode_all([_BEFORE])[0]) // 4
        # The ids, as bytes, of words after a blank, plain ones and others, and of those that begin a text.
        self._plain: dict[str, bytes] = {}
        self._inner: dict[str, bytes] = {}
        self._first: dict[str, bytes] = {}

    def encode(self, texts: Sequence[CutText]) -> list[CutIds]:
        """Return the token ids of each text and of its cuts."""
        if len(self._plain) + len(self._inner) + len(self._first) > _MOST_WORDS_KEPT:
            self._plain, self._inner, self._first = {}, {}, {}
        split = [self._split(text) for text in texts]
        self._learn(split)
        return [self._assemble(parts) for parts in split]

    def _split(self, cut_text: CutText) -> _SplitText:
        """Cut a text at the last boundary before each of its cuts; look up what lies between."""
        text, cuts = cut_text
        starts, beginnings = [0], []
        for cut in cuts:
            # A blank just before the cut belongs to what follows it.
            start = self._boundary_before(text, max(cut - 1, 0), starts[-1])
            if start != starts[-1]:
                starts.append(start)
            beginnings.append((len(starts) - 1, text[start:cut]))
        ends = [*(start - 1 for start in starts[1:]), len(text)]
        parts = [
            self._look_up(text[start:end], is_first=not start)
            for start, end in zip(starts, ends, strict=True)
        ]
        return _SplitText(parts, beginnings)

    def _boundary_before(self, text: str, end: int, least: int) -> int:
        """Return where the last word begins that has a boundary before it and begins before `end`."""
        place = end
        while (place := text.rfind(" ", least, place)) >= 0:
            if self._boundary.match(text, place):
                return place + 1
        return least

    def _look_up(self, part: str, *, is_first: bool) -> bytes | list[str]:
        """Return the ids of a part, which lies between two boundaries or ends of a text.

        If not all of them are known yet, or not all blanks are boundaries: what stands between these.
        """
        words = part.split(" ")
        if len(words) == 1 or self._has_outer_boundaries(words):
            ids = [self._ids_of(words[0], is_first=is_first), *map(self._plain.get, words[1:-1])]
            if len(words) > 1:
                ids.append(self._ids_of(words[-1], is_first=False))
            if None not in ids:
                return b"".join(ids)  # type: ignore[arg-type]
            if all(map(self._plain_word.fullmatch, set(words[1:-1]).difference(self._plain))):
                return words
        return self._boundary.split(part)

    def _has_outer_boundaries(self, words: Sequence[str]) -> bool:
        """Return whether the first blank and the last are boundaries, if the words between are plain."""
        # The outer words have one blank each: what is beyond them is no matter.
        return bool(self._boundary.search(words[0] + " x") and self._boundary.search("x " + words[-1]))

    def _learn(self, split: Sequence[_SplitText]) -> None:
        """Tokenize every word that is not known yet, all of them in one call."""
        first: set[str] = set()
        inner: set[str] = set()
        for parts, beginnings in split:
            for place, part in enumerate(parts):
                if not isinstance(part, bytes):
                    (inner if place else first).add(part[0])
                    inner.update(part[1:])
            for place, beginning in beginnings:
                (inner if place else first).add(beginning)
        first.difference_update(self._first)
        inner.difference_update(self._plain, self._inner)
        after_blank = list(inner)
        before = 4 * self._num_before
        for word, ids in zip(
            after_blank, self._encode_all([f"{_BEFORE} {word}" for word in after_blank]), strict=True
        ):
            (self._plain if self._plain_word.fullmatch(word) else self._inner)[word] = ids[before:]
        beginnings_of_texts = list(first)
        self._first.update(zip(beginnings_of_texts, self._encode_all(beginnings_of_texts), strict=True))

    def _assemble(self, split: _SplitText) -> CutIds:
        ids = b""
        starts = []
        for place, part in enumerate(split.parts):
            starts.append(len(ids))
            if not isinstance(part, bytes):
                part = self._join(part, is_first=not place)
            ids += part
        num_before: list[int | None] = []
        for place, text in split.beginnings:
            beginning = self._ids_of(text, is_first=not place)
            assert beginning is not None
            is_beginning = ids.startswith(beginning, starts[place])
            num_before.append((starts[place] + len(beginning)) // 4 if is_beginning else None)
        return CutIds(np.frombuffer(ids, np.int32), tuple(num_before))

    def _join(self, words: Sequence[str], *, is_first: bool) -> bytes:
        """Return the ids of words that are all known."""
        first = self._ids_of(words[0], is_first=is_first)
        others = words[1:]
        try:  # most are plain
            ids = [first, *map(self._plain.__getitem__, others)]
        except KeyError:
            ids = [first, *(self._ids_of(word, is_first=False) for word in others)]
        return b"".join(ids)  # type: ignore[arg-type]

    def _ids_of(self, word: str, *, is_first: bool) -> bytes | None:
        if is_first:
            return self._first.get(word)
        ids = self._plain.get(word)
        return self._inner.get(word) if ids is None else ids

    def _encode_all(self, texts: Sequence[str]) -> list[bytes]:
        with panics_as_errors():
            batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32).tobytes() for encoding in batch]


class _SplitText(NamedTuple):
    """Of each part of a text its ids, or its words; of each cut its part, and what that has before it."""

    parts: list[bytes | list[str]]
    beginnings: list[tuple[int, str]]


def encoder_of(backend: Tokenizer) -> TextEncoder:
    """Return the fastest exact encoder of a fast tokenizer."""
    whole = WholeTexts(_WholeBatch(backend))
    if not _has_separate_words(json.loads(backend.to_str())):
        return whole
    by_word = WordByWord(backend)
    probes = [CutText(text, (len(text) // 3, len(text) // 2)) for text in _PROBES]
    return by_word if _are_same(by_word.encode(probes), whole.encode(probes)) else whole


class _WholeBatch:
    """A fast tokenizer as a function of texts."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        with panics_as_errors():
            batch = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]


def _are_same(some: Sequence[CutIds], others: Sequence[CutIds]) -> bool:
    return all(
        np.array_equal(one.token_ids, other.token_ids) and one.num_before == other.num_before
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
