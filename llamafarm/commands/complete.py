"""`complete`: answer a prompt, or a file of them, with the trained model, with its base, or with both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.asking import (
    Asked,
    AskedModel,
    MaxTokens,
    RepetitionPenalty,
    Seed,
    System,
    Temperature,
    TopK,
    TopP,
    UsesBase,
    open_asked,
    with_options,
)
from llamafarm.commands.options import (
    PrintsJson,
    Settings,
    StrategyFile,
    StrategyName,
    set_mode,
)
from llamafarm.commands.prompts import Question, columns_of, question_of, read_questions
from llamafarm.errors import DataError, InputError, OutputError
from llamafarm.strict_json import to_json

if TYPE_CHECKING:
    from llamafarm.inference.generate import Answer, GenerationSettings

Compares = Annotated[bool, typer.Option("--compare", help="Ask the base model too, before the trained one.")]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="PROMPTS",
        help="Answer every prompt of a file: a .txt with one a line, or any data file, whose answers are "
        'left aside; JSONL rows of {"prompt": "…"} will do. Answers come as JSONL.',
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the answers of --file there, and not to stdout.")
]


@dataclass(frozen=True, slots=True)
class _Job:
    """Who is asked, and how."""

    asked: Asked
    settings: GenerationSettings
    seed: int | None
    compares: bool

    @property
    def base(self) -> Any:
        """Return the context in which the base answers."""
        assert self.asked.base is not None
        return self.asked.base()


def complete(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to ask; `-` reads it from stdin. Left out where --file has the prompts."),
    ] = None,
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    model: AskedModel = None,
    uses_base: UsesBase = False,
    compares: Compares = False,
    prompts_file: PromptsFile = None,
    output: Output = None,
    system: System = None,
    max_new_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    settings: Settings = None,
    prints_json: PrintsJson = False,
) -> None:
    """Answer a prompt, or a file of them, with the trained model, with its base, or with both.

    Ctrl-C ends an answer: what has come of it is kept. Of a file, the prompts answered by then are written.
    """
    set_mode(prints_json=prints_json)
    _check_options(
        prompt, prompts_file, output, uses_base=uses_base, compares=compares, prints_json=prints_json
    )
    if prompts_file is not None:
        columns = columns_of(strategy, strategy_file, settings) if model is None else {}
        questions = list(read_questions(prompts_file, system, columns))
        if not questions:
            raise DataError("the file has no prompts", where=str(prompts_file), remedy="Write one on a line.")
    else:
        questions = [question_of(prompt or "", system)]
    asked = open_asked(model, strategy, strategy_file, settings, uses_base=uses_base, is_compared=compares)
    named = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
    }
    job = _Job(asked, with_options(asked.settings, named), seed, compares)
    try:
        if prompts_file is not None:
            _answer_file(job, questions, prompts_file, output)
        elif compares:
            _compare(job, questions[0])
        else:
            _answer(job, questions[0])
    finally:
        asked.close()


def _check_options(
    prompt: str | None,
    prompts_file: Path | None,
    output: Path | None,
    *,
    uses_base: bool,
    compares: bool,
    prints_json: bool,
) -> None:
    """Raise `InputError` for options that say nothing together."""
    has_file, has_output = prompts_file is not None, output is not None
    one_of_two = 'Give one of the two: complete "…", or complete --file prompts.txt.'
    for is_wrong, problem, where, remedy in (
        (prompt is None and not has_file, "there is no prompt", "complete", one_of_two),
        (prompt is not None and has_file, "there are a prompt and a file of prompts", "--file", one_of_two),
        (
            uses_base and compares,
            "--base asks the base alone, and --compare both",
            "--base",
            "Leave one out.",
        ),
        (has_output and not has_file, "--output is for the answers of --file", "--output", "Give --file."),
        (
            has_file and prints_json and not has_output,
            "the answers of --file are JSONL on stdout, and --json is one object there",
            "--json",
            "Leave --json out, or write the answers to a file with --output.",
        ),
    ):
        if is_wrong:
            raise InputError(problem, where=where, remedy=remedy)
    if output is None or prompts_file is None:
        return
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise OutputError("no file can be written there", where=str(output), remedy="Choose another place.")
    if output.exists() and prompts_file.exists() and output.samefile(prompts_file):
        raise OutputError(
            "the answers would replace the prompts", where=str(output), remedy="Choose another."
        )


def _answer(job: _Job, question: Question) -> None:
    """Answer one question on stdout."""
    answer = _stream(job, job.asked, question)
    if terminal.mode.prints_json:
        terminal.result_json(
            {"prompt": question.prompt, **_record(job.asked, answer), "base_model": job.asked.base_name}
        )
    if answer.is_interrupted:
        raise KeyboardInterrupt


def _compare(job: _Job, question: Question) -> None:
    """Answer one question twice on stdout, under headings on stderr."""
    record: dict[str, Any] = {"prompt": question.prompt, "base": None, "tuned": None}
    with job.base as base:
        answer = _stream(job, base, question, f"base: {base.name}")
        record["base"] = _record(base, answer)
    if not answer.is_interrupted:
        answer = _stream(job, job.asked, question, f"tuned: {job.asked.name}")
        record["tuned"] = _record(job.asked, answer)
    if terminal.mode.prints_json:
        terminal.result_json(record)
    if answer.is_interrupted:
        raise KeyboardInterrupt


def _stream(job: _Job, asked: Asked, question: Question, heading: str | None = None) -> Answer:
    if terminal.mode.prints_json:
        return asked.stream(question.messages, job.settings, lambda piece: None, job.seed)
    if heading is not None:
        terminal.heading(heading)
    answer = asked.stream(question.messages, job.settings, terminal.result_piece, job.seed)
    terminal.result("")
    if answer.ended_by == "max-new-tokens":
        terminal.warn(f"the answer was cut at {answer.num_tokens} tokens (generation.max_new_tokens)")
    return answer


def _record(asked: Asked, answer: Answer) -> dict[str, Any]:
    return {
        "response": answer.text,
        "model": asked.name,
        "ended_by": answer.ended_by,
        "tokens": answer.num_tokens,
    }


def _answer_file(job: _Job, questions: Sequence[Question], path: Path, output: Path | None) -> None:
    """Answer all questions, and write each part of them when it is answered; a part is written whole."""
    _check_lengths(job.asked, questions)
    num_written = num_cut = 0
    # Ctrl-C may come between two answers as well.
    with (
        suppress(KeyboardInterrupt),
        terminal.progress("answers", len(questions) * (1 + job.compares)) as progress,
    ):
        for start in range(0, len(questions), job.asked.num_together):
            part = questions[start : start + job.asked.num_together]
            answered = _answer_part(job, part, lambda by: progress.advance("answered", by))
            whole = [record for record in answered if record is not None]
            _write(whole, output, is_first=start == 0)
            num_written += len(whole)
            num_cut += sum(record["ended_by"] == "max-new-tokens" for record in whole)
            if len(whole) < len(part):
                break
    if num_cut:
        terminal.warn(f"{num_cut} answers were cut (generation.max_new_tokens)")
    if terminal.mode.prints_json:
        terminal.result_json(
            {"file": path, "prompts": len(questions), "answered": num_written, "output": output}
        )
    elif output is not None:
        terminal.result(str(output))
    if num_written < len(questions):
        terminal.warn(f"{num_written} of {len(questions)} prompts are answered")
        raise KeyboardInterrupt


def _check_lengths(asked: Asked, questions: Sequence[Question]) -> None:
    """Raise `DataError` for a prompt that does not fit, before the first one is answered."""
    if asked.count_tokens is None or asked.context_tokens is None:
        return
    for question in questions:
        if (num_tokens := asked.count_tokens(question.messages)) >= asked.context_tokens:
            raise DataError(
                f"the prompt has {num_tokens} tokens, and the model's context {asked.context_tokens}",
                where=question.where,
                remedy="Shorten it, or leave it out.",
            )


def _answer_part(
    job: _Job, part: Sequence[Question], on_batch: Callable[[int], None]
) -> list[dict[str, Any] | None]:
    """Return what is written of each question; None of one whose answer was interrupted."""
    conversations = [question.messages for question in part]
    beside: list[Answer | None] = [None] * len(part)
    if job.compares:
        with job.base as base:
            beside = list(base.answer_all(conversations, job.settings, job.seed, on_batch))
    if any(answer is not None and answer.is_interrupted for answer in beside):
        return [None] * len(part)
    answers = job.asked.answer_all(conversations, job.settings, job.seed, on_batch)
    return [
        None
        if answer.is_interrupted
        else {
            "prompt": question.prompt,
            "response": answer.text,
            **({} if base_answer is None else {"base_response": base_answer.text}),
            "ended_by": answer.ended_by,
            "tokens": answer.num_tokens,
        }
        for question, answer, base_answer in zip(part, answers, beside, strict=True)
    ]


def _write(records: Sequence[Mapping[str, Any]], output: Path | None, *, is_first: bool) -> None:
    text = "".join(to_json(record) + "\n" for record in records)
    if output is None:
        terminal.result_piece(text)
        return
    try:
        with output.open("w" if is_first else "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(
            f"the answers cannot be written: {error.strerror}", where=str(output), remedy="Make room there."
        ) from error
