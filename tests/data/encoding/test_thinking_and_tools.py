"""Templates with thinking and tools, as Qwen 3's: trained on is what the model wrote when it was asked."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.encode import encode_conversations
from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.template import TrainedPart
from llamafarm.model.forward import packed_forward, supervised_logits
from llamafarm.model.load import text_encoder
from llamafarm.model.prompt import template_from_source

# Thinking is shown in what follows the last question only; before that, the answers alone.
QWEN_3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last_query = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query and (loop.last or message.reasoning_content) %}
            {{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, **extras: Any) -> Message:
    return Message("assistant", text, extras=extras or None)


CALLED = '\n<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>'
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
# Messages, tools, and of every row that comes of them what is trained on.
CASES: dict[str, tuple[tuple[Message, ...], tuple[dict[str, Any], ...], list[list[str]]]] = {
    "no thought": ((user("a"), assistant("b")), (), [[EMPTY_THOUGHT + "b<|im_end|>"]]),
    "a thought": (
        (user("a"), assistant("b", reasoning_content="hm")),
        (),
        [["<think>\nhm\n</think>\n\nb<|im_end|>"]],
    ),
    "two turns, so that the first answer loses its thought": (
        (user("a"), assistant("b", reasoning_content="hm"), user("c"), assistant("d")),
        (),
        [["<think>\nhm\n</think>\n\nb<|im_end|>"], [EMPTY_THOUGHT + "d<|im_end|>"]],
    ),
    "a call, its result and the answer": (
        (user("a"), assistant("", tool_calls=[CALL]), Message("tool", "found"), assistant("b")),
        (TOOL,),
        [[EMPTY_THOUGHT + CALLED + "<|im_end|>"], [EMPTY_THOUGHT + "b<|im_end|>"]],
    ),
    "a call with a thought, which stays until the next question": (
        (
            user("a"),
            assistant("", tool_calls=[CALL], reasoning_content="hm"),
            Message("tool", "found"),
            assistant("b", reasoning_content="so"),
        ),
        (TOOL,),
        [[f"<think>\nhm\n</think>\n\n{CALLED}<|im_end|>", "<think>\nso\n</think>\n\nb<|im_end|>"]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_model_wrote_is_trained_on_as_it_wrote_it(chat_tokenizer: Any, case: str) -> None:
    messages, tools, expected = CASES[case]
    template = template_from_source(chat_tokenizer, QWEN_3, "\n\n")
    conversation = Conversation(messages, 1, tools)
    rows = encode_conversations([conversation], template, text_encoder(chat_tokenizer))
    trained = [chat_tokenizer.decode(row.token_ids_T[row.is_supervised_T]) for row in rows]
    assert trained == ["".join(parts) for parts in expected]
    for row, parts in zip(rows, expected, strict=True):
        starts = (row.is_supervised_T[1:] & ~row.is_supervised_T[:-1]).sum()
        assert starts == len(parts)
    # What stands before each answer is the prompt that transformers makes of the turns before it.
    theirs = copy.copy(chat_tokenizer)
    theirs.chat_template = QWEN_3
    last = max(index for index, message in enumerate(messages) if message.role == "assistant")
    prompt = theirs.apply_chat_template(
        [as_dict(message) for message in messages[:last]],
        tools=list(tools) or None,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert rows[-1].token_ids_T.tolist()[: len(prompt)] == prompt
    assert rows[-1].is_supervised_T[len(prompt)] and not rows[-1].is_supervised_T[len(prompt) - 1]


def test_packs_of_rows_with_thinking_and_tools_have_the_loss_of_the_rows(chat_tokenizer: Any) -> None:
    template = template_from_source(chat_tokenizer, QWEN_3, "\n\n")
    conversations = [
        Conversation(messages, number, tools)
        for number, (messages, tools, _) in enumerate(CASES.values(), start=1)
    ]
    rows = encode_conversations(conversations, template, text_encoder(chat_tokenizer))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(chat_tokenizer), **sizes)).eval()
    unpacked = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.token_ids_T.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(row.is_supervised_T), ids, -100)
            unpacked += float(model(input_ids=ids, labels=labels).loss) * row.num_supervised_tokens
        for max_pack_tokens in (1, 100, 1000):
            with packed_forward(model):
                packs = pack_rows(rows, range(len(rows)), max_pack_tokens)
                packed = sum(
                    float(
                        functional.cross_entropy(
                            supervised_logits(model, pack), pack.targets_S, reduction="sum"
                        )
                    )
                    for pack in packs
                )
            assert packed == pytest.approx(unpacked, rel=1e-5)


def as_dict(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, **json.loads(json.dumps(message.extras or {}))}


def test_the_last_answer_alone_is_one_row(chat_tokenizer: Any) -> None:
    messages, tools, expected = CASES["two turns, so that the first answer loses its thought"]
    template = template_from_source(chat_tokenizer, QWEN_3, "\n\n")
    (row,) = encode_conversations(
        [Conversation(messages, 1, tools)],
        template,
        text_encoder(chat_tokenizer),
        TrainedPart(is_last_answer_only=True),
    )
    assert chat_tokenizer.decode(row.token_ids_T[row.is_supervised_T]) == expected[1][0]
