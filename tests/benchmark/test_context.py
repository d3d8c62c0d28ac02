"""Figures of `deepseek bench context`: from a real engine, a scripted model and a scripted llama.cpp."""

from __future__ import annotations

import copy
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deepseek.attention.policy import SparsePolicy
from deepseek.benchmark.context import LLAMA, Contexts, bytes_read, measure_context, ratios
from deepseek.benchmark.filled import decode_filled
from deepseek.benchmark.peers.llama_context import LlamaContext
from deepseek.benchmark.process import peak_memory, peak_memory_of
from deepseek.config import EngineConfig
from deepseek.errors import BenchmarkError, ConfigurationError
from tests.benchmark.test_peers import settings
from tests.fakes import FakeModel, counting

KEYS = {
    *("length", "attention", "prefill_tok_s", "decode_tok_s", "bytes_read_per_token", "dense_bytes_per_token"),
    *("index_bytes", "peak_memory_bytes", "kv_dtype", "filled", "round"),
}


def test_a_run_of_a_real_model(test_model: Path) -> None:
    said: list[str] = []
    kept: list[dict[str, Any]] = []
    config = EngineConfig(model=str(test_model), threads=2)
    contexts = Contexts(lengths=(320, 9000), output=4)
    result = measure_context(config, contexts, said.append, keep=lambda r: kept.append(copy.deepcopy(r)))
    assert [(run["length"], run["attention"]) for run in result["runs"]] == [(320, "dense"), (320, "sparse")]
    dense, sparse = result["runs"]
    for run in (dense, sparse):
        assert run.keys() == KEYS | {"read"} and not run["filled"]
        assert run["prefill_tok_s"] > 0 and run["decode_tok_s"] > 0 and run["peak_memory_bytes"] > 100e6
        # 30 layers, 3 heads, 64 dimensions of keys and of values in FP16; the decoded tokens see 316 to 319 others.
        assert run["dense_bytes_per_token"] == 30 * 3 * 64 * 2 * 2 * (315 + 2.5)
        assert run["bytes_read_per_token"] == run["dense_bytes_per_token"]  # so short a context is dense
    assert dense["index_bytes"] == 0 < sparse["index_bytes"] < 0.2 * 30 * 3 * 64 * 2 * 2 * 320
    # SmolLM2 was made for 8192 tokens: the other length is missing, with the reason.
    assert [(one["length"], one["attention"]) for one in result["absent"]] == [(9000, "dense"), (9000, "sparse")]
    assert all("8192" in one["reason"] for one in result["absent"])
    assert [len(one["runs"]) for one in kept] == [1, 2, 2, 2] and len(said) == 4
    assert json.loads(json.dumps(result))["ratios"][0]["bytes, dense / sparse"] == 1.0


