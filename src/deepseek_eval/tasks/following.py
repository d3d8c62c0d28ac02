"""Instructions that a program can check, made from templates in four languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from deepseek_eval.scorers.instructions import INSTRUCTION_METRICS, instructions
from deepseek_eval.task import Generate, Item, Message, Rows, Task

ITEMS = 120


@dataclass(frozen=True)
class Instruction:
    """Attributes: check: name in CHECKS. texts: language -> wording. draw: (random, language) -> argument."""

    check: str
    texts: Mapping[str, str]
    draw: Callable[[Random, str], Any] = lambda random, language: None


def tasks() -> Iterator[Task]:
    """All of them."""
    for language in TOPICS:
        yield _task(language)


def _task(language: str) -> Task:
    def items(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
        for index in range(ITEMS):
            random = Random(f"instructions/{language}/{index}")
            asked = _drawn(random, language)
            topic = random.choice(TOPICS[language])
            text = " ".join([REQUEST[language].format(topic), *(wording for _, _, wording in asked)])
            yield Item(
                id=str(index),
                prompt=(Message("user", text),),
                ask=Generate(max_tokens=256),
                target=[[name, argument] for name, argument, _ in asked],
                groups={"instructions": str(len(asked))},
            )

    return Task(
        name=f"instructions_{language}",
        title="Follow instructions on length, form and words",
        kind="instructions",
        languages=(language,),
        datasets=(),
        items=items,
        scorer=instructions(),
        metrics=INSTRUCTION_METRICS,
        suites=("core",) if language == "en" else (),
        note=f"{ITEMS} requests made from templates, with one to three instructions that a program checks, "
        f"after the idea "
        "of IFEval; not its prompts, so scores do not compare. What the answer says is not judged.",
    )


def _drawn(random: Random, language: str) -> list[tuple[str, Any, str]]:
    """One to three instructions, of different groups, that can be followed together."""
    groups = random.sample(GROUPS, random.randint(1, len(GROUPS)))
    chosen = [random.choice([one for one in group if language in one.texts]) for group in groups]
    if any(one.check in ("bullets", "numbered") for one in chosen):
        chosen = [one for one in chosen if one not in EDGES]  # a list begins with its mark
    drawn = []
    for one in chosen:
        argument = one.draw(random, language)
        shown = argument if isinstance(argument, list) else [argument]
        drawn.append((one.check, argument, one.texts[language].format(*shown)))
    return drawn


def _count(low: int, high: int, step: int = 1) -> Callable[[Random, str], int]:
    return lambda random, language: random.randrange(low, high + 1, step)


def _word(random: Random, language: str) -> str:
    return random.choice(WORDS[language])


REQUEST = {
    "en": "Write about {}.",
    "zh": "请写一段关于{}的文字。",
    "ja": "{}について書いてください。",
    "ko": "{}에 대해 글을 써 주세요.",
}
TOPICS = {
    "en": (
        *("a walk in the rain", "the history of bread", "learning to swim", "a small town market", "the Moon", "tea"),
        *("a library at night", "trains", "the first day of school", "growing tomatoes", "winter", "a lost umbrella"),
    ),
    "zh": (
        "雨中散步",
        "面包的历史",
        "学游泳",
        "小镇的集市",
        "月亮",
        "茶",
        "夜晚的图书馆",
        "火车",
        "开学第一天",
        "种番茄",
        "冬天",
        "丢失的雨伞",
    ),
    "ja": (
        *("雨の日の散歩", "パンの歴史", "水泳の練習", "小さな町の市場", "月", "お茶", "夜の図書館", "電車"),
        *("入学の日", "トマトの育て方", "冬", "なくした傘"),
    ),
    "ko": (
        *("빗속의 산책", "빵의 역사", "수영 배우기", "작은 마을의 시장", "달", "차", "밤의 도서관", "기차"),
        *("개학 첫날", "토마토 기르기", "겨울", "잃어버린 우산"),
    ),
}
WORDS = {
    "en": ("morning", "friend", "quiet", "memory", "window", "bright", "journey", "garden"),
    "zh": ("早晨", "朋友", "安静", "回忆", "窗户", "明亮", "旅程", "花园"),
    "ja": ("朝", "友達", "静か", "思い出", "窓", "明るい", "旅", "庭"),
    "ko": ("아침", "친구", "조용", "기억", "창문", "밝은", "여행", "정원"),
}
_STARTS = {"en": "Once upon a time", "zh": "很久以前", "ja": "昔々", "ko": "옛날 옛적에"}
_ENDS = {
    "en": "Thank you for reading.",
    "zh": "谢谢阅读。",
    "ja": "お読みいただきありがとうございました。",
    "ko": "읽어 주셔서 감사합니다.",
}

_LENGTH = (
    Instruction(
        "words_at_most",
        {"en": "Use at most {} words."},
        _count(30, 80, 10),
    ),
    Instruction(
        "characters_at_most",
        {"zh": "不超过{}个字。", "ja": "{}文字以内で書いてください。", "ko": "공백을 빼고 {}자 이내로 쓰세요."},
        _count(60, 160, 20),
    ),
    Instruction(
        "sentences",
        {
            "en": "Write exactly {} sentences.",
            "zh": "恰好写{}句话，每句以句号结尾。",
            "ja": "ちょうど{}文で書いてください。",
            "ko": "정확히 {}개의 문장으로 쓰세요.",
        },
        _count(2, 5),
    ),
    Instruction(
        "paragraphs",
        {
            "en": "Write exactly {} paragraphs, with an empty line between them.",
            "zh": "恰好写{}段，段与段之间空一行。",
            "ja": "ちょうど{}段落で、段落の間に空行を入れてください。",
            "ko": "정확히 {}개의 문단으로, 문단 사이에 빈 줄을 두세요.",
        },
        _count(2, 4),
    ),
    Instruction(
        "bullets",
        {
            "en": "Write it as exactly {} bullet points that begin with a dash.",
            "zh": "用恰好{}个以“- ”开头的要点来写。",
            "ja": "「- 」で始まるちょうど{}個の箇条書きで書いてください。",
            "ko": "'- '로 시작하는 항목 정확히 {}개로 쓰세요.",
        },
        _count(2, 5),
    ),
    Instruction(
        "numbered",
        {
            "en": "Write it as a numbered list of exactly {} items (1., 2., ...).",
            "zh": "写成恰好{}项的编号列表（1. 2. …）。",
            "ja": "ちょうど{}項目の番号付きリスト（1. 2. …）で書いてください。",
            "ko": "정확히 {}개 항목의 번호 목록(1. 2. …)으로 쓰세요.",
        },
        _count(2, 5),
    ),
)
_WORDING = (
    Instruction(
        "contains",
        {
            "en": 'Use the word "{}".',
            "zh": "要用到“{}”这个词。",
            "ja": "「{}」という言葉を使ってください。",
            "ko": "'{}'(이)라는 말을 넣으세요.",
        },
        _word,
    ),
    Instruction(
        "contains_times",
        {
            "en": 'Use the word "{}" exactly {} times.',
            "zh": "“{}”这个词恰好出现{}次。",
            "ja": "「{}」という言葉をちょうど{}回使ってください。",
            "ko": "'{}'(이)라는 말을 정확히 {}번 쓰세요.",
        },
        lambda random, language: [_word(random, language), random.randint(2, 3)],
    ),
    Instruction(
        "avoids",
        {
            "en": 'Do not use the word "{}".',
            "zh": "不要用“{}”这个词。",
            "ja": "「{}」という言葉は使わないでください。",
            "ko": "'{}'(이)라는 말은 쓰지 마세요.",
        },
        lambda random, language: {"en": "the", "zh": "的", "ja": "です", "ko": "그리고"}[language],
    ),
    Instruction("lowercase", {"en": "Use no capital letters at all."}),
    Instruction("uppercase", {"en": "Use capital letters only."}),
    Instruction(
        "no_comma",
        {
            "en": "Do not use any commas.",
            "zh": "不要使用任何逗号和顿号。",
            "ja": "読点やコンマを一切使わないでください。",
            "ko": "쉼표를 쓰지 마세요.",
        },
    ),
)
EDGES = (
    Instruction(
        "starts",
        {
            "en": 'Begin with the words "{}".',
            "zh": "以“{}”开头。",
            "ja": "「{}」で書き始めてください。",
            "ko": "'{}'(으)로 시작하세요.",
        },
        lambda random, language: _STARTS[language],
    ),
    Instruction(
        "ends",
        {
            "en": 'End with exactly these words: "{}"',
            "zh": "最后以“{}”这句话结尾。",
            "ja": "最後は「{}」という文で終えてください。",
            "ko": "마지막은 '{}'로 끝내세요.",
        },
        lambda random, language: _ENDS[language],
    ),
    Instruction(
        "title",
        {
            "en": "Give it a title in double angle brackets, such as <<a title>>.",
            "zh": "加一个写在双尖括号里的标题，例如<<标题>>。",
            "ja": "<<題名>>のように二重の山括弧で囲んだ題名をつけてください。",
            "ko": "<<제목>>처럼 겹꺾쇠 안에 제목을 넣으세요.",
        },
    ),
    Instruction(
        "quoted",
        {
            "en": "Put the whole answer into double quotation marks.",
            "zh": "把整个回答放在双引号里。",
            "ja": "回答全体を「」で囲んでください。",
            "ko": "답 전체를 큰따옴표로 감싸세요.",
        },
    ),
)
GROUPS = (_LENGTH, _WORDING, EDGES)
