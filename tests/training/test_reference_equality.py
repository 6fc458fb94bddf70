"""A run against a plain loop of stock transformers and peft, written here: the same losses and weights.

The plain loop shares nothing with the package but the rows, their order and the adapter's first weights. It
pads, masks, and finds the tokens that are trained on itself, turn by turn.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    get_scheduler,
)

from llamafarm.model.adapter import adapter_tensors, attach_adapter
from llamafarm.strategy.load import load_strategy
from llamafarm.training import methods, run
from llamafarm.training.loop import order_of_epoch
from llamafarm.training.preparation import memory

NUM_STEPS = 30
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 1e-3

ARCHITECTURES = {
    "llama": (LlamaConfig, {"num_hidden_layers": 3}),
    "qwen2": (Qwen2Config, {"num_hidden_layers": 2}),
    # A window shorter than the rows, so that it matters.
    "mistral": (MistralConfig, {"num_hidden_layers": 2, "sliding_window": 16}),
}

STRATEGY = """\
s:
  base_model: {base}
  hardware: {{device: cpu, optimization: {{mixed_precision: "no"}}}}
  method: {{r: 4, alpha: 8, dropout: 0.0, target_modules: [q_proj, v_proj, o_proj, up_proj]}}
  dataset: {{train_file: {rows}}}
  data_preprocessing: {{shuffle: {shuffle}, seed: 7}}
  training_args:
    output_dir: {output}
    max_steps: 30
    num_train_epochs: 1000
    per_device_train_batch_size: {batch_size}
    gradient_accumulation_steps: {accumulation}
    learning_rate: 0.003
    lr_scheduler_type: cosine
    warmup_steps: 3
    weight_decay: 0.01
    max_grad_norm: 0.5
    save_strategy: "no"
"""
FORMAT = r"""
  prompt_template:
    system: "Answer briefly."
    format: "Question: {input}\nAnswer: {output}"
"""


@dataclass(frozen=True)
class TrainedRun:
    """The loss of every step, and the adapter's weights after the last."""

    losses: list[float]
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class TokenRow:
    """A row's tokens, each with whether it is trained on."""

    token_ids: list[int]
    is_trained: list[bool]


# What the plain loop does differently from us if it is told to; each must be noticed.
MISTAKES = ("mean of micro-batch means", "prompts trained on", "ends not trained on", "rows not told apart")


def encode_turns(tokenizer: Any, turns: Sequence[tuple[str, bool]]) -> TokenRow:
    """Tokenize each turn by itself; a turn is its text, and whether it is trained on."""
    token_ids: list[int] = []
    is_trained: list[bool] = []
    for text, trains in turns:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        token_ids += piece
        is_trained += [trains] * len(piece)
    return TokenRow(token_ids, is_trained)


def turns_of_pair(row: dict[str, str]) -> list[tuple[str, bool]]:
    """Write out what FORMAT makes of a row."""
    prompt = f"Answer briefly.\n\nQuestion: {row['instruction']}\nAnswer:"
    return [(prompt, False), (f" {row['output']}<|end|>", True)]


def turns_of_conversation(row: dict[str, Any]) -> list[tuple[str, bool]]:
    """Write out what the embedded tokenizer's chat template makes of a conversation."""
    turns = [("<|begin|>", False)]
    for message in row["messages"]:
        text = message["content"]
        if message["role"] == "system":
            turns.append((f"{text}\n\n", False))
        elif message["role"] == "user":
            turns.append((f"User: {text}\nAssistant:", False))
        else:
            turns.append((f" {text}<|end|>", True))
    return turns


