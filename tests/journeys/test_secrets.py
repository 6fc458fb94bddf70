"""Secrets of the environment and of addresses are in nothing that is printed, kept or handed on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llamafarm import terminal
from llamafarm.redaction import HIDDEN, hide_secrets, hide_users, secrets_of_environment
from llamafarm.strict_json import to_json

Speak = Callable[..., Any]
CANARIES = {
    "HF_TOKEN": "hf_CanaryOfTheHubCanaryOfTheHub",
    "WANDB_API_KEY": "CanaryOfWandb0123456789abcdef0123456789",
    "MLFLOW_TRACKING_PASSWORD": "CanaryOfMlflow",
    "AWS_SECRET_ACCESS_KEY": "CanaryOfAws/with+signs",
}
ADDRESSES = {
    "HTTPS_PROXY": "http://someone:CanaryOfTheProxy@127.0.0.1:9",
    "OLLAMA_HOST": "http://CanaryUserOfOllama:CanaryOfOllama@127.0.0.1:9",
}
# Longer than what a line shows of a value.
OF_STRATEGY = f"CanaryOfTheStrategy{'x' * 60}"
SECRETS = [
    *CANARIES.values(), "CanaryOfTheProxy", "CanaryUserOfOllama", "CanaryOfOllama", "CanaryOfTheStrategy",
    "Canary",
]  # fmt: skip
ROWS = [
    {"instruction": f"what is {number}?", "input": "", "output": f"it is {number}."} for number in range(10)
]
STRATEGY = f"""\
mine:
  base_model: {{huggingface_id: BASE}}
  dataset: {{train_file: rows.jsonl, eval_file: held_out.jsonl}}
  prompt_template: {{format: "Q: {{input}}\\nA: {{output}}"}}
  method: {{r: 4, alpha: 8, target_modules: [q_proj, v_proj]}}
  hardware: {{device: cpu}}
  generation: {{max_new_tokens: 4}}
  model_app:
    type: TYPE
    config: {{base_url: "http://me:{OF_STRATEGY}@127.0.0.1:9", default_model: m, timeout: 2}}
  training_args: {{output_dir: run, max_steps: 2, save_steps: 1, save_strategy: steps}}
  monitoring: {{sample_rows: 0, log_level: debug, log_tensorboard: true}}
