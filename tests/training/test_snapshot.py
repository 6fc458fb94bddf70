"""Everything of a run in memory is put back to the bit, whatever is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafarm.errors import OutputError
from llamafarm.model.adapter import AdapterSettings, attach_adapter
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.checkpoint import read_state, write_checkpoint
from llamafarm.training.optimizer import OptimizerSettings, build_optimizer
from llamafarm.training.run import run_training
from llamafarm.training.session import Session
from llamafarm.training.snapshot import TrainingParts

NO_ADAPTER = dict.fromkeys(("method__r", "method__alpha", "method__dropout", "method__target_modules"))
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "pissa": {"method__init_lora_weights": "pissa"},
    "dora": {"method__use_dora": True},
    "loraplus": {"method__loraplus_lr_ratio": 8.0},
    "bias": {"method__bias": "all"},
    "full": {**NO_ADAPTER, "method__type": "full_finetune"},
}


class Killed(BaseException):
    """The end of a process, as far as one process can act it."""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_to_the_same_bits(
    load: Callable[..., LoadedStrategy],
    make_rows: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    def train(output: str) -> Path:
        settings = {
            "training_args__max_steps": 6,
            "training_args__num_train_epochs": 2,
            "training_args__save_strategy": "steps",
            "training_args__save_steps": 2,
            "method__dropout": 0.2,
        }
        run_training(load(make_rows(12), output=output, **(settings | METHODS[method])))
        return tmp_path / output

    take_step = Session.take_step
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def compared(self: Session, step: int, rows: Any) -> Any:
        """Note all that is in memory before a step, and find it again where the step is taken again."""
        now = {name: tensor.clone() for name, tensor in self._parts.take_snapshot(step, {}).tensors.items()}
        now |= {f"weight {name}": one.detach().clone() for name, one in self._model.named_parameters()}
        now["learning rates"] = torch.tensor([group["lr"] for group in self._optimizer.param_groups])
        before = seen.setdefault(step, now)
        assert before.keys() == now.keys()
        assert [name for name, tensor in now.items() if not torch.equal(tensor, before[name])] == []
        if step == 4 and len(seen) == 6 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise Killed
        return take_step(self, step, rows)

    monkeypatch.setattr(Session, "take_step", compared)
    whole = train("whole")
    assert len(seen) == 6
    with pytest.raises(Killed):
        train("run")
    run = train("run")
    files = sorted(path.name for path in (whole / "final_model").glob("*.safetensors"))
    assert files
    for name in files:
        assert (run / "final_model" / name).read_bytes() == (whole / "final_model" / name).read_bytes()


@pytest.fixture
def make_parts(tiny_base: Path) -> Callable[..., tuple[TrainingParts, Any, torch.amp.GradScaler]]:
    """Return the parts of a run with a loss scaler, as fp16 has it."""

    def make(seed: int = 1, r: int = 2) -> tuple[TrainingParts, Any, torch.amp.GradScaler]:
        adapter = AdapterSettings(r=r, alpha=4, dropout=0.0, target_modules=["q_proj"])
        base = AutoModelForCausalLM.from_pretrained(tiny_base)
        model = attach_adapter(base, adapter, base_name=str(tiny_base), seed=seed)[0]
        settings = OptimizerSettings(0.01, "linear", 0.0, 0, 0.0, 0.9, 0.999, 1e-8)
        optimizer, scheduler = build_optimizer(model, settings, 10)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        return TrainingParts(model, optimizer, scheduler, scaler), (model, optimizer, scheduler), scaler

    return make


def take_steps(parts: Any, scaler: torch.amp.GradScaler, num_steps: int) -> None:
    model, optimizer, scheduler = parts
    ids = torch.tensor([[1, 2, 3, 4]])
    for _ in range(num_steps):
        scaler.scale(model(ids, labels=ids).loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()


def test_the_loss_scaler_the_schedule_and_the_random_states_are_put_back(
    make_parts: Callable[..., Any], tmp_path: Path
) -> None:
    parts, model, scaler = make_parts()
    take_steps(model, scaler, 4)  # the scale has grown once by then, and counts again
    folder = write_checkpoint(tmp_path, parts.take_snapshot(4, {"loop": {}}))
    random = torch.get_rng_state()
    expected = scaler.state_dict()
    assert (expected["scale"], expected["_growth_tracker"]) == (2048.0, 1)
    take_steps(model, scaler, 3)
    torch.rand(5)

    others, other_model, other_scaler = make_parts(seed=2)
    others.restore(folder, *read_state(folder))
    assert torch.equal(torch.get_rng_state(), random)
    assert other_scaler.state_dict() == expected
    assert other_model[2].state_dict()["last_epoch"] == 4
    take_steps(other_model, other_scaler, 3)
    for one, other in zip(model[0].parameters(), other_model[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert other_scaler.state_dict() == scaler.state_dict()


def test_a_snapshot_of_an_adapter_stays_what_it_was_while_steps_go_on(
    make_parts: Callable[..., Any], tmp_path: Path
) -> None:
    parts, model, scaler = make_parts()
    take_steps(model, scaler, 2)
    snapshot = parts.take_snapshot(2, {})
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    take_steps(model, scaler, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot.tensors.items())


@pytest.mark.parametrize("what", ["other", "half"])
def test_what_is_of_another_model_or_lacks_a_moment_is_refused(
    make_parts: Callable[..., Any], tmp_path: Path, what: str
) -> None:
    parts, model, scaler = make_parts()
    take_steps(model, scaler, 2)
    folder = write_checkpoint(tmp_path, parts.take_snapshot(2, {}))
    state, tensors = read_state(folder)
    if what == "half":
        del tensors[next(name for name in tensors if name.startswith("exp_avg_sq."))]
    others = make_parts(r=4)[0] if what == "other" else parts
    with pytest.raises(OutputError, match="not of this model"):
        others.restore(folder, state, tensors)
