"""From public customer-service data to a tuned model that answers over HTTP: prepare, tune, judge, serve, ask.

python examples/customer_service/run.py                      # Banking77 with SmolLM2
python examples/customer_service/run.py --set crosswoz --base-model deepseek-v2.1
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sets import SETS, Conversation, MissingData, load

from deepseek import LLM, Client, SamplingParams
from deepseek_tune import LoRATuner
from deepseek_tune.merge import merge

Figures = dict[str, float]


def prepare(options: argparse.Namespace) -> tuple[Path, list[Conversation]]:
    """Write the training data; returns its file, and the conversations to judge by."""
    learned, judged = load(options.set, options.data, options.train, options.test, options.seed)
    path: Path = options.work / f"{options.set}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"messages": conversation}, ensure_ascii=False) for conversation in learned]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"prepared: {len(learned):,} conversations in {path}, {len(judged):,} others to judge by")
    return path, judged


def tune(options: argparse.Namespace, data: Path) -> Path:
    """Train the adapter, or go on with it; returns its folder."""
    result = LoRATuner(
        base_model=options.base_model, train_data=data, epochs=options.epochs, seed=options.seed, preset=options.preset
    ).train()
    print(
        f"tuned: {result.trainable_share:.2%} of the parameters, held-out loss {result.validation_loss or 0.0:.3f}, "
        f"{result.tokens_per_second:,.0f} tokens/s; the run on a page: {result.output_dir}/report.html"
    )
    return Path(result.output_dir)


def judge(model: str, judged: list[Conversation], exact: bool) -> tuple[Figures, list[str]]:
    """(figures, answers) of a model on the last turns of conversations."""
    llm = LLM(model)
    prompts = [llm.tokenizer.encode_chat(conversation[:-1]) for conversation in judged]
    wanted = [conversation[-1]["content"] for conversation in judged]
    scores = llm.score(prompts, wanted)
    tokens = sum(len(score.logprobs) for score in scores)
    figures = {"nats per token of the right answer": -sum(sum(score.logprobs) for score in scores) / tokens}
    answers = [one.text.strip() for one in llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=48))]
    if exact:
        right = sum(answer.lower() == text.lower() for answer, text in zip(answers, wanted, strict=True))
        figures["right answers"] = right / len(judged)
    return figures, answers


def show(before: tuple[Figures, list[str]], after: tuple[Figures, list[str]], judged: list[Conversation]) -> None:
    print("judged:")
    for name, value in before[0].items():
        print(f"  {name}: {value:.3f} before, {after[0][name]:.3f} after")
    for conversation, old, new in list(zip(judged, before[1], after[1], strict=True))[:3]:
        print(f"  {conversation[-2]['content'].splitlines()[-1]!r}")
        print(f"    before: {old!r}\n    after:  {new!r}\n    wanted: {conversation[-1]['content']!r}")


def serve_and_ask(model: Path, conversation: Conversation) -> str:
    """Start a server with the tuned model, ask it over HTTP, stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deepseek_cli.main", "serve", str(model), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = Client(base_url=f"http://127.0.0.1:{port}/v1")
        client.wait_ready(timeout=120)
        messages: Any = conversation[:-1]
        name = client.models.list().data[0].id
        answer = client.chat.completions.create(model=name, messages=messages, temperature=0.0, max_tokens=48)
        return answer.choices[0].message.content or ""
    finally:
        server.terminate()
        server.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("DEEPSEEK_BENCH_DATA") or here.parent / "shared" / "data")
    parser.add_argument("--set", choices=SETS, default="banking77")
    parser.add_argument("--data", type=Path, default=data, help="the folder with a folder for each set (%(default)s)")
    parser.add_argument("--base-model", default="smollm2-135m-instruct")
    parser.add_argument("--work", type=Path, default=Path("customer_service"), help="where everything is written")
    parser.add_argument("--train", type=int, default=770, help="conversations to learn from (%(default)s)")
    parser.add_argument("--test", type=int, default=100, help="conversations to judge by (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        path, judged = prepare(options)
    except MissingData as error:
        sys.exit(f"error: {error}")
    adapter = tune(options, path)
    merged = options.work / f"{adapter.name}-merged"
    result = merge(adapter, merged, options.base_model, overwrite=True)
    print(f"merged: {merged}; {result.check or 'not checked'}")
    exact = SETS[options.set].exact
    show(judge(options.base_model, judged, exact), judge(str(merged), judged, exact), judged)
    answer = serve_and_ask(merged, judged[0])
    print(f"served and asked: {judged[0][-2]['content'].splitlines()[-1]!r} -> {answer!r}")


if __name__ == "__main__":
    main()
