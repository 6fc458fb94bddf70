"""What Ollama is told: a Go template that renders what ours does, and texts that cannot break out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.data.conversation import Message
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.deploy.modelfile import Modelfile, default_system, go_template, take_apart
from llamafarm.errors import InputError
from llamafarm.model.prompt import build_template

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|begin|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|begin|>assistant\\n' }}{%- endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- '[INST] ' + message['content'] + ' [/INST]' }}{%- elif message['role'] == 'assistant' %}"
    "{{- ' ' + message['content'] + '<|end|>' }}{%- else %}"
    "{{ raise_exception('no system') }}{%- endif %}{%- endfor %}"
)
NUMBERED = (
    "{%- for message in messages %}"
    "{{- loop.index ~ '. ' + message['role'] + ': ' + message['content'] + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
)


def template_of(source: str) -> ChatTemplate:
    specials = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    return ChatTemplate(source, special_tokens=specials, control_tokens=["<|begin|>", "<|end|>"])


def render_go(template: str, messages: Sequence[Message]) -> str:
    """Render the part of Go's templates that ours are written in."""
    before, turns, after = re.fullmatch(
        r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*?)", template, re.S
    ).groups()  # type: ignore[union-attr]
    pieces = re.split(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}', turns)[1:]
    around = {
        role: text.split("{{ .Content }}") for role, text in zip(pieces[::2], pieces[1::2], strict=True)
    }
    return before + "".join(around[m.role][0] + m.content + around[m.role][1] for m in messages) + after


@pytest.mark.parametrize(
    ("prompt_format", "system"),
    [
        (None, None),
        ("Question: {input}\nAnswer: {output}", None),
        ("Question: {input}\nAnswer: {output}", "Be brief.\nAnd kind."),
        ("### System: {system}\n### Q: {instruction}\n{input}\n### A: {output}", None),
        ("[INST] {input} [/INST]{output}", None),
    ],
)
def test_the_go_template_renders_what_was_trained(
    tokenizer: Any, prompt_format: str | None, system: str | None
) -> None:
    template, _ = build_template(tokenizer, prompt_format, system)
    go = go_template(template, tokenizer.bos_token)
    assert go is not None and default_system(template) == system
    for messages in (
        [Message("user", "1")],
        [Message("system", "s"), Message("user", "1")],
        [Message("user", "1"), Message("assistant", "2"), Message("user", "3")],
    ):
        # Ollama puts its own system message where a conversation has none.
        told = [Message("system", system), *messages] if system and messages[0].role == "user" else messages
        expected = template.render(messages, add_generation_prompt=True)
        assert render_go(go, told) == expected.removeprefix("<|begin|>")


def test_chatml_is_taken_apart() -> None:
    parts = take_apart(template_of(CHATML))
    assert parts is not None
    assert parts.around["user"] == ("<|begin|>user\n", "<|end|>\n")
    assert parts.around["system"] == ("<|begin|>system\n", "<|end|>\n")
    assert parts.before_answer == "<|begin|>assistant\n"


@pytest.mark.parametrize("source", [LLAMA2, NUMBERED], ids=["no system", "numbered turns"])
def test_a_template_that_go_would_render_otherwise_has_none(source: str) -> None:
    assert go_template(template_of(source), "<|begin|>") is None


def test_text_that_go_would_run_has_no_template() -> None:
    source = CHATML.replace("'<|begin|>' + message['role']", "'{{ .System }}' + message['role']")
    assert go_template(template_of(source), None) is None


def test_a_modelfile_has_everything_on_its_own_lines() -> None:
    text = Modelfile(
        "m.gguf",
        {"temperature": 0.5, "num_ctx": 64, "stop": ["<|end|>", "\n\n"]},
        "{{ .Prompt }}",
        "Be\nbrief.",
    ).text()
    assert text == (
        'FROM ./m.gguf\nTEMPLATE """{{ .Prompt }}"""\nSYSTEM """Be\nbrief."""\nPARAMETER temperature 0.5\n'
        'PARAMETER num_ctx 64\nPARAMETER stop """<|end|>"""\nPARAMETER stop """\n\n"""\n'
    )


@given(st.text())
def test_no_system_prompt_becomes_a_command(system: str) -> None:
    try:
        text = Modelfile("m.gguf", {}, None, system).text()
    except InputError:
        is_control = any(sign < " " and sign not in "\n\r\t" for sign in system)
        assert '"""' in system or system.endswith('"') or is_control
        return
    assert text == f'FROM ./m.gguf\nSYSTEM """{system}"""\n'
    assert text.count('"""') == 2


@pytest.mark.parametrize(
    "name", ["x\nFROM /etc/passwd", "../x.gguf", "a/b.gguf", 'x\r\nSYSTEM """y"""', "", "CON"]
)
def test_a_files_name_that_could_be_read_as_more_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot stand in a Modelfile"):
        Modelfile(name).text()
