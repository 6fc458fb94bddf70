"""What a run does not go on with: another run, a damaged or foreign checkpoint, a link for a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import digest, resumed_after
from safetensors.torch import load_file, save_file

from llamafarm.errors import InputError, OutputError
from llamafarm.training.result import RunResult

Train = Callable[..., RunResult]


def damage(folder: Path, step: int) -> None:
    (folder / "checkpoints" / f"step-{step:08d}" / "training.safetensors").write_bytes(b"")


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


def test_never_refuses_an_unfinished_run_and_overwrite_starts_anew(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    die(4)
    with pytest.raises(OutputError, match="holds an earlier run"):
        train(resume="never")
    assert train(overwrite=True).num_steps == 6
    assert resumed_after(tmp_path / "run") == []


def test_a_checkpoint_does_not_replace_another_run(
    train: Train, die: Callable[..., None], tmp_path: Path
) -> None:
    taken = train("taken")
    before = digest(taken)
    die(4)
    with pytest.raises(OutputError, match="holds an earlier run"):
        train("taken", resume=str(tmp_path / "run" / "checkpoints" / "step-00000002"))
    assert digest(taken) == before


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


def test_a_run_that_has_ended_is_refused(train: Train) -> None:
    before = digest(train())
    with pytest.raises(OutputError, match="holds an earlier run"):
        train()
    assert digest(train("other")) == before


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


@pytest.mark.parametrize("target", ["elsewhere", "run/mine", "gone"])
@pytest.mark.parametrize("folder", ["checkpoints", "final_model", "final_model.unfinished", "logs"])
def test_a_link_in_the_place_of_a_runs_folder_is_refused_and_its_target_stays_as_it_is(
    train: Train, die: Callable[..., None], tmp_path: Path, folder: str, target: str
) -> None:
    die(6)
    run, led_to = tmp_path / "run", tmp_path / target
    shutil.copytree(run / "checkpoints", tmp_path / "elsewhere")
    shutil.copytree(run / "checkpoints", run / "mine")
    shutil.rmtree(run / folder, ignore_errors=True)
    (run / folder).symlink_to(led_to)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("step-*/*"))
    for options in ({}, {"overwrite": True}, {"resume": "never"}):
        with pytest.raises(OutputError) as caught:
            train(**options)
        error = caught.value
        assert "is a link to" in error.problem and str(run / folder) in error.problem
        assert "Remove the link" in error.remedy
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("step-*/*")) == before
    assert (run / folder).is_symlink()
