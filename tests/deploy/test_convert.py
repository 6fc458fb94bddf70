"""Exports as users make them: into files and folders, checked, renamed, and given to Ollama."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafarm.deploy import convert
from llamafarm.deploy.convert import FORMATS, ExportWishes, export
from llamafarm.deploy.gguf.read import read_header
from llamafarm.deploy.gguf.types import MIXTURES
from llamafarm.errors import InputError, MachineError, ModelError, OutputError
from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer, has_llamacpp

pytestmark = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
Make = Callable[..., tuple[Path, Any]]
IDS = list(range(5, 45))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([IDS])).logits
    return found


def wishes(format_name: str, **changes: Any) -> ExportWishes:
    return ExportWishes(format_name, **{"quantization": "f16", **changes})


@pytest.mark.parametrize("format_name", ["pytorch", "safetensors"])
def test_a_merged_folder_is_what_transformers_loads(
    make_adapter: Make, tmp_path: Path, format_name: str
) -> None:
    adapter, adapted = make_adapter()
    done = export(adapter, tmp_path / "out", wishes(format_name))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert not list((tmp_path / "out").glob("*.bin")) and bool(done.notes) == (format_name == "pytorch")
    assert done.verified is not None and done.verified.steps[0].distance.agreement == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing unfinished is left"


@pytest.mark.parametrize("quantization", sorted(MIXTURES))
def test_every_quantization_loads_and_says_what_it_is(
    final_model: Path, tmp_path: Path, quantization: str
) -> None:
    done = export(final_model, tmp_path / "m.gguf", wishes("gguf", quantization=quantization, verifies=False))
    header = read_header(tmp_path / "m.gguf")
    assert header.metadata["general.file_type"] == MIXTURES[quantization].file_type
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["general.name"] == "tiny"
    # Rows of 64 and 96 numbers are no whole blocks of 256, which the output layer has in old types, too.
    assert bool(done.notes) == (quantization not in ("f32", "f16", "bf16", "q8_0"))
    with LlamaServer(tmp_path / "m.gguf", LlamaOptions(128)) as server:
        tokens, _ = server.continue_greedily(IDS, 4)
        assert len(tokens) <= 4 and server.apply_template([{"role": "user", "content": "x"}])


def test_a_file_and_its_modelfile_say_how_the_model_answers(final_model: Path, tmp_path: Path) -> None:
    done = export(
        final_model,
        tmp_path / "out",
        wishes(
            "ollama",
            quantization="q8_0",
            model_name="me/my-model:v1",
            system_prompt="Be brief.",
            parameters={"temperature": 0.1, "num_ctx": 77, "stop": ["STOP"]},
        ),
    )
    assert done.path == tmp_path / "out" / "me-my-model-v1-q8_0.gguf" and done.name == "me/my-model:v1"
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./me-my-model-v1-q8_0.gguf"
    assert 'SYSTEM """Be brief."""' in lines
    for line in (
        "temperature 0.1", "top_p 0.8", "top_k 7", "repeat_penalty 1.1", "num_predict 20", "num_ctx 77",
        'stop """<|end|>"""', 'stop """STOP"""',
    ):  # fmt: skip
        assert f"PARAMETER {line}" in lines
    record = json.loads((tmp_path / "out" / "me-my-model-v1-q8_0.verify.json").read_text())
    assert [step["name"] for step in record["steps"]] == ["merged weights", "f16", "q8_0"]
    assert record["num_conversations"] >= 6 and record["steps"][1]["distance"]["divergence"] < 1e-3
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".gguf", ".json", ""}


def test_without_wishes_the_runs_own_settings_go_along(final_model: Path, tmp_path: Path) -> None:
    export(final_model.parent, tmp_path / "m.gguf", wishes("gguf", verifies=False))
    text = (tmp_path / "m.Modelfile").read_text()
    assert 'PARAMETER stop """###"""' in text and "PARAMETER temperature 0.5" in text
    assert "PARAMETER num_ctx 128" in text, "no more than the model has"
    assert "SYSTEM" not in text


