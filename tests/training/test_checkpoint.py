"""Checkpoints: whole or not there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llamafarm.errors import OutputError
from llamafarm.model import weights
from llamafarm.model.adapter import AdapterSettings, adapter_tensors, attach_adapter
from llamafarm.training.checkpoint import (
    Snapshot,
    checkpoint_folder,
    checkpoints_in,
    is_whole,
    read_checkpoint,
    read_state,
    remove_checkpoints_after,
    remove_old_checkpoints,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> PeftModel:
    settings = AdapterSettings(r=2, alpha=4, dropout=0.0, target_modules=["q_proj"])
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    return attach_adapter(base, settings, base_name=str(tiny_base), seed=1)[0]


@pytest.fixture
def write(model: PeftModel, tmp_path: Path) -> Callable[..., Path]:
    """Write the checkpoint of a step, every weight of it `value`."""

    def write_step(step: int, value: float = 0.5) -> Path:
        tensors = {name: torch.full_like(tensor, value) for name, tensor in adapter_tensors(model).items()}
        write = lambda folder: weights.write_weights(folder, model, tensors)  # noqa: E731
        return write_checkpoint(
            tmp_path, Snapshot(step, write, {"moment": torch.ones(3)}, {"loop": {"a": 1}})
        )

    return write_step


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_read_back_as_it_was_written(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(120, 0.5)
    assert folder == tmp_path / "step-00000120" == checkpoint_folder(tmp_path, 120)
    tensors = read_checkpoint(tmp_path, 120)
    assert tensors
    assert all((tensor == 0.5).all() for tensor in tensors.values())
    state, training = read_state(folder)
    assert state == {"format_version": 2, "step": 120, "loop": {"a": 1}}
    assert training["moment"].tolist() == [1, 1, 1]


def test_it_is_safetensors_and_json_with_a_manifest_of_every_other_file(
    write: Callable[..., Path],
) -> None:
    folder = write(1)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert all(entry["bytes"] == (folder / name).stat().st_size for name, entry in manifest.items())


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "state.json", "training.safetensors"]
)
def test_one_changed_byte_is_noticed(write: Callable[..., Path], tmp_path: Path, name: str) -> None:
    file = write(1) / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(OutputError, match="damaged"):
        read_checkpoint(tmp_path, 1)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "manifest.json"])
def test_a_missing_file_is_noticed(write: Callable[..., Path], tmp_path: Path, name: str) -> None:
    (write(1) / name).unlink()
    with pytest.raises(OutputError, match="damaged or gone"):
        read_checkpoint(tmp_path, 1)


def test_an_interrupted_write_leaves_no_checkpoint_and_the_next_one_succeeds(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(1)

    def interrupt(folder: Path, *_: object) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_weights", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(2)
    assert not checkpoint_folder(tmp_path, 2).exists()
    assert read_checkpoint(tmp_path, 1)
    write(2)
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]
    assert read_checkpoint(tmp_path, 2)


def test_an_interrupted_rewrite_of_a_step_leaves_the_old_one(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(1, 0.5)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "write_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(1, 0.75)
    assert all((tensor == 0.5).all() for tensor in read_checkpoint(tmp_path, 1).values())


def test_a_full_disk_is_an_error_for_people(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "write_weights", fail)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write(2)
    assert caught.value.where == str(tmp_path / "step-00000002")
    assert not checkpoint_folder(tmp_path, 2).exists()


def test_the_newest_checkpoints_are_kept_and_the_best_beside_them(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    for step in (9, 2, 10, 100):
        write(step)
    remove_old_checkpoints(tmp_path, keep=2, best_step=2)
    assert steps_in(tmp_path) == ["step-00000002", "step-00000010", "step-00000100"]
    remove_old_checkpoints(tmp_path, keep=2, best_step=100)
    assert steps_in(tmp_path) == ["step-00000010", "step-00000100"]


def test_folders_of_other_names_are_left_alone(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "step-mine").mkdir()
    for step in (1, 2):
        write(step)
    remove_old_checkpoints(tmp_path, keep=1, best_step=0)
    assert steps_in(tmp_path) == ["step-00000002", "step-mine"]


def test_an_added_file_is_no_part_of_a_whole_checkpoint(write: Callable[..., Path]) -> None:
    folder = write(1)
    assert is_whole(folder)
    (folder / "optimizer.pt").write_bytes(b"pickled")
    assert not is_whole(folder)


def test_one_that_made_way_for_another_which_never_came_is_put_back(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write(3, 0.5)
    folder.rename(tmp_path / "step-00000003.replaced")
    assert checkpoints_in(tmp_path) == [folder]
    assert is_whole(folder)


def test_the_newest_is_the_one_of_the_latest_step_whatever_the_clock_says(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    for step in (10, 9):
        os.utime(write(step), (step * -(10**8), step * -(10**8)))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000010", "step-00000009"]


def test_the_checkpoint_of_another_step_under_this_ones_name_is_not_read(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write(2).rename(tmp_path / "step-00000004")
    assert is_whole(folder)
    with pytest.raises(OutputError, match="it is of step 2"):
        read_state(folder)


@pytest.mark.parametrize("name", ["state.json", "training.safetensors"])
def test_without_what_goes_on_with_it_none_is_whole(write: Callable[..., Path], name: str) -> None:
    folder = write(2)
    (folder / name).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not is_whole(folder)


def test_what_is_newer_than_a_step_goes_and_so_does_what_was_left_half_written(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    for step in (2, 4, 6):
        write(step)
    for name in ("step-00000003.unfinished", "step-00000002.replaced", "step-00000006.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "notes.unfinished").mkdir()
    remove_checkpoints_after(tmp_path, 4)
    assert steps_in(tmp_path) == ["notes.unfinished", "step-00000002", "step-00000004"]


def test_a_step_can_be_written_again_where_a_kill_left_what_it_replaced(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write(2, 0.5).rename(tmp_path / "step-00000002.replaced")
    (tmp_path / "step-00000002").mkdir()
    write(2, 0.75)
    assert steps_in(tmp_path) == ["step-00000002"]
    assert all((tensor == 0.75).all() for tensor in read_checkpoint(tmp_path, 2).values())
