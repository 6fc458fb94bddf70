"""Names from outside lead nowhere but into their folder: through the helper, and through every verb."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import typer
from hostile import MARKER, NAMES, Witness, witnessing
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.confined import check_name, confined, fault_of_name, is_special, leaves
from llamafarm.errors import InputError, LlamaFarmError, OutputError
from llamafarm.strategy.load import load_strategy
from llamafarm.training.preparation.prepare import output_dir_of

ROWS = [{"instruction": f"what is {number}?", "input": "", "output": f"{number}."} for number in range(12)]


@cache
def command_line() -> Any:
    """The command line, which takes a while to be put together."""
    from llamafarm.cli import app

    return typer.main.get_command(app)


def is_in(path: Path, folder: Path) -> bool:
    return str(Path(os.path.realpath(path)).parent) == os.path.realpath(folder)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_a_hostile_name_is_refused_or_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    try:
        path = confined(tmp_path, name)
    except InputError as error:
        assert len(str(error)) < 1000
        return
    assert is_in(path, tmp_path) and path.name == name
    path.write_text("x")
    assert [one.name for one in tmp_path.iterdir()] == [name]


@given(st.text(max_size=300))
def test_no_text_leads_out(name: str) -> None:
    folder = Path("/somewhere/nowhere")
    try:
        path = confined(folder, name)
    except InputError:
        return
    assert os.path.normpath(path) == str(folder / name) and path.parent == folder


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=50))
def test_plain_names_are_names(name: str) -> None:
    assert fault_of_name(f"x{name}") is None


@pytest.mark.parametrize(
    "name", ["a", "a.b", "medical-llama3.2", ".hidden", "ü", "日本語", "a b", "a'b", "x:y"]
)
def test_what_people_call_their_files_is_a_name(name: str) -> None:
    assert check_name(name, where="") == name


@pytest.mark.parametrize("name", [None, 3, b"x", ["x"], Path("x")])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(InputError, match="no text"):
        confined(Path(), name)


def test_a_link_may_lead_within_the_folder_only(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "in-other"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "file").write_text("x")
    (folder / "within").symlink_to("file")
    (folder / "round").symlink_to("round")
    for name, target in (("out", elsewhere / "x"), ("up", Path("../in-other")), ("absolute", Path("/etc"))):
        (folder / name).symlink_to(target)
        assert leaves(folder / name, folder)
        with pytest.raises(OutputError, match="leads out"):
            confined(folder, name)
    assert confined(folder, "within") and confined(folder, "round")
    (tmp_path / "link-to-in").symlink_to(folder)
    assert confined(tmp_path / "link-to-in", "within")


def test_a_fifo_and_a_device_are_special_and_a_file_is_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    assert is_special(tmp_path / "fifo") and is_special(Path("/dev/zero"))
    assert not any(map(is_special, (tmp_path, tmp_path / "file", tmp_path / "gone", Path("a\0b"))))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Witness]]:
    """A folder to stand in, deep enough to be left, and a witness of what is done outside of it."""
    inside = tmp_path / "outer" / "inside"
    inside.mkdir(parents=True)
    (inside / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(inside)
    (inside / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(inside / "temp"))
    monkeypatch.setenv("HOME", str(inside))
    with witnessing(inside) as witness:
        yield inside, witness
    assert witness.written == []
    assert witness.started == []
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["inside"]
    assert not list(tmp_path.rglob(MARKER))


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Run the command line in this process; a bug of ours is a failure."""
    from llamafarm import terminal

    monkeypatch.setattr(terminal, "mode", terminal.Mode())

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            command_line()(list(arguments))
        said = capsys.readouterr()
        code = int(left.value.code or 0)
        assert code in (0, 2, 3), (arguments, said.err)
        return code

    return run


def write_strategy(key: str, **sections: Any) -> None:
    content = {"dataset": {"train_file": "rows.jsonl"}, **sections}
    Path("strategies.yaml").write_text(json.dumps({"strategies": {key: content}}), encoding="utf-8")


