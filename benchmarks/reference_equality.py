"""Our training beside a plain loop of stock transformers and peft, on a real model and real rows.

    python benchmarks/reference_equality.py --model ../shared/models/tinystories-656k \
        --data ../shared/data/tldr_commands.jsonl

It prints the largest difference between the losses of a step, and between two weights of the adapter after
the last. The plain loop is written out below: padded batches, attention masks, labels of -100. It writes the
turns out itself and tokenizes the text so far after each: what came to it belongs to that turn. (Not by the
character offsets of the tokenizer: those of tinystories-656k are shifted after every character that it does
not know.) `seconds` is the time of the steps alone, beside whatever else the machine does: for a look, not
for a claim.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from llamafarm import terminal
from llamafarm.model.adapter import adapter_tensors, attach_adapter
from llamafarm.strategy.load import load_strategy
from llamafarm.training import methods, run, session

NUM_STEPS = 30
ROWS_PER_STEP = 16
LEARNING_RATE = 1e-3
NUM_WARMUP_STEPS = 3
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The answer on a line of its own: where it begins, this tokenizer and others begin a new token.
FORMAT = "Question: {input}\nAnswer:\n{output}"

HELD_EQUAL = f"""\
held equal: the model, in fp32; the rows and their order, that of the file; {NUM_STEPS} steps of
{ROWS_PER_STEP} rows; the adapter's first weights (LoRA r=8, alpha 16, dropout 0, all linear layers);
AdamW at {LEARNING_RATE:g} with weight decay {WEIGHT_DECAY:g};
a cosine after {NUM_WARMUP_STEPS} steps of warmup; gradients clipped at a norm of {MAX_GRAD_NORM:g};
the loss as the mean over all answer tokens of a step.
The plain loop pads in every case; what each line names is ours."""


@dataclass(frozen=True)
class Case:
    """One comparison: the turns of a row, the micro-batches of both, and the size of our packs."""

    name: str
    turns_per_row: int = 1
    batch_size: int = ROWS_PER_STEP
    pack_tokens: int = 1024


CASES = (
    Case("not packed: one row a pack", pack_tokens=1),
    Case("packed: packs of 1024 tokens"),
    Case("accumulated: 4 micro-batches of 4 rows", batch_size=4),
    Case("multi-turn: two pairs a row", turns_per_row=2),
)


@dataclass(frozen=True)
class Trained:
    """The loss of every step, the adapter's weights after the last, and the seconds that the steps took."""

    losses: list[float]
    weights: dict[str, torch.Tensor]
    seconds: float


@dataclass(frozen=True)
class TokenRow:
    """A row's tokens, each with whether it is trained on."""

    token_ids: list[int]
    is_trained: list[bool]


def main() -> None:
    """Train every case both ways and print how far they are apart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with the base model")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file with instruction and output")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    terminal.mode.is_quiet = True
    warnings.simplefilter("ignore", FutureWarning)

    lines = options.data.read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines[: 2 * NUM_STEPS * ROWS_PER_STEP]]
    terminal.result(f"{options.model.name} on {options.data.name}, {torch.get_num_threads()} threads")
    terminal.result(HELD_EQUAL)
    terminal.result(f"\n{'ours beside the plain loop':<44}{'max loss diff':>14}{'max weight diff':>17}"
                    f"{'moved by':>10}{'last loss':>11}{'seconds':>9}{'plain':>7}")  # fmt: skip
    for case in CASES:
        rows = conversations(pairs, case.turns_per_row)
        ours, initial = train_ours(options.model, rows, case)
        plain = train_plainly(options.model, rows, case, initial)
        losses = max(abs(a - b) for a, b in zip(ours.losses, plain.losses, strict=True))
        terminal.result(
            f"{case.name:<44}{losses:>14.1e}{largest_difference(ours.weights, plain.weights):>17.1e}"
            f"{largest_difference(ours.weights, initial):>10.1e}{ours.losses[-1]:>11.4f}"
            f"{ours.seconds:>9.1f}{plain.seconds:>7.1f}"
        )


def conversations(pairs: Sequence[dict[str, str]], turns_per_row: int) -> list[list[tuple[str, str]]]:
    """Return as many rows as the steps take, each of so many pairs of question and answer."""
    turns = [(pair["instruction"].strip(), pair["output"].strip()) for pair in pairs]
    count = NUM_STEPS * ROWS_PER_STEP
    if len(turns) < count * turns_per_row:
        raise SystemExit(f"the data has {len(turns)} rows, and {count * turns_per_row} are needed")
    return [turns[place * turns_per_row : (place + 1) * turns_per_row] for place in range(count)]


def train_ours(
    base: Path, rows: Sequence[Sequence[tuple[str, str]]], case: Case
) -> tuple[Trained, dict[str, torch.Tensor]]:
    """Train with `run_training` from files; return the run and the adapter's first weights."""
    initial: dict[str, torch.Tensor] = {}

    def attach(*arguments: Any, **settings: Any) -> Any:
        model, plan = attach_adapter(*arguments, **settings)
        initial.update(adapter_tensors(model))
        return model, plan

    def choose_pack_tokens(_: str) -> int:
        return case.pack_tokens

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text(
            "".join(json.dumps({"messages": messages_of(row)}) + "\n" for row in rows), encoding="utf-8"
        )
        (folder / "s.yaml").write_text(json.dumps({"s": strategy(base, folder, case)}), encoding="utf-8")
        loaded = load_strategy("s", file=folder / "s.yaml")
        with (
            replaced(methods, "attach_adapter", attach),
            replaced(session, "choose_pack_tokens", choose_pack_tokens),
        ):
            result = run.run_training(loaded)
        metrics = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        weights = load_file(result.final_model / "adapter_model.safetensors")
    return Trained(
        [json.loads(line)["train_loss"] for line in metrics], weights, result.train_seconds
    ), initial


