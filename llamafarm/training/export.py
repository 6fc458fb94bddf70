"""What a strategy's `export` asks for: checked before the first step, done after the last one.

A failed export costs nothing that was trained: the final model lies there before it begins, and the error
says the command that does it again.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from llamafarm import terminal
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.data.reading.records import ReadOptions
from llamafarm.deploy.convert import GGUF, OLLAMA, Exported, ExportWishes, export
from llamafarm.deploy.gguf.families import family_of
from llamafarm.deploy.gguf.vocabulary import read_vocabulary
from llamafarm.deploy.modelfile import Modelfile
from llamafarm.deploy.rows import rows_to_verify_on, rows_to_weigh_on
from llamafarm.errors import LlamaFarmError
from llamafarm.inference.llamacpp import check_llamacpp
from llamafarm.inference.ollama import check_name
from llamafarm.model.load import Base, load_config
from llamafarm.report.page import write_report
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import Strategy
from llamafarm.training.record import RUN_FILE, write_json

EXPORT_FOLDER = "export"


def wants_export(strategy: Strategy) -> bool:
    """Return whether a strategy asks for an export."""
    return strategy.export.to_gguf or strategy.export.to_ollama


def check_export(loaded: LoadedStrategy, base: Base, tokenizer: Any, template: ChatTemplate) -> None:
    """Raise the error that an export of this model would end with, as far as it is known before training."""
    check_name(_model_name(loaded))
    if loaded.strategy.export.system_prompt is not None:
        Modelfile("model.gguf", system=loaded.strategy.export.system_prompt).text()
    check_llamacpp()
    config = load_config(base)
    family_of(config)
    read_vocabulary(
        tokenizer,
        num_embeddings=int(config.vocab_size),
        end_of_turn=template.end_of_turn,
        begins_with_bos=False,
    )


def describe_export(loaded: LoadedStrategy) -> tuple[str, str]:
    """Return what will be exported after training, and why."""
    asked = loaded.strategy.export
    shown = f"a GGUF file in {asked.quantization}"
    if asked.to_ollama:
        return f"{shown}, {_model_name(loaded)} in Ollama", "export.to_ollama"
    return shown, "export.to_gguf"


def export_run(loaded: LoadedStrategy, final_model: Path) -> Exported | None:
    """Do what a strategy's `export` asks for, into the run's folder; None if it asks for nothing.

    Raises any `LlamaFarmError` of an export, with the command that does it again as its remedy.
    """
    if not wants_export(loaded.strategy):
        return None
    asked = loaded.strategy.export
    folder = final_model.parent / EXPORT_FOLDER
    reading = ReadOptions.of(loaded.strategy.dataset, loaded.strategy.data_preprocessing)
    wishes = ExportWishes(
        OLLAMA if asked.to_ollama else GGUF,
        asked.quantization,
        _model_name(loaded),
        asked.system_prompt,
        asked.ollama_parameters.model_dump(exclude_none=True),
        overwrites=True,
        weighed=rows_to_weigh_on(None, final_model, reading) if asked.importance_matrix else None,
        conversations=rows_to_verify_on(None, final_model, reading),
    )
    terminal.heading(f"exporting as {wishes.quantization}")
    try:
        exported = export(final_model, folder, wishes)
    except LlamaFarmError as error:
        error.remedy = f"{error.remedy} The trained model is whole: {_by_hand(final_model, folder, wishes)}"
        raise
    _remember(final_model.parent, exported)
    return exported


def _remember(folder: Path, exported: Exported) -> None:
    """Add what was exported to `run.json`, and bring the report up to date."""
    record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    record["export"] = {
        "path": str(exported.path),
        "format": exported.format,
        "bytes": exported.num_bytes,
        "verified": None if exported.verified is None else exported.verified.as_record(),
    }
    write_json(folder / RUN_FILE, record)
    write_report(folder)


def _model_name(loaded: LoadedStrategy) -> str:
    return loaded.strategy.export.model_name or loaded.key


def _by_hand(final_model: Path, folder: Path, wishes: ExportWishes) -> str:
    """Return the command that does an export again."""
    command = [
        "python", "cli.py", "convert", str(final_model), str(folder), "--format", wishes.format,
        "--quantization", wishes.quantization, "--model-name", str(wishes.model_name), "--overwrite",
    ]  # fmt: skip
    if wishes.system_prompt is not None:
        command += ["--system-prompt", wishes.system_prompt]
    if wishes.weighed is not None:
        command.append("--importance")
    return shlex.join(command)
