"""Which replica a prompt goes to: the rule, on replicas that only have a load."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.engine.events import EngineInfo
from deepseek.errors import EngineDeadError, EngineOverloadedError
from deepseek_serve.routing import MORE, SHARE, TIMES, Router

PAGE = 4
INFO = EngineInfo(
    model="m",
    architecture="a",
    vocab_size=100,
    max_context=1000,
    dtype="fp32",
    kv_cache_bytes=0,
    kv_cache_tokens=100 * PAGE,
    weights_bytes=0,
    load_seconds=0.0,
    backends={},
)


@dataclass(eq=False)
class Scripted:
    """A replica as routing sees it."""

    pending: int = 0
    state: str = "ready"
    responsive: bool = True
    restarts: int = 0
    info: EngineInfo | None = INFO

    def check_ready(self) -> None:
        if self.state in ("starting", "restarting"):
            raise EngineOverloadedError(self.state)
        if self.state != "ready":
            raise EngineDeadError(self.state)


def pair() -> tuple[Scripted, Scripted, Router[Scripted]]:
    a, b = Scripted(), Scripted()
    return a, b, Router([a, b], PAGE)


def tokens(*pages: int) -> list[int]:
    return [page for page in pages for _ in range(PAGE)]


def test_equal_beginnings_go_to_one_replica() -> None:
    a, b, router = pair()
    one, other = router.choose(tokens(1, 2)), router.choose(tokens(8, 9))
    assert {one, other} == {a, b}, "who knows least is next"
    one.pending = 1
    for _ in range(5):
        assert router.choose(tokens(1, 2, 3)) is one
        assert router.choose(tokens(8, 9, 7)) is other
    assert router.counts == {"load": 2, "prefix": 10}


@pytest.mark.parametrize("length", [PAGE - 1, PAGE, PAGE + 1])
def test_only_full_pages_count(length: int) -> None:
    _, _, router = pair()
    prompt = [1] * length
    first = router.choose(prompt)
    first.pending = 1
    again = router.choose(prompt)
    assert (again is first) == (length >= PAGE)


def test_other_salts_share_nothing() -> None:
    a, _, router = pair()
    assert router.choose(tokens(1, 2), "ann") is a
    a.pending = 1
    assert router.choose(tokens(1, 2), "bob") is not a
    assert router.choose(tokens(1, 2), "ann") is a


@given(least=st.integers(0, 100), more=st.integers(0, 100))
def test_who_knows_the_prompt_is_chosen_unless_clearly_busier(least: int, more: int) -> None:
    a, b, router = pair()
    assert router.choose(tokens(1, 2)) is a
    a.pending, b.pending = least + more, least
    busier = more > MORE and least + more > TIMES * least
    assert router.choose(tokens(1, 2)) is (b if busier else a)
    assert router.counts["prefix"] == (not busier)


@given(st.integers(1, 40))
def test_a_small_part_is_not_worth_a_busier_replica(pages: int) -> None:
    a, _, router = pair()
    assert router.choose(tokens(0)) is a
    a.pending = 1
    assert (router.choose(tokens(0, *range(1, pages))) is a) == (SHARE * pages <= 1)


prompts = st.lists(st.integers(0, 2), max_size=6).map(lambda pages: tokens(*pages))


@given(st.lists(st.tuples(prompts, st.integers(0, 12)), max_size=40), st.integers(2, 4))
def test_the_choice_is_never_far_from_the_least_busy(requests: list[tuple[list[int], int]], count: int) -> None:
    replicas = [Scripted() for _ in range(count)]
    router = Router(replicas, PAGE)
    for turn, (prompt, load) in enumerate(requests):
        replicas[turn % count].pending = load
        least = min(replica.pending for replica in replicas)
        assert router.choose(prompt).pending <= max(least + MORE, TIMES * least)
    assert router.counts.total() == len(requests)


def test_a_replica_forgets_what_its_cache_has_no_room_for() -> None:
    a, b, router = pair()
    b.pending = MORE
    a.info = b.info = msgspec.structs.replace(INFO, kv_cache_tokens=2 * PAGE)
    assert router.choose(tokens(1, 2)) is a
    assert router.choose(tokens(3)) is a  # one page of the first is left: its beginning
    a.pending, b.pending = MORE, 0
    assert router.choose(tokens(3)) is a
    assert router.choose(tokens(1, 2)) is a
    assert router.choose(tokens(3, 3)) is b


def test_a_replica_that_was_restarted_knows_nothing() -> None:
    a, b, router = pair()
    assert router.choose(tokens(1, 2)) is a
    a.pending = 1
    assert router.choose(tokens(1, 2)) is a
    a.restarts += 1
    assert router.choose(tokens(1, 2)) is b


def test_replicas_that_cannot_answer_are_left_out() -> None:
    a, b, router = pair()
    assert router.choose(tokens(1, 2)) is a
    a.responsive = False
    assert router.choose(tokens(1, 2)) is b
    b.responsive = False
    assert router.choose(tokens(1, 2)) in (a, b), "slow is better than none"
    a.state = "restarting"
    assert router.choose(tokens(1, 2)) is b
    b.state = "failed"
    with pytest.raises(EngineOverloadedError):
        router.choose(tokens(1, 2))
    a.state = "failed"
    with pytest.raises(EngineDeadError):
        router.choose(tokens(1, 2))


def test_a_model_without_engines_is_starting() -> None:
    with pytest.raises(EngineOverloadedError):
        Router[Scripted]([]).check_ready()
