"""Multilingual text and multiple-choice sets for `deepseek bench quality`, from the shared data beside a checkout.

python -m benchmarks.quality --prepare FOLDER                      only write the files
python -m benchmarks.quality --model FOLDER --against MODEL        write them to a temporary folder and measure
python -m benchmarks.quality --quantize int8 --against MODEL       quantize MODEL first, calibrated on other text

On two quiet cores with AVX-512 the measuring takes about 3 minutes for SmolLM2-135M and 10 for a model of 1.5 billion
weights (quantizing that first, 10 more), most of it in the fp32 reference, which computes 50 tokens a second and core.
The quantized model runs on the native kernels, as it is served. Twice the tokens and questions take twice as long and
narrow the intervals, which are printed, by a third.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deepseek.quality import measure_quality, quality_rows, scoring_config
from deepseek.quantization import quantize_model

DATA = Path(__file__).parents[2] / "shared" / "data"

TEXTS = {
    "english": "ntrex/newstest2019-src.eng.txt",
    "chinese": "ntrex/newstest2019-ref.zho-CN.txt",
    "japanese": "ntrex/newstest2019-ref.jpn.txt.gz",
    "korean": "ntrex/newstest2019-ref.kor.txt.gz",
}
LINES = 400
"""News sentences of each language that are kept to measure; the ones after them are for calibration."""
CALIBRATION_LINES = 300

Row = dict[str, Any]


def read(path: str) -> str:
    data = (DATA / path).read_bytes()
    return (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8")


def copa_chinese() -> Iterator[Row]:
    """XCOPA, test: which of two is the cause, or the effect."""
    for line in read("xcopa_zh/test.zh.jsonl").splitlines():
        row = json.loads(line)
        link = "因为" if row["question"] == "cause" else "所以"
        premise = row["premise"].rstrip("。")
        yield {
            "question": f"{premise}，{link}",
            "choices": [row["choice1"], row["choice2"]],
            "answer": row["label"],
        }


def commonsense_japanese() -> Iterator[Row]:
    """JCommonsenseQA, validation: five choices."""
    for line in read("jglue/jcommonsenseqa-v1.3/valid-v1.3.json").splitlines():
        row = json.loads(line)
        choices = [row[f"choice{index}"] for index in range(5)]
        yield {"question": f"質問：{row['question']}\n答え：", "choices": choices, "answer": row["label"]}


def inference_korean() -> Iterator[Row]:
    """KLUE-NLI, dev: does the second sentence follow, is it open, or is it contradicted?"""
    words = {"entailment": "예", "neutral": "아마도", "contradiction": "아니요"}
    for row in json.loads(read("klue/klue-nli-v1.1_dev.json.gz")):
        question = f"{row['premise']}\n질문: {row['hypothesis']} 맞습니까?\n답:"
        choices = [" " + word for word in words.values()]
        yield {"question": question, "choices": choices, "answer": list(words).index(row["gold_label"])}


def reasoning_english() -> Iterator[Row]:
    """BIG-Bench Hard: tasks whose answer is one of some options."""
    for task in ("disambiguation_qa", "snarks", "date_understanding", "logical_deduction_three_objects"):
        for row in json.loads(read(f"bbh/{task}.json"))["examples"]:
            text, _, options = row["input"].partition("Options:\n")
            lines = [line for line in options.splitlines() if line.startswith("(")]
            letters = [line[:3] for line in lines]
            if row["target"] in letters and len(lines) > 1:
                question = f"Q: {text.strip()}\nA:"
                choices = [" " + line[3:].strip() for line in lines]
                yield {"question": question, "choices": choices, "answer": letters.index(row["target"])}


SETS: dict[str, Callable[[], Iterator[Row]]] = {
    "copa_chinese": copa_chinese,
    "commonsense_japanese": commonsense_japanese,
    "inference_korean": inference_korean,
    "reasoning_english": reasoning_english,
}


def prepare(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write texts, question sets (shuffled, so that any beginning is a fair sample) and ``calibration.jsonl``, whose
    sentences are none of those in the texts. Returns the files of texts and of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, questions, calibration = [], [], []
    for name, path in TEXTS.items():
        lines = [line for line in read(path).splitlines() if line.strip()]
        texts.append(folder / f"{name}.txt")
        texts[-1].write_text("\n".join(lines[:LINES]) + "\n", encoding="utf-8")
        calibration.append({"text": "\n".join(lines[LINES : LINES + CALIBRATION_LINES])})
    code = [json.loads(line) for line in read("humaneval/HumanEval.jsonl.gz").splitlines()]
    solved = [row["prompt"] + row["canonical_solution"] for row in code]
    texts.append(folder / "code.txt")
    texts[-1].write_text("\n\n".join(solved[:80]), encoding="utf-8")
    calibration.append({"text": "\n\n".join(solved[80:])})
    _write_rows(folder / "calibration.jsonl", calibration)
    for name, build in SETS.items():
        rows = list(build())
        random.Random(0).shuffle(rows)
        questions.append(folder / f"{name}.jsonl")
        _write_rows(questions[-1], rows)
    return texts, questions


def _write_rows(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, help="write the files to this folder and stop")
    parser.add_argument("--model", help="the quantized model")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="quantize the model of --against, and judge that")
    parser.add_argument("--against", help="the model it was made of")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=1024, help="of each text")
    parser.add_argument("--max-questions", type=int, default=100, help="of each set")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        parser.exit(0, "the shared data folder is not beside this checkout: nothing to measure\n")
    if arguments.prepare:
        prepare(arguments.prepare)
        return
    if not arguments.against or bool(arguments.model) == bool(arguments.quantize):
        parser.error("--against and either --model or --quantize are needed, or --prepare")
    with tempfile.TemporaryDirectory() as folder:
        texts, questions = prepare(Path(folder))
        model = arguments.model
        if arguments.quantize:
            model = str(Path(folder) / f"{Path(arguments.against).name}-{arguments.quantize}")
            text = Path(folder) / "calibration.jsonl"
            quantize_model(arguments.against, arguments.quantize, Path(model), calibration=text, say=print)
        result = measure_quality(
            scoring_config(model, arguments.dtype),
            scoring_config(arguments.against, "fp32"),
            texts=texts,
            questions=questions,
            tokens=arguments.tokens,
            max_questions=arguments.max_questions,
            say=print,
        )
    text_head, text_rows, set_head, set_rows = quality_rows(result)
    for row in (text_head, *text_rows, set_head, *set_rows):
        print("\t".join(row))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
