"""How to use a trained model and to export it: lines to copy, quoted for a shell or for Python."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from llamafarm.report.record import FINAL_MODEL, RunRecord

PROGRAM = "python cli.py"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one may want to do, and the lines that do it."""

    purpose: str
    code: str


def recipes_of(record: RunRecord) -> list[Recipe]:
    """Return the command lines for a run's model, and Python for it."""
    folder = shlex.quote(str(record.folder))
    name = shlex.quote(_model_name(record))
    rows = _held_out_file(record)
    on_rows = f" --eval-dataset {shlex.quote(rows)}" if rows else " --eval-dataset rows.jsonl"
    return [
        Recipe("Ask it", f"{PROGRAM} complete {shlex.quote(_prompt(record))} --model {folder}"),
        Recipe("Talk with it", f"{PROGRAM} chat --model {folder}"),
        Recipe("Measure it beside its base", f"{PROGRAM} evaluate --model {folder}{on_rows}"),
        Recipe(
            "Give it to Ollama",
            f"{PROGRAM} convert {folder} {shlex.quote(f'./{_model_name(record)}-ollama')} --format ollama "
            f"--model-name {name}",
        ),
        Recipe(
            "Write a GGUF file",
            f"{PROGRAM} convert {folder} {shlex.quote(f'./{_model_name(record)}.gguf')} --format gguf "
            "--quantization q8_0",
        ),
        Recipe(_python_purpose(record), python_code(record, str(record.folder / FINAL_MODEL))),
    ]


def python_code(record: RunRecord, folder: str) -> str:
    """Return Python that asks the model in `folder` without this tool."""
    library, loader = (
        ("transformers", "AutoModelForCausalLM") if is_whole(record) else ("peft", "AutoPeftModelForCausalLM")
    )
    together = library == "transformers"
    imports = (
        f"from transformers import {loader}, AutoTokenizer"
        if together
        else f"from {library} import {loader}\nfrom transformers import AutoTokenizer"
    )
    max_new_tokens = _max_new_tokens(record)
    return f"""{imports}

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {loader}.from_pretrained(folder)
messages = [{{"role": "user", "content": {_prompt(record)!r}}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**inputs, max_new_tokens={max_new_tokens})
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def is_whole(record: RunRecord) -> bool:
    """Return whether the final model is a whole one and not an adapter."""
    return bool(record.bundle.get("kind", record.setting("method.type")) == "full")


def _python_purpose(record: RunRecord) -> str:
    return "Use it from Python with transformers" if is_whole(record) else "Use it from Python with PEFT"


def _max_new_tokens(record: RunRecord) -> int:
    asked = record.setting("generation.max_new_tokens")
    return asked if isinstance(asked, int) and not isinstance(asked, bool) else 200


def _held_out_file(record: RunRecord) -> str | None:
    if record.evaluation and record.evaluation.is_held_out and record.evaluation.file:
        return record.evaluation.file
    asked = record.setting("dataset.eval_file")
    return asked if isinstance(asked, str) else None


def _prompt(record: RunRecord) -> str:
    """Return a short prompt of one line of those that were answered, or a general one."""
    for answer in record.evaluation.answers if record.evaluation else ():
        if 0 < len(answer.prompt) <= 80 and answer.prompt.isprintable():
            return answer.prompt
    return "What can you do?"


def _model_name(record: RunRecord) -> str:
    """Return a name that Ollama takes: letters, digits, and - _ . between them."""
    asked = record.setting("export.model_name")
    text = asked if isinstance(asked, str) else record.strategy
    kept = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in text
    )
    return kept.strip("-_.")[:60].lower() or "my-model"
