"""Reading YAML: what a scalar is, which line it stands on, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.errors import StrategyError
from llamafarm.strategy.document import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    Node,
    Origin,
    parse_document,
    parse_value,
    read_document,
)
from llamafarm.strategy.load import load_strategy

OPTION = Origin("command line", "--set x")


def parse(text: str) -> Node:
    return parse_document(text, "strategy file", "s.yaml")


def refusal_of(text: str) -> StrategyError:
    with pytest.raises(StrategyError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2e-4", 2e-4),
        ("0.0002", 0.0002),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("-3", -3),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("5-10", "5-10"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("'2'", "2"),
        ('"true"', "true"),
        ("!!str 2", "2"),
        ("[a, 1]", ["a", 1]),
        ("{b: 1}", {"b": 1}),
        ("|\n  one\n  two\n", "one\ntwo\n"),
        (".inf", math.inf),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    read = parse(f"a: {written}").plain()["a"]
    assert (read, type(read)) == (value, type(value))


def test_a_yaml_1_1_directive_does_not_turn_no_into_false() -> None:
    assert parse("%YAML 1.1\n---\na: no").plain() == {"a": "no"}


def test_a_value_has_the_line_of_its_key() -> None:
    root = parse("# comment\na:\n  b:\n    1\n  c: |\n    text\nd:\n- x\n- y\n")
    assert isinstance(root.value, dict)
    inner = root.value["a"].value
    listed = root.value["d"].value
    assert isinstance(inner, dict) and isinstance(listed, list)
    assert inner["b"].origin == Origin("strategy file", "s.yaml:3")
    assert inner["c"].origin.where == "s.yaml:5"
    assert [item.origin.where for item in listed] == ["s.yaml:8", "s.yaml:9"]


def test_a_repeated_key_names_both_lines() -> None:
    error = refusal_of("a: 1\nb: 2\na: 3\n")
    assert error.where == "s.yaml:3"
    assert "a is there twice" in error.problem and "line 1" in error.problem


@pytest.mark.parametrize(
    ("text", "words", "where"),
    [
        ("a: &x 1\n", "a uses a YAML alias or anchor (&x)", "s.yaml:1"),
        ("a: 1\nb: *x\n", "b uses a YAML alias or anchor (*x)", "s.yaml:2"),
        ("a:\n  &k b: 1\n", "key is not plain text", "s.yaml:2"),
        ("a:\n\tb: 1\n", "tab", "s.yaml:2"),
        ("a: 1\nb: [1\n", "not YAML", "s.yaml:2"),
        ("a: 1\nb: [1\n\nc:\n  d: [2]\n", "not YAML", "s.yaml:2"),
        ("a: [\n  b,\n  c: {d\n", "not YAML", "s.yaml:3"),
        ("a: 1\nb: {c: 1\n\n\nd: 2\n", "not YAML", "s.yaml:2"),
        ("a: 1\nb: 'x\nc: 2\nd: 3\n", "not YAML", "s.yaml:2"),
        ('a: 1\nb: "x\nc: 2\n\nd: "y"\ne: 3\n', "opens here ends in line 5", "s.yaml:2"),
        ("a: 1\nb 2\n\n# x\nc: 3\n", "could not find expected ':'", "s.yaml:2"),
        (
            "a: !!python/object:os.system 1\n",
            "a uses the YAML tag tag:yaml.org,2002:python/object",
            "s.yaml:1",
        ),
        ("a: !custom {b: 1}\n", "tag", "s.yaml:1"),
        ("a: !!int 1\n", "tag", "s.yaml:1"),
        ("a: 1\n---\nb: 1\n", "more than one YAML document", "s.yaml:2"),
        ("", "empty", "s.yaml"),
        ("# only a comment\n", "empty", "s.yaml"),
        ("null\n", "empty", "s.yaml"),
        ("? [a]\n: 1\n", "key is not plain text", "s.yaml:1"),
        ('a: "\\ud800"\n', "surrogate", "s.yaml:1"),
        ("a: 1\r\nb: 2\rc: \x07\n", "U+0007", "s.yaml:3"),
        ("a: 1\nb: \0\n", "U+0000", "s.yaml:2"),
        ("a: 'x\n", "not YAML", "s.yaml:1"),
    ],
)
def test_what_a_strategy_has_no_use_for_is_refused_with_its_line(text: str, words: str, where: str) -> None:
    error = refusal_of(text)
    assert words in error.problem
    assert error.where.startswith(where)
    assert error.remedy


def test_broken_text_leads_to_the_line_above_that_has_something_in_it() -> None:
    # The fault is in either: the parser notices it where the two do not go together.
    error = refusal_of("a:\n   b: 1\n\n  # comment\n  c: 2\n")
    assert error.where == "s.yaml:5"
    assert error.remedy.endswith("there and in line 2.")
    assert refusal_of("a: b: c\n").remedy.endswith("brackets there.")


def test_depth_is_bounded() -> None:
    parse("a: " + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2))
    assert "deep" in refusal_of("a: " + "[" * 5000).problem
    assert "deep" in refusal_of("a: " + "{b: " * 5000).problem
    for opening in ("[", "{b: ", "[{b: "):
        error = refusal_of("s:\n  c: 1\n  a: " + opening * 5000)
        assert (error.problem, error.where) == (f"a is nested more than {MAX_DEPTH} deep", "s.yaml:3")


def test_the_number_of_values_is_bounded() -> None:
    # A megabyte of such text takes the parser 40 s.
    parse("a: [" + "1," * (MAX_VALUES - 4) + "]")
    assert "more than" in refusal_of("a: [" + "1," * MAX_VALUES + "]").problem
    assert "more than" in refusal_of("".join(f"k{number}:\n" for number in range(MAX_VALUES))).problem


def test_a_long_anchor_or_tag_is_cut_in_the_message() -> None:
    assert len(refusal_of("a: &" + "x" * 5000).problem) < 200
    assert len(refusal_of("a: !" + "x" * 5000 + " 1").problem) < 200


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    large, latin, empty = tmp_path / "large.yaml", tmp_path / "latin.yaml", tmp_path / "empty.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    latin.write_bytes("a: 1\nb: é\n".encode("latin-1"))
    empty.touch()
    cases = {
        tmp_path / "absent.yaml": ("does not exist", ""),
        tmp_path: ("is a folder", ""),
        large: ("larger than", ""),
        latin: ("not UTF-8", ":2"),
        empty: ("empty", ""),
        Path("nul\0.yaml"): ("cannot be read", ""),
    }
    for path, (words, line) in cases.items():
        with pytest.raises(StrategyError) as caught:
            read_document(path, "strategy file", "s.yaml")
        assert words in caught.value.problem
        assert caught.value.where == f"s.yaml{line}"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_document(tmp_path / "s.yaml", "strategy file", "s.yaml").plain() == {"a": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ("no", "no"),
        ("null", None),
        ("", None),
        ("'quoted'", "quoted"),
        # What is no scalar or flow collection is the text as it stands.
        ("Answer: briefly", "Answer: briefly"),
        ("Question: {input} Answer: {output}", "Question: {input} Answer: {output}"),
        ("*alias", "*alias"),
        ("[unclosed", "[unclosed"),
        ("- a", "- a"),
        ("issue # 3", "issue # 3"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_the_value_of_an_override(text: str, value: object) -> None:
    node = parse_value(text, OPTION)
    assert node.plain() == value
    assert node.origin == OPTION


YAMLISH = st.text(alphabet="ab:-?[]{}#&*!|>'\"%@`,\n\t \\0x.~", max_size=80)


@settings(max_examples=300, deadline=None)
@given(st.one_of(YAMLISH, st.text(max_size=80)))
def test_any_text_is_a_tree_or_a_strategy_error(text: str) -> None:
    try:
        parse(text)
    except StrategyError as error:
        assert all(part and "\n" not in part for part in (error.problem, error.where, error.remedy))


KEYS = st.sampled_from(["s", "extends", "components", "fine_tuner", "config", "method", "r", "training_args"])
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), KEYS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(content=st.one_of(st.binary(max_size=60), YAMLISH.map(str.encode), TREES))
def test_any_file_is_a_strategy_or_a_strategy_error(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    if not isinstance(content, bytes):
        # JSON is YAML but for NaN and infinities, which then are plain words: one more kind of wrong value.
        content = b"s: " + json.dumps(content).encode()
    file.write_bytes(content)
    try:
        load_strategy("s", file=file)
    except StrategyError as error:
        assert all(part and "\n" not in part for part in (error.problem, error.where, error.remedy))


@settings(max_examples=150, deadline=None)
@given(path=st.text(max_size=30), text=st.text(max_size=30))
def test_any_override_is_taken_or_a_strategy_error(
    tmp_path_factory: pytest.TempPathFactory, path: str, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "plain.yaml"
    file.write_text("s: {}\n")
    try:
        load_strategy("s", file=file, overrides=[(path, text)])
    except StrategyError as error:
        assert all("\n" not in part for part in (error.problem, error.where, error.remedy))
