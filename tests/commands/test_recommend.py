"""`recommend` as it is typed: facts from files and options, the strategy on stdout or in a file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

import llamafarm
from llamafarm.commands.facts import find_examples, find_machine, find_model
from llamafarm.errors import DataError, InputError
from llamafarm.hardware.machine import Gpu, Machine
from llamafarm.strategy.load import load_strategy

CPU = ("--device", "cpu", "--memory-gb", "16")  # described, so that torch is not asked
EMBEDDED = Path(llamafarm.__file__).parent / "assets" / "cria-5m"
ROWS = [{"question": f"What is {number}?", "answer": "A number. " * 8} for number in range(40)]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    from llamafarm import terminal
    from llamafarm.cli import main

    monkeypatch.setattr(terminal, "mode", terminal.Mode())

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Said(int(left.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_strategy_is_printed_alone_on_stdout_and_loads(
    speak: Callable[..., Said], data_file: Path, tmp_path: Path
) -> None:
    said = speak("recommend", "--dataset", str(data_file), "--model", "3B", *CPU)
    assert said.code == 0, said.err
    (tmp_path / "printed.yaml").write_text(said.out)
    strategy = load_strategy("recommended", file=tmp_path / "printed.yaml").strategy
    assert strategy.dataset.train_file == str(data_file)
    assert str(strategy.training_args.num_train_epochs) == "5-10"  # 40 examples
    assert "# examples: 40 in" in said.out
    assert "warning: no base model was named" in said.err


def test_a_file_is_written_once(speak: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "strategies.yaml"
    words = ("recommend", "--num-examples", "500", "--model", "cria-5m", *CPU, "--output", str(file))
    assert speak(*words).out == f"{file}\n"
    assert load_strategy("recommended", file=file).strategy.base_model.huggingface_id == "cria-5m"
    written = file.read_text()
    assert f"--strategy recommended --strategy-file {file}" in written
    again = speak(*words, "--use-case", "quick")
    assert again.code == 2
    assert "--overwrite" in again.err
    assert file.read_text() == written
    assert speak(*words, "--use-case", "quick", "--overwrite").code == 0
    assert file.read_text() != written


def test_json_has_the_values_their_rules_and_the_text(speak: Callable[..., Said]) -> None:
    said = speak("recommend", "--model", "7B", "--device", "cuda", "--memory-gb", "8", "--json")
    assert (said.code, said.err) == (0, "")
    record = json.loads(said.out)
    assert set(record) == {"facts", "sources", "recommendations", "doubts", "file", "text"}
    by_path = {one["path"]: one for one in record["recommendations"]}
    assert by_path["method.type"]["value"] == "qlora"
    assert by_path["method.type"]["rule"].startswith("guide, Minimum Requirements by Model Size")
    assert record["facts"]["num_parameters"] == 7e9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "owner/nameless"), "its size instead"),
        (("--model", "owner/some/model-3B"), "there is no model folder"),
        (("--model", "./gone/"), "there is no model folder"),
        (("--dataset", "gone.jsonl"), "gone.jsonl"),
        (("--dataset", "gone.jsonl", "--num-examples", "3"), "Give either the file or the figures"),
        (("--num-examples", "0"), "--num-examples"),
        (("--use-case", "party"), "--use-case"),
    ],
)
def test_what_cannot_be_gone_by_is_refused(
    speak: Callable[..., Said], options: tuple[str, ...], words: str
) -> None:
    said = speak("recommend", *CPU, *options)
    assert (said.code, said.out) == (2, "")
    assert words in said.err


GIB = 2**30
PLAIN = Machine("Linux", "x86_64", "Some CPU", 8, frozenset(), 32 * GIB, 20 * GIB)
RTX_3090 = Gpu("cuda", "NVIDIA GeForce RTX 3090", 24 * GIB, 20 * GIB, (8, 6), has_bf16=True)
M1 = Gpu("mps", "Apple M1", 10 * GIB, 8 * GIB)


def test_the_device_is_that_of_the_machine() -> None:
    gpu = find_machine("auto", None, replace(PLAIN, gpus=(RTX_3090,)))
    assert gpu[:4] == ("cuda", "NVIDIA GeForce RTX 3090", 24, True)
    chip = find_machine("mps", None, replace(PLAIN, memory_bytes=16 * GIB, gpus=(M1,)))
    assert chip[:4] == ("mps", "Apple M1", 16, False)  # the shared memory, by which the guide lists it
    assert find_machine("auto", None, PLAIN)[:4] == ("cpu", "CPU", 32, None)
    assert find_machine("auto", 16, PLAIN).source == "CPU, 16 GB, as given"


def test_a_device_that_is_not_there_is_described_by_its_memory() -> None:
    with pytest.raises(InputError, match="no mps device"):
        find_machine("mps", None, PLAIN)
    assert find_machine("mps", 16, PLAIN)[:3] == ("mps", "", 16)
    assert find_machine("rocm", 16, PLAIN).kind == "cuda"


def test_a_model_on_this_machine_is_counted(tmp_path: Path) -> None:
    # Two bytes each, after a header that names them.
    num_header_bytes = (EMBEDDED / "model.safetensors").stat().st_size - 2 * find_model(None).num_parameters
    assert 0 < num_header_bytes < 20_000
    assert (find_model(None).name, find_model(None).folder) == ("cria-5m", EMBEDDED)
    folder = tmp_path / "mine-2B"  # the name is wrong, and the weights are in two files
    folder.mkdir()
    for number in (1, 2):
        save_file({"weight": np.zeros((number, 7), np.float32)}, folder / f"{number}.safetensors")
    assert find_model(str(folder)).num_parameters == 21


def test_weights_that_cannot_be_read_leave_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "mine-2B"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"not weights")
    found = find_model(str(folder))
    assert found.num_parameters == 2e9
    assert found.source.endswith("by its name")


def test_lengths_are_counted_by_the_models_tokenizer_where_it_is_here(
    data_file: Path, tmp_path: Path
) -> None:
    texts = [f"{row['question']}\n{row['answer']}".rstrip() for row in ROWS]
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    counted = find_examples(data_file, None, None, EMBEDDED)
    assert (counted.num_examples, counted.longest_tokens) == (
        40,
        max(len(tokenizer.encode(text).ids) for text in texts),
    )
    guessed = find_examples(data_file, None, None, tmp_path)
    assert guessed.longest_tokens == math.ceil(max(map(len, texts)) / 4)
    assert "characters / 4" in guessed.source
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer"):
        find_examples(data_file, None, None, tmp_path)