def pad(rows: Sequence[TokenRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, attention mask and labels as one padded batch."""
    longest = max(len(row.token_ids) for row in rows)
    ids, masks, labels = [], [], []
    for row in rows:
        room = longest - len(row.token_ids)
        ids.append(row.token_ids + [0] * room)
        masks.append([1] * len(row.token_ids) + [0] * room)
        wanted = [i if trains else -100 for i, trains in zip(row.token_ids, row.is_trained, strict=True)]
        labels.append([-100, *wanted[1:]] + [-100] * room)
    return torch.tensor(ids), torch.tensor(masks), torch.tensor(labels)


def train_plainly(
    base: Path,
    initial: dict[str, torch.Tensor],
    steps: Sequence[Sequence[TokenRow]],
    *,
    batch_size: int,
    mistake: str = "",
) -> TrainedRun:
    """Train on `steps`, each a list of rows, in micro-batches of `batch_size` padded rows."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=["q_proj", "v_proj", "o_proj", "up_proj"],
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"), config
        )
    set_peft_model_state_dict(model, initial)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.003, weight_decay=0.01)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=NUM_STEPS)
    losses = []
    model.train()
    for rows in steps:
        batches = [pad(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        num_trained_tokens = sum(int((labels >= 0).sum()) for _, _, labels in batches)
        step_loss = 0.0
        for ids, mask, labels in batches:
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
            )
            count = num_trained_tokens
            if mistake == "mean of micro-batch means":
                count = int((labels >= 0).sum()) * len(batches)
            (loss / count).backward()
            step_loss += float(loss.detach()) / count
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(step_loss)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if "lora_" in name}
    return TrainedRun(losses, {name.replace(".default", ""): tensor for name, tensor in state.items()})


def rows_of_steps(num_rows: int, rows_per_step: int, *, shuffle: bool) -> list[list[int]]:
    """Return the rows of each of the steps, epoch after epoch; an epoch's last step takes what is left."""
    steps: list[list[int]] = []
    epoch = 0
    while len(steps) < NUM_STEPS:
        order = order_of_epoch(num_rows, epoch, 7) if shuffle else range(num_rows)
        steps += [list(order[start : start + rows_per_step]) for start in range(0, num_rows, rows_per_step)]
        epoch += 1
    return steps[:NUM_STEPS]


def largest_difference(ours: TrainedRun, theirs: TrainedRun) -> tuple[float, float]:
    """Return the largest difference between the losses of a step, and between two weights."""
    assert ours.weights.keys() == theirs.weights.keys()
    losses = zip(ours.losses, theirs.losses, strict=True)
    weights = [(ours.weights[name] - theirs.weights[name]).abs().max() for name in ours.weights]
    return max(abs(mine - other) for mine, other in losses), float(max(weights))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Callable[[str], Path]:
    """Return the folder of a random model of an architecture, with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(repository / "llamafarm" / "assets" / "cria-5m")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            config_class, options = ARCHITECTURES[name]
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(
                config_class(
                    vocab_size=len(tokenizer),
                    hidden_size=128,
                    intermediate_size=256,
                    num_attention_heads=8,
                    num_key_value_heads=4,
                    max_position_embeddings=256,
                    initializer_range=0.06,
                    tie_word_embeddings=True,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                    **options,
                )
            )
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture
def train(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[TrainedRun, dict[str, torch.Tensor]]]]:
    """Train through `run_training` from files; return the run and the adapter's first weights."""

    def train_by_strategy(
        architecture: str, rows: Sequence[dict[str, Any]], prompt: str, pack_tokens: int, **fields: Any
    ) -> tuple[TrainedRun, dict[str, torch.Tensor]]:
        initial: dict[str, torch.Tensor] = {}

        def attach(*arguments: Any, **options: Any) -> Any:
            model, plan = attach_adapter(*arguments, **options)
            initial.update(adapter_tensors(model))
            return model, plan

        monkeypatch.setattr(methods, "attach_adapter", attach)
        monkeypatch.setattr(memory, "choose_pack_tokens", lambda kind: pack_tokens)
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = dedent(STRATEGY).format(
            base=bases(architecture), rows=tmp_path / "rows.jsonl", output=tmp_path / "run", **fields
        )
        (tmp_path / "s.yaml").write_text(text + prompt)
        result = run.run_training(load_strategy("s", file=tmp_path / "s.yaml"))
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        weights = load_file(result.final_model / "adapter_model.safetensors")
        return TrainedRun([json.loads(line)["train_loss"] for line in lines], weights), initial

    return train_by_strategy


