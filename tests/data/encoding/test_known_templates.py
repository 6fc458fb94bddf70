"""Our renderings against those of transformers, for compiled formats and the chat formats of known models.

The sources are written after the public descriptions of the formats.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.encode import encode_conversations
from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.prompt_format import compile_prompt_template, with_default_system
from llamafarm.errors import TemplateError
from llamafarm.model.forward import packed_forward, supervised_logits
from llamafarm.model.load import text_encoder
from llamafarm.model.prompt import template_from_source

CHATML = """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

CHATML_WITH_DEFAULT_SYSTEM = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

GENERATION_BLOCK = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# The source, what stands before and after each answer within its span, and whether it takes a system message.
KNOWN = {
    "chatml": (CHATML, "{}<|im_end|>", True),
    "chatml-with-default-system": (CHATML_WITH_DEFAULT_SYSTEM, "{}<|im_end|>", True),
    "llama-2": (LLAMA_2, " {} <|end|>", True),
    "llama-3": (LLAMA_3, "{}<|eot_id|>", True),
    "gemma": (GEMMA, "{}<end_of_turn>", False),
    "mistral": (MISTRAL, "{}<|end|>", False),
    "phi": (PHI, "{}<|end|>", True),
    "generation-block": (GENERATION_BLOCK, "{}<|im_end|>", True),
}
FORMATS = {
    "guide": "Question: {input}\nAnswer: {output}",
    "system": "{system}\n\nUser: {input}\nAssistant: {output}",
    "after-output": "[Q] {instruction} [/Q] {output} [END]",
    "quotes": "\"{input}\" 'it\\n' {% x %} {{ y }} ü\u2028:\t{output}",
}
for _name, _format in FORMATS.items():
    _source = compile_prompt_template(_format, adds_bos=True).source
    _answer = " {} [END]<|end|>" if _name == "after-output" else " {}<|end|>"
    KNOWN[_name] = (_source, "\t{}<|end|>" if _name == "quotes" else _answer, True)
    KNOWN[f"{_name}-with-default-system"] = (
        with_default_system(_source, 'It\'s {{ so }}\n\\ "ü"'),
        KNOWN[_name][1],
        True,
    )

SYSTEM, QUESTION, ANSWER = (
    Message("system", "Be nice"),
    Message("user", "What is it?"),
    Message("assistant", "That."),
)
MORE = Message("user", "And <b>'this'</b>?"), Message("assistant", 'Über {{ all }} \u2028 "no".')
CONVERSATIONS = {
    "one-turn": (QUESTION, ANSWER),
    "two-turns": (QUESTION, ANSWER, *MORE),
    "system": (SYSTEM, QUESTION, ANSWER),
    "system-two-turns": (SYSTEM, QUESTION, ANSWER, *MORE),
}
CASES = [
    pytest.param(*KNOWN[name], messages, id=f"{name}-{conversation}")
    for name in KNOWN
    for conversation, messages in CONVERSATIONS.items()
    if KNOWN[name][2] or messages[0] is not SYSTEM
]


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize(("source", "span", "takes_system", "messages"), CASES)
def test_a_rendering_is_that_of_transformers_and_its_spans_are_the_answers(
    chat_tokenizer: Any, source: str, span: str, takes_system: bool, messages: tuple[Message, ...]
) -> None:
    template = template_from_source(chat_tokenizer, source, "\n\n")
    theirs = copy.copy(chat_tokenizer)
    theirs.chat_template = source
    (rendering,) = template.render_rows(Conversation(messages, 1))
    assert rendering.text == theirs.apply_chat_template(as_dicts(messages), tokenize=False)
    assert template.render(messages[:-1], add_generation_prompt=True) == theirs.apply_chat_template(
        as_dicts(messages[:-1]), tokenize=False, add_generation_prompt=True
    )

    answers = [message.content for message in messages if message.role == "assistant"]
    spans = [rendering.text[start:end] for start, end in rendering.trained_spans]
    assert spans == [span.format(answer) for answer in answers]
    assert spans[-1].endswith(template.end_of_turn)

    (row,) = encode_conversations([Conversation(messages, 1)], template, text_encoder(chat_tokenizer))
    assert row.token_ids_T.tolist() == theirs.apply_chat_template(as_dicts(messages), return_dict=False)
    assert chat_tokenizer.decode(row.token_ids_T[row.is_supervised_T]) == "".join(spans)


