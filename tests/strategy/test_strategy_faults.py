"""What is said about unknown keys and wrong values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest

from llamafarm.errors import StrategyError
from llamafarm.strategy import faults
from llamafarm.strategy.retired import REFUSED, RETIRED
from llamafarm.strategy.schema import Section, Strategy
from llamafarm.strategy.spelling import MOVED, all_paths, suggest_for_key

Refuse = Callable[..., StrategyError]


def test_a_wrong_value_is_told_in_three_lines(refused: Refuse) -> None:
    error = refused("s:\n  training_args:\n    learning_rate: -0.0001\n")
    assert error.problem == "training_args.learning_rate must be greater than 0 (got -0.0001)"
    assert error.where == "f.yaml:3"
    assert error.remedy == "Write learning_rate: 0.0002, the default, or another value that fits."


@pytest.mark.parametrize(
    ("setting", "problem", "remedy"),
    [
        ("training_args.learning_rate: 1.0", "must be less than 1 (got 1.0)", "0.0002"),
        ("training_args.learning_rate: .nan", "must be a finite number", "0.0002"),
        ("training_args.learning_rate: '2e-4'", "must be a number (got the text '2e-4')", "the quotes"),
        ("training_args.learning_rate:", "must be a number (got nothing)", "0.0002"),
        ("training_args.num_train_epochs: 0", "must be greater than 0", "3"),
        ("training_args.num_train_epochs: 10-5", "must be a range", "3"),
        ("training_args.num_train_epochs: many", "must be a number or a range such as 5-10", "3"),
        ("training_args.num_train_epochs: true", "must be a number or a range such as 5-10", "3"),
        ("training_args.max_steps: -1", "must be at least 1 (got -1)", "Leave max_steps out"),
        ("training_args.lr_scheduler_type: cosin", "must be one of linear,", "lr_scheduler_type: cosine."),
        ("training_args.eval_strategy: never", "must be one of no, steps, epoch", ""),
        ("training_args.output_dir: 5", "must be text (got 5)", "Leave output_dir out"),
        ("training_args.load_best_model_at_end: yes", "must be true or false (got the text 'yes')", "false"),
        ("method.r: 4.5", "must be a whole number (got 4.5)", "16"),
        ("method.r: 0", "must be at least 1 (got 0)", "16"),
        ("method.r: true", "must be a whole number (got true)", "16"),
        ("method.dropout: 1.0", "must be less than 1", "0.1"),
        ("method.type: dora", "must be one of lora, qlora, full_finetune", "type: lora"),
        ("method.target_modules: []", "must be a list of module names, or all-linear", "all-linear"),
        ("method.target_modules: q_proj", "must be a list of module names, or all-linear", "all-linear"),
        ("hardware.device: gpu", "must be one of auto, cuda, rocm, mps, cpu", ""),
        ("hardware.memory_gb: 0", "must be greater than 0", "Leave memory_gb out"),
        ("hardware.precision.cuda: {use_fp16: true, use_bf16: true}", "both true", "one of them"),
        ("base_model.trust_remote_code: true", "has no place here: it would run code", "Remove the line"),
        ("framework.use_fast_tokenizer: false", "slow tokenizers do not say", "Remove the line"),
        ("dataset.eval_split: 0.0", "must be greater than 0", ""),
        ("dataset.eval_split: 1.0", "must be less than 1", ""),
        ("generation.temperature: 3", "must be at most 2 (got 3)", "0.7"),
        ("prompt_template.format: 'Q {input}'", "must have {output} exactly once (it has it 0", "format:"),
        ("prompt_template.format: '{input}{output}{output}'", "exactly once (it has it 2 times)", "format:"),
        ("prompt_template.format: 'A {output}'", "must have {input} or {instruction}", "format:"),
        ("prompt_template.format: '{question}{output}'", "has the placeholder {question}", "format:"),
        ("prompt_template.stop_sequences: User", "must be a list (got the text 'User')", ""),
        ("prompt_template.stop_sequences: ['']", "has an empty text", "Remove"),
        ("prompt_template.stop_sequences: [a, 5]", "stop_sequences[1] must be text (got 5)", ""),
        ("export.quantization: q4km", "must be one of f32, f16,", "quantization: q4_k_m."),
        ("export.model_name: a b", "must be a name of letters, digits", "Leave model_name out"),
        ("model_app.config.base_url: localhost", "must be an address that begins with http", ""),
        ("training_args: {eval_strategy: no, load_best_model_at_end: true}", "no eval_loss to go by", "Set"),
        ("training_args: {eval_strategy: no, early_stopping_patience: 2}", "no eval_loss to go by", "Set"),
    ],
)  # fmt: skip
def test_wrong_values(refused: Refuse, setting: str, problem: str, remedy: str) -> None:
    path, _, value = setting.partition(":")
    *sections, key = path.split(".")
    lines = ["s:", *("  " * (depth + 1) + name + ":" for depth, name in enumerate(sections))]
    lines.append("  " * len(lines) + f"{key}:{value}")
    error = refused("\n".join(lines))
    assert error.problem.startswith(path)
    assert problem in error.problem
    assert remedy in error.remedy
    assert error.where == f"f.yaml:{len(lines)}"
    assert "Input should" not in str(error)  # pydantic's own words


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("training_args: {learning_rat: 1}", "Did you mean learning_rate?"),
        ("trainin_args: {}", "Did you mean training_args?"),
        ("component: {}", "Did you mean components?"),
        ("training_args: {dropout: 1}", "Did you mean method.dropout? dropout belongs there."),
        ("method: {temperatur: 1}", "Did you mean generation.temperature?"),
        ("training_args: {max_new_token: 1}", "Did you mean max_new_tokens?"),
        ("training_args: {micro_batch_size: 1}", "is training_args.per_device_train_batch_size here"),
        ("lr: 1", "Soup's lr is training_args.learning_rate here."),
        ("lora_r: 8", "PEFT's lora_r is method.r here."),
        ("max_seq_length: 8", "TRL's max_seq_length is data_preprocessing.max_length here."),
        ("method: {packing: true}", "remove the key"),
        ("dataset: {zzz: 1}", "use one of: train_file, eval_file,"),
    ],
)
def test_unknown_keys(refused: Refuse, setting: str, remedy: str) -> None:
    error = refused(f"s:\n  name: x\n  {setting}\n")
    assert error.problem.startswith("unknown key ")
    assert error.where == "f.yaml:3"
    assert remedy in error.remedy


def test_all_faults_are_told_at_once_in_the_files_order(refused: Refuse) -> None:
    error = refused(
        """
        s:
          components: {robot: {}}
          training_args:
            lr: 1
            num_train_epochs: 2
          method:
            r: 0
        """
    )
    assert error.problem == (
        "unknown key components.robot; 2 more faults: "
        "unknown key training_args.lr (f.yaml:5); method.r must be at least 1 (got 0) (f.yaml:8)"
    )
    assert error.where == "f.yaml:3"


def test_a_list_of_many_faults_is_cut(refused: Refuse) -> None:
    error = refused("s:\n" + "".join(f"  zz{number}: 1\n" for number in range(30)))
    assert "29 more faults" in error.problem and "and 21 after that" in error.problem


def test_only_the_fault_told_in_full_looks_for_its_remedy(
    refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[str] = []

    def suggest(path: tuple[str, ...], also: tuple[str, ...] = ()) -> str:
        looked_for.append(path[-1])
        return suggest_for_key(path, also)

    monkeypatch.setattr(faults, "suggest_for_key", suggest)
    refused("s:\n" + "".join(f"  zz{number}: 1\n" for number in range(30)))
    assert looked_for == ["zz0"]


def test_a_strange_key_does_not_break_the_three_lines(refused: Refuse) -> None:
    assert "'a\\nb'" in refused('s:\n  "a\\nb": 1\n').problem
    assert len(refused(f"s:\n  {'k' * 500}: 1\n").problem) < 200


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("training_args: {max_seq_length: 0}", "max_length (written as training_args.max_seq_length)"),
        ("training: {epochs: none}", "num_train_epochs (written as training.epochs)"),
        ("training: {learning_rate: 2}", "learning_rate must"),
    ],
)
def test_a_wrong_value_is_told_by_the_name_that_the_file_has_for_it(
    refused: Refuse, written: str, problem: str
) -> None:
    assert problem in refused(f"s:\n  {written}\n").problem


def test_a_fault_on_the_command_line_names_the_option(refused: Refuse) -> None:
    error = refused("s: {name: x}", method__r="0")
    assert (error.problem, error.where) == ("method.r must be at least 1 (got 0)", "--set method.r")


def test_the_tables_lead_somewhere() -> None:
    paths = set(all_paths())
    assert set(MOVED.values()) <= paths
    written = [set(MOVED), set(RETIRED), set(REFUSED), paths]
    for one, other in combinations(written, 2):
        assert not one & other, "a key has one answer only"


def test_every_setting_says_what_it_does() -> None:
    def undocumented(section: type[Section], prefix: str = "") -> list[str]:
        missing = [prefix + name for name, field in section.model_fields.items() if not field.description]
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                missing += undocumented(field.annotation, f"{prefix}{name}.")
        return missing

    assert undocumented(Strategy) == []
