"""Make the embedded base model, `llamafarm/assets/cria-5m`: tokenizer, weights, log.

    uv run python -m tools.pretrain --output llamafarm/assets/cria-5m --steps 2600

A cria is a young llama. The documents come from `tools/write_corpus.py`; packing and the optimizer step are
the package's own. Everything is seeded: the same machine type, versions and thread count make the same
weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llamafarm.data.encoding.pack import Pack, pack_rows
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.model.forward import packed_forward
from llamafarm.training.step import Precision, run_step
from tools.write_corpus import iterate_documents

VOCABULARY_SIZE = 3072
MAX_LENGTH = 512
SEED = 20261124
SPECIAL_TOKENS = ["<|pad|>", "<|begin|>", "<|end|>"]
# What the base was never taught to hold: a conversation. Its template is the plainest that can be masked.
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{- (message['content'] | trim) + '\\n\\n' }}"
    "{%- elif message['role'] == 'user' %}{{- 'User: ' + (message['content'] | trim) }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- '\\nAssistant: ' + (message['content'] | trim) + eos_token }}"
    "{%- else %}{{- raise_exception('the roles are system, user and assistant') }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '\\nAssistant:' }}{%- endif %}"
)


def train_tokenizer(health_share: float) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on 30,000 documents, with GPT-2's way of cutting words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = itertools.islice(iterate_documents(SEED + 1, health_share), 30_000)
    # The words of a conversation are no part of the corpus; without them here, each would cost many tokens.
    words = ["User: Assistant: System: Question: Answer: What Which How Why Where Who is the"] * 5000
    tokenizer.train_from_iterator(itertools.chain(documents, words), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True)),
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model: widths are multiples of 256, as K-quants need."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def iterate_steps(
    tokenizer: PreTrainedTokenizerFast, step_tokens: int, pack_tokens: int, health_share: float
) -> Iterator[list[Pack]]:
    """Yield the packs of one step after another: documents of about `step_tokens` tokens in all."""
    documents = iterate_documents(SEED + 2, health_share)
    while True:
        rows: list[EncodedRow] = []
        while sum(row.num_tokens for row in rows) < step_tokens:
            text = f"{tokenizer.bos_token}{next(documents)}{tokenizer.eos_token}"
            token_ids_T = np.asarray(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32)
            rows.append(EncodedRow(token_ids_T, np.ones(len(token_ids_T), dtype=np.bool_), len(rows) + 1))
        yield pack_rows(rows, range(len(rows)), pack_tokens)


def pretrain(arguments: argparse.Namespace) -> None:
    """Train, write the log as it goes, and save the model in bf16."""
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(arguments.health_share)
    model = build_model(tokenizer)
    model.train()
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 100, 0.02 + 0.49 * (1 + math.cos(math.pi * step / arguments.steps))),
    )
    precision = Precision(nullcontext)
    steps = iterate_steps(tokenizer, arguments.step_tokens, arguments.pack_tokens, arguments.health_share)
    started = time.monotonic()
    num_tokens = 0
    with packed_forward(model) as packed, (output / "pretraining.jsonl").open("w") as log:
        for step in range(1, arguments.steps + 1):
            packs = next(steps)
            result = run_step(
                packed.sum_loss,
                packs,
                optimizer,
                precision,
                max_grad_norm=1.0,
                where=f"pretraining step {step}",
            )
            schedule.step()
            num_tokens += result.num_tokens
            if step % 25 == 0 or step == 1:
                line = {
                    "step": step,
                    "train_loss": round(result.train_loss, 4),
                    "grad_norm": round(result.grad_norm, 4),
                    "learning_rate": schedule.get_last_lr()[0],
                    "tokens": num_tokens,
                    "seconds": round(time.monotonic() - started, 1),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
            if step % arguments.save_steps == 0 or step == arguments.steps:
                save(model, tokenizer, output)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the model as it is now in bf16, with its tokenizer."""
    # The head is the embedding (tied), so it is not written a second time.
    state = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.config.dtype = torch.bfloat16
    model.save_pretrained(output, state_dict=state)
    tokenizer.save_pretrained(output)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--pack-tokens", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--health-share", type=float, default=0.7)
    parser.add_argument("--save-steps", type=int, default=250)
    return parser.parse_args()


if __name__ == "__main__":
    pretrain(parse_arguments())
