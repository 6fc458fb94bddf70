"""The model card: `README.md` beside the weights, in the form that the Hugging Face Hub reads.

It may be published, so it names files and no folders of this machine.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub import EvalResult, ModelCardData

from llamafarm.confined import confined
from llamafarm.errors import OutputError
from llamafarm.report.facts.metrics import metric_rows
from llamafarm.report.facts.usage import is_whole, python_code
from llamafarm.report.facts.verdict import judge_run
from llamafarm.report.facts.wording import UNKNOWN, show_count, show_plural
from llamafarm.report.page import write_whole
from llamafarm.report.reading.values import text_of
from llamafarm.report.record import FINAL_MODEL, RunRecord, Setting, read_run

CARD_FILE = "README.md"
# As the Hub calls what we measure, and how we do.
_HUB_METRICS = {
    "eval_loss": ("loss", "loss per token"),
    "eval_perplexity": ("perplexity", "perplexity"),
    "exact_match": ("exact_match", "exact match"),
    "token_f1": ("f1", "token F1"),
    "rouge_l": ("rouge", "ROUGE-L"),
    "chrf": ("chrf", "chrF"),
    "bleu": ("bleu", "BLEU"),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Settings with these say where things lie here, or hold whole texts: they are no part of how it was trained.
_TRAINING_SECTIONS = (
    "method.",
    "training_args.",
    "data_preprocessing.",
    "dataset.eval_split",
    "environment.seed",
)
_LOCAL = ("training_args.output_dir", "data_preprocessing.cache_dir")


def write_card(folder: Path) -> None:
    """Write the model card of a run into its `final_model/`.

    Raises `OutputError` if there is no run or no final model in `folder`, or the card cannot be written.
    """
    record = read_run(folder)
    if not record.has_final_model:
        raise OutputError(
            f"there is no {FINAL_MODEL}/ to write a model card into",
            where=str(record.folder / FINAL_MODEL),
            remedy="Let the run finish first.",
        )
    write_whole(confined(record.folder, FINAL_MODEL) / CARD_FILE, render_card(record))


def render_card(record: RunRecord) -> str:
    """Return the model card as Markdown with its YAML head."""
    parts = [
        f"---\n{_head(record).to_yaml()}\n---\n",
        f"# {_escape(record.strategy)}\n",
        f"{_escape(judge_run(record).sentence)}\n",
        *_what_it_is(record),
        *_training_data(record),
        *_settings(record),
        *_results(record),
        "## How to use it\n",
        _fence(python_code(record, "path/to/this/folder"), "python"),
        *_template(record),
        *_limits(record),
    ]
    return "\n".join(parts).rstrip() + "\n"


def base_on_hub(record: RunRecord) -> str | None:
    """Return the base model's id on the Hub, None for one that is a folder or embedded here."""
    for told in (
        record.bundle.get("base_model"),
        record.setting("base_model.huggingface_id"),
        record.base_model,
    ):
        name = text_of(told)
        if name is not None:
            return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None
    return None


def _head(record: RunRecord) -> ModelCardData:
    method = text_of(record.setting("method.type"))
    results = _eval_results(record)
    return ModelCardData(
        base_model=base_on_hub(record),
        library_name="transformers" if is_whole(record) else "peft",
        pipeline_tag="text-generation",
        tags=[tag for tag in ("llamafarm-finetune", "sft", method) if tag],
        model_name=record.strategy if results else None,
        eval_results=results or None,
    )


def _eval_results(record: RunRecord) -> list[EvalResult]:
    """Return the tuned model's figures; without held-out rows none, for they would be taken for such."""
    evaluation = record.evaluation
    if evaluation is None or evaluation.tuned is None or not evaluation.is_held_out:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="custom",
            dataset_name=_file_name(evaluation.file or "held-out rows"),
            dataset_split="held out",
            metric_type=kind,
            metric_name=name,
            metric_value=evaluation.tuned.figures[figure],
        )
        for figure, (kind, name) in _HUB_METRICS.items()
        if figure in evaluation.tuned.figures
    ]


def _what_it_is(record: RunRecord) -> list[str]:
    base = base_on_hub(record)
    local = _file_name(record.base_model) if record.base_model else ""
    kind = "A whole model" if is_whole(record) else "A PEFT adapter"
    named = f"[{base}](https://huggingface.co/{base})" if base else _code(local) if local else "a base model"
    return [
        f"{kind}, trained from {named} by supervised fine-tuning with llamafarm-finetune: "
        f"{show_plural(record.num_steps, 'step')}.\n"
    ]


