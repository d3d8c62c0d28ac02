"""`deepseek bench context`: what a token costs behind a long context, dense, sparse, and in llama.cpp."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deepseek.benchmark.engine import LOAD_TIMEOUT, start_worker
from deepseek.benchmark.peers.base import PeerSettings
from deepseek.benchmark.peers.llama_context import CACHE_TYPES, LlamaContext
from deepseek.benchmark.recall.passages import find_data
from deepseek.benchmark.recall.perplexity import long_text
from deepseek.config import EngineConfig
from deepseek.engine.memory import available_memory
from deepseek.errors import BenchmarkError, ConfigurationError
from deepseek.hub.cache import cache_dir
from deepseek.hub.progress import RichProgress
from deepseek.hub.resolve import resolve
from deepseek.machine import describe_machine
from deepseek.tokenizer.load import load_tokenizer

Say = Callable[[str], None]
Keep = Callable[[dict[str, Any]], None]
OUTPUT = 64
BEGINNING = 8192
"""Tokens that are computed of contexts that are filled."""
LLAMA = "llama.cpp"
_TIMEOUT = 24 * 3600.0
_MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Contexts:
    """What a run measures.

    Attributes:
        lengths: tokens of prompt and answer together.
        peer_lengths: those at which llama.cpp is measured, if it is found.
        fill_dense_above, fill_sparse_above: of longer prompts only the beginning is computed and then repeated, see
            :mod:`deepseek.benchmark.filled`; None for none.
        output: tokens decoded, after a first one.
        repeats: runs of each, in turn.
    """

    lengths: tuple[int, ...]
    peer_lengths: tuple[int, ...] = ()
    fill_dense_above: int | None = None
    fill_sparse_above: int | None = None
    output: int = OUTPUT
    repeats: int = 1

    def __post_init__(self) -> None:
        if not self.lengths and not self.peer_lengths:
            raise ConfigurationError("nothing to measure: give lengths.")
        least = self.output + 2
        if any(length < least for length in (*self.lengths, *self.peer_lengths)):
            raise ConfigurationError(f"lengths must be at least {least}: {self.output} tokens are decoded.")
        if self.output < 1 or self.repeats < 1:
            raise ConfigurationError("output and repeats must be at least 1.")

    def filled(self, length: int, attention: str) -> bool:
        """Whether this context is computed in part only."""
        above = self.fill_dense_above if attention == "dense" else self.fill_sparse_above
        return above is not None and length > above


def measure_context(
    config: EngineConfig,
    contexts: Contexts,
    say: Say,
    *,
    sparse: str = "auto",
    data: Path | None = None,
    keep: Keep = lambda result: None,
) -> dict[str, Any]:
    """Each length dense, sparse, and, where asked for, in llama.cpp with keys and values in FP16 and in Q8_0.

    Every run has a process of its own, one at a time. Prompts are text, real where ``data`` has it, the same for all.

    Args:
        config: the engine's; its attention, context, cache and speculation are set here.
        sparse: the mode of attention that runs named ``sparse`` have, ``auto`` or ``sparse``.
        data: folder of real text (see :mod:`deepseek.benchmark.recall.passages`).
        keep: called with the result so far after each run.

    Returns:
        ``runs``: per run ``length``, ``attention`` (``dense``, ``sparse``, ``llama.cpp``), ``prefill_tok_s`` (None if
        filled), ``decode_tok_s``, ``bytes_read_per_token`` (keys, values and index, decoding; by formula where all is
        read), ``dense_bytes_per_token`` (the formula), ``index_bytes``, ``peak_memory_bytes``, ``kv_dtype``,
        ``filled``, ``round``, and for sparse runs ``read``, what was counted. ``ratios``: per length of medians.
        ``absent``: what was not measured, and why. ``machine``, ``settings``. Ready for JSON.

    Raises:
        ConfigurationError, HubError: a choice that does not exist.
        BenchmarkError: nothing could be measured.
    """
    if sparse not in ("auto", "sparse"):
        raise ConfigurationError(f"the sparse runs' attention must be auto or sparse, not {sparse!r}.")
    files = resolve(config.model, offline=config.offline, progress=RichProgress())
    tokenizer = load_tokenizer(files.path)
    text = long_text(tokenizer, "en", _longest_prompt(contexts), find_data(data))
    machine = describe_machine()
    config = msgspec.structs.replace(config, threads=config.threads or int(str(machine["cores"])))
    result: dict[str, Any] = {
        "machine": machine,
        "settings": {
            "model": files.name,
            "config": msgspec.to_builtins(config),
            "sparse": sparse,
            "contexts": msgspec.to_builtins(contexts),
        },
        "runs": [],
        "ratios": [],
        "absent": [],
    }
    llama: LlamaContext | None = None
    if contexts.peer_lengths:
        try:
            llama = _open_llama(config, contexts, files.path, machine)
            result["settings"]["llama.cpp"] = llama.version
        except BenchmarkError as error:
            result["absent"].append({"attention": LLAMA, "reason": str(error)})
    bench = _Bench(config, sparse, contexts, text, llama)
    for index, length, attention, cache_type in _plan(contexts, peer=llama is not None):
        try:
            run = bench.peer(length, cache_type) if attention == LLAMA else bench.ours(length, attention)
        except BenchmarkError as error:
            result["absent"].append({"length": length, "attention": attention, "reason": str(error)})
            say(f"{length} tokens, {attention}: not measured: {error}")
        else:
            result["runs"].append({"round": index, **run})
            result["ratios"] = ratios(result["runs"])
            say(f"{length} tokens, {attention}, {run['kv_dtype']}: {_rates(run)}")
        keep(result)
    if not result["runs"]:
        raise BenchmarkError(f"nothing could be measured: {result['absent'][0]['reason']}")
    return result


class _Bench:
    """One run at a time, each in a process of its own."""

    def __init__(
        self,
        config: EngineConfig,
        sparse: str,
        contexts: Contexts,
        text: Sequence[int],
        llama: LlamaContext | None,
    ) -> None:
        self._config = config
        self._modes = {"dense": "dense", "sparse": sparse}
        self._contexts = contexts
        self._text = text
        self._llama = llama
        self._kv_elements = 0

    def ours(self, length: int, attention: str) -> dict[str, Any]:
        """One run of ours. Raises BenchmarkError."""
        output, filled = self._contexts.output, self._contexts.filled(length, attention)
        config = msgspec.structs.replace(
            self._config,
            attention=self._modes[attention],
            max_context=length,
            max_running=1,
            kv_cache_bytes=int(available_memory() * _MEMORY_SHARE),  # a limit: no more than one context is taken
            speculation="off",
            draft_model=None,
            prefix_cache=False,
        )
        process = start_worker(f"ours, {attention}")
        try:
            info = process.ask({"op": "load", "config": msgspec.to_builtins(config)}, LOAD_TIMEOUT)
            if info["max_context"] < length:
                raise BenchmarkError(f"the memory for keys and values holds {info['max_context']} tokens of {length}.")
            prompt = length - output - 1
            if filled:
                question = {"beginning": list(self._text[: min(prompt, BEGINNING)]), "tokens": prompt, "output": output}
                reply = process.ask({"op": "fill", **question}, _TIMEOUT)
                first, seconds = None, float(reply["seconds"])
            else:
                question = {"prompts": [list(self._text[:prompt])], "output": output + 1, "ignore_eos": True}
                reply = process.ask({"op": "run", **question}, _TIMEOUT)
                first, seconds = float(reply["first"]), float(reply["total"]) - float(reply["first"])
            peak = int(process.ask({"op": "memory"}, 60)["peak_memory_bytes"])
        finally:
            process.close()
        self._kv_elements = int(info["kv_token_elements"])
        dense = info["kv_token_bytes"] * (prompt + (output + 1) / 2)
        decoded = output + 1 if filled else output  # all that was counted
        index = info["index_page_bytes"] * (length // config.page_size)
        return {
            "length": length,
            "attention": attention,
            "prefill_tok_s": None if first is None else prompt / first,
            "decode_tok_s": output / seconds,
            "bytes_read_per_token": bytes_read(reply["read"], decoded, dense),
            "dense_bytes_per_token": dense,
            "index_bytes": index if attention == "sparse" else 0,
            "peak_memory_bytes": peak,
            "kv_dtype": "fp16" if config.kv_dtype == "auto" else config.kv_dtype,
            "filled": filled,
            "read": reply["read"],
        }

    def peer(self, length: int, cache_type: str) -> dict[str, Any]:
        """One run of llama.cpp. Raises BenchmarkError."""
        assert self._llama is not None
        output = self._contexts.output
        prompt = self._text[: length - output - 1]
        timings, peak, flags = self._llama.run(prompt, output + 1, cache_type, _TIMEOUT)
        dense = self._kv_elements * CACHE_TYPES[cache_type] * (len(prompt) + (output + 1) / 2) or None
        return {
            "length": length,
            "attention": LLAMA,
            "prefill_tok_s": timings.prompt_tokens / timings.prompt_seconds,
            "decode_tok_s": output / timings.seconds,  # its clock starts behind the first token
            "bytes_read_per_token": dense,
            "dense_bytes_per_token": dense,
            "index_bytes": 0,
            "peak_memory_bytes": peak,
            "kv_dtype": cache_type,
            "filled": False,
            "flags": flags,
            "note": self._llama.note,
        }


def bytes_read(read: Mapping[str, float], tokens: int, dense: float) -> float:
    """Bytes of keys, values and index per decoded token.

    Args:
        read: what sparse attention counted (:class:`deepseek.attention.stats.AttentionStats`).
        tokens: those that were decoded meanwhile.
        dense: what dense attention reads for one. Layers and tokens that were dense read as much.
    """
    return dense - (read["dense_bytes"] - read["read_bytes"]) / tokens


def ratios(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per length medians over rounds, sparse over dense and each over llama.cpp's better type of keys and values: rates
    (over 1: the first is faster), and the bytes that dense attention reads over those that sparse attention does."""
    rows = []
    for length in dict.fromkeys(run["length"] for run in runs):
        own = [run for run in runs if run["length"] == length]
        row: dict[str, Any] = {"length": length}
        for over, under in (("sparse", "dense"), ("sparse", LLAMA), ("dense", LLAMA)):
            for figure in ("decode_tok_s", "prefill_tok_s"):
                above, below = _typical(own, over, figure), _typical(own, under, figure)
                if above and below:
                    row[f"{figure}, {over} / {under}"] = above / below
        saved = _typical(own, "sparse", "dense_bytes_per_token"), _typical(own, "sparse", "bytes_read_per_token")
        if saved[0] and saved[1]:
            row["bytes, dense / sparse"] = saved[0] / saved[1]
        rows.append(row)
    return rows


