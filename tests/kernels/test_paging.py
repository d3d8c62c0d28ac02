from __future__ import annotations

import pytest
import torch

from deepseek.kernels import reference
from deepseek.kernels.paging import PagedLayout
from tests.kernels.cases import RAGGED, randn


@pytest.mark.parametrize("name", RAGGED)
def test_slots_of_a_context(name: str) -> None:
    layout = RAGGED[name].layout()
    cache = randn(RAGGED[name].slots, 2, 3)
    for index, slots in enumerate(layout.context_slots):
        assert torch.equal(cache[slots], cache[reference.context_slots(layout, index)])


def layout_of(pages: tuple[int, ...], length: int) -> PagedLayout:
    return PagedLayout(
        page_size=4, query_starts=(0, 1), context_lens=(length,), pages=(pages,), write_slots=torch.tensor([0])
    )


def test_consecutive_pages_are_a_view() -> None:
    [slots] = layout_of((3, 4, 5), 9).context_slots
    assert slots == slice(12, 21)
    cache = randn(32, 2, 3)
    assert cache[slots].data_ptr() == cache[12].data_ptr()


@pytest.mark.parametrize("pages", [(3, 5), (4, 3), (3, 3)])
def test_other_pages_are_a_gather(pages: tuple[int, ...]) -> None:
    [slots] = layout_of(pages, 8).context_slots
    assert isinstance(slots, torch.Tensor)
    assert slots.tolist() == [page * 4 + offset for page in pages for offset in range(4)]


def test_pages_beyond_the_context_do_not_count() -> None:
    assert layout_of((3, 4, 9, 1), 8).context_slots == (slice(12, 20),)


def test_memo_belongs_to_one_layout() -> None:
    first, second = layout_of((1,), 1), layout_of((1,), 1)
    first.memo["x"] = 1
    assert "x" in first.memo
    assert "x" not in second.memo