def test_strategies_of_hostile_names_train_into_their_folder_or_not_at_all(
    place: tuple[Path, Witness],
) -> None:
    inside, _ = place
    for name in NAMES:
        try:
            write_strategy(name)
            folder = output_dir_of(load_strategy(name, file=Path("strategies.yaml")))
        except (LlamaFarmError, UnicodeEncodeError):
            continue
        assert is_in(inside / folder, inside / "fine_tuned_models"), name


def test_train_plan_and_complete_of_hostile_strategies(
    place: tuple[Path, Witness], verb: Callable[..., int]
) -> None:
    for name in NAMES[::8]:
        if "\ud800" in name:
            continue
        write_strategy(name)
        # A name that is one trains on nothing that is there.
        for arguments in (("train", "--train-dataset", "gone.jsonl"), ("complete", "why?"), ("evaluate",)):
            assert verb(*arguments, "--strategy", name) != 0


def test_a_hostile_name_of_an_export_is_refused_before_anything_is_opened(
    place: tuple[Path, Witness], verb: Callable[..., int]
) -> None:
    forms = cycle(("gguf", "ollama", "adapter-gguf"))
    for name, form in zip(NAMES, forms, strict=False):
        assert verb("convert", "gone", "out", "--format", form, f"--model-name={name}", "--no-verify") == 2
    assert not Path("out").exists()


def test_a_strategys_hostile_export_names_are_refused_before_training(
    place: tuple[Path, Witness], verb: Callable[..., int]
) -> None:
    for name in NAMES[::10]:
        if "\ud800" in name or not name:
            continue
        write_strategy("mine", export={"to_gguf": True, "model_name": name})
        assert verb("train", "--strategy", "mine") == 2, name
    assert not Path("fine_tuned_models").exists()


def test_hostile_quantizations_formats_and_outputs_write_nothing_elsewhere(
    place: tuple[Path, Witness], verb: Callable[..., int]
) -> None:
    for name in NAMES[::5]:
        assert verb("convert", "gone", "out", f"--quantization={name}", "--no-verify") == 2
        assert verb("convert", "gone", "out", f"--format={name}", "--no-verify") == 2
    for name in NAMES[1::6]:
        # Where to write is the user's to say, as in any program; there is only nothing to be written.
        assert verb("convert", "--no-verify", "gone", "--", name) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "--"),
        ("complete", "why?", "--model"),
        ("evaluate", "--eval-dataset", "rows.jsonl", "--model"),
        ("verify", "rows.jsonl", "--"),
        ("data", "preview", "--"),
        ("data", "inspect", "--"),
        ("data", "split", "--input"),
        ("train", "--resume", "never", "--train-dataset"),
        ("strategies", "show", "--"),
    ],
    ids=" ".join,
)
def test_verbs_given_hostile_names_of_what_is_not_there(
    place: tuple[Path, Witness], verb: Callable[..., int], arguments: tuple[str, ...]
) -> None:
    write_strategy("mine")
    for name in NAMES[::12]:
        verb(*arguments, name)


def test_files_of_hostile_names_are_split_beside_them(
    place: tuple[Path, Witness], verb: Callable[..., int]
) -> None:
    num_split = 0
    for name in NAMES[::4]:
        folder = Path("of-it")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if "/" in name or "\0" in name or "\ud800" in name or not name.strip(".") or len(name.encode()) > 200:
            continue
        shutil.copy("rows.jsonl", folder / f"{name}.jsonl")
        if verb("data", "split", "--input", str(folder / f"{name}.jsonl")) == 0:
            num_split += 1
            assert {path.name for path in folder.iterdir()} == {
                f"{name}.jsonl", f"{name}_train.jsonl", f"{name}_eval.jsonl",
            }  # fmt: skip
    assert num_split > 10
