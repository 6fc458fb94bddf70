"""Tokens in llama.cpp are those of the tokenizer, and a tokenizer that it does not know is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llamafarm.data.encoding.patterns import GPT4O, LLAMA3, QWEN2, TEKKEN
from llamafarm.deploy.gguf.vocabulary import read_vocabulary
from llamafarm.errors import ModelError
from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer, has_llamacpp

TEXTS = [
    "It's  a test. Don't they've\n\n we'LL  go? 12345 678 9,000.5 (x) [y] {z} <a> _b_ `c` -- !? ...",
    " leading, trailing \n\tand\ttabs \r\n mixed\u00a0blanks\u2003here \u3000 there   \n",
    "Ünïcödé e\u0301 \u0301x a \u0308 日本語 の 文 한국어 العربية עברית हिन्दी",
    "👩\u200d👩 🙂 ½ ² Ⅷ ٣ ',' ' s 's 'S",
    "snake_case camelCase HTTPServer x=1; if (a<b) {return a/b;} // c \\n \\ / | ~ ^ % $ # @ & * + =",
    "<|end|>in the middle<|begin|> of <|end|>",
    "",
    " ",
    "\n\n\n",
]


def bytelevel(pattern: str | None, *, ignores_merges: bool = False, digits: bool = False) -> Any:
    """Return a byte-level tokenizer that is trained on the texts here."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores_merges))
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        parts.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|begin|>", "<|end|>"],
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return fast(tokenizer)


def sentencepiece(*, prepends: bool) -> Any:
    """Return a tokenizer with bytes for what it lacks and `▁` for blanks, as Llama 2's and Gemma's are."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    parts: list[Any] = [normalizers.Prepend("▁")] if prepends else []
    tokenizer.normalizer = normalizers.Sequence([*parts, normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<|begin|>", "<|end|>", "<|pad|>", *bytes_]
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [
        one for one in described["added_tokens"] if not one["content"].startswith("<0x")
    ]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return fast(tokenizer, unk_token="<unk>")


def fast(tokenizer: Tokenizer, **specials: str) -> Any:
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        **specials,
    )


TOKENIZERS = {
    "gpt-2": lambda: bytelevel(None),
    "smollm": lambda: bytelevel(None, digits=True),
    "llama-bpe": lambda: bytelevel(LLAMA3, ignores_merges=True),
    "dbrx": lambda: bytelevel(LLAMA3),
    "qwen2": lambda: bytelevel(QWEN2),
    "gpt-4o": lambda: bytelevel(GPT4O),
    "tekken": lambda: bytelevel(TEKKEN, ignores_merges=True),
    "default": lambda: sentencepiece(prepends=True),
    "default, without a blank before": lambda: sentencepiece(prepends=False),
}


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any], saved: Callable[..., Path]
) -> Path:
    """A random Llama, for files to have weights."""
    return saved(random_model("llama"), tmp_path_factory.mktemp("model"))


@pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_has_the_same_tokens(model: Path, write_file: Callable[..., Path], name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    vocabulary = read_vocabulary(tokenizer, num_embeddings=3072, end_of_turn="<|end|>", begins_with_bos=False)
    assert vocabulary.pre == name.partition(",")[0]
    with LlamaServer(write_file(model, tokenizer, "f16"), LlamaOptions(128)) as server:
        # llama.cpp's own pattern for these takes letters without a case, and marks, otherwise.
        texts = [text for text in TEXTS if name not in ("gpt-4o", "tekken") or text.isascii()]
        for text in [*texts, "a <tool> b<tool>"]:
            ours = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert server.tokenize(text) == ours, text


def faults() -> Iterator[tuple[str, Any]]:
    tokenizer = bytelevel(r"\w+|\s+")
    yield "cuts texts by", tokenizer
    changed = bytelevel(None)
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    yield "changes texts first", changed
    described = json.loads(sentencepiece(prepends=True).backend_tokenizer.to_str())
    del described["model"]["vocab"]["<0x7F>"]
    yield "no tokens for 1 of 256 bytes", fast(Tokenizer.from_str(json.dumps(described)))
    described = json.loads(sentencepiece(prepends=True).backend_tokenizer.to_str())
    for added in described["added_tokens"]:
        added["normalized"] = True
    yield "not after a special token", fast(Tokenizer.from_str(json.dumps(described)))
    yield "not BPE", fast(Tokenizer(models.WordLevel({"<|end|>": 0, "<|begin|>": 1}, unk_token="<|end|>")))


@pytest.mark.parametrize(("problem", "tokenizer"), faults())
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(problem: str, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=problem):
        read_vocabulary(tokenizer, num_embeddings=3072, end_of_turn="<|end|>", begins_with_bos=False)


def test_more_tokens_than_embeddings_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="token 3071, and the model only 3000 embeddings"):
        read_vocabulary(tokenizer, num_embeddings=3000, end_of_turn="<|end|>", begins_with_bos=False)


def test_rows_of_the_embedding_without_a_token_are_unused(tokenizer: Any) -> None:
    found = read_vocabulary(tokenizer, num_embeddings=3080, end_of_turn="<|end|>", begins_with_bos=True)
    assert found.tokens[3072:3074] == ["[PAD3072]", "[PAD3073]"] and set(found.types[3072:]) == {5}
    assert found.special_ids == {"bos": 1, "eos": 2, "eot": 2, "pad": 0} and found.adds_bos
