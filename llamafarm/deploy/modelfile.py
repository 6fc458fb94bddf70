"""What Ollama is told of a model: its Modelfile, and the Go template of servers that do not read Jinja.

The exact template is the Jinja one in the GGUF file, which newer servers render. A Go template is made only
where it renders what ours does: it is taken apart into what stands around each role's text, put together
again, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamafarm.data.conversation import Message
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.errors import InputError, TemplateError

# Stand for texts while what is around them is being found.
_SYSTEM, _USER, _ANSWER, _SECOND = "PROBESYSTEM", "PROBEUSER", "PROBEANSWER", "PROBESECOND"
_CHECKED = (
    [Message("user", "How?")],
    [Message("system", "Be brief."), Message("user", "How?")],
    [Message("user", "1"), Message("assistant", "2"), Message("user", "3")],
    [
        Message("system", "s"),
        Message("user", "1"),
        Message("assistant", "2"),
        Message("user", "3"),
        Message("assistant", "4"),
        Message("user", "5"),
    ],
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a template puts around the text of each role, and before an answer."""

    around: Mapping[str, tuple[str, str]]
    before_all: str
    before_answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation up to where its answer begins."""
        turns = [self.around[one.role][0] + one.content + self.around[one.role][1] for one in messages]
        return self.before_all + "".join(turns) + self.before_answer


@dataclass(frozen=True, slots=True)
class Modelfile:
    """A model for Ollama; `template` is in Go, None where the file's own Jinja has to do."""

    gguf: str
    parameters: Mapping[str, float | int | Sequence[str]] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None

    def text(self) -> str:
        """Return the Modelfile, for `ollama create NAME -f Modelfile`."""
        lines = [f"FROM ./{self.gguf}"]
        if self.template is not None:
            lines.append(f"TEMPLATE {_quote(self.template, 'the template')}")
        if self.system is not None:
            lines.append(f"SYSTEM {_quote(self.system, 'the system prompt')}")
        for name, value in self.parameters.items():
            for one in value if isinstance(value, list | tuple) else [value]:
                lines.append(f"PARAMETER {name} {_quote(one, name) if isinstance(one, str) else one}")
        return "\n".join(lines) + "\n"


def _quote(text: str, what: str) -> str:
    """Return a text as a Modelfile has it: nothing in it is read as an end or a command.

    Raises `InputError` for what no quoting can hold.
    """
    if '"""' in text or text.endswith('"'):
        raise InputError(
            f"{what} has three quotation marks in a row, or one at its end, which a Modelfile cannot hold",
            where=what,
            remedy="Write it with other quotation marks.",
        )
    if "\x00" in text:
        raise InputError(f"{what} has a zero byte", where=what, remedy="Take it out.")
    return f'"""{text}"""'


def default_system(template: ChatTemplate) -> str | None:
    """Return the system message that a template adds where a conversation has none; None if it adds none."""
    try:
        given = template.render([Message("system", _SYSTEM), Message("user", _USER)])
        bare = template.render([Message("user", _USER)])
    except TemplateError:
        return None
    before, found, after = given.partition(_SYSTEM)
    if not found or not bare.startswith(before) or not bare.endswith(after):
        return None
    return bare[len(before) : len(bare) - len(after)] if len(bare) >= len(before) + len(after) else None


def take_apart(template: ChatTemplate) -> Parts | None:
    """Return what a template puts around each role's text; None if it is not the same in every turn."""
    system, user = Message("system", _SYSTEM), Message("user", _USER)
    answer, second = Message("assistant", _ANSWER), Message("user", _SECOND)
    try:
        whole = template.render([system, user, answer, second], add_generation_prompt=True)
        asked = template.render([system, user], add_generation_prompt=True)
        told = template.render([system, user])
    except TemplateError:
        return None
    before_system, _, rest = whole.partition(_SYSTEM)
    between, _, rest = rest.partition(_USER)
    after_user, _, rest = rest.partition(_ANSWER)
    after_answer, _, last = rest.partition(_SECOND)
    if not asked.startswith(told):
        return None
    before_answer = asked[len(told) :]
    end_of_user = told.partition(_USER)[2]
    if not after_user.startswith(end_of_user) or last != end_of_user + before_answer:
        return None
    # Between two turns only their sum is seen: what begins both turns of a user is a user's.
    before_user = _common_ending(between, after_answer)
    parts = Parts(
        {
            "system": (before_system, between.removesuffix(before_user)),
            "user": (before_user, end_of_user),
            "assistant": (after_user.removeprefix(end_of_user), after_answer.removesuffix(before_user)),
        },
        "",
        before_answer,
    )
    return _with_beginning(parts, template)


def _common_ending(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _with_beginning(parts: Parts, template: ChatTemplate) -> Parts | None:
    """Return the parts with what begins every conversation told from what begins a system message."""
    system_before, system_after = parts.around["system"]
    known = default_system(template)
    for length in range(len(system_before) + 1):
        moved = Parts(
            {**parts.around, "system": (system_before[length:], system_after)},
            system_before[:length],
            parts.before_answer,
        )
        if all(_renders_alike(moved, template, messages, known) for messages in _CHECKED):
            return moved
    return None


def _renders_alike(
    parts: Parts, template: ChatTemplate, messages: Sequence[Message], known: str | None
) -> bool:
    """Return whether parts make of a conversation what the template does; `known` is its system message."""
    if known and messages[0].role != "system":
        messages = [Message("system", known), *messages]
    try:
        return parts.render(messages) == template.render(messages, add_generation_prompt=True)
    except TemplateError:
        return False


def go_template(template: ChatTemplate, bos: str | None) -> str | None:
    """Return a template as Go has it; None where none is certain to render the same.

    The beginning-of-text token is left out: the file says that the server puts it there.
    """
    parts = take_apart(template)
    if parts is None:
        return None
    texts = [*(text for pair in parts.around.values() for text in pair), parts.before_all]
    if any("{{" in text or "}}" in text for text in (*texts, parts.before_answer)):
        return None
    beginning = parts.before_all.removeprefix(bos or "")
    branches = [
        f'{"{{ if" if place == 0 else "{{ else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for place, (role, (before, after)) in enumerate(parts.around.items())
    ]
    turns = "".join(branches) + "{{ end }}"
    return f"{beginning}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{parts.before_answer}"
