"""Every setting that is accepted changes behaviour: each has its proof.

The table names the proof of each setting; a setting without one, a proof that is not there, and a row about a
setting that is gone all fail. `ACTS` stands for a line of its own in tests/training/test_settings_act.py.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from llamafarm.strategy.schema import Strategy, walk_leaves

ROOT = Path(__file__).parents[2]
ACTS = "training/test_settings_act.py::test_another_value_trains_other_weights"
PREPARE = "training/preparation/test_prepare.py::"
RUN = "training/test_run.py::"
PRECISION = "hardware/test_precision.py::"
OPENING = "commands/test_opening.py::"
CLOSING = "training/test_closing.py::"
METHODS = "training/test_methods.py::"
COLUMNS = "data/reading/test_files.py::test_columns_are_read_under_the_names_that_the_strategy_gives"
STRATEGIES = "commands/test_strategies.py::"
ANSWERS = "test_a_strategys_generation_settings_are_those_of_the_answers"
CANNOT = "test_what_a_device_cannot_do_is_an_error_that_names_the_alternative"

EXPORT = "training/test_export.py::test_every_setting_of_an_export_acts"
ASKING = "commands/test_asking.py::"

PROOFS: dict[str, str] = {
    "export.importance_matrix": "training/test_export.py::test_an_importance_matrix_is_measured_if_asked",
    "export.model_name": EXPORT,
    "export.ollama_parameters.num_ctx": EXPORT,
    "export.ollama_parameters.num_predict": EXPORT,
    "export.ollama_parameters.repeat_penalty": EXPORT,
    "export.ollama_parameters.stop": EXPORT,
    "export.ollama_parameters.temperature": EXPORT,
    "export.ollama_parameters.top_k": EXPORT,
    "export.ollama_parameters.top_p": EXPORT,
    "export.quantization": EXPORT,
    "export.system_prompt": EXPORT,
    "export.to_gguf": "training/test_export.py::test_a_file_is_written_verified_on_the_runs_rows",
    "export.to_ollama": EXPORT,
    "model_app.config.base_url": ASKING + "test_an_ollama_elsewhere_and_none_at_all",
    "model_app.config.default_model": ASKING + "test_ollama_answers_where_it_has_the_model",
    "model_app.config.gpu_layers": ASKING + "test_layers_and_threads_are_llama_cpps",
    "model_app.config.num_thread": ASKING + "test_layers_and_threads_are_llama_cpps",
    "model_app.config.timeout": ASKING + "test_a_server_that_says_nothing_is_waited_for_as_long_as_asked",
    "model_app.type": ASKING + "test_llama_cpp_and_transformers_answer_the_same",
    "base_model.cache_dir": OPENING + "test_cache_dir_is_where_a_model_from_the_hub_is_looked_for",
    "base_model.huggingface_id": PREPARE + "test_a_base_model_that_is_not_there_is_refused",
    "base_model.name": RUN + "test_the_name_of_the_base_is_the_one_that_the_strategy_gives",
    "dataset.allow": "training/preparation/test_gate.py::"
    "test_a_row_with_nothing_to_train_on_stops_the_run_before_it_starts",
    "dataset.columns.input": COLUMNS,
    "dataset.columns.instruction": COLUMNS,
    "dataset.columns.messages": COLUMNS,
    "dataset.columns.output": COLUMNS,
    "dataset.columns.system": COLUMNS,
    "dataset.columns.text": COLUMNS,
    "dataset.on_bad_row": PREPARE + "test_columns_and_bad_rows_are_read_as_the_strategy_says",
    "dataset.train_on": PREPARE + "test_which_tokens_are_trained_on_is_as_the_strategy_says",
    "dataset.train_on_prompt": PREPARE + "test_which_tokens_are_trained_on_is_as_the_strategy_says",
    "dataset.when_too_long": PREPARE + "test_rows_that_are_too_long_are_treated_as_the_strategy_says",
    "dataset.format": "data/reading/test_records.py::test_a_form_that_is_asked_for_is_not_guessed",
    "dataset.train_file": PREPARE + "test_a_strategy_without_training_data_is_refused",
    "description": STRATEGIES + "test_list_names_each_strategy_with_its_place",
    "generation.max_new_tokens": OPENING + ANSWERS,
    "generation.repetition_penalty": OPENING + ANSWERS,
    "generation.temperature": OPENING + ANSWERS,
    "generation.top_k": OPENING + ANSWERS,
    "generation.top_p": OPENING + ANSWERS,
    "hardware.memory_gb": "training/preparation/test_memory.py::"
    "test_less_memory_means_smaller_packs_and_the_same_weights",
    "hardware.device": "hardware/test_device.py::test_a_device_that_is_there_is_taken_as_asked",
    "hardware.precision.cpu.use_fp16": PRECISION + CANNOT,
    "hardware.precision.cuda.use_bf16": PRECISION + "test_the_guides_rules",
    "hardware.precision.cuda.use_fp16": PRECISION + "test_the_guides_rules",
    "hardware.precision.cuda.use_tf32": PRECISION + "test_tf32_is_used_from_ampere_on_unless_switched_off",
    "hardware.precision.mps.use_bf16": PRECISION + "test_the_guides_rules",
    "hardware.precision.mps.use_fp16": PRECISION + CANNOT,
    "method.bias": METHODS + "test_every_variant_trains_to_other_weights",
    "method.bnb_4bit_quant_type": "training/test_qlora.py::"
    "test_the_final_model_gives_the_trained_logits_on_a_base_in_4_bits",
    "method.bnb_4bit_use_double_quant": "training/test_qlora.py::"
    "test_the_final_model_gives_the_trained_logits_on_a_base_in_4_bits",
    "method.init_lora_weights": METHODS + "test_every_variant_trains_to_other_weights",
    "method.loraplus_lr_ratio": METHODS + "test_every_variant_trains_to_other_weights",
    "method.type": METHODS + "test_every_variant_trains_to_other_weights",
    "method.use_dora": METHODS + "test_every_variant_trains_to_other_weights",
    "method.use_rslora": METHODS + "test_every_variant_trains_to_other_weights",
    "monitoring.log_level": RUN + "test_the_log_level_says_what_is_printed",
    "name": STRATEGIES + "test_list_names_each_strategy_with_its_place",
    "prompt_template.stop_sequences": OPENING + ANSWERS,
    "training_args.dataloader_num_workers": RUN + "test_tokenizing_threads_are_as_many_as_the_strategy_says",
    "training_args.output_dir": RUN
    + "test_a_folder_with_a_run_is_refused_untouched_and_overwritten_if_asked",
    "training_args.per_device_eval_batch_size": RUN + "test_evaluation_packs_have_at_most_the_rows_they_may",
    "data_preprocessing.cache_dir": PREPARE + "test_large_files_are_kept_encoded_where_the_strategy_says",
    "data_preprocessing.filter_empty": PREPARE + "test_empty_rows_are_left_out_and_counted_if_asked",
    "data_preprocessing.filter_quality": PREPARE + "test_rows_of_bad_quality_are_left_out_if_asked",
    "data_preprocessing.near_duplicate_threshold": PREPARE
    + "test_rows_that_are_nearly_the_same_are_left_out_if_asked",
    "data_preprocessing.remove_near_duplicates": PREPARE
    + "test_rows_that_are_nearly_the_same_are_left_out_if_asked",
    "data_preprocessing.max_input_length": PREPARE + "test_prompts_and_answers_have_limits_of_their_own",
    "data_preprocessing.remove_duplicates": PREPARE
    + "test_repeated_rows_are_dropped_within_and_between_files_if_asked",
    "dataset.eval_file": PREPARE + "test_an_eval_file_is_evaluated_on_and_no_row_is_set_aside",
    "dataset.seed": PREPARE + "test_the_split_follows_from_its_own_seed",
    "dataset.shuffle": PREPARE + "test_an_unshuffled_split_takes_the_last_rows",
    "hardware.optimization.gradient_checkpointing": RUN + "test_gradient_checkpointing_computes_layers_again",
    "monitoring.log_tensorboard": RUN
    + "test_without_wishes_there_are_no_tensorboard_logs_and_metrics_can_be_switched_off",
    "monitoring.project": "training/trackers/test_open.py::"
    "test_a_run_has_the_names_and_settings_of_its_strategy",
    "monitoring.report_to": "training/trackers/test_open.py::"
    "test_a_training_run_writes_to_the_trackers_that_its_strategy_names_and_survives_them",
    "monitoring.general_file": CLOSING + "test_forgetting_is_measured_on_the_text_that_the_strategy_names",
    "monitoring.sample_rows": CLOSING + "test_as_many_rows_are_asked_as_the_strategy_says",
    "monitoring.save_checkpoints": PREPARE + "test_checkpoints_can_be_switched_off_as_a_whole",
    "monitoring.track_training_metrics": RUN
    + "test_without_wishes_there_are_no_tensorboard_logs_and_metrics_can_be_switched_off",
    "training_args.early_stopping_patience": RUN + "test_training_stops_early_where_asked",
    "training_args.early_stopping_threshold": "training/test_loop.py::"
    "test_better_by_less_than_the_threshold_does_not_count",
    "training_args.eval_on_start": CLOSING + "test_the_line_of_step_0_is_there_if_wanted",
    "training_args.eval_steps": PREPARE + "test_the_rhythms_of_evaluating_and_saving",
    "training_args.eval_strategy": PREPARE + "test_the_rhythms_of_evaluating_and_saving",
    "training_args.load_best_model_at_end": RUN + "test_the_best_evaluation_becomes_the_final_model",
    "training_args.logging_steps": RUN + "test_metrics_have_a_line_for_every_logged_step",
    "training_args.on_nonfinite": "training/test_recovery.py::"
    "test_on_nonfinite_says_whether_a_step_is_skipped",
    "training_args.metric_for_best_model": "training/test_loop.py::test_the_metric_says_which_is_best",
    "training_args.save_steps": PREPARE + "test_the_rhythms_of_evaluating_and_saving",
    "training_args.save_strategy": PREPARE + "test_the_rhythms_of_evaluating_and_saving",
    "training_args.save_total_limit": RUN + "test_as_many_checkpoints_are_kept_as_asked",
}


def test_every_setting_has_its_proof() -> None:
    settings = {path for path, _ in walk_leaves(Strategy())}
    acting = {path for path in settings if f'("{path}", ' in acts_file()}
    assert settings - acting - PROOFS.keys() == set()
    assert PROOFS.keys() - settings == set(), "rows about settings that are not there"
    assert PROOFS.keys() & acting == set(), "rows that test_settings_act.py has already"


@pytest.mark.parametrize("proof", sorted({*PROOFS.values(), ACTS}))
def test_the_proofs_are_there(proof: str) -> None:
    file, _, test = proof.partition("::")
    assert test in names_of_tests(ROOT / "tests" / file)


def acts_file() -> str:
    return (ROOT / "tests" / ACTS.partition("::")[0]).read_text(encoding="utf-8")


@cache
def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
