"""`run.json`: what was asked for, on what, with what, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from llamafarm.findings.finding import Finding
from llamafarm.hardware.libraries import installed_versions
from llamafarm.inspection.pieces import merge_pieces, split_into_pieces
from llamafarm.redaction import without_users
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.account import Account
from llamafarm.training.preparation.prepare import Preparation

if TYPE_CHECKING:
    from llamafarm.training.result import RunResult
    from llamafarm.training.session import Session

_NUM_MASK_SAMPLES = 3
# Of a row's beginning and end: a long prompt is not needed to see where the marks begin.
_MOST_SAMPLE_TOKENS = 600


def describe_start(
    loaded: LoadedStrategy, preparation: Preparation, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of a run that begins: all but what comes of it."""
    return {
        "strategy": loaded.key,
        "base_model": preparation.base_shown,
        "strategy_file": str(loaded.file) if loaded.file else None,
        "started": _now(),
        "resumed": [],
        "identity": dict(identity),
        "settings": without_users(loaded.strategy.model_dump(mode="json")),
        "origins": {path: str(origin) for path, origin in loaded.origins.items()},
        "retired": loaded.retired_record,
        "choices": [asdict(choice) for choice in preparation.choices],
        "warnings": preparation.warnings,
        "data": [
            {"file": str(file.path), "rows": file.num_rows, "sha256": file.sha256}
            for file in preparation.data_files
        ],
        "data_facts": _describe_rows(preparation),
        "mask_samples": list(_mask_samples(preparation)),
        "template": {
            "source": preparation.template.source,
            "origin": preparation.template_origin,
            "end_of_turn": preparation.template.end_of_turn,
        },
        "plan": {
            "num_steps": preparation.plan.num_steps,
            "steps_per_epoch": preparation.plan.steps_per_epoch,
            "rows_per_step": preparation.plan.rows_per_step,
            "num_epochs": preparation.plan.num_epochs,
        },
        "machine": {
            "device": preparation.device.description,
            "precision": preparation.precision.name,
            "memory_bytes": preparation.memory.available_bytes,
        },
        "checkpointed_blocks": preparation.memory.checkpointed_blocks,
        "predicted_memory_bytes": dict(preparation.memory.plan.parts()),
        "versions": installed_versions(),
    }


def describe_resumption(record: Mapping[str, Any], before: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the record of a run that goes on after `step`: it began when it began."""
    resumed = [*before.get("resumed", []), {"after_step": step, "at": _now()}]
    return {**record, "started": before.get("started"), "resumed": resumed}


def describe_end(
    record: Mapping[str, Any],
    result: RunResult,
    findings: Sequence[Finding],
    account: Account,
    session: Session,
) -> dict[str, Any]:
    """Return the record of a run that has ended."""
    seconds = account.seconds
    return {
        **record,
        "finished": _now(),
        **session.survived,
        "findings": [finding.as_record() for finding in findings],
        "seconds": {
            "steps": seconds.steps,
            "data": seconds.data,
            "evaluations": seconds.evaluations,
            "saves": seconds.saves,
        },
        "result": {**asdict(result), "final_model": str(result.final_model)},
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _describe_rows(preparation: Preparation) -> dict[str, int]:
    train, evaluation = preparation.train_rows, preparation.eval_rows
    return {
        "train_rows": len(train),
        "eval_rows": len(evaluation),
        "train_tokens": train.num_tokens,
        "train_supervised_tokens": train.num_supervised_tokens,
        "eval_tokens": evaluation.num_tokens,
        "longest_row_tokens": int(train.lengths_N.max()),
        "max_length": preparation.max_length,
        "leaked_rows": preparation.selection.num_leaked_rows,
    }


def _mask_samples(preparation: Preparation) -> Iterator[dict[str, Any]]:
    """Yield the first training rows in pieces of text: which are trained on, which are special tokens."""
    for row in islice(preparation.train_rows, _NUM_MASK_SAMPLES):
        pieces = list(split_into_pieces(row, preparation.tokenizer))
        is_cut = len(pieces) > _MOST_SAMPLE_TOKENS
        half = _MOST_SAMPLE_TOKENS // 2
        parts = [pieces[:half], pieces[-half:]] if is_cut else [pieces]
        yield {
            "row": row.row_number,
            "num_tokens": row.num_tokens,
            "num_supervised_tokens": row.num_supervised_tokens,
            "is_cut": is_cut,
            "pieces": [
                {"text": piece.text, "is_trained": piece.is_trained, "is_special": piece.is_special}
                for part in parts
                for piece in merge_pieces(iter(part))
            ],
        }