"""


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a strategy and rows, in an environment of canaries."""
    for name, value in (CANARIES | ADDRESSES).items():
        monkeypatch.setenv(name, value)
    text = STRATEGY.replace("BASE", str(tiny_base))
    for file, kind in (
        ("strategies.yaml", "transformers"),
        ("ollama.yaml", "ollama"),
        ("url.yaml", "openai"),
    ):
        (tmp_path / file).write_text(text.replace("TYPE", kind))
    for name, rows in (("rows.jsonl", ROWS[:8]), ("held_out.jsonl", ROWS[8:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bad.jsonl").write_text('{"instruction": "why?"}\n')
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find_secrets(contents: Mapping[str, bytes]) -> list[str]:
    """Return where a secret stands, in the encodings that texts are written in."""
    return [
        f"{place}: {secret}"
        for place, content in contents.items()
        for secret in SECRETS
        for encoding in ("utf-8", "utf-16-le")
        if secret.encode(encoding) in content
    ]


def written_in(folder: Path) -> dict[str, bytes]:
    written = [path for name in ("run", "out", "temp", "other") for path in (folder / name).rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in written if path.is_file()}


def test_no_verb_tells_a_secret(place: Path, speak: Speak, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, bytes] = {}

    def run(*arguments: str, expected: int = 0) -> None:
        spoken = speak(arguments)
        assert spoken.code == expected, (arguments, spoken.err)
        said[f"stdout of {arguments}"] = spoken.out.encode()
        said[f"stderr of {arguments}"] = spoken.err.encode()

    strategy = ("--strategy", "mine")
    run("train", *strategy)
    run("train", *strategy, "--json", "--overwrite")
    run("train", *strategy, "--train-dataset", "bad.jsonl", "--output-dir", "other", expected=2)
    run(
        "train",
        *strategy,
        "--set",
        "base_model.huggingface_id=owner/gone",
        "--output-dir",
        "other",
        expected=2,
    )
    run("evaluate", *strategy)
    run("evaluate", *strategy, "--json")
    run("complete", "why?", *strategy, "--json")
    run("complete", "why?", *strategy, "--strategy-file", "ollama.yaml")
    run("complete", "why?", *strategy, "--strategy-file", "url.yaml", expected=3)
    run("report", "run", "--json")
    run("plan", *strategy, "--json")
    run("strategies", "list")
    run("plan", *strategy)
    run("setup", "strategies.yaml", "--verify-only", "--json")
    run("strategies", "validate", "mine")
    run("strategies", "show", "mine")
    run("strategies", "show", "mine", "--json")
    run("strategies", "show", "mine", "--yaml")
    run("strategies", "show", "mine", "--set", f"model_app.config.base_url=http://me:{OF_STRATEGY}@h:9")
    run("convert", "run", "out", "--format", "ollama", "--quantization", "f16", "--no-verify")
    run("convert", "run", "out", "--format", "gguf", "--quantization", "f16", "--no-verify", "--overwrite")
    run("doctor")

    def break_down(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"request to {os.environ['OLLAMA_HOST']} with {os.environ['HF_TOKEN']} failed")

    monkeypatch.setattr("llamafarm.deploy.convert.export", break_down)
    run("convert", "run", "out", "--overwrite", expected=1)
    run("convert", "run", "out", "--overwrite", "--json", expected=1)
    written = written_in(place)
    assert any(name.startswith("temp/llamafarm-traceback-") for name in written), (
        "the bug's traceback is kept"
    )
    assert {"run/run.json", "run/report.html", "run/evaluation.json"} <= set(written)
    assert find_secrets(said) == []
    assert find_secrets(written) == []


@pytest.mark.parametrize("address", ["ftp://me:{}@h", "me:{}@h:80/v1", "http//me:{}@h", "http://me:{} x@h"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_address_that_is_refused_is_told_without_its_password(
    place: Path, speak: Speak, address: str, options: tuple[str, ...]
) -> None:
    text = (place / "strategies.yaml").read_text()
    written = address.format(OF_STRATEGY)
    (place / "strategies.yaml").write_text(text.replace(f"http://me:{OF_STRATEGY}@127.0.0.1:9", written))
    for verb in ("show", "validate"):
        spoken = speak(("strategies", verb, "mine", *options))
        assert spoken.code == 2 and "base_url" in spoken.out + spoken.err
        assert find_secrets({"out": spoken.out.encode(), "err": spoken.err.encode()}) == []


def test_a_strategy_is_shown_with_what_of_an_address_is_nobodys_secret(place: Path, speak: Speak) -> None:
    spoken = speak(("strategies", "show", "mine", "--yaml"))
    assert f'base_url: "http://{HIDDEN}@127.0.0.1:9"' in spoken.out
    assert "write it in" in spoken.err
    settings = json.loads(speak(("strategies", "show", "mine", "--json")).out)["settings"]
    assert settings["model_app"]["config"]["base_url"] == f"http://{HIDDEN}@127.0.0.1:9"


def test_a_run_that_breaks_down_keeps_no_secret(
    place: Path, speak: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: Any, **__: Any) -> None:
        raise ValueError(f"token {os.environ['WANDB_API_KEY']} for {os.environ['HTTPS_PROXY']}")

    monkeypatch.setattr("llamafarm.training.session.run_step", break_down)
    spoken = speak(("train", "--strategy", "mine"))
    assert spoken.code == 1 and HIDDEN in spoken.err
    assert find_secrets({"out": spoken.out.encode(), "err": spoken.err.encode()} | written_in(place)) == []


def test_what_is_secret_is_told_by_names_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith(("TOKEN", "KEY", "PASSWORD", "SECRET", "PASSWD", "PROXY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MY_TOKEN", "longer-than-token-a")
    monkeypatch.setenv("YOUR_TOKEN", "token-a")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SOME_URL", "user%40x:pass%2Fword@host:80/path")
    assert secrets_of_environment() == [
        "user%40x:pass%2Fword", "longer-than-token-a", "user@x:pass/word", "pass%2Fword", "pass/word",
        "token-a",
    ]  # fmt: skip
    assert hide_secrets("a longer-than-token-a b token-a c false abc") == f"a {HIDDEN} b {HIDDEN} c false abc"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://a:b@h:1/x and https://c@h", "at http://…@h:1/x and https://…@h"),
        ("see https://medium.com/@someone and a@b.c", "see https://medium.com/@someone and a@b.c"),
        ("http://a:p@ss@h/", "http://…@h/"),
        ("nothing", "nothing"),
    ],
)
def test_who_is_named_in_an_address_is_hidden(text: str, shown: str) -> None:
    assert hide_users(text) == shown


def test_records_keep_what_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", 'quoted"token')
    record = {"a": 'x quoted"token y', "b": ["http://me@host"], "path": Path('quoted"token'), "c": 1.0}
    assert json.loads(to_json(record)) == {"a": "x … y", "b": ["http://me@host"], "path": "…", "c": 1.0}


def test_an_ollama_with_a_user_is_asked_as_that_user_and_told_of_without(
    ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafarm.inference.ollama import Ollama

    monkeypatch.setenv("OLLAMA_HOST", ollama.address.replace("://", "://me:CanaryOfOllama@"))
    server = Ollama()
    assert server.check()
    assert server.address == ollama.address
    assert server._client.base_url.userinfo == b"me:CanaryOfOllama"
    server.close()


def test_messages_of_every_kind_hide_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.console.cache_clear()
    monkey = terminal.mode.log_level
    terminal.mode.log_level = "debug"
    try:
        for speak in (
            terminal.say,
            terminal.debug,
            terminal.heading,
            terminal.hint,
            terminal.warn,
            terminal.result,
        ):
            speak(f"with {CANARIES['HF_TOKEN']} by {ADDRESSES['OLLAMA_HOST']}")
        with terminal.progress("working", 1) as shown:
            shown.advance(CANARIES["HF_TOKEN"])
    finally:
        terminal.mode.log_level = monkey
    said = capsys.readouterr()
    assert find_secrets({"out": said.out.encode(), "err": said.err.encode()}) == []
    assert said.err.count(HIDDEN) >= 11
