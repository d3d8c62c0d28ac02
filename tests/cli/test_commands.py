"""The installed command, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def deepseek(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepseek_cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_help_lists_the_commands() -> None:
    result = deepseek("--help")
    assert result.returncode == 0
    for command in ("serve", "chat", "pull", "models", "doctor", "bench"):
        assert command in result.stdout
        assert deepseek(command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "No such command"),
        (["pull", "smollm2-135m"], "Did you mean 'smollm2-135m-instruct'?"),
        (["chat", "./missing.gguf", "-p", "hi"], "does not exist"),
        (["chat", "smollm2-135m-instruct", "--temperature", "9", "-p", "hi"], "temperature must be in [0, 2]"),
        (["bench", "engine", "--model", "nosuch"], "unknown model 'nosuch'"),
        (["bench", "engine", "--profile", "fast"], "unknown profile 'fast'"),
        (["bench", "engine", "--dtype", "int3"], "dtype must be one of"),
        (["bench", "peers", "--peer", "ollama"], "unknown peer 'ollama'"),
        (["bench", "peers", "--peer", "vllm:q8_0"], "vllm has no variant 'q8_0'"),
        (["bench", "peers", "--scenario", "speed"], "unknown scenario 'speed'"),
        (["bench", "peers", "--model", "nosuch"], "unknown model 'nosuch'"),
        (["bench", "recall", "--lengths", "8k"], "--lengths takes whole numbers"),
        (["bench", "recall", "--tasks", "haystack"], "unknown task 'haystack'"),
        (["bench", "recall", "--model", "nosuch"], "unknown model 'nosuch'"),
        (["bench", "recall", "--data", "nosuch"], "the data folder nosuch does not exist"),
        (["bench", "context", "--lengths", "8"], "lengths must be at least"),
        (["bench", "context", "--attention-error", "2"], "attention_error must be 0 to"),
        (["bench", "context", "--model", "nosuch"], "unknown model 'nosuch'"),
        (["serve", "--kv-cache-bytes", "much"], "is not a size"),
        (["serve", "--attention", "quick"], "attention must be one of auto, dense, sparse"),
        (["serve", "--attention-error", "0.6"], "attention_error must be 0 to 0.5"),
        (["serve", "--rope-scaling", "ntk"], "rope_scaling must be one of auto, none, yarn"),
        (["serve", "--question-tokens", "-1"], "question_tokens must be at least 0"),
        (["chat", "smollm2-135m-instruct", "--attention", "quick", "-p", "hi"], "attention must be one of"),
        (["bench", "engine", "--attention-error", "-1"], "attention_error must be 0 to 0.5"),
    ],
)
def test_errors_are_one_readable_message(arguments: list[str], words: str) -> None:
    result = deepseek(*arguments)
    assert result.returncode in (1, 2)
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    for name, content in [("empty.gguf", b""), ("text.gguf", b"not a model"), ("cut.gguf", b"GGUF\x03\0\0\0\xff" * 3)]:
        path = tmp_path / name
        path.write_bytes(content)
        result = deepseek("chat", str(path), "-p", "hi")
        assert result.returncode == 1
        assert name in result.stderr
        assert "Traceback" not in result.stderr


def test_chat_answers_once(test_model: Path) -> None:
    # In fp16: "The" is ahead of another word by 0.08 here, which rounding of activations to int8 turns around.
    result = deepseek(
        "chat", str(test_model), "-p", "What is the capital of France?", "--temperature", "0", "--dtype", "fp16"
    )
    assert result.returncode == 0, result.stderr
    assert "capital" in result.stdout or "Paris" in result.stdout


def test_chat_keeps_history_and_obeys_commands(test_model: Path) -> None:
    lines = "My name is Anna.\n/help\n/retry\n/clear\n/nosuch\nHello\\\nthere\n/exit\n"
    result = deepseek("chat", str(test_model), "--max-tokens", "8", "--temperature", "0", stdin=lines)
    assert result.returncode == 0, result.stderr
    assert "forget the conversation" in result.stdout
    assert "unknown command /nosuch" in result.stdout
    answers = [line for line in result.stdout.replace("> ", "\n").splitlines() if line.strip()]
    assert len(answers) > 8


def test_doctor_says_what_each_kernel_got() -> None:
    result = deepseek("doctor")
    assert result.returncode == 0, result.stderr
    for word in ("read bandwidth", "Native kernels", "paged_attention", "torch", "best that runs here", "features"):
        assert word in result.stdout


def test_bench_engine_writes_its_figures(test_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "figures.json"
    result = deepseek("bench", "engine", "--model", str(test_model), "--repeats", "1", "--quick", "--json", str(target))
    assert result.returncode == 0, result.stderr
    figures = json.loads(target.read_text())
    for key in ("prefill_tok_s", "decode_tok_s", "batch32_output_tok_s", "ttft_ms", "peak_memory_bytes"):
        assert figures[key] > 0
    assert figures["machine"]["cores"] >= 1
    assert figures["settings"]["dtype"] in ("as stored", "float32", "bfloat16")


def test_bench_recall_writes_its_figures(test_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "recall.json"
    choice = ["--lengths", "512", "--tasks", "needle,passage", "--languages", "en", "--limit", "1"]
    arguments = ["--model", str(test_model), *choice, "--perplexity", "200", "--json", str(target)]
    result = deepseek("bench", "recall", *arguments, DEEPSEEK_BENCH_DATA="")
    assert result.returncode == 0, result.stderr
    assert "1 texts, 1 questions, each asked 3 times" in result.stdout
    assert "skipped: passage, en" in result.stdout
    figures = json.loads(target.read_text())
    assert [row["task"] for row in figures["tasks"]] == ["needle"]
    assert figures["perplexity"][0]["ratio"] == 1.0  # so short a text is dense


def test_bench_context_writes_its_figures(test_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "context.json"
    arguments = ["--lengths", "256", "--peer-lengths", "256", "--output", "4", "--json", str(target)]
    result = deepseek("bench", "context", "--model", str(test_model), *arguments, DEEPSEEK_PEER_LLAMA_CPP=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "not measured: llama.cpp" in result.stdout
    figures = json.loads(target.read_text())
    assert [run["attention"] for run in figures["runs"]] == ["dense", "sparse"]
    assert figures["ratios"][0]["length"] == 256


def test_bench_peers_names_what_is_missing(test_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "peers.json"
    arguments = ["--scenario", "prefill", "--peer", "llama-cpp", "--repeats", "1", "--quick", "--json", str(target)]
    result = deepseek("bench", "peers", "--model", str(test_model), *arguments, DEEPSEEK_PEER_LLAMA_CPP=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "not measured: llama-cpp" in result.stdout
    assert "DEEPSEEK_PEER_LLAMA_CPP must name the folder" in result.stdout
    report = json.loads(target.read_text())
    assert report["figures"]["ours auto"]["prefill_tok_s"] > 0
    assert "llama-cpp" in report["absent"]
