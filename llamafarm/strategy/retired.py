"""Keys that a strategy may hold and that are no settings here: tables, one sentence for each.

RETIRED keys are accepted with any value and change nothing; whoever sets one is told why. REFUSED keys would
change something if they were obeyed, so that only a value that asks for nothing passes, as a retired one.
`layout.py` looks keys up as they are written and under the section's own name; `foreign.py` has other tools'
keys, which no strategy may hold. Most are keys of transformers' TrainingArguments, of which each has an
answer, or of earlier LlamaFarm strategies. The file is over 300 lines, because it is two tables.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from llamafarm.strategy.document import Node, Origin


class Retired(NamedTuple):
    """A key that somebody set and that changes nothing."""

    path: str
    why: str
    origin: Origin


class Refused(NamedTuple):
    """Why a key cannot be used, what to do instead, and the values that pass beside null, false and empty."""

    why: str
    remedy: str
    harmless: tuple[Any, ...] = ()


_AMP = "PyTorch has one kind of mixed precision; hardware.optimization.mixed_precision chooses its numbers"
_LOADER = "all rows are tokenized before the first step, and packs are cut from them in memory"
_PACKED = "rows are packed whenever that is faster, and never see each other"
_DEVICE = "the model is held where hardware.device says"
_PROCESSES = "one process trains, so that there is nothing to keep in step"
_METRICS = "evaluation measures loss and perplexity, and `evaluate` the answers"
_TRACKIO = "trackio writes on this machine only"
_KERNELS = "kernels are chosen for the machine"
_UPLOAD = "nothing is uploaded"
_SERVICE = "nothing is asked of a paid service: everything runs on this machine"
_CHECKED = "rows are always checked before the first step"
_OFF = "it is read only where the key above it is switched on, and that is refused"

RETIRED: dict[str, str] = {
    "base_model.low_cpu_mem_usage": "weights are always read straight from their file",
    "base_model.attn_implementation": _KERNELS,
    "components.repository.private": _UPLOAD,
    "components.repository.repo_id": _UPLOAD,
    "components.repository.config.private": _UPLOAD,
    "components.repository.config.repo_id": _UPLOAD,
    "constraints.allowed_models": "only the base_model of the strategy is used",
    "constraints.max_cost_per_request": _SERVICE,
    "constraints.privacy_mode": "no data ever leaves this machine",
    "conversion": "the section export says what to make, and nothing has to be installed or compiled for it",
    "data_preprocessing.augmentation.*": _OFF,
    "data_preprocessing.validation.check_format": _CHECKED,
    "dataset.train_split": "a file of examples has no named splits",
    "dataset.test_split": "a file of examples has no named splits",
    "environment.low_cpu_mem_usage": "weights are always read straight from their file",
    "model_app.config.models": "one model is asked: model_app.config.default_model, or the exported one",
    "monitoring.trace_enabled": "nothing is traced; metrics.jsonl has what happened in each step",
    "optimization.batch_size": "no requests are sent in batches; the rows of training are "
    "training_args.per_device_train_batch_size",
    "optimization.cache_enabled": "no answers are fetched that could be kept",
    "optimization.retry_policy": "no requests are sent that could be tried again",
    "optimization.timeout_seconds": "model_app.config.timeout is the time to wait for an answer",
    "test_queries": "`complete` asks a question, and `evaluate` a file of them",
    # transformers' TrainingArguments, of this and of earlier versions
    "training_args.activation_checkpointing_kwargs": "there is one way to checkpoint",
    "training_args.auto_find_batch_size": "packs follow the memory; per_device_train_batch_size may be auto",
    "training_args.average_tokens_across_devices": "the loss is always the mean over all tokens of a step",
    "training_args.batch_eval_metrics": _METRICS,
    "training_args.bf16_full_eval": "evaluation computes with the numbers of training",
    "training_args.dataloader_in_order": _LOADER,
    "training_args.dataloader_multiprocessing_context": _LOADER,
    "training_args.dataloader_persistent_workers": _LOADER,
    "training_args.dataloader_pin_memory": _LOADER,
    "training_args.dataloader_prefetch_factor": _LOADER,
    "training_args.ddp_backend": _PROCESSES,
    "training_args.ddp_broadcast_buffers": _PROCESSES,
    "training_args.ddp_bucket_cap_mb": _PROCESSES,
    "training_args.ddp_find_unused_parameters": _PROCESSES,
    "training_args.ddp_static_graph": _PROCESSES,
    "training_args.ddp_timeout": _PROCESSES,
    "training_args.debug": "monitoring.log_level: debug shows more",
    "training_args.disable_tqdm": "a bar is drawn only where a person looks; --quiet draws none",
    "training_args.dispatch_batches": _LOADER,
    "training_args.do_eval": "the verb says what is done: train evaluates as eval_strategy says",
    "training_args.do_predict": "the verb says what is done: `evaluate` asks for answers",
    "training_args.do_train": "the verb says what is done: `train` trains",
    "training_args.enable_jit_checkpoint": "save_strategy and save_steps say when to save",
    "training_args.eval_accumulation_steps": "evaluation sums its loss as it goes, and keeps nothing to move",
    "training_args.eval_do_concat_batches": _METRICS,
    "training_args.eval_packing": _PACKED,
    "training_args.eval_use_gather_object": _METRICS,
    "training_args.fp16_backend": _AMP,
    "training_args.fp16_full_eval": "evaluation computes with the numbers of training",
    "training_args.fp16_opt_level": _AMP,
    "training_args.gradient_checkpointing_kwargs": "there is one way to checkpoint",
    "training_args.group_by_length": _PACKED,
    "training_args.half_precision_backend": _AMP,
    "training_args.hub_always_push": _UPLOAD,
    "training_args.hub_model_id": _UPLOAD,
    "training_args.hub_private_repo": _UPLOAD,
    "training_args.hub_revision": _UPLOAD,
    "training_args.hub_strategy": _UPLOAD,
    "training_args.ignore_data_skip": "which rows come next follows from the seed and the step",
    "training_args.include_for_metrics": _METRICS,
    "training_args.include_inputs_for_metrics": _METRICS,
    "training_args.include_num_input_tokens_seen": "metrics.jsonl always counts tokens",
    "training_args.jit_mode_eval": _KERNELS,
    "training_args.label_names": "what is predicted is the answer's tokens",
    "training_args.length_column_name": _PACKED,
    "training_args.liger_kernel_config": _KERNELS,
    "training_args.local_rank": _PROCESSES,
    "training_args.log_level_replica": _PROCESSES,
    "training_args.log_on_each_node": _PROCESSES,
    "training_args.logging_dir": "TensorBoard's files go to logs/ in the run's folder",
    "training_args.logging_first_step": "logging_steps is 1 by default, so that the first step is logged",
    "training_args.logging_nan_inf_filter": "a loss that is not finite stops the run and is never hidden",
    "training_args.packing": _PACKED,
    "training_args.packing_strategy": _PACKED,
    "training_args.padding_free": "rows are laid end to end, without padding",
    "training_args.prediction_loss_only": _METRICS,
    "training_args.remove_unused_columns": "of a row, only the keys of its format are read",
    "training_args.restore_callback_states_from_checkpoint": "there are no callbacks",
    "training_args.run_name": "a run is known by its folder, training_args.output_dir, for its trackers too",
    "training_args.save_on_each_node": _PROCESSES,
    "training_args.save_only_model": "what a checkpoint holds is not chosen",
    "training_args.save_safetensors": "weights are always saved as safetensors",
    "training_args.skip_memory_metrics": "metrics.jsonl always has the memory",
    "training_args.split_batches": _LOADER,
    "training_args.torch_compile_backend": _OFF,
    "training_args.torch_compile_mode": _OFF,
    "training_args.torch_empty_cache_steps": "what memory to keep is left to PyTorch",
    "training_args.trackio_bucket_id": _TRACKIO,
    "training_args.trackio_space_id": _TRACKIO,
    "training_args.trackio_static_space_id": _TRACKIO,
    "training_args.use_cache": "training never keeps the keys and values of a pass, answers always do",
    "training_args.use_ipex": _KERNELS,
    "training_args.use_liger_kernel": _KERNELS,
}

_ADAMW = ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "AdamW")
_CLEAN = "Change the file of examples itself, before training."
_NO_SERVICE = "this tool fine-tunes models on this machine and calls no service"
_NO_ROUTES = "this tool fine-tunes one model for each strategy and chooses between none"
_NO_CLUSTER = "one process trains on one device"
_PRECISION = "numbers to compute with are chosen by hardware.optimization.mixed_precision"
_CPU = "Write hardware.device: cpu."
_PROMPTS = "only answers are trained on"
_ONE_STAGE = "a strategy trains one model once"
_ONE_COMPONENT = "Write components.fine_tuner, and a second strategy for a second stage."

REFUSED: dict[str, Refused] = {
    "base_model.device_map": Refused(_DEVICE, "Write hardware.device.", ("auto",)),
    "base_model.load_in_4bit": Refused("4-bit weights belong to a method", "Write method.type: qlora."),
    "base_model.load_in_8bit": Refused("weights are held in 16, 32 or 4 bits", "Write method.type: qlora."),
    "base_model.token": Refused("a secret does not belong in a strategy", "Set HF_TOKEN in the environment."),
    "base_model.trust_remote_code": Refused(
        "it would run code that a stranger uploaded beside the model",
        "Remove the line, and use a model whose architecture transformers has itself.",
    ),
    "base_model.use_fast_tokenizer": Refused(
        "slow tokenizers do not say which characters a token came from", "Remove the line.", (True,)
    ),
    "components.backup_api": Refused(_NO_SERVICE, "Remove it."),
    "components.cloud_api": Refused(_NO_SERVICE, "Remove it; model_app.type: ollama asks a local Ollama."),
    "components.converters": Refused(
        "what is made of the model has its own section",
        "Write export: {to_gguf: true, quantization: q8_0}, or to_ollama: true.",
    ),
    "components.mock_model": Refused(
        "answers are never made up",
        "Remove it: without a base_model, the small one that comes with LlamaFarm is used.",
    ),
    "components.ollama": Refused(
        "what serves the model is components.model_app", "Write model_app: {type: ollama}."
    ),
    "components.pretrain_tuner": Refused(_ONE_STAGE, _ONE_COMPONENT),
    "components.repository.type": Refused(
        "base models come from the Hugging Face hub or from a folder",
        "Write base_model: <folder> for a model from elsewhere.",
        ("huggingface",),
    ),
    "components.repository.config.token": Refused(
        "a secret does not belong in a strategy", "Set HF_TOKEN in the environment."
    ),
    "components.repository.token": Refused(
        "a secret does not belong in a strategy", "Set HF_TOKEN in the environment."
    ),
    "components.rlhf_tuner": Refused(
        "models are trained on answers, not on preferences", "Use components.fine_tuner."
    ),
    "components.sft_tuner": Refused(_ONE_STAGE, _ONE_COMPONENT),
    "constraints.requires_gpu": Refused(
        "the device is chosen by hardware.device", "Write hardware.device: cuda, an error without such a GPU."
    ),
    "converters": Refused(
        "what is made of the model has its own section",
        "Write export: {to_gguf: true, quantization: q8_0}, or to_ollama: true.",
    ),
    "data_preprocessing.augmentation.enabled": Refused("rows are never invented", "Add rows to the file."),
    "data_preprocessing.instruction_template": Refused(
        "the text around question and answer has one place",
        "Write prompt_template.format, with {input} and {output}.",
    ),
    "data_preprocessing.remove_patterns": Refused("texts are never changed in silence", _CLEAN),
    "data_preprocessing.simplify_instructions": Refused("texts are never changed in silence", _CLEAN),
    "data_preprocessing.validation.remove_conversations": Refused(
        "a conversation is trained on as one, each answer in its place", _CLEAN
    ),
    "data_preprocessing.validation.remove_multi_sentence": Refused(
        "rows are not left out for their length in sentences",
        "Write data_preprocessing.max_output_length, which counts tokens.",
    ),
    "data_preprocessing.validation.single_response_only": Refused(
        "a conversation is trained on as one, each answer in its place", _CLEAN
    ),
    "dataset.dataset_config_name": Refused("examples are read from files", "Write dataset.train_file."),
    "dataset.dataset_name": Refused(
        "examples are read from files, not from the Hub",
        "Download it with `hf download --repo-type dataset`, and write dataset.train_file.",
    ),
    "dataset.streaming": Refused("files are read whole, and checked before the first step", "Remove it."),
    "environment.num_gpus": Refused(_NO_CLUSTER, "Remove it.", (0, 1)),
    "fallback_chain": Refused(_NO_ROUTES, "Remove it."),
    "framework.use_fast_tokenizer": Refused(
        "slow tokenizers do not say which characters a token came from", "Remove the line.", (True,)
    ),
    "model_app.config.auto_start": Refused("Ollama is not started from here", "Start it: `ollama serve`."),
    "pipeline": Refused(_ONE_STAGE, _ONE_COMPONENT),
    "repository": Refused(
        "base models come from the Hugging Face hub or from a folder",
        "Write base_model.huggingface_id, base_model.cache_dir, and HF_TOKEN in the environment.",
    ),
    "routing_rules": Refused(_NO_ROUTES, "Remove it, and name the strategy with --strategy."),
    # transformers' TrainingArguments, of this and of earlier versions
    "training_args.accelerator_config": Refused(_NO_CLUSTER, "Remove it."),
    "training_args.adafactor": Refused("the optimizer is AdamW", "Remove it."),
    "training_args.assistant_only_loss": Refused(_PROMPTS, "Remove it.", (True,)),
    "training_args.bf16": Refused(_PRECISION, "Write hardware.optimization.mixed_precision: bf16."),
    "training_args.completion_only_loss": Refused(_PROMPTS, "Remove it.", (True,)),
    "training_args.dataloader_drop_last": Refused("every row is trained on", "Remove it."),
    "training_args.deepspeed": Refused(_NO_CLUSTER, "Remove it; method.type: qlora takes the least memory."),
    "training_args.eval_delay": Refused("evaluation begins with the run", "Write a larger eval_steps.", (0,)),
    "training_args.fp16": Refused(_PRECISION, "Write hardware.optimization.mixed_precision: fp16."),
    "training_args.fsdp": Refused(_NO_CLUSTER, "Remove it; method.type: qlora takes the least memory."),
    "training_args.fsdp_config": Refused(_NO_CLUSTER, "Remove it."),
    "training_args.full_determinism": Refused(
        "a run is repeatable as far as the device's kernels are", "Write environment.seed; on the CPU it is."
    ),
    "training_args.greater_is_better": Refused(
        "each metric that there is, is better when lower", "Remove it."
    ),
    "training_args.hub_token": Refused(
        "a secret does not belong in a strategy", "Set HF_TOKEN in the environment."
    ),
    "training_args.label_smoothing_factor": Refused("answers are learnt as they are", "Remove it.", (0,)),
    "training_args.logging_strategy": Refused(
        "metrics are written by steps", "Write logging_steps.", ("steps",)
    ),
    "training_args.lr_scheduler_kwargs": Refused(
        "a schedule follows from its type and the warmup", "Write lr_scheduler_type and warmup_ratio."
    ),
    "training_args.neftune_noise_alpha": Refused("no noise is added", "Write method.dropout.", (0,)),
    "training_args.no_cuda": Refused(_DEVICE, _CPU),
    "training_args.optim": Refused(
        "the optimizer is AdamW",
        "Remove it; its settings are adam_beta1, adam_beta2 and adam_epsilon.",
        _ADAMW,
    ),
    "training_args.optim_args": Refused(
        "the optimizer is AdamW", "Write adam_beta1, adam_beta2 and adam_epsilon."
    ),
    "training_args.optim_target_modules": Refused("the optimizer is AdamW", "Write method.target_modules."),
    "training_args.overwrite_output_dir": Refused(
        "a file should not destroy a run each time it is read", "Pass --overwrite to train."
    ),
    "training_args.parallelism_config": Refused(_NO_CLUSTER, "Remove it."),
    "training_args.push_to_hub": Refused(_UPLOAD, "Upload final_model/ with `hf upload`."),
    "training_args.resume_from_checkpoint": Refused(
        "a strategy says what to train, and not how far a run of it has come", "Remove the line."
    ),
    "training_args.torch_compile": Refused("nothing is compiled", "Remove it."),
    "training_args.train_sampling_strategy": Refused(
        "rows come in a new order in each epoch", "Write data_preprocessing.shuffle.", ("random",)
    ),
    "training_args.use_cpu": Refused(_DEVICE, _CPU),
    "training_args.use_mps_device": Refused(_DEVICE, "Write hardware.device: mps."),
}


def answer_for(path: str) -> str | Refused | None:
    """Return what the tables say of a key: why it is retired or refused, or None."""
    parent, _, _ = path.rpartition(".")
    return RETIRED.get(path) or REFUSED.get(path) or RETIRED.get(f"{parent}.*")


def is_harmless(answer: Refused, node: Node) -> bool:
    """Return whether a refused key's value asks for nothing."""
    value = node.plain()
    if value is False and any(other is True for other in answer.harmless):
        return False
    return value is None or value is False or value in ("", [], {}) or value in answer.harmless


@cache
def is_heading(path: str) -> bool:
    """Return whether the tables have keys below a path, so that it may be written as a section."""
    return any(key.startswith(f"{path}.") for key in (*RETIRED, *REFUSED))
