"""`deepseek bench quality`: a model beside the one it was made of, on texts and on questions."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError
from deepseek.hub.resolve import resolve
from deepseek.machine import describe_machine
from deepseek.threads import wait_politely

if TYPE_CHECKING:
    from deepseek.models.base import Model
    from deepseek.quant.report import Question
    from deepseek.tokenizer.tokenizer import Tokenizer

_CACHE_BYTES = 64 * 2**20
"""For the engine's own cache, which is not used: each forward brings one of its size."""

_PROBE = 2000
"""Characters of each text that both tokenizers must cut alike."""


def load_model_of(config: EngineConfig) -> tuple[Model, Tokenizer, str]:
    """(model, tokenizer, dtype) as the engine loads them. Raises ConfigurationError for an encoder."""
    from deepseek.engine.engine import Engine
    from deepseek.engine.load import load_engine

    loaded = load_engine(config)
    if not isinstance(loaded.engine, Engine):
        raise ConfigurationError(f"{config.model} is an encoder: it continues no text that could be judged.")
    return loaded.engine.model, loaded.tokenizer, loaded.info.dtype


def product_dtype(folder: Path) -> str:
    """The dtype under which a quantized folder is judged: as the product computes it where native kernels can run it,
    INT8 activations included, and else its values in fp32."""
    from deepseek.hub.open import open_checkpoint
    from deepseek.kernels.cpu.extension import obstacle
    from deepseek.models.native import native_obstacle
    from deepseek.models.registry import parse_config

    checkpoint = open_checkpoint(folder)
    try:
        return "fp32" if obstacle() or native_obstacle(parse_config(checkpoint.config)) else "auto"
    finally:
        checkpoint.close()


def scoring_config(model: str, dtype: str, *, threads: int | None = None, offline: bool = False) -> EngineConfig:
    """Settings under which a model is only asked for logits."""
    return EngineConfig(
        model=model,
        dtype=dtype,
        threads=threads,
        offline=offline,
        kv_cache_bytes=_CACHE_BYTES,
        max_running=1,
        prefix_cache=False,
        attention="dense",
    )


