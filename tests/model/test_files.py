"""Models and adapters as attack files: data, or refused in three lines before a loader opens them.

Each attack has a name in `hostile_models`; docs/reliability.md says which advisory it stands for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import AUTO_MAP, MARKER, ending_within, plant, witnessing
from hostile_models import REFUSED_ADAPTERS, REFUSED_BASES, change_json, load, save_adapter

from llamafarm.deploy.source import open_source
from llamafarm.errors import InputError, ModelError
from llamafarm.model.adapter import load_adapter
from llamafarm.model.load import count_parameters, find_base, load_config, load_tokenizer


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
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter of `base`, to be spoilt."""
    return save_adapter(base, tmp_path / "adapter")


@pytest.mark.parametrize("attack", REFUSED_BASES)
def test_a_hostile_base_is_refused_in_three_lines(base: Path, attack: str) -> None:
    REFUSED_BASES[attack](base)
    with pytest.raises(InputError) as caught:
        load(base)
    error = caught.value
    assert error.where and error.remedy and "\n" not in error.problem and len(error.problem) < 500


OF_WEIGHTS = [
    "a shard above", "a shard that is a device", "weights that are a FIFO", "weights behind a link",
    "a header of 2**62 bytes", "a header of -1 bytes", "an index of numbers", "a shape that overflows",
]  # fmt: skip


@pytest.mark.parametrize("attack", OF_WEIGHTS)
def test_an_export_refuses_the_same_weights(base: Path, attack: str) -> None:
    REFUSED_BASES[attack](base)
    with pytest.raises(ModelError), open_source(base) as source:
        source.weights.read(next(iter(source.weights.entries)))


@pytest.mark.parametrize("attack", ["a billion layers", "sizes that are texts", "huge sizes"])
def test_counting_parameters_ends(base: Path, attack: str) -> None:
    REFUSED_BASES[attack](base)
    with pytest.raises(ModelError):
        count_parameters(find_base(str(base)))


def test_a_snapshot_in_the_hubs_cache_is_made_of_links_and_loaded(base: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--model"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for path in base.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    load(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ModelError, match="link"):
        load_config(find_base(str(snapshot)))


@pytest.mark.parametrize("attack", ["a config of unknown code", "nested code", "a tokenizer's class of code"])
def test_a_refusal_writes_nothing(base: Path, tmp_path: Path, attack: str) -> None:
    plant(base, tmp_path / MARKER)
    REFUSED_BASES[attack](base)
    (tmp_path / "allowed").mkdir()
    with witnessing(tmp_path / "allowed") as witness, pytest.raises(ModelError):
        load(base)
    assert (witness.written, witness.started) == ([], [])
    assert not (tmp_path / MARKER).exists()


def test_auto_map_of_a_known_model_is_ignored(base: Path) -> None:
    plant(base, base.parent / MARKER)
    change_json(base / "config.json", auto_map=AUTO_MAP)
    change_json(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    change_json(base / "generation_config.json", custom_generate=str(base), max_length=-1)
    load(base)
    assert not (base.parent / MARKER).exists()


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch executed') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.__class__.__base__ }}{{ ('x' * 10 ** 10) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_chat_template_is_refused(base: Path, template: str, tmp_path: Path) -> None:
    from llamafarm.model.prompt import build_template

    (base / "chat_template.jinja").write_text(template + "{{ messages[0].content }}<|end|>")
    tokenizer = load_tokenizer(find_base(str(base)))
    with pytest.raises(InputError):
        build_template(tokenizer, None, None)
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("attack", REFUSED_ADAPTERS)
def test_a_hostile_adapter_is_refused(adapter: Path, base: Path, attack: str) -> None:
    change_json(adapter / "adapter_config.json", **REFUSED_ADAPTERS[attack])
    with pytest.raises(ModelError):
        load_adapter(load(base), adapter)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q_proj|v_proj)$", ["q_proj"], r"(?:.*?q_proj.*?)"])
def test_targets_that_people_write_are_matched(adapter: Path, base: Path, targets: Any) -> None:
    change_json(adapter / "adapter_config.json", target_modules=targets)
    load_adapter(load(base), adapter)


@pytest.mark.parametrize(
    "base_name",
    ["../../../etc", "/etc/passwd", "a\nb", "a\0b", "~root", "~nobody-of-that-name/x", "x" * 5000,
     "$(touch executed)", "https://attacker/x", "\\\\host\\share", ["a"], {"a": 1}, 7],
)  # fmt: skip
def test_a_hostile_name_of_an_adapters_base_is_refused(adapter: Path, base_name: Any) -> None:
    change_json(adapter / "adapter_config.json", base_model_name_or_path=base_name)
    with pytest.raises(InputError), open_source(adapter):
        pass


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": ["x"]},
        {"base_model": "~nobody-of-that-name/x"},
        {"strategy": {"a": 1}},
        {"stop_sequences": [1]},
        {"max_length": "x"},
        {
            "generation": {
                "temperature": "x",
                "max_new_tokens": 1,
                "top_p": 1,
                "top_k": 1,
                "repetition_penalty": 1,
            }
        },
        {"trained": {"x": 1}},
        {"quantization": {"bits": "__import__('os')"}},
        {"kind": "pickle"},
        {"unknown": 1},
    ],
)
def test_a_hostile_record_of_a_final_model_is_refused(
    changes: dict[str, Any], adapter: Path, base: Path
) -> None:
    from llamafarm.model.bundle import open_bundle

    sampling = {
        "max_new_tokens": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": None,
        "repetition_penalty": 1.0,
    }
    record = {
        "base_model": str(base), "strategy": "s", "end_of_turn": "<|end|>", "joiner": "", "max_length": 9,
        "stop_sequences": [], "generation": sampling, "kind": "adapter", "format_version": 1, **changes,
    }  # fmt: skip
    (adapter / "llamafarm.json").write_text(json.dumps(record))
    with pytest.raises(ModelError):
        open_bundle(adapter)
