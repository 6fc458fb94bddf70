"""Where chat templates run: they see what they are given, change nothing, and end within seconds.

A template comes with a model from anywhere. Each rendering has a budget of steps: passes of loops, calls, and
the characters that they make. What would make a huge value at once is refused before it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# A step takes a microsecond, more or less; a conversation of 1,000 turns takes some thousand.
_MOST_STEPS = 2_000_000
_STEPS_OF_A_CALL = 5
_CHARACTERS_OF_A_STEP, _CHARACTERS_OF_AN_ENTRY = 100, 10
_MOST_CHARACTERS = 2**27
_LARGEST_WIDTH = 10**7
_MOST_BITS = 10**6
_FORMATTING = {"format", "format_map"}
_WIDENING = {*_FORMATTING, "center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice"}
_WIDTH_IN_FORMAT = re.compile(r"%[^a-zA-Z%]*\d{8}|[:.][^{}]*\d{8}[^{}]*\}")
# Filters that the loops and joins of every template go through.
_COUNTED, _JOINED = "counted by the sandbox", "joined by the sandbox"


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What chat templates are written for: the names that transformers gives them.

    `strftime_now` is left out on purpose: with it, the same data would give other tokens tomorrow. Rendering
    raises `jinja2.TemplateError` once the budget is spent; `renew_budget` comes before each.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        self._steps_left = _MOST_STEPS
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationBlock],
            finalize=self.weigh,
        )
        self.globals["raise_exception"] = _raise_exception
        del self.globals["lipsum"]
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded(name, made) for name, made in self.filters.items()}
        self.filters[_COUNTED] = _count
        self.filters[_JOINED] = _join

    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        """Return the names that a template sees: a plain dict, which each rendering copies in a moment."""
        return {**self.globals, **(d or {})}

    def renew_budget(self) -> None:
        """Give the next rendering all of its steps."""
        self._steps_left = _MOST_STEPS

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        self.spend(_STEPS_OF_A_CALL)
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str):
            _check_widths(getattr(obj, "__name__", ""), owner, args, kwargs)
        return self.weigh(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what a template computes."""
        if operator == "**":
            _check_bits(_bits_of(left) * right if isinstance(right, int) else 0)
        elif operator == "*":
            _check_product(left, right)
            _check_product(right, left)
        elif operator == "%" and isinstance(left, str):
            _check_widths("format", left, right if isinstance(right, tuple) else (right,), {})
        return self.weigh(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounding(self).visit(super()._parse(source, name, filename))
        return tree

    def spend(self, num_steps: int) -> None:
        """Take steps from the budget. Raises `jinja2.TemplateError` once it is spent."""
        self._steps_left -= num_steps
        if self._steps_left < 0:
            raise JinjaError(f"it takes more than {_MOST_STEPS:,} steps: does it ever end?")

    def weigh(self, value: Any) -> Any:
        """Return a value that was made, and spend what it weighs."""
        size = len(value) if isinstance(value, str) else 0
        if isinstance(value, list | tuple | dict):
            size = len(value) * _CHARACTERS_OF_AN_ENTRY
        if size > _MOST_CHARACTERS:
            raise _too_large()
        self.spend(1 + size // _CHARACTERS_OF_A_STEP)
        return value

    def _bounded(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(made)  # with the marks of what it wants to be given
        def weighed(*args: Any, **kwargs: Any) -> Any:
            text = next((arg for arg in args if isinstance(arg, str)), "")
            _check_widths(name, text, args, kwargs)
            return self.weigh(made(*args, **kwargs))

        return weighed


@pass_context
def _count(context: Context, iterable: Iterable[Any]) -> Iterator[Any]:
    for each in iterable:
        context.environment.spend(1)  # type: ignore[attr-defined]
        yield each


@pass_context
def _join(context: Context, parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > _MOST_CHARACTERS:
        raise _too_large()
    joined: str = context.environment.weigh("".join(texts))  # type: ignore[attr-defined]
    return joined


class _Bounding(NodeTransformer):
    """Lets every loop and every join of a template go through the sandbox."""

    def __init__(self, environment: TemplateEnvironment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 calls it so
        self.generic_visit(node)
        node.iter = self._through(_COUNTED, node.iter, node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2 calls it so
        self.generic_visit(node)
        return self._through(_JOINED, nodes.List(node.nodes, lineno=node.lineno), node.lineno)

    def _through(self, name: str, node: nodes.Node, lineno: int) -> nodes.Filter:
        made = nodes.Filter(node, name, [], [], None, None, lineno=lineno)
        made.set_environment(self._environment)
        return made


class _GenerationBlock(Extension):
    """Render what stands between `{% generation %}` and `{% endgeneration %}`, which some templates have.

    They mark answers that way; ours are found from renderings, for every template alike.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise JinjaError(message)


def _too_large() -> JinjaError:
    return JinjaError(f"it makes something of more than {_MOST_CHARACTERS:,} characters")


def _check_widths(name: str, text: object, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise for a method or filter, by its name, that would widen a text to a huge number."""
    if name not in _WIDENING:
        return
    numbers = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, int)]
    is_format = name in _FORMATTING and isinstance(text, str)
    if max(numbers, default=0) > _LARGEST_WIDTH or (is_format and _WIDTH_IN_FORMAT.search(str(text))):
        raise JinjaError(f"it widens a text to more than {_LARGEST_WIDTH:,} characters")


def _check_product(value: Any, times: Any) -> None:
    if not isinstance(times, int):
        return
    if isinstance(value, str | list | tuple) and len(value) * times > _MOST_CHARACTERS:
        raise _too_large()
    _check_bits(_bits_of(value) + _bits_of(times))


def _bits_of(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(num_bits: int) -> None:
    if num_bits > _MOST_BITS:
        raise JinjaError(f"it makes a number of more than {_MOST_BITS:,} bits")
