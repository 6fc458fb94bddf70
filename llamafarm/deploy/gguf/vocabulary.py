"""A tokenizer as llama.cpp has it: tokens, their types, merges or scores, and how text is cut first.

Everything is read from the fast tokenizer itself, as `tokenizers` describes it. llama.cpp knows the
patterns that cut texts by name only; a pattern without a name is refused, since any other name loads and
gives other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFWriter, TokenType

from llamafarm.data.encoding.patterns import GPT4O, LLAMA3, QWEN2, TEKKEN
from llamafarm.errors import ModelError

_BLANK = "▁"
_GPT2_PATTERN = "<GPT-2's own>"

# llama.cpp's names of the patterns, which also say whether a whole word that is a token is taken as it is.
_PRE_TOKENIZERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2_PATTERN,), False): "gpt-2",
    (("<digits>", _GPT2_PATTERN), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "dbrx",
    ((QWEN2,), False): "qwen2",
    ((GPT4O,), False): "gpt-4o",
    ((TEKKEN,), True): "tekken",
}
# SentencePiece's score of a token that no merge makes: it is never chosen where a merge is possible.
_NO_SCORE = -1e6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What llama.cpp tokenizes with. `special_ids` are by llama.cpp's names (bos, eos, eot, unk, pad)."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    special_ids: Mapping[str, int]
    adds_bos: bool
    merges: Sequence[str] = field(default_factory=tuple)
    scores: Sequence[float] = field(default_factory=tuple)
    adds_space_prefix: bool | None = None

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the vocabulary into a file's metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, token_id in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(token_id)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(False)
        if self.adds_space_prefix is not None:
            writer.add_add_space_prefix(self.adds_space_prefix)


def read_vocabulary(
    tokenizer: Any, *, num_embeddings: int, end_of_turn: str, begins_with_bos: bool
) -> Vocabulary:
    """Return the vocabulary of a fast tokenizer, filled up to the embedding's `num_embeddings` rows.

    `end_of_turn` is the token that ends an answer, `begins_with_bos` says whether conversations begin with
    the beginning-of-text token. Raises `ModelError` if llama.cpp has no such tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown("it is written in Python alone")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise _unknown(f"its model is {model['type']}, not BPE")
    tokens, types = _tokens_and_types(described, num_embeddings)
    specials = _special_ids(tokenizer, tokens, end_of_turn)
    if model.get("byte_fallback"):
        _check_sentencepiece(described)
        return Vocabulary(
            "llama",
            "default",
            tokens,
            types,
            specials,
            begins_with_bos,
            scores=_scores(model, tokens),
            adds_space_prefix=_adds_space_prefix(described),
        )
    if described.get("normalizer") not in (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
        raise _unknown(f"it changes texts first ({described['normalizer']['type']})")
    cuts = tuple(_cuts(described.get("pre_tokenizer")))
    pre = _PRE_TOKENIZERS.get((cuts, bool(model.get("ignore_merges"))))
    if pre is None:
        raise _unknown(f"it cuts texts by {' and '.join(cuts) or 'no pattern'}")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return Vocabulary("gpt2", pre, tokens, types, specials, begins_with_bos, merges=merges)


def _check_sentencepiece(described: Mapping[str, Any]) -> None:
    """Raise `ModelError` for what llama.cpp's SentencePiece does otherwise."""
    missing = [number for number in range(256) if f"<0x{number:02X}>" not in described["model"]["vocab"]]
    if missing:
        raise _unknown(f"it has no tokens for {len(missing)} of 256 bytes, so that some texts have none")
    is_normalized = any(added["normalized"] and added["special"] for added in described["added_tokens"])
    if is_normalized and _adds_space_prefix(described):
        raise _unknown("it puts a blank before a text, and not after a special token in it")


def _tokens_and_types(described: Mapping[str, Any], num_embeddings: int) -> tuple[list[str], list[int]]:
    model = described["model"]
    ids: dict[str, int] = {**model["vocab"]}
    most = max([*ids.values(), *(added["id"] for added in described["added_tokens"])])
    if most >= num_embeddings:
        raise _unknown(f"it has token {most}, and the model only {num_embeddings} embeddings")
    tokens = [f"[PAD{place}]" for place in range(num_embeddings)]
    types = [int(TokenType.UNUSED)] * num_embeddings
    for text, token_id in ids.items():
        tokens[token_id] = text
        is_byte = model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x")
        types[token_id] = int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if (unknown := model.get("unk_token")) is not None and model.get("byte_fallback"):
        types[ids[unknown]] = int(TokenType.UNKNOWN)
    return tokens, types


def _special_ids(tokenizer: Any, tokens: Sequence[str], end_of_turn: str) -> dict[str, int]:
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": tokens.index(end_of_turn),
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    return {name: token_id for name, token_id in named.items() if token_id is not None}


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Return SentencePiece's scores: the earlier a merge makes a token, the higher."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else _NO_SCORE for token in tokens]


def _adds_space_prefix(described: Mapping[str, Any]) -> bool:
    """Return whether a blank is put before a text."""
    parts = [*_parts(described.get("normalizer"), "normalizers")]
    if any(part["type"] == "Prepend" and part["prepend"] == _BLANK for part in parts):
        return True
    cutting = [*_parts(described.get("pre_tokenizer"), "pretokenizers")]
    return any(
        part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never" for part in cutting
    )


def _cuts(pre_tokenizer: Mapping[str, Any] | None) -> list[str]:
    """Return the patterns by which a byte-level tokenizer cuts texts."""
    cuts = []
    for part in _parts(pre_tokenizer, "pretokenizers"):
        if part["type"] == "Split":
            cuts.append(str(part["pattern"].get("Regex", part["pattern"])))
        elif part["type"] == "Digits" and part.get("individual_digits"):
            cuts.append("<digits>")
        elif part["type"] == "ByteLevel":
            if part.get("add_prefix_space"):
                cuts.append("<a blank before the text>")
            if part.get("use_regex", True):
                cuts.append(_GPT2_PATTERN)
        else:
            cuts.append(f"<{part['type']}>")
    return cuts


def _parts(component: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]]:
    if component is None:
        return ()
    parts: Sequence[Mapping[str, Any]] = component[name] if component["type"] == "Sequence" else (component,)
    return parts


def _unknown(reason: str) -> ModelError:
    return ModelError(
        f"llama.cpp has no tokenizer like this one: {reason}",
        where="tokenizer.json",
        remedy="Convert to safetensors, and serve it with transformers.",
    )
