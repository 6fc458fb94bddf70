"""Real files through real tokenizers: our ids and marks against those found another way.

    python benchmarks/real_data.py DATA_FOLDER TOKENIZER_FOLDER…

Every data file of the folder goes through every tokenizer, with its own chat template and, beside it, with
formats of known models. Of each row the ids must be those that transformers gives the rendered text, and what
is trained on must be one run of tokens that decodes to the answer and its end.
One process and two must give the same arrays. A format that cannot be masked exactly with a tokenizer is
refused, and shown as that. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llamafarm import terminal
from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding import processes
from llamafarm.data.encoding.block import BlockEncoder, EncodedBlock
from llamafarm.data.encoding.processes import encode_file
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.data.reading.files import data_files
from llamafarm.data.reading.records import DataReader, ReadOptions, read_data_file
from llamafarm.data.selection.near_duplicates import group_near_duplicates
from llamafarm.data.selection.quality import RULES, first_broken_rules
from llamafarm.data.selection.traces import TracesWanted, first_of_repeats
from llamafarm.errors import TemplateError
from llamafarm.model.load import Base, load_tokenizer
from llamafarm.model.prompt import build_template
from llamafarm.strategy.schema import Dataset
from llamafarm.training.preparation.rows import encoding_of

_FORMATS = {
    "guide": "Question: {input}\nAnswer: {output}",
    "brackets": "[INST] {instruction} [/INST] {output}",
    "lines": "Question: {input}\nAnswer:\n{output}",
    "headers": "### Instruction:\n{instruction}\n\n### Response:\n{output}",
}
_OPTIONS = ReadOptions(filter_empty=True, skips_bad_rows=True)


def templates_of(tokenizer: Any) -> Iterator[tuple[str, ChatTemplate]]:
    """Yield the templates that a tokenizer is tried with, by their names."""
    for name, prompt_format in _FORMATS.items():
        yield name, build_template(tokenizer, prompt_format, None)[0]
    if tokenizer.chat_template:
        yield "its own", build_template(tokenizer, None, None)[0]


def find_differences(file: Path, tokenizer: Any, template: ChatTemplate) -> tuple[int, int, float, list[str]]:
    """Return rows, tokens, seconds of one process, and what differs."""
    encoding = encoding_of(tokenizer, template, Dataset(), None)
    wanted = TracesWanted(True, True, True)
    started = time.perf_counter()
    one = _encode(file, BlockEncoder(_OPTIONS, encoding, wanted), 1)
    seconds = time.perf_counter() - started
    two = _encode(file, BlockEncoder(_OPTIONS, encoding, wanted), 2)
    wrong = [
        f"{name} differs between one process and two"
        for name in one
        if not np.array_equal(one[name], two[name])
    ]
    rows = EncodedBlock.of_columns(one).rows()
    for conversation, row in zip(read_data_file(file, _OPTIONS).conversations, rows, strict=True):
        text = template.render(conversation.messages, tools=conversation.tools)
        theirs = tokenizer(text, add_special_tokens=False)
        if row.token_ids_T.tolist() != theirs["input_ids"]:
            wrong.append(f"row {row.row_number}: other ids")
        elif not _is_answer(row, text, conversation, template, tokenizer):
            wrong.append(f"row {row.row_number}: other marks")
    return len(rows), rows.num_tokens, seconds, wrong


def _encode(file: Path, encoder: BlockEncoder, num_processes: int) -> dict[str, Any]:
    blocks = [block.columns() for block in encode_file(DataReader(file, _OPTIONS), encoder, num_processes)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _is_answer(
    row: EncodedRow, text: str, conversation: Conversation, template: ChatTemplate, tokenizer: Any
) -> bool:
    """Return whether what is trained on is one run of tokens that decodes to the answer and its end.

    Both are decoded, since some tokenizers drop characters that they do not know.
    """
    prompt = template.render(conversation.messages[:-1], add_generation_prompt=True, tools=conversation.tools)
    end = text.rindex(template.end_of_turn) + len(template.end_of_turn)
    places = np.flatnonzero(row.is_supervised_T)
    trained = row.token_ids_T[places[0] : places[-1] + 1].tolist()
    expected = tokenizer(text[len(prompt) : end], add_special_tokens=False)["input_ids"]
    found, wanted = (
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()
        for ids in (trained, expected)
    )
    return len(trained) == len(places) and bool(found == wanted)


def describe_file(file: Path) -> str:
    """Return the repeats and the rows of bad quality of a file."""
    from llamafarm.data.selection.corpus import trace_rows

    reader = DataReader(file, _OPTIONS)
    with trace_rows(reader, TracesWanted(of_quality=True, of_near_duplicates=True)) as traces:
        number = len(traces)
        repeats = int((first_of_repeats(traces.keys_N2) < np.arange(number)).sum())
        started = time.perf_counter()
        groups = group_near_duplicates([traces.shingled], [np.arange(number)], 0.85)
        seconds = time.perf_counter() - started
        near = sum(first < place for place, first in enumerate(groups))
        broken = first_broken_rules(traces.quality_N)
        rules = ", ".join(
            f"{(broken == place).sum()} {rule.name}"
            for place, rule in enumerate(RULES)
            if (broken == place).any()
        )
    num_left_out = reader.num_bad_rows + reader.num_empty_rows
    return (
        f"{number} rows of the form {reader.format_name}, {num_left_out} left out; "
        f"{repeats} repeats, {near} near-duplicates (grouped in {seconds:.2f} s), {rules or 'no rule broken'}"
    )


def main() -> None:
    """Compare everything, and print a line for each file with each tokenizer and template."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizers", type=Path, nargs="+")
    options = parser.parse_args()
    processes._LEAST_BYTES_FOR_PROCESSES = 0
    num_wrong = 0
    for file in data_files(options.data):
        terminal.result(f"{file.name}: {describe_file(file)}")
        for folder in options.tokenizers:
            tokenizer = load_tokenizer(Base(folder.name, str(folder)))
            for name, template in templates_of(tokenizer):
                try:
                    num_rows, num_tokens, seconds, wrong = find_differences(file, tokenizer, template)
                except TemplateError as error:  # not exact with this tokenizer, and said so
                    terminal.result(f"  {folder.name}, {name}: refused, {error.problem}")
                    continue
                num_wrong += len(wrong)
                terminal.result(
                    f"  {folder.name}, {name}: {num_rows} rows, {num_tokens / seconds:,.0f} tokens/s, "
                    f"{len(wrong)} differ {'; '.join(wrong[:3])}".rstrip()
                )
    sys.exit(1 if num_wrong else 0)


if __name__ == "__main__":
    main()