@pytest.mark.slow
def test_an_adapter_goes_alone_where_the_format_holds_it(make_adapter: Make, tmp_path: Path) -> None:
    for number, settings in enumerate(
        ({}, {"use_rslora": True, "r": 6}, {"alpha_pattern": {"down_proj": 3}}, {"family": "gemma2"})
    ):
        adapter, _ = make_adapter(settings.pop("family", "llama"), **settings)
        done = export(adapter, tmp_path / f"{number}.gguf", wishes("adapter-gguf"))
        assert done.verified is not None and done.verified.steps[0].distance.divergence < 1e-3
        header = read_header(done.path)
        assert header.metadata["general.type"] == "adapter" and header.metadata["adapter.type"] == "lora"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "it is a DoRA"),
        ({"modules_to_save": ["lm_head"]}, "it replaces lm_head.weight"),
        ({"target_modules": ["q_proj", "lm_head"], "family": "llama-tied-with-biases"}, "lm_head"),
    ],
)
def test_what_an_adapters_file_cannot_hold_is_merged_and_said(
    make_adapter: Make, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    adapter, _ = make_adapter(settings.pop("family", "llama"), **settings)
    done = export(adapter, tmp_path / "m.gguf", wishes("adapter-gguf"))
    assert reason in done.notes[0]
    assert read_header(done.path).metadata["general.type"] == "model"
    assert done.verified is not None and done.verified.steps[-1].distance.agreement > 0.97


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"format": "onnx"}, "--format"),
        ({"quantization": "q4km"}, "--quantization"),
        ({"model_name": "a b"}, "--model-name"),
        ({"model_name": "../../etc/x"}, "--model-name"),
        ({"model_name": "a\nFROM /etc/passwd"}, "--model-name"),
        ({"system_prompt": 'x"""\nFROM /etc/passwd'}, "the system prompt"),
    ],
)
def test_wishes_that_cannot_be_are_refused_before_anything_is_written(
    final_model: Path, tmp_path: Path, changes: dict[str, Any], where: str
) -> None:
    asked = ExportWishes(**{"format": "gguf", "quantization": "f16", "verifies": False, **changes})
    with pytest.raises(InputError) as caught:
        export(final_model, tmp_path / "out", asked)
    assert caught.value.where == where
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_is_there_is_left_alone_unless_asked(
    final_model: Path, tmp_path: Path, format_name: str
) -> None:
    output = tmp_path / "out"
    done = export(final_model, output, wishes(format_name, verifies=False))
    before = {path: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(OutputError, match="is there already"):
        export(final_model, output, wishes(format_name, verifies=False))
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    assert export(final_model, output, wishes(format_name, verifies=False, overwrites=True)).path == done.path


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_disk_that_fills_up_leaves_what_was_there(
    final_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    output = tmp_path / "out"
    export(final_model, output, wishes(format_name, verifies=False))
    before = {path: path.read_bytes() for path in output.iterdir()}

    def is_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_safetensors", "write_adapter_gguf", "verify_file", "verify_merged", "verify_adapter"):
        monkeypatch.setattr(convert, name, is_full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        export(final_model, output, wishes(format_name, overwrites=True))
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run", "out"] or len(list(tmp_path.iterdir())) == 2


def test_a_folders_name_that_ollama_refuses_needs_another(make_adapter: Make, tmp_path: Path) -> None:
    adapter, _ = make_adapter()
    named = adapter.rename(adapter.with_name("my model!"))
    with pytest.raises(InputError, match="'my model!' is not a name that Ollama takes"):
        export(named, tmp_path / "out", wishes("ollama", verifies=False))
    assert export(named, tmp_path / "out", wishes("gguf", verifies=False)).path.name == "my-model-f16.gguf"


def test_only_an_earlier_export_is_ever_replaced(make_adapter: Make, tmp_path: Path) -> None:
    adapter, _ = make_adapter()
    asked = wishes("safetensors", verifies=False, overwrites=True)
    mine = tmp_path / "mine"
    (mine / "folder").mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    base = adapter.parent / "base"
    for output in (mine, tmp_path / "file", base, adapter, adapter.parent):
        before = sorted(path for path in adapter.parent.rglob("*"))
        with pytest.raises(OutputError, match="is not an earlier export"):
            export(adapter, output, asked)
        assert sorted(path for path in adapter.parent.rglob("*")) == before
    assert (mine / "thesis.txt").read_text() == "years of work"
    export(adapter, tmp_path / "out", asked)
    assert export(adapter, tmp_path / "out", asked).path == tmp_path / "out"


def test_without_llama_cpp_nothing_is_written_that_could_not_be_checked(
    final_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafarm.inference import llamacpp

    monkeypatch.setattr(llamacpp, "has_llamacpp", lambda: False)
    with pytest.raises(MachineError, match="which is not installed"):
        export(final_model, tmp_path / "m.gguf", wishes("gguf"))
    assert not (tmp_path / "m.gguf").exists()
    assert export(final_model, tmp_path / "m.gguf", wishes("gguf", verifies=False)).num_bytes > 0


def test_too_small_a_disk_is_told_of_before_anything_is_written(
    final_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    for format_name in ("gguf", "pytorch"):
        with pytest.raises(MachineError, match="GiB are free"):
            export(final_model, tmp_path / "out", wishes(format_name, verifies=False))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nothing", "", "file.txt"])
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ModelError):
        export(tmp_path / name, tmp_path / "out", wishes("gguf"))


def test_an_adapter_without_its_base_says_so(make_adapter: Make, tmp_path: Path) -> None:
    adapter, _ = make_adapter()
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not say which base model"):
        export(adapter, tmp_path / "m.gguf", wishes("gguf"))


def test_the_working_directory_does_not_matter(
    final_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(final_model.parent)
    done = export(Path("final_model"), Path("out.gguf"), wishes("gguf", verifies=False))
    assert done.path.samefile(final_model.parent / "out.gguf")
