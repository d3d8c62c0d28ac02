"""Error of sparse attention on the keys and queries of a real model: `python -m benchmarks.attention_error`.

A text, from the shared data beside a checkout, goes through the model in fp32 with dense attention. Keys and values of
all layers are kept, and the queries of some positions: half of them are spread over the second half of the text, half
lie in the questions at its end, which ask for what is far behind. Native sparse attention then answers those queries
from the same keys. Errors are relative, |sparse - dense| / |dense| of one head's output, dense being fp32 attention to
the same stored cache: what an int8 cache itself loses is reported apart.

The reference in deepseek.attention answers some of the queries too: it knows the bound of every single head.

Capturing takes minutes (12,000 tokens of Qwen2.5-Coder-1.5B: 6 on two cores); with ``--capture FILE`` it is kept there.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepseek.attention.decode import sparse_decode
from deepseek.attention.index import PAGE, PageIndex, build_index
from deepseek.config import EngineConfig
from deepseek.engine.execution import choose_execution
from deepseek.hub.open import open_checkpoint
from deepseek.hub.resolve import resolve
from deepseek.kernels.cpu.extension import native
from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import Batch
from deepseek.models.registry import parse_config
from deepseek.tokenizer.load import load_tokenizer

DATA = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "attention_error.json"
ERRORS = (0.01, 0.02, 0.05)
KINDS = ("fp16", "int8")
QUESTION_TOKENS = 160
CHUNK = 512
ROUNDING = 1e-3
"""Of native kernels; an error above its bound by less is none."""


@dataclass(frozen=True)
class Capture:
    """What attention saw: fp16 queries [layers, positions, heads, D], not scaled; keys and values [layers, n, kv_heads,
    D]; int64 positions [positions]."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    scale: float

    @property
    def group(self) -> int:
        return self.queries.shape[2] // self.keys.shape[2]


@dataclass(frozen=True)
class Errors:
    """Of single heads' outputs, relative; those that are not finite are counted apart."""

    median: float
    mean: float
    p95: float
    p99: float
    not_finite: int

    @classmethod
    def of(cls, found: Tensor) -> Errors:
        errors = found[found.isfinite()]
        p95, p99 = (float(torch.quantile(errors, q)) for q in (0.95, 0.99))
        return cls(float(errors.median()), float(errors.mean()), p95, p99, len(found) - len(errors))


@dataclass(frozen=True)
class Figures:
    """Of native sparse attention; ``tokens_read`` is a share, bytes are of one query position in the layers measured.

    ``bound`` is the mean upper bound that the kernel reports."""

    cache: str
    error: float
    measured: Errors
    tokens_read: float
    bytes_read: float
    bytes_dense: float
    dense_pieces: float
    bound: float


@dataclass(frozen=True)
class Reference:
    """Of the reference, from the int8 cache: heads whose error is above their own bound, and how far native results are
    from it (median over heads)."""

    error: float
    measured: Errors
    heads: int
    violations: int
    tokens_read: float
    native_apart: float


def text() -> tuple[Iterator[str], list[dict[str, Any]]]:
    """Encyclopedia passages with news in between, and the passages with their questions."""
    articles = json.loads(gzip.decompress((DATA / "xquad/xquad.en.json.gz").read_bytes()))["data"]
    passages = [passage for article in articles for passage in article["paragraphs"]]
    news = (DATA / "ntrex/newstest2019-src.eng.txt").read_text(encoding="utf-8").split("\n")

    def pieces() -> Iterator[str]:
        for i, passage in enumerate(passages):
            lines = "\n".join(news[i * 4 : i * 4 + 8]) + "\n\n" if i % 3 == 0 else ""
            yield passage["context"] + "\n\n" + lines

    return pieces(), passages


