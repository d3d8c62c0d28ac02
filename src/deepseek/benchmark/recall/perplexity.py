"""Perplexity of a long text with dense and with sparse attention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from deepseek.benchmark.recall.figures import perplexity_figures
from deepseek.benchmark.recall.passages import read_passages, sentences
from deepseek.llm import LLM
from deepseek.tokenizer.tokenizer import Tokenizer


def measure_perplexity(
    llm: LLM, languages: Sequence[str], tokens: int, folder: Path | None, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """For each language the figures of :func:`deepseek.benchmark.recall.figures.perplexity_figures` over ``tokens``
    tokens, with ``language``, ``real_text`` and ``seconds`` of each mode. All of the text is attended to sparsely."""
    rows = []
    for language in languages:
        ids = list(long_text(llm.tokenizer, language, tokens, folder))
        losses: dict[str, list[float]] = {}
        seconds: dict[str, float] = {}
        for mode in ("dense", "sparse"):
            start = time.perf_counter()
            (scored,) = llm.score([""], [ids], attention=mode)
            losses[mode] = [-logprob for logprob in scored.logprobs]
            seconds[mode] = time.perf_counter() - start
            say(f"perplexity, {language}, {mode}: {tokens} tokens in {seconds[mode]:.0f} s")
        real = bool(read_passages(folder, language))
        rows.append({"language": language, "real_text": real, **perplexity_figures(losses), "seconds": seconds})
    return rows


def long_text(tokenizer: Tokenizer, language: str, tokens: int, folder: Path | None) -> tuple[int, ...]:
    """``tokens`` tokens of real text of a language, in the order of its files, and of made-up text behind it."""
    lines: Iterator[str] = chain(
        (passage.text for passage in read_passages(folder, language)), sentences(language, "long text")
    )
    ids: list[int] = []
    while len(ids) < tokens:
        ids += tokenizer.encode_continuation(next(lines) + "\n")
    return tuple(ids[:tokens])
