"""Our engine under test: the numbers of LLM.score, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.eval.scripted import addition

from deepseek.llm import LLM
from deepseek_eval.models.engine import EngineModel
from deepseek_eval.task import Choose, Generate, Item, Measure, Message, Output

LONG = "The river rises in the mountains, crosses three countries and ends in a wide delta. " * 3


@pytest.fixture(scope="module")
def model(test_model: Path) -> Iterator[EngineModel]:
    made = EngineModel(str(test_model), offline=True, max_context=512, kv_cache_bytes=64 * 2**20)
    yield made
    made.close()


def ask(model: EngineModel, items: Sequence[Item]) -> list[Output]:
    found = dict(model.answer(addition(), items))
    return [found[position] for position in range(len(items))]


def choice(name: str, prompt: str | tuple[Message, ...], *texts: str) -> Item:
    return Item(id=name, prompt=prompt, ask=Choose(continuations=texts))


MIXED = [
    choice("0", LONG + "Its delta lies in", " Egypt", " the far north of Finland"),
    Item(id="1", prompt="Once upon a time", ask=Generate(max_tokens=12)),
    choice("2", "Water boils at", " one hundred degrees", " two"),
    Item(id="3", prompt=LONG, ask=Measure()),
    Item(id="4", prompt=(Message("user", "Say hello."),), ask=Generate(max_tokens=8, temperature=1.0, samples=2)),
    choice("5", (Message("user", "Is fire hot?"),), " Yes", " No"),
]


def test_likelihoods_are_those_of_score(model: EngineModel, test_model: Path) -> None:
    item = MIXED[0]
    assert isinstance(item.ask, Choose)
    (output,) = ask(model, [item])
    llm = LLM(str(test_model), offline=True, max_context=512, kv_cache_bytes=64 * 2**20)
    expected = llm.score([item.prompt] * 2, list(item.ask.continuations))  # type: ignore[list-item]
    for one, other in zip(output.likelihoods, expected, strict=True):
        assert one.logprob == pytest.approx(other.total, abs=0.05)
        assert (one.tokens, one.greedy) == (len(other.token_ids), other.is_greedy)


def test_answers_do_not_depend_on_the_batch(model: EngineModel) -> None:
    together = ask(model, MIXED * 3)
    for position in range(len(MIXED)):
        (alone,) = ask(model, [MIXED[position]])
        for again in (together[position], together[position + len(MIXED)]):
            assert alone.likelihoods == again.likelihoods and alone.samples == again.samples


def test_samples_differ_from_each_other(model: EngineModel) -> None:
    (output,) = ask(model, [MIXED[4]])
    assert len({sample.text for sample in output.samples}) == 2
    assert output.completion_tokens > 0


def test_a_prompt_that_does_not_fit_is_unanswered_and_the_others_go_on(model: EngineModel) -> None:
    long = Item(id="0", prompt="word " * 600, ask=Generate(max_tokens=4))
    scored = choice("1", "word " * 600, " yes", " no")
    empty = choice("2", "x", " yes", "")
    fine = choice("3", "x", " yes", " no")
    outputs = ask(model, [long, scored, empty, fine, long])
    assert [bool(output.error) for output in outputs] == [True, True, True, False, True]
    assert "512" in outputs[0].error and "empty" in outputs[2].error


def test_stop_strings_and_ids_of_a_later_call(model: EngineModel) -> None:
    item = Item(id="0", prompt="1, 2, 3, 4, 5,", ask=Generate(max_tokens=30, stop=(" 8",)))
    for _ in range(2):
        (output,) = ask(model, [item])
        assert " 8" not in output.samples[0].text and output.samples[0].text.startswith(" 6, 7")
    (scored,) = ask(model, [choice("0", "x", " yes", " no")])
    assert len(scored.likelihoods) == 2


def test_an_empty_prompt_and_a_measured_text(model: EngineModel) -> None:
    generated, scored, measured, nothing = ask(
        model,
        [
            Item(id="0", prompt="", ask=Generate(max_tokens=2)),
            choice("1", "", "The", "xq"),
            Item(id="2", prompt="The sky is blue.", ask=Measure()),
            Item(id="3", prompt="", ask=Measure()),
        ],
    )
    assert not generated.error and scored.likelihoods[0].logprob > scored.likelihoods[1].logprob
    assert measured.likelihoods[0].tokens == 5 and measured.likelihoods[0].logprob < 0
    assert nothing.error


def test_a_choice_that_merges_with_its_prompt(model: EngineModel) -> None:
    """ "ever" after "for" is one token: it is scored as the text is, not as the pieces are."""
    (output,) = ask(model, [choice("0", "I will love you for", "ever", " two")])
    assert output.likelihoods[0].tokens == 1


def test_beginnings_are_computed_once(model: EngineModel) -> None:
    before = model._llm.stats()
    ask(model, [choice(str(i), LONG * 2 + f"Question {i}:", " a", " b", " c", " d") for i in range(8)])
    after = model._llm.stats()
    asked = after.prompt_tokens - before.prompt_tokens
    assert (after.cached_prompt_tokens - before.cached_prompt_tokens) / asked > 0.8


def test_choices_that_differ_in_their_last_token_take_one_forward(model: EngineModel) -> None:
    """And keep their order, whatever stands between them."""
    mixed = choice("0", LONG, " A", " the delta", " B", " C")
    outputs = ask(model, [mixed, *(choice("0", LONG, text) for text in (" A", " the delta", " B", " C"))])
    assert [one.likelihoods[0] for one in outputs[1:]] == list(outputs[0].likelihoods)
    tokens = len(model._llm.tokenizer.encode(LONG))
    assert outputs[0].prompt_tokens == (tokens + 1) + (tokens + 2)


def test_the_card_identifies_the_model(model: EngineModel) -> None:
    details = model.card.details
    assert model.card.evidence == "re-run" and model.card.kind == "engine" and model.card.likelihoods
    assert len(details["weights_sha256"]) == len(details["template_sha256"]) == 64
    assert details["settings"]["max_context"] == 512 and details["dtype"]