def messages_of(row: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return a row as the messages format has it."""
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in row for role, text in zip(roles, turn, strict=True)]


def strategy(base: Path, folder: Path, case: Case) -> dict[str, Any]:
    """Return the strategy of a case."""
    return {
        "base_model": str(base.resolve()),
        "hardware": {"device": "cpu", "optimization": {"mixed_precision": "no"}},
        "method": {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": TARGET_MODULES},
        "dataset": {"train_file": str(folder / "rows.jsonl")},
        "data_preprocessing": {"shuffle": False},
        "prompt_template": {"format": FORMAT},
        "training_args": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": case.batch_size,
            "gradient_accumulation_steps": ROWS_PER_STEP // case.batch_size,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "cosine",
            "warmup_steps": NUM_WARMUP_STEPS,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": MAX_GRAD_NORM,
            "save_strategy": "no",
        },
    }


def train_plainly(
    base: Path,
    rows: Sequence[Sequence[tuple[str, str]]],
    case: Case,
    initial: dict[str, torch.Tensor],
) -> Trained:
    """Train with stock transformers and peft, in micro-batches of padded rows."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = [encode_turns(tokenizer, row) for row in rows]
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=TARGET_MODULES, task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"), config)
    set_peft_model_state_dict(model, initial)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scheduler = get_scheduler("cosine", optimizer, NUM_WARMUP_STEPS, NUM_STEPS)
    losses = []
    model.train()
    started = time.perf_counter()
    for step in range(NUM_STEPS):
        of_step = encoded[step * ROWS_PER_STEP : (step + 1) * ROWS_PER_STEP]
        size = case.batch_size
        batches = [pad(of_step[start : start + size]) for start in range(0, ROWS_PER_STEP, size)]
        num_trained_tokens = sum(int((labels >= 0).sum()) for _, _, labels in batches)
        step_loss = 0.0
        for ids, mask, labels in batches:
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
            )
            (loss / num_trained_tokens).backward()
            step_loss += float(loss.detach()) / num_trained_tokens
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(step_loss)
    seconds = time.perf_counter() - started
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if "lora_" in name}
    return Trained(losses, {name.replace(".default", ""): tensor for name, tensor in state.items()}, seconds)


def encode_turns(tokenizer: Any, row: Sequence[tuple[str, str]]) -> TokenRow:
    """Tokenize a row turn by turn, each after all before it; answers and their ends are trained on."""
    # A tokenizer that begins every text with its own token does so before the first turn.
    begins = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    text = tokenizer.bos_token if begins else ""
    token_ids: list[int] = []
    is_trained: list[bool] = []
    for question, answer in row:
        for turn, trains in (
            (f"Question: {question}\nAnswer:\n", False),
            (answer + tokenizer.eos_token, True),
        ):
            text += turn
            longer = tokenizer(text, add_special_tokens=False)["input_ids"]
            if longer[: len(token_ids)] != token_ids:
                raise SystemExit(f"two turns share a token, before {turn[:30]!r}")
            is_trained += [trains] * (len(longer) - len(token_ids))
            token_ids = longer
    return TokenRow(token_ids, is_trained)


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


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two weights of the same name and place."""
    if one.keys() != other.keys():
        raise SystemExit(f"the adapters differ in {', '.join(sorted(one.keys() ^ other.keys()))}")
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class replaced:  # noqa: N801 - reads as a word in `with`
    """Put another function in a module's place meanwhile."""

    def __init__(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        self._module, self._name, self._function = module, name, function

    def __enter__(self) -> None:
        self._before = getattr(self._module, self._name)
        setattr(self._module, self._name, self._function)

    def __exit__(self, *_: object) -> None:
        setattr(self._module, self._name, self._before)


if __name__ == "__main__":
    main()
