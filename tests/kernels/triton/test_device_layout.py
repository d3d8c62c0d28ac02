"""The layout of a step on the device: what is copied, and buffers that stay where they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deepseek.kernels.paging import PagedLayout
from deepseek.kernels.triton.device_layout import NO_SLOT, DeviceLayout
from tests.kernels.cases import Ragged
from tests.kernels.triton.steps import DEVICE, STEPS


def allocate(**bounds: int) -> DeviceLayout:
    defaults = {"sequences": 4, "rows": 4, "page_size": 16, "max_context": 64, "max_query": 1}
    return DeviceLayout.allocate(DEVICE, **{**defaults, **bounds})


@pytest.mark.parametrize("name", STEPS)
def test_says_what_the_layout_says(name: str) -> None:
    layout = STEPS[name].layout()
    made = DeviceLayout.of(layout, DEVICE)
    assert made.query_starts.tolist() == list(layout.query_starts)
    assert made.context_lens.tolist() == list(layout.context_lens)
    assert made.write_slots.tolist() == layout.write_slots.tolist()
    assert made.write_slots.dtype == torch.int64
    for row, pages in zip(made.pages.tolist(), layout.pages, strict=True):
        assert row[: len(pages)] == list(pages)
        assert not any(row[len(pages) :])
    assert made.page_size == layout.page_size
    assert made.num_rows == layout.query_starts[-1]
    assert made.max_context == max(layout.context_lens)


@pytest.mark.parametrize(("name", "query", "decode"), [("decode", 1, 1), ("prompts", 33, 16), ("mixed", 17, 15)])
def test_bounds(name: str, query: int, decode: int) -> None:
    made = DeviceLayout.of(STEPS[name].layout(), DEVICE)
    assert (made.max_query, made.max_decode) == (query, decode)


def test_layers_of_a_step_share_it() -> None:
    layout = STEPS["mixed"].layout()
    assert DeviceLayout.of(layout, DEVICE) is DeviceLayout.of(layout, DEVICE)
    assert DeviceLayout.of(layout, DEVICE) is not DeviceLayout.of(STEPS["mixed"].layout(), DEVICE)


def test_pages_behind_the_context_are_left_out() -> None:
    layout = PagedLayout(16, (0, 1), (16,), ((3, 4, 5),), torch.tensor([63]))
    assert DeviceLayout.of(layout, DEVICE).pages.tolist() == [[3]]


def test_buffers_stay_where_they_are() -> None:
    static = allocate()
    before = static.pages.data_ptr(), static.write_slots.data_ptr(), static.query_starts.data_ptr()
    for sequences in (((14, 1), (15, 1), (32, 1)), ((3, 1),), ((1, 1), (2, 1), (3, 1), (63, 1))):
        layout = Ragged(sequences, page=16).layout()
        filled = static.fill(layout)
        assert DeviceLayout.of(layout, DEVICE) is DeviceLayout.of(filled, DEVICE) is static
        assert filled.write_slots is static.write_slots
        count = len(sequences)
        assert static.context_lens.tolist() == [*layout.context_lens, *[0] * (4 - count)]
        assert static.query_starts.tolist() == [0, 1, 2, 3, 4]
        assert static.write_slots.tolist() == [*layout.write_slots.tolist(), *[NO_SLOT] * (4 - count)]
        assert (static.pages.data_ptr(), static.write_slots.data_ptr(), static.query_starts.data_ptr()) == before
        assert (static.max_context, static.max_query, static.num_rows) == (64, 1, 4)


def test_rows_that_are_left_over_have_owners() -> None:
    static = allocate(sequences=3, rows=9, max_query=4)
    static.fill(Ragged(((0, 4),), page=16).layout())
    assert static.query_starts.tolist() == [0, 4, 8, 9]


def test_slots_may_be_on_the_device_already() -> None:
    layout = STEPS["mixed"].layout()
    there = replace(layout, write_slots=layout.write_slots.to(DEVICE, copy=True))
    assert DeviceLayout.of(there, DEVICE).write_slots.tolist() == layout.write_slots.tolist()


def test_buffers_are_not_filled_from_themselves() -> None:
    static = allocate()
    filled = static.fill(Ragged(((0, 1),), page=16).layout())
    with pytest.raises(AssertionError):
        static.fill(filled)


@pytest.mark.parametrize(
    "case",
    [
        Ragged(((0, 1),), page=32),
        Ragged(((64, 1),), page=16),
        Ragged(((0, 5),), page=16),
        Ragged(((0, 1),) * 5, page=16),
        Ragged(((0, 1), (0, 0), (0, 0), (0, 0)), page=16),
    ],
    ids=["page size", "context", "rows", "sequences", "rows without owner"],
)
def test_a_batch_beyond_the_bounds_is_a_bug(case: Ragged) -> None:
    with pytest.raises(AssertionError):
        allocate().fill(case.layout())
