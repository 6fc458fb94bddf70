"""Keys that are no settings here: retired ones, refused ones, and those of other tools."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from llamafarm.errors import StrategyError
from llamafarm.strategy.foreign import TOOLS
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.retired import REFUSED, RETIRED, answer_for
from llamafarm.strategy.schema import Strategy, TrainingArgs
from llamafarm.strategy.spelling import MOVED, all_paths, translate

Load = Callable[..., LoadedStrategy]
Refuse = Callable[..., StrategyError]


def write(path: str, value: object) -> str:
    """Return a strategy with one key, in block style; the key is in the last line."""
    *sections, key = path.split(".")
    lines = ["s:", *("  " * (depth + 1) + name + ":" for depth, name in enumerate(sections))]
    return "\n".join([*lines, "  " * len(lines) + f"{key}: {json.dumps(value)}"])


@pytest.mark.parametrize("path", RETIRED)
@pytest.mark.parametrize("value", [True, "auto", {"any": [1]}])
def test_a_retired_key_is_accepted_and_told(loaded: Load, path: str, value: object) -> None:
    text = write(path.replace("*", "whatever"), value)
    found = loaded(text)
    assert found.strategy == Strategy()
    (retired,) = found.retired
    assert (retired.path, retired.why) == (path.replace("*", "whatever"), RETIRED[path])
    assert retired.origin.where == f"f.yaml:{len(text.splitlines())}"


@pytest.mark.parametrize("path", REFUSED)
def test_a_refused_key_is_refused_unless_it_asks_for_nothing(
    loaded: Load, refused: Refuse, path: str
) -> None:
    text = write(path, "something else")
    error = refused(text)
    assert error.problem == f"{path} has no place here: {REFUSED[path].why} (got the text 'something else')"
    assert error.where == f"f.yaml:{len(text.splitlines())}"
    assert error.remedy == REFUSED[path].remedy
    for value in (None, [], *REFUSED[path].harmless):
        found = loaded(write(path, value))
        assert found.strategy == Strategy()
        assert [retired.path for retired in found.retired] == [path]


def test_false_asks_for_nothing_but_where_true_does(loaded: Load, refused: Refuse) -> None:
    assert loaded(write("training_args.fp16", False)).retired[0].path == "training_args.fp16"
    assert "mixed_precision: fp16" in refused(write("training_args.fp16", True)).remedy
    assert loaded(write("framework.use_fast_tokenizer", True)).retired
    assert "slow tokenizers" in refused(write("framework.use_fast_tokenizer", False)).problem


def test_a_child_need_not_say_again_what_its_parent_set(loaded: Load) -> None:
    found = loaded(
        """
        p: {training_args: {fp16_backend: auto, local_rank: 0}}
        s: {extends: p, training_args: {fp16_backend: apex}}
        """
    )
    assert [(retired.path, retired.origin.where) for retired in found.retired] == [
        ("training_args.fp16_backend", "f.yaml:3"),
        ("training_args.local_rank", "f.yaml:2"),
    ]


def test_the_command_line_may_retire_too(loaded: Load) -> None:
    (retired,) = loaded("s: {name: x}", training_args__fp16_backend="auto").retired
    assert retired.origin.where == "--set training_args.fp16_backend"


def test_report_to_is_read_as_in_transformers_but_for_all(loaded: Load, refused: Refuse) -> None:
    found = loaded("s: {training_args: {report_to: [wandb, tensorboard], project: asthma}}").strategy
    assert found.monitoring.trackers == ("wandb", "tensorboard")
    assert found.monitoring.project == "asthma"
    error = refused("s: {training_args: {report_to: all}}")
    assert error.problem == (
        "monitoring.report_to must name the trackers, as nothing is sent unasked (got the text 'all')"
    )
    assert error.remedy.startswith("Write report_to: [tensorboard]")
    assert (
        "must be one of tensorboard, wandb, mlflow, trackio"
        in refused("s: {monitoring: {report_to: comet_ml}}").problem
    )
    assert "Write report_to: mlflow." in refused("s: {monitoring: {report_to: [mlfow]}}").remedy
    assert "must be a list" in refused("s: {monitoring: {report_to: 3}}").problem
    assert (
        "there twice"
        in refused("s: {training_args: {report_to: wandb}, monitoring: {report_to: mlflow}}").problem
    )
    assert "a name of up to 100" in refused("s: {monitoring: {project: a/b}}").problem


# Every spelling of section 2 of what the original had, with a value in use there.
UPSTREAM: list[tuple[str, object, str]] = [
    ("base_model.cache_dir", "./cache", "setting"),
    ("base_model.device_map", "auto", "retired"),
    ("base_model.low_cpu_mem_usage", True, "retired"),
    ("base_model.name", "llama3.2", "setting"),
    ("base_model.torch_dtype", "float16", "setting"),
    ("base_model.trust_remote_code", False, "retired"),
    ("components.backup_api", {"type": "openai_compatible"}, "refused"),
    ("components.cloud_api", {"type": "openai_compatible", "config": {"provider": "openai"}}, "refused"),
    ("components.converters", {"gguf": {"quantization": "q4_0"}}, "refused"),
    ("components.fine_tuner.config.dataset.path", "rows.jsonl", "setting"),
    ("components.fine_tuner.config.dataset.dataset_name", "owner/data", "refused"),
    ("components.fine_tuner.config.dataset.dataset_config_name", "default", "refused"),
    ("components.fine_tuner.config.dataset.train_split", "train", "retired"),
    ("components.fine_tuner.config.dataset.eval_split", 0.1, "setting"),
    ("components.fine_tuner.config.dataset.preprocessing_num_workers", 4, "setting"),
    ("components.fine_tuner.config.environment.device", "cpu", "setting"),
    ("components.fine_tuner.config.environment.low_cpu_mem_usage", True, "retired"),
    ("components.fine_tuner.config.environment.seed", 42, "setting"),
    ("components.fine_tuner.config.framework.gradient_checkpointing", True, "setting"),
    ("components.fine_tuner.config.framework.use_fast_tokenizer", True, "retired"),
    ("components.fine_tuner.type", "llamafactory", "refused"),
    ("components.mock_model", {"type": "mock_model"}, "refused"),
    ("components.model_app.type", "vllm", "refused"),
    ("components.model_app.config.auto_start", True, "refused"),
    ("components.model_app.config.models", [{"name": "llama3.2:3b", "pull_on_start": True}], "retired"),
    ("components.ollama", {"type": "ollama"}, "refused"),
    ("components.repository.config.cache_dir", "./cache", "setting"),
    ("components.repository.config.private", True, "retired"),
    ("components.repository.config.repo_id", "owner/model", "retired"),
    ("components.repository.config.token", "${HF_TOKEN}", "refused"),
    ("components.repository.type", "huggingface", "retired"),
    ("components.rlhf_tuner", {"type": "pytorch"}, "refused"),
    ("components.sft_tuner", {"type": "pytorch"}, "refused"),
    ("constraints.allowed_models", ["a"], "retired"),
    ("constraints.max_cost_per_request", 0.1, "retired"),
    ("constraints.max_tokens", 100, "setting"),
    ("constraints.privacy_mode", True, "retired"),
    ("constraints.requires_gpu", True, "refused"),
    ("conversion", {"auto_install_llama_cpp": True, "workflow": ["merge_lora"]}, "retired"),
    ("data_preprocessing.augmentation.enabled", False, "retired"),
    ("data_preprocessing.augmentation.enabled", True, "refused"),
    ("data_preprocessing.augmentation.paraphrase", True, "retired"),
    ("data_preprocessing.filter_empty", True, "setting"),
    ("data_preprocessing.instruction_template", "Q: {instruction}", "refused"),
    ("data_preprocessing.remove_patterns", ["^#"], "refused"),
    ("data_preprocessing.simplify_instructions", True, "refused"),
    ("data_preprocessing.validation.check_format", True, "retired"),
    ("data_preprocessing.validation.remove_conversations", True, "refused"),
    ("data_preprocessing.validation.remove_multi_sentence", True, "refused"),
    ("data_preprocessing.validation.single_response_only", True, "refused"),
    ("export.ollama_parameters.num_predict", 100, "setting"),
    ("fallback_chain", [{"name": "a", "type": "b"}], "refused"),
    ("max_seq_length", 512, "unknown"),
    ("monitoring.metrics_enabled", True, "setting"),
    ("monitoring.trace_enabled", True, "retired"),
    ("optimization.batch_size", 4, "retired"),
    ("optimization.cache_enabled", True, "retired"),
    ("optimization.retry_policy", {"max_attempts": 3, "backoff_multiplier": 2}, "retired"),
    ("optimization.timeout_seconds", 30, "retired"),
    ("pipeline.stages", ["a"], "refused"),
    ("repository", {"type": "huggingface"}, "refused"),
    ("routing_rules", [{"condition": "a"}], "refused"),
    ("test_queries", ["What is asthma?"], "retired"),
    ("training.batch_size", 4, "setting"),
    ("training.learning_rate", 0.0002, "setting"),
    ("training.num_epochs", 3, "setting"),
    ("training_args.max_seq_length", 512, "setting"),
    ("training_args.remove_unused_columns", False, "retired"),
    ("training_args.report_to", "none", "setting"),
    ("training_args.save_safetensors", True, "retired"),
]


@pytest.mark.parametrize(("path", "value", "answer"), UPSTREAM)
def test_every_spelling_in_use_upstream_has_an_answer(
    loaded: Load, refused: Refuse, path: str, value: object, answer: str
) -> None:
    text = write(path, value)
    if answer in ("refused", "unknown"):
        error = refused(text)
        # A whole block that is refused is told in the line of its first key.
        assert error.where in (f"f.yaml:{len(text.splitlines())}", "f.yaml:2")
        assert ("unknown key" in error.problem) == (answer == "unknown")
        assert error.remedy
        return
    found = loaded(text)
    assert bool(found.retired) == (answer == "retired")
    has_origin = any(origin.kind == "strategy file" for origin in found.origins.values())
    assert has_origin == (answer == "setting")


def arguments_of_transformers() -> list[str]:
    """Read the fields of TrainingArguments from its source, because importing it takes seconds."""
    package = find_spec("transformers")
    assert package is not None and package.origin is not None
    tree = ast.parse((Path(package.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments")
    return [n.target.id for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]


def test_every_training_argument_of_transformers_has_an_answer() -> None:
    names = arguments_of_transformers()
    assert len(names) > 80
    without = [
        name
        for name in names
        if name not in TrainingArgs.model_fields
        and f"training_args.{name}" not in MOVED
        and answer_for(f"training_args.{name}") is None
    ]
    assert without == []


def test_the_tables_of_other_tools_are_full_and_lead_somewhere() -> None:
    assert len(set().union(*TOOLS.values())) >= 250
    for tool, keys in TOOLS.items():
        for key, answer in keys.items():
            first = answer.split()[0].rstrip(",")
            looks_like_place = re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+", first)
            assert not looks_like_place or first in all_paths(), (tool, key)
            assert looks_like_place or answer[0].isupper() or answer[0] == "`", (tool, key)
            assert answer[-1] not in ".;", (tool, key)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sequence_len", "Axolotl's sequence_len is data_preprocessing.max_length here."),
        ("val_size", "LLaMA-Factory's val_size is dataset.eval_split here."),
        ("lora_target", "LLaMA-Factory's lora_target is method.target_modules (all is all-linear) here."),
        ("lora_r", "PEFT's lora_r is method.r here."),
        ("load_in_4bit", "Write method.type: qlora for a base in 4 bits; remove the key."),
        ("random_state", "Unsloth's random_state is environment.seed here."),
        (
            "wandb_project",
            "Axolotl's wandb_project is monitoring.project, beside monitoring.report_to: wandb, here.",
        ),
        ("completion_only_loss", "Only answers are trained on; remove the key."),
        ("quantity_of_cheese", ""),
    ],
)
def test_a_key_of_another_tool_is_translated(key: str, said: str) -> None:
    assert translate(key) == said


AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: lora
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
flash_attention: true
"""
LLAMA_FACTORY = """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
output_dir: saves/llama3-8b/lora/sft
per_device_train_batch_size: 1
learning_rate: 1.0e-4
num_train_epochs: 3.0
bf16: true
"""


@pytest.mark.parametrize(
    ("tool", "text", "said"),
    [
        ("Axolotl", AXOLOTL, ["val_set_size: dataset.eval_split", "adapter: method.type"]),
        (
            "LLaMA-Factory",
            LLAMA_FACTORY,
            ["lora_rank: method.r", "cutoff_len: data_preprocessing.max_length"],
        ),
        ("TRL", "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\n", ["use_peft: method.type"]),
        ("Unsloth", "model: a/b\ntraining_type: lora\nlocal_dataset: x\n", ["training_type: method.type"]),
    ],
)
def test_a_whole_configuration_of_another_tool_is_recognised(
    refused: Refuse, tool: str, text: str, said: list[str]
) -> None:
    error = refused(text)
    assert error.problem.startswith(f"this is a configuration of {tool} ")
    assert error.where == "f.yaml:1"
    assert all(translation in error.remedy for translation in said)
    assert len(error.remedy) < 1500


@pytest.mark.parametrize("text", ["model: {}\nadapter: {}\ns: {}", "epochs: {name: x}\nlr: {}\ns: {}"])
def test_strategies_may_be_named_like_another_tools_keys(loaded: Load, text: str) -> None:
    assert loaded(text).key == "s"
