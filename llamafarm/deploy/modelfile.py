"""What Ollama is told of a model: its Modelfile, and the Go template of servers that do not read Jinja.

The exact template is the Jinja one in the GGUF file, which newer servers render. A Go template is made only
where it renders what ours does: it is taken apart into what stands around each role's text, put together
again, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamafarm.confined import fault_of_name
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
        if (fault := fault_of_name(self.gguf)) is not None:
            raise InputError(
                f"{self.gguf[:80]!r} cannot stand in a Modelfile: {fault}",
                where="the file's name",
                remedy="Name another output.",
            )
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
    if control := next((sign for sign in text if sign < " " and sign not in "\n\r\t"), None):
        raise InputError(f"{what} has the control character {control!r}", where=what, remedy="Take it out.")
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
    # Between two turns only their sum is seen, and before the first one what begins all of them as well.
    expected = _expected(template)
    common = _common_ending(between, after_answer)
    for num_user in range(len(common), -1, -1):
        before_user = common[len(common) - num_user :]
        around = {
            "system": (before_system, between.removesuffix(before_user)),
            "user": (before_user, end_of_user),
            "assistant": (after_user.removeprefix(end_of_user), after_answer.removesuffix(before_user)),
        }
        for num_all in range(len(before_system) + 1):
            own = (before_system[num_all:], around["system"][1])
            parts = Parts({**around, "system": own}, before_system[:num_all], before_answer)
            if all(parts.render(messages) == text for messages, text in expected):
                return parts
    return None


def _expected(template: ChatTemplate) -> list[tuple[Sequence[Message], str]]:
    """Return conversations, as Ollama has them, and what the template makes of them.

    The system message that the template adds is Ollama's to add there.
    """
    known = default_system(template)
    expected: list[tuple[Sequence[Message], str]] = []
    for messages in _CHECKED:
        text = template.render(messages, add_generation_prompt=True)
        told = known is not None and messages[0].role != "system"
        expected.append(([Message("system", known), *messages] if known and told else messages, text))
    return expected


def _common_ending(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def go_template(template: ChatTemplate, bos: str | None) -> str | None:
    """Return a template as Go has it; None where none is certain to render the same.

    The beginning-of-text token is left out: the file says that the server puts it there.
    """
    parts = take_apart(template)
    if parts is None:
        return None
    texts = [*(text for pair in parts.around.values() for text in pair), parts.before_all]
    if any(sign in text for text in (*texts, parts.before_answer) for sign in ("{{", "}}", '"""')):
        return None
    beginning = parts.before_all.removeprefix(bos or "")
    branches = [
        f'{"{{ if" if place == 0 else "{{ else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for place, (role, (before, after)) in enumerate(parts.around.items())
    ]
    turns = "".join(branches) + "{{ end }}"
    if parts.before_answer.endswith('"'):  # which a Modelfile cannot hold
        return None
    return f"{beginning}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{parts.before_answer}"
