"""Data sets of the Hub: fetched by the real library from a folder that stands for one; what may go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafarm.data.reading.hub_datasets import fetch_dataset, may_be_hub_id
from llamafarm.data.reading.records import read_data_file
from llamafarm.errors import DataError, LlamaFarmError, MachineError


@pytest.mark.parametrize(
    ("name", "may_be"),
    [
        ("owner/name", True),
        ("a/b-c_d.e", True),
        ("name", False),
        ("./a/b", False),
        ("a/b/c", False),
        ("a b/c", False),
    ],
)
def test_an_id_is_an_owner_and_a_name(name: str, may_be: bool) -> None:
    assert may_be_hub_id(name) is may_be


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, which takes the folder owner/name for a data set; nothing is looked for in the network."""
    library = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    return library


def write_split(split: str, questions: list[str]) -> None:
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "so"}]}
        for question in questions
    ]
    Path("owner/name", f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_rows_of_the_split_train_become_a_file(datasets: Any, tmp_path: Path) -> None:
    write_split("train", ["a", "b"])
    write_split("test", ["c"])
    file = fetch_dataset("owner/name", tmp_path / "kept", tmp_path / "downloads")
    assert [row.messages[0].content for row in read_data_file(file).conversations] == ["a", "b"]
    assert fetch_dataset("owner/name", tmp_path / "kept", tmp_path / "downloads") == file
    assert list((tmp_path / "kept").iterdir()) == [file]


@pytest.mark.parametrize("name", ["owner/nothing", "owner/name"])
def test_what_cannot_be_had_is_told_with_what_to_try(datasets: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(LlamaFarmError, match="cannot be had from the Hugging Face Hub") as caught:
        fetch_dataset(name, tmp_path / "kept", tmp_path / "downloads")
    assert isinstance(caught.value, DataError | MachineError)
    assert "\n" not in caught.value.problem
    assert not (tmp_path / "kept").exists()


def test_a_data_set_without_that_split_is_told_of(datasets: Any, tmp_path: Path) -> None:
    write_split("test", ["c"])
    with pytest.raises(DataError, match="train"):
        fetch_dataset("owner/name", tmp_path / "kept", tmp_path / "downloads")
