"""Chat templates tell what their models can do. Those here are short ones in the manner of the families' own."""

from __future__ import annotations

import pytest

from deepseek.errors import ConfigurationError
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_serve.parsing.detect import ChatFormat, chat_format, opens_thinking
from deepseek_serve.parsing.formats import format_named
from deepseek_serve.parsing.prompting import with_calls_as_text, with_tools
from tests.tokenizer.tiny import CHATML, build, byte_level

QWEN = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}{% endif %}"
)
DEEPSEEK = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and m['content'] is none %}{% for tool in m['tool_calls'] %}"
    "{{ '<｜tool▁calls▁begin｜>' + tool['function']['name'] + '```json' + tool['function']['arguments'] + '<end>' }}"
    "{% endfor %}{% else %}{{ '<' + m['role'] + '>' + m['content'] }}{% endif %}{% endfor %}"
)
CALL = {"id": "a", "type": "function", "function": {"name": "get", "arguments": '{"n": 1}'}}
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "21", "tool_call_id": "a"},
]


def tokenizer_of(template: str) -> Tokenizer:
    return build({**byte_level(), "tokenizer.chat_template": template})


def facts(template: str, tool_parser: str = "auto", reasoning_parser: str = "auto") -> ChatFormat:
    return chat_format(tokenizer_of(template), tool_parser, reasoning_parser)


def test_a_template_with_tools_and_thinking() -> None:
    found = facts(QWEN)
    assert found.calls is format_named("hermes") and found.shows_tools and found.shows_calls and found.thinks
    assert found.variables == {"enable_thinking"} and "<|im_end|>" in found.special


def test_a_template_that_shows_calls_alone() -> None:
    found = facts(DEEPSEEK)
    assert found.calls is format_named("deepseek_v3") and not found.shows_tools and found.shows_calls
    assert not found.thinks


def test_a_template_without_either() -> None:
    found = facts(CHATML)
    assert found.calls is None and not found.shows_tools and not found.shows_calls and not found.thinks


def test_the_operator_has_the_last_word() -> None:
    assert facts(QWEN, "none", "none").calls is None and not facts(QWEN, "none", "none").thinks
    assert facts(CHATML, "llama3_json", "think").calls is format_named("llama3_json")
    assert facts(CHATML, "llama3_json", "think").thinks
    from deepseek_serve.config import ServeConfig

    with pytest.raises(ConfigurationError, match="tool_parser"):
        ServeConfig(tool_parser="clever")
    with pytest.raises(ConfigurationError, match="reasoning_parser"):
        ServeConfig(reasoning_parser="clever")


def test_arguments_are_what_a_template_does_with_them() -> None:
    assert '```json{"n": 1}<end>' in tokenizer_of(DEEPSEEK).render_chat(TALK)
    assert '<tool_call>get{"n": 1}' in tokenizer_of(QWEN).render_chat(TALK)


def test_prompts_that_begin_the_reasoning() -> None:
    tokenizer = tokenizer_of(QWEN)
    for thinks in (True, False):
        prompt = tokenizer.encode_chat(TALK[:1], template_kwargs={"enable_thinking": thinks})
        assert opens_thinking(tokenizer, prompt) is thinks


def test_special_tokens_in_variables_stay_text() -> None:
    tokenizer = tokenizer_of(QWEN.replace("{% if tools %}", "{{ date | default('') }}{% if tools %}"))
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False, parse_special=True)[0]
    prompt = tokenizer.encode_chat(TALK[:1], template_kwargs={"date": "<|im_end|>"})
    assert prompt.count(end) == 1


def test_tools_in_plain_words() -> None:
    form = format_named("hermes")
    assert form is not None
    tools = [{"type": "function", "function": {"name": "get", "parameters": {}}}]
    added, _ = with_tools(TALK[:1], tools, form)
    assert added["role"] == "system" and '"name": "get"' in added["content"] and "<tool_call>" in added["content"]
    (joined,) = with_tools([{"role": "system", "content": "Be brief."}], tools, form)
    assert joined["content"].startswith("Be brief.\n\n")
    user, call, result = with_calls_as_text(TALK, form)
    assert user == TALK[0] and result["role"] == "user" and "21" in result["content"]
    assert call["content"] == '<tool_call>\n{"name": "get", "arguments": {"n": 1}}\n</tool_call>'


def test_special_tokens_are_shown_when_asked_for() -> None:
    tokenizer = tokenizer_of(QWEN)
    ids = tokenizer.encode("a<|im_end|>b<|im_start|>", add_special_tokens=False, parse_special=True)
    for shown, text in ((("<|im_end|>",), "a<|im_end|>b"), ((), "ab")):
        stream = tokenizer.stream(shown=shown)
        assert "".join(map(stream.push, ids)) == text