def talk(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Make conversations of one, two and three turns, every other with a system message."""
    conversations: list[dict[str, Any]] = []
    start = 0
    while start < len(rows):
        messages = [{"role": "system", "content": "Be brief."}] if len(conversations) % 2 else []
        for row in rows[start : start + len(conversations) % 3 + 1]:
            messages.append({"role": "user", "content": row["instruction"]})
            messages.append({"role": "assistant", "content": row["output"]})
        start += len(conversations) % 3 + 1
        conversations.append({"messages": messages})
    return conversations


@pytest.mark.parametrize(
    ("architecture", "kind", "num_rows", "batch_size", "accumulation", "shuffle", "pack_tokens"),
    [
        pytest.param("llama", "pairs", 24, 8, 1, False, 1024, id="padded-batches"),
        pytest.param("llama", "pairs", 24, 8, 1, False, 100, id="several-packs-a-step"),
        pytest.param("llama", "pairs", 36, 2, 3, False, 1024, id="accumulation"),
        pytest.param("llama", "talks", 48, 6, 1, False, 1024, id="several-turns"),
        pytest.param("llama", "pairs", 22, 4, 1, True, 1024, id="shuffled-epochs-with-a-partial-step"),
        pytest.param("qwen2", "pairs", 22, 4, 2, True, 1024, id="qwen2"),
        pytest.param("mistral", "talks", 44, 6, 1, True, 1024, id="mistral-with-a-sliding-window"),
    ],
)
def test_a_run_equals_the_plain_loop(
    bases: Callable[[str], Path],
    train: Callable[..., tuple[TrainedRun, dict[str, torch.Tensor]]],
    make_rows: Callable[..., list[dict[str, str]]],
    architecture: str,
    kind: str,
    num_rows: int,
    batch_size: int,
    accumulation: int,
    shuffle: bool,
    pack_tokens: int,
) -> None:
    rows: list[dict[str, Any]] = make_rows(num_rows)
    rows = talk(rows) if kind == "talks" else rows
    ours, initial = train(
        architecture,
        rows,
        FORMAT if kind == "pairs" else "",
        pack_tokens,
        batch_size=batch_size,
        accumulation=accumulation,
        shuffle=str(shuffle).lower(),
    )
    tokenizer = AutoTokenizer.from_pretrained(bases(architecture))
    turns_of = turns_of_pair if kind == "pairs" else turns_of_conversation
    encoded = [encode_turns(tokenizer, turns_of(row)) for row in rows]
    steps = rows_of_steps(len(rows), batch_size * accumulation, shuffle=shuffle)
    theirs = train_plainly(
        bases(architecture),
        initial,
        [[encoded[index] for index in step] for step in steps],
        batch_size=batch_size,
    )
    assert len(ours.losses) == NUM_STEPS
    loss_difference, weight_difference = largest_difference(ours, theirs)
    assert loss_difference < LOSS_TOLERANCE
    assert weight_difference < WEIGHT_TOLERANCE
    # There was something to be equal: the run learnt, and moved the weights by far more than the tolerance.
    moved = max(float((ours.weights[name] - initial[name]).abs().max()) for name in initial)
    assert moved > 20 * WEIGHT_TOLERANCE
    assert ours.losses[-1] < ours.losses[0] - 0.1


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_notices_wrong_training(
    bases: Callable[[str], Path],
    make_rows: Callable[..., list[dict[str, str]]],
    mistake: str,
) -> None:
    rows = make_rows(8)
    tokenizer = AutoTokenizer.from_pretrained(bases("llama"))
    encoded = [encode_turns(tokenizer, turns_of_pair(row)) for row in rows]
    wrong = [spoil(row, mistake) for row in encoded]
    if mistake == "rows not told apart":
        wrong = [join(wrong[:2]), join(wrong[2:4]), join(wrong[4:6]), join(wrong[6:])]
    right_run = train_plainly(bases("llama"), {}, [encoded] * 3, batch_size=4)
    wrong_run = train_plainly(bases("llama"), {}, [wrong] * 3, batch_size=4, mistake=mistake)
    differences = [abs(a - b) for a, b in zip(right_run.losses, wrong_run.losses, strict=True)]
    assert min(differences) > 3 * LOSS_TOLERANCE
    assert math.isfinite(max(differences))


def spoil(row: TokenRow, mistake: str) -> TokenRow:
    if mistake == "prompts trained on":
        return TokenRow(row.token_ids, [True] * len(row.token_ids))
    if mistake == "ends not trained on":
        return TokenRow(row.token_ids, [*row.is_trained[:-1], False])
    return row


def join(rows: Sequence[TokenRow]) -> TokenRow:
    return TokenRow(
        [i for row in rows for i in row.token_ids], [trains for row in rows for trains in row.is_trained]
    )
