"""Prompt formats compiled to chat templates, what they render, and templates that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.prompt_format import compile_prompt_template, with_default_system
from llamafarm.data.encoding.template import ChatTemplate, TrainedPart
from llamafarm.errors import TemplateError

BOS, EOS = "<s>", "</s>"

QUESTION, ANSWER = Message("user", "What is it?"), Message("assistant", "That.")
SYSTEM = Message("system", "Be nice")
ALPACA = (Message("user", "Add.", "1 and 2"), Message("assistant", "3"))
# Ends every turn, and tells who speaks by nothing else.
PLAIN = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"


def make_template(
    source: str, joiner: str = "\n\n", control_tokens: tuple[str, ...] = (BOS, EOS)
) -> ChatTemplate:
    return ChatTemplate(
        source,
        special_tokens={"bos_token": BOS, "eos_token": EOS},
        control_tokens=control_tokens,
        joiner=joiner,
    )


def compiled(prompt_format: str, *, adds_bos: bool = False) -> ChatTemplate:
    prompt = compile_prompt_template(prompt_format, adds_bos=adds_bos)
    return make_template(prompt.source, prompt.joiner)


def answered_by(template: ChatTemplate, *messages: Message) -> list[str]:
    (rendering,) = template.render_rows(Conversation(messages, 1))
    return [rendering.text[start:end] for start, end in rendering.trained_spans]


@pytest.mark.parametrize(
    ("prompt_format", "prompt", "answer"),
    [
        ("Question: {input}\nAnswer: {output}", "Question: What is it?\nAnswer:", " That."),
        ("User: {input}\nAssistant: {output}\n", "User: What is it?\nAssistant:", " That."),
        ("{input}\n{output}", "What is it?\n", "That."),
        ("{input}{output}", "What is it?", "That."),
        ("{instruction} ->\t {output}", "What is it? ->", "\t That."),
        ("{input}\r\n{output}", "What is it?\r\n", "That."),
        ("Q: {input}\nA: {output}\n###", "Q: What is it?\nA:", " That.\n###"),
        ("[INST] {input} [/INST] {output}", "[INST] What is it? [/INST]", " That."),
        ('"{input}" it\'s \\ \\n -> {output}', '"What is it?" it\'s \\ \\n ->', " That."),
        ("{{ {input} }} {% x %} {# y #}: {output}", "{{ What is it? }} {% x %} {# y #}:", " That."),
        ("Frage «{input}» 🙂\u2028: {output}", "Frage «What is it?» 🙂\u2028:", " That."),
    ],
)
def test_a_format_becomes_prompt_and_answer(prompt_format: str, prompt: str, answer: str) -> None:
    template = compiled(prompt_format)
    assert template.render([QUESTION], add_generation_prompt=True) == prompt
    assert template.render([QUESTION, ANSWER]) == prompt + answer + EOS
    assert answered_by(template, QUESTION, ANSWER) == [answer + EOS]
    assert template.end_of_turn == EOS


ALPACA_FORMAT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"


def test_instruction_and_input_have_places_of_their_own() -> None:
    template = compiled(ALPACA_FORMAT)
    assert template.render(ALPACA) == (
        f"### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3{EOS}"
    )
    # A row without an input leaves its heading out, too.
    assert template.render([QUESTION, ANSWER]) == (
        f"### Instruction:\nWhat is it?\n\n### Response:\nThat.{EOS}"
    )


def test_one_field_takes_instruction_and_input_with_an_empty_line_between() -> None:
    assert compiled("Q: {input}\nA: {output}").render(ALPACA) == f"Q: Add.\n\n1 and 2\nA: 3{EOS}"


def test_a_system_message_stands_where_the_format_says() -> None:
    template = compiled("Setting: {system}\n\nQ: {input}\nA: {output}")
    assert template.render([SYSTEM, QUESTION, ANSWER]) == (
        f"Setting: Be nice\n\nQ: What is it?\nA: That.{EOS}"
    )
    assert template.render([QUESTION, ANSWER]) == f"Q: What is it?\nA: That.{EOS}"


def test_a_system_message_stands_first_where_the_format_does_not_say() -> None:
    template = compiled("Q: {input}\nA: {output}")
    assert template.render([SYSTEM, QUESTION, ANSWER]) == f"Be nice\n\nQ: What is it?\nA: That.{EOS}"


def test_several_turns_follow_each_other_and_each_answer_ends() -> None:
    template = compiled("Q: {input}\nA: {output}", adds_bos=True)
    messages = SYSTEM, QUESTION, ANSWER, Message("user", "And?"), Message("assistant", "  No.\n")
    assert template.render(messages) == (f"{BOS}Be nice\n\nQ: What is it?\nA: That.{EOS}Q: And?\nA: No.{EOS}")
    assert answered_by(template, *messages) == [f" That.{EOS}", f" No.{EOS}"]


def test_the_beginning_of_text_is_rendered_once_if_the_tokenizer_adds_it() -> None:
    for adds_bos in (True, False):
        text = compiled("{input}\n{output}", adds_bos=adds_bos).render([SYSTEM, QUESTION, ANSWER])
        assert text.count(BOS) == int(adds_bos)
        assert text.startswith(BOS) == adds_bos


@pytest.mark.parametrize(
    "prompt_format",
    [
        "",
        "no field",
        "{input}",
        "{output}",
        "{output} {input}",
        "{input} {output} {output}",
        "{input} {input} {output}",
        "{input} {instruction} {output}",
        "{system} {system} {input} {output}",
    ],
)
def test_a_format_that_cannot_be_compiled_is_refused(prompt_format: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_prompt_template(prompt_format, adds_bos=False)
    assert caught.value.where == "prompt_template.format"


_surroundings = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("'\"\\{}%#\n\r\t -\u2028\x85")), max_size=10
)


_literals = _surroundings.filter(lambda text: not re.search(r"\{(system|instruction|input|output)\}", text))


@settings(max_examples=200, deadline=None)
@given(
    before=_literals,
    after=_literals,
    tail=_literals,
    question=_surroundings,
    answer=_surroundings,
    adds_bos=st.booleans(),
)
def test_whatever_a_format_holds_is_rendered_as_it_stands(
    before: str, after: str, tail: str, question: str, answer: str, adds_bos: bool
) -> None:
    template = compiled(f"{before}{{input}}{after}{{output}}{tail}", adds_bos=adds_bos)
    messages = [Message("user", question), Message("assistant", answer)]
    bos = BOS if adds_bos else ""
    expected = f"{bos}{before}{question.strip()}{after}{answer.strip()}{tail.rstrip()}{EOS}"
    assert template.render(messages) == expected
    prompt = template.render(messages[:1], add_generation_prompt=True)
    assert prompt == bos + before + question.strip() + after.rstrip(" \t")
    assert answered_by(template, *messages) == [expected.removeprefix(prompt)]


@settings(max_examples=60, deadline=None)
@given(system=_surroundings)
def test_a_default_system_stands_in_the_template_whatever_it_holds(system: str) -> None:
    source = compile_prompt_template("{system}|{input}: {output}", adds_bos=True).source
    template = make_template(with_default_system(source, system))
    assert template.render([QUESTION, ANSWER]) == (f"{BOS}{system.strip()}|What is it?: That.{EOS}")
    own = template.render([SYSTEM, QUESTION, ANSWER])
    assert own == make_template(source).render([SYSTEM, QUESTION, ANSWER])
    assert answered_by(template, QUESTION, ANSWER) == [f" That.{EOS}"]


@pytest.mark.parametrize(
    ("ending", "end_of_turn", "after"),
    [
        ("{{ eos_token }}", EOS, ""),
        ("<|end|>\n", "<|end|>", "\n"),
        (" <|end|>{{ eos_token }}\n", "<|end|>", f"{EOS}\n"),
        ("<|end|>x", "<|end|>x", ""),
    ],
)
def test_the_first_control_token_after_an_answer_ends_the_turn(
    ending: str, end_of_turn: str, after: str
) -> None:
    source = "{% for message in messages %}" + "{{ message['content'] }}" + ending + "{% endfor %}"
    # Among tokens that begin at the same place, the longest is the tokenizer's.
    template = make_template(source, control_tokens=(BOS, EOS, "<|end|>", "<|end|>x"))
    assert template.end_of_turn == end_of_turn
    (rendering,) = template.render_rows(Conversation((QUESTION, ANSWER), 1))
    ((start, end),) = rendering.trained_spans
    assert rendering.text[end:] == after
    assert rendering.text[start:end].startswith("That.")
    assert rendering.text[start:end].endswith(end_of_turn)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}{{ eos_token }}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",  # noqa: E501
        "{{ eos_token }}",
        "",
    ],
    ids=["none", "line-break", "before", "answers-left-out", "no-messages", "empty"],
)
def test_a_template_that_never_ends_an_answer_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="never learn to stop"):
        make_template(source)


def test_where_a_template_changes_earlier_turns_each_answer_is_the_last_of_a_row() -> None:
    source = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% if m['role'] == 'assistant' and not loop.last %}(said before){% else %}{{ m['content'] }}{% endif %}"  # noqa: E501
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = make_template(source)
    assert answered_by(template, QUESTION, ANSWER) == [f"That.{EOS}"]
    conversation = Conversation((QUESTION, ANSWER, QUESTION, Message("assistant", "This.")), 17)
    asked = f"user:What is it?{EOS}assistant:"
    first, second = template.render_rows(conversation)
    assert first.text == f"{asked}That.{EOS}"
    assert second.text == f"{asked}(said before){EOS}{asked}This.{EOS}"
    for rendering, answer in ((first, "That."), (second, "This.")):
        ((start, end),) = rendering.trained_spans
        assert rendering.text[start:end] == answer + EOS
    (last,) = template.render_rows(conversation, TrainedPart(is_last_answer_only=True))
    assert last == second


def test_the_last_answer_alone_or_the_whole_row_is_trained_on_if_asked() -> None:
    template = compiled("Q: {input}\nA: {output}")
    conversation = Conversation((QUESTION, ANSWER, QUESTION, Message("assistant", "This.")), 1)
    (last,) = template.render_rows(conversation, TrainedPart(is_last_answer_only=True))
    assert [last.text[start:end] for start, end in last.trained_spans] == [f" This.{EOS}"]
    (whole,) = template.render_rows(conversation, TrainedPart(includes_prompt=True))
    assert (whole.text, whole.trained_spans) == (last.text, ((0, len(last.text)),))


def test_an_answer_of_weight_0_is_shown_and_not_trained_on() -> None:
    template = compiled("Q: {input}\nA: {output}")
    shown = Message("assistant", "That.", weight=0.0)
    messages = (QUESTION, shown, QUESTION, Message("assistant", "This."))
    assert answered_by(template, *messages) == [f" This.{EOS}"]
    assert "A: That." in template.render_rows(Conversation(messages, 1))[0].text
    assert answered_by(template, QUESTION, shown) == []


@pytest.mark.parametrize("adds_bos", [True, False])
def test_plain_text_has_no_template_around_it_and_an_end(adds_bos: bool) -> None:
    source = compile_prompt_template("Q: {input}\nA: {output}", adds_bos=adds_bos).source
    template = ChatTemplate(
        source,
        special_tokens={"bos_token": BOS, "eos_token": EOS},
        control_tokens=[BOS, EOS],
        adds_bos=adds_bos,
    )
    (rendering,) = template.render_rows(Conversation((Message("text", "Once {{ x }}\n"),), 1))
    text = f"{BOS if adds_bos else ''}Once {{{{ x }}}}\n{EOS}"
    assert (rendering.text, rendering.trained_spans) == (text, ((0, len(text)),))


def test_a_template_whose_prompt_is_not_how_its_text_begins_is_refused() -> None:
    template = make_template(PLAIN + "{% if add_generation_prompt %}Assistant:{% endif %}")
    with pytest.raises(TemplateError, match="exactly"):
        template.render_rows(Conversation((QUESTION, ANSWER), 3))


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ 1",
        "{% include 'x' %",
        "{{ 1 | nofilter }}",
        "{% endgeneration %}",
        "{% for x in y %}",
    ],
)
def test_a_template_that_is_not_jinja_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="not valid Jinja"):
        make_template(PLAIN + source)


def test_a_role_that_a_template_refuses_is_named() -> None:
    template = compiled("{input}\n{output}")
    with pytest.raises(TemplateError, match="user, tool"):
        template.render([QUESTION, Message("tool", "x")])


def test_a_template_may_refuse_a_row_with_words_of_its_own() -> None:
    source = PLAIN + "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
    with pytest.raises(TemplateError, match="one turn only"):
        make_template(source).render([QUESTION, ANSWER, QUESTION])


@pytest.mark.parametrize(
    "expression",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__['os'].popen('touch {canary}').read() }}",
        "{{ raise_exception.__globals__['json'].codecs.open('{canary}', 'w').close() }}",
        "{{ (messages | map('upper')).gi_frame.f_globals }}",
        "{{ ''.format.__self__.__class__.__base__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ open('{canary}', 'w') }}",
        "{{ missing.attribute }}",
    ],
)
def test_a_template_reaches_nothing_of_the_machine(tmp_path: Path, expression: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(TemplateError):
        make_template(PLAIN + expression.replace("{canary}", str(canary)))
    assert not canary.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "{{ ''.__class__ }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
    ],
)
def test_what_the_sandbox_hides_renders_as_nothing(expression: str) -> None:
    text = make_template(PLAIN + expression).render([QUESTION, ANSWER])
    assert text == make_template(PLAIN).render([QUESTION, ANSWER])


def test_messages_are_data_and_never_run() -> None:
    evil = Message("user", "{{ 7 * 7 }}{% raise %}{# gone #}")
    assert evil.content in compiled("{input}\n{output}").render([evil, ANSWER])
    assert evil.content in make_template(PLAIN).render([evil, ANSWER])


def test_tojson_escapes_nothing_for_html() -> None:
    source = PLAIN + "{{ {'a': '<ü>'} | tojson }}{{ [1] | tojson(indent=1) }}"
    text = make_template(source).render([QUESTION, ANSWER])
    assert text.endswith('{"a": "<ü>"}[\n 1\n]')


def test_no_template_sees_the_date() -> None:
    source = PLAIN + "{{ 'a date' if strftime_now is defined else 'no date' }}"
    assert make_template(source).render([QUESTION, ANSWER]).endswith("no date")
