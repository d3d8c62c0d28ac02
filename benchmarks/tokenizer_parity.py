"""Compare our tokenizer with llama.cpp's on the same GGUF file, over thousands of lines of many scripts.

With a llama.cpp server that is already running on the same file:

    python benchmarks/tokenizer_parity.py model.gguf --url http://127.0.0.1:8080

or with the `xllamacpp` package (llama.cpp as a wheel) in an environment of its own, whose Python is named:

    python benchmarks/tokenizer_parity.py model.gguf --xllamacpp /path/to/venv/bin/python

With `--record FILE` nothing is compared: the peer's ids of the "lines" in that JSON file are written into it. This is
how the files in `tests/tokenizer/data` came to be (`--name` is the name of an entry there).

Text comes from the data folder (NTREX, GSM8K, HumanEval, ...; missing files are skipped and named) and from a seeded
generator of awkward strings. Prints every mismatch; exit status 1 if there is any.

Known and left out of the generated text: ``</s>``. It is an ordinary token of Gemma (the HTML tag), and so it is for
us, but llama.cpp takes every token of that spelling for an end-of-text token, which plain text does not become.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import subprocess
import sys
import time
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

_SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, -1
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
print("listening", server.listening_address, xllamacpp.__version__, flush=True)
sys.stdin.read()
"""


def _open_text(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8")


def _lines(path: Path) -> list[str]:
    return _open_text(path).splitlines()


def _jsonl(*fields: str) -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        return [str(row[name]) for row in map(json.loads, _lines(path)) for name in fields]

    return read


def _csv(column: int, delimiter: str = ",") -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        rows = list(csv.reader(io.StringIO(_open_text(path)), delimiter=delimiter))
        return [row[column] for row in rows[1:] if len(row) > column]

    return read


SOURCES: tuple[tuple[str, str, Callable[[Path], list[str]], int], ...] = (
    ("ntrex en", "ntrex/newstest2019-src.eng.txt", _lines, 1000),
    ("ntrex zh", "ntrex/newstest2019-ref.zho-CN.txt", _lines, 1000),
    ("ntrex ja", "ntrex/newstest2019-ref.jpn.txt.gz", _lines, 1000),
    ("ntrex ko", "ntrex/newstest2019-ref.kor.txt.gz", _lines, 1000),
    ("gsm8k", "gsm8k/test.jsonl.gz", _jsonl("question", "answer"), 1000),
    ("humaneval", "humaneval/HumanEval.jsonl.gz", _jsonl("prompt", "canonical_solution", "test"), 492),
    ("korean_chatbot", "korean_chatbot/ChatbotData.csv.gz", _csv(1), 500),
    ("banking77", "banking77/test.csv", _csv(0), 500),
    ("xcopa_zh", "xcopa_zh/val.zh.jsonl", _jsonl("premise", "choice1"), 200),
    ("mgsm ja", "mgsm/mgsm_ja.tsv", _csv(0, "\t"), 250),
)
"""(name, path under the data folder, reader, lines at most)"""

_WORDS = (
    "hello", "World", "I'm", "don't", "WE'LL", "x's", "naïve", "Straße", "ΑΒΓ", "привет", "שלום", "مرحبا",
    "नमस्ते", "สวัสดี", "你好世界", "繁體字", "こんにちは", "カタカナ", "ﾊﾝｶｸ", "한국어", "가나다", "e\u0301",
    "Å", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇰🇷🇯🇵", "12345", "3.14159", "1,000,000", "２０２４", "٣٤٥", "Ⅳ", "½",
    "x²", "<|im_start|>", "<|endoftext|>", "<bos>", "<start_of_turn>", "<0x0A>", "def f(x):", "a_b_c", "C++",
    "--flag=1", "http://a.b/c?d=e&f=%20", "$10.50", "€", "…", "—", "\u200b", "\u200d", "\ufeff", "\u00a0",
    "\u3000", "\u2028", "\x85", "\x00", "\x1b[0m", "\t", "\r\n", "\n\n\n", "   ", "\n \n", " \n", "\u2581",
    "\ufffd", "\U0010ffff", "\ue000", "<table>", "</div>", "aaaaaaaaaaaaaaaaaaaaaaaaa", "=" * 30, "-" * 17,
    "ha" * 20, "ㅋㅋㅋㅋㅋㅋㅋ", "哈哈哈哈哈哈", "wwwww", "0" * 50,
)  # fmt: skip


def awkward_lines(count: int, seed: int = 20260) -> list[str]:
    """Random mixtures of words, runs of blanks and random characters, composed and decomposed. Reproducible."""
    rng = random.Random(seed)
    planes = ((0x20, 0x7F), (0xA0, 0x250), (0x370, 0x700), (0x900, 0xE80), (0x1E00, 0x2100), (0x2100, 0x2C00),
              (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0xFFFE), (0x1F300, 0x1FB00),
              (0x20000, 0x2A6E0))  # fmt: skip
    lines = []
    for index in range(count):
        parts = []
        for _ in range(rng.randint(1, 14)):
            kind = rng.random()
            if kind < 0.55:
                parts.append(rng.choice(_WORDS))
            elif kind < 0.75:
                parts.append(rng.choice((" ", "\n", "\t", "\r\n", " \t", "7", "\u3000")) * rng.randint(1, 40))
            else:
                low, high = rng.choice(planes)
                parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6))))
            if rng.random() < 0.5:
                parts.append(" ")
        text = "".join(parts)
        lines.append(unicodedata.normalize("NFC" if index % 3 == 0 else "NFD", text) if index % 3 else text)
    return lines


