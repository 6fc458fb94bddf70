"""The story of an export, top to bottom: open, plan, check, write beside, verify, rename, hand to Ollama.

Nothing that is there already is touched before what replaces it is whole (`places`). `source`, `merge`,
`files`, `verify` and `modelfile` are the steps; `hand_over` follows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llamafarm import terminal
from llamafarm.confined import confined
from llamafarm.data.conversation import Conversation
from llamafarm.deploy.files import plan_file
from llamafarm.deploy.gguf.adapter import why_not_carried, write_adapter_gguf
from llamafarm.deploy.gguf.families import family_of, trained_context
from llamafarm.deploy.gguf.types import MIXTURES
from llamafarm.deploy.importance import measure_importance
from llamafarm.deploy.modelfile import Modelfile, default_system, go_template
from llamafarm.deploy.places import beside, check_replaceable, check_space, file_name, replace_folder, taken
from llamafarm.deploy.source import Source, folder_of, open_source
from llamafarm.deploy.stored import write_safetensors
from llamafarm.deploy.verify import Verified, verify_adapter, verify_file, verify_merged
from llamafarm.errors import InputError, OutputError
from llamafarm.inference.llamacpp import check_llamacpp
from llamafarm.inference.ollama import check_name
from llamafarm.strict_json import to_json

OLLAMA, GGUF, PYTORCH, SAFETENSORS, ADAPTER_GGUF = "ollama", "gguf", "pytorch", "safetensors", "adapter-gguf"
FORMATS = (OLLAMA, GGUF, PYTORCH, SAFETENSORS, ADAPTER_GGUF)
DEFAULT_QUANTIZATION = "q8_0"
# Ollama's memory grows with the context: without a trained length this much is taken of a longer one.
_MOST_CONTEXT = 8192
_SECONDS_A_LINE = 5.0


@dataclass(frozen=True, slots=True)
class ExportWishes:
    """What the user asks of an export.

    `parameters` are Ollama's; `conversations` are what a file is compared with the trained model on,
    `weighed` what shows which inputs of a layer should be rounded least, if anything does.
    """

    format: str
    quantization: str = DEFAULT_QUANTIZATION
    model_name: str | None = None
    system_prompt: str | None = None
    parameters: Mapping[str, float | int | Sequence[str]] = field(default_factory=dict)
    overwrites: bool = False
    verifies: bool = True
    weighed: Sequence[Conversation] | None = None
    conversations: Sequence[Conversation] = ()


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: its folder or file, and of a GGUF file what Ollama is told of it."""

    path: Path
    format: str
    num_bytes: int
    notes: tuple[str, ...] = ()
    gguf: Path | None = None
    modelfile: Modelfile | None = None
    modelfile_path: Path | None = None
    name: str | None = None
    verified: Verified | None = None


def export(folder: Path, output: Path, wishes: ExportWishes) -> Exported:
    """Export the model in `folder` to `output`, and return what was written.

    Raises `InputError` for wishes that do not go together, `ModelError` for a model that cannot be read or
    that the format has no place for, `OutputError` where something else stands or nothing can be written, and
    `MachineError` if the disk is too small.
    """
    _check_wishes(wishes)
    with open_source(folder) as source:
        try:
            return _EXPORTS[wishes.format](source, output, wishes)
        except OSError as error:
            raise OutputError(
                f"the export cannot be written: {error.strerror or error}",
                where=str(output),
                remedy="Make room or name another output; what was there is as it was.",
            ) from error


def _check_wishes(wishes: ExportWishes) -> None:
    if wishes.format not in FORMATS:
        raise InputError(
            f"there is no format {wishes.format!r}",
            where="--format",
            remedy=f"Choose one of: {', '.join(FORMATS)}.",
        )
    if wishes.quantization not in MIXTURES:
        raise InputError(
            f"there is no quantization {wishes.quantization!r}",
            where="--quantization",
            remedy=f"Choose one of: {', '.join(MIXTURES)}.",
        )
    if wishes.model_name is not None:
        check_name(wishes.model_name)
    if wishes.verifies and wishes.format not in (PYTORCH, SAFETENSORS):
        check_llamacpp()  # before a file is written that could not be opened


