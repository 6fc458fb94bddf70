"""How fast rows become tokens, beside `datasets.map` with the same tokenizer; and what a large file takes.

    python benchmarks/encoding_speed.py [--rows N] [--model FOLDER] [--text FILE] [--peer-python PYTHON]
    python benchmarks/encoding_speed.py --whole [--rows N]

Chat rows of about 1 KB are generated, all different, from the words of `--text` (a JSONL file), else from
made-up ones. The first form takes turns with `datasets.map` (batched, as many processes, the chat template
and the tokenizer; `--peer-python` has `datasets` and `transformers`) and compares medians. Our time is from
raw lines to marked tokens: parsed, checked, hashed, rendered, tokenized, with what is trained on. Theirs is
that of `map` alone, with the rows parsed before.

The second form runs `data inspect` and `train --max-steps 5` on the file as a person would, the latter twice,
and prints the time to the first step and the largest memory of the process, its model's included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llamafarm import terminal

_PEER = """
import sys, time
from datasets import load_dataset
from transformers import AutoTokenizer
path, model, processes, cache = sys.argv[1:5]
tokenizer = AutoTokenizer.from_pretrained(model)
rows = load_dataset("json", data_files=path, split="train", cache_dir=cache)
def encode(batch):
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for question, answer in zip(batch["instruction"], batch["output"])
    ]
    return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}
started = time.perf_counter()
done = rows.map(encode, batched=True, num_proc=int(processes), remove_columns=rows.column_names)
seconds = time.perf_counter() - started
import pyarrow.compute as compute
print(compute.sum(compute.list_value_length(done.data.column("input_ids"))).as_py(), seconds)
"""
_MIB = 2**20


def sentences_of(text: Path | None) -> list[str]:
    """Return sentences to make rows from."""
    if text is None:
        draw = random.Random(7)
        letters = "etaoinshrdlucmfwypvbgk"
        words = [
            "".join(draw.choices(letters, range(22, 0, -1), k=draw.randint(2, 9))) for _ in range(20_000)
        ]
        return [
            " ".join(draw.choices(words, k=draw.randint(6, 20))).capitalize() + "." for _ in range(20_000)
        ]
    rows = [json.loads(line) for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    return [found for value in texts for found in re.split(r"(?<=[.!?])\s+", value) if 10 < len(found) < 300]


def generate_rows(num_rows: int, sentences: list[str]) -> Iterator[str]:
    """Yield rows as lines of JSON, each of about 1 KB and none like another."""
    draw = random.Random(1)
    for number in range(num_rows):
        question = f"Case {number}: {' '.join(draw.sample(sentences, 2))}"[:250]
        answer = " ".join(draw.sample(sentences, 10))[:1060]
        yield json.dumps({"instruction": question, "input": "", "output": answer}, ensure_ascii=False)


def time_ours(file: Path, model: str | None, num_processes: int) -> tuple[int, float]:
    """Return the tokens of a file and the seconds that they took."""
    from llamafarm.data.encoding.block import BlockEncoder
    from llamafarm.data.encoding.processes import encode_file
    from llamafarm.data.reading.records import DataReader
    from llamafarm.data.selection.traces import TracesWanted
    from llamafarm.model.load import find_base, load_tokenizer
    from llamafarm.model.prompt import build_template
    from llamafarm.strategy.schema import Dataset
    from llamafarm.training.preparation.rows import encoding_of

    tokenizer = load_tokenizer(find_base(model))
    template, _ = build_template(tokenizer, None, None)
    reader = DataReader(file)
    started = time.perf_counter()
    encoder = BlockEncoder(reader.options, encoding_of(tokenizer, template, Dataset(), None), TracesWanted())
    num_tokens = sum(len(block.marked_ids_T) for block in encode_file(reader, encoder, num_processes))
    return num_tokens, time.perf_counter() - started


def time_peer(python: str, file: Path, model: str, num_processes: int) -> tuple[int, float]:
    """Return the same of `datasets.map`."""
    with tempfile.TemporaryDirectory() as cache:
        found = subprocess.run(  # noqa: S603 - the user's own Python
            [python, "-c", _PEER, str(file), model, str(num_processes), cache],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    num_tokens, seconds = found.stdout.split()[-2:]
    return int(num_tokens), float(seconds)


def compare(file: Path, options: argparse.Namespace) -> None:
    """Take turns, and print every time and the ratio of the medians."""
    from llamafarm.model.load import find_base

    model = find_base(options.model).source
    speeds: dict[str, list[float]] = {"ours": [], "datasets.map": []}
    for _ in range(options.rounds):
        num_tokens, seconds = time_ours(file, options.model, options.processes)
        speeds["ours"].append(num_tokens / seconds)
        if options.peer_python:
            of_peer, seconds = time_peer(options.peer_python, file, model, options.processes)
            assert of_peer == num_tokens, (of_peer, num_tokens)
            speeds["datasets.map"].append(of_peer / seconds)
    for who, found in speeds.items():
        if found:
            shown = ", ".join(f"{speed:,.0f}" for speed in found)
            terminal.result(f"{who}: {statistics.median(found):,.0f} tokens/s ({shown})")
    if options.peer_python:
        ours, theirs = (statistics.median(found) for found in speeds.values())
        terminal.result(f"ratio: {ours / theirs:.2f}")


def run_whole(file: Path, folder: Path) -> None:
    """Run the commands, each in a process of its own, and print what they took."""
    strategy = folder / "strategy.yaml"
    strategy.write_text(
        "strategies:\n  large:\n    dataset:\n"
        f"      train_file: {file}\n"
        "    training_args: {max_steps: 5, output_dir: OUTPUT}\n".replace("OUTPUT", str(folder / "run"))
    )
    cli = [sys.executable, str(Path(__file__).parents[1] / "cli.py")]
    train = [*cli, "train", "--strategy-file", str(strategy), "--strategy", "large", "--overwrite"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    for name, command in (
        ("data inspect", [*cli, "data", "inspect", str(file)]),
        ("train, cold", train),
        ("train, again", train),
    ):
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        first_step = None
        said = []
        for line in process.stderr:
            said.append(line.decode())
            if first_step is None and said[-1].startswith("training 1/"):
                first_step = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{name} failed:\n{''.join(said)}")
        seconds = time.perf_counter() - started
        shown = f"{first_step:.1f} s to the first step, " if first_step is not None else ""
        terminal.result(
            f"{name}: {shown}{seconds:.1f} s in all, {_peak_bytes(usage) / _MIB:,.0f} MiB at the peak"
        )


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Generate the file and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int)
    parser.add_argument("--model", help="Folder with a tokenizer and its chat template.")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python")
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    num_rows = options.rows or (1_000_000 if options.whole else 100_000)
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{row}\n" for row in generate_rows(num_rows, sentences_of(options.text)))
        terminal.result(f"{num_rows:,} rows, {file.stat().st_size / _MIB:,.0f} MiB")
        if options.whole:
            run_whole(file, Path(made))
        else:
            compare(file, options)


if __name__ == "__main__":
    main()
