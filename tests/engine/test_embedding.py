"""Vectors out of the engine: pooled from the right rows, whatever runs beside them and however texts are cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepseek.embedding import floats
from deepseek.engine.engine import Engine
from deepseek.engine.events import EmbedEvent, EmbedRequest, EngineEvent, Pooling, TokenEvent
from deepseek.errors import ContextLengthError, InvalidRequestError
from deepseek.hub.open import open_checkpoint
from deepseek.kernels.cpu.extension import obstacle
from deepseek.kernels.registry import bind
from deepseek.models.base import Model
from deepseek.models.registry import load_model, load_native_model
from tests.fakes import FakeModel, greedy, hashing, make_engine, run, tokens_of
from tests.parity import tiny
from tests.parity.test_real_weights import transformers_model

VOCAB = 64
POOLINGS: tuple[Pooling, ...] = ("mean", "last", "cls")
TEXTS = [[3], [5, 9, 1, 40], [(7 * i + 2) % VOCAB for i in range(33)], [(11 * i + 5) % VOCAB for i in range(16)]]


def vectors(events: list[EngineEvent]) -> dict[str, np.ndarray]:
    return {e.request_id: np.array(floats(e.vector)) for e in events if isinstance(e, EmbedEvent)}


def pooled(
    rows: torch.Tensor, pooling: Pooling, *, normalize: bool = True, dimensions: int | None = None
) -> np.ndarray:
    """From all hidden states [tokens, dim] of a text."""
    vector = {"mean": rows.mean(0), "last": rows[-1], "cls": rows[0]}[pooling][:dimensions]
    return (vector / vector.norm() if normalize else vector).numpy()


def scripted(tokens: list[int]) -> torch.Tensor:
    script = hashing(VOCAB)
    return torch.stack([script(tokens[: i + 1])[:4] for i in range(len(tokens))])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_are_pooled_in_chunks_and_shared_steps_beside_an_answer(pooling: Pooling) -> None:
    model = FakeModel(hashing(VOCAB))
    engine = make_engine(model)
    engine.add(greedy("g", [1, 2, 3], max_tokens=12))
    for i, text in enumerate(TEXTS):
        engine.add(EmbedRequest(f"e{i}", text, pooling))
    events = run(engine)
    found = vectors(events)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(found[f"e{i}"], pooled(scripted(text), pooling), atol=1e-6)
    alone = make_engine(FakeModel(hashing(VOCAB)))
    alone.add(greedy("g", [1, 2, 3], max_tokens=12))
    assert tokens_of(events, "g") == tokens_of(run(alone), "g")
    assert max(model.batch_sizes) >= 3  # they share steps
    assert engine.stats().finished == len(TEXTS) + 1 and engine.stats().pages_free == 64


def test_length_and_dimensions_as_asked() -> None:
    engine = make_engine(FakeModel(hashing(VOCAB)))
    engine.add(EmbedRequest("raw", TEXTS[2], normalize=False))
    engine.add(EmbedRequest("short", TEXTS[2], dimensions=2))
    engine.add(EmbedRequest("both", TEXTS[2], normalize=False, dimensions=3))
    found = vectors(run(engine))
    rows = scripted(TEXTS[2])
    np.testing.assert_allclose(found["raw"], pooled(rows, "mean", normalize=False), atol=1e-6)
    np.testing.assert_allclose(found["short"], pooled(rows, "mean", dimensions=2), atol=1e-6)
    assert np.linalg.norm(found["short"]) == pytest.approx(1.0)
    np.testing.assert_allclose(found["both"], pooled(rows, "mean", normalize=False, dimensions=3), atol=1e-6)


def test_a_prefix_is_reused_only_where_its_rows_are_not_needed() -> None:
    engine = make_engine(FakeModel(hashing(VOCAB)))
    for name, pooling in (("a", "last"), ("b", "last"), ("c", "mean"), ("d", "mean")):
        engine.add(EmbedRequest(name, TEXTS[2], pooling))
        (event,) = [e for e in run(engine) if isinstance(e, EmbedEvent)]
        np.testing.assert_allclose(np.array(floats(event.vector)), pooled(scripted(TEXTS[2]), pooling), atol=1e-6)
        assert event.cached_tokens == (32 if name == "b" else 0)


def test_a_preempted_text_begins_again() -> None:
    engine = make_engine(FakeModel(hashing(VOCAB)), num_pages=14)
    engine.add(EmbedRequest("e", TEXTS[2], priority=-1))
    events = engine.step()
    assert not vectors(events)  # sixteen rows a step: it is under way
    engine.add(greedy("g", list(range(20)), max_tokens=8))
    events = run(engine)
    assert engine.stats().preemptions > 0
    np.testing.assert_allclose(vectors(events)["e"], pooled(scripted(TEXTS[2]), "mean"), atol=1e-6)


def test_cancelled_half_way() -> None:
    engine = make_engine(FakeModel(hashing(VOCAB)))
    engine.add(EmbedRequest("e", TEXTS[2]))
    engine.step()
    engine.cancel("e")
    (event,) = run(engine)
    assert isinstance(event, TokenEvent) and event.finish_reason == "cancelled"
    assert engine.stats().pages_free == 64 and not engine.has_work


def test_states_that_are_not_finite_fail_their_own_text_only() -> None:
    def script(context: Any) -> torch.Tensor:
        return torch.full((VOCAB,), torch.nan if 13 in context else 1.0)

    engine = make_engine(FakeModel(script))
    engine.add(EmbedRequest("good", [1, 2]))
    engine.add(EmbedRequest("bad", [1, 13, 2]))
    events = run(engine)
    assert set(vectors(events)) == {"good"}
    (error,) = [e for e in events if isinstance(e, TokenEvent)]
    assert error.request_id == "bad" and error.finish_reason == "error" and "NaN" in (error.error or "")


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (EmbedRequest("x", []), InvalidRequestError, "empty"),
        (EmbedRequest("x", [VOCAB]), InvalidRequestError, "outside"),
        (EmbedRequest("x", [1] * 129), ContextLengthError, "129 tokens"),
        (EmbedRequest("x", [1], dimensions=5), InvalidRequestError, "1 to 4"),
        (EmbedRequest("x", [1], priority=101), InvalidRequestError, "priority"),
    ],
)
def test_what_cannot_be_embedded_is_refused(request_: EmbedRequest, error: type[Exception], words: str) -> None:
    engine = make_engine(FakeModel(hashing(VOCAB)))
    with pytest.raises(error, match=words):
        engine.add(request_)
    assert not engine.has_work
    engine.add(EmbedRequest("whole", [1] * 128))  # a text may fill the context
    assert vectors(run(engine))


# -- real models ----------------------------------------------------------------------------------------------------

LENGTHS = (1, 15, 16, 17, 61)
NATIVE = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")


@cache
def theirs(name: str) -> Any:
    return tiny.build(name)


def of_model(model: Model, texts: list[list[int]], pooling: Pooling, **settings: Any) -> list[np.ndarray]:
    options: dict[str, Any] = {"num_pages": 64, "page_size": 16, "max_context": 256, "max_running": 8}
    engine = Engine(model, **options | {"max_batch_tokens": 24, "end_ids": frozenset(), "seed": 0} | settings)
    for i, text in enumerate(texts):
        engine.add(EmbedRequest(str(i), text, pooling))
    found = vectors(run(engine))
    return [found[str(i)] for i in range(len(texts))]


def reference(model: Any, text: list[int], pooling: Pooling) -> np.ndarray:
    """transformers' last hidden state, which stands behind the final norm."""
    with torch.inference_mode():
        states = model(torch.tensor([text]), use_cache=False, output_hidden_states=True).hidden_states[-1][0]
    return pooled(states.float(), pooling)


