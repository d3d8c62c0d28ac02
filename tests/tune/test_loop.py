"""How a run is divided and how its learning rate goes, without a model."""

from __future__ import annotations

from itertools import chain, pairwise

import msgspec
import numpy as np
import pytest

from deepseek_tune.loop import MAX_HELD_OUT, Evaluation, RunState, make_batches
from deepseek_tune.schedule import SCHEDULES, rate
from deepseek_tune.settings import LoRASettings


def settings(**changes: object) -> LoRASettings:
    return LoRASettings(base_model="m", train_data="d.jsonl", **changes)  # type: ignore[arg-type]


def lengths_of(count: int, longest: int = 100) -> np.ndarray:
    return np.random.default_rng(0).integers(2, longest + 1, count)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_rates_rise_and_fall(schedule: str, warmup: float) -> None:
    shares = [rate(done / 1000, schedule, warmup) for done in range(1001)]
    top = round(1000 * warmup)
    assert shares[top] == 1 == max(shares) and min(shares) >= 0
    assert all(a < b for a, b in pairwise(shares[: top + 1]))
    if schedule == "constant":
        assert set(shares[top:]) == {1.0}
    else:
        assert all(a > b for a, b in pairwise(shares[top:]))
        assert shares[-1] == pytest.approx(0, abs=1e-12)
        middle = shares[top + (1000 - top) // 2]
        assert middle == pytest.approx(0.5)


@pytest.mark.parametrize(("count", "share", "held"), [(19, 0.05, 0), (20, 0.05, 1), (21, 0.05, 1), (100, 0.0, 0)])
def test_held_out_examples_are_not_trained_on(count: int, share: float, held: int) -> None:
    batches = make_batches(lengths_of(count), settings(validation=share))
    train = sorted(chain.from_iterable(batches.train.rows(0)))
    judged = sorted(chain.from_iterable(batches.held_out.rows(0)))
    assert len(judged) == held and sorted(train + judged) == list(range(count))
    other = make_batches(lengths_of(count), settings(validation=share, seed=1))
    assert not held or count < 30 or sorted(chain.from_iterable(other.held_out.rows(0))) != judged


def test_held_out_examples_are_bounded() -> None:
    batches = make_batches(lengths_of(100_000, 10), settings(validation=0.5))
    assert len(batches.held_out.indices) == MAX_HELD_OUT


@pytest.mark.parametrize("longest", [1023, 1024, 1025])
def test_rows_hold_the_longest_example_and_steps_hold_the_budget(longest: int) -> None:
    lengths = np.concatenate([lengths_of(5000), [longest]])
    batches = make_batches(lengths, settings(validation=0.0, batch_tokens=8192))
    assert batches.train.max_tokens == max(longest, 1024) and batches.rows_per_step == 8
    steps = list(batches.steps(0, 0))
    assert all(len(rows) == 8 for rows in steps[:-1])
    assert list(batches.steps(0, 16)) == steps[2:]
    assert make_batches(lengths, settings(batch_tokens=300)).train.max_tokens == longest


def test_small_data_gets_several_steps_per_epoch() -> None:
    batches = make_batches(lengths_of(200), settings(validation=0.0))
    assert 10 <= len(list(batches.steps(0, 0))) <= 24


def test_states_survive_json_and_the_first_of_equals_is_best() -> None:
    state = RunState(epoch=2, evaluations=[Evaluation(1, 0.5), Evaluation(2, 0.25), Evaluation(3, 0.25)])
    again = msgspec.convert(msgspec.json.decode(msgspec.json.encode(state)), RunState)
    assert again == state and again.best == Evaluation(2, 0.25)
    assert RunState().best is None