def test_wrong_choices(test_model: Path) -> None:
    for fields, message in (
        ({"lengths": ()}, "nothing to measure"),
        ({"lengths": (65,)}, "at least 66"),
        ({"repeats": 0}, "at least 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Contexts(**{"lengths": (512,), **fields})
    config = EngineConfig(model=str(test_model))
    with pytest.raises(ConfigurationError, match="auto or sparse, not 'dense'"):
        measure_context(config, Contexts(lengths=(512,)), print, sparse="dense")
    with pytest.raises(BenchmarkError, match=r"nothing could be measured: ours, dense: .*8192"):
        measure_context(config, Contexts(lengths=(9000,)), print)


def test_which_contexts_are_filled() -> None:
    lengths = (4096, 32768, 131072)
    contexts = Contexts(lengths=lengths, fill_dense_above=4096, fill_sparse_above=131072)
    assert [contexts.filled(length, "dense") for length in lengths] == [False, True, True]
    assert not any(contexts.filled(length, "sparse") for length in lengths)
    assert not any(Contexts(lengths=lengths).filled(length, "dense") for length in lengths)
    assert all(Contexts(lengths=lengths, fill_sparse_above=0).filled(length, "sparse") for length in lengths)


def test_bytes_of_tokens_that_were_dense_and_sparse() -> None:
    assert bytes_read({"dense_bytes": 6000.0, "read_bytes": 600.0}, 6, 1000.0) == 100.0
    assert bytes_read({"dense_bytes": 6000.0, "read_bytes": 600.0}, 8, 1000.0) == (600 + 2 * 1000) / 8
    assert bytes_read({"dense_bytes": 0, "read_bytes": 0}, 8, 1000.0) == 1000.0


def run(attention: str, decode: float, kv_dtype: str = "int8", prefill: float | None = None, read: float = 1.0) -> Any:
    return {
        "length": 8,
        "attention": attention,
        "decode_tok_s": decode,
        "prefill_tok_s": prefill,
        "kv_dtype": kv_dtype,
        "bytes_read_per_token": read,
        "dense_bytes_per_token": 10.0,
    }


def test_ratios_take_medians_and_the_better_llama() -> None:
    runs = [run("dense", 2.0, prefill=5.0), run("dense", 4.0, prefill=7.0), run("dense", 300.0, prefill=6.0)]
    runs += [run("sparse", 8.0, read=2.0), run(LLAMA, 1.0, "f16"), run(LLAMA, 2.0, "q8_0", prefill=3.0)]
    assert ratios(runs) == [
        {
            "length": 8,
            "decode_tok_s, sparse / dense": 2.0,
            "decode_tok_s, sparse / llama.cpp": 4.0,
            "decode_tok_s, dense / llama.cpp": 2.0,
            "prefill_tok_s, dense / llama.cpp": 2.0,
            "bytes, dense / sparse": 5.0,
        }
    ]


@pytest.mark.parametrize("tokens", [15, 16, 17])
@pytest.mark.parametrize("policy", [None, SparsePolicy(dense_until=4)])
def test_decoding_behind_a_beginning_that_is_repeated(tokens: int, policy: SparsePolicy | None) -> None:
    contexts: list[list[int]] = []
    script = counting(64)

    def recording(context: Sequence[int]) -> Any:
        contexts.append([token % 64 for token in context])
        return script([token % 64 for token in context])

    model = FakeModel(recording)
    beginning = list(range(10, 23))  # three full pages of four, and one token
    assert decode_filled(model, model.new_cache(6, 4), beginning, tokens, 3, 4, policy) > 0
    filled = (beginning[:12] + beginning[4:12])[:tokens]
    assert contexts[:12] == [beginning[: i + 1] for i in range(12)]
    assert contexts[-1] == [*filled, 0, 1, 2, 3]
    assert [len(context) for context in contexts[12:]] == [tokens + 1, tokens + 2, tokens + 3, tokens + 4]
    assert model.policies == [policy] * 5


def test_too_little_to_fill_from() -> None:
    model = FakeModel(counting(64))
    with pytest.raises(BenchmarkError, match="at least 8 tokens"):
        decode_filled(model, model.new_cache(6, 4), list(range(7)), 16, 3, 4, None)


CRASH = """\
import os, signal
if "--no-repack" not in sys.argv:
    os.kill(os.getpid(), signal.SIGSEGV)
"""
SERVER = """\
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if "--version" in sys.argv:
    sys.exit(print("version: 7"))

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens, output = len(asked["prompt"]) - MISSING, asked["n_predict"] if asked["ignore_eos"] else 1
        self.answer({"timings": {"prompt_n": tokens, "prompt_ms": 500, "predicted_n": output, "predicted_ms": 2000}})

    def answer(self, reply):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *ignored):
        pass

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def scripted_llama(folder: Path, missing: int = 0) -> None:
    """A program that answers what llama.cpp's would, but has lost ``missing`` tokens of each prompt."""
    folder.mkdir()
    server = SERVER.replace("MISSING", str(missing))
    (folder / "llama-server").write_text(f"#!{sys.executable}\n{server}")
    (folder / "llama-server").chmod(0o755)


def test_llama_behind_a_long_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_llama(tmp_path / "build")
    monkeypatch.setenv("DEEPSEEK_PEER_LLAMA_CPP", str(tmp_path / "build"))
    llama = LlamaContext(settings("auto"))
    timings, peak, flags = llama.run(range(100), 9, "q8_0", 30.0)
    assert (timings.prompt_tokens, timings.tokens, timings.prompt_seconds, timings.seconds) == (100, 9, 0.5, 2.0)
    assert flags == "-t 2 -np 1 -c 173 -fa on -ctk q8_0 -ctv q8_0"
    assert peak is not None and peak > 1e6
    assert (llama.version, llama.note) == ("7", "")
    scripted_llama(tmp_path / "other", missing=3)
    monkeypatch.setenv("DEEPSEEK_PEER_LLAMA_CPP", str(tmp_path / "other"))
    with pytest.raises(BenchmarkError, match="took 97 tokens of 100"):
        LlamaContext(settings("auto")).run(range(100), 9, "f16", 30.0)


@pytest.mark.parametrize(("place", "indent"), [("class Handler", ""), ("        asked =", "        ")])
def test_a_llama_that_crashes_runs_without_repacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, indent: str
) -> None:
    """At its start, or with the prompt."""
    scripted_llama(tmp_path / "build")
    program = tmp_path / "build" / "llama-server"
    program.write_text(program.read_text().replace(place, textwrap.indent(CRASH, indent) + place))
    monkeypatch.setenv("DEEPSEEK_PEER_LLAMA_CPP", str(tmp_path / "build"))
    llama = LlamaContext(settings("auto"))
    _, _, flags = llama.run(range(100), 9, "f16", 30.0)
    assert flags.endswith("--no-repack") and "without repacked weights" in llama.note


def test_llama_beside_ours(tmp_path: Path, test_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_llama(tmp_path / "build")
    monkeypatch.setenv("DEEPSEEK_PEER_LLAMA_CPP", str(tmp_path / "build"))
    config = EngineConfig(model=str(test_model), threads=2)
    result = measure_context(config, Contexts(lengths=(), peer_lengths=(128,), output=4), print)
    assert [(run["kv_dtype"], run["decode_tok_s"], run["prefill_tok_s"]) for run in result["runs"]] == [
        ("f16", 2.0, 123 / 0.5),
        ("q8_0", 2.0, 123 / 0.5),
    ]
    assert all(run["attention"] == LLAMA and run.keys() == KEYS | {"flags", "note"} for run in result["runs"])
    monkeypatch.setenv("DEEPSEEK_PEER_LLAMA_CPP", str(tmp_path))
    with pytest.raises(BenchmarkError, match="has no llama-server"):
        measure_context(config, Contexts(lengths=(), peer_lengths=(128,), output=4), print)


def test_peak_memory_of_a_process() -> None:
    own = peak_memory_of(os.getpid())
    if own is None:
        pytest.skip("this system does not tell it")
    assert own == pytest.approx(peak_memory(), rel=0.1)
    assert peak_memory_of(2**22 + 1) is None