def texts_of(vocab: int) -> list[list[int]]:
    return [[(7 * i * i + 3 * n) % vocab for i in range(n)] for n in LENGTHS]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["llama", "qwen2-tied", "qwen3", "gemma3", "deepseek-v3", "qwen3-moe"])
def test_torch_equals_transformers(name: str, pooling: Pooling) -> None:
    texts = texts_of(tiny.VOCAB)
    for text, vector in zip(texts, of_model(tiny.load(theirs(name)), texts, pooling), strict=True):
        np.testing.assert_allclose(vector, reference(theirs(name), text, pooling), atol=2e-5)


def test_a_decoder_saved_without_its_head(tmp_path: Path) -> None:
    """As Qwen3-Embedding is published."""
    whole = theirs("qwen3-bias-tied")
    whole.model.save_pretrained(tmp_path)
    model = load_model(open_checkpoint(tmp_path), ops=bind("cpu"), dtype=torch.float32, device="cpu")
    (text,) = texts_of(tiny.VOCAB)[2:3]
    np.testing.assert_allclose(of_model(model, [text], "last")[0], reference(whole, text, "last"), atol=2e-5)


@NATIVE
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["llama-wide", "qwen3-wide", "gemma3", "deepseek-v3-wide", "qwen3-moe"])
def test_native_is_close_and_the_same_to_the_bit_in_any_company(name: str, pooling: Pooling) -> None:
    checkpoint = tiny.checkpoint(theirs(name))
    model = load_native_model(checkpoint, scheme="fp16", kv_dtype="fp16", threads=2)
    texts = texts_of(tiny.VOCAB)
    together = of_model(model, texts, pooling)
    for text, vector in zip(texts, together, strict=True):
        assert np.dot(vector, reference(theirs(name), text, pooling)) > 0.999
        (alone,) = of_model(model, [text], pooling, max_batch_tokens=200)
        assert np.array_equal(alone, vector)


def test_hidden_rows_change_no_logits() -> None:
    model = tiny.load(theirs("llama"))
    whole = Engine(model, num_pages=64, page_size=16, max_context=256, max_running=8, max_batch_tokens=64,
                   end_ids=frozenset(), seed=0)  # fmt: skip
    whole.add(greedy("g", [5, 6, 7], 8))
    expected = tokens_of(run(whole), "g")
    whole.add(greedy("g", [5, 6, 7], 8))
    whole.add(EmbedRequest("e", [9] * 40))
    assert tokens_of(run(whole), "g") == expected


@pytest.mark.parametrize("kind", ["torch", pytest.param("native", marks=NATIVE)])
def test_smollm2_equals_transformers(test_model: Path, kind: str) -> None:
    texts = [[(97 * i * i + n) % 49000 for i in range(n)] for n in (2, 40, 130)]
    checkpoint = open_checkpoint(test_model)
    load: dict[str, Callable[[], Model]] = {
        "torch": lambda: load_model(checkpoint, ops=bind("cpu"), dtype=torch.float32, device="cpu"),
        "native": lambda: load_native_model(checkpoint, scheme="auto", kv_dtype="fp16", threads=2),
    }
    model, other = load[kind](), transformers_model(test_model)
    for pooling in ("mean", "last"):
        found = of_model(model, texts, pooling, max_batch_tokens=48)
        for text, vector in zip(texts, found, strict=True):
            expected = reference(other, text, pooling)
            if kind == "torch":
                np.testing.assert_allclose(vector, expected, atol=1e-4)
            else:
                assert np.dot(vector, expected) > 0.99
