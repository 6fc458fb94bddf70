"""What a strategy's `export` asks for is checked before the first step, and done after the last one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafarm.deploy.convert import export
from llamafarm.deploy.gguf.read import read_header
from llamafarm.deploy.gguf.types import quantization_in
from llamafarm.errors import InputError, LlamaFarmError, ModelError, OutputError
from llamafarm.inference.llamacpp import has_llamacpp
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training import export as exporting
from llamafarm.training.export import export_run
from llamafarm.training.preparation import prepare as preparing
from llamafarm.training.preparation.prepare import prepare
from llamafarm.training.run import run_training

pytestmark = pytest.mark.skipif(not has_llamacpp(), reason="needs xllamacpp")
Load = Callable[..., LoadedStrategy]
MakeRows = Callable[..., list[dict[str, Any]]]
TRAINED = {"training_args.num_train_epochs": 4, "training_args.learning_rate": 0.02}


@pytest.fixture
def exported(load: Load, make_rows: MakeRows) -> Callable[..., Any]:
    """Train on a few rows and export as the settings say; return what was exported."""

    def train(**settings: Any) -> Any:
        loaded = load(make_rows(8), make_rows(4, seed=1), **{**TRAINED, **settings})
        return export_run(loaded, run_training(loaded).final_model)

    return train


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are not compared: a random model's next tokens are all nearly as likely."""
    monkeypatch.setattr(
        exporting, "export", lambda *given: export(*given[:2], replace(given[2], verifies=False))
    )


def test_without_a_wish_nothing_is_exported(exported: Callable[..., Any], tmp_path: Path) -> None:
    assert exported() is None and not (tmp_path / "run" / "export").exists()


def test_a_file_is_written_verified_on_the_runs_rows(exported: Callable[..., Any], tmp_path: Path) -> None:
    done = exported(**{"export.to_gguf": True})
    assert done.path == tmp_path / "run" / "export" / "s-q8_0.gguf" and done.format == "gguf"
    assert quantization_in(done.path) == "q8_0"
    record = json.loads(done.path.with_suffix(".verify.json").read_text())
    assert record["num_conversations"] == 6 + 4 or record["num_conversations"] == 7 + 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"export.quantization": "f16"}, "general.file_type 1"),
        ({"export.model_name": "other"}, "general.name other"),
        ({"export.system_prompt": "Say it."}, 'SYSTEM """Say it."""'),
        ({"export.ollama_parameters.temperature": 0.3}, "PARAMETER temperature 0.3"),
        ({"export.ollama_parameters.top_p": 0.35}, "PARAMETER top_p 0.35"),
        ({"export.ollama_parameters.top_k": 3}, "PARAMETER top_k 3"),
        ({"export.ollama_parameters.repeat_penalty": 1.35}, "PARAMETER repeat_penalty 1.35"),
        ({"export.ollama_parameters.num_predict": 33}, "PARAMETER num_predict 33"),
        ({"export.ollama_parameters.num_ctx": 99}, "PARAMETER num_ctx 99"),
        ({"export.ollama_parameters.stop": ["###"]}, 'PARAMETER stop """###"""'),
    ],
)
def test_every_setting_of_an_export_acts(
    exported: Callable[..., Any], unverified: None, settings: dict[str, Any], expected: str
) -> None:
    def said(**more: Any) -> str:
        done = exported(**{"export.to_ollama": True, "output": f"run-{len(more)}", **more})
        metadata = read_header(done.path).metadata
        lines = [f"{key} {value}" for key, value in metadata.items()]
        return "\n".join([done.modelfile_path.read_text(), *lines])

    assert expected in said(**settings)
    assert expected not in said()


def test_a_failed_export_keeps_the_model_and_says_how_to_try_again(
    load: Load, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(make_rows(8), **{**TRAINED, "export.to_gguf": True, "export.model_name": "mine"})
    result = run_training(loaded)
    for failure in (
        OutputError("the export cannot be written", where="there", remedy="Make room."),
        ModelError("it is broken", where="there", remedy="Look."),
    ):

        def fail(*_: Any, failure: Exception = failure) -> Any:
            raise failure

        monkeypatch.setattr(exporting, "export", fail)
        with pytest.raises(LlamaFarmError) as caught:
            export_run(loaded, result.final_model)
        assert f"convert {result.final_model} " in caught.value.remedy
        assert "--format gguf --quantization q8_0 --model-name mine --overwrite" in caught.value.remedy
        assert (result.final_model / "adapter_model.safetensors").is_file()


def test_what_cannot_be_exported_is_refused_before_anything_is_trained(
    load: Load, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="not a name that Ollama takes"):
        prepare(load(make_rows(8), **{"export.to_gguf": True, "export.model_name": "a/b/c/d"}))
    with pytest.raises(InputError, match="three quotation marks"):
        prepare(load(make_rows(8), **{"export.to_gguf": True, "export.system_prompt": 'x"""\nFROM y'}))

    def refuse(_: Any) -> None:
        raise ModelError("GGUF files cannot be written of it", where="", remedy="")

    monkeypatch.setattr(exporting, "family_of", refuse)
    prepare(load(make_rows(8)))
    with pytest.raises(ModelError, match="GGUF files cannot be written of it"):
        prepare(load(make_rows(8), **{"export.to_ollama": True}))
    assert preparing.wants_export(load(make_rows(8), **{"export.to_gguf": True}).strategy)


def test_an_importance_matrix_is_measured_if_asked(exported: Callable[..., Any], unverified: None) -> None:
    settings = {"export.to_gguf": True, "export.quantization": "q4_0"}
    plain = exported(output="plain", **settings).path.read_bytes()
    weighed = exported(output="weighed", **settings, **{"export.importance_matrix": True}).path.read_bytes()
    assert len(weighed) == len(plain) and weighed != plain