def measure_quality(
    model: EngineConfig,
    reference: EngineConfig,
    *,
    texts: Sequence[Path] = (),
    questions: Sequence[Path] = (),
    tokens: int = 1024,
    max_questions: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Size, KL divergence, top-1 agreement and perplexity on each text, and accuracy on each set of questions.

    The reference runs first and is gone before the model is loaded. Of each text about ``tokens`` tokens are used, in
    windows of 256, and of each set the first ``max_questions``.

    Returns a dict ready for JSON, with machine and settings. Raises ConfigurationError for files that cannot be used
    and for models with different vocabularies, and what loading a model raises.
    """
    wait_politely()
    from deepseek.quant import report
    from deepseek.quant.windows import cut_windows, read_texts

    if not texts and not questions:
        raise ConfigurationError("nothing to measure: give at least one file of text or of questions.")
    documents = {_label(path, texts): read_texts(path) for path in texts}
    sets = {_label(path, questions): report.read_questions(path)[:max_questions] for path in questions}
    files, reference_files = resolve(model.model, offline=model.offline), resolve(reference.model)
    with ExitStack() as stack:
        say(f"reference: {reference_files.name}")
        teacher, tokenizer, reference_dtype = load_model_of(reference)
        logits = {}
        for name, texts_of in documents.items():
            windows = cut_windows(texts_of, tokenizer, tokens=tokens)
            say(f"reference, text {name}: {sum(map(len, windows))} tokens")
            logits[name] = stack.enter_context(report.ReferenceLogits(windows, teacher.vocab_size))
            logits[name].record(teacher)
        known = {name: report.answer_questions(teacher, tokenizer, asked) for name, asked in sets.items()}
        del teacher
        gc.collect()
        say(f"model: {files.name}")
        student, own_tokenizer, dtype = load_model_of(model)
        _check_tokenizers(tokenizer, own_tokenizer, _probes(documents, sets))
        say(f"text and questions with {files.name}")
        compared = {name: stored.compare(student) for name, stored in logits.items()}
        answered = {name: report.answer_questions(student, tokenizer, asked) for name, asked in sets.items()}
    text_results = {name: asdict(report.text_figures([one])) for name, one in compared.items()}
    set_results = {name: report.accuracy_figures(right, known[name]) for name, right in answered.items()}
    all_questions = [list(chain.from_iterable(results.values())) for results in (answered, known)]
    return {
        **_sizes(files.path, reference_files.path),
        "texts": text_results,
        "all_texts": asdict(report.text_figures(list(compared.values()))) if compared else None,
        "questions": set_results,
        "all_questions": report.accuracy_figures(*all_questions) if answered else None,
        "machine": describe_machine(),
        "settings": {
            "model": files.name,
            "dtype": dtype,
            "reference": reference_files.name,
            "reference_dtype": reference_dtype,
            "tokens": tokens,
            "max_questions": max_questions,
        },
    }


def _fp16_size(path: Path) -> int:
    """Bytes of a model's weights in FP16, an output matrix that is the embedding counted once."""
    from deepseek.hub.open import open_checkpoint
    from deepseek.quant.plan import HEAD, float_size

    checkpoint = open_checkpoint(path)
    try:
        tied = checkpoint.config.get("tie_word_embeddings") is True
        return float_size({name: shape for name, shape in checkpoint.shapes.items() if not (tied and name == HEAD)})
    finally:
        checkpoint.close()


def _label(path: Path, others: Sequence[Path]) -> str:
    """The file's name, or its path where two have the same name."""
    return path.stem if [other.stem for other in others].count(path.stem) == 1 else str(path)


def _sizes(model: Path, reference: Path) -> dict[str, float]:
    from deepseek.quant.report import weights_size

    size, reference_size, fp16_size = weights_size(model), weights_size(reference), _fp16_size(reference)
    return {
        "size_bytes": size,
        "reference_size_bytes": reference_size,
        "size_ratio": size / reference_size,
        "fp16_size_bytes": fp16_size,
        "fp16_size_ratio": size / fp16_size,
    }


def _probes(documents: Mapping[str, Sequence[str]], sets: Mapping[str, Sequence[Question]]) -> list[str]:
    """Text that both tokenizers must cut alike."""
    beginnings = [text[:_PROBE] for texts in documents.values() for text in texts]
    return beginnings + [question.question for questions in sets.values() for question in questions]


def _check_tokenizers(first: Tokenizer, second: Tokenizer, texts: Iterable[str]) -> None:
    if any(first.encode(text) != second.encode(text) for text in texts):
        raise ConfigurationError("the two models have different tokenizers: they cannot be compared token by token.")


def quality_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]], list[str], list[list[str]]]:
    """(header, rows) of the table of texts and of that of questions; the last row is all together."""
    texts = [
        [
            name,
            str(row["tokens"]),
            f"{row['kl_mean']:.5f}",
            f"{row['kl_p99']:.4f}",
            _percent(row["top1_agreement"], row["top1_interval"]),
            f"{row['perplexity']:.3f}",
            f"{row['reference_perplexity']:.3f}",
            _percent(row["perplexity_ratio"] - 1, [end - 1 for end in row["perplexity_ratio_interval"]], sign="+"),
        ]
        for name, row in _with_all(result["texts"], result["all_texts"])
    ]
    sets = [
        [
            name,
            str(row["questions"]),
            _percent(row["accuracy"], row["accuracy_interval"]),
            _percent(row["reference_accuracy"], row["reference_interval"]),
            _percent(row["difference"], row["difference_interval"], sign="+"),
        ]
        for name, row in _with_all(result["questions"], result["all_questions"])
    ]
    return (
        ["text", "tokens", "KL mean", "KL p99", "same top-1", "perplexity", "reference", "change"],
        texts,
        ["questions", "number", "accuracy", "reference", "difference"],
        sets,
    )


def _with_all(rows: Mapping[str, Any], together: Any) -> list[tuple[str, Any]]:
    return [*rows.items(), *([("all", together)] if len(rows) > 1 else [])]


def _percent(value: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"{value:{sign}.1%} [{low:{sign}.1%}, {high:{sign}.1%}]"
