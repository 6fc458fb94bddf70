"""The work of `throughput.py`: random weights of a shape, and rows as text and as token ids."""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Hidden size, feed-forward size, layers, heads, key heads, vocabulary, tied.
SHAPES = {
    "tiny": (64, 192, 2, 4, 2, 3072, True),
    "small": (256, 768, 8, 4, 2, 8192, True),
    "135m": (576, 1536, 30, 9, 3, 49152, True),
    "500m": (1024, 2816, 24, 16, 4, 151936, True),
    "1b": (2048, 8192, 16, 32, 8, 128256, True),
    "8b": (4096, 14336, 32, 32, 8, 128256, False),
}
_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {"qkvo": _QKVO, "all": (*_QKVO, "gate_proj", "up_proj", "down_proj")}

FEWEST_TOKENS, _PROMPT_WORDS = 32, 8
# Of the lengths' logarithm: the longest of a hundred rows is some six times the mean.
_SPREAD = 0.8

Record = dict[str, str]


def make_model(folder: Path, shape: str, device: str = "cpu") -> None:
    """Write a Llama with random weights, and the embedded model's tokenizer with its chat template.

    On cuda they are made there and in bf16, which takes seconds where a processor takes minutes.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from llamafarm.model.load import find_base, load_tokenizer

    hidden, inner, layers, heads, key_heads, vocabulary, tied = SHAPES[shape]
    tokenizer = load_tokenizer(find_base(None))
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if device == "cuda":  # the tools need the memory
        del model
        torch.cuda.empty_cache()


def keep_model(folder: Path, shape: str, device: str) -> Path:
    """Return where in `folder` the weights of a shape lie; they are made where they are not there yet."""
    kept = folder.resolve() / f"{shape}-{device}"
    if not kept.is_dir():
        unfinished = kept.with_name(kept.name + ".unfinished")
        make_model(unfinished, shape, device)
        unfinished.rename(kept)
    return kept


def make_rows(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Write the rows as text for ours, and for the others as the ids and marks that ours makes of it."""
    from llamafarm.data.encoding.encode import encode_conversations
    from llamafarm.data.reading.records import read_data_file
    from llamafarm.model.load import Base, load_tokenizer, text_encoder
    from llamafarm.model.prompt import build_template

    draw = random.Random(3)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(500)]
    pairs = _pairs(draw, words, options)
    tokenizer = load_tokenizer(Base("model", str(model)))
    system = ""
    while len(tokenizer(system)["input_ids"]) < options.system_tokens:
        system += (" " if system else "") + draw.choice(words)
    template, _ = build_template(tokenizer, None, None)
    path = folder / "text.jsonl"

    def encode(records: Sequence[Record]) -> list[Any]:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return encode_conversations(read_data_file(path).conversations, template, text_encoder(tokenizer))

    if options.exact_tokens or options.mean_tokens:
        rows = encode(_records_of_lengths(_lengths(options), draw, _words_of(tokenizer), system, encode))
    else:
        records = [{"system": system, "instruction": asked, "output": said} for asked, said in pairs if said]
        most = options.most_tokens + options.system_tokens
        fitting = [place for place, row in enumerate(encode(records)) if row.num_tokens <= most]
        rows = encode([records[place] for place in fitting[: options.rows]])
    with (folder / "rows.jsonl").open("w") as file:
        for row in rows:
            # Nothing predicts the first token.
            marks = [False, *row.is_supervised_T[1:].tolist()]
            file.write(json.dumps({"token_ids": row.token_ids_T.tolist(), "is_supervised": marks}) + "\n")


def _pairs(draw: random.Random, words: Sequence[str], options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return more questions and answers than are asked for, as some are too long."""
    if options.text is not None:
        lines = options.text.read_text(encoding="utf-8").splitlines()
        draw.shuffle(lines)
        return [(row["instruction"], row["output"]) for row in map(json.loads, lines)]
    lengths = [min(int(draw.lognormvariate(4.2, 0.8)) + 3, 200) for _ in range(4 * options.rows)]
    return [
        (" ".join(draw.choices(words, k=12)), " ".join(draw.choices(words, k=length))) for length in lengths
    ]


def _lengths(options: argparse.Namespace) -> list[int]:
    """Return how many tokens each row is to have."""
    if options.exact_tokens:
        return [options.exact_tokens] * options.rows
    draw = random.Random(5)
    middle = math.log(options.mean_tokens) - _SPREAD**2 / 2
    drawn = (int(draw.lognormvariate(middle, _SPREAD)) for _ in range(options.rows))
    lengths = (min(max(length, FEWEST_TOKENS), options.most_tokens) for length in drawn)
    return [length + options.system_tokens for length in lengths]


def _words_of(tokenizer: Any) -> list[str]:
    """Return words that are one token each, with the space before them."""
    texts = (tokenizer.decode([token_id]) for token_id in range(len(tokenizer)))
    words = [text[1:] for text in texts if text[:1] == " " and text[1:].isascii() and text[1:].isalpha()]
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return [word for word, token_ids in zip(words, encoded, strict=True) if len(token_ids) == 1]


def _records_of_lengths(
    lengths: Sequence[int],
    draw: random.Random,
    words: Sequence[str],
    system: str,
    encode: Callable[[Sequence[Record]], list[Any]],
) -> list[Record]:
    """Return rows of exactly so many tokens: answers get words, or lose some, until it is so."""
    records = [
        {
            "system": system,
            "instruction": " ".join(draw.choices(words, k=_PROMPT_WORDS)),
            "output": " ".join(draw.choices(words, k=length)),
        }
        for length in lengths
    ]
    for _ in range(4):
        found = [row.num_tokens for row in encode(records)]
        if found == list(lengths):
            return records
        for record, wanted, has in zip(records, lengths, found, strict=True):
            answer = record["output"].split()[: min(wanted - has, 0) or None]
            record["output"] = " ".join(answer + draw.choices(words, k=max(wanted - has, 0)))
    raise SystemExit("no rows of exactly so many tokens can be made of this tokenizer's words")
