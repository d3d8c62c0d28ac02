"""Real weights from GGUF against transformers' own reading of the same file, in fp32.

Our greedy continuation is computed first; then transformers sees each prompt with that continuation in one forward, and
must find every token of it the likeliest. As long as all tokens agree this is the same as comparing two greedy runs,
and after a tie it goes on comparing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.errors import HubError
from deepseek.hub.open import open_checkpoint
from deepseek.hub.resolve import resolve
from deepseek.kernels.registry import bind
from deepseek.models.registry import load_model
from deepseek.tokenizer.load import load_tokenizer
from tests.parity.driver import Driver

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the sea,",
    "解释量子计算原理:",
    "北京是中国的首都,",
    "机器学习的基本思想是",
    "日本で一番高い山は",
    "むかしむかし、あるところに",
    "대한민국의 수도는",
    "인공지능이란 무엇인가?",
]
TOKENS = 32
TIE = 1e-3
"""Two tokens whose logits differ by less than this are equally likely, as far as fp32 can tell."""


@pytest.mark.parametrize(
    "name",
    [
        "smollm2-135m-instruct",
        pytest.param("gemma-3-270m", marks=pytest.mark.slow),
        pytest.param("qwen2.5-coder-1.5b-instruct", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_greedy_continuations(name: str) -> None:
    path = cached(name)
    tokenizer = load_tokenizer(path)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    answers = continue_greedily(path, prompts)
    theirs = transformers_model(path)
    ties = []
    for text, prompt, answer in zip(PROMPTS, prompts, answers, strict=True):
        with torch.inference_mode():
            logits = theirs(torch.tensor([prompt + answer[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        best = logits.max(dim=-1).values
        for place, token in enumerate(answer):
            gap = float(best[place] - logits[place, token])
            if gap >= TIE:
                told = tokenizer.decode(answer[:place])
                pytest.fail(f"after {text!r} + {told!r}: token {token} is {gap:.4f} below transformers' best")
            if gap > 0:
                ties.append((text, place, gap))
    for text, place, gap in ties:
        print(f"tie after {text!r} at token {place}: logits {gap:.1e} apart")
    assert len(ties) <= len(PROMPTS) // 2
    assert any(len(set(answer)) > TOKENS // 4 for answer in answers)  # it says something


def cached(name: str) -> Path:
    try:
        return resolve(name, offline=True).path
    except HubError as error:
        pytest.skip(f"{name} is not in the cache: {error}")


def continue_greedily(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The prompts decode together, over scattered pages."""
    checkpoint = open_checkpoint(path)
    model = load_model(checkpoint, ops=bind("cpu"), dtype=torch.float32, device="cpu")
    return Driver(model, page_size=16, num_pages=96, shuffle=True).greedy(prompts, TOKENS)


def transformers_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
