"""Going on with a run: only where it is the same one, from the newest whole checkpoint, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llamafarm.errors import InputError, OutputError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import session
from llamafarm.training.result import RunResult
from llamafarm.training.run import run_training
from llamafarm.training.session import Session
from llamafarm.training.signals import RunInterrupted, StopSignals

Load = Callable[..., LoadedStrategy]
MakeRows = Callable[..., list[dict[str, Any]]]
Train = Callable[..., RunResult]


class Killed(BaseException):
    """The end of a process, as far as one process can act it."""


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be changed."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def train(load: Load, make_rows: MakeRows, base: Path) -> Train:
    """Train on twelve rows in steps of four, with dropout, six steps, saved after each second one."""

    def train_rows(
        output: str = "run", *, seed: int = 0, resume: str = "auto", overwrite: bool = False, **settings: Any
    ) -> RunResult:
        given = {
            "base_model__huggingface_id": str(base),
            "method__dropout": 0.2,
            "training_args__num_train_epochs": 2,
            "training_args__save_strategy": "steps",
            "training_args__save_steps": 2,
            "training_args__eval_steps": 3,
        }
        loaded = load(make_rows(12, seed), make_rows(3, 9), output=output, **(given | settings))
        return run_training(loaded, resume=resume, overwrite=overwrite)

    return train_rows


@pytest.fixture
def die(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train, and die before the step `before`, with every save on the disk."""

    def die_there(before: int, output: str = "run", **settings: Any) -> None:
        take_step = Session.take_step

        def dying(self: Session, step: int, rows: Any) -> Any:
            if step == before:
                raise Killed
            return take_step(self, step, rows)

        with monkeypatch.context() as patch:
            patch.setattr(Session, "take_step", dying)
            with pytest.raises(Killed):
                train(output, **settings)

    return die_there


def digest(result: RunResult) -> str:
    return hashlib.sha256((result.final_model / "adapter_model.safetensors").read_bytes()).hexdigest()


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "tokens_per_second", "memory_bytes", "gpu_utilization")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def resumed_after(folder: Path) -> list[int]:
    return [entry["after_step"] for entry in record_of(folder)["resumed"]]


def damage(folder: Path, step: int) -> None:
    (folder / "checkpoints" / f"step-{step:08d}" / "training.safetensors").write_bytes(b"")


def test_a_run_goes_on_to_the_bytes_and_metrics_of_one_that_was_not_ended(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    whole = train("whole")
    die(6)
    result = train()
    assert digest(result) == digest(whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert resumed_after(tmp_path / "run") == [4]
    assert resumed_after(tmp_path / "whole") == []
    assert result.num_tokens == whole.num_tokens


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 5}, "data is not what it was"),
        ({"prompt_template__format": "Q: {input}\nA: {output}"}, "template is not what it was"),
        ({"training_args__learning_rate": 0.001}, "training_args.learning_rate was 0.005 and is 0.001"),
        ({"training_args__num_train_epochs": 3}, "training_args.num_train_epochs"),
        ({"method__r": 8}, "method is not what it was"),
        ({"hardware__optimization__mixed_precision": "bf16"}, "precision was fp32 and is bf16"),
        ({"training_args__per_device_train_batch_size": 2}, "rows in a step was 4 and is 2"),
        ({"environment__seed": 7}, "environment.seed was"),
    ],
    ids=["data", "template", "learning-rate", "epochs", "r", "precision", "rows", "seed"],
)
def test_what_the_result_follows_from_may_not_change_and_is_named(
    train: Train, die: Callable[..., None], tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    die(4, training_args__per_device_train_batch_size=4)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*.*"))
    given = {"training_args__per_device_train_batch_size": 4} | settings
    with pytest.raises(OutputError) as caught:
        train(**given)
    assert named in caught.value.problem
    left = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*.*"))
    assert left == before


def test_another_tokenizer_is_named(train: Train, die: Callable[..., None], base: Path) -> None:
    die(4)
    file = base / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append(
        dict(content["added_tokens"][-1], id=len(content["model"]["vocab"]) + 50, content="<|new|>")
    )
    file.write_text(json.dumps(content))
    with pytest.raises(OutputError, match="tokenizer is not what it was"):
        train()


def test_other_base_weights_are_named(train: Train, die: Callable[..., None], base: Path) -> None:
    die(4)
    tensors = load_file(base / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OutputError, match="base model"):
        train()


def test_what_changes_no_result_may_change(train: Train, die: Callable[..., None], tmp_path: Path) -> None:
    whole = train("whole", training_args__per_device_train_batch_size=4)
    die(4, training_args__per_device_train_batch_size=4)
    result = train(
        training_args__per_device_train_batch_size=1,
        training_args__gradient_accumulation_steps=4,
        training_args__logging_steps=2,
        training_args__save_steps=1,
        training_args__save_total_limit=5,
        export__quantization="q8_0",
        monitoring__log_level="warning",
        hardware__device=None,
    )
    assert resumed_after(tmp_path / "run") == [2]
    assert digest(result) == digest(whole)


def test_never_refuses_an_unfinished_run_and_overwrite_starts_anew(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    die(4)
    with pytest.raises(OutputError, match="holds an earlier run"):
        train(resume="never")
    assert train(overwrite=True).num_steps == 6
    assert resumed_after(tmp_path / "run") == []


def test_a_checkpoint_of_this_folder_can_be_named(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    whole = train("whole")
    die(6)
    named = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert digest(train(resume=str(named))) == digest(whole)
    assert resumed_after(tmp_path / "run") == [2]
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_a_checkpoint_of_another_folder_can_be_named_and_that_folder_stays_as_it_is(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    settings = {"training_args__load_best_model_at_end": True}
    whole = train("whole", **settings)
    die(5, "first", **settings)
    named = tmp_path / "first" / "checkpoints" / "step-00000004"
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "first").rglob("*.*"))
    die(5, "second", resume=str(named), **settings)  # before it has saved anything itself
    result = train("second", **settings)
    assert resumed_after(tmp_path / "second") == [4, 4]
    assert digest(result) == digest(whole)
    assert metrics_of(tmp_path / "second") == metrics_of(tmp_path / "whole")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "first").rglob("*.*")) == before


