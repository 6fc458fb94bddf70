"""Models, runs and checkpoints full of files that would run if they were opened as code: none does."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import AUTO_MAP, CODE, MARKER, PICKLES, ending_within, plant, witnessing
from hostile_models import change_json, load, save_adapter

from llamafarm.deploy.merge import read_adapter_folder
from llamafarm.deploy.stored import StoredWeights
from llamafarm.errors import ModelError
from llamafarm.inference.llamacpp import has_llamacpp
from llamafarm.model.adapter import load_adapter, read_adapter
from llamafarm.model.full import read_full

Speak = Callable[..., Any]
ROWS = [
    {"instruction": f"what is {number}?", "input": "", "output": f"it is {number}."} for number in range(10)
]
STRATEGY = """\
mine:
  base_model: {huggingface_id: ./base}
  dataset: {train_file: rows.jsonl, eval_file: held_out.jsonl}
  prompt_template: {format: "Q: {input}\\nA: {output}"}
  method: {r: 4, alpha: 8, target_modules: [q_proj, v_proj]}
  hardware: {device: cpu}
  generation: {max_new_tokens: 4}
  training_args:
    {output_dir: run, max_steps: 4, save_steps: 2, save_strategy: steps, dataloader_num_workers: WORKERS}
  monitoring: {sample_rows: 0}
"""


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """What waits for ever fails."""

    with ending_within(120):
        yield


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be spoilt."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def planted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """A folder to work in, its base full of canaries, and what puts them into another; none may be woken."""
    marker = tmp_path / MARKER

    def put(folder: Path) -> None:
        plant(folder, marker)
        change_json(folder / "config.json", auto_map=AUTO_MAP) if (folder / "config.json").is_file() else None
        change_json(folder / "tokenizer_config.json", auto_map=AUTO_MAP)
        if (folder / "adapter_config.json").is_file():
            mapping = {"base_model_class": "X", "parent_library": "modeling_x"}
            change_json(folder / "adapter_config.json", auto_mapping=mapping)

    put(base)
    plant(tmp_path, marker)
    (tmp_path / "strategies.yaml").write_text(STRATEGY.replace("WORKERS", "2"))
    (tmp_path / "alone.yaml").write_text(STRATEGY.replace("WORKERS", "0"))
    for name, rows in (("rows.jsonl", ROWS[:8]), ("held_out.jsonl", ROWS[8:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    yield tmp_path, put
    assert not marker.exists(), "something was executed"


def test_no_verb_wakes_a_canary(
    planted: tuple[Path, Callable[[Path], None]], speak: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, put = planted
    monkeypatch.setattr("sys.stdin", io.StringIO("why?\n"))
    strategy = ("--strategy", "mine")

    def ok(*arguments: str) -> Any:
        said = speak(arguments)
        assert said.code == 0, (arguments, said.err)
        return said

    ok("setup", "strategies.yaml", "--verify-only")
    ok("data", "preview", "rows.jsonl", *strategy)
    ok("strategies", "show", "mine")
    ok("plan", *strategy)
    ok("doctor")
    ok("train", *strategy)
    written = {path.suffix for path in (folder / "run").rglob("*") if path.is_file()}
    assert written <= {".safetensors", ".json", ".jsonl", ".html", ".md", ".jinja"}, "nothing else is written"
    put(folder / "run" / "final_model")
    plant(folder / "run", folder / MARKER, names=(*PICKLES, *CODE))
    ok("complete", "why?", *strategy)
    ok("complete", "why?", "--model", "run")
    ok("evaluate", *strategy)
    ok("chat", *strategy)
    ok("report", "run")
    if has_llamacpp():
        # Where llama.cpp starts stand json.py, typing.py and xllamacpp.py.
        ok("convert", "run", "out", "--format", "gguf", "--quantization", "f16", "--no-verify")
        file = next((folder / "out").glob("*.gguf"))
        speak(("verify", str(file), "run"))
        ok("complete", "why?", "--model", str(file))
    ok("convert", "run", "merged", "--format", "safetensors", "--no-verify")
    assert not {path.suffix for path in (folder / "merged").iterdir()} & {
        ".py",
        ".bin",
        ".pt",
        ".pth",
        ".pkl",
    }
    for checkpoint in sorted((folder / "run" / "checkpoints").iterdir()):
        put(checkpoint)
        speak(("evaluate", "--model", str(checkpoint), "--eval-dataset", "rows.jsonl"))
        speak(("train", *strategy, "--output-dir", "other", "--resume", str(checkpoint)))


def test_an_output_folder_of_shell_characters_is_a_folder(
    planted: tuple[Path, Callable[[Path], None]], speak: Speak
) -> None:
    folder, _ = planted
    name = "out; touch executed; $(touch executed) `touch executed` '\" -rf"
    with witnessing(folder) as witness:
        said = speak(("train", "--strategy-file", "alone.yaml", "--output-dir", name, "--max-steps", "1"))
        assert said.code == 0, said.err
        said = speak(("convert", name, f"{name}/x", "--format", "safetensors", "--no-verify"))
        assert said.code == 0, said.err
    assert (folder / name / "final_model").is_dir() and (folder / name / "x" / "config.json").is_file()
    assert (witness.started, witness.written) == ([], [])


def test_a_base_that_is_only_a_pickle_is_refused(
    planted: tuple[Path, Callable[[Path], None]], speak: Speak
) -> None:
    folder, _ = planted
    (folder / "base" / "model.safetensors").unlink()
    for arguments in (("train",), ("evaluate", "--base"), ("complete", "why?", "--base")):
        said = speak((*arguments, "--strategy", "mine"))
        assert said.code == 2, said.err
    with pytest.raises(ModelError):
        read_full(folder / "base")
    with pytest.raises(ModelError), StoredWeights(folder / "base"):
        pass


def test_an_adapter_that_is_only_a_pickle_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    marker = adapter.parent / MARKER
    plant(adapter, marker)
    (adapter / "adapter_model.safetensors").unlink()
    for open_it in (
        lambda: read_adapter(adapter),
        lambda: read_adapter_folder(adapter),
        lambda: load_adapter(load(base), adapter),
    ):
        with pytest.raises(ModelError):
            open_it()
    assert not marker.exists()
