"""The rows of a run: read, cleaned, set apart for evaluation, and kept within the lengths that are allowed.

`prepare` asks for them, and has the rest of what is settled before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.encode import EncodedRow, encode_conversations, encode_separately
from llamafarm.data.encoding.fitting import Limits, fit_rows
from llamafarm.data.encoding.template import ChatTemplate, TrainedPart
from llamafarm.data.encoding.tokenization import TextEncoder
from llamafarm.data.reading.records import DataFile, ReadOptions, read_data_file
from llamafarm.data.selection.cleaning import CleaningRules, clean_rows
from llamafarm.data.selection.corpus import SPLIT_THRESHOLD, conversation_key, split_rows
from llamafarm.data.selection.near_duplicates import NearDuplicates, group_near_duplicates
from llamafarm.errors import StrategyError
from llamafarm.strategy.load import LoadedStrategy, resolve_path
from llamafarm.strategy.schema import DataPreprocessing, Dataset, EpochRange, Strategy

# The guide's recommendation where evaluation is asked for and no rows are given for it.
_RECOMMENDED_EVAL_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that was settled for the user: what, to which value, and why."""

    setting: str
    value: str
    why: str


def wants_evaluation(strategy: Strategy) -> bool:
    """Return whether the strategy has a setting that means nothing without evaluation."""
    args = strategy.training_args
    return args.eval_strategy in ("steps", "epoch") or bool(
        args.eval_steps
        or args.load_best_model_at_end
        or args.early_stopping_patience
        or strategy.dataset.eval_file
        or isinstance(args.num_train_epochs, EpochRange)
    )


def read_files(loaded: LoadedStrategy) -> list[DataFile]:
    """Return the training file and, if the strategy names one, the evaluation file."""
    dataset = loaded.strategy.dataset
    if dataset.train_file is None:
        raise StrategyError(
            "the strategy names no training data",
            where=f"{loaded.file or 'preset'}: {loaded.key}",
            remedy="Add dataset.train_file, or pass --train-dataset.",
        )
    paths = [dataset.train_file] + ([dataset.eval_file] if dataset.eval_file else [])
    return [
        read_data_file(
            resolve_path(path, loaded), ReadOptions.of(dataset, loaded.strategy.data_preprocessing)
        )
        for path in paths
    ]


def settle_rows(
    loaded: LoadedStrategy, files: Sequence[DataFile], choices: list[Choice], warnings: list[str]
) -> tuple[list[Conversation], list[Conversation]]:
    """Return the training and the evaluation conversations."""
    dataset, args = loaded.strategy.dataset, loaded.strategy.training_args
    parts = [list(file.conversations) for file in files]
    for file in files:
        warnings += file.warnings()
    parts = _clean(parts, loaded.strategy.data_preprocessing, warnings)
    if len(parts) == 2:
        if dataset.eval_split is not None:
            choices.append(
                Choice("evaluation rows", str(files[1].path), "eval_file, so eval_split is not used")
            )
        _warn_of_leaks(parts, files, warnings)
        return parts[0], parts[1]
    is_wanted = wants_evaluation(loaded.strategy) and args.eval_strategy != "no"
    if dataset.eval_split is None and not is_wanted:
        return parts[0], []
    percent = dataset.eval_split * 100 if dataset.eval_split else _RECOMMENDED_EVAL_PERCENT
    why = "dataset.eval_split" if dataset.eval_split else "evaluation is asked for; the guide recommends 10 %"
    choices.append(Choice("evaluation rows", f"{percent:g} % of the training file", why))
    keys = group_near_duplicates(parts[0], SPLIT_THRESHOLD)
    train, evaluation = split_rows(
        parts[0], keys, percent, dataset.seed, str(files[0].path), shuffle=dataset.shuffle
    )
    return train, evaluation


def _clean(
    parts: list[list[Conversation]], preprocessing: DataPreprocessing, warnings: list[str]
) -> list[list[Conversation]]:
    """Return the parts without the rows that the strategy wants left out; what went is said."""
    threshold = preprocessing.near_duplicate_threshold if preprocessing.remove_near_duplicates else None
    rules = CleaningRules(preprocessing.remove_duplicates, threshold, preprocessing.filter_quality)
    kept, left_out = clean_rows(parts, rules)
    warnings += map(str, left_out)
    return kept


def _warn_of_leaks(
    parts: Sequence[Sequence[Conversation]], files: Sequence[DataFile], warnings: list[str]
) -> None:
    """Warn of evaluation rows that are, or nearly are, training rows."""
    trained = {conversation_key(conversation) for conversation in parts[0]}
    leaked = [row for row in parts[1] if conversation_key(row) in trained]
    if leaked:
        warnings.append(
            f"{len(leaked)} evaluation rows are training rows, too, so that their loss flatters: "
            f"{_numbers_of(leaked)} of {files[1].path}; data_preprocessing.remove_duplicates: true drops them"
        )
    seen = NearDuplicates(SPLIT_THRESHOLD)
    for row in parts[0]:
        seen.add(row)
    near = [row for row in parts[1] if conversation_key(row) not in trained and seen.find(row) is not None]
    if near:
        warnings.append(
            f"{len(near)} evaluation rows are nearly training rows, so that their loss flatters: "
            f"{_numbers_of(near)} of {files[1].path}; data_preprocessing.remove_near_duplicates: true drops "
            "them"
        )


def _numbers_of(rows: Sequence[Conversation]) -> str:
    return f"rows {', '.join(str(row.row_number) for row in rows[:5])}{', …' if len(rows) > 5 else ''}"


def limits_of(preprocessing: DataPreprocessing, config: Any) -> Limits:
    """Return the limits of a strategy for a base model's configuration: its context length is one, too."""
    context_length = int(getattr(config, "max_position_embeddings", 0) or 10**9)
    max_length = min(preprocessing.max_length or context_length, context_length)
    return Limits(max_length, preprocessing.max_input_length, preprocessing.max_output_length)


def encode_rows(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    encoder: TextEncoder,
    dataset: Dataset,
    limits: Limits,
    kind: str,
    warnings: list[str],
) -> list[EncodedRow]:
    """Return the rows of a run as the model sees them, within the limits; what was left out is said."""
    trained = TrainedPart(dataset.train_on == "last", dataset.train_on_prompt)
    encoded = encode_separately(conversations, template, encoder, trained)

    def encode(conversation: Conversation) -> list[EncodedRow]:
        return encode_conversations([conversation], template, encoder, trained)

    fitted = fit_rows(conversations, encoded, limits, dataset.when_too_long, encode, kind)
    warnings += fitted.warnings
    return fitted.rows
