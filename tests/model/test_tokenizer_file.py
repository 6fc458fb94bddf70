"""A tokenizer.json as an attack: refused before its loader opens it, and those in use are not."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import ending_within
from tokenizers import Tokenizer

from llamafarm.data.encoding.patterns import GPT2, GPT4O, LLAMA3, QWEN2, TEKKEN
from llamafarm.data.encoding.tokenization import CutText
from llamafarm.errors import ModelError
from llamafarm.model import files
from llamafarm.model.load import find_base, load_tokenizer, text_encoder, tokenize_with
from llamafarm.model.tokenizer_file import check_tokenizer

Tree = dict[str, Any]


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """What takes for ever fails."""
    with ending_within(60):
        yield


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be spoilt."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change(base: Path, **parts: Any) -> None:
    file = base / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def split(pattern: str) -> Tree:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(content: str, **pattern: str) -> Tree:
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


def sequence(steps: list[Tree], name: str = "normalizers") -> Tree:
    return {"type": "Sequence", name: steps}


def map_of(content: bytes) -> Tree:
    return {"type": "Precompiled", "precompiled_charsmap": b64encode(content).decode()}


def padding(**changes: Any) -> Tree:
    of_nothing = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    return {**of_nothing, "pad_id": 0, "pad_type_id": 0, "pad_token": "x", **changes}


# Each group is compiled anew wherever it is called: 2 ** 40 times.
DOUBLING = "".join(rf"(?<g{n}>\g<g{n + 1}>\g<g{n + 1}>){{0}}" for n in range(40)) + r"(?<g40>a){0}\g<g0>"
HOSTILE: dict[str, Tree] = {
    "groups that call groups": {"pre_tokenizer": split(DOUBLING)},
    "groups that call groups in a normalizer": {"normalizer": replace("b", Regex=DOUBLING)},
    "groups that call groups inside": {"pre_tokenizer": sequence([split(DOUBLING)], "pretokenizers")},
    "a pattern of a megabyte": {"pre_tokenizer": split("a|" * 2**19 + "a")},
    "patterns without end": {"pre_tokenizer": sequence([split("a")] * 10_000, "pretokenizers")},
    "a text that is replaced by a megabyte": {"normalizer": replace("b" * 2**20)},
    "a text that grows step by step": {"normalizer": sequence([replace("aaaaaaaaaa")] * 9)},
    "nothing that is replaced by much": {"normalizer": sequence([replace("aaaaaaaaaa", Regex="")] * 9)},
    "bytes of bytes of bytes": {"normalizer": sequence([{"type": "ByteLevel"}] * 40)},
    "beginnings that grow": {"normalizer": sequence([{"type": "Prepend", "prepend": "a" * 999}] * 9)},
    "answers that grow": {"decoder": sequence([replace("aaaaaaaaaa")] * 9, "decoders")},
    "a map beyond its end": {"normalizer": map_of(b"\xff\xff\xff\xff")},
    "a map to a megabyte": {"normalizer": map_of(bytes(4) + b"a" * 2**20 + b"\0")},
    "padding to a terabyte": {"padding": padding(strategy={"Fixed": 2**40})},
    "padding to a multiple of a terabyte": {"padding": padding(pad_to_multiple_of=2**40)},
}  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_tokenizer_is_refused_before_it_is_loaded(
    base: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(base, **HOSTILE[attack])
    monkeypatch.setattr("llamafarm.model.load.AutoTokenizer", None)
    with pytest.raises(ModelError, match=r"is not loaded: tokenizer\.json") as caught:
        load_tokenizer(find_base(str(base)))
    assert len(caught.value.problem) < 300


def test_a_tokenizer_for_another_version_of_the_loader_is_looked_at(base: Path) -> None:
    before = (base / "tokenizer.json").read_text()
    change(base, **HOSTILE["groups that call groups"])
    (base / "tokenizer.json").rename(base / "tokenizer.4.0.json")
    (base / "tokenizer.json").write_text(before)
    with pytest.raises(ModelError, match=r"tokenizer\.4\.0\.json"):
        load_tokenizer(find_base(str(base)))


def test_a_tokenizer_that_is_too_large_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_BYTES", 2000)
    with pytest.raises(ModelError, match="larger than"):
        check_tokenizer(base)


# A row of Unicode's compatibility characters, the longest of them.
MAP = map_of((8).to_bytes(4, "little") + bytes(8) + "صلى الله عليه وسلم\0".encode())
TO_QUOTES = [replace('"', String="``"), replace('"', String="''"), {"type": "NFKD"}]
DIGITS = r"\p{Nd}{1,510}(?=(?>\p{Nd}{510})*(?:\P{Nd}|$))|\G\p{Nd}{3}"
MARKED = [{"type": "Prepend", "prepend": "▁"}, replace("▁", String=" ")]
PATTERNS = {
    "gpt2": GPT2,
    "gpt4o": GPT4O,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
    "tekken": TEKKEN,
    "digits": DIGITS,
}
IN_USE: dict[str, Tree] = {
    **{name: {"pre_tokenizer": split(pattern)} for name, pattern in PATTERNS.items()},
    "a mark for a blank": {"normalizer": sequence(MARKED)},
    "a map and blanks in one": {"normalizer": sequence([*TO_QUOTES, MAP, replace("▁", Regex=" {2,}")])},
    "no map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": None}},
    "padding": {"padding": padding(strategy={"Fixed": 512}, pad_to_multiple_of=8)},
    "none of them": {"normalizer": None, "pre_tokenizer": None, "decoder": None, "post_processor": None},
    "parts that are none": {"normalizer": [], "pre_tokenizer": 3, "padding": "x"},
}


@pytest.mark.parametrize("name", IN_USE)
def test_what_is_in_use_is_not_refused(base: Path, name: str) -> None:
    change(base, **IN_USE[name])
    check_tokenizer(base)


@pytest.mark.parametrize("pattern", ["a{1000000}", "(" * 4500 + "a" + ")" * 4500, "("])
def test_what_the_loader_refuses_of_a_pattern_is_said(base: Path, pattern: str) -> None:
    change(base, pre_tokenizer=split(pattern))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(find_base(str(base)))


def test_a_pattern_that_is_given_up_is_an_error_of_ours(base: Path) -> None:
    change(base, pre_tokenizer=split("(a+)+c"))
    text = "a" * 60
    tokenizer = load_tokenizer(find_base(str(base)))
    with pytest.raises(ModelError, match="the tokenizer breaks down"):
        text_encoder(tokenizer).encode([CutText(text)])
    with pytest.raises(ModelError, match="the tokenizer breaks down"):
        tokenize_with(tokenizer)([text])


def test_counts_of_counts_cost_nothing(base: Path) -> None:
    change(base, pre_tokenizer=split(r"((\p{L}{1000}){1000}){1000}"))
    assert Tokenizer.from_file(str(base / "tokenizer.json")).encode("a" * 5000).ids