def _typical(runs: Sequence[Mapping[str, Any]], attention: str, figure: str) -> float | None:
    """The median over rounds; of several types of keys and values the greatest one."""
    values: dict[str, list[float]] = {}
    for run in runs:
        if run["attention"] == attention and run[figure] is not None:
            values.setdefault(run["kv_dtype"], []).append(run[figure])
    return max(map(statistics.median, values.values()), default=None)


def _plan(contexts: Contexts, *, peer: bool) -> Iterator[tuple[int, int, str, str]]:
    """(round, length, attention, llama.cpp's type of keys and values) of every run, what is compared side by side."""
    for index in range(contexts.repeats):
        for length in sorted({*contexts.lengths, *contexts.peer_lengths}):
            if length in contexts.lengths:
                yield index, length, "dense", ""
                yield index, length, "sparse", ""
            if peer and length in contexts.peer_lengths:
                for cache_type in CACHE_TYPES:
                    yield index, length, LLAMA, cache_type


def _longest_prompt(contexts: Contexts) -> int:
    """Tokens of text that are needed."""
    computed = [
        min(length, BEGINNING) if contexts.filled(length, "dense") and contexts.filled(length, "sparse") else length
        for length in contexts.lengths
    ]
    return max((*computed, *contexts.peer_lengths), default=0)


def _open_llama(config: EngineConfig, contexts: Contexts, model: Path, machine: Mapping[str, Any]) -> LlamaContext:
    """llama.cpp with the same file. Raises BenchmarkError when it is not there or cannot read it."""
    assert config.threads is not None
    return LlamaContext(
        PeerSettings(
            model=model,
            threads=config.threads,
            max_context=max(contexts.peer_lengths),
            max_requests=1,
            our_dtypes=(config.dtype,),
            features=frozenset(machine["features"]),
            cache=cache_dir() / "peers",
        )
    )


def _rates(run: Mapping[str, Any]) -> str:
    prefill = "filled" if run["prefill_tok_s"] is None else f"prefill {run['prefill_tok_s']:.1f} tok/s"
    return f"{prefill}, decode {run['decode_tok_s']:.2f} tok/s"
