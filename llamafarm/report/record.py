"""A run's folder, read: whatever is there, of any age, finished or not.

What is missing or damaged is None or empty here, and `faults` says so: a report is made all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafarm.errors import OutputError
from llamafarm.findings.finding import Finding
from llamafarm.report.reading.answers import EVALUATION_FILE, EvaluationRecord, read_evaluation, read_findings
from llamafarm.report.reading.events import read_events
from llamafarm.report.reading.lines import Line, read_lines
from llamafarm.report.reading.samples import MaskSample, read_samples
from llamafarm.report.reading.values import (
    brief_of,
    count_of,
    list_of,
    mapping_of,
    number_of,
    read_json,
    show_value,
    text_of,
    texts_of,
    without_secrets,
)

# As `training.record` and `model.bundle` name them, which are above this floor, or load torch.
RUN_FILE, METRICS_FILE = "run.json", "metrics.jsonl"
FINAL_MODEL, CHECKPOINTS, BUNDLE_FILE = "final_model", "checkpoints", "llamafarm.json"


@dataclass(frozen=True, slots=True)
class Setting:
    """A resolved setting, its value as text, and where it comes from; `kind` is `default` for nobody's."""

    path: str
    value: str
    kind: str
    where: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that the tool settled by itself, and why."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was trained or evaluated on."""

    file: str
    num_rows: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run left.

    `result`, `plan`, `facts` and `seconds` have finite numbers by name, `raw_settings` is the settings' tree,
    `bundle` is `final_model/llamafarm.json`; `checkpoint_steps` are those still in the folder.
    """

    folder: Path
    strategy: str
    base_model: str | None = None
    strategy_file: str | None = None
    settings: tuple[Setting, ...] = ()
    raw_settings: Mapping[str, Any] = field(default_factory=dict)
    retired: tuple[Setting, ...] = ()
    choices: tuple[Choice, ...] = ()
    warnings: tuple[str, ...] = ()
    data: tuple[DataFile, ...] = ()
    predicted_memory_bytes: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    result: Mapping[str, float] = field(default_factory=dict)
    stopped_early: bool = False
    is_finished: bool = False
    started: str | None = None
    finished: str | None = None
    findings: tuple[Finding, ...] = ()
    has_findings: bool = False
    plan: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[MaskSample, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    template: Mapping[str, str] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    evaluation: EvaluationRecord | None = None
    bundle: Mapping[str, Any] = field(default_factory=dict)
    has_final_model: bool = False
    checkpoint_steps: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def trained_lines(self) -> tuple[Line, ...]:
        """Return the lines of steps that were taken."""
        return tuple(line for line in self.lines if line.step > 0)

    @property
    def evaluations(self) -> tuple[tuple[int, float], ...]:
        """Return step and loss of every evaluation, that of before training with step 0."""
        found = ((line.step, line.get("eval_loss")) for line in self.lines)
        return tuple((step, loss) for step, loss in found if loss is not None)

    @property
    def num_steps(self) -> int:
        """Return how many steps were taken."""
        told = self.result.get("num_steps")
        return int(told) if told is not None else max((line.step for line in self.lines), default=0)

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """Return what was found in the run and in the answers, warnings first, nothing twice."""
        found = {finding.name: finding for finding in self.findings}
        for finding in self.evaluation.findings if self.evaluation else ():
            found.setdefault(finding.name, finding)
        return tuple(sorted(found.values(), key=lambda finding: finding.level != "warning"))

    def setting(self, path: str) -> Any:
        """Return a setting's own value by its dotted path, None where there is none."""
        value: Any = self.raw_settings
        for name in path.split("."):
            value = mapping_of(value).get(name)
        return value

    def count(self, name: str) -> int | None:
        """Return one of the data facts."""
        return count_of(self.facts.get(name))


