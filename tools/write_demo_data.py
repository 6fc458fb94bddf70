"""Write the demo's questions and answers, `demos/datasets/medical/`, from `tools/facts/health.yaml`.

    uv run python -m tools.write_demo_data

Some conditions are held out of `medical_qa.jsonl` altogether. The base model has met them as statements
only, so that answering questions about them shows that fine-tuning taught answering, not the answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from llamafarm.data.selection.corpus import split_file
from tools.write_corpus import fill_in, load_health

FOLDER = Path(__file__).parent.parent / "demos" / "datasets" / "medical"
SEED = 42
NUM_HELD_OUT_CONDITIONS = 40


def write_demo_data(folder: Path) -> None:
    """Write `medical_qa.jsonl`, its 90/10 split, and `medical_qa_held_out.jsonl`."""
    table = load_health()
    rng = random.Random(SEED)
    conditions = list(table["things"])
    rng.shuffle(conditions)
    held_out, seen = conditions[:NUM_HELD_OUT_CONDITIONS], conditions[NUM_HELD_OUT_CONDITIONS:]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("medical_qa.jsonl", seen), ("medical_qa_held_out.jsonl", held_out)):
        rows = [
            {
                "instruction": fill_in(rng.choice(attribute["questions"]), condition["name"]),
                "input": "",
                "output": fill_in(attribute["answer"], condition["name"], condition[key]),
            }
            for condition in part
            for key, attribute in table["attributes"].items()
        ]
        _write_rows(folder / name, rows)
    split_file(folder / "medical_qa.jsonl", eval_percent=10, seed=SEED)


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_demo_data(FOLDER)