@pytest.fixture(scope="module")
def model(chat_tokenizer: Any) -> PreTrainedModel:
    """A random model that can read the control tokens of every format."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=len(chat_tokenizer), num_key_value_heads=1, **sizes))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    return made.eval()


def loss_and_gradients(loss: torch.Tensor, model: PreTrainedModel) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("name", KNOWN)
def test_the_loss_of_packs_is_that_of_transformers_row_by_row(
    chat_tokenizer: Any, model: PreTrainedModel, name: str
) -> None:
    source, span, takes_system = KNOWN[name]
    conversations = [
        Conversation(messages, number)
        for number, messages in enumerate(CONVERSATIONS.values(), start=1)
        if takes_system or messages[0] is not SYSTEM
    ]
    template = template_from_source(chat_tokenizer, source, "\n\n")
    rows = encode_conversations(conversations, template, text_encoder(chat_tokenizer))
    theirs = copy.copy(chat_tokenizer)
    theirs.chat_template = source
    unpacked = torch.zeros(())
    for conversation in conversations:
        input_ids, labels = labels_by_search(theirs, conversation.messages, span)
        # Its loss is the mean over what is trained on; a sum adds up over rows.
        mean = model(input_ids=input_ids, labels=labels).loss
        unpacked = unpacked + mean * (labels[0, 1:] >= 0).sum()
    expected = loss_and_gradients(unpacked, model)
    for max_pack_tokens in (1, 60, 1000):
        packed = torch.zeros(())
        with packed_forward(model):
            for pack in pack_rows(rows, range(len(rows)), max_pack_tokens):
                logits = supervised_logits(model, pack)
                packed = packed + functional.cross_entropy(logits, pack.targets_S, reduction="sum")
        for ours, other in zip(loss_and_gradients(packed, model), expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=2e-4, atol=2e-4)


def labels_by_search(
    tokenizer: Any, messages: tuple[Message, ...], span: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of a conversation and its labels, the answers being looked for in the text."""
    text = tokenizer.apply_chat_template(as_dicts(messages), tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [-100] * len(encoded["input_ids"])
    after = 0
    for answer in (message.content for message in messages if message.role == "assistant"):
        start = text.index(span.format(answer), after)
        after = start + len(span.format(answer))
        for place, (first, last) in enumerate(encoded["offset_mapping"]):
            if start <= first and last <= after and first < last:
                labels[place] = encoded["input_ids"][place]
    return torch.tensor([encoded["input_ids"]]), torch.tensor([labels])


@pytest.mark.parametrize("source", [GEMMA, MISTRAL], ids=["gemma", "mistral"])
def test_a_system_message_that_a_template_refuses_is_an_error(chat_tokenizer: Any, source: str) -> None:
    template = template_from_source(chat_tokenizer, source, "\n\n")
    with pytest.raises(TemplateError):
        template.render([SYSTEM, QUESTION, ANSWER])


def test_transformers_finds_the_same_answers_by_their_generation_marks(chat_tokenizer: Any) -> None:
    theirs = copy.copy(chat_tokenizer)
    theirs.chat_template = GENERATION_BLOCK
    messages = CONVERSATIONS["system-two-turns"]
    marked = theirs.apply_chat_template(
        as_dicts(messages), return_dict=True, return_assistant_tokens_mask=True
    )
    template = template_from_source(chat_tokenizer, GENERATION_BLOCK, "\n\n")
    (row,) = encode_conversations([Conversation(messages, 1)], template, text_encoder(chat_tokenizer))
    assert row.is_supervised_T.astype(int).tolist() == marked["assistant_masks"]