def prompt(tokenizer: Any, tokens: int) -> list[int]:
    """At most so many token ids, of which the last are questions and answers about what is before."""
    pieces, passages = text()
    document, count = "", 0
    for piece in pieces:
        if len(tokenizer.encode(document + piece)) > tokens - 220:
            break
        document, count = document + piece, count + 1
    questions = ""
    for passage in passages[2 : count : max(1, count // 8)]:
        asked = passage["qas"][0]
        questions += f"Question: {asked['question']}\nAnswer: {asked['answers'][0]['text']}\n"
    start = "<|im_start|>user\nRead the following documents.\n\n" + document + "\n"
    ids: list[int] = tokenizer.encode(start)[: tokens - QUESTION_TOKENS]
    ids += tokenizer.encode(questions)[:QUESTION_TOKENS]
    return ids


def asked_positions(tokens: int, count: int) -> Tensor:
    spread = torch.linspace(tokens // 2, tokens - QUESTION_TOKENS - 1, count - count // 2)
    questions = torch.linspace(tokens - QUESTION_TOKENS, tokens - 1, count // 2)
    return torch.cat([spread, questions]).long()


class _Listening:
    """Operations of one layer that keep the queries of its attention."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self.queries: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def paged_attention(self, query: Tensor, *rest: Any) -> Any:
        self.queries.append(query.half())
        return self._ops.paged_attention(query, *rest)


def capture(name: str, tokens: int, count: int) -> Capture:
    config = EngineConfig(model=name, backend="torch", dtype="fp32")
    files = resolve(name, offline=True)
    checkpoint = open_checkpoint(files.path)
    execution = choose_execution(config, checkpoint, parse_config(checkpoint.config), files.path)
    model: Any = execution.load(checkpoint, name, None)
    ids = torch.tensor(prompt(load_tokenizer(files.path), tokens))
    n = len(ids)
    pages = list(range(-(-n // PAGE)))
    cache: Any = model.new_cache(len(pages), PAGE)
    listening = []
    for layer in model.layers:
        listening.append(_Listening(layer.attention._ops))
        layer.attention._ops = listening[-1]
    positions = asked_positions(n, count)
    for start in range(0, n, CHUNK):
        end = min(n, start + CHUNK)
        rows = torch.arange(start, end)
        layout = PagedLayout(
            page_size=PAGE, query_starts=(0, end - start), context_lens=(end,), pages=(pages,), write_slots=rows
        )
        with torch.inference_mode():
            model.forward(Batch(ids[start:end], rows, layout, torch.tensor([end - start - 1])), cache)
    queries = torch.stack([torch.cat(layer.queries)[positions] for layer in listening])
    keys, values = (
        torch.stack([part[:n].half() for part in x]) for x in zip(*(layer[:2] for layer in cache.layers), strict=True)
    )
    return Capture(queries, keys, values, positions, float(model.layers[0].attention.shape.scale))


class Cache:
    """One layer's keys and values as native kernels keep them, with their index."""

    def __init__(self, kind: str, keys: Tensor, values: Tensor, threads: int) -> None:
        n, heads, dim = keys.shape
        self.pages = -(-n // PAGE)
        self.threads = threads
        dtype = np.float16 if kind == "fp16" else np.int8
        stored = [np.zeros((self.pages, heads, PAGE, dim), dtype) for _ in range(2)]
        scales = [None if kind == "fp16" else np.zeros((self.pages, heads, PAGE), np.float32) for _ in range(2)]
        self.arrays = (*stored, *scales)
        sizes = (16 + dim, 16 + dim, (dim // 8 + 1) * PAGE)
        self.index = tuple(np.zeros((self.pages, heads, size), np.uint8) for size in sizes)
        native().write_kv(keys.contiguous(), values.contiguous(), *self.arrays, torch.arange(n), "auto", threads)
        native().index_kv(*self.arrays, *self.index, *self._facts([n], [n]), "auto", threads)
        self.keys, self.values = (self._floats(x, s)[:n] for x, s in zip(stored, scales, strict=True))

    @staticmethod
    def _floats(stored: Any, scales: Any) -> Tensor:
        """fp32 [slots, kv_heads, D]."""
        floats = stored.astype(np.float32) * (1.0 if scales is None else scales[..., None])
        return torch.from_numpy(floats.transpose(0, 2, 1, 3).reshape(-1, stored.shape[1], stored.shape[3]))

    def _facts(self, rows: list[int], contexts: list[int]) -> tuple[Any, Any, Any]:
        starts = np.cumsum([0, *rows], dtype=np.int32)
        pages = np.tile(np.arange(self.pages, dtype=np.int32), (len(rows), 1))
        return starts, np.array(contexts, np.int32), pages

    def attend(self, queries: Tensor, positions: Tensor, scale: float, error: float) -> tuple[Tensor, dict[str, float]]:
        """``queries`` [rows, heads, D], each at its own position of the same text."""
        out = torch.empty_like(queries)
        facts = self._facts([1] * len(queries), [int(p) + 1 for p in positions])
        errors = np.full(len(queries), error, np.float32)
        counted = native().sparse_attention(
            queries, out, *self.arrays, *self.index, *facts, errors, scale, "auto", self.threads
        )
        return out, counted


def dense(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """Causal attention in fp32, [rows, heads, D]."""
    hidden = torch.arange(len(keys)) > positions[:, None]
    group = queries.shape[1] // keys.shape[1]
    outputs = []
    for head in range(queries.shape[1]):
        logits = (queries[:, head] * scale) @ keys[:, head // group].T
        weights: Tensor = torch.softmax(logits.masked_fill(hidden, -torch.inf), -1)
        outputs.append(weights @ values[:, head // group])
    return torch.stack(outputs, 1)


def apart(actual: Tensor, expected: Tensor) -> Tensor:
    """Relative distance of every head, flat."""
    distance: Tensor = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    return distance.flatten()


class Measurement:
    """Collects what all layers say."""

    def __init__(self, captured: Capture, reference_positions: int, threads: int) -> None:
        self.captured = captured
        self.threads = threads
        count = len(captured.positions)
        self.sampled = torch.linspace(0, count - 1, reference_positions).long()
        self.cache_errors: list[Tensor] = []
        self.errors: dict[tuple[str, float], list[Tensor]] = {(k, e): [] for k in KINDS for e in ERRORS}
        self.counts: dict[tuple[str, float], dict[str, float]] = {key: {} for key in self.errors}
        self.reference: dict[float, dict[str, list[float]]] = {
            e: {"error": [], "bound": [], "apart": [], "read": []} for e in ERRORS
        }

    def layer(self, number: int) -> None:
        captured = self.captured
        queries, keys, values = (x[number].float() for x in (captured.queries, captured.keys, captured.values))
        given = captured.positions, captured.scale
        exact: Tensor | None = None
        for kind in KINDS:
            cache = Cache(kind, keys, values, self.threads)
            truth = dense(queries, cache.keys, cache.values, *given)
            if exact is not None:
                self.cache_errors.append(apart(truth, exact))
            exact = truth
            indexes = self._indexes(cache) if kind == "int8" else []
            for error in ERRORS:
                actual, counted = cache.attend(queries, *given, error)
                self.errors[kind, error].append(apart(actual, truth))
                total = self.counts[kind, error]
                for name, value in counted.items():
                    total[name] = total.get(name, 0.0) + value
                for head, index in enumerate(indexes):
                    self._compare(cache, head, index, queries, actual, truth, error)

    @staticmethod
    def _indexes(cache: Cache) -> list[PageIndex]:
        full = len(cache.keys) // PAGE * PAGE
        heads = range(cache.keys.shape[1])
        return [build_index(cache.keys[:full, head], cache.values[:full, head]) for head in heads]

    def _compare(
        self, cache: Cache, head: int, index: PageIndex, queries: Tensor, actual: Tensor, truth: Tensor, error: float
    ) -> None:
        """One KV head's results to those of the reference."""
        group, found = self.captured.group, self.reference[error]
        heads = slice(head * group, (head + 1) * group)
        for row in self.sampled.tolist():
            n = int(self.captured.positions[row]) + 1
            scaled = queries[row, heads] * self.captured.scale
            told = sparse_decode(scaled, cache.keys[:n, head], cache.values[:n, head], index, error)
            found["error"] += apart(told.output, truth[row, heads]).tolist()
            found["bound"] += told.bound.tolist()
            found["apart"] += apart(actual[row, heads], told.output).tolist()
            found["read"].append(float(told.read.sum()))

    def figures(self) -> list[Figures]:
        count = len(self.captured.positions)
        result = []
        for (kind, error), parts in self.errors.items():
            counted = self.counts[kind, error]
            result.append(
                Figures(
                    cache=kind,
                    error=error,
                    measured=Errors.of(torch.cat(parts)),
                    tokens_read=counted["read_tokens"] / counted["context_tokens"],
                    bytes_read=counted["bytes"] / count,
                    bytes_dense=counted["dense_bytes"] / count,
                    dense_pieces=counted["dense_pieces"] / counted["pieces"],
                    bound=counted["bound"] / counted["heads"],
                )
            )
        return result

    def references(self, layers: int) -> list[Reference]:
        contexts = sum(int(self.captured.positions[row]) + 1 for row in self.sampled.tolist())
        contexts *= layers * self.captured.keys.shape[2]
        result = []
        for error, found in self.reference.items():
            errors, bounds = torch.tensor(found["error"]), torch.tensor(found["bound"])
            violations = int((errors > bounds + ROUNDING).sum())
            apart_by = float(torch.tensor(found["apart"]).nanmedian())
            read = sum(found["read"]) / contexts
            result.append(Reference(error, Errors.of(errors), len(errors), violations, read, apart_by))
        return result


def show(figures: list[Figures], references: list[Reference]) -> None:
    print("| cache | error asked for | median | mean | p95 | p99 | not finite | tokens read | MB read | of dense |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for f in figures:
        m = f.measured
        errors = " | ".join(f"{x:.4f}" for x in (m.median, m.mean, m.p95, m.p99))
        cells = [f.cache, f.error, errors, m.not_finite, f"{f.tokens_read:.3f}", f"{f.bytes_read / 1e6:.2f}"]
        print("| " + " | ".join(map(str, [*cells, f"{f.bytes_read / f.bytes_dense:.3f}"])) + " |")
    for r in references:
        print(
            f"reference, {r.error}: {r.violations} of {r.heads} heads above their bound, median error "
            f"{r.measured.median:.4f}, tokens read {r.tokens_read:.3f}, native is {r.native_apart:.4f} apart"
        )


def captured_once(options: argparse.Namespace) -> Capture:
    path: Path | None = options.capture
    if path is not None and path.exists():
        return Capture(**torch.load(path))
    result = capture(options.model, options.tokens, options.positions)
    if path is not None:
        torch.save({name: getattr(result, name) for name in Capture.__dataclass_fields__}, path)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--positions", type=int, default=64)
    parser.add_argument("--reference-positions", type=int, default=4)
    parser.add_argument("--layer-step", type=int, default=1, help="measure every so many layers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--capture", type=Path, help="read the capture from this file, or keep it there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    kept = options.capture is not None and options.capture.exists()
    if not kept and not DATA.is_dir():
        parser.exit(0, "the shared data folder is not beside this checkout: nothing to measure\n")
    captured = captured_once(options)
    measurement = Measurement(captured, options.reference_positions, options.threads)
    layers = range(0, len(captured.keys), options.layer_step)
    for layer in layers:
        measurement.layer(layer)
        print(f"layer {layer} of {len(captured.keys)}", flush=True)
    figures, references = measurement.figures(), measurement.references(len(layers))
    show(figures, references)
    report = {
        "model": options.model,
        "tokens": captured.keys.shape[1],
        "positions": len(captured.positions),
        "layers": list(layers),
        "heads": captured.queries.shape[2],
        "int8_cache_error": asdict(Errors.of(torch.cat(measurement.cache_errors))),
        "native": [asdict(f) for f in figures],
        "reference": [asdict(r) for r in references],
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