def read_run(folder: Path) -> RunRecord:
    """Return what a run left in `folder`, or in the folder whose `final_model` it is.

    Raises `OutputError` if no run was there.
    """
    if folder.name == FINAL_MODEL and not _has_run(folder) and _has_run(folder.parent):
        folder = folder.parent
    if not _has_run(folder):
        raise OutputError(
            f"there is no run in {str(folder)!r}: neither {RUN_FILE} nor {METRICS_FILE}",
            where=str(folder),
            remedy="Name the training_args.output_dir of a run, such as ./fine_tuned_models/demo3_training.",
        )
    faults: list[str] = []
    run = _read_object(folder / RUN_FILE, faults)
    bundle = _read_object(folder / FINAL_MODEL / BUNDLE_FILE, faults)
    evaluation = _read_object(folder / EVALUATION_FILE, faults)
    lines = tuple(read_lines(folder / METRICS_FILE, faults))
    result = mapping_of(run.get("result"))
    return RunRecord(
        folder=folder,
        strategy=brief_of(run.get("strategy")) or text_of(folder.resolve().name) or "run",
        base_model=brief_of(run.get("base_model")) or brief_of(bundle.get("base_model")),
        strategy_file=brief_of(run.get("strategy_file")),
        settings=tuple(_read_settings(run)),
        raw_settings=mapping_of(run.get("settings")),
        retired=tuple(_read_retired(run)),
        choices=tuple(_read_choices(run)),
        warnings=tuple(
            without_secrets(text)
            for one in (*list_of(run.get("warnings")), *read_events(run))
            if (text := brief_of(one))
        ),
        data=tuple(_read_data(run)),
        predicted_memory_bytes=_numbers(run.get("predicted_memory_bytes")),
        versions=texts_of(run.get("versions")),
        machine=texts_of(run.get("machine")),
        result=_numbers(result),
        stopped_early=result.get("stopped_early") is True,
        is_finished=bool(result),
        started=brief_of(run.get("started")),
        finished=brief_of(run.get("finished")),
        findings=tuple(read_findings(run.get("findings"))),
        has_findings=isinstance(run.get("findings"), list),
        plan=_numbers(run.get("plan")),
        facts=_numbers(run.get("data_facts")),
        samples=tuple(read_samples(run.get("mask_samples"))),
        seconds=_numbers(run.get("seconds")),
        template={name: text_of(value) or "" for name, value in mapping_of(run.get("template")).items()},
        export=mapping_of(run.get("export")),
        lines=lines,
        evaluation=read_evaluation(evaluation),
        bundle=bundle,
        has_final_model=(folder / FINAL_MODEL).is_dir(),
        checkpoint_steps=tuple(_find_checkpoints(folder / CHECKPOINTS)),
        faults=tuple(faults),
    )


def _has_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file() or (folder / METRICS_FILE).is_file()


def _read_object(path: Path, faults: list[str]) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        faults.append(f"{path.name} cannot be read: {brief_of(str(error))}")
        return {}
    if not isinstance(content, dict):
        faults.append(f"{path.name} holds no object")
    return mapping_of(content)


def _read_settings(run: Mapping[str, Any]) -> Iterator[Setting]:
    origins = mapping_of(run.get("origins"))
    for path, value in _walk(mapping_of(run.get("settings")), "", origins):
        kind, where = _split_origin(brief_of(origins.get(path)) or "")
        yield Setting(brief_of(path) or "", show_value(value), kind, where)


def _walk(tree: Mapping[str, Any], prefix: str, origins: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path not in origins:
            yield from _walk(value, f"{path}.", origins)
        else:
            yield path, value


def _split_origin(text: str) -> tuple[str, str]:
    for kind in ("default", "preset", "strategy file", "command line"):
        if text.startswith(kind):
            return kind, text[len(kind) :].strip()
    return ("", text) if text else ("not recorded", "")


def _read_retired(run: Mapping[str, Any]) -> Iterator[Setting]:
    for record in map(texts_of, list_of(run.get("retired"))):
        yield Setting(record.get("path", ""), record.get("why", ""), "retired", record.get("where", ""))


def _read_choices(run: Mapping[str, Any]) -> Iterator[Choice]:
    for record in map(texts_of, list_of(run.get("choices"))):
        yield Choice(record.get("setting", ""), record.get("value", ""), record.get("why", ""))


def _read_data(run: Mapping[str, Any]) -> Iterator[DataFile]:
    for record in map(mapping_of, list_of(run.get("data"))):
        file = brief_of(record.get("file")) or "?"
        yield DataFile(file, count_of(record.get("rows")), brief_of(record.get("sha256")))


def _numbers(value: Any) -> dict[str, float]:
    found = {name: number_of(item) for name, item in mapping_of(value).items()}
    return {name: number for name, number in found.items() if number is not None}


def _find_checkpoints(folder: Path) -> list[int]:
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    numbers = (name.removeprefix("step-") for name in names if name.startswith("step-"))
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())