def test_a_checkpoint_does_not_replace_another_run(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    taken = train("taken")
    before = digest(taken)
    die(4)
    with pytest.raises(OutputError, match="holds an earlier run"):
        train("taken", resume=str(tmp_path / "run" / "checkpoints" / "step-00000002"))
    assert digest(taken) == before


def test_a_checkpoint_of_a_run_that_has_ended_goes_on_elsewhere_only(train: Train, tmp_path: Path) -> None:
    ended = train()
    named = str(tmp_path / "run" / "checkpoints" / "step-00000004")
    with pytest.raises(OutputError, match="has ended"):
        train(resume=named)
    assert digest(train("elsewhere", resume=named)) == digest(ended)


@pytest.mark.parametrize("name", ["nothing", "run", "run/checkpoints", "run/checkpoints/mine"])
def test_a_path_that_is_no_checkpoint_is_refused(
    train: Train, die: Callable[..., None], tmp_path: Path, name: str
) -> None:
    die(4)
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "mine")
    with pytest.raises(InputError, match="no whole checkpoint"):
        train("other", resume=str(tmp_path / name))
    assert not (tmp_path / "other").exists()


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    train: Train, die: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("whole")
    die(6)
    damage(tmp_path / "run", 4)
    assert digest(train()) == digest(whole)
    assert resumed_after(tmp_path / "run") == [2]
    assert "step-00000004 is damaged or gone: the one before it is taken" in capsys.readouterr().err


def test_where_all_are_damaged_the_run_is_refused(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    die(6)
    for step in (2, 4):
        damage(tmp_path / "run", step)
    with pytest.raises(OutputError, match="all 2 checkpoints"):
        train()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]


def test_a_checkpoint_whose_best_is_gone_is_passed_over(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    settings = {"training_args__load_best_model_at_end": True}
    whole = train("whole", **settings)
    die(6, **settings)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000003")
    with pytest.raises(OutputError, match="or the best of each"):
        train(**settings)
    die(3, "again", **settings)
    assert digest(train("again", **settings)) == digest(whole)


def test_a_run_that_had_saved_nothing_starts_again(
    train: Train, die: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train("whole")
    die(2)
    assert digest(train()) == digest(whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert "saved nothing yet: it starts again" in capsys.readouterr().err


def test_a_run_that_has_ended_is_refused(train: Train) -> None:
    before = digest(train())
    with pytest.raises(OutputError, match="holds an earlier run"):
        train()
    assert digest(train("other")) == before


def test_a_final_model_of_a_run_that_had_not_said_so_is_replaced(train: Train, tmp_path: Path) -> None:
    before = digest(train())
    record = record_of(tmp_path / "run")
    del record["result"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert digest(train()) == before
    assert "result" in record_of(tmp_path / "run")


@pytest.mark.parametrize("before", [4, 5, 6])
def test_metrics_have_no_gap_and_nothing_twice_where_only_some_steps_are_logged(
    train: Train, die: Callable[..., None], tmp_path: Path, before: int
) -> None:
    settings = {"training_args__logging_steps": 3, "training_args__eval_steps": 4}
    train("whole", **settings)
    die(before, **settings)
    train(**settings)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 3, 4, 6]


def test_a_run_that_was_ended_in_its_evaluation_evaluates_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole")
    measure, heard = session.measure_losses, StopSignals.check
    calls: list[int] = []

    def ask(self: StopSignals) -> None:
        if len(calls) == 2:  # the second evaluation: that of step 3
            self.asked = 15
        heard(self)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(0)
        return measure(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(session, "measure_losses", counted)
        patch.setattr(StopSignals, "check", ask)
        with pytest.raises(RunInterrupted) as caught:
            train()
    assert caught.value.exit_code == 143
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2]
    result = train()
    assert resumed_after(tmp_path / "run") == [3]
    assert digest(result) == digest(whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "taken",
    [
        "loop.best_step",
        "loop.pending.loss_sum",
        "schedule._last_lr",
        "evaluations",
        "journal.account.num_steps",
    ],
)
def test_a_state_that_lacks_something_is_refused_and_nothing_takes_a_default_silently(
    train: Train, die: Callable[..., None], tmp_path: Path, taken: str
) -> None:
    die(6)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    state = json.loads((checkpoint / "state.json").read_text())
    *parents, last = taken.split(".")
    section = state
    for name in parents:
        section = section[name]
    del section[last]
    text = json.dumps(state)
    (checkpoint / "state.json").write_text(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    entry = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"state.json": entry}))
    with pytest.raises(OutputError, match=last):
        train()
    assert not (tmp_path / "run" / "final_model").exists()