def _export_folder(source: Source, output: Path, wishes: ExportWishes) -> Exported:
    """Write the merged model as transformers reads it, in safetensors."""
    notes = ["written in safetensors: pickled weights are never written"] if wishes.format == PYTORCH else []
    check_replaceable(output, source, overwrites=wishes.overwrites)
    check_space(output, source.num_bytes)
    verified = verify_merged(source, wishes.conversations) if wishes.verifies else None
    unfinished = beside(output)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of one that was killed
        unfinished.mkdir(parents=True)
        write_safetensors(unfinished, source.weights)
        config = source.config
        config.dtype = next(iter(source.weights.entries.values())).dtype
        config.save_pretrained(unfinished)
        source.tokenizer.chat_template = source.template.source
        source.tokenizer.save_pretrained(str(unfinished))
        generation = folder_of(source.base) / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, unfinished / generation.name)
        num_bytes = sum(path.stat().st_size for path in unfinished.iterdir())
        replace_folder(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Exported(output, wishes.format, num_bytes, tuple(notes), verified=verified)


def _export_gguf(source: Source, output: Path, wishes: ExportWishes) -> Exported:
    """Write a GGUF file, and beside it the Modelfile that makes a model in Ollama of it."""
    name = wishes.model_name or _name_of(source)
    if wishes.format == OLLAMA:
        check_name(name)
    is_file = output.suffix.lower() == ".gguf"
    path = output if is_file else confined(output, f"{file_name(name)}-{wishes.quantization}.gguf")
    modelfile_path = confined(path.parent, "Modelfile" if not is_file else f"{path.stem}.Modelfile")
    record_path = confined(path.parent, f"{path.stem}.verify.json")
    if not wishes.overwrites and (path.exists() or modelfile_path.exists()):
        raise taken(path if path.exists() else modelfile_path)
    importance = None if wishes.weighed is None else measure_importance(source, wishes.weighed)
    planned = plan_file(source, wishes.quantization, importance)
    modelfile = describe_for_ollama(source, path.name, wishes)
    text = modelfile.text()
    check_space(path, planned.num_bytes)
    unfinished = beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    verified = None
    try:
        with terminal.progress("writing", len(planned.tensors), seconds_a_line=_SECONDS_A_LINE) as shown:
            planned.write(unfinished, name, lambda tensor: shown.advance(tensor.name))
        if wishes.verifies:
            verified = verify_file(source, unfinished, wishes.quantization, wishes.conversations)
        num_bytes = unfinished.stat().st_size
        os.replace(unfinished, path)
        modelfile_path.write_text(text, encoding="utf-8")
        if verified is not None:
            record = verified.as_record() | {"file": path.name}
            record_path.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")
    finally:
        unfinished.unlink(missing_ok=True)
    return Exported(
        path, wishes.format, num_bytes, tuple(planned.notes), path, modelfile, modelfile_path, name, verified
    )


def _export_adapter(source: Source, output: Path, wishes: ExportWishes) -> Exported:
    """Write the adapter alone; merge it where such a file cannot hold it, and say so."""
    if source.adapter is None:
        reason: str | None = "there is no adapter: all weights were trained"
    else:
        reason = why_not_carried(source.adapter, source.config)
    if source.adapter is None or reason is not None:
        merged = _export_gguf(source, output, wishes)
        return replace(merged, notes=(f"merged into the base: {reason}", *merged.notes))
    name = wishes.model_name or _name_of(source)
    is_file = output.suffix.lower() == ".gguf"
    path = output if is_file else confined(output, f"{file_name(name)}-adapter.gguf")
    if path.exists() and not wishes.overwrites:
        raise taken(path)
    family_of(source.config)
    unfinished = beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_adapter_gguf(unfinished, source.adapter, source.config, name)
        verified = verify_adapter(source, unfinished, wishes.conversations) if wishes.verifies else None
        num_bytes = unfinished.stat().st_size
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Exported(path, wishes.format, num_bytes, verified=verified)


def describe_for_ollama(source: Source, gguf: str, wishes: ExportWishes) -> Modelfile:
    """Return what Ollama is told of a model: its template, its system prompt and its parameters."""
    bundle = source.bundle
    generation = dict(bundle.generation) if bundle is not None else {}
    most = trained_context(source.config, family_of(source.config))[0]
    trained = bundle.max_length if bundle is not None else _MOST_CONTEXT
    stops = [source.template.end_of_turn, *(bundle.stop_sequences if bundle is not None else ())]
    parameters: dict[str, Any] = {
        "temperature": generation.get("temperature"),
        "top_p": generation.get("top_p"),
        "top_k": generation.get("top_k"),
        "repeat_penalty": generation.get("repetition_penalty"),
        "num_predict": generation.get("max_new_tokens"),
        "num_ctx": min(most, max(trained, _MOST_CONTEXT)),
        "stop": stops,
    }
    parameters.update({key: value for key, value in wishes.parameters.items() if value is not None})
    if isinstance(parameters["stop"], list | tuple):
        # Where an answer ends is no matter of taste: the strategy's own stops come on top.
        parameters["stop"] = list(dict.fromkeys([source.template.end_of_turn, *parameters["stop"]]))
    return Modelfile(
        gguf,
        {key: value for key, value in parameters.items() if value is not None},
        go_template(source.template, source.tokenizer.bos_token if source.begins_with_bos else None),
        wishes.system_prompt if wishes.system_prompt is not None else default_system(source.template),
    )


def _name_of(source: Source) -> str:
    return source.bundle.strategy if source.bundle is not None else source.folder.resolve().name


_EXPORTS = {
    OLLAMA: _export_gguf,
    GGUF: _export_gguf,
    PYTORCH: _export_folder,
    SAFETENSORS: _export_folder,
    ADAPTER_GGUF: _export_adapter,
}
