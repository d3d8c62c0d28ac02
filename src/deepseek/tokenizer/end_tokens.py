"""Which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_END_OF_ANSWER = frozenset(
    {
        "<|im_end|>",  # ChatML: Qwen, SmolLM
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",  # Llama 3
        "<|eom_id|>",
        "<|end|>",  # Phi
        "<end_of_turn>",  # Gemma
        "<｜end▁of▁sentence｜>",  # DeepSeek
        "<|EOT|>",  # DeepSeek Coder
        "</s>",
        "<eos>",
    }
)


def end_token_ids(special: Mapping[str, int], named: Iterable[int | None]) -> frozenset[int]:
    """Ids that the model's files name, and special tokens known to end an answer.

    Files often name only one of several: a base model's end of text, say, and not its chat format's end of turn.
    ``special`` holds special tokens only: Gemma has an ordinary ``</s>`` for HTML.
    """
    ids = {token_id for token_id in named if token_id is not None}
    ids.update(token_id for text, token_id in special.items() if text in _END_OF_ANSWER)
    return frozenset(ids)
