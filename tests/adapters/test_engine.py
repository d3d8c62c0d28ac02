"""Adapters inside an engine: who gets which, what is cached for whom, loading and unloading under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from deepseek.adapters.adapter import Adapter
from deepseek.config import MAX_ADAPTERS, EngineConfig
from deepseek.engine.adapters import ServedAdapter
from deepseek.engine.draft_model import DraftModel
from deepseek.engine.engine import Engine
from deepseek.engine.events import AdapterInfo, GenerateRequest, ScoreEvent, ScoreRequest, TokenEvent
from deepseek.engine.load import load_engine
from deepseek.engine.request import Sequence as Live
from deepseek.engine.sampler import sample
from deepseek.engine.speculation import LookupDrafter, Speculation
from deepseek.errors import (
    AdapterError,
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    UnknownAdapterError,
)
from deepseek.kernels.cpu.extension import obstacle
from deepseek.kernels.sampling import choose_tokens
from deepseek.models.base import Model
from deepseek.models.registry import load_native_model
from deepseek.sampling import SamplingParams
from tests.adapters import making
from tests.adapters.making import PROMPT
from tests.adapters.test_models import checkpoint, native_model, needs_native, torch_model
from tests.fakes import make_engine, run, tokens_of
from tests.parity import tiny

KINDS = ["torch"] if obstacle() is not None else ["torch", "native"]
PAGE = 16


def model_of(kind: str) -> Model:
    return torch_model("llama-wide") if kind == "torch" else native_model("llama-wide")


def engine_of(model: Model, **settings: Any) -> Engine:
    options: dict[str, Any] = {"page_size": PAGE, "num_pages": 64, "max_context": 400, "max_batch_tokens": 24}
    return make_engine(model, **options | settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    making.lora(folder / "a", rank=16, seed=1)
    making.lora(folder / "b", rank=3, targets=("q_proj", "down_proj"), seed=2)
    making.lora(folder / "c", rank=8, targets=("up_proj",), seed=3)
    return folder


def asked(name: str, adapter: str | None, length: int = 37, answer: int = 12, **options: Any) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True, **options)
    return GenerateRequest(name, PROMPT[:length], params, adapter=adapter)


def answer(engine: Engine, request: GenerateRequest) -> list[int]:
    engine.add(request)
    return tokens_of(run(engine), request.request_id)


def cached(engine: Engine, request: GenerateRequest) -> int:
    engine.add(request)
    return sum(event.cached_tokens for event in run(engine) if isinstance(event, TokenEvent))


@pytest.mark.parametrize("kind", KINDS)
def test_each_request_gets_its_adapter(kind: str, folder: Path) -> None:
    engine = engine_of(model_of(kind), max_running=8, max_batch_tokens=64)
    before = answer(engine, asked("before", None))
    for name in "abc":
        engine.load_adapter(name, str(folder / name))
    alone = {name: answer(engine, asked(f"alone {name}", name)) for name in "abc"} | {None: before}
    assert len({tuple(tokens) for tokens in alone.values()}) == 4
    requests = [asked(f"{i}", [None, "a", "b", "c"][i % 4]) for i in range(8)]
    for request in requests:
        engine.add(msgspec.structs.replace(request, cache_salt=request.request_id))
    events = run(engine)
    for request in requests:
        assert tokens_of(events, request.request_id) == alone[request.adapter]


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_those_of_the_adapter(kind: str, folder: Path, tmp_path: Path) -> None:
    engine = engine_of(model_of(kind))
    for name in "ab":
        engine.load_adapter(name, str(folder / name))
    for adapter in (None, "a", "b"):
        assert cached(engine, asked(f"{adapter} 1", adapter)) == 0
        assert cached(engine, asked(f"{adapter} 2", adapter)) == 32
    engine.load_adapter("same", str(folder / "a"))
    assert cached(engine, asked("same", "same")) == 32
    making.lora(tmp_path, rank=16, seed=9)
    expected = answer(engine, asked("old", "a"))
    engine.load_adapter("a", str(tmp_path))
    assert cached(engine, asked("other weights", "a")) == 0
    assert answer(engine, asked("new", "a")) != expected


def test_unloading_disturbs_nobody(folder: Path) -> None:
    engine = engine_of(model_of("torch"))
    engine.load_adapter("a", str(folder / "a"))
    expected = answer(engine, asked("first", "a"))
    engine.add(asked("running", "a"))
    for _ in range(4):
        engine.step()
    held = engine.stats().adapter_bytes
    engine.unload_adapter("a")
    assert engine.stats().adapters == 0
    assert engine.stats().adapter_bytes == held > 0
    with pytest.raises(UnknownAdapterError, match="none is loaded"):
        engine.add(asked("late", "a"))
    with pytest.raises(UnknownAdapterError):
        engine.unload_adapter("a")
    # One of the same name in its place, with other weights, is not what the running request gets.
    engine.load_adapter("a", str(folder / "b"))
    events = run(engine)
    first = [event for event in events if event.request_id == "running"]
    assert tokens_of(first, "running") == expected[-len(first) :]
    engine.unload_adapter("a")
    assert engine.stats().adapter_bytes == 0


def test_a_refused_or_cancelled_request_holds_nothing(folder: Path) -> None:
    engine = engine_of(model_of("torch"))
    engine.load_adapter("a", str(folder / "a"))
    with pytest.raises(ContextLengthError):
        engine.add(GenerateRequest("long", PROMPT * 20, SamplingParams(), adapter="a"))
    engine.add(asked("cancelled", "a"))
    engine.step()
    engine.cancel("cancelled")
    engine.unload_adapter("a")
    assert engine.stats().adapter_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_preempted_requests_answer_the_same(kind: str, folder: Path) -> None:
    making.tokens(folder / "prefix", "prefix", count=PAGE + 1)
    names = ["a", "b", None, "prefix"]
    roomy = engine_of(model_of(kind), prefix_cache=False)
    tight = engine_of(model_of(kind), prefix_cache=False, num_pages=12)
    for engine in (roomy, tight):
        for name in ("a", "b", "prefix"):
            engine.load_adapter(name, str(folder / name))
    requests = [asked(str(name), name, answer=40) for name in names]
    expected = [answer(roomy, request) for request in requests]
    for request in requests:
        tight.add(request)
    events = run(tight)
    assert tight.stats().preemptions > 0
    assert [tokens_of(events, request.request_id) for request in requests] == expected


@needs_native
@pytest.mark.parametrize("drafter", ["lookup", "draft"])
def test_speculation_changes_no_answer(drafter: str, folder: Path) -> None:
    """The draft model has no adapters: its guesses are those for the model alone."""
    making.tokens(folder / "prompt", "prompt", count=7)
    small = native_model("llama-wide", "int8")
    drafts = (
        LookupDrafter()
        if drafter == "lookup"
        else DraftModel(small, num_pages=64, page_size=PAGE, max_rows=64, vocab_size=tiny.VOCAB, cost=0.01)
    )
    plain = engine_of(model_of("native"))
    guessing = engine_of(model_of("native"), speculation=Speculation(drafts, row_cost=0.01))
    for engine in (plain, guessing):
        for name in ("a", "prompt"):
            engine.load_adapter(name, str(folder / name))
    requests = [asked(f"{name}", name, answer=60) for name in ("a", "prompt", None)]
    expected = [answer(plain, request) for request in requests]
    for request in requests:
        guessing.add(request)
    events = run(guessing)
    assert [tokens_of(events, request.request_id) for request in requests] == expected
    assert guessing.stats().drafted_tokens > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["prompt", "ptuning", "prefix"])
@pytest.mark.parametrize("count", [1, PAGE - 1, PAGE, PAGE + 1, 40])
def test_tokens_before_a_prompt_are_those_of_peft(kind: str, what: str, count: int, tmp_path: Path) -> None:
    """In chunks, and from the prefix cache, the same."""
    theirs = making.logits_of(making.tokens(tmp_path, what, count=count)).log_softmax(-1)
    expected = [float(theirs[i - 1, PROMPT[i]]) for i in range(10, len(PROMPT))]
    engine = engine_of(model_of(kind))
    info = engine.load_adapter("x", str(tmp_path))
    assert (info.tokens, info.kind) == (count, "prefix" if what == "prefix" else "prompt")
    assert info.nbytes > 0
    for name in ("computed", "cached"):
        engine.add(ScoreRequest(name, PROMPT, 10, adapter="x"))
        (event,) = run(engine)
        assert isinstance(event, ScoreEvent)
        tolerance = 1e-4 if kind == "torch" else 2e-2
        assert max(abs(a - b) for a, b in zip(event.logprobs, expected, strict=True)) < tolerance
    engine.add(ScoreRequest("base", PROMPT, 10))
    (base,) = run(engine)
    assert isinstance(base, ScoreEvent)
    assert max(abs(a - b) for a, b in zip(base.logprobs, expected, strict=True)) > 0.05
    stats = engine.stats()
    assert stats.prompt_tokens == 3 * len(PROMPT)  # what stands before them is not the caller's


@needs_native
def test_a_prefix_in_an_int8_cache(tmp_path: Path) -> None:
    theirs = making.logits_of(making.tokens(tmp_path, "prefix", count=PAGE + 1)).log_softmax(-1)
    model = load_native_model(checkpoint("llama-wide"), scheme="fp16", kv_dtype="int8", threads=1)
    engine = engine_of(model)
    engine.load_adapter("x", str(tmp_path))
    engine.add(ScoreRequest("a", PROMPT, 10, adapter="x"))
    (event,) = run(engine)
    assert isinstance(event, ScoreEvent)
    expected = [float(theirs[i - 1, PROMPT[i]]) for i in range(10, len(PROMPT))]
    assert max(abs(a - b) for a, b in zip(event.logprobs, expected, strict=True)) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_pages_before_a_prompt_are_shared(kind: str, tmp_path: Path) -> None:
    making.tokens(tmp_path, "prompt", count=PAGE)
    engine = engine_of(model_of(kind))
    engine.load_adapter("x", str(tmp_path))
    assert cached(engine, asked("first", "x", length=20)) == 0
    rows = engine.stats().steps
    assert cached(engine, asked("second", "x", length=20)) == PAGE  # of 16 + 20 tokens two pages
    assert engine.stats().steps - rows == 12


def test_the_context_holds_what_stands_before_too(tmp_path: Path) -> None:
    making.tokens(tmp_path, "prompt", count=5)
    engine = engine_of(model_of("torch"), max_context=50)
    engine.load_adapter("x", str(tmp_path))
    tokens = answer(
        engine, GenerateRequest("a", PROMPT[:40], SamplingParams(ignore_eos=True, max_tokens=99), adapter="x")
    )
    assert len(tokens) == 5
    assert len(answer(engine, asked("b", "x", length=40, answer=1))) == 1
    with pytest.raises(ContextLengthError, match="adapter takes 5 tokens"):
        engine.add(GenerateRequest("c", PROMPT + PROMPT[:5], SamplingParams(), adapter="x"))
    short = engine_of(model_of("torch"), max_context=5)
    with pytest.raises(AdapterError, match="puts 5 tokens"):
        short.load_adapter("x", str(tmp_path))


def test_no_more_than_there_may_be(folder: Path) -> None:
    engine = engine_of(model_of("torch"), max_adapters=2)
    for name in "ab":
        engine.load_adapter(name, str(folder / name))
    with pytest.raises(InvalidRequestError, match="2 adapters are loaded"):
        engine.load_adapter("c", str(folder / "c"))
    engine.load_adapter("b", str(folder / "c"))  # takes the place of one
    engine.unload_adapter("a")
    engine.load_adapter("c", str(folder / "c"))
    with pytest.raises(AdapterError):
        engine.load_adapter("c", str(folder))  # what is served stays
    assert [info.name for info in engine.adapters.infos] == ["b", "c"]


def test_penalties_do_not_count_what_stands_before(tmp_path: Path) -> None:
    adapter = Adapter("prompt", "", vectors=torch.zeros(3, 48))
    info = AdapterInfo(name="x", kind="prompt", digest="", base_model="", rank=0, tokens=3, nbytes=0, load_seconds=0.0)
    request = GenerateRequest("a", [5, 6], SamplingParams(temperature=0.0, repetition_penalty=10.0), adapter="x")
    live = Live.of(
        request,
        end_ids=frozenset(),
        seed=0,
        max_context=20,
        isolate_seeds=False,
        adapter=ServedAdapter("x", adapter, None, info),
    )
    assert live.tokens == [0, 0, 0, 5, 6]
    logits = torch.zeros(1, 8)
    logits[0, 0], logits[0, 5], logits[0, 1] = 2.0, 9.0, 1.0
    assert sample(choose_tokens, logits, [live]) == [0]


def test_settings() -> None:
    with pytest.raises(ConfigurationError, match="max_adapters"):
        EngineConfig(adapters={"a": "x", "b": "y"}, max_adapters=1)
    with pytest.raises(ConfigurationError, match="max_adapters"):
        EngineConfig(max_adapters=0)
    assert EngineConfig().max_adapters == MAX_ADAPTERS


def test_an_encoder_takes_none(minilm: Path) -> None:
    with pytest.raises(ConfigurationError, match="encoder"):
        load_engine(EngineConfig(model=str(minilm), adapters={"a": "x"}))
