"""`evaluation.json`: what an evaluation leaves in a run's folder, for the report and other programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llamafarm.evaluation.evaluate import Evaluation
from llamafarm.evaluation.general import GeneralText
from llamafarm.strict_json import to_json

EVALUATION_FILE = "evaluation.json"
# Answers of so many rows are kept: enough to read, and no second copy of a large file.
_MOST_ANSWERS = 200


def describe_evaluation(
    evaluation: Evaluation,
    file: str,
    sha256: str | None,
    general: GeneralText,
    max_new_tokens: int,
    *,
    is_held_out: bool,
) -> dict[str, Any]:
    """Return the record. Without `is_held_out` the rows are such as were trained on."""
    return {
        "file": file,
        "sha256": sha256,
        "is_held_out": is_held_out,
        "general": general.as_record(),
        "max_new_tokens": max_new_tokens,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **evaluation.as_record(_MOST_ANSWERS),
    }


def write_evaluation(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write `evaluation.json` into a run's folder in one piece. Raises `OSError`."""
    path = folder / EVALUATION_FILE
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)  # a link there would be written through
    unfinished.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path
