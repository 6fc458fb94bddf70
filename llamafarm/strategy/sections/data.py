"""What is learnt from and in which form: `dataset`, `data_preprocessing`, `prompt_template`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from llamafarm.strategy.sections.base import AtLeastOne, NotNegativeInt, Section, TextList

FindingName = Literal[
    "no_supervised_tokens", "answer_without_end", "untrained_control_tokens", "few_supervised_tokens"
]
"""What the gate before the first step may find."""

ColumnName = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """Which column of a data file holds what, for files whose columns have other names."""

    instruction: ColumnName | None = None
    """Column with the question or task. Unset: as in the known forms of rows."""
    input: ColumnName | None = None
    """Column with the text that the task is about. Unset: as in the known forms of rows."""
    output: ColumnName | None = None
    """Column with the answer. Unset: as in the known forms of rows."""
    system: ColumnName | None = None
    """Column with the system message. Unset: as in the known forms of rows."""
    messages: ColumnName | None = None
    """Column with a list of turns. Unset: as in the known forms of rows."""
    text: ColumnName | None = None
    """Column with plain text, all of which is trained on. Unset: as in the known forms of rows."""


class WeightedFile(BaseModel):
    """One of several files of training rows: a weight of 2 takes each twice in an epoch, 0.5 half of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: str
    weight: float = 1.0

    def __str__(self) -> str:
        """Return it as it is shown: the file, with its weight unless that is 1."""
        return self.file if self.weight == 1 else f"{self.file} (weight {self.weight:g})"


def _read_files(value: Any) -> str | tuple[WeightedFile, ...]:
    """Read a path or a list of them; one validator and not a union, so that a fault is reported once."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple) and value:
        return tuple(map(_read_file, value))
    raise PydanticCustomError("files", "must be a path, or a list of paths")


def _read_file(value: Any) -> WeightedFile:
    if isinstance(value, WeightedFile):
        return value
    if isinstance(value, str) and value:
        return WeightedFile(file=value)
    if isinstance(value, dict) and value.keys() <= {"file", "weight"} and value.get("file"):
        file, weight = value["file"], value.get("weight", 1.0)
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if isinstance(file, str) and is_number and 0 < weight <= _LARGEST_WEIGHT:
            return WeightedFile(file=file, weight=float(weight))
    raise PydanticCustomError(
        "files",
        "must have paths, or {file: path, weight: number} with a weight above 0 and up to {most}, as its "
        "entries",
        {"most": _LARGEST_WEIGHT},
    )


def _write_files(value: str | tuple[WeightedFile, ...]) -> str | list[dict[str, Any]]:
    return value if isinstance(value, str) else [each.model_dump() for each in value]


_LARGEST_WEIGHT = 1000
_WEIGHTED_SCHEMA = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "minLength": 1},
        "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": _LARGEST_WEIGHT},
    },
    "required": ["file"],
    "additionalProperties": False,
}
TrainFiles = Annotated[
    str | tuple[WeightedFile, ...],
    PlainValidator(_read_files),
    PlainSerializer(_write_files),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"anyOf": [{"type": "string", "minLength": 1}, _WEIGHTED_SCHEMA]},
                },
            ]
        }
    ),
]
"""A path, or several with their weights."""


class Dataset(Section):
    """The files of examples."""

    train_file: TrainFiles | None = None
    """File or folder with the training rows, relative to the working directory or to the strategy file, or
    the id of a data set on the Hugging Face Hub, as `owner/name`. A list takes the rows of all its entries;
    an entry `{file: path, weight: 2}` takes its rows twice in each epoch, with 0.5 half of them."""
    eval_file: str | None = Field(default=None, min_length=1)
    """File with the evaluation rows. Unset: `eval_split` says how many rows to take from `train_file`."""
    eval_split: float | None = Field(default=None, gt=0, lt=1)
    """Part of the training rows set aside for evaluation, never trained on. Not used when there is an
    `eval_file`. 0.1 is usual, 0.05 for very few rows."""
    format: Literal[
        "auto", "messages", "sharegpt", "alpaca", "prompt-completion", "question-answer", "text"
    ] = "auto"
    """Shape of the rows. `auto` tells it from their keys, and is an error where that is not clear."""
    columns: Columns = Columns()
    """Names of the columns, where they are none of the known ones."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read stops everything, or is left out, counted and listed."""
    train_on: Literal["all", "last"] = "all"
    """Which answers of a conversation are trained on: all of the assistant's turns, or the last one only."""
    train_on_prompt: bool = False
    """Train on every token of a row instead of the answers alone. Seldom better, and never for few rows."""
    when_too_long: Literal["drop", "truncate_prompt", "split", "error"] = "drop"
    """What happens to a row above a limit of `data_preprocessing`: left out and counted, its prompt shortened
    from its beginning while the answer stays whole, its turns spread over several rows, or an error."""
    allow: Annotated[tuple[FindingName, ...], Field(strict=False)] = ()
    """Findings of the check of the rows before the first step that are accepted, by their names."""
    shuffle: bool = True
    """Shuffle the rows before `eval_split` sets some aside. False takes the last rows of the file."""
    seed: NotNegativeInt = 42
    """Seed of that shuffle; apart from `environment.seed`, so that another seed in training is measured on
    the same evaluation rows."""