def _training_data(record: RunRecord) -> list[str]:
    if not record.data:
        return []
    rows = [
        f"| {_cell(_file_name(file.file))} | {show_count(file.num_rows)} | {_cell(file.sha256 or UNKNOWN)} |"
        for file in record.data
    ]
    parts = ["## Data\n", "| file | rows | SHA-256 |\n|---|---:|---|\n" + "\n".join(rows) + "\n"]
    train, held_out = record.count("train_rows"), record.count("eval_rows")
    if train is not None:
        tokens, supervised = record.count("train_tokens"), record.count("train_supervised_tokens")
        also = ""
        if tokens is not None and supervised is not None:
            also = f"; {show_count(tokens)} tokens an epoch, {show_count(supervised)} of them trained on"
        parts.append(f"{show_count(train)} rows were trained on, {show_count(held_out)} held out{also}.\n")
    return parts


def _settings(record: RunRecord) -> list[str]:
    shown = [setting for setting in record.settings if _is_of_training(setting)]
    if not shown:
        return []
    lines = "\n".join(f"| {_cell(setting.path)} | {_cell(setting.value)} |" for setting in shown)
    return ["## Training settings\n", f"| setting | value |\n|---|---|\n{lines}\n"]


def _is_of_training(setting: Setting) -> bool:
    return (
        setting.path.startswith(_TRAINING_SECTIONS)
        and setting.path not in _LOCAL
        and setting.value != "null"
        and (setting.kind != "default" or setting.path.startswith("method."))
    )


def _results(record: RunRecord) -> list[str]:
    rows = metric_rows(record.evaluation)
    if not rows or record.evaluation is None:
        return []
    lines = "\n".join(
        f"| {_cell(row.metric.name)} | {row.base} | {row.tuned} | {row.change} | {row.interval} |"
        for row in rows
    )
    which = "held-out rows" if record.evaluation.is_held_out else "rows that were trained on"
    file = f" of {_code(_file_name(record.evaluation.file))}" if record.evaluation.file else ""
    return [
        "## Results\n",
        f"On {show_count(record.evaluation.num_rows)} {which}{file}, each answer by the likeliest tokens. "
        "The interval has the true change from base to tuned 19 times of 20; that of a percentage is in "
        "points.\n",
        f"| metric | base | tuned | change | 95 % interval |\n|---|---:|---:|---:|---:|\n{lines}\n",
    ]


def _template(record: RunRecord) -> list[str]:
    end = record.template.get("end_of_turn") or text_of(record.bundle.get("end_of_turn"))
    stops = [text for stop in record.bundle.get("stop_sequences") or () if (text := text_of(stop))]
    lines = ["The chat template lies beside the weights: use it, for the model knows no other form."]
    if end:
        lines.append(f"An answer ends with {_code(end)}.")
    if stops:
        lines.append(f"Stop also at {', '.join(map(_code, stops))}.")
    return ["## Template and stop\n", " ".join(lines) + "\n"]


def _limits(record: RunRecord) -> list[str]:
    lines = [
        "- It was trained to answer as its training rows do; outside of them it is not known to be better "
        "than its base.",
        "- The licence of the base model and of the data applies; this card does not state them.",
    ]
    for finding in record.all_findings:
        lines.append(f"- {_escape(finding.name)}: {_escape(finding.seen)}. {_escape(finding.meaning)}.")
    return ["## Limits\n", "\n".join(lines) + "\n"]


def _file_name(path: str) -> str:
    """Return the last part of a path, however it is written."""
    return PureWindowsPath(PurePosixPath(path).name).name or path


def _code(text: str) -> str:
    """Return a text as a Markdown code span, which holds nothing but text."""
    line = " ".join(text.split()) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _cell(text: str) -> str:
    """Return a text as a code span in a table, where a bar would begin the next cell."""
    return _code(text if len(text) <= 400 else text[:400] + "…").replace("|", "\\|")


def _escape(text: str) -> str:
    """Return a text that Markdown and HTML take as it stands, in one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|!~])", r"\\\1", line)


def _fence(code: str, language: str) -> str:
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", code)), default=0) + 1)
    return f"{fence}{language}\n{code}\n{fence}\n"
