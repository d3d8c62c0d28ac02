"""Texts, questions, scores and figures of `deepseek bench recall`."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from deepseek.benchmark.recall.aggregation import aggregation_document
from deepseek.benchmark.recall.documents import Document, Frame, Hidden, Question, fill
from deepseek.benchmark.recall.figures import compare, perplexity_figures
from deepseek.benchmark.recall.passages import find_data, read_passages, sentences
from deepseek.benchmark.recall.perplexity import long_text
from deepseek.benchmark.recall.retrieval import DISTRACTORS, HOPS, VALUES, retrieval_document
from deepseek.benchmark.recall.run import TASKS, Work, make_documents, measure_recall, summarize
from deepseek.benchmark.recall.scoring import occurs, overlap, score
from deepseek.benchmark.recall.words import ADJECTIVES, NOUNS
from deepseek.config import EngineConfig
from deepseek.errors import BenchmarkError, ConfigurationError
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer

FOUND = ("needle", "multi-needle", "multi-key", "tracking")


@pytest.fixture(scope="module")
def tokenizer(test_model: Path) -> Tokenizer:
    return load_tokenizer(test_model)


@pytest.fixture(scope="module")
def frame(tokenizer: Tokenizer) -> Frame:
    return Frame.of(tokenizer)


def longest(frame: Frame, document: Document) -> int:
    return max(len(frame.prompt(document, question)) + question.max_tokens for question in document.questions)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("length", [1023, 1024, 1025, 4097])
def test_texts_have_their_length_to_the_token(frame: Frame, language: str, length: int) -> None:
    found = retrieval_document("t", language, length, "0", frame, tasks=FOUND, limit=1)
    counted = aggregation_document("t", language, length, "0", frame, limit=1)
    assert longest(frame, found) == longest(frame, counted) == length


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_asked_for_is_there_once(frame: Frame, tokenizer: Tokenizer, language: str) -> None:
    document = retrieval_document("t", language, 4096, "0", frame, tasks=FOUND, limit=3)
    text = tokenizer.decode(document.tokens)
    assert Counter(question.task for question in document.questions) == dict.fromkeys(FOUND, 3)
    for question in document.questions:
        assert len(set(question.answers)) == len(question.answers)
        if question.task == "tracking":
            places = [text.index(name) for name in question.answers]
            assert places == sorted(places) and len(places) == HOPS + 1
            assert [text.count(name) for name in question.answers] == [2] * HOPS + [1]
        else:
            assert [text.count(answer) for answer in question.answers] == [1] * len(question.answers)
            assert len(question.answers) == (VALUES if question.task == "multi-needle" else 1)
    (key,) = {question.chance for question in document.questions if question.task == "multi-key"}
    assert key == pytest.approx(1 / (3 * (1 + DISTRACTORS)))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_lists_have_the_words_that_are_asked_for_most_often(frame: Frame, tokenizer: Tokenizer, language: str) -> None:
    document = aggregation_document("t", language, 8192, "0", frame, limit=2)
    lists = [line for line in tokenizer.decode(document.tokens).splitlines() if " 2. " in line]
    assert len(lists) == len(document.questions) == 2
    for question in document.questions:
        mark = ": " if language == "en" else "："
        (own,) = (line for line in lists if line.split(mark)[0] in question.text)
        counts = Counter(own.split(mark, 1)[1].split()[1::2])
        assert {word for word, _ in counts.most_common(len(question.answers))} == set(question.answers)
        ranked = sorted(counts.values(), reverse=True)
        assert ranked[len(question.answers) - 1] > ranked[len(question.answers)]
        assert question.chance == pytest.approx(len(question.answers) / len(counts))


def test_a_seed_makes_a_text(frame: Frame) -> None:
    first, again, other = (
        retrieval_document("t", "en", 2048, seed, frame, tasks=FOUND, limit=2) for seed in ("0", "0", "1")
    )
    assert first == again and first.tokens != other.tokens
    lists = [aggregation_document("t", "zh", 2048, seed, frame, limit=2) for seed in ("0", "0", "1")]
    assert lists[0] == lists[1] and lists[0].tokens != lists[2].tokens


def test_every_depth_hides_something(frame: Frame, tokenizer: Tokenizer) -> None:
    hidden = [Hidden(f"<{index}>", 0 if index < 4 else None) for index in range(8)]
    text = tokenizer.decode(fill(hidden, sentences("en", "x"), 4000, frame, Random(0)))
    places = [text.index(f"<{index}>") for index in range(8)]
    assert places[:4] == sorted(places[:4])  # a chain keeps its order
    quarters = Counter(4 * place // len(text) for place in places)
    assert all(1 <= quarters[quarter] <= 3 for quarter in range(4))


def test_a_text_that_is_too_short_says_so(frame: Frame) -> None:
    with pytest.raises(BenchmarkError, match="choose a greater length or a smaller limit"):
        retrieval_document("t", "en", 512, "0", frame, tasks=FOUND, limit=12)
    with pytest.raises(BenchmarkError, match="too short"):
        retrieval_document("t", "en", 64, "0", frame, tasks=FOUND, limit=1)


def test_made_up_text_has_no_numbers_and_does_not_end() -> None:
    for language in ("en", "zh"):
        lines = list(islice(sentences(language, "x"), 300))
        assert len(set(lines)) == 300 and not any(letter.isdigit() for line in lines for letter in line)
        assert lines == list(islice(sentences(language, "x"), 300))
        assert len(set(NOUNS[language])) == len(NOUNS[language]) > 200
        assert len(set(ADJECTIVES[language])) == len(ADJECTIVES[language])


def asked(*answers: str, every: bool = True) -> Question:
    return Question("t", "?", answers, every, 0.0, 8)


def test_scores() -> None:
    assert score(asked("1234567"), "It is 1234567.") == 1.0
    assert score(asked("1234567"), "数字是1234567。") == 1.0
    assert score(asked("1234567"), "11234567, 12345678") == 0.0
    assert score(asked("apple", "tiger", "stone", "lemon"), "Apple, tigers and STONE") == 0.5
    assert score(asked("苹果", "灯塔"), "苹果、森林") == 0.5
    assert score(asked("the Eiffel Tower", "Eiffel", every=False), "Eiffel, of course") == 1.0
    assert score(asked("green tall tower", every=False), "The tall green tower.") == 1.0  # the same words: F1 is 1
    assert score(asked("green tower", every=False), "a tower in Paris") == pytest.approx(2 / 5)
    assert score(asked("敬字亭", every=False), "敬亭") == pytest.approx(4 / 5)
    assert score(asked("green", every=False), "") == 0.0
    assert overlap("a the", "the") == 0.0  # nothing is left to share
    assert occurs("C++", "in C++.") and not occurs("C++", "in C+")


def item(dense: float, sparse: float, task: str = "needle", length: int = 8, chance: float = 0.1) -> dict[str, object]:
    return {
        "dense": dense,
        "sparse": sparse,
        "sparse_question": 0.0,
        "chance": chance,
        "task": task,
        "length": length,
        "language": "en",
    }


def test_figures_compare_the_same_items() -> None:
    figures = compare([item(1, 1), item(1, 0), item(1, 1), item(1, 1)])
    assert (figures["dense"], figures["sparse"], figures["ratio"], figures["ratio_question"]) == (1, 0.75, 0.75, 0)
    low, high = figures["ratio_interval"]
    assert 0.25 <= low < 0.75 < high == 1.0
    assert figures["informative"] and figures["chance"] == pytest.approx(0.1)
    same = compare([item(value, value) for value in (0, 1, 1, 0, 1, 0.5)])
    assert same["ratio"] == 1.0 and same["ratio_interval"] == [1.0, 1.0]


def test_a_task_that_cannot_be_done_says_nothing() -> None:
    figures = compare([item(0, 1), item(0, 0)])
    assert figures["ratio"] is None and figures["ratio_interval"] is None and not figures["informative"]
    tables = summarize(
        [item(0, 1), item(0, 0), item(1, 1, "tracking"), item(1, 0.5, "tracking"), item(0, 0, length=16)]
    )
    assert tables["worst"] == [{"length": 8, "task": "tracking", "ratio": 0.75}]
    assert [row["items"] for row in tables["tasks"]] == [2, 2, 1]
    assert [row["items"] for row in tables["totals"]] == [4, 1]


def test_perplexities_of_the_same_tokens() -> None:
    dense = [1.0, 2.0, 3.0] * 300
    figures = perplexity_figures({"dense": dense, "sparse": [loss + 0.01 for loss in dense]}, block=64)
    assert figures["ratio"] == pytest.approx(2.718281828**0.01)
    assert figures["ratio_interval"] == pytest.approx([figures["ratio"]] * 2)
    assert figures["sparse"] / figures["dense"] == pytest.approx(figures["ratio"])


def test_real_passages(frame: Frame, tokenizer: Tokenizer, shared_data: Path) -> None:
    for language in ("en", "zh"):
        passages = read_passages(shared_data, language)
        assert len(passages) > 200 and all("\n" not in passage.text for passage in passages)
        document = retrieval_document(
            "t", language, 4096, "0", frame, tasks=("needle", "passage"), limit=3, passages=passages
        )
        text = tokenizer.decode(document.tokens)
        questions = [question for question in document.questions if question.task == "passage"]
        assert len(questions) == 3 and longest(frame, document) == 4096
        assert all(question.answers[0] in text for question in questions)
        ids = long_text(tokenizer, language, 3000, shared_data)
        assert len(ids) == 3000 and tokenizer.decode(ids).startswith(passages[0].text)


def test_folders_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_BENCH_DATA", raising=False)
    assert find_data(None) is None and read_passages(None, "en") == []
    monkeypatch.setenv("DEEPSEEK_BENCH_DATA", str(tmp_path))
    assert find_data(None) == tmp_path and read_passages(tmp_path, "zh") == []
    with pytest.raises(ConfigurationError, match="does not exist"):
        find_data(tmp_path / "nosuch")
    path = tmp_path / "xquad" / "xquad.en.json.gz"
    path.parent.mkdir()
    paragraph = {"context": "One\nline.", "qas": [{"question": "?", "answers": [{"text": "One"}, {"text": "One"}]}]}
    path.write_bytes(gzip.compress(json.dumps({"data": [{"paragraphs": [paragraph]}]}).encode()))
    (passage,) = read_passages(tmp_path, "en")
    assert passage.text == "One line." and passage.questions == (("?", ("One",)),)
    for damaged in (path.read_bytes()[:-10], b"text", gzip.compress(b"[]")):
        path.write_bytes(damaged)
        with pytest.raises(BenchmarkError, match="not a file of passages"):
            read_passages(tmp_path, "en")


def test_texts_of_a_run(frame: Frame) -> None:
    documents, skipped = make_documents(Work(lengths=(2048, 1024), limit=1), frame, None)
    assert [document.length for document in documents] == [1024] * 4 + [2048] * 4
    assert len({document.name for document in documents}) == 8
    assert {question.task for document in documents for question in document.questions} == set(TASKS) - {"passage"}
    assert [reason.split(":")[0] for reason in skipped] == ["passage, en", "passage, zh"]
    few, none = make_documents(Work(lengths=(1024,), tasks=("tracking",), languages=("zh",), limit=2), frame, None)
    assert [question.task for (document,) in [few] for question in document.questions] == ["tracking"] * 2
    assert none == []
    for fields, message in (
        ({"tasks": ("nosuch",)}, "unknown task 'nosuch'"),
        ({"languages": ("fr",)}, "unknown language 'fr'"),
        ({"lengths": ()}, "nothing to measure"),
        ({"lengths": (0,)}, "lengths must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Work(**{"lengths": (1024,), **fields})


def test_a_run(test_model: Path) -> None:
    said: list[str] = []
    tasks = ("needle", "tracking", "passage", "common-words")
    work = Work(lengths=(1024, 1216), tasks=tasks, languages=("en",), limit=1, perplexity=1300)
    config = EngineConfig(model=str(test_model), threads=2, kv_cache_bytes=2**28)
    result = measure_recall(config, work, said.append)
    assert "4 texts, 6 questions, each asked 3 times" in said[0]
    assert {(row["length"], row["task"]) for row in result["tasks"]} == {
        (length, task) for length in work.lengths for task in tasks if task != "passage"
    }
    assert [row["length"] for row in result["totals"]] == [1024, 1216]
    assert len(result["items"]) == 6 and all(set(one["answers"]) == set(result["seconds"]) for one in result["items"])
    # Up to 1024 tokens of context everything is dense.
    for one in result["items"]:
        if one["length"] == 1024:
            assert len(set(one["answers"].values())) == 1
    (perplexity,) = result["perplexity"]
    assert perplexity["tokens"] == 1300 and 1 < perplexity["dense"] < 100
    assert perplexity["ratio"] == pytest.approx(1.0, abs=0.05)
    assert result["skipped"] and json.loads(json.dumps(result))["settings"]["work"]["lengths"] == [1024, 1216]