class DataPreprocessing(Section):
    """What happens to rows before training."""

    max_length: AtLeastOne | None = None
    """Most tokens in a row, prompt and answer together. Memory and time grow with it. Unset: the base model's
    context length. A file may also write it as `training_args.max_length`."""
    max_input_length: AtLeastOne | None = None
    """Most tokens in a row's prompt. Unset: no limit of its own."""
    max_output_length: AtLeastOne | None = None
    """Most tokens in a row's answer, its end token included. Unset: no limit of its own."""
    remove_duplicates: bool = False
    """Keep only the first of rows with the same content, also across the training and evaluation files."""
    filter_quality: bool = False
    """Leave out rows whose answer is cut off, repeats itself or repeats the question; each is reported."""
    remove_near_duplicates: bool = False
    """Keep only the first of rows that are nearly the same, found by MinHash over their words."""
    near_duplicate_threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.85
    """How alike rows are that count as nearly the same: which part of their runs of words they share."""
    filter_empty: bool = False
    """Leave out rows whose question or answer is empty; they are counted. False makes such a row an error."""
    shuffle: bool = True
    """Give the training rows a new order in each epoch. False keeps that of the file."""
    seed: NotNegativeInt | None = None
    """Seed of that order. Unset: `environment.seed`."""
    cache_dir: str | None = Field(default=None, min_length=1)
    """Folder in which large files are kept encoded, for later runs. Unset: `llamafarm/tokens` in the user's
    cache folder; what nobody has used for a month is removed from it."""


PLACEHOLDERS = ("system", "instruction", "input", "output")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class PromptTemplate(Section):
    """The text around question and answer: the same in training, in use and in every export."""

    system: str | None = None
    """System message before the question: `{system}` in `format`, or the chat template's system turn."""
    format: str | None = None
    """One example as text, with `{input}` or `{instruction}`, `{output}` exactly once, and `{system}` if
    wanted. Unset: the base model's own chat template."""
    stop_sequences: TextList = ()
    """Texts at which an answer ends when generating, beside the model's own end token."""

    @field_validator("format")
    @classmethod
    def _placeholders_fit(cls, value: str | None) -> str | None:
        if value is None:
            return None
        found = _PLACEHOLDER.findall(value)
        for name in found:
            if name not in PLACEHOLDERS:
                raise PydanticCustomError(
                    "placeholder",
                    "has the placeholder {name}, and only {known} are known",
                    {"name": f"{{{name}}}", "known": ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)},
                )
        if found.count("output") != 1:
            raise PydanticCustomError(
                "placeholder",
                "must have {name} exactly once (it has it {count} times)",
                {"name": "{output}", "count": found.count("output")},
            )
        if "input" not in found and "instruction" not in found:
            raise PydanticCustomError(
                "placeholder", "must have {names}", {"names": "{input} or {instruction}"}
            )
        return value

    @field_validator("stop_sequences")
    @classmethod
    def _stops_not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise PydanticCustomError("empty_stop", "has an empty text, at which every answer would end")
        return value