def corpus(data: Path, awkward: int) -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of each source; a source whose file is absent is left out."""
    for name, path, read, limit in SOURCES:
        file = data / path
        if file.exists():
            yield name, [line for line in read(file) if line][:limit]
        else:
            print(f"skipped: {file} does not exist", file=sys.stderr)
    yield "awkward", awkward_lines(awkward)


@contextmanager
def _peer(model: Path, url: str | None, python: str | None) -> Iterator[tuple[str, str]]:
    """The address of a llama.cpp server, and what is known of its version."""
    if url is not None:
        with urllib.request.urlopen(f"{url}/props") as reply:
            yield url, str(json.load(reply).get("build_info", "unknown"))
        return
    assert python is not None
    command = [python, "-c", _SERVER, str(model)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("listening "):
                _, address, version = line.split()
                yield address, f"xllamacpp {version}"
                return
        raise SystemExit("the peer ended without listening; is xllamacpp installed there?")
    finally:
        process.kill()
        process.wait()


def peer_ids(url: str, text: str, *, parse_special: bool = False) -> list[int]:
    """Ids that the server at ``url`` gives for this text, without BOS."""
    body = json.dumps({"content": text, "add_special": False, "parse_special": parse_special}).encode()
    request = urllib.request.Request(f"{url}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        ids: list[int] = json.load(reply)["tokens"]
    return ids


def compare(tokenizer: Any, url: str, data: Path, awkward: int, shown: int) -> dict[str, dict[str, int]]:
    """Prints mismatches, and returns per source how many lines, tokens and mismatches there were."""
    result: dict[str, dict[str, int]] = {}
    for name, lines in corpus(data, awkward):
        counts = {"lines": len(lines), "tokens": 0, "mismatches": 0, "not_round_trip": 0}
        for line in lines:
            ours = tokenizer.encode(line, add_special_tokens=False)
            theirs = peer_ids(url, line)
            counts["tokens"] += len(ours)
            counts["not_round_trip"] += tokenizer.decode(ours) != line
            if ours != theirs:
                counts["mismatches"] += 1
                if counts["mismatches"] <= shown:
                    _show(tokenizer, name, line, ours, theirs)
        result[name] = counts
        print(f"{name:16} {counts}", flush=True)
    return result


def _show(tokenizer: Any, name: str, line: str, ours: list[int], theirs: list[int]) -> None:
    start = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    print(f"MISMATCH in {name}: {line!r}")
    for who, ids in (("ours", ours), ("peer", theirs)):
        part = ids[start : start + 8]
        print(f"  {who} from token {start}: {part} {[tokenizer.token_bytes(i) for i in part]}")


def record(file: Path, name: str, url: str, version: str) -> None:
    """Write the peer's ids of the file's own lines into it, as plain text and with special tokens."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content["peer"] = version
    content.setdefault("plain", {})[name] = [peer_ids(url, line) for line in content["lines"]]
    content.setdefault("special", {})[name] = [peer_ids(url, line, parse_special=True) for line in content["lines"]]
    file.write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf file")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--url", help="a running llama.cpp server with the same model")
    peer.add_argument("--xllamacpp", metavar="PYTHON", help="a Python in which xllamacpp is installed")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--awkward", type=int, default=2000, help="number of generated lines")
    parser.add_argument("--show", type=int, default=5, help="mismatches shown per source")
    parser.add_argument("--json", type=Path, help="write the counts here")
    parser.add_argument("--record", type=Path, help="write the peer's ids into this JSON file instead of comparing")
    parser.add_argument("--name", help="the model's name in that file")
    options = parser.parse_args()
    if options.record is not None:
        with _peer(options.model, options.url, options.xllamacpp) as (url, version):
            record(options.record, options.name or options.model.stem, url, version)
        return 0
    from deepseek.tokenizer.load import load_tokenizer

    started = time.perf_counter()
    tokenizer = load_tokenizer(options.model)
    print(f"loaded our tokenizer in {time.perf_counter() - started:.2f} s")
    with _peer(options.model, options.url, options.xllamacpp) as (url, version):
        result = compare(tokenizer, url, options.data, options.awkward, options.show)
    total = {key: sum(counts[key] for counts in result.values()) for key in next(iter(result.values()))}
    print(f"total            {total} against {version}")
    if options.json is not None:
        report = {"model": options.model.name, "peer": version, "total": total, "sources": result}
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if total["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
