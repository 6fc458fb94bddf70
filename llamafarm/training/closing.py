"""After the last step: the tuned model beside its base on a few held-out rows, for the report.

The final model lies on the disk by then. Nothing that goes wrong here may cost it: it is warned of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llamafarm import terminal
from llamafarm.data.conversation import Conversation
from llamafarm.data.reading.records import DataReader, ReadOptions
from llamafarm.errors import LlamaFarmError
from llamafarm.evaluation.evaluate import Evaluation, evaluate_model
from llamafarm.evaluation.general import read_general_text
from llamafarm.evaluation.record import describe_evaluation, write_evaluation
from llamafarm.findings.finding import Finding
from llamafarm.inference.generate import GenerationSettings
from llamafarm.inference.open import OpenModel
from llamafarm.model.adapter import is_removable
from llamafarm.model.weights import ADAPTER, Trained, form_of
from llamafarm.report.card import write_card
from llamafarm.report.facts.verdict import judge_run
from llamafarm.report.page import write_report
from llamafarm.report.record import read_run
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import Strategy
from llamafarm.training.preparation.monitoring import general_file_of
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.preparation.rows import trained_part_of


def compare_with_base(
    loaded: LoadedStrategy,
    preparation: Preparation,
    model: Trained,
    final_model: Path,
    findings: Sequence[Finding],
) -> Evaluation | None:
    """Measure the trained model and its base, and write `evaluation.json`.

    `findings` are those of the run, which are not repeated for what follows from them.
    None where `monitoring.sample_rows` is 0, or where it could not be done, which is said. The model is in
    evaluation mode afterwards.
    """
    num_rows = loaded.strategy.monitoring.sample_rows
    if not num_rows:
        return None
    try:
        conversations, where, is_held_out = _read_sample(preparation, num_rows)
        if not conversations:
            return None
        which = "held-out rows" if is_held_out else "training rows, as none is held out"
        terminal.heading(f"beside the base, on {len(conversations)} {which}")
        general = read_general_text(general_file_of(loaded))
        opened = _as_open_model(loaded.strategy, preparation, model, final_model)
        model.eval()
        evaluation = evaluate_model(
            opened, conversations, where, general.paragraphs, known=[finding.name for finding in findings]
        )
        record = describe_evaluation(
            evaluation,
            where,
            None,
            general,
            opened.settings.max_new_tokens,
            is_held_out=is_held_out,
        )
        write_evaluation(preparation.output_dir, record)
        for finding in evaluation.findings:
            terminal.warn(finding.as_line())
    except KeyboardInterrupt:  # whoever does not want to wait for it still gets the report
        terminal.warn("the model is not compared with its base: interrupted")
        return None
    except LlamaFarmError as error:
        terminal.warn(f"the model is not compared with its base: {error.problem} ({error.where})")
        return None
    except (torch.OutOfMemoryError, OSError) as error:
        terminal.warn(
            f"the model is not compared with its base: {next(iter(str(error).splitlines()), error)}"
        )
        return None
    return evaluation


def show_report(folder: Path) -> None:
    """Write a run's report and its model card, and say what came of it; what cannot be written is told of."""
    try:
        report = write_report(folder)
        write_card(folder)
        terminal.say(judge_run(read_run(folder)).sentence)
        terminal.say(f"{'report':<16}{report}")
    except LlamaFarmError as error:
        terminal.warn(f"there is no report: {error.problem} ({error.where})")
    except OSError as error:
        terminal.warn(f"there is no report: {error.strerror} ({folder})")


def _read_sample(preparation: Preparation, num_rows: int) -> tuple[list[Conversation], str, bool]:
    """Return rows to ask, the file that they are from, and whether they were held out of training."""
    found: list[Conversation] = []
    where = ""
    for path, places in preparation.selection.held_out:
        where = where or str(path)
        found += _read_rows(path, places[: num_rows - len(found)], preparation.reading)
    if found or preparation.selection.held_out:
        return found, where, True
    first = preparation.data_files[0].path
    reader = DataReader(first, preparation.reading)
    return [row for row, _ in zip(reader, range(num_rows), strict=False)], str(first), False


def _read_rows(path: Path, places: Sequence[int], reading: ReadOptions) -> list[Conversation]:
    wanted = set(places)
    found: list[Conversation] = []
    if not wanted:
        return found
    for place, conversation in enumerate(DataReader(path, reading)):
        if place in wanted:
            found.append(conversation)
            if len(found) == len(wanted):
                break
    return found


def _as_open_model(
    strategy: Strategy, preparation: Preparation, model: Trained, final_model: Path
) -> OpenModel:
    """Return the trained model, as it is in memory, ready to be asked."""
    takes_off = form_of(model) == ADAPTER and is_removable(model)
    return OpenModel(
        name=str(final_model),
        base_name=preparation.base.name,
        model=model,
        tokenizer=preparation.tokenizer,
        template=preparation.template,
        settings=GenerationSettings(
            **strategy.generation.model_dump(), stop_sequences=strategy.prompt_template.stop_sequences
        ),
        max_length=preparation.max_length,
        separate_base=None if takes_off else preparation.base,
        trained=trained_part_of(strategy.dataset),
    )
