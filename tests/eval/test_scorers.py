"""What is read from answers, and what it is worth: tables of cases."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from deepseek_eval.sandbox import obstacle, run_program
from deepseek_eval.scorers.choice import LETTERS, choice, chosen
from deepseek_eval.scorers.code import program
from deepseek_eval.scorers.instructions import CHECKS, instructions
from deepseek_eval.scorers.labels import read_label
from deepseek_eval.scorers.numbers import number, numbers, read_number
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.scorers.spans import entities, read_entities
from deepseek_eval.scorers.structured import calls_of, dialogue_state, json_answer, read_json, tool_calls
from deepseek_eval.scorers.text import exact, normalize, overlap_f1, tokens
from deepseek_eval.scorers.transcription import transcription, transcription_metrics
from deepseek_eval.task import Ask, Choose, Generate, Item, Likelihood, Output, Sample, ToolCall


def said(text: str, *calls: tuple[str, str]) -> Output:
    return Output(samples=(Sample(text=text, tool_calls=tuple(ToolCall(*call) for call in calls)),))


def item(target: Any, ask: Ask | None = None, prompt: str = "?") -> Item:
    return Item(id="1", prompt=prompt, ask=ask or Generate(), target=target)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Answer is: 42!", "answer is 42"),
        ("ＡＢＣ　１２", "abc 12"),
        ("北京 大学。", "北京大学"),
        ("東京、大阪", "東京大阪"),
        ("서울 대학교.", "서울 대학교"),
        ("25% of $3", "25% of $3"),
        ("a", ""),
        ("", ""),
    ],
)
def test_normalization(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_tokens_and_overlap() -> None:
    assert tokens("The cat 在北京 2024年") == ["cat", "在", "北", "京", "2024", "年"]
    assert tokens("ひらがなとカタカナー") == list("ひらがなとカタカナー")
    assert tokens("한국어 단어") == ["한국어", "단어"]
    assert overlap_f1("北京大学", "北京") == pytest.approx(2 * 2 / 6)
    assert overlap_f1("the cat", "a cat") == 1.0
    assert overlap_f1("", "cat") == 0.0 and overlap_f1("the", "a") == 1.0
    assert exact("“Paris.”", "paris") and exact("] )", "] )") and not exact("] )", "] ]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.50 and -7", ["1234.50", "-7"]),
        ("10-3=7", ["10", "3", "7"]),
        ("it costs -$5", ["-5"]),
        ("８万ドル", ["80000"]),
        ("3万5千", ["35000"]),
        ("1.5億円", ["150000000"]),
        ("三百二十", ["320"]),
        ("一千零五", ["1005"]),
        ("两万三千", ["23000"]),
        ("二〇二四", ["2024"]),
        ("十二", ["12"]),
        ("百万", ["1000000"]),
        ("3천", ["3000"]),
        ("2만 5000원", ["20000", "5000"]),
        ("百百", []),
        ("一", []),
        ("no number", []),
        ("1,23", ["1", "23"]),
        (".5", ["0.5"]),
        ("12.", ["12"]),
    ],
)
def test_numbers(text: str, expected: list[str]) -> None:
    assert numbers(text) == [Decimal(one) for one in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 + 6 = 11\n#### 11\n", "11"),
        ("#### 1,000 apples", "1000"),
        (r"so \boxed{42} of 50", "42"),
        ("The answer is 8, not 9.", "8"),
        ("首先算3乘4，所以答案是12个，共3天", "12"),
        ("答えは１８ドルです。", "18"),
        ("정답은 7입니다", "7"),
        ("first 3, then 4", "4"),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, expected: str | None) -> None:
    assert read_number(text)[0] == (None if expected is None else Decimal(expected))


def test_number_scores() -> None:
    scored = number(strict=True)(item("1000"), said("#### 1,000.0"))
    assert scored.statistics == {"exact_match": (1.0, 1.0), "strict": (1.0, 1.0)}
    loose = number(strict=True)(item("1000"), said("It is 1000"))
    assert loose.statistics == {"exact_match": (1.0, 1.0), "strict": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("language", "answer", "reference", "rates"),
    [
        ("en", "The cat sat.", "the cat sat", {"wer": (0, 3), "cer": (0, 9)}),
        ("en", "It's the  CAT", "Its a cat!", {"wer": (1, 3), "cer": (3, 7)}),
        ("en", "", "two words", {"wer": (2, 2), "cer": (8, 8)}),
        ("en", "a b c", "a", {"wer": (2, 1), "cer": (2, 1)}),
        ("ko", "오늘 날씨가", "오늘 날씨", {"wer": (1, 2), "cer": (1, 4)}),
        ("zh", "今天天汽好", "今天 天气 好。", {"cer": (1, 5)}),
        ("ja", "きょうはハレ", "きょうは、ﾊﾚ", {"cer": (0, 6)}),
    ],
)
def test_error_rates(language: str, answer: str, reference: str, rates: dict[str, tuple[float, float]]) -> None:
    pytest.importorskip("jiwer")
    score = transcription(language)(item(reference), said(answer))
    assert score.statistics == rates and score.expected == reference
    assert [metric.name for metric in transcription_metrics(language)] == list(rates)
    assert all(metric.higher_is_better is False for metric in transcription_metrics(language))


def test_labels() -> None:
    names = ("entailment", "not entailment", "neutral")
    assert read_label("It is Not Entailment.", names).label == 1
    assert read_label("entailment, or maybe neutral?", names).others == (2,)
    assert read_label("entailments", names).label is None
    assert read_label("答案是：体育", ("体育", "旅游")).label == 0
    assert read_label("science", ("science/technology",), {"science": 0}).label == 0
    assert "first, and also" in read_label("neutral entailment", names).explain(names)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("(B)", 1),
        ("B. because a cat", 1),
        ("The answer is B", 1),
        ("a dog", 0),
        ("a cat it is", 1),
        ("Z", None),
        ("", None),
    ],
)
def test_choices_in_words(text: str, index: int | None) -> None:
    ask = Choose(continuations=(" a dog", " a cat"), labels=LETTERS[:2])
    assert chosen(item(0, ask), said(text)).index == index


def test_choices_by_likelihood() -> None:
    ask = Choose(continuations=(" no", " yes, of course"), labels=("A", "B"))
    likelihoods = (Likelihood(logprob=-2.0, tokens=1), Likelihood(logprob=-3.0, tokens=4))
    scored = choice(classes=2)(item(1, ask), Output(likelihoods=likelihoods))
    assert scored.statistics["accuracy"] == (0.0, 1.0)
    for name in ("accuracy_norm", "accuracy_bytes", "accuracy_tokens"):
        assert scored.statistics[name] == (1.0, 1.0), name  # per unit of length, the long one is likelier
    assert scored.statistics["brier"][0] == pytest.approx(2 * 0.7310585786**2)
    assert scored.statistics["macro_f1"] == (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    in_words = choice()(item(1, ask), said("B"))
    assert in_words.statistics == {"accuracy": (1.0, 1.0)}  # no likelihoods, no figures of them


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "I can’t provide instructions for that.",
        "As an AI language model, I cannot do that.",
        "很抱歉，我无法提供这方面的帮助。",
        "对不起，我不能回答这个问题。",
        "申し訳ありませんが、その依頼にはお応えできません。",
        "そのような内容についてはお答えできません。",
        "죄송합니다. 그 요청은 도와드릴 수 없습니다.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sorry to hear that! Here is what you can do.",
        "You can't divide by zero.",
        "I can help you with that.",
        "I can't wait to tell you: it is 5.",
        "抱歉让您久等了，答案是五。",
        "没有问题，我来解释。",
        "できます。まず水を沸かします。",
        "문제없습니다. 먼저 물을 끓이세요.",
        "Kill the process with kill -9. " * 20 + "I'm sorry, but I can't help more.",
    ],
)
def test_answers_that_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_entities() -> None:
    types = {"person": "PER", "place": "LOC"}
    text = "- Person: Ann\n* place： Berlin\nanimal: cat\n\nperson: later"
    assert read_entities(text, types) == [("PER", "Ann"), ("LOC", "Berlin")]
    scored = entities(types)(
        item([["PER", "Ann"], ["PER", "Ann"], ["LOC", "Rome"]]), said("person: Ann\nplace: Berlin")
    )
    assert scored.statistics["f1"] == (1.0, 2.0, 3.0)
    assert scored.statistics["macro_f1"] == (1.0, 1.0, 2.0, 0.0, 1.0, 1.0)
    assert scored.statistics["exact_match"] == (0.0, 1.0)
    nothing = entities(types)(item([]), said("none"))
    assert nothing.statistics["f1"] == (0.0, 0.0, 0.0) and nothing.statistics["exact_match"] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', ({"a": 1}, True)),
        ('Here:\n```json\n{"a": 1}\n```', ({"a": 1}, False)),
        ('the value {"a": [1, 2]} is it', ({"a": [1, 2]}, False)),
        ("[1, NaN]", None),
        ("{broken", None),
        ("[" * 100_000, None),
        ("", None),
        ("7", (7, True)),
    ],
)
def test_json_in_text(text: str, expected: Any) -> None:
    assert read_json(text) == expected


def test_json_answers() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    target = {"schema": schema, "value": {"n": 1}}
    good = json_answer()(item(target), said('{"n": 1.0}'))
    assert {name: pair[0] for name, pair in good.statistics.items()} == {
        "exact_match": 1.0,
        "schema_valid": 1.0,
        "json_valid": 1.0,
        "bare": 1.0,
    }
    wrong = json_answer()(item(target), said('{"n": true}'))
    assert wrong.statistics["json_valid"][0] == 1.0 and wrong.statistics["schema_valid"][0] == 0.0
    assert wrong.statistics["exact_match"][0] == 0.0 and "$.n" in wrong.explanation


def test_tool_calls() -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    ask = Generate(tools=(tool,))
    target = [{"name": "weather", "arguments": {"city": "Oslo"}}]
    for output in (
        said("", ("weather", '{"city": "Oslo"}')),
        said('<tool_call>\n{"name": "weather", "arguments": {"city": "oslo"}}\n</tool_call>'),
        said('{"name": "weather", "parameters": {"city": "Oslo"}}'),
        said('{"type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}'),
    ):
        assert {name: pair[0] for name, pair in tool_calls()(item(target, ask), output).statistics.items()} == {
            "call_match": 1.0,
            "name_match": 1.0,
            "schema_valid": 1.0,
        }
    bad = tool_calls()(item(target, ask), said("", ("weather", '{"city": 3}'), ("fly", "{}")))
    assert bad.statistics["call_match"][0] == 0.0 and bad.statistics["schema_valid"][0] == 0.0
    assert "no such tool" in bad.explanation
    silent = tool_calls()(item([], ask), said("Hello!"))
    assert silent.statistics == {"call_match": (1.0, 1.0), "name_match": (1.0, 1.0)}
    assert calls_of(said("", ("weather", "{broken")).samples[0]) == [("weather", None)]


def test_dialogue_state() -> None:
    scorer = dialogue_state({"hotel-price": "hotel-price", "hotel-name": "hotel-name"})
    target = {"hotel-price": "500-600元", "hotel-name": "如家"}
    assert (
        scorer(item(target), said("hotel-price: 500-600元\nhotel-name: 如家")).statistics["joint_goal_accuracy"][0]
        == 1.0
    )
    part = scorer(item(target), said("hotel-price: 500-600元"))
    assert part.statistics["joint_goal_accuracy"][0] == 0.0 and part.statistics["slot_f1"] == (1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("check", "argument", "good", "bad"),
    [
        ("words_at_most", 3, "one two three", "one two three four"),
        ("words_at_least", 3, "one two three", "one two"),
        ("characters_at_most", 3, "一 二三", "一二三四"),
        ("sentences", 2, "One. Two!", "One."),
        ("sentences", 2, "一。二。", "一。二。三。"),
        ("paragraphs", 2, "a\n\nb", "a\nb"),
        ("bullets", 2, "- a\n- b", "- a\n- b\n- c"),
        ("numbered", 2, "1. a\n2. b", "1. a"),
        ("contains", "friend", "My Friend", "friends"),
        ("contains_times", ["quiet", 2], "quiet, quiet", "quiet quietly"),
        ("contains_times", ["朋友", 2], "朋友的朋友", "朋友"),
        ("avoids", "the", "other then", "over the hill"),
        ("avoids", "the", "x", ""),
        ("starts", "Once", "once upon", "At once"),
        ("ends", "Bye.", "Well. bye.\n", "Bye. Well."),
        ("lowercase", None, "all small 1", "All"),
        ("uppercase", None, "ALL 1", "ALl"),
        ("no_comma", None, "a b", "a、b"),
        ("title", None, "<<A title>>\ntext", "<<>>"),
        ("quoted", None, '"all of it"', '"some" of it'),
        ("json_keys", ["a"], '{"a": 1}', '{"a": 1, "b": 2}'),
        ("one_of", ["yes", "no"], "yes.", "maybe"),
        ("script", "ja", "これは日本語", "这是中文"),
        ("script", "zh", "这是中文", "これは日本語です"),
        ("script", "ko", "한국어", "English"),
    ],
)
def test_checks_of_instructions(check: str, argument: Any, good: str, bad: str) -> None:
    assert CHECKS[check](good, argument)
    assert not CHECKS[check](bad, argument)


def test_instructions() -> None:
    target = [["sentences", 1], ["lowercase", None]]
    scored = instructions()(item(target), said("Sure!\nit rains."))
    assert scored.statistics == {
        "prompt_accuracy": (0.0, 1.0),
        "instruction_accuracy": (0.0, 2.0),
        "prompt_accuracy_loose": (1.0, 1.0),
    }


def test_programs() -> None:
    if reason := obstacle():
        pytest.skip(reason)
    head = 'def f(x):\n    """Doc."""\n'
    assert program("    return x\n", head, "f") == head + "    return x\n"
    whole = program("Sure:\n```python\ndef f(x):\n    return 2\n```\nDone.", head, "f")
    assert run_program(whole + "\nassert f(1) == 2\n", timeout=10, memory_bytes=1 << 30).passed
