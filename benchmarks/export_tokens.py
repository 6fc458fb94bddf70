"""Whether llama.cpp cuts texts as the tokenizer does: 2,000 strings for each tokenizer.

python benchmarks/export_tokens.py TOKENIZER_FOLDER… [--text FILE]

Strings are lines of FILE where one is given, the rest made up: Unicode, code, blanks, special tokens written
as text, in every mixture. Each tokenizer is written into a GGUF file of a random model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llamafarm import terminal  # noqa: E402
from llamafarm.errors import LlamaFarmError  # noqa: E402

_NUM_STRINGS = 2000
_PIECES = [
    "hello", " world", "It's", " they've", " 12345", "3.14", "\n", "\n\n", "\t", "  ", "    ", " \n",
    "\r\n", "Ünïcödé", " naïve", "日本語", "한국어", "العربية", "हिन्दी", "\U0001f642",
    "\U0001f469\u200d\U0001f52c", "½", "²", "e\u0301", "\u00a0", "\u200b", "\u3000", "\u017f", "\u212a",
    "def f(x):", " return x ** 2", "if (a<b) {", "}", "//", "\\n", "<b>", "&amp;", "{{ x }}", "▁", "▁▁",
    "'s", "'S", "_b_", "`c`", "--", "...", "?!", "http://a.b/c?d=e", "SELECT * FROM t;", "\x00", "\x1f",
    "\ufeff",
]  # fmt: skip


def strings(specials: list[str], text: Path | None) -> list[str]:
    """Return the strings; the same ones each time."""
    generator = random.Random(0)
    lines: list[str] = []
    if text is not None:
        for line in text.read_text(encoding="utf-8").splitlines()[: _NUM_STRINGS // 2]:
            row = json.loads(line)
            lines.append(" ".join(str(value) for value in row.values())[:2000])
    while len(lines) < _NUM_STRINGS:
        pieces = _PIECES + specials
        lines.append("".join(generator.choices(pieces, k=generator.randint(1, 12))))
    return lines


def write(folder: Path, tokenizer: Any) -> Path:
    """Write a random model with this tokenizer as a GGUF file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llamafarm.deploy.gguf.types import MIXTURES
    from llamafarm.deploy.gguf.vocabulary import read_vocabulary
    from llamafarm.deploy.gguf.write import Card, plan_tensors, write_gguf
    from llamafarm.deploy.stored import StoredWeights

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = read_vocabulary(
        tokenizer, num_embeddings=len(tokenizer), end_of_turn=tokenizer.eos_token, begins_with_bos=False
    )
    with StoredWeights(folder) as weights:
        tensors = plan_tensors(weights, config, MIXTURES["f16"])
        write_gguf(folder / "m.gguf", tensors, config, MIXTURES["f16"], vocabulary, Card("x", "x"))
    return folder / "m.gguf"


def is_same(server: Any, tokenizer: Any, text: str) -> bool:
    """Return whether both cut a text alike; llama.cpp refuses bytes that the vocabulary lacks."""
    try:
        found = server.tokenize(text)
    except LlamaFarmError:
        return False
    return bool(found == tokenizer(text, add_special_tokens=False)["input_ids"])


def compare(folder: Path, text: Path | None) -> str:
    """Return a row of the table for one tokenizer."""
    from transformers import AutoTokenizer

    from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = strings([str(token) for token in tokenizer.all_special_tokens], text)
    with tempfile.TemporaryDirectory() as name:
        try:
            file = write(Path(name), tokenizer)
        except LlamaFarmError as error:
            return f"| {folder.name} | refused: {error.problem} | |"
        with LlamaServer(file, LlamaOptions(512)) as server:
            other = [one for one in asked if not is_same(server, tokenizer, one)]
    shown = f"{min(other, key=len)!r}" if other else ""
    return f"| {folder.name} | {len(asked) - len(other)} of {len(asked)} | {shown} |"


def main() -> None:
    """Print a table of tokenizers; ends with 1 if one is cut otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizers", nargs="+", type=Path)
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    rows = [compare(folder, options.text) for folder in options.tokenizers]
    terminal.result("| tokenizer | the same tokens | the shortest that is not |\n|---|---|---|")
    terminal.result("\n".join(rows))
    same = f"| {_NUM_STRINGS} of {_NUM_STRINGS} |"
    sys.exit(any(same not in row and "refused" not in row for row in rows))


if __name__ == "__main__":
    main()
