"""What the model says to held-out examples, without the adapter and with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deepseek_tune.adapters import quiet_peft
from deepseek_tune.base import BaseFiles, load_base

if TYPE_CHECKING:
    import torch

    from deepseek_tune.data.cache import TokenCache

MAX_PROMPT = 1024
MAX_ANSWER = 96
"""Tokens."""


class Sample(msgspec.Struct, frozen=True):
    """One example: the end of its prompt, the answer it has in the data, and the model's before and after."""

    prompt: str
    expected: str
    before: str
    after: str


def sample_answers(
    base: BaseFiles,
    adapter: Path,
    cache: TokenCache,
    examples: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    base_dtype: str | None = None,
) -> list[Sample]:
    """Greedy answers to the last turn of ``examples``, all at a time, without the adapter in a folder and with it.

    Examples with a longer prompt than :data:`MAX_PROMPT` are left out. Raises what loading the base model raises.
    """
    import peft

    cut = [_cut(cache, example) for example in examples]
    chosen = [(prompt, answer) for prompt, answer in cut if 0 < len(prompt) <= MAX_PROMPT]
    if not chosen:
        return []
    model = load_base(base.files, dtype, device, base_dtype)
    prompts = [prompt for prompt, _ in chosen]
    with quiet_peft():
        wrapped = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
        after = _generate(wrapped, prompts, base)
        with wrapped.disable_adapter():
            before = _generate(wrapped, prompts, base)
    decode = base.tokenizer.decode
    return [
        Sample(decode(prompt).strip(), decode(answer).strip(), decode(plain).strip(), decode(tuned).strip())
        for (prompt, answer), plain, tuned in zip(chosen, before, after, strict=True)
    ]


def _cut(cache: TokenCache, example: int) -> tuple[list[int], list[int]]:
    """(tokens before the last answer, tokens of it)."""
    ids, bits = cache.example(example)
    learned = bits.nonzero()[0]
    start = int(learned[-1])
    while start > 0 and bits[start - 1]:
        start -= 1
    return ids[:start].tolist(), ids[start:].tolist()


def _generate(model: Any, prompts: list[list[int]], base: BaseFiles) -> list[list[int]]:
    import torch
    import transformers

    ends = sorted(base.tokenizer.eos_token_ids)
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), longest), ends[0], device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=MAX_ANSWER, eos_token_id=ends, pad_token_id=ends[0]
    )
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    # Virtual tokens come back without prompts.
    answers = out[:, longest:] if out.shape[1] > longest else out
    return [_until_end(row.tolist(), set(ends)) for row in answers]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    return next((ids[:at] for at, token_id in enumerate(ids) if token_id in ends), ids)
