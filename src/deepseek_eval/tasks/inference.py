"""Does one sentence follow from another; what is the cause; common sense."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from deepseek_eval.task import Rows, Task
from deepseek_eval.tasks.builders import UNSPACED, Question, Style, choice_task, split, split_in_turn

_JA_HEAD = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。\n\n"
_JA_STYLE = Style(description=_JA_HEAD, delimiter="\n")
_JA_NLI = {"entailment": "含意", "contradiction": "矛盾", "neutral": "中立"}
_KO_NLI = {"entailment": "참", "contradiction": "거짓", "neutral": "알 수 없음"}
_CONNECTORS = {"cause": "因为", "effect": "所以"}
_LETTERS = "ABCDE"
XCOPA_PROMPTS = (
    ("{premise}{question}\n", {"cause": "原因是什么？", "effect": "结果是什么？"}),
    ("前提：{premise}\n{question}：", {"cause": "最可能的原因", "effect": "最可能的结果"}),
    ("{premise}这{question}", {"cause": "是因为", "effect": "导致"}),
)


def tasks() -> Iterator[Task]:
    """All of them."""
    yield _jnli()
    yield _klue_nli()
    yield _xcopa_zh()
    yield _xcopa_zh_prompts()
    yield _jcommonsenseqa()
    yield _jcommonsenseqa_letters()


def _jnli() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        head = "### 指示：\n与えられた前提と仮説の関係を回答してください。\n\n出力は以下から選択してください："
        "\n含意\n矛盾\n中立\n\n"
        every = (
            Question(
                row["sentence_pair_id"],
                f"{head}### 入力：\n前提：{row['sentence1']}\n仮説：{row['sentence2']}\n\n### 応答：",
                _JA_NLI[row["label"]],
                tuple(_JA_NLI.values()),
                cluster=row["yjcaptions_id"].split("-")[0],
            )
            for row in files["jglue"].read("jnli-v1.3/valid-v1.3.json")
        )
        return split_in_turn(every, 12)

    return choice_task(
        "jnli",
        "Japanese inference: does it follow, contradict, or neither",
        "nli",
        ("ja",),
        ("jglue",),
        read,
        choices=3,
        classes=tuple(_JA_NLI.values()),
        style=_JA_STYLE,
        shots=3,
        note="JGLUE 1.3, validation; 12 of its rows are kept back as examples. The prompt is that of "
        "ja_leaderboard_jnli "
        "in lm-evaluation-harness 0.4.13, which takes its examples from the training split.",
    )


def _klue_nli() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = (
            Question(
                row["guid"],
                f"전제: {row['premise']}\n가설: {row['hypothesis']}\n전제가 참이라면 가설은 참, 거짓, 알 수 "
                f"없음 중 무엇입니까?\n답:",
                _KO_NLI[row["gold_label"]],
                tuple(_KO_NLI.values()),
                groups={"source": row["source"]},
                cluster=row["premise"],
            )
            for row in files["klue"].json("klue-nli-v1.1_dev.json")
        )
        return split_in_turn(every, 12)

    return choice_task(
        "klue_nli",
        "Korean inference: true, false, or unknown",
        "nli",
        ("ko",),
        ("klue",),
        read,
        choices=3,
        classes=tuple(_KO_NLI.values()),
        shots=3,
        suites=("core",),
        note="KLUE 1.1, dev; 12 of its rows are kept back as examples.",
    )


def _xcopa_zh() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        questions, examples = (
            [
                Question(
                    f"{name}/{row['idx']}",
                    f"{row['premise'].strip()[:-1]} {_CONNECTORS[row['question']]}",
                    row["choice1"] if row["label"] == 0 else row["choice2"],
                    (row["choice1"], row["choice2"]),
                    groups={"question": row["question"]},
                )
                for row in files["xcopa_zh"].read(f"{name}.zh.jsonl")
            ]
            for name in ("test", "val")
        )
        return questions, examples

    return choice_task(
        "xcopa_zh",
        "Chinese causes and effects, two choices",
        "commonsense",
        ("zh",),
        ("xcopa_zh",),
        read,
        choices=2,
        suites=("core",),
        note="Test split. The prompt is that of xcopa_zh in lm-evaluation-harness 0.4.13.",
    )


def _xcopa_zh_prompts() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        def ask(name: str) -> Iterator[Question]:
            for row in files["xcopa_zh"].read(f"{name}.zh.jsonl"):
                for number, (template, words) in enumerate(XCOPA_PROMPTS, 1):
                    text = template.format(premise=row["premise"].strip(), question=words[row["question"]])
                    yield Question(
                        f"{name}/{row['idx']}/{number}",
                        text,
                        row["choice1"] if row["label"] == 0 else row["choice2"],
                        (row["choice1"], row["choice2"]),
                        groups={"prompt": str(number)},
                        cluster=f"{name}/{row['idx']}",
                    )

        return ask("test"), list(ask("val"))

    return choice_task(
        "xcopa_zh_prompts",
        "Chinese causes and effects, asked in three ways",
        "commonsense",
        ("zh",),
        ("xcopa_zh",),
        read,
        choices=2,
        style=UNSPACED,
        note="Each row of the test split with three prompts; the groups show how much the wording matters.",
    )


def _choices(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[f"choice{index}"] for index in range(5))


def _jcommonsenseqa() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        def ask(row: Mapping[str, str]) -> Question:
            listed = "".join(f"- {one}\n" for one in _choices(row))
            text = (
                f"### 指示：\n出力は以下から選択してください：\n{listed}\n### 入力：\n{row['question']}\n\n### 応答："
            )
            return Question(str(row["q_id"]), text, _choices(row)[int(row["label"])], _choices(row))

        return split((ask(row) for row in files["jglue"].read("jcommonsenseqa-v1.3/valid-v1.3.json")), 12)

    return choice_task(
        "jcommonsenseqa",
        "Japanese common sense, five choices",
        "commonsense",
        ("ja",),
        ("jglue",),
        read,
        choices=5,
        style=_JA_STYLE,
        shots=3,
        suites=("core",),
        note="JGLUE 1.3, validation; 12 of its rows are kept back as examples. The prompt is that of "
        "ja_leaderboard_jcommonsenseqa in lm-evaluation-harness 0.4.13, which takes its examples from the "
        "training split.",
    )


def _jcommonsenseqa_letters() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        def ask(row: Mapping[str, str]) -> Question:
            listed = "".join(f"{letter}. {one}\n" for letter, one in zip(_LETTERS, _choices(row), strict=True))
            text = f"質問：{row['question']}\n{listed}答え："
            return Question(str(row["q_id"]), text, _LETTERS[int(row["label"])], tuple(_LETTERS))

        return split((ask(row) for row in files["jglue"].read("jcommonsenseqa-v1.3/valid-v1.3.json")), 12)

    return choice_task(
        "jcommonsenseqa_letters",
        "Japanese common sense, answered with a letter",
        "knowledge",
        ("ja",),
        ("jglue",),
        read,
        choices=5,
        style=UNSPACED,
        shots=5,
        note="As jcommonsenseqa, in the form of MMLU: choices are listed and the likelihood of their letters counts.",
    )
