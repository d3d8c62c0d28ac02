"""Prompts for models that cannot take them as they are."""

from __future__ import annotations

from collections.abc import Sequence

from deepseek_eval.task import Choose, Message, Prompt

PLAIN_CHAT = "User: ...\\nAssistant: ..."
"""How :func:`plain_chat` writes turns, for the record."""
PLAIN_STOP = "\nUser:"


def plain_chat(messages: Sequence[Message]) -> str:
    """A chat for a model without a chat template: named turns, up to where the next answer begins."""
    names = {"user": "User", "assistant": "Assistant"}
    turns = [f"{names[turn.role]}: {turn.content}" if turn.role in names else turn.content for turn in messages]
    return "\n".join([*turns, "Assistant:"])


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt for a model that takes chats only: text becomes what the user says."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def asks_for_label(prompt: Prompt, ask: Choose) -> list[dict[str, str]]:
    """A choice for a model that gives no likelihoods: the choices with their labels, and the wish for one of these."""
    texts = [text.strip() for text in ask.continuations]
    labels = ask.labels
    if list(labels) == texts:
        wish = f"Answer with one of these and nothing else: {', '.join(labels)}."
    else:
        listed = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
        wish = f"{listed}\n\nAnswer with the letter of the best continuation and nothing else."
    messages = as_messages(prompt)
    if messages[-1]["role"] == "user":
        last = messages[-1]
        return [*messages[:-1], {**last, "content": f"{last['content']}\n\n{wish}"}]
    return [*messages, {"role": "user", "content": wish}]
