"""Chat templates from anywhere: what they may do is what others give them, and none goes on for long."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest

from llamafarm.data.conversation import Message
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.errors import TemplateError

GOOD = (
    "{% for message in messages %}{{ message['content'] + '' }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{% endif %}"
)


def again(first: str, step: str) -> str:
    """Take a step 99 times."""
    loop = f"{{% for a in range(99) %}}{{% set ns.v = {step} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(v={first}) %}}{loop}"


LOOPS = "12False22True"

# Each is put before a template that is good.
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}",
    "macros": "{% macro a0() %}{% endmacro %}"
    + "".join(f"{{% macro a{n + 1}() %}}{{{{ a{n}() }}}}{{{{ a{n}() }}}}{{% endmacro %}}" for n in range(40))
    + "{{ a40() }}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursive loops": "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}",
    "a product": "{{ 'x' * 10 ** 10 }}",
    "a product of lists": "{% set a = [1] * 10 ** 10 %}",
    "a product the other way": "{{ 10 ** 10 * 'x' }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a shifted power": again("10", "ns.v * ns.v"),
    "a sum that doubles": again("'x'", "ns.v + ns.v"),
    "a join that doubles": again("'x'", "ns.v ~ ns.v"),
    "a filter that doubles": again("'x'", "[ns.v, ns.v] | join"),
    "a block that doubles": "{% set ns = namespace(v='x') %}{% for a in range(99) %}"
    "{% set b %}{{ ns.v }}{{ ns.v }}{% endset %}{% set ns.v = b %}{% endfor %}",
    "a list that doubles": again("[1]", "ns.v + ns.v"),
    "a wide filter": "{{ 'x' | center(10 ** 10) }}",
    "a wide method": "{{ 'x'.center(10000000000) }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a wide format by a number": "{{ '%*d' % (9999999999, 1) }}",
    "a wide format method": "{{ '{:>9999999999}'.format(1) }}",
    "a wide format filter": "{{ '%9999999999d' | format(1) }}",
    "much text": "{% set t = 'x' * 10 ** 7 %}{% for a in range(9999) %}{{ t }}{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=10 ** 6) }}",
    "replacing": again("'xx'", "ns.v.replace('x', 'xx')"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_goes_on_is_refused_within_seconds(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        made(ENDLESS[name] + GOOD)
    assert time.monotonic() - started < 8
    assert len(caught.value.problem) < 500
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1.5 * 2**20, "KiB"


def made(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens={"eos_token": "<end>"}, control_tokens=["<end>"])


def text_of(source: str, **message: Any) -> str:
    messages = [Message("user", "q"), Message("assistant", "a", extras=message or None)]
    return made(source + GOOD).render(messages)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% endfor %}", LOOPS),
        ("{% for a in [1, 2, 3] if a != 2 %}{{ a }}{% else %}none{% endfor %}", "13"),
        ("{% for a in [] %}{{ a }}{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ '=' ~ v }}{% endfor %}", "a=1"),
        ("{% for a in [1, 2, 3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{% endfor %}", "13"),
        ("{% for a in [1, [2]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "12"),
        ("{{ {'a': 'ü<'} | tojson }}", '{"a": "ü<"}'),
        ("{{ ['a', 'b'] | join(', ') }}{{ 'x' | upper }}{{ ' y ' | trim }}", "a, bXy"),
        ("{{ [1, 2] + [3] }}{{ 2 * 3 }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ '%02d' % 3 }}", "[1, 2, 3]68303"),
        ("{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = 2 %}{% endfor %}{{ ns.a }}", "2"),
        ("{{ messages[::-1][0]['content'] }}{{ messages | length }}", "a2"),
        ("{{ 'one two'.split(' ')[-1] }}{{ 'ab'.replace('a', 'c') }}", "twocb"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{{ nothing }}{{ nothing | default('d') }}", "d"),
        ("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}", "1213"),
    ],
)  # fmt: skip
def test_what_templates_use_works_as_ever(source: str, expected: str) -> None:
    assert text_of(source) == expected + "q<end>a<end>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
        "{{ messages.append(1) }}",
        "{% set x = messages.clear() %}",
        "{{ raise_exception('no') }}",
        "{{ strftime_now('%Y') }}",
        "{% include 'other' %}",
    ],
)
def test_what_a_template_must_not_do_it_cannot(source: str) -> None:
    with pytest.raises(TemplateError):
        text_of(source)


def test_every_rendering_has_a_budget_of_its_own() -> None:
    source = "{% for a in range(90000) %}{% endfor %}"
    template = made(source + GOOD)
    for _ in range(40):
        assert template.render([Message("user", "q")]) == "q<end>"


def test_a_long_conversation_is_nothing_special() -> None:
    messages = [Message(("user", "assistant")[n % 2], "word " * 400) for n in range(4000)]
    looking_back = "{% for m in messages[::-1] %}{% if m.role == 'x' %}{% break %}{% endif %}{% endfor %}"
    assert len(made(looking_back + GOOD).render(messages)) == 4000 * (2000 + len("<end>"))


@pytest.mark.parametrize("content", ["{a: 1234567890}", "100 % of 1234567890 {}", "%1234567890"])
def test_numbers_in_what_somebody_wrote_are_no_widths(content: str) -> None:
    source = "{% set c = messages[0].content %}{{ c | trim }}{{ c.strip() }}{{ '%s' % c }}"
    expected = content * 3 + content + "<end>"
    assert made(source + GOOD).render([Message("user", content)]) == expected


def test_a_row_of_ten_megabytes_is_rendered() -> None:
    assert len(made(GOOD).render([Message("user", "x" * 10**7)])) == 10**7 + 5
